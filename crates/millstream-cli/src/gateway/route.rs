//! Routes of the configuration file.

mod check;

use std::sync::Arc;

use http::Method;
use millstream_gateway::{
    HealthCheck, Place, PublishTo, Route, Serve, Served, Target, UpstreamUrl, Upstreams,
};
use millstream_message::{Address, BrokerUrl};
use millstream_pipeline::{show_duration, show_size};
use millstream_resilience::BreakerSettings;

use super::brokers::{Brokers, queue_is_there, shown, stream_is_there};
use super::options::{bytes, list, put, switch, text, texts, time, urls};

/// One route of the file.
#[derive(Clone, Debug, Default)]
pub(crate) struct RouteConfig {
    name: Option<String>,
    host: Option<String>,
    path: Option<String>,
    methods: Vec<Method>,
    upstreams: Vec<UpstreamUrl>,
    breaker: bool,
    compress: bool,
    health: Option<HealthCheck>,
    broker: Option<String>,
    publish: Option<String>,
    publish_max: Option<u64>,
    stream: Option<String>,
    queue: Option<String>,
    /// The keys that were given, with the number of the file's entry that gave each.
    given: Vec<(usize, &'static Key)>,
}

/// The largest body that is published if nothing else is said.
const PUBLISH_MAX: u64 = 1 << 20;

/// A key of a route, below `routes` and its number.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) name: &'static str,
    set: fn(&mut RouteConfig, &str) -> Result<(), String>,
    /// Its value as YAML that sets the same, but for passwords.
    show: fn(&RouteConfig) -> String,
}

const fn key(
    name: &'static str,
    set: fn(&mut RouteConfig, &str) -> Result<(), String>,
    show: fn(&RouteConfig) -> String,
) -> Key {
    Key { name, set, show }
}

pub(crate) static KEYS: &[Key] = &[
    key("name", |r, v| put(&mut r.name, text(v)), |r| quoted(r.name.as_deref())),
    key("host", |r, v| put(&mut r.host, host(v).map(Some)), |r| quoted(r.host.as_deref())),
    key("path", |r, v| put(&mut r.path, path(v).map(Some)), |r| quoted(r.path.as_deref())),
    key("methods", |r, v| put(&mut r.methods, methods(v)), |r| quoted_all(&texts(&r.methods))),
    key("upstreams", |r, v| put(&mut r.upstreams, urls(v)), |r| quoted_all(&texts(&r.upstreams))),
    key("breaker", |r, v| put(&mut r.breaker, switch(v)), |r| r.breaker.to_string()),
    key("health.path", |r, v| put(&mut r.check().path, asked(v)), |r| quoted(Some(&r.checks().path))),
    key("health.period", |r, v| put(&mut r.check().period, time(v)), |r| show_duration(r.checks().period)),
    key("health.timeout", |r, v| put(&mut r.check().timeout, time(v)), |r| show_duration(r.checks().timeout)),
    key(
        "health.failures",
        |r, v| put(&mut r.check().failures, times(v)),
        |r| r.checks().failures.to_string(),
    ),
    key(
        "health.successes",
        |r, v| put(&mut r.check().successes, times(v)),
        |r| r.checks().successes.to_string(),
    ),
    key("compress", |r, v| put(&mut r.compress, switch(v)), |r| r.compress.to_string()),
    key(
        "broker",
        |r, v| put(&mut r.broker, broker(v).map(Some)),
        |r| quoted(r.broker.as_deref().map(shown).as_deref()),
    ),
    key("publish.queue", |r, v| put(&mut r.publish, text(v)), |r| quoted(r.publish.as_deref())),
    key(
        "publish.max",
        |r, v| put(&mut r.publish_max, bytes(v, 1, 64 << 20).map(Some)),
        |r| show_size(r.publish_max.unwrap_or(PUBLISH_MAX)),
    ),
    key("serve.stream", |r, v| put(&mut r.stream, text(v)), |r| quoted(r.stream.as_deref())),
    key("serve.queue", |r, v| put(&mut r.queue, text(v)), |r| quoted(r.queue.as_deref())),
];

