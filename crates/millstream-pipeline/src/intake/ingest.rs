//! A feed into the buffer's queue: what was read is stored, and with it how far was read.

use crate::exhausted;
use crate::feed::{Chunk, Feed, NotSafe};
use crate::file::units::show_size;
use crate::item::refused;
use crate::trouble::Trouble;
use millstream_flow::{BoxError, chain};
use millstream_message::{
    Address, Batch, Broker, BrokerError, BrokerErrorKind, Message, Outcomes, PublishOutcome, Refusal,
};
use std::error::Error;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;

/// The first and the longest wait for room in a full queue.
const FULL_WAIT: Duration = Duration::from_millis(2);
const FULL_WAIT_MAX: Duration = Duration::from_millis(200);

/// How often the consumer's pace is looked at: it takes far longer to consume what it is behind.
const STEP_WAIT: Duration = Duration::from_millis(2);

/// Moves a feed's items into a queue.
pub(crate) struct Ingest {
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) queue: Address,
    /// Items stored by this run.
    pub(crate) stored: Arc<AtomicU64>,
    /// Turns true when no more may be accepted.
    pub(crate) stop: watch::Receiver<bool>,
    /// Whether the queue has a limit, so that a refused batch must be kept to be tried again.
    pub(crate) limited: bool,
    /// Bytes the queue may be ahead of its consumer before a source that can wait does: reading back what
    /// the broker has put out of memory costs more than reading the source later.
    pub(crate) ahead_max: u64,
    /// Bytes of a message, on the average of what was stored last.
    pub(crate) mean_bytes: AtomicU64,
    pub(crate) trouble: Arc<Trouble>,
}

impl Ingest {
    /// Runs to the end of the feed, or until told to stop.
    ///
    /// A batch and its position are stored in one step where the broker can, else one after the other, and one batch
    /// follows the other: a position never runs ahead of its items. The next chunk is read while the one before it is being stored.
    pub(crate) async fn run(self, mut feed: Box<dyn Feed>) -> Result<(), BoxError> {
        let name = feed.position_name().map(str::to_owned);
        let mut next = read(&mut *feed, self.stop.clone()).await?;
        while let Some(chunk) = next {
            if feed.can_wait() {
                self.keep_step().await?;
            }
            let (stored, following) =
                tokio::join!(self.store(chunk, name.as_deref()), read(&mut *feed, self.stop.clone()));
            stored?;
            next = following?;
        }
        Ok(())
    }

    /// Waits while the consumer is too far behind.
    async fn keep_step(&self) -> Result<(), BoxError> {
        while !*self.stop.borrow() {
            let stats = self.broker.stats(self.queue.key()).await?;
            // Not every broker counts bytes; then as many as what was stored has on the average.
            let ahead =
                stats.ready_bytes.max(stats.ready.saturating_mul(self.mean_bytes.load(Ordering::Relaxed)));
            if ahead <= self.ahead_max {
                break;
            }
            tokio::time::sleep(STEP_WAIT).await;
        }
        Ok(())
    }

    async fn store(&self, chunk: Chunk, name: Option<&str>) -> Result<(), BoxError> {
        let count = chunk.items.len() as u64;
        let mut messages: Vec<Message> = chunk.items.into_iter().map(|item| item.into_message()).collect();
        if let Some(why) = self.too_large(&mut messages, chunk.reply.is_some()) {
            if let Some(reply) = chunk.reply {
                reply.send(Err(NotSafe::TooLarge(why)));
            }
            return Ok(());
        }
        let mut batch = Batch::to(&self.queue, messages);
        let bytes: usize = batch.publishes.iter().map(|publish| publish.message.size()).sum();
        self.mean_bytes.store(bytes as u64 / count.max(1), Ordering::Relaxed);
        if let (Some(name), Some(position)) = (name, chunk.position) {
            batch = batch.with_position(name, position);
        } else if self.limited && batch.publishes.len() > 1 && self.broker.features().atomic_batches {
            // Without a position the messages of a chunk may be stored one without the other; a position of
            // its own, never read, makes them one step like all others.
            batch = batch.with_position(format!("{}/last", self.queue.key()), Vec::new());
        }
        let stored = self.publish(batch).await;
        if stored.is_ok() {
            self.stored.fetch_add(count, Ordering::AcqRel);
        }
        let Some(reply) = chunk.reply else { return stored };
        match &stored {
            Ok(()) => {
                self.trouble.refuse(None);
                reply.send(Ok(()));
            }
            Err(error) => {
                let why = chain(&**error);
                if matches!(error.downcast_ref(), Some(Refusal::TooLarge { .. })) {
                    // The client can send less at once: it is its error, not the run's.
                    reply.send(Err(NotSafe::TooLarge(why)));
                    return Ok(());
                }
                reply.send(Err(NotSafe::Ended(why.clone())));
                if passes(&**error) {
                    // Who sent it still has it, and the next one may find room.
                    self.trouble.refuse(Some(why));
                    return Ok(());
                }
            }
        }
        stored
    }

