//! Consuming: deliveries, and settling them.

use std::fmt;
use std::future::poll_fn;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;

use crate::error::BrokerError;
use crate::message::Message;
use crate::publish::Address;
use crate::stream::StreamFrom;

/// Names a delivery within its consumer: 1, 2, 3 … in the order of delivery, never used twice. A message that is
/// delivered again gets a new tag, so a late settlement of its old one cannot touch it.
pub type Tag = u64;

/// How to consume.
#[derive(Clone, Debug, PartialEq)]
pub struct ConsumeOptions {
    /// How many deliveries may be unsettled at once. Default 1,000.
    pub prefetch_items: NonZeroUsize,
    /// How many bytes ([`Message::size`]) may be unsettled at once. One message larger than this is still delivered,
    /// alone. Default 16 MiB.
    pub prefetch_bytes: NonZeroUsize,
    /// Whether this must be the queue's only consumer. Consuming fails when there is another; while this one lives,
    /// others fail.
    pub exclusive: bool,
    /// A name for errors, stats and logs.
    pub name: String,
    /// How long a delivery may stay unsettled before it goes back to the queue and its tag becomes stale. `None`, the
    /// default, lets it stay for as long as the consumer lives.
    pub lease: Option<Duration>,
    /// Among several consumers of a queue, those with the highest number receive first, and others only what these have no
    /// prefetch left for. Default 0. Brokers without [`Features::consumer_priority`](crate::Features) refuse any other.
    pub priority: i32,
    /// Where to begin in a queue of kind [`Stream`](crate::QueueKind::Stream), where it is required; other queues have no such place.
    pub from: Option<StreamFrom>,
    /// Whether to end once nothing is ready or delayed. What is unsettled does not count: it may come back, and
    /// whoever drains a queue looks at its stats afterwards.
    pub stop_when_empty: bool,
}

impl Default for ConsumeOptions {
    fn default() -> ConsumeOptions {
        ConsumeOptions {
            prefetch_items: NonZeroUsize::new(1000).expect("1000 is not zero"),
            prefetch_bytes: NonZeroUsize::new(16 << 20).expect("16 MiB is not zero"),
            exclusive: false,
            name: String::new(),
            lease: None,
            priority: 0,
            from: None,
            stop_when_empty: false,
        }
    }
}

impl ConsumeOptions {
    /// Sets the prefetch in items. Zero is read as one: a consumer that may receive nothing is no consumer.
    #[must_use]
    pub fn prefetch(mut self, items: usize) -> ConsumeOptions {
        self.prefetch_items = NonZeroUsize::new(items).unwrap_or(NonZeroUsize::MIN);
        self
    }

    /// Sets the prefetch in bytes. Zero is read as one, which means one message at a time.
    #[must_use]
    pub fn prefetch_bytes(mut self, bytes: usize) -> ConsumeOptions {
        self.prefetch_bytes = NonZeroUsize::new(bytes).unwrap_or(NonZeroUsize::MIN);
        self
    }

    /// Makes this the queue's only consumer.
    #[must_use]
    pub fn exclusive(mut self) -> ConsumeOptions {
        self.exclusive = true;
        self
    }

    /// Names the consumer.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> ConsumeOptions {
        self.name = name.into();
        self
    }

    /// Limits how long a delivery may stay unsettled.
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> ConsumeOptions {
        self.lease = Some(lease);
        self
    }

    /// Goes before consumers with a lower number.
    #[must_use]
    pub fn priority(mut self, priority: i32) -> ConsumeOptions {
        self.priority = priority;
        self
    }

    /// Begins there, in a queue that is a stream.
    #[must_use]
    pub fn from(mut self, from: StreamFrom) -> ConsumeOptions {
        self.from = Some(from);
        self
    }

    /// Ends once nothing is ready or delayed.
    #[must_use]
    pub fn stop_when_empty(mut self) -> ConsumeOptions {
        self.stop_when_empty = true;
        self
    }
}

