//! What a queue holds: pure data under the queue's lock. Reads no clock, wakes nobody, touches no disk.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::task::Waker;

use millstream_message::dead::DeadReason;
use millstream_message::{ConsumeOptions, Overflow, Queue as Spec};

use crate::record::Mark;
use crate::run::{Bare, Items, Run, Taken};

mod delayed;
mod moving;

/// A message on its way to the dead-letter exchange. It still belongs to the queue until it has arrived.
#[derive(Debug, Clone)]
pub(crate) struct Dead {
    pub(crate) taken: Taken,
    pub(crate) reason: DeadReason,
    pub(crate) detail: Option<String>,
    pub(crate) stage: Option<String>,
}

/// Items and bytes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) items: u64,
    pub(crate) bytes: u64,
}

impl Count {
    pub(crate) fn add(&mut self, items: u64, bytes: u64) {
        self.items += items;
        self.bytes += bytes;
    }

    pub(crate) fn sub(&mut self, items: u64, bytes: u64) {
        self.items -= items;
        self.bytes -= bytes;
    }
}

/// What is delivered and not settled, or dead and not yet where dead letters go.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Unacked {
    pub(crate) count: Count,
    /// What it keeps in memory, as the budget is charged for it.
    pub(crate) weight: u64,
}

impl Unacked {
    pub(crate) fn add(&mut self, taken: &Taken) {
        self.count.add(1, u64::from(taken.size));
        self.weight += taken.weight;
    }

    pub(crate) fn sub(&mut self, taken: &Taken) {
        self.count.sub(1, u64::from(taken.size));
        self.weight -= taken.weight;
    }
}

/// A delivery that is not settled.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) taken: Taken,
    /// When its lease ends, in milliseconds since 1970, or never.
    pub(crate) until: u64,
}

/// One consumer's part of the queue.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: u64,
    pub(crate) options: ConsumeOptions,
    /// Unsettled deliveries by tag; the first has `first_tag`. Settled ones in the middle are `None`.
    pub(crate) held: VecDeque<Option<Held>>,
    pub(crate) first_tag: u64,
    pub(crate) unsettled: Count,
    /// Settled, and the settlement is not durable: a crash would deliver these again. They use up prefetch, so that a
    /// crash never delivers more than the prefetch twice.
    pub(crate) undurable: u64,
    /// Those of them that are not even handed to the log.
    pub(crate) unwritten: u64,
    pub(crate) waker: Option<Waker>,
    /// Takes no more.
    pub(crate) stopped: bool,
    /// Takes nothing until it goes on.
    pub(crate) paused: bool,
    pub(crate) stop_when_empty: bool,
}

impl Session {
    /// How many more it may receive now.
    pub(crate) fn credit(&self) -> (usize, u64) {
        let held = usize::try_from(self.unsettled.items + self.undurable).unwrap_or(usize::MAX);
        let items = self.options.prefetch_items.get().saturating_sub(held);
        let limit = self.options.prefetch_bytes.get() as u64;
        // One message larger than the limit goes alone, or the consumer would wait for ever.
        let bytes =
            if self.unsettled.items == 0 { u64::MAX } else { limit.saturating_sub(self.unsettled.bytes) };
        (items, bytes)
    }

    /// Notes that settled deliveries are not durable yet. True when they press so on the prefetch that they should be
    /// written at once.
    pub(crate) fn owe(&mut self, count: u64) -> bool {
        self.undurable += count;
        self.unwritten += count;
        2 * self.unwritten >= self.options.prefetch_items.get() as u64
    }

    pub(crate) fn next_tag(&self) -> u64 {
        self.first_tag + self.held.len() as u64
    }

    /// Takes the delivery with this tag out; `None` when it is not held.
    pub(crate) fn release(&mut self, tag: u64) -> Option<Taken> {
        let index = usize::try_from(tag.checked_sub(self.first_tag)?).ok()?;
        let held = self.held.get_mut(index)?.take()?;
        self.unsettled.sub(1, u64::from(held.taken.size));
        Some(held.taken)
    }

    /// Forgets settled tags at the front.
    pub(crate) fn trim(&mut self) {
        while let Some(None) = self.held.front() {
            self.held.pop_front();
            self.first_tag += 1;
        }
    }
}

