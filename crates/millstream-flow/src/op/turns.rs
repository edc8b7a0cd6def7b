//! Calls of one key, one after the other.

use std::hash::{BuildHasher, Hash};
use std::sync::Arc;

use hashbrown::DefaultHashBuilder;
use tokio::sync::{Mutex, MutexGuard};

use crate::op::map_async::Concurrency;
use crate::scope::Scope;

/// How many times as many groups of keys as calls there are: few keys then wait for another key's call.
const GROUPS_PER_CALL: usize = 16;

/// Whose turn it is, for each group of keys.
pub(crate) struct Turns {
    /// Fair: who asks first has it first, and calls ask in the order of their items.
    locks: Arc<[Mutex<()>]>,
    hasher: DefaultHashBuilder,
}

/// The group of one key.
pub(crate) struct Turn {
    locks: Arc<[Mutex<()>]>,
    group: usize,
}

impl Turns {
    pub(crate) fn new(concurrency: &Concurrency, scope: &Scope, kind: &'static str) -> Self {
        let groups = concurrency.knob(String::new()).bounds().1.saturating_mul(GROUPS_PER_CALL);
        scope.add_memory(kind.into(), groups.saturating_mul(size_of::<Mutex<()>>()));
        Turns { locks: (0..groups).map(|_| Mutex::new(())).collect(), hasher: DefaultHashBuilder::default() }
    }

    pub(crate) fn of(&self, key: &impl Hash) -> Turn {
        let group = (self.hasher.hash_one(key) % self.locks.len() as u64) as usize;
        Turn { locks: self.locks.clone(), group }
    }
}

impl Turn {
    /// Returns when no earlier call of the group is under way.
    pub(crate) async fn wait(&self) -> MutexGuard<'_, ()> {
        self.locks[self.group].lock().await
    }
}