/// A message handed to a consumer, to be settled exactly once: by its own methods or, apart from it and from any
/// thread, by its [`Tag`] through an [`Acker`].
///
/// Dropping a delivery settles nothing. What is unsettled when the last handle that could settle it is gone (the
/// consumer, its ackers and its deliveries), or when [`Acker::release`] is called, or when its lease ends, goes
/// back to its place in the queue.
#[derive(Clone)]
pub struct Delivery {
    /// The message as it was published.
    pub message: Message,
    /// Where it was published to.
    pub address: Address,
    /// Its name within the consumer.
    pub tag: Tag,
    /// How many times it was delivered before; 0 the first time. After a crash it may count too few.
    pub redeliveries: u32,
    /// Settles it.
    pub acker: Acker,
}

impl Delivery {
    /// The queue it came from.
    pub fn queue(&self) -> &str {
        self.acker.queue()
    }

    /// Takes it off the queue. True when this settled it, false when it was settled before or its lease had ended.
    pub fn ack(&self) -> bool {
        self.acker.ack(self.tag).applied == 1
    }

    /// Gives it back, dead-letters or discards it. True when this settled it.
    pub fn nack(&self, how: &Nack) -> bool {
        self.acker.nack(self.tag, how).applied == 1
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("queue", &self.queue())
            .field("tag", &self.tag)
            .field("redeliveries", &self.redeliveries)
            .field("address", &self.address)
            .field("message", &self.message)
            .finish()
    }
}

/// What becomes of a delivery that was not processed.
#[derive(Clone, Debug, PartialEq)]
pub enum Nack {
    /// Back to its place in the queue, at once. Counts toward the queue's delivery limit.
    Requeue,
    /// Back to the queue, invisible for this long. Counts toward the delivery limit.
    RequeueAfter(Duration),
    /// To the queue's dead-letter exchange; discarded when it has none. The reason and the stage travel in the
    /// headers (see [`dead`](crate::dead)).
    DeadLetter {
        /// Why, in words.
        reason: String,
        /// Which stage failed, when that is known.
        stage: Option<String>,
    },
    /// Off the queue without a trace.
    Discard,
}

impl Nack {
    /// To the dead-letter exchange for this reason.
    pub fn dead_letter(reason: impl Into<String>) -> Nack {
        Nack::DeadLetter { reason: reason.into(), stage: None }
    }
}

/// What a settlement did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// Deliveries that this call settled.
    pub applied: u64,
    /// Deliveries that were settled before, whose lease had ended, or that never were: nothing changed for them.
    pub stale: u64,
}

/// When a consumer stops receiving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopWhen {
    /// At once.
    Now,
    /// As soon as nothing is ready or delayed.
    Empty,
}

/// What a backend does for an [`Acker`]. Every call returns without waiting, from any thread; what must reach a
/// disk or a broker follows by itself within milliseconds. When the last clone is dropped the backend returns
/// everything unsettled to the queue.
pub trait Settle: Send + Sync {
    /// The queue.
    fn queue(&self) -> &str;
    /// Acks the deliveries with these tags; ranges may overlap and may name tags that are settled already.
    fn ack(&self, tags: &[Range<Tag>]) -> Settled;
    /// Nacks the deliveries with these tags.
    fn nack(&self, tags: &[Range<Tag>], how: &Nack) -> Settled;
    /// Ends the consumer's intake; what it has received can still be settled.
    fn stop(&self, when: StopWhen);
    /// Whether the consumer hands out nothing until it is told otherwise.
    fn pause(&self, paused: bool);
    /// Returns everything unsettled to the queue at once.
    fn release(&self);
    /// How many deliveries are unsettled.
    fn unsettled(&self) -> usize;
}

