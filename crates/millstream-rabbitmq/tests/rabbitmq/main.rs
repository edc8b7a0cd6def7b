//! Everything that needs a real RabbitMQ.

mod conformance;
mod faults;
mod node;
mod proxy;
