//! One of something for each key, for a bounded number of keys.

use std::fmt;
use std::hash::{BuildHasher, Hash};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hashbrown::{DefaultHashBuilder, HashSet, HashTable};
use tokio::time::Instant;

/// Whether forgetting something would change what it does.
pub trait Idle {
    /// True if a new one would do the same from now on, and nobody has a clone that could still be used: beside a new one that
    /// would be a second for one key.
    fn is_idle(&self) -> bool;
}

/// One breaker, limiter or bulkhead for each key: a tenant, a host, a type of request.
///
/// At most `capacity` keys have one. A further key takes the place of one that is [idle](Idle), rather of one that was not asked
/// for lately, found by the *clock* algorithm (Corbató, "A Paging Experiment with the Multics System", 1968); if the 32 that it
/// looks at are all in use, it shares one with all others that find no place, so that the number is bounded. It goes on with that one
/// until it is idle, for it would have two limits otherwise; but no longer than a minute or two, nor when twice as many keys as there are
/// places, or 64, have come to share after it: then it may have a place of its own beside what it has used of the other. So a crowd
/// that has gone leaves nobody behind.
/// Clones are the same.
///
/// ```
/// use millstream_resilience::{Keyed, Rate, RateLimiter};
/// use std::time::Duration;
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// let limiters = Keyed::new(10_000, |_: &str| RateLimiter::new(Rate::new(1, Duration::from_secs(1))));
/// assert!(limiters.of("alice").try_acquire(1).is_ok());
/// assert!(limiters.of("bob").try_acquire(1).is_ok());
/// assert!(limiters.of("alice").try_acquire(1).is_err());
/// # }
/// ```
pub struct Keyed<K: ?Sized + ToOwned, V>(Arc<Shared<K, V>>);

struct Shared<K: ?Sized + ToOwned, V> {
    capacity: usize,
    /// Of a key, and whether it is for all that find no place, of whom this is the first.
    make: Box<Make<K, V>>,
    places: Mutex<Places<K::Owned, V>>,
}

type Make<K, V> = dyn Fn(&K, bool) -> V + Send + Sync;

struct Places<K, V> {
    table: HashTable<usize>,
    hasher: DefaultHashBuilder,
    slots: Vec<Slot<K, V>>,
    hand: usize,
    shared: Option<V>,
    sharing: Sharing,
}

/// The hashes of those who share what is for all that find no place: the newer ones and the older ones, which are forgotten together.
struct Sharing {
    newer: HashSet<u64>,
    older: HashSet<u64>,
    /// Since when the newer ones have come.
    since: Instant,
    newer_max: usize,
}

impl Sharing {
    fn new(capacity: usize) -> Self {
        Sharing {
            newer: HashSet::new(),
            older: HashSet::new(),
            since: Instant::now(),
            newer_max: SHARING.max(capacity),
        }
    }

    fn is_empty(&self) -> bool {
        self.newer.is_empty() && self.older.is_empty()
    }

    fn clear(&mut self) {
        self.newer.clear();
        self.older.clear();
    }

    fn knows(&self, hash: u64) -> bool {
        self.newer.contains(&hash) || self.older.contains(&hash)
    }

    fn add(&mut self, hash: u64) {
        if self.newer.len() >= self.newer_max {
            self.turn();
        }
        if self.is_empty() {
            self.since = Instant::now();
        }
        self.newer.insert(hash);
    }

    /// Forgets those who have shared for long.
    fn age(&mut self) {
        let age = self.since.elapsed();
        if age >= 2 * KNOWN {
            self.clear();
        } else if age >= KNOWN {
            self.turn();
        }
    }

    fn turn(&mut self) {
        std::mem::swap(&mut self.newer, &mut self.older);
        self.newer.clear();
        self.since = Instant::now();
    }
}

struct Slot<K, V> {
    key: K,
    hash: u64,
    value: V,
    /// Asked for since the hand came by.
    used: bool,
}

/// How many places are looked at for one that can be had.
const LOOKS: usize = 32;
/// How many keys that share are known at least, and for how long.
const SHARING: usize = 64;
const KNOWN: Duration = Duration::from_secs(60);

