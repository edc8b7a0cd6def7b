//! Pipeline files of Millstream: a flow written in YAML, checked before anything starts, and run by the engine.
//!
//! ```
//! use millstream_pipeline::{Brokers, Pipeline};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("squares.yaml");
//! # std::fs::write(&path, "name: squares
//! # source: { generate: { count: 10 } }
//! # process:
//! #   - map: '{n, square: (.n * .n)}'
//! #   - filter: { name: small, keep: 'item.square >= 25' }
//! # output: { file: { path: squares.ndjson } }")?;
//! let pipeline = Pipeline::open(&path, &[])?; // every problem at once, with line, column and remedy
//! let brokers = Brokers::new();
//! let report = pipeline.start(&brokers).await?.join().await?;
//! brokers.close().await?;
//! assert_eq!(report.ledger.completed, 5);
//! assert_eq!(report.dropped()["small"], 5);
//! # assert!(dir.path().join("squares.ndjson").exists());
//! # Ok(())
//! # }
//! ```
//!
//! `docs/pipeline.md` describes the file. [`Pipeline`] checks, draws and tests it without running it;
//! [`Run`] is one that runs; [`schema`] is its JSON Schema.
//!
//! # What it is not
//!
//! It is not where new operators are written: those are Rust, in `millstream-flow`. Its http source listens without TLS:
//! that is the task of what stands before it.
//!
//! # Features
//!
//! `http` (default): the http source and output, with axum and reqwest. `rabbitmq` (default): brokers behind `amqp://`.
#![forbid(unsafe_code)]
#![cfg_attr(
    not(feature = "http"),
    allow(dead_code, reason = "what only http uses is still read and checked")
)]

mod batch;
mod batcher;
mod bound;
mod brokers;
mod codec;
mod directory;
mod exhausted;
mod expr;
mod feed;
mod file;
mod graph;
mod handlers;
mod hold;
mod intake;
mod item;
mod letters;
mod offline;
mod output;
mod ready;
mod run;
mod settings;
mod start;
mod steps;
mod trouble;
mod value;

pub use brokers::{Brokers, open_broker};
pub use expr::{CompileError, Condition, ExpressionError, Mapping};
pub use file::Pipeline;
pub use file::place::At;
pub use file::problem::{Problem, Problems};
pub use file::schema::schema;
pub use file::topology::TopologyFile;
pub use file::units::{duration, show_duration, show_size, size, stream_from};
pub use handlers::Handlers;
pub use offline::{FailedCase, Tested};
pub use run::{Monitor, Report, Run, RunError};
pub use settings::{SettingsEntry, SettingsFile, nearest};
pub use start::StartError;
pub use trouble::ItemFailure;
pub use value::{JsonError, Value, parse_json, write_json};
