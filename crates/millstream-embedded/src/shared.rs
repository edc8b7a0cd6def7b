//! What every part of one broker shares: its clock, numbers, memory budget, log, and the bell of its upkeep.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use millstream_message::{BrokerError, BrokerErrorKind};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::clock::{Clock, NEVER};
use crate::journal::Journal;
use crate::queue::Queue;
use crate::settings::Settings;

/// One broker's common parts.
pub(crate) struct Shared {
    pub(crate) clock: Clock,
    pub(crate) settings: Settings,
    pub(crate) budget: Budget,
    pub(crate) bell: Bell,
    /// `None` for `memory:`.
    pub(crate) journal: Option<Journal>,
    pub(crate) closed: AtomicBool,
}

impl Shared {
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub(crate) fn check_open(&self) -> Result<(), BrokerError> {
        if self.is_closed() { Err(closed()) } else { Ok(()) }
    }
}

/// The error of everything that is asked of a closed broker.
pub(crate) fn closed() -> BrokerError {
    BrokerError::new(BrokerErrorKind::Unavailable, "the broker is closed; open it again")
}

/// Bytes of messages in memory, with all that keeps them there, over all queues.
pub(crate) struct Budget {
    used: AtomicU64,
    /// Of these, bytes in queues that are in memory alone.
    transient: AtomicU64,
    limit: u64,
    waiting: AtomicU64,
    room: Notify,
    /// Nobody waits any more: the broker is closed.
    ended: AtomicBool,
}

impl Budget {
    pub(crate) fn new(limit: u64) -> Budget {
        Budget {
            used: AtomicU64::new(0),
            transient: AtomicU64::new(0),
            limit,
            waiting: AtomicU64::new(0),
            room: Notify::new(),
            ended: AtomicBool::new(false),
        }
    }

    /// Lets go all who wait for room, now and later.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        self.room.notify_waiters();
    }

    /// For a queue that is `durable` or in memory alone.
    pub(crate) fn charge(&self, bytes: u64, durable: bool) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
        if !durable {
            self.transient.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// What such a queue was charged for.
    pub(crate) fn refund(&self, bytes: u64, durable: bool) {
        if bytes == 0 {
            return;
        }
        self.used.fetch_sub(bytes, Ordering::SeqCst);
        if !durable {
            self.transient.fetch_sub(bytes, Ordering::SeqCst);
        }
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.room.notify_waiters();
        }
    }

    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Bytes above the limit.
    pub(crate) fn excess(&self) -> u64 {
        self.used.load(Ordering::Relaxed).saturating_sub(self.limit)
    }

    /// Whether what is in memory alone exceeds the limit.
    pub(crate) fn is_full_of_transient(&self) -> bool {
        self.transient.load(Ordering::Relaxed) > self.limit
    }

    /// Waits until the limit is not exceeded. A batch may then exceed it once by its own size, so that no batch is
    /// too large to ever pass.
    pub(crate) async fn room(&self) {
        self.wait_below(&self.used).await;
    }

    /// The same of what is in memory alone: whoever adds to it does not wait for what durable queues have in hand.
    pub(crate) async fn room_for_transient(&self) {
        self.wait_below(&self.transient).await;
    }

    async fn wait_below(&self, bytes: &AtomicU64) {
        if bytes.load(Ordering::Relaxed) <= self.limit {
            return;
        }
        let _waiting = Waiting::enter(&self.waiting);
        loop {
            let notified = self.room.notified();
            tokio::pin!(notified);
            // Registered before looking, so that a refund in between is not missed.
            notified.as_mut().enable();
            if bytes.load(Ordering::SeqCst) <= self.limit || self.ended.load(Ordering::SeqCst) {
                return;
            }
            notified.await;
        }
    }
}

/// Counts a waiter for as long as it lives, also when its future is dropped.
struct Waiting<'a>(&'a AtomicU64);

impl Waiting<'_> {
    fn enter(count: &AtomicU64) -> Waiting<'_> {
        count.fetch_add(1, Ordering::SeqCst);
        Waiting(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// How the rest of the broker calls its upkeep task.
pub(crate) struct Bell {
    pub(crate) ring: Notify,
    /// When the upkeep wakes by itself, in milliseconds since 1970.
    pub(crate) due: AtomicU64,
    /// Queues with settlements that are not written.
    pub(crate) settled: Mutex<Vec<Arc<Queue>>>,
    /// Whether to write them now instead of waiting for company.
    pub(crate) hurry: AtomicBool,
    /// Queues with dead letters to send.
    pub(crate) letters: Mutex<Vec<Arc<Queue>>>,
}

impl Bell {
    pub(crate) fn new() -> Bell {
        Bell {
            ring: Notify::new(),
            due: AtomicU64::new(NEVER),
            settled: Mutex::new(Vec::new()),
            hurry: AtomicBool::new(false),
            letters: Mutex::new(Vec::new()),
        }
    }

    /// Something happens by itself at `due`.
    pub(crate) fn wake_by(&self, due: u64) {
        if due < self.due.fetch_min(due, Ordering::AcqRel) {
            self.ring.notify_one();
        }
    }

    pub(crate) fn letters(&self, queue: &Arc<Queue>) {
        self.letters.lock().push(queue.clone());
        self.ring.notify_one();
    }

    pub(crate) fn settled(&self, queue: &Arc<Queue>) {
        let mut list = self.settled.lock();
        list.push(queue.clone());
        let first = list.len() == 1;
        drop(list);
        if first {
            self.ring.notify_one();
        }
    }

    pub(crate) fn hurry(&self) {
        if !self.hurry.swap(true, Ordering::AcqRel) {
            self.ring.notify_one();
        }
    }
}
