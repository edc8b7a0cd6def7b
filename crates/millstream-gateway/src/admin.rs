//! What a gateway shows of itself, on an address of its own.

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use millstream_flow::Clock;
use serde::Serialize;

use crate::body::Body;
use crate::exposition;
use crate::gateway::{Gateway, Server};
use crate::route::Route;
use crate::settings::Settings;
use crate::tally::GatewaySnapshot;

/// What is shown where.
const VIEWS: [(&str, View); 4] = [
    ("/metrics", |snapshot, _| ("text/plain; version=0.0.4; charset=utf-8", exposition::text(snapshot))),
    ("/health", |snapshot, _| json(&health(snapshot))),
    ("/buffer-pool-metrics", |snapshot, timestamp| json(&Seen { timestamp, what: &snapshot.pool })),
    ("/status.json", |snapshot, timestamp| json(&Seen { timestamp, what: snapshot })),
];

/// How many exchanges are listed if nothing else is said, and at most.
const STREAMS: usize = 1_000;
const STREAMS_MAX: usize = 10_000;

/// How a snapshot is shown, with the seconds since 1970.
type View = fn(&GatewaySnapshot, f64) -> (&'static str, String);

/// What was seen when.
#[derive(Serialize)]
struct Seen<'a, T> {
    timestamp: f64,
    #[serde(flatten)]
    what: &'a T,
}

impl Server {
    /// The paths of [`admin`](Self::admin).
    pub const ADMIN_PATHS: &[&str] =
        &["/metrics", "/health", "/buffer-pool-metrics", "/status.json", "/streams"];

    /// A gateway that shows this one: `/metrics` for Prometheus, `/health`, `/buffer-pool-metrics`, `/status.json`, and `/streams`, what
    /// [`streams`](Server::streams) gives, of 1,000 exchanges or as many as `?limit=` says, up to 10,000.
    /// Let it listen on an address that only those reach who may see this; the public one shows none of it.
    ///
    /// `/health` lists the servers that are not well. It answers 200 while this process can answer, since what is wrong with an
    /// upstream is not mended by starting the gateway anew.
    pub fn admin(&self) -> Gateway {
        let monitor = Arc::new(self.monitor());
        let clock = Clock::system();
        let now = move || clock.now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let show = |view: View| {
            let (monitor, now) = (monitor.clone(), now);
            move |_: Request<Body>| {
                let (content_type, text) = view(&monitor(), now());
                std::future::ready(shown(content_type, text))
            }
        };
        let (current, seen) = (self.current.clone(), now);
        let streams = move |request: Request<Body>| {
            let shown = limit_of(request.uri().query().unwrap_or_default()).map(|limit| {
                let what = &current.get().tally.under_way.list(limit);
                let (content_type, text) = json(&Seen { timestamp: seen(), what });
                shown(content_type, text)
            });
            std::future::ready(shown.unwrap_or_else(|text| {
                let mut response = Response::new(Body::from(text));
                *response.status_mut() = StatusCode::BAD_REQUEST;
                response
            }))
        };
        let methods = [Method::GET, Method::HEAD];
        let streams = Route::handler("/streams", streams).path("/streams").methods(methods.clone());
        VIEWS.iter().fold(Gateway::new(Settings::default()).route(streams), |gateway, (path, view)| {
            gateway.route(Route::handler(*path, show(*view)).path(*path).methods(methods.clone()))
        })
    }
}

fn shown(content_type: &'static str, text: String) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// How many exchanges are asked for.
fn limit_of(query: &str) -> Result<usize, String> {
    let limit = match query.strip_prefix("limit=") {
        _ if query.is_empty() => Some(STREAMS),
        limit => limit.and_then(|limit| limit.parse().ok()).filter(|limit| *limit <= STREAMS_MAX),
    };
    limit.ok_or_else(|| format!("write `?limit=` and a whole number from 0 to {STREAMS_MAX}, or nothing\n"))
}

#[derive(Serialize)]
struct Health<'a> {
    status: &'static str,
    connections_open: u64,
    unhealthy_upstreams: Vec<&'a str>,
}

fn health(snapshot: &GatewaySnapshot) -> Health<'_> {
    let unhealthy = snapshot.upstreams.iter().filter(|upstream| !upstream.healthy);
    let unhealthy: Vec<&str> = unhealthy.map(|upstream| upstream.upstream.as_str()).collect();
    Health {
        status: if unhealthy.is_empty() { "ok" } else { "degraded" },
        connections_open: snapshot.connections_open,
        unhealthy_upstreams: unhealthy,
    }
}

fn json(value: &impl Serialize) -> (&'static str, String) {
    let text = serde_json::to_string_pretty(value).expect("names and numbers are JSON");
    ("application/json", text + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_view_is_among_the_paths_that_are_told() {
        let views = VIEWS.iter().map(|(path, _)| *path).chain(["/streams"]);
        assert!(views.eq(Server::ADMIN_PATHS.iter().copied()));
    }
}
