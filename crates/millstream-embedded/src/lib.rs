//! The durable log of Millstream and the broker built on it.

#[forbid(unsafe_code)]
pub mod log;
