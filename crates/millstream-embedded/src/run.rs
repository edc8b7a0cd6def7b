//! Runs: neighbouring messages of one queue, in memory or put out to the log.

use std::mem;
use std::sync::Arc;

use millstream_message::{Message, Publish, Queue};

use crate::clock::{NEVER, millis};

/// Messages that were stored together, shared by every queue they were routed to.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) publishes: Vec<Publish>,
    /// Where each is in the log, 0 for those that are not there; empty when none is.
    pub(crate) positions: Vec<u64>,
}

impl Stored {
    /// Whether the message at this place is in the log.
    pub(crate) fn is_logged(&self, at: u32) -> bool {
        self.positions.get(at as usize).is_some_and(|position| *position != 0)
    }
}

/// Where one message is in the log, and its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot {
    /// Bytes behind the run's base.
    pub(crate) delta: u32,
    pub(crate) size: u32,
}

/// Messages that are only in the log. Eight bytes a message, however they were published, because neighbours merge.
#[derive(Debug)]
pub(crate) struct PutOut {
    pub(crate) base: u64,
    pub(crate) slots: Vec<Slot>,
}

/// Where the messages of a run are.
#[derive(Debug, Clone)]
pub(crate) enum Items {
    /// In memory, from this place of the batch on.
    Here { batch: Arc<Stored>, start: u32 },
    /// In the log only, from this slot on.
    Out { out: Arc<PutOut>, start: u32 },
}

/// What the messages of a run have in common besides being neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Traits {
    /// Index of the priority level.
    pub(crate) level: u8,
    /// How many times they were delivered.
    pub(crate) deliveries: u32,
    /// When they expire, in milliseconds since 1970, or never.
    pub(crate) expires: u64,
}

impl Traits {
    /// What a queue makes of a message published at `now`, and how long the message is delayed.
    pub(crate) fn of(spec: &Queue, message: &Message, now: u64) -> (Traits, u64) {
        let queue_ttl = spec.ttl.map_or(NEVER, millis);
        if message.is_plain() {
            return (Traits { level: 0, deliveries: 0, expires: now.saturating_add(queue_ttl) }, 0);
        }
        let properties = message.properties();
        let delay = properties.delay.map_or(0, millis);
        let ttl = properties.ttl.map_or(NEVER, millis).min(queue_ttl);
        let level = properties.priority.min(spec.max_priority.unwrap_or(0));
        // The time to live begins when the message becomes visible.
        let expires = now.saturating_add(delay).saturating_add(ttl);
        (Traits { level, deliveries: 0, expires }, delay)
    }
}

/// Neighbouring messages of one queue: consecutive in identity (`seq`) and in place (`order`).
///
/// A queue is a sequence of runs, so that a batch of a thousand messages costs a queue as much as one message does.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    /// Place of the first message in the queue.
    pub(crate) order: u64,
    /// Identity of the first message: what acks name. Given once, never reused.
    pub(crate) seq: u64,
    pub(crate) count: u32,
    pub(crate) bytes: u64,
    /// What its messages keep in memory, as the budget is charged for it: 0 when they are only in the log.
    pub(crate) weight: u64,
    pub(crate) traits: Traits,
    pub(crate) items: Items,
}

/// One message taken out of a run.
#[derive(Debug, Clone)]
pub(crate) struct Taken {
    pub(crate) order: u64,
    pub(crate) seq: u64,
    /// 0 when it is not in the log.
    pub(crate) position: u64,
    pub(crate) size: u32,
    /// Its part of the run's weight.
    pub(crate) weight: u64,
    pub(crate) traits: Traits,
    pub(crate) publish: Publish,
}

/// A message of which only the place is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bare {
    pub(crate) order: u64,
    pub(crate) seq: u64,
    pub(crate) position: u64,
    pub(crate) size: u32,
    pub(crate) traits: Traits,
}

impl Bare {
    /// The message as a run of its own that is only in the log.
    pub(crate) fn into_run(self) -> Run {
        let slots = vec![Slot { delta: 0, size: self.size }];
        Run {
            order: self.order,
            seq: self.seq,
            count: 1,
            bytes: u64::from(self.size),
            weight: 0,
            traits: self.traits,
            items: Items::Out { out: Arc::new(PutOut { base: self.position, slots }), start: 0 },
        }
    }
}

/// Most slots that merging puts into one run, so that splitting and loading stay cheap.
const MERGE_MAX: usize = 4096;

impl Run {
    /// The place behind the last message.
    pub(crate) fn order_end(&self) -> u64 {
        self.order + u64::from(self.count)
    }

    pub(crate) fn is_here(&self) -> bool {
        matches!(self.items, Items::Here { .. })
    }

