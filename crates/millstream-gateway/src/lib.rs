//! HTTP in, streams out: bodies of any size through pooled buffers, in constant memory, with backpressure from end to end.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//! use http::{Request, Response};
//! use millstream_gateway::{Body, Gateway, Route, Settings, flow};
//!
//! /// Doubles each number of an upload, line by line, while it comes.
//! async fn double(request: Request<Body>) -> Response<Body> {
//!     let numbers = flow::records::<u64>(request.into_body(), 1024);
//!     Response::new(Body::from_flow(numbers.map(|n| n.map_or("?\n".into(), |n| format!("{}\n", n * 2)))))
//! }
//!
//! let server = Gateway::new(Settings::default())
//!     .route(Route::handler("double", double).path("/double"))
//!     .route(Route::proxy("rest", ["http://127.0.0.1:3000".parse()?]))
//!     .listen("127.0.0.1:0".parse()?)
//!     .await?;
//! println!("http://{}", server.local_addr());
//! server.shutdown(Duration::from_secs(10)).await;
//! # Ok(()) }
//! ```
//!
//! | | |
//! |---|---|
//! | [`Gateway`], [`Server`] | listen, serve, count, drain |
//! | [`Route`], [`Upstreams`], [`HealthCheck`] | which requests go where, and which servers are well |
//! | [`Handler`], [`Body`], [`flow`] | answering inside the process; bodies as flows and flows as bodies |
//! | [`PublishTo`], [`Serve`], [`sse`], [`websocket`] | queues and streams of brokers behind routes |
//! | [`stream_request`], [`stream_response`] | one body from any source to any sink, without a gateway |
//! | [`BufferPool`], [`Lease`] | the buffers |
//! | [`ExchangeReport`], [`StreamReport`], [`GatewaySnapshot`], [`exposition`] | what became of each exchange, and the sums |
//! | [`UnderWay`], [`ExchangeUnderWay`], [`StreamUnderWay`] | which exchanges have not ended, and who is stuck |
//!
//! `docs/gateway.md` describes the command `millstream gateway`, every setting and every metric.
//!
//! # How it works
//!
//! HTTP/1 is read by this crate, HTTP/2 by hyper. An exchange moves two bodies at once, each by one loop (`pump`) from a source to a
//! sink that are either a side of a connection or a row of frames. On a side of a connection a buffer is leased when bytes can be
//! read, and returned when they are written: a connection that waits has none, and how many bytes a slow one holds is bounded by
//! the pool, whose bound all streams share. A stream gets large buffers only when it has shown that its receiver is fast.
//!
//! # What it is not
//!
//! No cache, no HTTP/3, no rewriting of bodies but compression. A service with many routes and extractors is better written with axum; this
//! moves bytes.

#![forbid(unsafe_code)]

mod accept;
mod account;
mod admin;
mod answer;
mod asking;
mod body;
mod chunk;
mod client;
mod compress;
mod connection;
mod converse;
mod current;
mod duplex;
mod exchange;
pub mod exposition;
pub mod flow;
mod gateway;
mod head;
mod headers;
mod health;
mod http1;
mod http2;
mod ledger;
mod meter;
mod path;
mod patience;
mod pieces;
mod place;
mod pool;
mod proxying;
mod pump;
mod queue;
mod reload;
mod report;
mod route;
mod settings;
pub mod sse;
mod stream;
mod tally;
mod tls;
mod under_way;
mod upgrade;
mod upstream;
pub mod websocket;

pub use body::{Body, BodyError};
pub use gateway::{Drained, Gateway, Server};
pub use health::HealthCheck;
pub use meter::{DURATION_BOUNDS, Direction, StreamOutcome, StreamReport};
pub use place::Place;
pub use pool::{BufferPool, Lease, PoolSettings, PoolSnapshot, THREAD_BYTES, TIERS, TierSnapshot};
pub use queue::{PublishTo, Serve, Served};
pub use reload::Reloaded;
pub use report::{ExchangeReport, Refusal};
pub use route::{Answering, Handler, Route, Target};
pub use settings::{CHUNK_MAX, CHUNK_MIN, Forwarded, HalfClose, Limits, Settings, Timeouts};
pub use stream::{
    StreamError, StreamProgress, StreamSink, StreamSource, Streaming, stream_request, stream_response,
};
pub use tally::{AnswersSnapshot, GatewaySnapshot, StreamsSnapshot, UpstreamSnapshot};
pub use tls::{client_tls, server_tls};
pub use tokio_rustls::rustls::{ClientConfig as ClientTls, ServerConfig as ServerTls};
pub use under_way::{ExchangeUnderWay, Side, StreamUnderWay, UnderWay};
pub use upgrade::{Upgrade, Upgraded};
pub use upstream::{UpstreamUrl, UpstreamUrlError, Upstreams};