/// A text in YAML, whatever is in it.
fn quoted(text: Option<&str>) -> String {
    format!("'{}'", text.unwrap_or_default().replace('\'', "''"))
}

fn quoted_all(texts: &[String]) -> String {
    let texts: Vec<String> = texts.iter().map(|text| quoted(Some(text))).collect();
    format!("[{}]", texts.join(", "))
}

/// What a server is asked for, maybe with a query.
fn asked(value: &str) -> Result<String, String> {
    if value.starts_with('/') {
        Ok(value.to_owned())
    } else {
        Err("write a path that begins with `/`".into())
    }
}

fn path(value: &str) -> Result<String, String> {
    let value = asked(value)?;
    let never = |byte: u8| !byte.is_ascii_graphic() || b"?#".contains(&byte);
    if value.bytes().any(never) || !Place::everywhere().path(&value).is_reachable() {
        return Err("write a path as requests have it: without a query, spaces, `..`, and slashes in codes behind a `;`, and other characters as `%` and their code".into());
    }
    Ok(value)
}

fn host(value: &str) -> Result<String, String> {
    let name = value.strip_prefix("*.").unwrap_or(value);
    let named = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~[]:".contains(&byte);
    let with_port = !name.starts_with('[') && name.contains(':');
    if name.is_empty() || with_port || !name.bytes().all(named) {
        return Err("write a host without a port, as in `api.example.org`, or `*.example.org` for every name below it".into());
    }
    Ok(value.to_owned())
}

/// Methods are told apart by case, and `get` is sent by nobody.
fn methods(value: &str) -> Result<Vec<Method>, String> {
    let method = |word: String| match Method::from_bytes(word.as_bytes()) {
        Err(_) => Err(format!("`{word}` is no method; write such as `GET`")),
        Ok(Method::CONNECT) => {
            Err("leave `CONNECT` out: the gateway opens no tunnels, and answers 501".into())
        }
        Ok(_) if word.bytes().any(|byte| byte.is_ascii_lowercase()) => {
            Err(format!("write `{}`: methods are in capitals", word.to_uppercase()))
        }
        Ok(method) => Ok(method),
    };
    list(value).into_iter().map(method).collect()
}

fn broker(value: &str) -> Result<String, String> {
    value.parse::<BrokerUrl>().map(|_| value.to_owned()).map_err(|error| error.to_string())
}

fn times(value: &str) -> Result<u32, String> {
    value.parse().ok().filter(|times| *times > 0).ok_or_else(|| "write a whole number from 1".into())
}

impl RouteConfig {
    fn check(&mut self) -> &mut HealthCheck {
        self.health.get_or_insert_default()
    }

    fn checks(&self) -> HealthCheck {
        self.health.clone().unwrap_or_default()
    }

    /// Sets a key, which the entry with this number of the file gives.
    pub(crate) fn set(&mut self, key: &'static Key, value: &str, entry: usize) -> Result<(), String> {
        (key.set)(self, value)?;
        self.given.push((entry, key));
        Ok(())
    }

    pub(crate) fn upstreams(&self) -> &[UpstreamUrl] {
        &self.upstreams
    }

    /// The largest body that is published, if that was given.
    pub(crate) fn publish_max(&self) -> Option<u64> {
        self.publish_max
    }

    /// The entry that names it, and the name, if it is named.
    pub(crate) fn named(&self) -> Option<(usize, &str)> {
        let (at, _) = self.given.iter().find(|(_, key)| key.name == "name")?;
        Some((*at, self.name.as_deref()?))
    }

    /// The entry of the file that gave its first key.
    pub(crate) fn entry(&self) -> Option<usize> {
        self.given.first().map(|(at, _)| *at)
    }