impl<K, V> Keyed<K, V>
where
    K: ?Sized + ToOwned + Hash + Eq,
    K::Owned: std::borrow::Borrow<K>,
    V: Idle + Clone,
{
    /// For up to `capacity` keys, each with what `make` makes, which must not ask for another key meanwhile. What all share that
    /// find no place is made for the first of them.
    ///
    /// # Panics
    /// If `capacity` is 0.
    pub fn new(capacity: usize, make: impl Fn(&K) -> V + Send + Sync + 'static) -> Self {
        Self::make(capacity, Box::new(move |key, _| make(key)))
    }

    /// As [`new`](Self::new), but `make` knows for what it makes: for a key, or with `None` for all that find no place, who are
    /// named otherwise than after one of them.
    ///
    /// # Panics
    /// If `capacity` is 0.
    pub fn with_others(capacity: usize, make: impl Fn(Option<&K>) -> V + Send + Sync + 'static) -> Self {
        Self::make(capacity, Box::new(move |key, others| make((!others).then_some(key))))
    }

    fn make(capacity: usize, make: Box<Make<K, V>>) -> Self {
        assert!(capacity > 0, "without a place nothing is found again");
        let places = Places {
            table: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
            slots: Vec::new(),
            hand: 0,
            shared: None,
            sharing: Sharing::new(capacity),
        };
        Keyed(Arc::new(Shared { capacity, make, places: Mutex::new(places) }))
    }

    /// The one of this key.
    pub fn of(&self, key: &K) -> V {
        use std::borrow::Borrow;
        let Shared { capacity, make, places } = &*self.0;
        // What a key or `make` may panic with leaves the places as they were.
        let mut places = places.lock().unwrap_or_else(PoisonError::into_inner);
        let Places { table, hasher, slots, hand, shared, sharing } = &mut *places;
        let hash = hasher.hash_one(key);
        if let Some(&place) = table.find(hash, |&place| slots[place].key.borrow() == key) {
            slots[place].used = true;
            return slots[place].value.clone();
        }
        // Who has used the shared one would have a second beside it.
        let shares = !sharing.is_empty() && {
            match shared.as_ref().is_none_or(Idle::is_idle) {
                true => sharing.clear(),
                false => sharing.age(),
            }
            sharing.knows(hash)
        };
        let place = match slots.len() < *capacity {
            _ if shares => None,
            true => Some(slots.len()),
            false => free(slots, hand),
        };
        let Some(place) = place else {
            if !shares {
                sharing.add(hash);
            }
            return shared.get_or_insert_with(|| make(key, true)).clone();
        };
        let value = make(key, false);
        let slot = Slot { key: key.to_owned(), hash, value: value.clone(), used: false };
        if place == slots.len() {
            slots.push(slot);
        } else {
            let old = std::mem::replace(&mut slots[place], slot);
            if let Ok(entry) = table.find_entry(old.hash, |&other| other == place) {
                entry.remove();
            }
        }
        table.insert_unique(hash, place, |&place| slots[place].hash);
        value
    }

    /// How many keys have one.
    pub fn len(&self) -> usize {
        self.0.places.lock().unwrap_or_else(PoisonError::into_inner).slots.len()
    }

    /// True if no key has one yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All keys and what they have, for whoever shows them; beside it there may be what [`others`](Self::others) share.
    pub fn list(&self) -> Vec<(K::Owned, V)>
    where
        K::Owned: Clone,
    {
        let places = self.0.places.lock().unwrap_or_else(PoisonError::into_inner);
        places.slots.iter().map(|slot| (slot.key.clone(), slot.value.clone())).collect()
    }
}

impl<K: ?Sized + ToOwned, V: Clone> Keyed<K, V> {
    /// What those share that found no place, once there was one.
    pub fn others(&self) -> Option<V> {
        self.0.places.lock().unwrap_or_else(PoisonError::into_inner).shared.clone()
    }
}

/// A place whose key can be forgotten.
fn free<K, V: Idle>(slots: &mut [Slot<K, V>], hand: &mut usize) -> Option<usize> {
    let mut idle = None;
    for _ in 0..LOOKS.min(slots.len()) {
        let place = *hand;
        *hand = (*hand + 1) % slots.len();
        let slot = &mut slots[place];
        let used = std::mem::take(&mut slot.used);
        if slot.value.is_idle() {
            if !used {
                return Some(place);
            }
            idle = idle.or(Some(place));
        }
    }
    idle
}

impl<K: ?Sized + ToOwned, V> Clone for Keyed<K, V> {
    fn clone(&self) -> Self {
        Keyed(self.0.clone())
    }
}

impl<K: ?Sized + ToOwned, V> fmt::Debug for Keyed<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyed").field("capacity", &self.0.capacity).finish_non_exhaustive()
    }
}
