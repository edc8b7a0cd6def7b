//! Everything that needs a real RabbitMQ.

mod conformance;
mod connecting;
mod consuming;
mod faults;
mod foreign;
mod management;
mod replies;
mod restoring;
