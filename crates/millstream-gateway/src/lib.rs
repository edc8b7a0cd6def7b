//! gateway
mod body;
mod client;
mod connection;
mod exchange;
mod gateway;
mod headers;
mod http1;
mod meter;
mod pool;
mod pump;
mod report;
mod route;
mod settings;
mod tally;
mod upstream;

pub use body::{Body, BodyError};
pub use exchange::Upgrade;
pub use gateway::{Drained, Gateway, Server};
pub use meter::{Direction, StreamOutcome, StreamReport};
pub use pool::{BufferPool, Lease, PoolSettings, PoolSnapshot, THREAD_BYTES, TIERS, TierSnapshot};
pub use report::{ExchangeReport, Refusal};
pub use route::{Answering, Handler, Route, Target};
pub use settings::{CHUNK_MAX, CHUNK_MIN, Forwarded, HalfClose, Limits, Settings, Timeouts};
pub use tally::{AnswersSnapshot, GatewaySnapshot, StreamsSnapshot, UpstreamSnapshot};
pub use upstream::{UpstreamUrl, UpstreamUrlError, Upstreams};
