//! What a gateway shows of itself, on an address of its own.

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use http::header::{self, HeaderValue};
use http::{Method, Request, Response};
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
    /// A gateway that shows this one: `/metrics` for Prometheus, `/health`, `/buffer-pool-metrics` and `/status.json`.
    /// Let it listen on an address that only those reach who may see this; the public one shows none of it.
    ///
    /// `/health` lists the servers that are not well. It answers 200 while this process can answer, since what is wrong with an
    /// upstream is not mended by starting the gateway anew.
    pub fn admin(&self) -> Gateway {
        let monitor = Arc::new(self.monitor());
        let clock = Clock::system();
        let show = |view: View| {
            let monitor = monitor.clone();
            move |_: Request<Body>| {
                let now = clock.now().duration_since(UNIX_EPOCH).unwrap_or_default();
                let (content_type, text) = view(&monitor(), now.as_secs_f64());
                let mut response = Response::new(Body::from(text));
                response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
                response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
                std::future::ready(response)
            }
        };
        VIEWS.iter().fold(Gateway::new(Settings::default()), |gateway, (path, view)| {
            let methods = [Method::GET, Method::HEAD];
            gateway.route(Route::handler(*path, show(*view)).path(*path).methods(methods))
        })
    }
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
