//! The first item of each key.

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hash};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hashbrown::{DefaultHashBuilder, HashTable};
use tokio::time::Instant;

use crate::flow::{Flow, Step};
use crate::op::Discard;
use crate::stats::OpStats;
use crate::timer::bounded;

/// How many keys [`Pipe::dedupe`](crate::Pipe::dedupe) remembers, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct Dedupe {
    keys: usize,
    ttl: Option<Duration>,
}

impl Dedupe {
    /// Remembers the newest `keys` keys. A key beyond them makes it forget the one that passed longest ago.
    ///
    /// # Panics
    /// If `keys` is 0.
    pub fn keys(keys: usize) -> Self {
        assert!(keys > 0, "to remember no keys finds no duplicates");
        Dedupe { keys, ttl: None }
    }

    /// Forgets a key so long after its item passed. Duplicates do not extend it. A quantum of work, some 10 µs, is
    /// one moment.
    ///
    /// # Panics
    /// If `ttl` is zero.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        assert!(!ttl.is_zero(), "to remember keys for no time finds no duplicates");
        self.ttl = Some(bounded(ttl));
        self
    }

    pub(crate) fn memory<Q>(&self) -> usize {
        // An entry of the row, which doubles as it grows, and a place in the table, which is 7/8 full at most.
        self.keys.saturating_mul(2 * size_of::<Remembered<Q>>() + 2 * (size_of::<u64>() + 1))
    }
}

/// A key that has passed.
struct Remembered<Q> {
    key: Q,
    hash: u64,
    passed: Option<Instant>,
}

/// Keys in the order in which they passed, and where each is: adding, finding and forgetting cost the same however many
/// there are, and nothing is allocated once it has its size.
struct Seen<Q> {
    row: VecDeque<Remembered<Q>>,
    /// The number of the row's first key, counted from the first that ever passed.
    first: u64,
    places: HashTable<u64>,
    hasher: DefaultHashBuilder,
}

impl<Q: Hash + Eq> Seen<Q> {
    fn new() -> Self {
        Seen {
            row: VecDeque::new(),
            first: 0,
            places: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
        }
    }

    /// Remembers a key. False if it was already known.
    #[inline]
    fn insert(&mut self, key: Q, now: Option<Instant>, max: usize) -> bool {
        let Seen { row, first, places, hasher } = self;
        let hash = hasher.hash_one(&key);
        let at = |place: &u64| (place - *first) as usize;
        if places.find(hash, |place| row[at(place)].key == key).is_some() {
            return false;
        }
        if row.len() >= max {
            self.forget_first();
        }
        let Seen { row, first, places, .. } = self;
        let place = *first + row.len() as u64;
        row.push_back(Remembered { key, hash, passed: now });
        places.insert_unique(hash, place, |place| row[(place - *first) as usize].hash);
        true
    }

    fn forget_first(&mut self) {
        let Some(Remembered { hash, .. }) = self.row.pop_front() else { return };
        if let Ok(entry) = self.places.find_entry(hash, |place| *place == self.first) {
            entry.remove();
        }
        self.first += 1;
    }

    fn forget_older(&mut self, ttl: Duration, now: Instant) {
        while self.row.front().and_then(|key| key.passed).is_some_and(|passed| passed + ttl <= now) {
            self.forget_first();
        }
    }
}

/// See [`Pipe::dedupe`](crate::Pipe::dedupe).
pub struct Deduped<F, Q, N> {
    upstream: F,
    rule: Dedupe,
    key: N,
    seen: Seen<Q>,
    op: Arc<OpStats>,
}

impl<F, Q: Hash + Eq, N> Deduped<F, Q, N> {
    pub(crate) fn new(upstream: F, rule: Dedupe, key: N, op: Arc<OpStats>) -> Self {
        Deduped { upstream, rule, key, seen: Seen::new(), op }
    }
}

impl<F: Flow, Q: Hash + Eq, N: FnMut(&F::Item) -> Q> Flow for Deduped<F, Q, N> {
    type Item = F::Item;
    type Token = F::Token;

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(F::Item, F::Token) -> ControlFlow<()>,
    {
        let Deduped { upstream, rule, key, seen, op } = self;
        let now = rule.ttl.map(|ttl| {
            let now = Instant::now();
            seen.forget_older(ttl, now);
            now
        });
        let mut dropped = Discard::<F::Token>::new(op);
        upstream.poll_drive(cx, max, &mut |item, token| {
            if seen.insert(key(&item), now, rule.keys) {
                return sink(item, token);
            }
            dropped.add(token);
            ControlFlow::Continue(())
        })
    }
}

/// See [`Pipe::distinct_until_changed`](crate::Pipe::distinct_until_changed).
pub struct Changes<F, Q, N> {
    pub(crate) upstream: F,
    pub(crate) last: Option<Q>,
    pub(crate) key: N,
    pub(crate) op: Arc<OpStats>,
}

impl<F: Flow, Q: PartialEq, N: FnMut(&F::Item) -> Q> Flow for Changes<F, Q, N> {
    type Item = F::Item;
    type Token = F::Token;

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(F::Item, F::Token) -> ControlFlow<()>,
    {
        let Changes { upstream, last, key, op } = self;
        let mut dropped = Discard::<F::Token>::new(op);
        upstream.poll_drive(cx, max, &mut |item, token| {
            let key = key(&item);
            if last.as_ref() == Some(&key) {
                dropped.add(token);
                return ControlFlow::Continue(());
            }
            *last = Some(key);
            sink(item, token)
        })
    }
}
