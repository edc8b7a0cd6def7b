//! Queues as the ends of flows: a consumer is a source whose messages are acknowledged when they are settled,
//! a publisher is a sink that confirms when the broker has stored.

use std::collections::VecDeque;
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_core::Stream;
use millstream_flow::flows::FromTracked;
use millstream_flow::{
    Account, BoxError, Flow, Knob, Outcome, Pipe, Setting, Settler, Sink, SinkError, Tick, Token, Tracked,
    Tracker,
};
use tokio::time::sleep;
use tracing::Instrument;

use crate::{
    Acker, Address, Batch, Broker, BrokerError, BrokerErrorKind, Codec, Consumer, Delivery, Message, Nack,
    Prefetch, PublishOutcome, Refusal, Tag,
};

mod produce;
mod request;
mod span;
mod spill;
mod work;

pub use produce::{ProduceError, Producer, Sending};
pub use request::{ERROR, RequestError, Requester, respond};
pub use spill::QueueSpill;
pub use work::{ATTEMPTS, FAILURES, FAILURES_MAX, FIRST_EXCHANGE, FIRST_KEY, Failure, Job, Work};

/// Deliveries taken from the consumer at once.
const CHUNK: usize = 256;

/// The messages of a queue as a flow.
///
/// A message is acknowledged when its item completes or is dropped by declaration. An item that dies
/// ([`reject`](Pipe::reject), [`dead_letter`](Pipe::dead_letter), a panic under
/// [`PanicPolicy::Dead`](millstream_flow::PanicPolicy::Dead)) sends its message to the queue's dead-letter
/// exchange with the reason and the stage, or drops it if the queue has none. What is under way when the run
/// stops returns to the queue, at its place, when the run is gone.
///
/// # Backpressure
/// The consumer's prefetch bounds what is under way: the flow gets no further message before earlier ones
/// are settled. Ask for at least twice the largest batch. It is a knob of the flow, `QUEUE prefetch`, frozen if it was
/// [fixed](crate::ConsumeOptions::prefetch); a move holds from the next settlement on.
///
/// # Ordering
/// The queue's.
///
/// # Errors
/// A broker that fails, fails the run.
pub fn messages(consumer: Consumer) -> Pipe<FromTracked<Messages>> {
    let messages = Messages::new(consumer);
    let (account, prefetch) = (messages.account(), messages.prefetch());
    Pipe::from_tracked(account, messages).named("queue").knob(prefetch)
}

/// The values in the messages of a queue as a flow: [`messages`], read by `codec`.
///
/// A message that the codec cannot read is rejected by the stage `decode`: it goes to the queue's dead-letter exchange, or
/// is dropped if the queue has none. Its letter says why ([`DETAIL`](crate::dead::DETAIL)), by both names: what the message
/// is declared to be, and what is wanted. Backpressure, order and errors are those of [`messages`].
pub fn decode<T, C: Codec<T>>(consumer: Consumer, codec: C) -> Pipe<impl Flow<Item = T, Token = Token>> {
    messages(consumer).try_map(move |message| codec.decode(message)).named("decode").reject()
}

/// The consumer's tags of the tracker's items. They are kept rather than computed, so that a broker may number its
/// deliveries as it likes; one that numbers them without gaps costs one entry.
#[derive(Default)]
struct Tags {
    /// Rising in items.
    runs: VecDeque<TagRun>,
    next: u64,
}

/// Items in a row whose tags are in a row.
struct TagRun {
    item: u64,
    tag: Tag,
    count: u64,
    /// How many of them are not settled.
    left: u64,
}

impl Tags {
    /// Notes the tag of the next item.
    fn push(&mut self, tag: Tag) {
        let item = self.next;
        self.next += 1;
        match self.runs.back_mut() {
            Some(run) if run.tag + run.count == tag => {
                run.count += 1;
                run.left += 1;
            }
            _ => self.runs.push_back(TagRun { item, tag, count: 1, left: 1 }),
        }
    }

