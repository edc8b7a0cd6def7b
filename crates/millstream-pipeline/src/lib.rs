//! Pipeline files of Millstream: schema, lint, expressions, connectors.
#![forbid(unsafe_code)]

mod batcher;
mod bound;
mod brokers;
mod codec;
mod expr;
mod feed;
mod file;
mod graph;
mod intake;
mod item;
mod letters;
mod offline;
mod output;
mod ready;
mod run;
mod start;
mod steps;
mod trouble;
mod value;

pub use brokers::Brokers;
pub use expr::{CompileError, Condition, ExpressionError, Mapping};
pub use file::Pipeline;
pub use file::place::At;
pub use file::problem::{Problem, Problems};
pub use file::schema::schema;
pub use file::units::{duration, show_duration, show_size, size};
pub use offline::{FailedCase, Tested};
pub use run::{Monitor, Report, Run, RunError};
pub use start::StartError;
pub use trouble::ItemFailure;
pub use value::{JsonError, Value, parse_json, write_json};
