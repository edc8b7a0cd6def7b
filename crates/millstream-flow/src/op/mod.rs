//! The operators, one a file. Users meet them as methods of [`Pipe`](crate::Pipe).

use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::stats::OpStats;
use crate::token::{Outcome, Settle};

pub(crate) mod basic;
pub(crate) mod batch;
pub(crate) mod boxed;
pub(crate) mod broadcast;
pub(crate) mod buffer;
pub(crate) mod burst;
pub(crate) mod concat;
pub(crate) mod conflate;
pub(crate) mod contexts;
pub(crate) mod dedupe;
pub(crate) mod errors;
pub(crate) mod flat_map;
pub(crate) mod idle_timeout;
pub(crate) mod inputs;
pub(crate) mod latest;
pub(crate) mod map_async;
pub(crate) mod merge;
pub(crate) mod meter;
pub(crate) mod overflow;
pub(crate) mod parallel;
pub(crate) mod rate_limit;
pub(crate) mod sample;
pub(crate) mod spill;
pub(crate) mod switch;
pub(crate) mod try_async;
pub(crate) mod try_map;
pub(crate) mod turns;
pub(crate) mod window;
pub(crate) mod zip;

/// Items that an operator drops in one quantum: counted and settled together at its end, also when a panic of
/// somebody else's function ends it.
pub(crate) struct Discard<'a, K: Settle> {
    op: &'a Arc<OpStats>,
    items: u64,
    tokens: K::Group,
}

impl<'a, K: Settle> Discard<'a, K> {
    #[inline]
    pub(crate) fn new(op: &'a Arc<OpStats>) -> Self {
        Discard { op, items: 0, tokens: K::Group::default() }
    }

    #[inline]
    pub(crate) fn add(&mut self, token: K) {
        self.items += 1;
        token.join(&mut self.tokens);
    }
}

impl<K: Settle> Drop for Discard<'_, K> {
    #[inline]
    fn drop(&mut self) {
        if self.items > 0 {
            self.op.add_dropped(self.items);
            if K::TRACKED {
                mem::take(&mut self.tokens).settle(&Outcome::Dropped(self.op.name()));
            }
        }
    }
}

/// A counter of the ledger that a quantum adds to at its end, also when a panic ends it. Tracked flows count by
/// their tokens, so it does nothing for them.
pub(crate) struct Tally<'a> {
    count: u64,
    to: Option<&'a AtomicU64>,
}

impl<'a> Tally<'a> {
    #[inline]
    pub(crate) fn new<K: Settle>(to: &'a AtomicU64) -> Self {
        Tally { count: 0, to: (!K::TRACKED).then_some(to) }
    }

    /// One that counts to a counter of the ledger, if there is one.
    #[inline]
    pub(crate) fn of(to: Option<&'a AtomicU64>) -> Self {
        Tally { count: 0, to }
    }

    #[inline]
    pub(crate) fn add(&mut self, items: u64) {
        self.count += items;
    }

    /// The count itself, for what counts as it goes. (Not a public field: a closure that moves would copy it.)
    #[inline]
    pub(crate) fn count(&mut self) -> &mut u64 {
        &mut self.count
    }
}

impl Drop for Tally<'_> {
    #[inline]
    fn drop(&mut self) {
        if let Some(to) = self.to
            && self.count > 0
        {
            to.fetch_add(self.count, Ordering::Relaxed);
        }
    }
}