    /// The tags of items that are settled, each of them once.
    fn take(&mut self, items: Range<u64>) -> Vec<Range<Tag>> {
        let mut ranges = Vec::new();
        let first = self.runs.partition_point(|run| run.item + run.count <= items.start);
        for run in self.runs.range_mut(first..) {
            let (from, to) = (items.start.max(run.item), items.end.min(run.item + run.count));
            if from >= to {
                break;
            }
            run.left -= to - from;
            ranges.push(run.tag + (from - run.item)..run.tag + (to - run.item));
        }
        // The last one may still grow.
        while self.runs.len() > 1 && self.runs.front().is_some_and(|run| run.left == 0) {
            self.runs.pop_front();
        }
        ranges
    }
}

struct Acknowledge {
    acker: Acker,
    dead_letters: bool,
    tags: Arc<Mutex<Tags>>,
    late: Mutex<Late>,
}

impl Settler for Acknowledge {
    fn settle(&self, items: Range<u64>, outcome: &Outcome) {
        if let Outcome::Abandoned = outcome {
            return; // it returns to its place when the consumer goes
        }
        let tags = lock(&self.tags).take(items);
        let settled = match outcome {
            Outcome::Dead(failure) if self.dead_letters => {
                let (reason, stage) = (failure.reason.clone(), Some(failure.stage.to_string()));
                self.acker.nack_ranges(&tags, &Nack::DeadLetter { reason, stage })
            }
            _ => self.acker.ack_ranges(&tags),
        };
        // They belong to somebody else by now, who settles them. A run in which that goes on does all its work again.
        if settled.stale > 0 {
            lock(&self.late).tell(settled.stale);
        }
    }
}

/// Deliveries that were settled too late, told once in a while.
#[derive(Default)]
struct Late {
    untold: u64,
    told: Option<Tick>,
}

impl Late {
    fn tell(&mut self, deliveries: u64) {
        self.untold += deliveries;
        let now = Tick::now();
        if self.told.is_none_or(|told| now.since(told) >= TOLD_EVERY) {
            self.told = Some(now);
            self.warn();
        }
    }

    fn warn(&mut self) {
        let deliveries = std::mem::take(&mut self.untold);
        if deliveries > 0 {
            tracing::warn!(
                deliveries,
                "deliveries were settled too late: they have gone back to their queue, as when a lease has run out or a \
                 connection was lost, or the queue is gone"
            );
        }
    }
}

impl Drop for Late {
    fn drop(&mut self) {
        self.warn();
    }
}

const TOLD_EVERY: Duration = Duration::from_secs(1);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The stream behind [`messages`], for sources that are more than a queue.
pub struct Messages(Deliveries);

impl Messages {
    /// Messages that are acknowledged as [`messages`] says.
    pub fn new(consumer: Consumer) -> Messages {
        Messages(Deliveries::settling(consumer, true))
    }

    /// As [`new`](Messages::new), but a message whose item dies is acknowledged: somebody else keeps it.
    pub fn without_dead_letters(consumer: Consumer) -> Messages {
        Messages(Deliveries::settling(consumer, false))
    }

    /// What became of the messages.
    pub fn account(&self) -> Arc<Account> {
        self.0.account()
    }

    /// The number by which a flow may be told how many messages are under way at most; `None` of replies, which nobody settles.
    pub fn prefetch(&self) -> Option<Knob> {
        self.0.prefetch()
    }

    /// Stops the consumer from any thread.
    pub fn acker(&self) -> Acker {
        self.0.consumer.acker()
    }

    /// How many messages are here and come next without waiting.
    pub fn waiting(&self) -> usize {
        self.0.ready.len()
    }
}

impl Stream for Messages {
    type Item = Result<Tracked<Message>, BoxError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = ready!(Pin::new(&mut self.0).poll_next(cx));
        let message = |Tracked { value, token }: Tracked<Delivery>| Tracked { value: value.message, token };
        Poll::Ready(next.map(|next| next.map(message)))
    }
}

