//! x
#![forbid(unsafe_code)]
mod proto;
pub mod stream;
