//! What is in force: a configuration with all that outlives it, replaced as a whole.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::gateway::Shared;

/// The configuration that holds for what begins now. Whoever has begun keeps the one it began with.
pub(crate) struct Current {
    /// That of `shared`.
    version: AtomicU64,
    shared: Mutex<Arc<Shared>>,
}

impl Current {
    pub(crate) fn new(shared: Shared) -> Current {
        Current { version: AtomicU64::new(shared.version), shared: Mutex::new(Arc::new(shared)) }
    }

    pub(crate) fn get(&self) -> Arc<Shared> {
        self.shared.lock().clone()
    }

    /// Makes what was seen before into what holds now. As long as nothing was replaced that is one load, of what all threads only read.
    pub(crate) fn renew(&self, seen: &mut Arc<Shared>) {
        if seen.version != self.version.load(Ordering::Acquire) {
            *seen = self.get();
        }
    }

    pub(crate) fn replace(&self, shared: Arc<Shared>) {
        let mut now = self.shared.lock();
        self.version.store(shared.version, Ordering::Release);
        let before = std::mem::replace(&mut *now, shared);
        // It may be the last to hold whole routes.
        drop(now);
        drop(before);
    }
}
