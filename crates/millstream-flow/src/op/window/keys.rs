//! What is open, by key.

use std::hash::{BuildHasher, Hash};

use hashbrown::{DefaultHashBuilder, HashTable};

/// States by key, each in a slot that stays its own while it lives.
pub(super) struct Keys<Q, S> {
    table: HashTable<usize>,
    slots: Vec<Option<Entry<Q, S>>>,
    free: Vec<usize>,
    hasher: DefaultHashBuilder,
    /// Where to look for the next key to give up.
    oldest: usize,
}

pub(super) struct Entry<Q, S> {
    pub(super) key: Q,
    hash: u64,
    pub(super) state: S,
}

impl<Q: Hash + Eq, S> Keys<Q, S> {
    pub(super) fn new() -> Self {
        Keys {
            table: HashTable::new(),
            slots: Vec::new(),
            free: Vec::new(),
            hasher: DefaultHashBuilder::default(),
            oldest: 0,
        }
    }

    /// What one key takes: its slot and its place in the table, with what both have in reserve.
    pub(super) const ENTRY_BYTES: usize = 2 * (size_of::<Option<Entry<Q, S>>>() + 2 * size_of::<usize>() + 1);

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    /// How many slots there are, in use or not.
    pub(super) fn slots(&self) -> usize {
        self.slots.len()
    }

    /// The slot of a key, which is made if there is none. Whether it is new.
    #[inline]
    pub(super) fn slot(&mut self, key: Q, make: impl FnOnce() -> S) -> (usize, bool) {
        let Keys { table, slots, free, hasher, .. } = self;
        let hash = hasher.hash_one(&key);
        let known = |slot: &usize| slots[*slot].as_ref().is_some_and(|entry| entry.key == key);
        if let Some(&slot) = table.find(hash, known) {
            return (slot, false);
        }
        let entry = Some(Entry { key, hash, state: make() });
        let slot = match free.pop() {
            Some(slot) => {
                slots[slot] = entry;
                slot
            }
            None => {
                slots.push(entry);
                slots.len() - 1
            }
        };
        table.insert_unique(hash, slot, |slot| slots[*slot].as_ref().map_or(0, |entry| entry.hash));
        (slot, true)
    }

    /// The slot of a key, if it has one.
    pub(super) fn find(&self, key: &Q) -> Option<usize> {
        let known = |slot: &usize| self.slots[*slot].as_ref().is_some_and(|entry| entry.key == *key);
        self.table.find(self.hasher.hash_one(key), known).copied()
    }

    #[inline]
    pub(super) fn get(&mut self, slot: usize) -> Option<&mut Entry<Q, S>> {
        self.slots.get_mut(slot)?.as_mut()
    }

    pub(super) fn remove(&mut self, slot: usize) -> Option<Entry<Q, S>> {
        let entry = self.slots.get_mut(slot)?.take()?;
        if let Ok(place) = self.table.find_entry(entry.hash, |other| *other == slot) {
            place.remove();
        }
        self.free.push(slot);
        Some(entry)
    }

    /// Gives up a key for the one at `slot`, which is new, if there are more than may be: by turns, and so one of those that
    /// have been there for longest.
    pub(super) fn evict(&mut self, slot: usize, max: usize) -> Option<Entry<Q, S>> {
        if self.table.len() <= max {
            return None;
        }
        for _ in 0..self.slots.len() {
            let at = self.oldest;
            self.oldest = (self.oldest + 1) % self.slots.len();
            if at != slot && self.slots[at].is_some() {
                return self.remove(at);
            }
        }
        None
    }
}
