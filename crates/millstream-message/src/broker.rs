//! The broker: one trait for every backend.

use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;
use serde::Serialize;

use crate::consume::{ConsumeOptions, Consumer, DirectReplies};
use crate::declaration::{Declaration, Standing};
use crate::error::{BrokerError, BrokerErrorKind};
use crate::message::Message;
use crate::publish::{Address, Batch, Confirm, Outcomes, Publish, PublishOutcome};
use crate::stream::{StreamFrom, StreamReader, StreamSpec, StreamStats};
use crate::topology::{Binding, Exchange, Queue};
use crate::url::BrokerUrl;

/// A boxed future, as the object-safe [`Broker`] returns them. Paid per batch, never per message.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a backend can do beyond what every backend must. The conformance suite skips what is declared absent here
/// and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Features {
    /// Exchanges, queues, publishing and consuming. A broker without them has streams alone.
    pub queues: bool,
    /// Durable queues and persistent messages, and streams, survive a restart of the broker.
    pub durable: bool,
    /// Messages with a delay stay invisible until they are due.
    pub delay: bool,
    /// [`QueueStats::delayed`] counts every message that waits for its time, and not only those that this handle has
    /// delayed.
    pub delayed_stats: bool,
    /// Leases: a delivery may be given a time limit.
    pub lease: bool,
    /// Prefetch is also counted in bytes.
    pub prefetch_bytes: bool,
    /// Queues may limit how often a message is given back.
    pub delivery_limit: bool,
    /// Consumers have a [priority](ConsumeOptions::priority).
    pub consumer_priority: bool,
    /// Queues may go by themselves when nobody uses them ([`Queue::expires`]).
    pub queue_expiry: bool,
    /// Queues may be [streams](crate::QueueKind::Stream) that are consumed like queues.
    pub stream_queues: bool,
    /// [`Broker::browse`]: looking at messages without consuming them.
    pub browse: bool,
    /// To browse is no delivery: it is counted nowhere.
    pub uncounted_browse: bool,
    /// Append-only streams.
    pub streams: bool,
    /// Offsets count messages and nothing else. Elsewhere the broker's own records take offsets, too.
    pub dense_offsets: bool,
    /// The bytes in what [`Broker::stats`] gives are known; elsewhere they are zero.
    pub queue_bytes: bool,
    /// [`StreamStats::bytes`] is known; elsewhere it is zero.
    pub stream_bytes: bool,
    /// [`Broker::position`], and [`Batch::with_position`], which stores the position when the batch is stored.
    pub positions: bool,
    /// A batch with a position is one step: all of its messages and the position are stored, or nothing is. Without that the
    /// position is stored after the messages, and only if all of them were: it never runs ahead, and may stay behind.
    pub atomic_batches: bool,
    /// [`Broker::queues`] can list what exists.
    pub list: bool,
    /// Late, double and unknown settlements are counted exactly in [`Settled`](crate::Settled).
    pub exact_settlement: bool,
    /// The largest message, in bytes.
    pub max_message_bytes: u64,
}

impl Features {
    /// Everything, with messages up to this size. Backends switch off what they lack.
    pub fn all(max_message_bytes: u64) -> Features {
        Features {
            queues: true,
            durable: true,
            delay: true,
            delayed_stats: true,
            lease: true,
            prefetch_bytes: true,
            delivery_limit: true,
            consumer_priority: true,
            queue_expiry: true,
            stream_queues: true,
            browse: true,
            uncounted_browse: true,
            streams: true,
            dense_offsets: true,
            queue_bytes: true,
            stream_bytes: true,
            positions: true,
            atomic_batches: true,
            list: true,
            exact_settlement: true,
            max_message_bytes,
        }
    }
}

/// What a queue holds at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct QueueStats {
    /// Its name.
    pub name: String,
    /// Messages that a consumer could receive now.
    pub ready: u64,
    /// Their bytes.
    pub ready_bytes: u64,
    /// Messages delivered and not settled, and dead letters on their way.
    pub unacked: u64,
    /// Their bytes.
    pub unacked_bytes: u64,
    /// Messages that are not due yet.
    pub delayed: u64,
    /// Their bytes.
    pub delayed_bytes: u64,
    /// Consumers.
    pub consumers: u64,
}