    /// What was given, as an element of `routes`.
    pub(crate) fn print(&self) -> String {
        let mut lines: Vec<String> = Vec::new();
        let given = |key: &&'static Key| self.given.iter().any(|(_, given)| given.name == key.name);
        let keys: Vec<&Key> = KEYS.iter().filter(given).collect();
        let section = |key: &&Key| key.name.split_once('.').map(|(section, _)| section);
        for keys in keys.chunk_by(|one, next| section(one).is_some() && section(one) == section(next)) {
            let pair = |key: &&Key| {
                let name = key.name.rsplit('.').next().unwrap_or(key.name);
                format!("{name}: {}", (key.show)(self))
            };
            let pairs: Vec<String> = keys.iter().map(pair).collect();
            lines.push(match section(&keys[0]) {
                Some(section) => format!("{section}: {{ {} }}", pairs.join(", ")),
                None => pairs.concat(),
            });
        }
        format!("  - {}\n", lines.join("\n    "))
    }

    /// The route to these servers for everything.
    pub(crate) fn all(upstreams: Vec<UpstreamUrl>) -> RouteConfig {
        RouteConfig { name: Some("all".into()), upstreams, ..RouteConfig::default() }
    }

    /// Makes the route; `at` is its number in the file.
    pub(crate) async fn build(&self, at: usize, brokers: &mut Brokers) -> Result<Route, String> {
        let name = self.name.clone().unwrap_or_else(|| format!("route-{at}"));
        let target = self.target(brokers).await.map_err(|error| format!("route `{name}`: {error}"))?;
        let route = Route::to(&name, target).at(self.place());
        Ok(if self.compress { route.compress() } else { route })
    }

    /// Which requests it takes.
    pub(crate) fn place(&self) -> Place {
        let place = Place::everywhere().methods(self.methods.iter().cloned());
        let place = self.host.iter().fold(place, |place, host| place.host(host));
        self.path.iter().fold(place, |place, path| place.path(path))
    }

    async fn target(&self, brokers: &mut Brokers) -> Result<Target, String> {
        let stream = self.stream.clone().map(Served::Stream);
        let served = stream.or_else(|| self.queue.clone().map(Served::Queue));
        if let Some(queue) = &self.publish {
            let max = self.publish_max.unwrap_or(PUBLISH_MAX) as usize;
            let broker = brokers.open(self.broker_url()).await?;
            queue_is_there(&*broker, queue).await?;
            return Ok(Target::Handler(Arc::new(PublishTo::new(broker, Address::queue(queue), max))));
        }
        if let Some(what) = served {
            let url = self.broker_url().parse::<BrokerUrl>();
            if let (Served::Queue(name), Ok(BrokerUrl::RabbitmqStream(_))) = (&what, url) {
                return Err(format!(
                    "`{name}` is a stream there, which gives every message to every client: write `serve.stream`, or take \
                     a queue of `amqp://`"
                ));
            }
            let broker = brokers.open(self.broker_url()).await?;
            match &what {
                Served::Queue(queue) => queue_is_there(&*broker, queue).await?,
                Served::Stream(stream) => stream_is_there(&*broker, stream).await?,
            }
            return Ok(Target::Handler(Arc::new(Serve::new(broker, what))));
        }
        Ok(self.proxy())
    }

    /// Of a route that publishes or serves, which the file has refused without one.
    fn broker_url(&self) -> &str {
        self.broker.as_deref().unwrap_or_default()
    }

    fn proxy(&self) -> Target {
        let mut upstreams = Upstreams::new(self.upstreams.iter().cloned());
        if self.breaker {
            upstreams = upstreams.breaker(&BreakerSettings::default());
        }
        if let Some(check) = &self.health {
            upstreams = upstreams.health(check.clone());
        }
        Target::Proxy(Arc::new(upstreams))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stream_is_not_served_as_a_queue() {
        let route = RouteConfig {
            broker: Some("rabbitmq-stream://localhost".into()),
            queue: Some("orders".into()),
            ..RouteConfig::default()
        };
        let Err(refused) = route.build(1, &mut Brokers::default()).await else { panic!("it is built") };
        assert!(refused.contains("`orders` is a stream") && refused.contains("serve.stream"), "{refused}");
    }
}
