//! Settling deliveries: what becomes of them, and who says so.

use std::fmt;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::Tag;

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
    /// How many may be; `None` where there is nothing to settle.
    fn prefetch(&self) -> Option<Prefetch>;
    /// Lets so many be from now on.
    fn set_prefetch(&self, items: NonZeroUsize);
}

/// How many deliveries of a consumer may be unsettled at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefetch {
    /// How many now.
    pub items: NonZeroUsize,
    /// As [`prefetch_most`](super::ConsumeOptions::prefetch_most).
    pub most: Option<NonZeroUsize>,
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
    /// [`Consumer`](super::Consumer) that is read one by one takes some ahead, up to 64, which still come.
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

    /// How many deliveries may be unsettled at once now; `None` of replies, which nobody settles.
    pub fn prefetch(&self) -> Option<Prefetch> {
        self.0.prefetch()
    }

    /// Lets so many deliveries be unsettled at once from now on; zero is read as one. The prefetch in bytes stays as it is.
    /// What is in hand stays there: if that is more, nothing comes until enough of it is settled. A broker in another
    /// process is asked anew, which takes a round trip; RabbitMQ's streams and queues with a single active consumer are not
    /// asked twice, and hand out no more than they were asked for when the consumer began. What is fixed for a flow
    /// ([`ConsumeOptions::prefetch`](super::ConsumeOptions::prefetch)) can still be changed here.
    pub fn set_prefetch(&self, items: usize) {
        self.0.set_prefetch(NonZeroUsize::new(items).unwrap_or(NonZeroUsize::MIN));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_tags_becomes_merged_ranges() {
        assert_eq!(ranges([5, 1, 2, 2, 3, 9]), vec![1..4, 5..6, 9..10]);
        assert!(ranges([]).is_empty());
    }
}
