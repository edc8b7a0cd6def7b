//! Queues as the ends of flows: a consumer is a source whose messages are acknowledged when they are settled,
//! a publisher is a sink that confirms when the broker has stored.

use std::collections::VecDeque;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_core::Stream;
use millstream_flow::flows::FromTracked;
use millstream_flow::{BoxError, Outcome, Pipe, Settler, Sink, SinkError, Tracked, Tracker};
use millstream_message::{
    Acker, Address, Batch, Broker, Consumer, Delivery, Message, Nack, PublishOutcome, Refusal,
};
use tokio::time::sleep;

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
/// are settled. Ask for at least twice the largest batch.
///
/// # Ordering
/// The queue's.
///
/// # Errors
/// A broker that fails, fails the run.
pub fn messages(consumer: Consumer) -> Pipe<FromTracked<Messages>> {
    let tags = Arc::new(std::sync::Mutex::new(Tags::default()));
    let tracker = Tracker::new(Acknowledge { acker: consumer.acker(), tags: tags.clone() });
    let account = tracker.account();
    let messages =
        Messages { consumer, ready: VecDeque::new(), scratch: Vec::new(), tags, tracker, ended: false };
    Pipe::from_tracked(account, messages).named("queue")
}

/// The consumer's tags of the tracker's items that are not settled yet, oldest first. A tag is kept rather than
/// computed, so that a broker may number its deliveries as it likes.
#[derive(Default)]
struct Tags {
    first: u64,
    tags: VecDeque<Option<u64>>,
}

impl Tags {
    fn push(&mut self, tag: u64) {
        self.tags.push_back(Some(tag));
    }

    /// Takes the tags of settled items, as ranges.
    fn take(&mut self, items: Range<u64>) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for item in items {
            let index = item.checked_sub(self.first).and_then(|index| usize::try_from(index).ok());
            let Some(tag) = index.and_then(|index| self.tags.get_mut(index)).and_then(Option::take) else {
                continue;
            };
            match ranges.last_mut() {
                Some(last) if last.end == tag => last.end += 1,
                _ => ranges.push(tag..tag + 1),
            }
        }
        while let Some(None) = self.tags.front() {
            self.tags.pop_front();
            self.first += 1;
        }
        ranges
    }
}

struct Acknowledge {
    acker: Acker,
    tags: Arc<std::sync::Mutex<Tags>>,
}

impl Settler for Acknowledge {
    fn settle(&self, items: Range<u64>, outcome: &Outcome) {
        if let Outcome::Abandoned = outcome {
            return; // it returns to its place when the consumer goes
        }
        let tags = self.tags.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take(items);
        // A delivery whose lease ran out belongs to somebody else by now, who settles it: nothing to do.
        let _ = match outcome {
            Outcome::Dead(failure) => {
                let (reason, stage) = (failure.reason.clone(), Some(failure.stage.to_string()));
                self.acker.nack_ranges(&tags, &Nack::DeadLetter { reason, stage })
            }
            _ => self.acker.ack_ranges(&tags),
        };
    }
}

/// See [`messages`].
pub struct Messages {
    consumer: Consumer,
    ready: VecDeque<Delivery>,
    scratch: Vec<Delivery>,
    tags: Arc<std::sync::Mutex<Tags>>,
    tracker: Tracker,
    ended: bool,
}

impl Stream for Messages {
    type Item = Result<Tracked<Message>, BoxError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(delivery) = self.ready.pop_front() {
                self.tags.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(delivery.tag);
                let token = self.tracker.issue();
                return Poll::Ready(Some(Ok(Tracked { value: delivery.message, token })));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            let Messages { consumer, scratch, ready, ended, .. } = &mut *self;
            match ready!(consumer.poll_chunk(cx, CHUNK, scratch)) {
                Ok(0) => *ended = true,
                Ok(_) => ready.extend(scratch.drain(..)),
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
/// A broker that fails, or loses a confirm, fails the run; what was not confirmed is given back to the source.
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

impl Sink for Publisher {
    type Item = Message;

    async fn write(&mut self, messages: &mut Vec<Message>) -> Result<(), SinkError> {
        let mut rejected: Vec<(usize, BoxError)> = Vec::new();
        // Indices into `messages` of those that are still to be stored.
        let mut left: Vec<usize> = (0..messages.len()).collect();
        let mut wait = FULL_WAIT;
        loop {
            let batch = Batch::to(&self.to, left.iter().map(|&index| messages[index].clone()));
            let outcomes = self.broker.publish_batch(batch).await?;
            let mut again = Vec::new();
            for (position, outcome) in outcomes.into_others() {
                let index = left[position];
                match outcome {
                    PublishOutcome::Confirmed => {}
                    PublishOutcome::Refused(Refusal::Full { .. }) => again.push(index),
                    PublishOutcome::Refused(refusal) => rejected.push((index, refusal.into())),
                    PublishOutcome::Unroutable(returned) => rejected.push((index, returned.reason.into())),
                    PublishOutcome::Unconfirmed(error) => return Err(error.into()),
                }
            }
            if again.is_empty() {
                break;
            }
            left = again;
            sleep(wait).await;
            wait = (wait * 2).min(FULL_WAIT_MAX);
        }
        if rejected.is_empty() { Ok(()) } else { Err(SinkError::Rejected(rejected)) }
    }

    fn chunk(&self) -> usize {
        self.chunk
    }
}