    /// Whether its messages are in the log: all or none.
    pub(crate) fn is_logged(&self) -> bool {
        self.count > 0 && self.slot(0).0 != 0
    }

    /// Its messages, if they are in memory.
    pub(crate) fn publishes(&self) -> Option<&[Publish]> {
        match &self.items {
            Items::Here { batch, start } => {
                let from = *start as usize;
                Some(&batch.publishes[from..from + self.count as usize])
            }
            Items::Out { .. } => None,
        }
    }

    /// Position and size of the `i`-th message.
    pub(crate) fn slot(&self, i: u32) -> (u64, u32) {
        match &self.items {
            Items::Here { batch, start } => {
                let at = (start + i) as usize;
                let position = batch.positions.get(at).copied().unwrap_or(0);
                (position, size_of(&batch.publishes[at]))
            }
            Items::Out { out, start } => {
                let slot = out.slots[(start + i) as usize];
                (out.base + u64::from(slot.delta), slot.size)
            }
        }
    }

    /// Removes the first message; `None` when it is only in the log (or the run is empty).
    pub(crate) fn pop(&mut self) -> Option<Taken> {
        if self.count == 0 {
            return None;
        }
        let weight = self.part(1);
        let Items::Here { batch, start } = &mut self.items else { return None };
        let at = *start as usize;
        let publish = batch.publishes[at].clone();
        let size = size_of(&publish);
        let taken = Taken {
            order: self.order,
            seq: self.seq,
            position: batch.positions.get(at).copied().unwrap_or(0),
            size,
            weight,
            traits: self.traits,
            publish,
        };
        *start += 1;
        self.advance(1, u64::from(size), weight);
        Some(taken)
    }

    /// The weight of `count` messages: what leaves a run and what stays add up to what it was.
    fn part(&self, count: u32) -> u64 {
        self.weight * u64::from(count) / u64::from(self.count)
    }

    fn advance(&mut self, count: u32, bytes: u64, weight: u64) {
        self.order += u64::from(count);
        self.seq += u64::from(count);
        self.count -= count;
        self.bytes -= bytes;
        self.weight -= weight;
    }

    /// Splits off the first `count` messages (fewer than there are).
    pub(crate) fn split_front(&mut self, count: u32) -> Run {
        debug_assert!(count < self.count, "splitting keeps both sides");
        let bytes = (0..count).map(|i| u64::from(self.slot(i).1)).sum();
        let weight = self.part(count);
        let front = Run { count, bytes, weight, ..self.clone() };
        match &mut self.items {
            Items::Here { start, .. } | Items::Out { start, .. } => *start += count,
        }
        self.advance(count, bytes, weight);
        front
    }

    /// Forgets the messages in memory; they must be in the log. Returns the weight that is gone.
    pub(crate) fn put_out(&mut self) -> u64 {
        let Items::Here { batch, start } = &self.items else { return 0 };
        let (from, to) = (*start as usize, *start as usize + self.count as usize);
        let base = batch.positions[from];
        // A batch is at most some MiB in the log, so its positions lie within 32 bits of each other.
        let slots = (from..to)
            .map(|at| Slot {
                delta: u32::try_from(batch.positions[at] - base).expect("a batch is contiguous in the log"),
                size: size_of(&batch.publishes[at]),
            })
            .collect();
        self.items = Items::Out { out: Arc::new(PutOut { base, slots }), start: 0 };
        mem::take(&mut self.weight)
    }

    /// Points the messages at other places of the log and forgets them in memory. Returns the weight that is gone.
    pub(crate) fn relocate(&mut self, positions: Vec<u64>) -> u64 {
        let sizes: Vec<u32> = (0..self.count).map(|i| self.slot(i).1).collect();
        let base = positions.first().copied().unwrap_or(0);
        let slots = positions.iter().zip(sizes).map(|(position, size)| Slot {
            delta: u32::try_from(position - base).expect("copied within some MiB of the log"),
            size,
        });
        self.items = Items::Out { out: Arc::new(PutOut { base, slots: slots.collect() }), start: 0 };
        mem::take(&mut self.weight)
    }

    /// Takes a single message in at the end, under the conditions of [`merge`](Run::merge).
    pub(crate) fn push(&mut self, next: &Bare) -> bool {
        let Items::Out { out, start } = &mut self.items else { return false };
        let adjoining = self.order + u64::from(self.count) == next.order
            && self.seq + u64::from(self.count) == next.seq
            && self.traits == next.traits
            && (*start + self.count) as usize == out.slots.len()
            && out.slots.len() < MERGE_MAX;
        let delta = next.position.checked_sub(out.base).and_then(|delta| u32::try_from(delta).ok());
        let (true, Some(delta), Some(out)) = (adjoining, delta, Arc::get_mut(out)) else { return false };
        out.slots.push(Slot { delta, size: next.size });
        self.count += 1;
        self.bytes += u64::from(next.size);
        true
    }

