//! RabbitMQ for Millstream: a client of our own for AMQP 0-9-1, under a supervisor that recovers by itself.
//!
//! [`RabbitMq`] is a [`Broker`](millstream_message::Broker): what runs on the embedded broker runs on it.
//!
//! ```no_run
//! use millstream_message::{Address, Broker, ConsumeOptions, Message, Queue};
//! use millstream_rabbitmq::RabbitMq;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let broker = RabbitMq::connect("amqp://guest:guest@localhost:5672/%2f?name=orders").await?;
//! broker.declare_queue(Queue::durable("orders")).await?;
//! let outcome = broker.publish(&Address::queue("orders"), Message::new("tea")).await?;
//! assert!(outcome.is_confirmed(), "it is stored");
//!
//! let mut orders = broker.consume("orders", ConsumeOptions::default().prefetch(100)).await?;
//! while let Some(order) = orders.next().await {
//!     let order = order?;
//!     println!("{:?}", order.message);
//!     order.ack(); // acks that belong together travel as one
//! }
//! # Ok(())
//! # }
//! ```
//!
//! URLs, what is promised, and what is otherwise than on the embedded broker: `docs/rabbitmq.md`.
//!
//! # What it is not
//! A client for everything that AMQP can say: no transactions (confirms say more, sooner), no `basic.get`, no `immediate`.
//!
//! # Features
//! `tls` (default): `amqps://`, by rustls. `management`: lists of queues and how they were declared, by RabbitMQ's management.
#![forbid(unsafe_code)]

mod broker;
mod confirms;
mod consumer;
mod credit;
mod delays;
mod fields;
mod headers;
mod hub;
mod link;
#[cfg(feature = "management")]
mod management;
mod options;
mod proto;
mod publisher;
mod refusals;
mod replies;
mod restore;
mod socket;
pub mod stream;
mod told;
mod topology;
mod unsettled;

pub use broker::{ConsumerStatistics, RabbitMq, Statistics};
pub use link::ConnectionState;
pub use proto::properties::{APP_ID, FORMER_USER_ID, TYPE, USER_ID};
pub use publisher::ConfirmLatency;
