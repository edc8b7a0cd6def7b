//! Messages, deliveries, codecs, topology and the broker traits of Millstream.
//!
//! One vocabulary, AMQP's: a [`Message`] is published to an exchange under a key, the exchange's [`Binding`]s
//! choose the [`Queue`]s that store it, a [`Consumer`] of a queue receives it as a [`Delivery`] and settles it
//! exactly once. [`Stream`](StreamSpec)s are append-only and are read by offset. A [`Broker`] is opened by
//! its [`BrokerUrl`] and used as `Arc<dyn Broker>`; which kind it is shows only in its [`Features`].
//!
//! ```
//! use millstream_message::{Address, Codec, Json, Message, Queue, Overflow};
//!
//! # fn main() -> Result<(), millstream_message::CodecError> {
//! let queue = Queue::durable("orders").max_items(10_000).overflow(Overflow::Reject);
//! assert!(queue.durable);
//!
//! let message = Json.encode(&serde_json::json!({ "id": 7 }))?.with_header("tenant", "north");
//! assert_eq!(message.content_type(), Some("application/json"));
//! let order: serde_json::Value = Json.decode(&message)?;
//! assert_eq!(order["id"], 7);
//!
//! let to = Address::queue("orders"); // the default exchange: the key is the queue's name
//! assert_eq!((to.exchange(), to.key()), ("", "orders"));
//! # Ok(())
//! # }
//! ```
//!
//! # What this crate is not
//! It knows no broker's protocol, opens no file and no socket, and reads no clock but in what `flow` and `streamed` bring.
//! `millstream-embedded` opens `memory:` and `embedded:PATH`.
//!
//! # Features
//! `msgpack`, `postcard`, `protobuf`: more [codecs](codec). `gzip`, `zstd`, `lz4`: compression of bodies; `zstd` compiles
//! C. `conformance`: the suite (module `conformance`) that every backend runs in its tests. `flow`: queues as the ends of
//! flows (module `flow`). `streamed`: streams as queues (`StreamedQueues`).
#![forbid(unsafe_code)]

mod broker;
pub mod codec;
#[cfg(feature = "conformance")]
pub mod conformance;
mod consume;
pub mod dead;
mod declaration;
mod error;
#[cfg(feature = "flow")]
pub mod flow;
#[cfg(feature = "streamed")]
mod longest_run;
mod message;
#[cfg(feature = "streamed")]
mod offset;
mod publish;
mod stream;
#[cfg(feature = "streamed")]
mod streamed;
mod topology;
mod trace;
mod url;
mod value;

pub use broker::{BoxFuture, Broker, Browsed, Features, QueueStats};
pub use codec::{Codec, CodecError, Json, Raw};
pub use consume::{
    Acker, ConsumeOptions, Consumer, ConsumerSource, Delivery, DirectReplies, Nack, Prefetch, Settle,
    Settled, StopWhen, Tag,
};
pub use declaration::{Declaration, Standing, Topology};
pub use error::{BrokerError, BrokerErrorKind};
#[cfg(feature = "streamed")]
pub use longest_run::LongestRun;
pub use message::{Message, Properties};
#[cfg(feature = "streamed")]
pub use offset::{StreamOffset, keep_saving};
pub use publish::{Address, Batch, Confirm, Outcomes, Publish, PublishOutcome, Refusal, Returned};
pub use stream::{
    StreamFrom, StreamItem, StreamReader, StreamSource, StreamSpec, StreamStats, stream_extent,
};
#[cfg(feature = "streamed")]
pub use streamed::StreamedQueues;
pub use topology::{
    Binding, Exchange, ExchangeKind, HeaderMatch, Overflow, Queue, QueueKind, Target, differences,
};
pub use trace::{TRACEPARENT, TRACESTATE, TraceContext};
pub use url::{BrokerUrl, BrokerUrlError};
pub use value::{Headers, Value};
