//! What the parts of one broker handle share: what was declared, and what is being brought elsewhere.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use hashbrown::HashSet;
use millstream_message::{Address, Message, Queue, QueueKind, Tag};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::consumer::ConsumerCore;
use crate::delays::Declared;
use crate::link::Link;
use crate::replies::Replies;
use crate::topology::Topology;

/// Shared by a handle's links, consumers and tasks.
pub(crate) struct Hub {
    pub(crate) topology: Mutex<Topology>,
    pub(crate) known: Arc<Known>,
    /// Where the dead letters of queues go that were looked at and not declared, for those that have any.
    letters: Mutex<HashMap<String, (String, Option<String>)>>,
    /// Queues of positions that are known to be there.
    pub(crate) positions: Mutex<HashSet<String>>,
    consumers: Mutex<Vec<Weak<ConsumerCore>>>,
    consumers_made: AtomicU64,
    /// What this handle has delayed.
    delayed: Mutex<Delayed>,
    epoch: Instant,
    /// Consumers of each queue that are being cancelled.
    cancelling: Mutex<HashMap<String, usize>>,
    /// Notified whenever one has been.
    pub(crate) any_cancelled: Notify,
    errands: Mutex<VecDeque<Errand>>,
    /// How many errands there are, those that are being run included.
    errands_open: AtomicUsize,
    /// Notified when there are errands.
    pub(crate) any_errands: Notify,
}

/// How many messages of each queue wait, by the slot of time in which they are due.
#[derive(Default)]
struct Delayed {
    queues: HashMap<String, BTreeMap<u128, u64>>,
    /// With more queues than this, those of which nothing waits any more are forgotten.
    queues_max: usize,
}

/// What is known of the broker when something is published.
#[derive(Default)]
pub(crate) struct Known {
    /// Exchanges that are there: publishing to another closes the channel.
    pub(crate) exchanges: Mutex<HashSet<String>>,
    pub(crate) replies: Replies,
    /// Queues in which messages wait for their time.
    pub(crate) waiting: Declared,
}

/// A delivery that is to be brought elsewhere before it is acked. There are never more than prefetch allows.
pub(crate) struct Errand {
    pub(crate) consumer: Arc<ConsumerCore>,
    pub(crate) tag: Tag,
    pub(crate) message: Message,
    pub(crate) address: Address,
    pub(crate) redeliveries: u32,
    pub(crate) way: Way,
    pub(crate) _open: Open,
}

