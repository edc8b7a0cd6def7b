//! RabbitMQ's streams by the stream protocol (port 5552, plugin `rabbitmq_stream`).
//!
//! [`StreamBroker`] is the [`Broker`](millstream_message::Broker) for `rabbitmq-stream://`. [`StreamClient`] has what is
//! particular to the protocol: [`Producer`]s with confirms per message and deduplication, [`StreamConsumer`]s with
//! offsets kept by the broker, and super streams.
//!
//! # What this is not
//! No filters (RabbitMQ 3.13), no publishing to the exchanges that streams may be bound to: for that there is
//! `amqp://`.

mod amqp;
mod append;
mod broker;
mod chunk;
mod client;
mod command;
mod consumer;
mod counters;
#[cfg(test)]
mod fuzz;
mod link;
mod producer;
mod session;
mod super_stream;
mod url;
mod wire;

pub use broker::StreamBroker;
pub use client::StreamClient;
pub use consumer::{ConsumerOptions, StreamConsumer, UNDECODED};
pub use producer::{Producer, ProducerOptions};
pub use super_stream::{Partitions, Routing, SuperConsumer, SuperProducer};
pub use url::StreamSettings;

pub use crate::options::TlsFiles;
