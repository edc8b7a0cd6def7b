//! The durable log of Millstream and the broker built on it.
//!
//! [`open`] takes `memory:` or `embedded:DIRECTORY` and gives an `Arc<dyn Broker>`: exchanges, queues, streams and
//! positions as `millstream-message` defines them, inside this process, with no server to install.
//!
//! ```
//! use millstream_embedded::open;
//! use millstream_message::{Address, Batch, Broker, ConsumeOptions, Message, Queue};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let broker = open(&"memory:".parse()?).await?;
//! broker.declare_queue(Queue::transient("orders").dead_letter("", "orders.dead")).await?;
//!
//! let orders = Address::queue("orders");
//! let outcomes = broker.publish_batch(Batch::to(&orders, ["a", "b"].map(Message::new))).await?;
//! assert!(outcomes.all_confirmed());
//!
//! let mut consumer = broker.consume("orders", ConsumeOptions::default()).await?;
//! let chunk = consumer.next_chunk(100).await?;
//! assert_eq!(chunk.len(), 2);
//! consumer.acker().ack_range(chunk[0].tag..chunk[1].tag + 1);
//! assert_eq!(broker.stats("orders").await?.total(), 0);
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod broker;
mod checkpoint;
mod clock;
mod core;
mod exchange;
mod journal;
mod live;
pub mod log;
mod opened;
mod plan;
mod queue;
mod rebuild;
mod record;
mod run;
mod session;
mod settings;
mod shared;
mod state;
mod stream_log;
mod stream_memory;
mod streams;
mod topic;
mod upkeep;
mod wire;

pub use broker::{EmbeddedBroker, open};
pub use settings::Settings;