/// Settles the deliveries of one consumer, apart from the deliveries and from any thread, without awaiting. Cheap to
/// clone.
///
/// The first settlement of a delivery wins; a later one changes nothing and says so in its [`Settled`]. An ack that a
/// crash overtakes is forgotten and the message is delivered again: at least once, never lost.
#[derive(Clone)]
pub struct Acker(Arc<dyn Settle>);

impl Acker {
    /// The handle over this backend.
    pub fn new(settle: Arc<dyn Settle>) -> Acker {
        Acker(settle)
    }

    /// The queue.
    pub fn queue(&self) -> &str {
        self.0.queue()
    }

    /// Acks one delivery.
    pub fn ack(&self, tag: Tag) -> Settled {
        self.0.ack(&one(tag))
    }

    /// Acks every unsettled delivery whose tag lies in the range: one step for a whole chunk.
    pub fn ack_range(&self, tags: Range<Tag>) -> Settled {
        self.0.ack(std::slice::from_ref(&tags))
    }

    /// Acks every unsettled delivery whose tag lies in one of the ranges.
    pub fn ack_ranges(&self, tags: &[Range<Tag>]) -> Settled {
        self.0.ack(tags)
    }

    /// Acks a list of deliveries in any order.
    pub fn ack_many(&self, tags: impl IntoIterator<Item = Tag>) -> Settled {
        self.0.ack(&ranges(tags))
    }

    /// Gives back, dead-letters or discards one delivery.
    pub fn nack(&self, tag: Tag, how: &Nack) -> Settled {
        self.0.nack(&one(tag), how)
    }

    /// Does the same to every unsettled delivery whose tag lies in one of the ranges.
    pub fn nack_ranges(&self, tags: &[Range<Tag>], how: &Nack) -> Settled {
        self.0.nack(tags, how)
    }

    /// Ends the consumer's intake, now or when the queue is empty; what it has received can still be settled.
    pub fn stop(&self, when: StopWhen) {
        self.0.stop(when);
    }

    /// Has the consumer hand out nothing until it is [resumed](Acker::resume). What it has handed out can be settled, and other
    /// consumers of the queue go on. A broker in another process may have sent up to the prefetch already: that waits here. A
    /// [`Consumer`] that is read one by one takes some ahead, up to 64, which still come.
    pub fn pause(&self) {
        self.0.pause(true);
    }

    /// Has a paused consumer go on.
    pub fn resume(&self) {
        self.0.pause(false);
    }

    /// Returns everything unsettled to the queue at once; settling it later is stale.
    pub fn release(&self) {
        self.0.release();
    }

    /// How many deliveries are unsettled.
    pub fn unsettled(&self) -> usize {
        self.0.unsettled()
    }
}

impl fmt::Debug for Acker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acker").field("queue", &self.queue()).field("unsettled", &self.unsettled()).finish()
    }
}

/// The range of one tag.
#[expect(clippy::single_range_in_vec_init, reason = "a list of one range is what is meant")]
fn one(tag: Tag) -> [Range<Tag>; 1] {
    [tag..tag.saturating_add(1)]
}

/// Sorted, merged ranges of the tags.
fn ranges(tags: impl IntoIterator<Item = Tag>) -> Vec<Range<Tag>> {
    let mut tags: Vec<Tag> = tags.into_iter().collect();
    tags.sort_unstable();
    let mut out: Vec<Range<Tag>> = Vec::new();
    for tag in tags {
        match out.last_mut() {
            Some(last) if tag < last.end => {}
            Some(last) if tag == last.end => last.end += 1,
            _ => out.push(tag..tag.saturating_add(1)),
        }
    }
    out
}

/// Replies that come without a queue: see [`Broker::direct_replies`](crate::Broker::direct_replies).
#[derive(Debug)]
pub struct DirectReplies {
    /// What requests say in [`reply_to`](crate::Properties::reply_to).
    pub reply_to: String,
    /// What their correlation ids begin with, so that replies find the way.
    pub correlation_prefix: String,
    /// Receives the replies. There is nothing to settle: one that nobody takes is gone.
    pub consumer: Consumer,
}

