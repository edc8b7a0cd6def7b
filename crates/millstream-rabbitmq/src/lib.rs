//! RabbitMQ for Millstream: a client of our own for AMQP 0-9-1.
#![forbid(unsafe_code)]

mod broker;
mod confirms;
mod consumer;
mod delays;
mod headers;
mod hub;
mod link;
mod options;
mod proto;
mod publisher;
mod restore;
mod socket;
mod told;
mod topology;
mod unsettled;

pub use broker::{RabbitMq, Statistics};
pub use link::ConnectionState;
pub use proto::properties::{APP_ID, TYPE, USER_ID};
