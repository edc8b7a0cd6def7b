//! Streams of items through Rust services: from any source, through typed operators, to any sink, with bounded
//! memory, backpressure from the last sink to the first source, and nothing lost.
//!
//! This crate is the front door: [`flow`] is the engine, [`message`] the words for brokers, [`embedded`] the
//! durable broker inside the process, and [`queue`] joins them; [`codec`] makes messages of values. Change the URL
//! given to [`open`] and the same code runs on another broker.
//!
//! ```
//! use millstream::prelude::*;
//! use millstream::queue;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), BoxError> {
//! let broker = millstream::open("memory:").await?; // or "embedded:some/directory": durable
//! broker.declare_queue(Queue::durable("orders").dead_letter("", "orders.dead")).await?;
//! broker.declare_queue(Queue::durable("orders.dead")).await?;
//!
//! // Anything can be published: a confirmed message is stored.
//! let published = Pipe::from_iter(["17", "4", "seventeen"])
//!     .map(Message::new)
//!     .into_sink(queue::Publisher::new(broker.clone(), Address::queue("orders")));
//! published.await?;
//!
//! // A message is acknowledged when the last sink has what became of it.
//! let orders = broker.consume("orders", ConsumeOptions::default().stop_when_empty()).await?;
//! let (total, report) = queue::messages(orders)
//!     .try_map(|order| std::str::from_utf8(order.body())?.parse::<u64>().map_err(BoxError::from)).named("parse")
//!     .reject() // what cannot be parsed goes to orders.dead, with its reason
//!     .fold(0, |total, amount| *total += amount)
//!     .await?;
//! assert_eq!((total, report.ledger.completed, report.ledger.dead), (21, 2, 1));
//! assert_eq!(broker.stats("orders.dead").await?.ready, 1);
//! # Ok(())
//! # }
//! ```
//!
//! The [cookbook] has recipes; [`flow::operators`] is the list of all operators.
//!
//! # What it is not
//!
//! It does not replicate: RabbitMQ does that. It is no SQL engine and no column store. A flow is one process;
//! several processes share a queue.
//!
//! # Features
//!
//! `embedded` (default): the broker behind `memory:` and `embedded:PATH`. `rabbitmq`: RabbitMQ behind `amqp://`.
//! `resilience`: retries, circuit breakers, rate limits and their like around any async call; `mediator`: requests, notifications
//! and stream requests to handlers; `tower`: either with layers of tower. `events`: an event store, an event bus, an outbox and sagas;
//! `event-metrics`: their statistics for Prometheus.
//! `gateway`: the streaming gateway, for programs that serve flows by HTTP.
//! `pipeline`: pipeline files, for programs that load them; the `millstream` binary is its own crate. `msgpack`, `postcard`,
//! `protobuf`, `gzip`, `zstd`, `lz4`: more of [`codec`]. `test`: `flow::test`, for your tests. Neither
//! the default features nor `embedded` bring an HTTP, YAML or command-line dependency.

#![forbid(unsafe_code)]

#[cfg(feature = "embedded")]
pub use millstream_embedded as embedded;
#[cfg(feature = "events")]
pub use millstream_events as events;
pub use millstream_flow as flow;
#[cfg(feature = "gateway")]
pub use millstream_gateway as gateway;
pub use millstream_message as message;
pub use millstream_message::codec;
pub use millstream_message::flow as queue;
#[cfg(feature = "mediator")]
pub mod mediator;
#[cfg(feature = "pipeline")]
pub use millstream_pipeline as pipeline;
#[cfg(feature = "rabbitmq")]
pub use millstream_rabbitmq as rabbitmq;
#[cfg(feature = "resilience")]
pub use millstream_resilience as resilience;

#[doc = include_str!("../docs/cookbook.md")]
pub mod cookbook {}

/// What most programs use.
pub mod prelude {
    pub use millstream_flow::{
        Batch, BoxError, Capacity, Concurrency, Failed, Overflow, PanicPolicy, Pipe, Report, Retry, Run,
        Sink, SinkError, Workers,
    };
    pub use millstream_message::{Address, Broker, Codec, ConsumeOptions, Json, Message, Queue};
}

/// Opens the broker that a URL names: `memory:`, `embedded:PATH` for a durable one in a directory, or `amqp://HOST` for
/// RabbitMQ and `rabbitmq-stream://HOST` for its streams, which may be asked for as queues, too (feature `rabbitmq`).
///
/// # Errors
/// If the URL is of no known kind, or the broker cannot be opened: the directory cannot be written, or another
/// process owns it; the server is out of reach, or does not let the user in.
#[cfg(feature = "embedded")]
pub async fn open(url: &str) -> Result<std::sync::Arc<dyn message::Broker>, flow::BoxError> {
    match url.parse()? {
        #[cfg(feature = "rabbitmq")]
        message::BrokerUrl::Amqp(url) => Ok(std::sync::Arc::new(rabbitmq::RabbitMq::connect(&url).await?)),
        #[cfg(feature = "rabbitmq")]
        message::BrokerUrl::RabbitmqStream(url) => {
            let streams = rabbitmq::stream::StreamBroker::connect(&url).await?;
            Ok(std::sync::Arc::new(message::StreamedQueues::new(std::sync::Arc::new(streams))))
        }
        #[cfg(not(feature = "rabbitmq"))]
        url @ (message::BrokerUrl::Amqp(_) | message::BrokerUrl::RabbitmqStream(_)) => {
            Err(format!("`{url}`: this program was built without RabbitMQ; switch the feature `rabbitmq` of `millstream` on").into())
        }
        url => Ok(embedded::open(&url).await?),
    }
}
