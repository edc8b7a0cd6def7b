//! The idle buffers of one tier that all threads share.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::lease::Boxed;

#[derive(Default)]
pub(crate) struct Shelf {
    idle: Mutex<Idle>,
    /// Buffers of this tier that exist.
    total: AtomicU64,
    total_high: AtomicU64,
    waits: AtomicU64,
    /// Leases that wanted one of these and got a smaller one.
    smaller: AtomicU64,
}

#[derive(Default)]
struct Idle {
    buffers: Vec<Boxed>,
    /// The fewest that were idle since the last trim: so many nobody needed.
    fewest: usize,
    /// Nobody will take anything any more.
    closed: bool,
}

impl Shelf {
    pub(crate) fn take(&self) -> Option<Boxed> {
        self.take_along(0, &mut Vec::new())
    }

    /// Takes one, and up to so many more along.
    pub(crate) fn take_along(&self, along: usize, more: &mut Vec<Boxed>) -> Option<Boxed> {
        let mut idle = self.idle.lock();
        let first = idle.buffers.pop();
        let left = idle.buffers.len().saturating_sub(along);
        more.extend(idle.buffers.drain(left..));
        idle.fewest = idle.fewest.min(left);
        first
    }

    /// Puts buffers there; when it is closed they are freed.
    pub(crate) fn put(&self, buffers: impl Iterator<Item = Boxed>) {
        let mut idle = self.idle.lock();
        if !idle.closed {
            return idle.buffers.extend(buffers);
        }
        drop(idle);
        buffers.for_each(drop);
    }

    /// Frees what is there, and from now on what comes.
    pub(crate) fn close(&self) {
        let mut idle = self.idle.lock();
        idle.closed = true;
        let buffers = std::mem::take(&mut idle.buffers);
        // What they belong to may go with the last of them.
        drop(idle);
        drop(buffers);
    }

    pub(crate) fn trim(&self) -> Vec<Boxed> {
        let mut idle = self.idle.lock();
        let unneeded = idle.fewest;
        // The buffers at the bottom are those that were not taken.
        let freed: Vec<_> = idle.buffers.drain(..unneeded).collect();
        idle.fewest = idle.buffers.len();
        self.total.fetch_sub(freed.len() as u64, Ordering::Relaxed);
        freed
    }

    pub(crate) fn created(&self) {
        let total = self.total.fetch_add(1, Ordering::Relaxed) + 1;
        self.total_high.fetch_max(total, Ordering::Relaxed);
    }

    pub(crate) fn freed(&self) {
        self.total.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn waited(&self) {
        self.waits.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn made_smaller(&self) {
        self.smaller.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn smaller(&self) -> u64 {
        self.smaller.load(Ordering::Relaxed)
    }

    pub(crate) fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    pub(crate) fn total_high(&self) -> u64 {
        self.total_high.load(Ordering::Relaxed)
    }

    pub(crate) fn waits(&self) -> u64 {
        self.waits.load(Ordering::Relaxed)
    }
}
