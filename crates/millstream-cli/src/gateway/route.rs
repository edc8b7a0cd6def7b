//! Routes of the configuration file.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::Method;
use millstream_gateway::{HealthCheck, PublishTo, Route, Serve, Served, Target, Upstreams};
use millstream_message::{Address, Broker, BrokerUrl};
use millstream_resilience::BreakerSettings;

use super::options::{bytes, list, put, switch, text, time};

/// The brokers behind routes, each opened once.
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
        let broker = broker.map_err(|error| format!("cannot open the broker `{url}`: {error}"))?;
        self.0.insert(url.to_owned(), broker.clone());
        Ok(broker)
    }

    /// Closes all of them, so that what was accepted is durable.
    pub(crate) async fn close(self) -> Result<(), String> {
        for (url, broker) in self.0 {
            broker.close().await.map_err(|error| format!("cannot close the broker `{url}`: {error}"))?;
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
    upstreams: Vec<String>,
    breaker: bool,
    compress: bool,
    health: Option<HealthCheck>,
    broker: Option<String>,
    publish: Option<String>,
    publish_max: Option<u64>,
    serve: Option<Served>,
}

/// The largest body that is published if nothing else is said.
const PUBLISH_MAX: u64 = 1 << 20;

type Set = fn(&mut RouteConfig, &str) -> Result<(), String>;

/// The keys of a route, below `routes` and its number.
pub(crate) static KEYS: &[(&str, Set)] = &[
    ("name", |r, v| put(&mut r.name, text(v))),
    ("host", |r, v| put(&mut r.host, text(v))),
    ("path", |r, v| put(&mut r.path, path(v).map(Some))),
    ("methods", |r, v| put(&mut r.methods, Ok(list(v)))),
    ("upstreams", |r, v| put(&mut r.upstreams, Ok(list(v)))),
    ("breaker", |r, v| put(&mut r.breaker, switch(v))),
    ("health.path", |r, v| put(&mut r.check().path, path(v))),
    ("health.period", |r, v| put(&mut r.check().period, time(v))),
    ("health.timeout", |r, v| put(&mut r.check().timeout, time(v))),
    ("health.failures", |r, v| put(&mut r.check().failures, times(v))),
    ("health.successes", |r, v| put(&mut r.check().successes, times(v))),
    ("compress", |r, v| put(&mut r.compress, switch(v))),
    ("broker", |r, v| put(&mut r.broker, text(v))),
    ("publish.queue", |r, v| put(&mut r.publish, text(v))),
    ("publish.max", |r, v| put(&mut r.publish_max, bytes(v, 1, 64 << 20).map(Some))),
    ("serve.stream", |r, v| put(&mut r.serve, text(v).map(|name| name.map(Served::Stream)))),
    ("serve.queue", |r, v| put(&mut r.serve, text(v).map(|name| name.map(Served::Queue)))),
];

fn path(value: &str) -> Result<String, String> {
    if value.starts_with('/') {
        Ok(value.to_owned())
    } else {
        Err("write a path that begins with `/`".into())
    }
}

fn times(value: &str) -> Result<u32, String> {
    value.parse().ok().filter(|times| *times > 0).ok_or_else(|| "write a whole number from 1".into())
}

impl RouteConfig {
    fn check(&mut self) -> &mut HealthCheck {
        self.health.get_or_insert_default()
    }

    /// The route to these servers for everything.
    pub(crate) fn all(upstreams: Vec<String>) -> RouteConfig {
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
        match (&self.publish, &self.serve, &self.upstreams[..]) {
            (None, None, [_, ..]) if self.broker.is_none() => self.proxy(),
            (Some(queue), None, []) => {
                let broker = self.broker(brokers).await?;
                let max = self.publish_max.unwrap_or(PUBLISH_MAX) as usize;
                Ok(Target::Handler(Arc::new(PublishTo::new(broker, Address::queue(queue), max))))
            }
            (None, Some(what), []) => {
                let broker = self.broker(brokers).await?;
                Ok(Target::Handler(Arc::new(Serve::new(broker, what.clone()))))
            }
            _ => Err("it leads to one place: write `upstreams: [http://host:port]`, or `broker` with `publish.queue`, \
                      `serve.stream` or `serve.queue`"
                .into()),
        }
    }

    async fn broker(&self, brokers: &mut Brokers) -> Result<Arc<dyn Broker>, String> {
        let url =
            self.broker.as_ref().ok_or("it lacks `broker`, the broker's URL as in `embedded:DIRECTORY`")?;
        brokers.open(url).await
    }

    fn proxy(&self) -> Result<Target, String> {
        let urls = self.upstreams.iter().map(|url| url.parse().map_err(|error| format!("{error}")));
        let mut upstreams = Upstreams::new(urls.collect::<Result<Vec<_>, String>>()?);
        if self.breaker {
            upstreams = upstreams.breaker(&BreakerSettings::default());
        }
        if let Some(check) = &self.health {
            upstreams = upstreams.health(check.clone());
        }
        Ok(Target::Proxy(Arc::new(upstreams)))
    }
}
