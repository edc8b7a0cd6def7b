//! The first item of each key.

use std::hash::Hash;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use crate::flow::{Flow, Step};
use crate::keyed::KeyedQueue;
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
        self.keys.saturating_mul(KeyedQueue::<Q, Passed>::ENTRY_BYTES)
    }
}

/// When a key passed, if that matters.
type Passed = Option<Instant>;

/// See [`Pipe::dedupe`](crate::Pipe::dedupe).
pub struct Deduped<F, Q, N> {
    upstream: F,
    rule: Dedupe,
    key: N,
    seen: KeyedQueue<Q, Passed>,
    op: Arc<OpStats>,
}

impl<F, Q: Hash + Eq, N> Deduped<F, Q, N> {
    pub(crate) fn new(upstream: F, rule: Dedupe, key: N, op: Arc<OpStats>) -> Self {
        Deduped { upstream, rule, key, seen: KeyedQueue::default(), op }
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
            while seen.front().copied().flatten().is_some_and(|passed| passed + ttl <= now) {
                seen.pop_front();
            }
            now
        });
        let mut dropped = Discard::<F::Token>::new(op);
        upstream.poll_drive(cx, max, &mut |item, token| {
            let key = key(&item);
            let Err(absent) = seen.find(&key) else {
                dropped.add(token);
                return ControlFlow::Continue(());
            };
            if seen.len() >= rule.keys {
                seen.pop_front();
            }
            seen.push_back(key, absent, now);
            sink(item, token)
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