/// Everything a queue holds.
#[derive(Debug)]
pub(crate) struct State {
    /// Ready runs by priority level, each in the order of the queue.
    pub(crate) levels: Vec<VecDeque<Run>>,
    /// Runs that are not due, by due time and place.
    pub(crate) delayed: BTreeMap<(u64, u64), Run>,
    /// Those of them that are in memory and could be put out.
    delayed_here: BTreeSet<(u64, u64)>,
    /// On their way to the dead-letter exchange, oldest first.
    pub(crate) outbox: VecDeque<Dead>,
    pub(crate) sessions: Vec<Session>,
    pub(crate) next_session: u64,
    /// The next identity and place. Starts at 1.
    pub(crate) next_seq: u64,
    pub(crate) ready: Count,
    pub(crate) unacked: Unacked,
    pub(crate) waiting: Count,
    /// Submitted, not yet stored: counts toward the limits.
    pub(crate) reserved: Count,
    /// Whether anything ready may expire, so that queues without TTL read no clock.
    pub(crate) expiring: bool,
    /// Settled in memory, not yet written: identities, in the order of settling.
    pub(crate) settled: Vec<Range<u64>>,
    /// Delivered or given back, not yet written.
    pub(crate) marks: Vec<Mark>,
    pub(crate) deleted: bool,
}

impl State {
    pub(crate) fn new(spec: &Spec) -> State {
        let levels = usize::from(spec.max_priority.unwrap_or(0)) + 1;
        State {
            levels: (0..levels).map(|_| VecDeque::new()).collect(),
            delayed: BTreeMap::new(),
            delayed_here: BTreeSet::new(),
            outbox: VecDeque::new(),
            sessions: Vec::new(),
            next_session: 1,
            next_seq: 1,
            ready: Count::default(),
            unacked: Unacked::default(),
            waiting: Count::default(),
            reserved: Count::default(),
            expiring: false,
            settled: Vec::new(),
            marks: Vec::new(),
            deleted: false,
        }
    }

    /// Puts a run at its place among the ready ones.
    pub(crate) fn insert(&mut self, run: Run) {
        self.ready.add(u64::from(run.count), run.bytes);
        self.expiring |= run.traits.expires != u64::MAX;
        let level = &mut self.levels[usize::from(run.traits.level)];
        let at = match level.back() {
            Some(last) if last.order > run.order => level.partition_point(|other| other.order < run.order),
            _ => level.len(),
        };
        if at == level.len() {
            level.push_back(run);
        } else {
            level.insert(at, run);
        }
    }

    /// The head run of the highest level that has one.
    pub(crate) fn head(&mut self) -> Option<&mut Run> {
        self.levels.iter_mut().rev().find_map(VecDeque::front_mut)
    }

    /// Takes the first ready message. `Err`: it must be read from the log first.
    pub(crate) fn pop(&mut self) -> Option<Result<Taken, ()>> {
        let level = self.levels.iter_mut().rev().find(|level| !level.is_empty())?;
        let run = level.front_mut().expect("the level is not empty");
        let Some(taken) = run.pop() else { return Some(Err(())) };
        if run.count == 0 {
            level.pop_front();
        }
        self.ready.sub(1, u64::from(taken.size));
        Some(Ok(taken))
    }

    /// Removes a ready run that is only in the log, wherever it is; `None` when it has changed or gone.
    pub(crate) fn take_ready(&mut self, run: &Run) -> Option<Run> {
        let level = &mut self.levels[usize::from(run.traits.level)];
        let at = level.iter().position(|known| known.seq == run.seq)?;
        if level[at].count != run.count || !level[at].items.same(&run.items) {
            return None;
        }
        let old = level.remove(at)?;
        self.ready.sub(u64::from(old.count), old.bytes);
        Some(old)
    }

    /// Removes the run at the head of a level whole.
    pub(crate) fn pop_run(&mut self, level: usize) -> Option<Run> {
        let run = self.levels[level].pop_front()?;
        self.ready.sub(u64::from(run.count), run.bytes);
        Some(run)
    }

    /// The level whose head has expired.
    pub(crate) fn expired_level(&self, now: u64) -> Option<usize> {
        if !self.expiring {
            return None;
        }
        self.levels.iter().position(|level| level.front().is_some_and(|run| run.traits.expires <= now))
    }

    /// Everything that is in the log, for a checkpoint: runs with their due time (0: none), and single messages. What is
    /// held is counted as delivered once more, what is on its way to the dead letters is back in the queue.
    pub(crate) fn image(&self) -> (Vec<(Run, u64)>, Vec<Bare>) {
        let ready = self.levels.iter().flatten().map(|run| (run, 0));
        let delayed = self.delayed.iter().map(|((due, _), run)| (run, *due));
        let runs = ready.chain(delayed).filter(|(run, _)| run.is_logged());
        let runs = runs.map(|(run, due)| (run.clone(), due)).collect();
        let mut singles = Vec::new();
        for held in self.sessions.iter().flat_map(|session| session.held.iter().flatten()) {
            let mut bare = held.taken.bare();
            bare.traits.deliveries = bare.traits.deliveries.saturating_add(1);
            singles.push(bare);
        }
        singles.extend(self.outbox.iter().map(|dead| dead.taken.bare()));
        singles.retain(|bare| bare.position != 0);
        (runs, singles)
    }

