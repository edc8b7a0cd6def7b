//! Events: what has happened, kept for ever, told to whoever wants to know, and carried on from step to step.
//!
//! - [`EventStore`]: streams of events in one log, with appends that count only if their stream is as expected; [`Aggregates`] decide
//!   upon state that is made of events, [`Upcasters`] read older forms, [`CatchUp`] subscriptions feed projections. On `memory:`,
//!   `embedded:PATH` and `rabbitmq-stream://`.
//! - [`EventBus`]: publishes a service's events, and has its handlers hear of its own and others'. On every broker with queues:
//!   `memory:`, `embedded:PATH` and `amqp://`.
//! - [`Outbox`]: publishes what a store holds to a bus, each event at least once and in order.
//! - [`Sagas`]: work of several steps over several services, each of which can be undone. All they know is in an event store.
//!
//! With the feature `metrics` the statistics of all of these are shown to Prometheus (`metrics::EventMetrics`).
//!
//! An event is an [`Event`] wherever it is: an id, a type, a body as a codec wrote it, what it belongs to and what caused it.
//!
//! ```
//! use millstream_events::{Event, EventData, EventStore, Expected};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Debug, PartialEq, Serialize, Deserialize)]
//! struct Placed { lamps: u32 }
//! impl EventData for Placed {
//!     const TYPES: &'static [&'static str] = &["order-placed"];
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let broker = millstream_embedded::open(&"memory:".parse()?).await?; // or embedded:PATH, or rabbitmq-stream://HOST
//! let store = EventStore::open(broker, "shop").await?;
//! store.append_values("order-7", Expected::NoStream, &[Placed { lamps: 3 }]).await?;
//! let events = store.read("order-7").collect().await?;
//! assert_eq!(events[0].event.decode::<Placed>()?, Placed { lamps: 3 });
//! # Ok(())
//! # }
//! ```
//!
//! # What it is not
//! It is no database: a store finds events by their stream and their order, and by nothing else; what is to be found otherwise, a
//! projection puts where it can be. Nothing of a log is removed: truncated and deleted events are no longer read, and stay on the
//! disk. One process at a time runs the sagas of a store.
#![forbid(unsafe_code)]

mod aggregate;
mod bus;
mod event;
#[cfg(feature = "metrics")]
pub mod metrics;
mod outbox;
mod saga;
mod store;
mod upcast;

pub use aggregate::{Aggregate, Aggregates, ExecuteError, Executed, Executing, LoadError, Loaded};
pub use bus::{
    AGGREGATE_ID, AGGREGATE_TYPE, AGGREGATE_VERSION, AggregateFacts, BusError, BusStatistics, CAUSATION_ID,
    EVENT_METADATA, EVENT_SOURCE, EVENT_TYPE, Envelope, EnvelopeError, EnvelopePart, EventBus, EventContext,
    EventDraft, HANDLED_BEFORE, Inbox, Published, Subscribe, Subscribing, Subscription,
    SubscriptionStatistics, TEMPORARY_IDLE, Unsubscribed,
};
pub use event::{Event, EventData};
pub use outbox::{EVENT_POSITION, Outbox};
pub use saga::{
    BeginError, Ending, SAGA_STREAMS, Saga, SagaChange, SagaError, SagaStatus, SagaView, Sagas, SagasBuilder,
    SagasStatistics, Step, StepContext, StepError, Wait, Why,
};
pub use store::{
    AppendError, Appended, CatchUp, CatchUpStatistics, Conflict, EventReader, EventStore, EventStoreOptions,
    EventStoreStatistics, EventSubscription, Expected, Filter, Position, ReadAll, ReadStream, RecordedEvent,
    StoreError, SubscribedEvents,
};
pub use upcast::{DecodeError, Upcasters};
