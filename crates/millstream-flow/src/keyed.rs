//! A queue whose entries are also found by key.

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hash};

use hashbrown::{DefaultHashBuilder, HashTable};

/// Values in the order in which their keys came, each key once. Adding, finding, and taking the first cost the same however many
/// there are, and nothing is allocated once it has its size.
pub(crate) struct KeyedQueue<Q, V> {
    row: VecDeque<Entry<Q, V>>,
    /// The number of the row's first entry, counted from the first there ever was.
    first: u64,
    places: HashTable<u64>,
    hasher: DefaultHashBuilder,
}

struct Entry<Q, V> {
    key: Q,
    hash: u64,
    value: V,
}

/// The hash of a key that is not here.
#[derive(Clone, Copy)]
pub(crate) struct Absent(u64);

impl<Q, V> Default for KeyedQueue<Q, V> {
    fn default() -> Self {
        KeyedQueue {
            row: VecDeque::new(),
            first: 0,
            places: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
        }
    }
}

impl<Q, V> KeyedQueue<Q, V> {
    /// What an entry takes: the row doubles as it grows, and the table is 7/8 full at most.
    pub(crate) const ENTRY_BYTES: usize = 2 * (size_of::<Entry<Q, V>>() + size_of::<u64>() + 1);

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.row.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.row.is_empty()
    }

    /// How many keys are found.
    pub(crate) fn keys(&self) -> usize {
        self.places.len()
    }

    pub(crate) fn front(&self) -> Option<&V> {
        self.row.front().map(|entry| &entry.value)
    }

    /// Takes the entry whose key came first.
    pub(crate) fn pop_front(&mut self) -> Option<V> {
        let Entry { hash, value, .. } = self.row.pop_front()?;
        if let Ok(entry) = self.places.find_entry(hash, |place| *place == self.first) {
            entry.remove();
        }
        self.first += 1;
        Some(value)
    }

    /// Takes all of them.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = V> {
        self.places.clear();
        self.first = 0;
        self.row.drain(..).map(|entry| entry.value)
    }
}

impl<Q: Hash + Eq, V> KeyedQueue<Q, V> {
    /// What a key is found by.
    #[inline]
    pub(crate) fn hash(&self, key: &Q) -> u64 {
        self.hasher.hash_one(key)
    }

    /// The value of a key.
    #[inline]
    pub(crate) fn find(&mut self, key: &Q) -> Result<&mut V, Absent> {
        self.find_by(self.hash(key), key)
    }

    /// As [`find`](Self::find), of a key that has this [`hash`](Self::hash).
    #[inline]
    pub(crate) fn find_by(&mut self, hash: u64, key: &Q) -> Result<&mut V, Absent> {
        let KeyedQueue { row, first, places, .. } = self;
        let at = |place: &u64| (place - *first) as usize;
        match places.find(hash, |place| row[at(place)].key == *key).map(at) {
            Some(place) => Ok(&mut row[place].value),
            None => Err(Absent(hash)),
        }
    }

    /// Has a key of this [`hash`](Self::hash) be found no more. Its value, which stays in the row until its turn comes.
    pub(crate) fn hide(&mut self, hash: u64, key: &Q) -> Option<&mut V> {
        let KeyedQueue { row, first, places, .. } = self;
        let at = |place: &u64| (place - *first) as usize;
        let entry = places.find_entry(hash, |place| row[at(place)].key == *key).ok()?;
        let (place, _) = entry.remove();
        Some(&mut row[at(&place)].value)
    }

    /// Takes out of the row what is not to be kept. What is hidden must be among that.
    pub(crate) fn compact(&mut self, keep: impl Fn(&V) -> bool) {
        let KeyedQueue { row, first, places, .. } = self;
        row.retain(|entry| keep(&entry.value));
        places.clear();
        for (at, entry) in row.iter().enumerate() {
            places.insert_unique(entry.hash, *first + at as u64, |place| row[(place - *first) as usize].hash);
        }
    }

    /// Adds a key that [`find`](Self::find) did not, since when no other was added.
    #[inline]
    pub(crate) fn push_back(&mut self, key: Q, Absent(hash): Absent, value: V) {
        self.push_back_by(hash, key, value);
    }

    /// Adds a key of this [`hash`](Self::hash) that is not here.
    #[inline]
    pub(crate) fn push_back_by(&mut self, hash: u64, key: Q, value: V) {
        let KeyedQueue { row, first, places, .. } = self;
        let place = *first + row.len() as u64;
        row.push_back(Entry { key, hash, value });
        places.insert_unique(hash, place, |place| row[(place - *first) as usize].hash);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUNDS: u32 = if cfg!(miri) { 1_000 } else { 100_000 };

    #[test]
    fn a_keyed_queue_is_a_queue_and_a_map_at_once() {
        let mut dice = fastrand::Rng::with_seed(7);
        let mut queue = KeyedQueue::<u8, u32>::default();
        let mut model = VecDeque::<(u8, u32)>::new();
        for round in 0..ROUNDS {
            match dice.u8(..16) {
                0..8 => {
                    let key = dice.u8(..40);
                    let known = model.iter_mut().find(|entry| entry.0 == key);
                    match (queue.find(&key), known) {
                        (Ok(value), Some(entry)) => {
                            assert_eq!(*value, entry.1);
                            (*value, entry.1) = (round, round);
                        }
                        (Err(absent), None) => {
                            queue.push_back(key, absent, round);
                            model.push_back((key, round));
                        }
                        (found, known) => panic!("{key}: {:?} in the place of {known:?}", found.ok()),
                    }
                }
                15 if round % 50 == 0 => {
                    assert!(queue.drain().eq(model.drain(..).map(|entry| entry.1)));
                }
                _ => assert_eq!(queue.pop_front(), model.pop_front().map(|entry| entry.1)),
            }
            assert_eq!((queue.len(), queue.is_empty()), (model.len(), model.is_empty()));
            assert_eq!(queue.front(), model.front().map(|entry| &entry.1));
        }
    }
}