impl QueueStats {
    /// All messages, whatever state they are in.
    pub fn total(&self) -> u64 {
        self.ready + self.unacked + self.delayed
    }
}

/// One message seen by [`Broker::browse`].
#[derive(Clone, Debug, PartialEq)]
pub struct Browsed {
    /// The message.
    pub message: Message,
    /// Where it was published to.
    pub address: Address,
    /// How many times it was delivered.
    pub deliveries: u32,
}

/// A broker, whatever its kind: `Arc<dyn Broker>`.
///
/// Every operation that may wait returns a boxed future; publishing and consuming move batches, so the box is paid
/// per batch. Operations fail with a [`BrokerError`] whose kind says what to do.
///
/// # Cancel safety
/// Dropping the future of any operation leaves it done or not done, never half done.
pub trait Broker: Send + Sync {
    /// How it was opened.
    fn url(&self) -> &BrokerUrl;

    /// What it can do.
    fn features(&self) -> Features;

    /// Makes an exchange, or checks that it is as declared.
    fn declare_exchange(&self, exchange: Exchange) -> BoxFuture<'_, Result<(), BrokerError>>;

    /// Deletes an exchange and its bindings. Deleting what is not there is fine.
    fn delete_exchange<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), BrokerError>>;

    /// Makes a queue, or checks that it is as declared.
    fn declare_queue(&self, queue: Queue) -> BoxFuture<'_, Result<(), BrokerError>>;

    /// Deletes a queue with its messages and bindings; its consumers end with an error. Returns how many ready
    /// messages went with it; deleting what is not there is fine and returns zero.
    fn delete_queue<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<u64, BrokerError>>;

    /// Leads messages from an exchange to a queue, or to another exchange. Binding twice is the same as once.
    fn bind(&self, binding: Binding) -> BoxFuture<'_, Result<(), BrokerError>>;

    /// Removes a binding. Removing what is not there is fine.
    fn unbind(&self, binding: Binding) -> BoxFuture<'_, Result<(), BrokerError>>;

    /// How something that is to be declared stands here. Changes nothing.
    ///
    /// # Errors
    /// `Unsupported` by brokers without [queues](Features::queues).
    fn standing<'a>(&'a self, what: &'a Declaration) -> BoxFuture<'a, Result<Standing, BrokerError>> {
        Box::pin(async move {
            let text = format!("{what}: {} has no queues and exchanges", self.url());
            Err(BrokerError::new(BrokerErrorKind::Unsupported, text))
        })
    }

    /// Removes every ready message and returns how many. Deliveries and delayed messages stay.
    fn purge<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, Result<u64, BrokerError>>;

    /// Hands over a batch and returns as soon as its place in the order is taken; the [`Confirm`] resolves when it
    /// is stored. Submitting on before awaiting keeps the broker busy: this is the pipelined form.
    ///
    /// # Backpressure
    /// Waits while the broker's bounded buffer is full.
    ///
    /// # Errors
    /// When the broker is closed. Everything about single messages is in their outcomes.
    fn submit(&self, batch: Batch) -> BoxFuture<'_, Result<Confirm, BrokerError>>;

    /// Publishes a batch and waits until it is stored.
    fn publish_batch(&self, batch: Batch) -> BoxFuture<'_, Result<Outcomes, BrokerError>> {
        Box::pin(async move { Ok(self.submit(batch).await?.await) })
    }

    /// Publishes one message and waits until it is stored.
    fn publish<'a>(
        &'a self,
        to: &'a Address,
        message: Message,
    ) -> BoxFuture<'a, Result<PublishOutcome, BrokerError>> {
        let batch = Batch::from(vec![Publish { to: to.clone(), message }]);
        Box::pin(async move { Ok(self.submit(batch).await?.await.get(0)) })
    }

    /// Starts to consume a queue.
    ///
    /// # Errors
    /// `NotFound`, or `InUse` when an exclusive consumer is there or asked for beside others.
    fn consume<'a>(
        &'a self,
        queue: &'a str,
        options: ConsumeOptions,
    ) -> BoxFuture<'a, Result<Consumer, BrokerError>>;

    /// Replies to requests that are published through this handle, without a queue for them; `None` where the broker has no such
    /// thing. What is on its way when a connection is lost is not answered.
    fn direct_replies(&self) -> BoxFuture<'_, Result<Option<DirectReplies>, BrokerError>> {
        Box::pin(async { Ok(None) })
    }

    /// Looks at up to `max` ready messages after skipping `skip`, in the order of delivery, without taking them.
    fn browse<'a>(
        &'a self,
        queue: &'a str,
        skip: u64,
        max: usize,
    ) -> BoxFuture<'a, Result<Vec<Browsed>, BrokerError>>;

    /// What a queue holds.
    fn stats<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, Result<QueueStats, BrokerError>>;

    /// How a queue is declared; `None` when it does not exist.
    fn queue<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Queue>, BrokerError>>;

    /// The names of all queues, in order.
    fn queues(&self) -> BoxFuture<'_, Result<Vec<String>, BrokerError>>;

    /// What every queue holds, in the order of their names. Where the broker collects figures now and then they are some seconds
    /// old; [`stats`](Broker::stats) of one queue is not.
    fn all_stats(&self) -> BoxFuture<'_, Result<Vec<QueueStats>, BrokerError>> {
        Box::pin(async move {
            let mut all = Vec::new();
            for name in self.queues().await? {
                match self.stats(&name).await {
                    Ok(stats) => all.push(stats),
                    // It was deleted meanwhile.
                    Err(error) if error.kind() == BrokerErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(all)
        })
    }

    /// The value stored under `name` by [`Batch::with_position`] or [`store_position`](Broker::store_position), as
    /// far as it is durable.
    fn position<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Bytes>, BrokerError>>;

    /// Stores a value under `name`, durably; `None` forgets it.
    fn store_position<'a>(
        &'a self,
        name: &'a str,
        value: Option<Bytes>,
    ) -> BoxFuture<'a, Result<(), BrokerError>>;

    /// Makes a stream, or checks that it is as declared.
    fn declare_stream(&self, stream: StreamSpec) -> BoxFuture<'_, Result<(), BrokerError>>;

    /// Deletes a stream; its readers end with an error. Deleting what is not there is fine.
    fn delete_stream<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), BrokerError>>;

    /// Appends messages in order, durably, and returns the offset of the first.
    fn append<'a>(
        &'a self,
        stream: &'a str,
        messages: Vec<Message>,
    ) -> BoxFuture<'a, Result<u64, BrokerError>>;

    /// Reads a stream.
    fn read<'a>(
        &'a self,
        stream: &'a str,
        from: StreamFrom,
    ) -> BoxFuture<'a, Result<StreamReader, BrokerError>>;

    /// What a stream holds.
    fn stream_stats<'a>(&'a self, stream: &'a str) -> BoxFuture<'a, Result<StreamStats, BrokerError>>;

    /// Durably remembers how far `reader` has read: the offset it wants next.
    fn store_offset<'a>(
        &'a self,
        stream: &'a str,
        reader: &'a str,
        offset: u64,
    ) -> BoxFuture<'a, Result<(), BrokerError>>;

    /// The offset that `reader` stored last.
    fn stored_offset<'a>(
        &'a self,
        stream: &'a str,
        reader: &'a str,
    ) -> BoxFuture<'a, Result<Option<u64>, BrokerError>>;

    /// Stops accepting, makes everything accepted durable (acks too), ends all consumers, and releases files and
    /// locks. Closing twice is fine. Dropping the last handle does the same as far as it can without waiting for
    /// the disk: nothing confirmed is lost, the last acks may be.
    fn close(&self) -> BoxFuture<'_, Result<(), BrokerError>>;
}
