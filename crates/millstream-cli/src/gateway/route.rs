//! Routes of the configuration file.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::Method;
use millstream_gateway::{HealthCheck, PublishTo, Route, Serve, Served, Target, UpstreamUrl, Upstreams};
use millstream_message::{Address, Broker, BrokerErrorKind, BrokerUrl, Queue, StreamSpec};
use millstream_pipeline::{show_duration, show_size};
use millstream_resilience::BreakerSettings;

use super::options::{bytes, list, put, switch, text, texts, time, urls};

/// The brokers behind routes, each opened once, and open until the end: who follows a stream goes on though no route leads there any more.
#[derive(Default)]
pub(crate) struct Brokers(BTreeMap<String, Arc<dyn Broker>>);

impl Brokers {
    async fn open(&mut self, url: &str) -> Result<Arc<dyn Broker>, String> {
        if let Some(broker) = self.0.get(url) {
            return Ok(broker.clone());
        }
        let parsed: BrokerUrl = url.parse().map_err(|error| format!("{error}"))?;
        let memory = millstream_embedded::Settings::default().memory_bytes;
        let broker = millstream_pipeline::open_broker(&parsed, memory).await;
        let broker = broker.map_err(|error| format!("cannot open the broker `{parsed}`: {error}"))?;
        self.0.insert(url.to_owned(), broker.clone());
        Ok(broker)
    }

