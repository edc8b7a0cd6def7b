//! Pipeline files of Millstream: schema, lint, expressions, connectors.
#![forbid(unsafe_code)]

mod bound;
mod codec;
mod expr;
mod file;
mod value;

pub use expr::{CompileError, Condition, ExpressionError, Mapping};
pub use file::Pipeline;
pub use file::place::At;
pub use file::problem::{Problem, Problems};
pub use file::schema::schema;
pub use file::units::{duration, show_duration, show_size, size};
pub use value::{JsonError, Value, parse_json, write_json};
