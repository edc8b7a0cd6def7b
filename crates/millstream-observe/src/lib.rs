//! What Millstream shows of its runs and their brokers: Prometheus metrics, health, and a status page, over plain HTTP.
//!
//! Nothing is counted here. The engine counts where things happen; whoever owns the runs hands out
//! [`RunSnapshot`]s, or a [`Snapshot`] with the brokers they are connected with, and this crate turns one into each of the views:
//!
//! | path | what | for |
//! |---|---|---|
//! | `/` | the picture of each pipeline: stages, rates, occupancy, ledger, errors | people |
//! | `/metrics` | the [metrics](mod@metrics), in the Prometheus text format | Prometheus and its kin |
//! | `/health/live` | 200 while the process answers | restarts |
//! | `/health/ready` | 200 while every run accepts items and every broker is within reach, 503 with the reasons otherwise | load balancers |
//! | `/status.json` | the snapshots as they are | scripts |
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//! use millstream_observe::{RunSnapshot, RunState, Server};
//!
//! // Whatever owns the runs answers with what they look like now.
//! let flights = || vec![RunSnapshot { name: "flights".into(), state: RunState::Running, ..Default::default() }];
//!
//! let server = Server::bind("127.0.0.1:0".parse()?, flights).await?;
//! println!("http://{}", server.local_addr());
//! server.shutdown(Duration::from_secs(1)).await;
//! # Ok(()) }
//! ```
//!
//! # What it is not
//!
//! There is no global registry, no push, no history beyond the last minute, and nothing can be changed through
//! the server: it only shows. It speaks plain HTTP without authentication, so bind it to an address that only
//! those may reach who may see the names and errors of your pipelines.

mod exposition;
mod health;
mod history;
mod listener;
pub mod metrics;
mod page;
mod process;
mod server;
mod snapshot;

pub use exposition::{Durations, Exposition, Kind, Labels, Metric, SERIES_MAX, Value};
pub use health::Health;
pub use listener::{CONNECTION_LIFETIME, CONNECTIONS_MAX};
pub use server::{BindError, Server};
pub use snapshot::{
    BrokerSnapshot, ErrorSnapshot, HopSnapshot, KnobSnapshot, LatencySnapshot, LedgerSnapshot, RunSnapshot,
    RunState, Snapshot, StageSnapshot,
};
