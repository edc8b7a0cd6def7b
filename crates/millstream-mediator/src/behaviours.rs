//! The behaviours that come with the crate.

mod timeout;

pub use timeout::Timeout;
