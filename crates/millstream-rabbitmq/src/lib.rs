//! x
#![forbid(unsafe_code)]
mod proto;
