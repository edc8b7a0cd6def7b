//! An event store, an event bus, an outbox and sagas, on any of Millstream's brokers.
#![forbid(unsafe_code)]

mod event;

pub use event::{Event, EventData};