/// As [`Messages`], with all that is known of a message.
struct Deliveries {
    consumer: Consumer,
    prefetch: Option<Tuned>,
    ready: VecDeque<Delivery>,
    scratch: Vec<Delivery>,
    tags: Arc<Mutex<Tags>>,
    tracker: Tracker,
    ended: bool,
}

/// A consumer's prefetch as a knob.
struct Tuned {
    knob: Knob,
    /// What the consumer has been told.
    told: usize,
}

impl Tuned {
    fn of(consumer: &Consumer) -> Option<Tuned> {
        let acker = consumer.acker();
        let Prefetch { items, most } = acker.prefetch()?;
        let setting = most.map_or(Setting::Fixed(items.get()), |_| Setting::Auto);
        let most = most.map_or(items, |most| most.max(items));
        let knob = Knob::new(format!("{} prefetch", acker.queue()), setting, items.get(), 1..=most.get());
        Some(Tuned { knob, told: items.get() })
    }

    /// Tells the consumer if the knob was moved.
    fn tell(&mut self, consumer: &Consumer) {
        let items = self.knob.value();
        if items != self.told {
            self.told = items;
            consumer.acker().set_prefetch(items);
        }
    }
}

impl Deliveries {
    fn new(consumer: Consumer) -> Deliveries {
        Deliveries::settling(consumer, true)
    }

    fn settling(consumer: Consumer, dead_letters: bool) -> Deliveries {
        let tags = Arc::new(Mutex::new(Tags::default()));
        let tracker = Tracker::new(Acknowledge {
            acker: consumer.acker(),
            dead_letters,
            tags: tags.clone(),
            late: Mutex::default(),
        });
        let (prefetch, ready, scratch) = (Tuned::of(&consumer), VecDeque::new(), Vec::new());
        Deliveries { consumer, prefetch, ready, scratch, tags, tracker, ended: false }
    }

    fn account(&self) -> Arc<Account> {
        self.tracker.account()
    }

    fn prefetch(&self) -> Option<Knob> {
        self.prefetch.as_ref().map(|prefetch| prefetch.knob.clone())
    }
}

impl Stream for Deliveries {
    type Item = Result<Tracked<Delivery>, BoxError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(delivery) = self.ready.pop_front() {
                let token = self.tracker.issue();
                return Poll::Ready(Some(Ok(Tracked { value: delivery, token })));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            let Deliveries { consumer, prefetch, scratch, ready, tags, ended, .. } = &mut *self;
            prefetch.iter_mut().for_each(|prefetch| prefetch.tell(consumer));
            match ready!(consumer.poll_chunk(cx, CHUNK, scratch)) {
                Ok(0) => *ended = true,
                Ok(_) => {
                    // Before the first of them is out: whoever has it may settle it.
                    let mut tags = lock(tags);
                    scratch.iter().for_each(|delivery| tags.push(delivery.tag));
                    ready.extend(scratch.drain(..));
                }
                Err(error) => {
                    *ended = true;
                    return Poll::Ready(Some(Err(error.into())));
                }
            }
        }
    }
}

/// The first and the longest wait for room in a full queue.
const FULL_WAIT: Duration = Duration::from_millis(2);
const FULL_WAIT_MAX: Duration = Duration::from_millis(500);

/// A sink that publishes messages to an address and confirms those that the broker has stored.
///
/// # Backpressure
/// A full queue is waited for, with growing pauses: its consumers' pace is felt by the source. A message that no
/// queue can ever take (no route, too large) is rejected: dead, with the reason.
///
/// # Errors
/// A broker that fails, has a full disk, or loses a confirm, fails the run; what was not confirmed is given back to the
/// source.
pub struct Publisher {
    broker: Arc<dyn Broker>,
    to: Address,
    chunk: usize,
}

impl Publisher {
    /// Publishes to `to`, up to 1,000 messages at a time.
    pub fn new(broker: Arc<dyn Broker>, to: Address) -> Self {
        Publisher { broker, to, chunk: 1000 }
    }

