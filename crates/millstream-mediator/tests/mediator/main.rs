//! What the mediator promises, at its boundary, with virtual time.

mod behaviours;
mod dispatch;
mod json;
mod metrics;
mod notifications;
mod presets;
mod stream_behaviours;
mod stream_defaults;
mod streams;
mod support;
mod typed;

use millstream_mediator::{Kind, Request};

/// A query that may be repeated.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ask(pub(crate) u64);

impl Request for Ask {
    type Response = u64;
    const KIND: Kind = Kind::Query;
    fn repeat(&self) -> Option<Self> {
        Some(self.clone())
    }
}

/// A command that may not.
#[derive(Debug)]
pub(crate) struct Do(pub(crate) String);

impl Request for Do {
    type Response = ();
}
