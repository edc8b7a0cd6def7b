//! An event store, an event bus, an outbox and sagas, on any of Millstream's brokers.
#![forbid(unsafe_code)]

mod aggregate;
mod event;
mod saga;
mod store;
mod upcast;

pub use aggregate::{Aggregate, Aggregates, ExecuteError, Executed, Executing, LoadError, Loaded};
pub use event::{Event, EventData};
pub use saga::{
    BeginError, Ending, SAGA_STREAMS, Saga, SagaChange, SagaError, SagaStatus, SagaView, Sagas, SagasBuilder,
    SagasStatistics, Step, StepContext, StepError, Wait, Why,
};
pub use store::{
    AppendError, Appended, Conflict, EventReader, EventStore, EventStoreOptions, EventStoreStatistics,
    EventSubscription, Expected, Filter, Position, ReadAll, ReadStream, RecordedEvent, StoreError, CatchUp,
    SubscribedEvents,
};
pub use upcast::{DecodeError, Upcasters};