/// Counts an errand until it is done or given up.
pub(crate) struct Open(Arc<Hub>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.errands_open.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Where to.
#[derive(Clone, Debug)]
pub(crate) enum Way {
    /// To the dead letters: an exchange, and a key unless each message keeps its own.
    DeadLetter { to: (String, Option<String>), reason: String, stage: Option<String> },
    /// Back to its queue, after a while.
    Later(Duration),
}

/// How exactly the end of a delay is known, in milliseconds.
const SLOT: u128 = 50;

impl Hub {
    pub(crate) fn new() -> Arc<Hub> {
        Arc::new(Hub {
            topology: Default::default(),
            known: Default::default(),
            letters: Default::default(),
            positions: Default::default(),
            consumers: Default::default(),
            consumers_made: AtomicU64::new(0),
            delayed: Default::default(),
            epoch: Instant::now(),
            cancelling: Default::default(),
            any_cancelled: Notify::new(),
            errands: Default::default(),
            errands_open: AtomicUsize::new(0),
            any_errands: Notify::new(),
        })
    }

    /// Where a queue's dead letters go, if it was declared or looked at through this handle and has any.
    pub(crate) fn dead_letters_of(&self, queue: &str) -> Option<(String, Option<String>)> {
        if let Some(declared) = self.topology.lock().queues.get(queue) {
            return letters_of(declared);
        }
        self.letters.lock().get(queue).cloned()
    }

    /// A queue is like that, or is not there, says the broker.
    pub(crate) fn learn(&self, name: &str, queue: Option<&Queue>) {
        let mut letters = self.letters.lock();
        match queue.and_then(letters_of) {
            Some(to) => letters.insert(name.to_owned(), to),
            None => letters.remove(name),
        };
    }

    /// Whether a queue is known to deliver to one consumer at a time, the one that was first.
    pub(crate) fn has_one_active_consumer(&self, queue: &str) -> bool {
        self.topology.lock().queues.get(queue).is_some_and(|queue| queue.single_active_consumer)
    }

    /// Whether a queue is a stream, if it was declared through this handle.
    pub(crate) fn is_stream(&self, queue: &str) -> Option<bool> {
        self.topology.lock().queues.get(queue).map(|queue| queue.kind == Some(QueueKind::Stream))
    }

    /// A number for a consumer, which no other of this handle has.
    pub(crate) fn next_consumer(&self) -> u64 {
        self.consumers_made.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn add_consumer(&self, consumer: &Arc<ConsumerCore>) {
        let mut consumers = self.consumers.lock();
        consumers.retain(|consumer| consumer.strong_count() > 0);
        consumers.push(Arc::downgrade(consumer));
    }

    pub(crate) fn consumers(&self) -> Vec<Arc<ConsumerCore>> {
        self.consumers.lock().iter().filter_map(Weak::upgrade).collect()
    }

    pub(crate) fn consumers_of(&self, link: &Arc<Link>) -> Vec<Arc<ConsumerCore>> {
        let mut consumers = self.consumers();
        consumers.retain(|consumer| Arc::ptr_eq(consumer.link(), link) && !consumer.has_ended());
        consumers
    }

    /// A message for this queue is on its way, or waits for its time.
    pub(crate) fn delay(&self, queue: &str, delay: Duration) {
        let now = self.epoch.elapsed();
        let mut delayed = self.delayed.lock();
        let slots = delayed.queues.entry(queue.to_owned()).or_default();
        forget(slots, now);
        *slots.entry(slot(now + delay)).or_insert(0) += 1;
        if delayed.queues.len() > delayed.queues_max {
            delayed.queues.retain(|_, slots| {
                forget(slots, now);
                !slots.is_empty()
            });
            // Twice what is left, so that looking through them costs little for each.
            delayed.queues_max = (2 * delayed.queues.len()).max(16);
        }
    }

    /// How many messages of a queue wait for their time, of those that this handle has delayed.
    pub(crate) fn delayed(&self, queue: &str) -> u64 {
        let mut delayed = self.delayed.lock();
        let Some(slots) = delayed.queues.get_mut(queue) else { return 0 };
        forget(slots, self.epoch.elapsed());
        let count = slots.values().sum();
        if count == 0 {
            delayed.queues.remove(queue);
        }
        count
    }

    pub(crate) fn cancelling(&self, queue: &str) {
        *self.cancelling.lock().entry(queue.to_owned()).or_insert(0) += 1;
    }

    pub(crate) fn cancelled(&self, queue: &str) {
        let mut cancelling = self.cancelling.lock();
        if let Some(count) = cancelling.get_mut(queue) {
            *count -= 1;
            if *count == 0 {
                cancelling.remove(queue);
            }
        }
        drop(cancelling);
        self.any_cancelled.notify_waiters();
    }

    /// Waits until no consumer of the queue is being cancelled: until then the broker counts it.
    pub(crate) async fn none_cancelling(&self, queue: &str) {
        loop {
            let notified = self.any_cancelled.notified();
            let mut notified = std::pin::pin!(notified);
            notified.as_mut().enable();
            if !self.cancelling.lock().contains_key(queue) {
                return;
            }
            notified.await;
        }
    }

    pub(crate) fn send(&self, errands: Vec<Errand>) {
        if !errands.is_empty() {
            self.errands.lock().extend(errands);
            self.any_errands.notify_one();
        }
    }

    /// One errand more.
    pub(crate) fn open_errand(self: &Arc<Self>) -> Open {
        self.errands_open.fetch_add(1, Ordering::AcqRel);
        Open(self.clone())
    }

    /// How many errands are not done.
    pub(crate) fn errands_open(&self) -> usize {
        self.errands_open.load(Ordering::Acquire)
    }

    pub(crate) fn take_errands(&self) -> VecDeque<Errand> {
        std::mem::take(&mut self.errands.lock())
    }
}

fn letters_of(queue: &Queue) -> Option<(String, Option<String>)> {
    Some((queue.dead_letter_exchange.clone()?, queue.dead_letter_key.clone()))
}

/// The slot of which a time is part, or its end.
fn slot(time: Duration) -> u128 {
    time.as_millis() / SLOT + 1
}

/// Takes the slots out that have passed.
fn forget(slots: &mut BTreeMap<u128, u64>, now: Duration) {
    while let Some(first) = slots.first_entry()
        && *first.key() < slot(now)
    {
        first.remove();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn delays_that_have_passed_are_forgotten_though_nobody_asks() {
        let hub = Hub::new();
        for _ in 0..1000 {
            hub.delay("q", Duration::from_secs(1));
            tokio::time::advance(Duration::from_millis(100)).await;
        }
        let slots = hub.delayed.lock().queues["q"].len();
        assert!(slots <= 21, "{slots}");
        assert_eq!(hub.delayed("q"), 10);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(hub.delayed("q"), 0);
        assert!(hub.delayed.lock().queues.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn queues_of_which_nothing_waits_any_more_are_forgotten_though_nobody_asks() {
        let hub = Hub::new();
        for number in 0..1000 {
            hub.delay(&format!("q{number}"), Duration::from_secs(1));
            tokio::time::advance(Duration::from_millis(100)).await;
        }
        let queues = hub.delayed.lock().queues.len();
        assert!(queues <= 2 * 11, "{queues}");
        assert_eq!(hub.delayed("q999"), 1, "what waits is known");
    }
}