    /// Looks for messages that the broker would never take. Where somebody can be told, the first of them is what is told;
    /// else each is replaced by one that says so, for the error policy to meet behind the queue.
    fn too_large(&self, messages: &mut [Message], tell: bool) -> Option<String> {
        let max = self.broker.features().max_message_bytes;
        for message in messages.iter_mut().filter(|message| message.size() as u64 > max) {
            let (size, most) = (show_size(message.size() as u64), show_size(max));
            let why = format!("the item is {size} as a message; its broker takes {most}");
            if tell {
                return Some(why);
            }
            *message = refused(message, why);
        }
        None
    }

    /// Publishes the batch, waiting while the queue is full.
    async fn publish(&self, mut batch: Batch) -> Result<(), BoxError> {
        let mut wait = FULL_WAIT;
        loop {
            let again = if self.limited { batch.clone() } else { Batch::default() };
            let outcomes = self.broker.publish_batch(batch).await?;
            let refused: Vec<bool> =
                (0..again.publishes.len()).map(|at| !outcomes.get(at).is_confirmed()).collect();
            match first_problem(outcomes) {
                None => return Ok(()),
                Some(PublishOutcome::Refused(Refusal::Full { queue, limit })) => {
                    if self.broker.stats(&queue).await?.total() == 0 {
                        return Err(format!("{} items read together are more than queue `{queue}` holds ({limit}); raise the limit", again.publishes.len()).into());
                    }
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(FULL_WAIT_MAX);
                    batch = again;
                    if !self.broker.features().atomic_batches {
                        let mut refused = refused.iter();
                        batch.publishes.retain(|_| refused.next().copied().unwrap_or(false));
                    }
                }
                Some(PublishOutcome::Refused(refusal)) => return Err(refusal.into()),
                Some(PublishOutcome::Unroutable(returned)) => return Err(returned.reason.into()),
                Some(PublishOutcome::Unconfirmed(error)) => return Err(error.into()),
                Some(PublishOutcome::Confirmed) => return Ok(()),
            }
        }
    }
}

/// Whether what could not be stored may be stored later: the disk is full, or the broker did not answer.
fn passes(error: &(dyn Error + 'static)) -> bool {
    std::iter::successors(Some(error), |&error| error.source()).any(|error| {
        let unavailable = error
            .downcast_ref::<BrokerError>()
            .is_some_and(|error| error.kind() == BrokerErrorKind::Unavailable);
        let full = error.downcast_ref::<io::Error>().is_some_and(exhausted::is_out_of_room);
        unavailable || full
    })
}

/// The next chunk, or `None` when the feed has ended or is told to stop.
async fn read(feed: &mut dyn Feed, mut stop: watch::Receiver<bool>) -> Result<Option<Chunk>, BoxError> {
    tokio::select! {
        biased;
        // An error here means that nobody is left who could say stop.
        Ok(_) = stop.wait_for(|stop| *stop) => Ok(None),
        chunk = feed.next() => chunk,
    }
}

/// What stands in the way of an atomic batch: the reason itself rather than "another message was refused".
fn first_problem(outcomes: Outcomes) -> Option<PublishOutcome> {
    let mut others = outcomes.into_others().into_iter().map(|(_, outcome)| outcome);
    let first = others.next()?;
    if !matches!(first, PublishOutcome::Refused(Refusal::Atomic { .. })) {
        return Some(first);
    }
    let real = others.find(|outcome| !matches!(outcome, PublishOutcome::Refused(Refusal::Atomic { .. })));
    Some(real.unwrap_or(first))
}