    /// Publishes up to `messages` at a time. On a durable broker each time waits for one sync of the disk.
    ///
    /// # Panics
    /// If `messages` is 0.
    #[must_use]
    pub fn chunk(mut self, messages: usize) -> Self {
        assert!(messages > 0, "a publish of no messages stores nothing");
        self.chunk = messages;
        self
    }
}

/// A message that the broker refused for good.
#[derive(Debug)]
pub struct Rejected {
    /// Which of those that were published.
    pub index: usize,
    /// Why.
    pub reason: BoxError,
}

/// Publishes `messages`; returns when each is stored or refused for good. A full queue is waited for, with growing
/// pauses.
///
/// # Errors
/// A broker that fails, is closed, has a full disk, or loses a confirm: which of the messages are stored is not known then.
///
/// # Cancel safety
/// Dropping the future leaves some of the messages stored.
pub async fn publish_all(
    broker: &dyn Broker,
    to: &Address,
    messages: &[Message],
) -> Result<Vec<Rejected>, BrokerError> {
    let mut rejected = Vec::new();
    // Which of them are still to be stored.
    let mut left: Vec<usize> = (0..messages.len()).collect();
    let mut wait = FULL_WAIT;
    loop {
        let batch = Batch::to(to, left.iter().map(|&index| messages[index].clone()));
        let span = span::publish(to, left.iter().map(|&index| &messages[index]));
        let mut again = Vec::new();
        for (position, outcome) in broker.publish_batch(batch).instrument(span).await?.into_others() {
            let index = left[position];
            match outcome {
                PublishOutcome::Confirmed => {}
                PublishOutcome::Refused(Refusal::Full { .. }) => again.push(index),
                PublishOutcome::Refused(Refusal::Broker(error)) if !is_unwanted(&error) => return Err(error),
                PublishOutcome::Refused(refusal) => rejected.push(Rejected { index, reason: refusal.into() }),
                PublishOutcome::Unroutable(returned) => {
                    rejected.push(Rejected { index, reason: returned.reason.into() });
                }
                PublishOutcome::Unconfirmed(error) => return Err(error),
            }
        }
        if again.is_empty() {
            return Ok(rejected);
        }
        left = again;
        sleep(wait).await;
        wait = (wait * 2).min(FULL_WAIT_MAX);
    }
}

/// Whether a broker's refusal is about the message, which it will never take, rather than about the broker itself.
fn is_unwanted(error: &BrokerError) -> bool {
    error.kind() == BrokerErrorKind::Invalid
}

impl Sink for Publisher {
    type Item = Message;

    async fn write(&mut self, messages: &mut Vec<Message>) -> Result<(), SinkError> {
        let rejected = publish_all(&*self.broker, &self.to, messages).await?;
        if rejected.is_empty() {
            return Ok(());
        }
        Err(SinkError::Rejected(rejected.into_iter().map(|one| (one.index, one.reason)).collect()))
    }

    fn chunk(&self) -> usize {
        self.chunk
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever the gaps between tags and the order of settling, each item's tag is taken with it.
        #[test]
        fn every_item_takes_its_own_tag(
            gaps in proptest::collection::vec(0u64..3, 1..60),
            cuts in proptest::collection::vec(1u64..7, 60),
            order in any::<u64>(),
        ) {
            let mut tags = Tags::default();
            let mut known = Vec::new();
            let mut tag = 0;
            for gap in &gaps {
                tag += 1 + gap;
                tags.push(tag);
                known.push(tag);
            }
            let mut ranges = Vec::new();
            let mut from = 0;
            for cut in cuts {
                let to = (from + cut).min(known.len() as u64);
                if from < to {
                    ranges.push(from..to);
                }
                from = to;
            }
            let half = order as usize % ranges.len();
            ranges.rotate_left(half);
            for range in ranges {
                let taken: Vec<Tag> = tags.take(range.clone()).into_iter().flatten().collect();
                prop_assert_eq!(taken, &known[range.start as usize..range.end as usize]);
            }
            prop_assert!(tags.runs.len() <= 1, "settled runs are forgotten");
        }
    }
}
