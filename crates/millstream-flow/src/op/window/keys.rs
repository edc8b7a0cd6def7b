//! What is open, by key.

use std::hash::{BuildHasher, Hash};

use hashbrown::{DefaultHashBuilder, HashTable};

/// States by key, each in a slot that stays its own while it lives.
pub(super) struct Keys<Q, S> {
    table: HashTable<usize>,
    slots: Vec<Option<Entry<Q, S>>>,
    free: Vec<usize>,
    hasher: DefaultHashBuilder,
    /// The keys in the order in which they came: the next to give up, and the newest.
    oldest: usize,
    newest: usize,
}

/// No slot.
const NONE: usize = usize::MAX;

pub(super) struct Entry<Q, S> {
    pub(super) key: Q,
    hash: u64,
    /// The slots of the keys that came just before and just after.
    older: usize,
    newer: usize,
    pub(super) state: S,
}

impl<Q: Hash + Eq, S> Keys<Q, S> {
    pub(super) fn new() -> Self {
        Keys {
            table: HashTable::new(),
            slots: Vec::new(),
            free: Vec::new(),
            hasher: DefaultHashBuilder::default(),
            oldest: NONE,
            newest: NONE,
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
        let Keys { table, slots, free, hasher, oldest, newest } = self;
        let hash = hasher.hash_one(&key);
        let known = |slot: &usize| slots[*slot].as_ref().is_some_and(|entry| entry.key == key);
        if let Some(&slot) = table.find(hash, known) {
            return (slot, false);
        }
        let entry = Some(Entry { key, hash, older: *newest, newer: NONE, state: make() });
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
        match slots.get_mut(*newest) {
            Some(Some(before)) => before.newer = slot,
            _ => *oldest = slot,
        }
        *newest = slot;
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
        match self.slots.get_mut(entry.older) {
            Some(Some(older)) => older.newer = entry.newer,
            _ => self.oldest = entry.newer,
        }
        match self.slots.get_mut(entry.newer) {
            Some(Some(newer)) => newer.older = entry.older,
            _ => self.newest = entry.older,
        }
        self.free.push(slot);
        Some(entry)
    }

    /// Gives up the key that has been there for longest, if there are more than may be.
    pub(super) fn evict(&mut self, max: usize) -> Option<Entry<Q, S>> {
        if self.table.len() > max { self.remove(self.oldest) } else { None }
    }
}
