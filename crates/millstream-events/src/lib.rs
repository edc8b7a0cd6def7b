//! An event store, an event bus, an outbox and sagas, on any of Millstream's brokers.
#![forbid(unsafe_code)]

mod bus;
mod event;

pub use bus::{
    AGGREGATE_ID, AGGREGATE_TYPE, AGGREGATE_VERSION, AggregateFacts, BusError, BusStatistics, CAUSATION_ID,
    EVENT_METADATA, EVENT_SOURCE, EVENT_TYPE, Envelope, EnvelopeError, EnvelopePart, EventBus, EventContext,
    EventDraft, HANDLED_BEFORE, Inbox, Published, Subscribe, Subscribing, Subscription,
    SubscriptionStatistics, TEMPORARY_IDLE, Unsubscribed,
};
pub use event::{Event, EventData};