    /// The URLs of all of them.
    pub(crate) fn urls(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    /// Closes those with other URLs, which nobody has used.
    pub(crate) async fn close_others(&mut self, urls: &[String]) -> Result<(), String> {
        let others: Vec<String> = self.0.keys().filter(|url| !urls.contains(url)).cloned().collect();
        Brokers(others.into_iter().filter_map(|url| self.0.remove_entry(&url)).collect()).close().await
    }

    /// Closes all of them, so that what was accepted is durable.
    pub(crate) async fn close(self) -> Result<(), String> {
        for (url, broker) in self.0 {
            let closed = broker.close().await;
            closed.map_err(|error| format!("cannot close the broker `{}`: {error}", shown(&url)))?;
        }
        Ok(())
    }
}

/// One route of the file.
#[derive(Clone, Debug, Default)]
pub(crate) struct RouteConfig {
    name: Option<String>,
    host: Option<String>,
    path: Option<String>,
    methods: Vec<String>,
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
    key("methods", |r, v| put(&mut r.methods, methods(v)), |r| quoted_all(&r.methods)),
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
    key("broker", |r, v| put(&mut r.broker, text(v)), |r| quoted(r.broker.as_deref().map(shown).as_deref())),
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

/// The URL of a broker without a password.
fn shown(url: &str) -> String {
    url.parse::<BrokerUrl>().map_or_else(|_| "?".into(), |url| url.to_string())
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
    if value.bytes().any(never) || value.split('/').any(|part| matches!(part, "." | "..")) {
        return Err("write a path as requests have it: without a query, spaces and `..`, and other characters as `%` and their code".into());
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
fn methods(value: &str) -> Result<Vec<String>, String> {
    let words = list(value);
    if let Some(word) = words.iter().find(|word| Method::from_bytes(word.as_bytes()).is_err()) {
        return Err(format!("`{word}` is no method; write such as `GET`"));
    }
    if words.iter().any(|word| word == "CONNECT") {
        return Err("leave `CONNECT` out: the gateway opens no tunnels, and answers 501".into());
    }
    match words.iter().find(|word| word.bytes().any(|byte| byte.is_ascii_lowercase())) {
        Some(word) => Err(format!("write `{}`: methods are in capitals", word.to_uppercase())),
        None => Ok(words),
    }
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

    /// The entries that would have no effect, each with its key and the remedy.
    pub(crate) fn ineffective(&self) -> Vec<(usize, &'static str, &'static str)> {
        let gives = |name: &str| self.given.iter().any(|(_, key)| key.name == name);
        let (publishes, serves) = (gives("publish.queue"), gives("serve.stream") || gives("serve.queue"));
        let takes = |words: &[&str]| self.methods.iter().any(|method| words.contains(&method.as_str()));
        let remedy = |name: &str| match name {
            "upstreams" if publishes || serves => {
                Some("a route leads to one place; leave `upstreams` out, or make a route for each")
            }
            "serve.stream" | "serve.queue" if publishes => {
                Some("a route publishes or serves; make a route for each")
            }
            "serve.queue" if gives("serve.stream") => {
                Some("a route serves a stream or a queue; make a route for each")
            }
            "publish.max" if !publishes => Some("name the queue by `publish.queue`, or leave it out"),
            "broker" if !publishes && !serves => Some(
                "say what it is for by `publish.queue`, `serve.stream` or `serve.queue`, or leave it out",
            ),
            "methods" if publishes && !takes(&["POST", "PUT"]) => {
                Some("what is published comes by POST or PUT; name one of them, or leave it out")
            }
            "methods" if serves && !takes(&["GET"]) => {
                Some("what is served is asked for by GET; name it, or leave it out")
            }
            "compress" if publishes || serves => {
                Some("only answers of `upstreams` are compressed; leave it out")
            }
            _ if name == "breaker" || name.starts_with("health.") => (!gives("upstreams"))
                .then_some("it watches `upstreams`, of which this route has none; leave it out"),
            _ => None,
        };
        self.given.iter().filter_map(|(at, key)| Some((*at, key.name, remedy(key.name)?))).collect()
    }

    /// Whether it takes every request.
    pub(crate) fn takes_all(&self) -> bool {
        self.host.is_none() && self.path.as_deref().is_none_or(|path| path == "/") && self.methods.is_empty()
    }

    /// Whether it takes every request that `other` would.
    pub(crate) fn covers(&self, other: &RouteConfig) -> bool {
        let host = match (&self.host, &other.host) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(wanted), Some(host)) => {
                let (wanted, host) = (wanted.to_ascii_lowercase(), host.to_ascii_lowercase());
                let below = wanted.strip_prefix('*').is_some_and(|suffix| {
                    host.trim_start_matches('*').len() > suffix.len() && host.ends_with(suffix)
                });
                wanted == host || below
            }
        };
        let base =
            |route: &RouteConfig| route.path.clone().unwrap_or_default().trim_end_matches('/').to_owned();
        let below = base(other)
            .strip_prefix(&base(self))
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        let methods = self.methods.is_empty()
            || !other.methods.is_empty() && other.methods.iter().all(|method| self.methods.contains(method));
        host && below && methods
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

    /// The entry that needs a broker, where there is none.
    pub(crate) fn without_broker(&self) -> Option<(usize, &'static str)> {
        let needs = |name: &str| ["publish.queue", "serve.stream", "serve.queue"].contains(&name);
        let (at, key) = self.given.iter().find(|(_, key)| needs(key.name))?;
        self.broker.is_none().then_some((*at, key.name))
    }

    /// What is missing, if it leads nowhere.
    pub(crate) fn lacks(&self) -> Option<&'static str> {
        let leads = !self.upstreams.is_empty()
            || self.publish.is_some()
            || self.stream.is_some()
            || self.queue.is_some();
        (!leads).then_some(
            "it leads nowhere: write `upstreams: [http://host:port]`, or `broker` with `publish.queue`, `serve.stream` or `serve.queue`",
        )
    }

    /// The entry of the file that gave its first key.
    pub(crate) fn place(&self) -> Option<usize> {
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
        let mut route = Route::to(&name, target);
        if let Some(host) = &self.host {
            route = route.host(host);
        }
        if let Some(path) = &self.path {
            route = route.path(path);
        }
        if self.compress {
            route = route.compress();
        }
        let methods = self.methods.iter().map(|word| {
            Method::from_bytes(word.as_bytes()).map_err(|_| format!("route `{name}`: `{word}` is no method"))
        });
        Ok(route.methods(methods.collect::<Result<Vec<_>, _>>()?))
    }

    async fn target(&self, brokers: &mut Brokers) -> Result<Target, String> {
        let stream = self.stream.clone().map(Served::Stream);
        let served = stream.or_else(|| self.queue.clone().map(Served::Queue));
        if let Some(queue) = &self.publish {
            let max = self.publish_max.unwrap_or(PUBLISH_MAX) as usize;
            let broker = self.broker(brokers).await?;
            queue_is_there(&*broker, queue).await?;
            return Ok(Target::Handler(Arc::new(PublishTo::new(broker, Address::queue(queue), max))));
        }
        if let Some(what) = served {
            let url = self.broker.as_deref().map(str::parse::<BrokerUrl>);
            if let (Served::Queue(name), Some(Ok(BrokerUrl::RabbitmqStream(_)))) = (&what, url) {
                return Err(format!(
                    "`{name}` is a stream there, which gives every message to every client: write `serve.stream`, or take \
                     a queue of `amqp://`"
                ));
            }
            let broker = self.broker(brokers).await?;
            match &what {
                Served::Queue(queue) => queue_is_there(&*broker, queue).await?,
                Served::Stream(stream) => stream_is_there(&*broker, stream).await?,
            }
            return Ok(Target::Handler(Arc::new(Serve::new(broker, what))));
        }
        Ok(self.proxy())
    }

    async fn broker(&self, brokers: &mut Brokers) -> Result<Arc<dyn Broker>, String> {
        let url =
            self.broker.as_ref().ok_or("it lacks `broker`, the broker's URL as in `embedded:DIRECTORY`")?;
        brokers.open(url).await
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

/// Makes a queue, durable, that is not there, as pipelines do: nobody else could while the broker is this process's.
async fn queue_is_there(broker: &dyn Broker, queue: &str) -> Result<(), String> {
    let there = match broker.stats(queue).await {
        Err(error) if error.kind() == BrokerErrorKind::NotFound => {
            broker.declare_queue(Queue::durable(queue)).await
        }
        other => other.map(drop),
    };
    there.map_err(|error| format!("cannot use the queue `{queue}`: {error}"))
}

/// The same for a stream, which keeps everything.
async fn stream_is_there(broker: &dyn Broker, stream: &str) -> Result<(), String> {
    let there = match broker.stream_stats(stream).await {
        Err(error) if error.kind() == BrokerErrorKind::NotFound => {
            broker.declare_stream(StreamSpec::new(stream)).await
        }
        other => other.map(drop),
    };
    there.map_err(|error| format!("cannot use the stream `{stream}`: {error}"))
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
