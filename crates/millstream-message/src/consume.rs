//! Consuming: deliveries, and settling them.

mod options;
mod settle;

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream;

pub use self::options::ConsumeOptions;
pub use self::settle::{Acker, Nack, Prefetch, Settle, Settled, StopWhen};
use crate::error::BrokerError;
use crate::message::Message;
use crate::publish::Address;

/// Names a delivery within its consumer: 1, 2, 3 … in the order of delivery, never used twice. A message that is
/// delivered again gets a new tag, so a late settlement of its old one cannot touch it.
pub type Tag = u64;

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
