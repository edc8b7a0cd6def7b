//! Everything that needs a real RabbitMQ.

mod conformance;
mod connecting;
mod consuming;
mod faults;
mod management;
mod replies;
