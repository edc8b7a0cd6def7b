//! The idle buffers of one tier that all threads share.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

#[derive(Default)]
pub(crate) struct Shelf {
    idle: Mutex<Idle>,
    /// Buffers of this tier that exist.
    total: AtomicU64,
    total_high: AtomicU64,
    waits: AtomicU64,
}

#[derive(Default)]
struct Idle {
    buffers: Vec<Vec<u8>>,
    /// The fewest that were idle since the last trim: so many nobody needed.
    fewest: usize,
}

impl Shelf {
    pub(crate) fn take(&self) -> Option<Vec<u8>> {
        let mut idle = self.idle.lock();
        let buffer = idle.buffers.pop();
        idle.fewest = idle.fewest.min(idle.buffers.len());
        buffer
    }

    pub(crate) fn put(&self, buffer: Vec<u8>) {
        self.idle.lock().buffers.push(buffer);
    }

    pub(crate) fn trim(&self) -> Vec<Vec<u8>> {
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
