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
//!
//! # How it works
//! Everything durable goes into one segmented [`log`] per directory: messages, settlements as ranges, declarations,
//! positions. One sync covers whatever is pending of all queues. A queue is a list of runs of neighbouring messages;
//! messages beyond [`Settings::memory_bytes`] are put out to the log and read back when a consumer comes to them. A
//! checkpoint after every segment's worth of log keeps reopening quick and gives old segments free; the few messages
//! that hold an old segment are copied forward. Each stream has a log of its own, with two threads of its own.
//!
//! # What a crash does
//! A confirmed message is there again, once per queue, in order. An ack is written within
//! [`Settings::ack_delay`]; until it is durable it uses up the consumer's prefetch, so a crash delivers at most the
//! prefetch of each consumer twice, and loses nothing. A dead letter arrives once: its arrival and its leaving are one
//! record, unless message and letter are too large for that.
//!
//! # What it is not
//! No cluster, no network, no access from a second process. A reader that comes to bodies which are only on disk reads
//! them on its own thread.
//!
//! # Features
//! `test-support`: a simulated disk, and opening a broker on it, for tests that crash.
#![forbid(unsafe_code)]

mod broker;
mod checkpoint;
mod clock;
mod core;
mod describe;
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
mod verify;
mod wire;

pub use broker::{EmbeddedBroker, open};
pub use describe::describe;
pub use settings::Settings;
pub use stream_log::logs;
pub use verify::{Verified, verify};