    /// Takes `next` in at the end when both are only in the log and nothing tells them apart. True when it did.
    pub(crate) fn merge(&mut self, next: &Run) -> bool {
        let adjoining = self.order_end() == next.order
            && self.seq + u64::from(self.count) == next.seq
            && self.traits == next.traits;
        if !adjoining {
            return false;
        }
        let (Items::Out { out, start }, Items::Out { out: more, start: from }) =
            (&mut self.items, &next.items)
        else {
            return false;
        };
        let Some(out) = Arc::get_mut(out) else { return false };
        let added = &more.slots[*from as usize..(*from + next.count) as usize];
        let kept = *start as usize + self.count as usize;
        let fits = kept + added.len() <= MERGE_MAX
            && more.base >= out.base
            && added
                .last()
                .is_some_and(|last| u32::try_from(more.base - out.base + u64::from(last.delta)).is_ok());
        if !fits {
            return false;
        }
        let shift = u32::try_from(more.base - out.base).expect("checked with the last delta added");
        out.slots.truncate(kept);
        out.slots.extend(added.iter().map(|slot| Slot { delta: slot.delta + shift, size: slot.size }));
        self.count += next.count;
        self.bytes += next.bytes;
        true
    }
}

/// The size of a message as budgets and limits count it, in 32 bits: a broker takes no message near 4 GiB.
pub(crate) fn size_of(publish: &Publish) -> u32 {
    u32::try_from(publish.message.size()).unwrap_or(u32::MAX)
}

/// What a message keeps in memory, its place in a [`Stored`] included.
pub(crate) fn weight_of(publish: &Publish) -> u64 {
    let place = mem::size_of::<Publish>() + mem::size_of::<u64>();
    (publish.message.footprint() - mem::size_of::<Message>() + place) as u64
}

impl Taken {
    /// All of it but the message.
    pub(crate) fn bare(&self) -> Bare {
        let Taken { order, seq, position, size, traits, .. } = *self;
        Bare { order, seq, position, size, traits }
    }

    /// The message as a run of its own, to put it back.
    pub(crate) fn into_run(self) -> Run {
        let positions = if self.position == 0 { Vec::new() } else { vec![self.position] };
        let batch = Arc::new(Stored { publishes: vec![self.publish], positions });
        Run {
            order: self.order,
            seq: self.seq,
            count: 1,
            bytes: u64::from(self.size),
            weight: self.weight,
            traits: self.traits,
            items: Items::Here { batch, start: 0 },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_message::Address;

    fn run(order: u64, count: u32) -> Run {
        let to = Address::queue("q");
        let publishes =
            (0..count).map(|i| Publish { to: to.clone(), message: Message::new(vec![0; i as usize]) });
        let batch = Stored {
            publishes: publishes.collect(),
            positions: (0..u64::from(count)).map(|i| 1000 * order + 10 * i + 8).collect(),
        };
        let bytes = (0..u64::from(count)).sum();
        let traits = Traits { level: 0, deliveries: 0, expires: u64::MAX };
        Run {
            order,
            seq: order,
            count,
            bytes,
            weight: 100 * u64::from(count),
            traits,
            items: Items::Here { batch: Arc::new(batch), start: 0 },
        }
    }

    #[test]
    fn put_out_neighbours_merge_and_keep_every_slot() {
        let (mut a, mut b) = (run(1, 3), run(4, 2));
        let slots: Vec<_> = (0..3).map(|i| a.slot(i)).chain((0..2).map(|i| b.slot(i))).collect();
        let _ = a.split_front(1);
        assert_eq!((a.put_out(), b.put_out()), (200, 200), "what was split off took its part of the weight");
        assert!(a.merge(&b));
        assert_eq!((a.order, a.count, a.bytes, a.weight), (2, 4, 1 + 2 + 1, 0));
        assert_eq!((0..4).map(|i| a.slot(i)).collect::<Vec<_>>(), slots[1..]);
        let front = a.split_front(2);
        assert_eq!((front.count, a.count, a.slot(0)), (2, 2, slots[3]));
    }

    #[test]
    fn runs_that_differ_do_not_merge() {
        let (mut a, mut b) = (run(1, 3), run(5, 2));
        a.put_out();
        b.put_out();
        assert!(!a.merge(&b), "there is a gap");
        let mut c = run(4, 1);
        c.put_out();
        c.traits.expires = 7;
        assert!(!a.merge(&c), "they expire at different times");
    }
}
