//! Figures of a client: all of its connections, producers and consumers count here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::broker::Statistics;
use crate::publisher::ConfirmLatency;

#[derive(Default)]
pub(crate) struct Counters {
    pub(super) connects: AtomicU64,
    pub(super) failed_connects: AtomicU64,
    pub(super) bytes_in: AtomicU64,
    pub(super) bytes_out: AtomicU64,
    pub(super) writes: AtomicU64,
    pub(super) published: AtomicU64,
    pub(super) settled: AtomicU64,
    connections: AtomicU64,
    consumers: AtomicU64,
    confirms: Mutex<ConfirmLatency>,
}

/// One more, as long as it is there.
pub(super) struct Present {
    counters: Arc<Counters>,
    of: fn(&Counters) -> &AtomicU64,
}

impl Drop for Present {
    fn drop(&mut self) {
        (self.of)(&self.counters).fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts so many more.
pub(super) fn add(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

impl Counters {
    /// A connection that is there from now on.
    pub(super) fn connection(self: &Arc<Self>) -> Present {
        self.present(|counters| &counters.connections)
    }

    /// A consumer that is there from now on.
    pub(super) fn consumer(self: &Arc<Self>) -> Present {
        self.present(|counters| &counters.consumers)
    }

    fn present(self: &Arc<Self>, of: fn(&Counters) -> &AtomicU64) -> Present {
        add(of(self), 1);
        Present { counters: self.clone(), of }
    }

    /// A batch took this long to be confirmed.
    pub(super) fn confirmed(&self, time: Duration) {
        self.confirms.lock().add(time, 1);
    }

    pub(super) fn statistics(&self) -> Statistics {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        // Read before what is published: it never exceeds that.
        let settled = count(&self.settled);
        let published = count(&self.published);
        Statistics {
            // The stream protocol has no word for it: publishes wait to be confirmed.
            blocked: None,
            connections: count(&self.connections),
            connects: count(&self.connects),
            failed_connects: count(&self.failed_connects),
            bytes_in: count(&self.bytes_in),
            bytes_out: count(&self.bytes_out),
            writes: count(&self.writes),
            published,
            settled,
            in_flight: published.saturating_sub(settled),
            confirm_latency: self.confirms.lock().clone(),
            consumers: count(&self.consumers),
        }
    }
}