    /// When something happens by itself next: a head expires, a delay or a lease ends.
    pub(crate) fn next_due(&self) -> u64 {
        let heads = self.levels.iter().filter_map(|level| level.front().map(|run| run.traits.expires));
        let delayed = self.delayed.keys().next().map(|(due, _)| *due);
        let leases = self.sessions.iter().filter_map(|session| {
            // Leases of a session all have one length, so the oldest ends first.
            session.held.iter().flatten().next().map(|held| held.until)
        });
        heads.chain(delayed).chain(leases).min().unwrap_or(u64::MAX)
    }

    /// Which limit of the queue one more message of this size would break.
    pub(crate) fn over(&self, spec: &Spec, bytes: u64) -> Option<String> {
        let held = self.ready.items + self.waiting.items + self.reserved.items;
        let held_bytes = self.ready.bytes + self.waiting.bytes + self.reserved.bytes;
        match (spec.max_items, spec.max_bytes) {
            (Some(max), _) if held + 1 > max.get() => Some(format!("max_items {max}")),
            (_, Some(max)) if held_bytes + bytes > max.get() => Some(format!("max_bytes {max}")),
            _ => None,
        }
    }

    /// Whether the queue holds more than it may and drops its head.
    pub(crate) fn overflows(&self, spec: &Spec) -> bool {
        let items = self.ready.items + self.waiting.items;
        let bytes = self.ready.bytes + self.waiting.bytes;
        spec.overflow == Overflow::DropHead
            && self.ready.items > 0
            && (spec.max_items.is_some_and(|max| items > max.get())
                || spec.max_bytes.is_some_and(|max| bytes > max.get()))
    }

    /// Notes that messages are off the queue for good, to be written to the log.
    pub(crate) fn settle(&mut self, seqs: Range<u64>) {
        match self.settled.last_mut() {
            Some(last) if last.end == seqs.start => last.end = seqs.end,
            _ => self.settled.push(seqs),
        }
    }

    /// Notes how often messages were delivered, to be written to the log.
    pub(crate) fn mark(&mut self, seq: u64, deliveries: u32, due: u64) {
        match self.marks.last_mut() {
            Some(last) if last.seqs.end == seq && last.deliveries == deliveries && last.due == due => {
                last.seqs.end += 1
            }
            _ => self.marks.push(Mark { seqs: seq..seq + 1, deliveries, due }),
        }
    }

    pub(crate) fn session(&mut self, id: u64) -> Option<&mut Session> {
        self.sessions.iter_mut().find(|session| session.id == id)
    }

    /// Whether nothing is ready, delayed or about to be.
    pub(crate) fn is_empty(&self) -> bool {
        self.ready.items == 0 && self.waiting.items == 0 && self.reserved.items == 0
    }

    /// Wakers of the consumers that wait.
    pub(crate) fn wakers(&mut self, into: &mut Vec<Waker>) {
        into.extend(self.sessions.iter_mut().filter_map(|session| session.waker.take()));
    }

    /// Puts runs at the back out to the log until `bytes` bodies are gone; returns how many bytes went.
    ///
    /// From the back, because the front is what consumers come to next.
    pub(crate) fn put_out(&mut self, bytes: u64) -> u64 {
        let mut gone = 0;
        for level in &mut self.levels {
            let mut at = level.len();
            while at > 1 && gone < bytes {
                at -= 1;
                if !level[at].is_here() {
                    // What lies before was put out when this was, except for a few runs around the head.
                    break;
                }
                if level[at].is_logged() {
                    gone += level[at].put_out();
                }
                // The neighbour behind was put out in an earlier step of this loop, the one before in an earlier call.
                if at + 1 < level.len() && !level[at].is_here() {
                    let next = level.remove(at + 1).expect("it is within the level");
                    if !level[at].merge(&next) {
                        level.insert(at + 1, next);
                    }
                }
            }
            if at > 0 && at < level.len() && !level[at - 1].is_here() && !level[at].is_here() {
                let next = level.remove(at).expect("it is within the level");
                if !level[at - 1].merge(&next) {
                    level.insert(at, next);
                }
            }
        }
        gone + self.put_out_delayed(bytes.saturating_sub(gone))
    }
}

impl Items {
    /// Whether both are the same messages of the same batch.
    pub(crate) fn same(&self, other: &Items) -> bool {
        match (self, other) {
            (Items::Out { out: a, start: s }, Items::Out { out: b, start: t }) => {
                std::sync::Arc::ptr_eq(a, b) && s == t
            }
            _ => false,
        }
    }
}
