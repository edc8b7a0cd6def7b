//! Events on every broker: in memory, on disk, and on a RabbitMQ that the tests start for themselves.

mod aggregates;
mod bus;
mod killed;
mod metrics;
mod outbox;
mod sagas;
mod store;
mod support;
