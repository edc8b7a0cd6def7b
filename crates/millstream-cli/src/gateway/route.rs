//! Routes of the configuration file.

use std::sync::Arc;

use http::Method;
use millstream_gateway::{HealthCheck, Route, Target, Upstreams};
use millstream_pipeline::Brokers;
use millstream_resilience::BreakerSettings;

use super::options::{list, put, switch, text, time};

/// One route of the file.
#[derive(Clone, Debug, Default)]
pub(crate) struct RouteConfig {
    name: Option<String>,
    host: Option<String>,
    path: Option<String>,
    methods: Vec<String>,
    upstreams: Vec<String>,
    breaker: bool,
    health: Option<HealthCheck>,
}

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
    pub(crate) async fn build(&self, at: usize, _brokers: &Brokers) -> Result<Route, String> {
        let name = self.name.clone().unwrap_or_else(|| format!("route-{at}"));
        let mut route = Route::to(&name, self.target().map_err(|error| format!("route `{name}`: {error}"))?);
        if let Some(host) = &self.host {
            route = route.host(host);
        }
        if let Some(path) = &self.path {
            route = route.path(path);
        }
        let methods = self.methods.iter().map(|word| {
            Method::from_bytes(word.as_bytes()).map_err(|_| format!("route `{name}`: `{word}` is no method"))
        });
        Ok(route.methods(methods.collect::<Result<Vec<_>, _>>()?))
    }

    fn target(&self) -> Result<Target, String> {
        if self.upstreams.is_empty() {
            return Err("it leads nowhere; write `upstreams: [http://host:port]`".into());
        }
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