/// What a backend does for a [`Consumer`].
pub trait ConsumerSource: Send {
    /// Appends up to `max` deliveries that are ready to `into` and returns how many: zero means that the consumer
    /// has ended. Waits when there is nothing to deliver or the prefetch is used up, and wakes for either.
    fn poll_chunk(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
        into: &mut Vec<Delivery>,
    ) -> Poll<Result<usize, BrokerError>>;
}

/// Receives a queue's messages.
///
/// It is a [`Stream`] of deliveries. It ends after [`stop`](Acker::stop), or when the broker is closed; when the
/// queue is deleted it ends with an error. Dropping it ends the intake; what is unsettled goes back to the queue as
/// soon as no [`Acker`] and no [`Delivery`] of it is left that could settle it, or at once with
/// [`release`](Acker::release).
///
/// # Backpressure
/// It never holds more than the prefetch in unsettled deliveries and then waits for settlements.
///
/// # Ordering
/// Deliveries come in the order of the queue: by priority, then in the order of publishing. What was given back
/// comes at its old place, hence before what was never delivered.
pub struct Consumer {
    source: Box<dyn ConsumerSource>,
    acker: Acker,
    ready: std::collections::VecDeque<Delivery>,
    scratch: Vec<Delivery>,
}

/// How many deliveries [`Consumer::poll_next`] takes at once: enough to make the lock of a queue cheap, few enough
/// that two consumers share a short queue fairly.
const CHUNK: usize = 64;

impl Consumer {
    /// A consumer over this backend.
    pub fn new(source: Box<dyn ConsumerSource>, acker: Acker) -> Consumer {
        Consumer { source, acker, ready: std::collections::VecDeque::new(), scratch: Vec::new() }
    }

    /// Settles this consumer's deliveries.
    pub fn acker(&self) -> Acker {
        self.acker.clone()
    }

    /// The next delivery; `None` after the end.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// When the queue was deleted or its stored messages cannot be read.
    pub async fn next(&mut self) -> Option<Result<Delivery, BrokerError>> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// Polls for the next delivery.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Delivery, BrokerError>>> {
        if let Some(delivery) = self.ready.pop_front() {
            return Poll::Ready(Some(Ok(delivery)));
        }
        match self.source.poll_chunk(cx, CHUNK, &mut self.scratch) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(error)) => Poll::Ready(Some(Err(error))),
            Poll::Ready(Ok(_)) => {
                self.ready.extend(self.scratch.drain(..));
                Poll::Ready(self.ready.pop_front().map(Ok))
            }
        }
    }

    /// Waits until something is ready and returns up to `max` deliveries, in order; empty means the end.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// As [`next`](Consumer::next).
    pub async fn next_chunk(&mut self, max: usize) -> Result<Vec<Delivery>, BrokerError> {
        let mut chunk = Vec::new();
        poll_fn(|cx| self.poll_chunk(cx, max, &mut chunk)).await?;
        Ok(chunk)
    }

    /// Polls for up to `max` (at least one) deliveries and appends them to `into`; zero means the end.
    pub fn poll_chunk(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
        into: &mut Vec<Delivery>,
    ) -> Poll<Result<usize, BrokerError>> {
        let max = max.max(1);
        if self.ready.is_empty() {
            return self.source.poll_chunk(cx, max, into);
        }
        let count = self.ready.len().min(max);
        into.extend(self.ready.drain(..count));
        Poll::Ready(Ok(count))
    }
}

impl Stream for Consumer {
    type Item = Result<Delivery, BrokerError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Consumer::poll_next(self.get_mut(), cx)
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.acker.stop(StopWhen::Now);
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").field("acker", &self.acker).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_tags_becomes_merged_ranges() {
        assert_eq!(ranges([5, 1, 2, 2, 3, 9]), vec![1..4, 5..6, 9..10]);
        assert!(ranges([]).is_empty());
    }
}
