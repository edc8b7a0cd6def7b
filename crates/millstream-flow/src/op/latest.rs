//! The newest item of each key, once an interval.

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
use crate::timer::{Timer, bounded};

/// The newest items by key, in the order in which their keys came.
struct Newest<Q, T, K> {
    row: Vec<(Q, u64, T, K)>,
    places: HashTable<usize>,
    hasher: DefaultHashBuilder,
}

impl<Q: Hash + Eq, T, K> Newest<Q, T, K> {
    /// Keeps an item in the place of the one before it of its key, which it returns.
    #[inline]
    fn put(&mut self, key: Q, item: T, token: K) -> Option<K> {
        let Newest { row, places, hasher } = self;
        let hash = hasher.hash_one(&key);
        if let Some(&place) = places.find(hash, |&place| row[place].0 == key) {
            let (_, _, old, older) = &mut row[place];
            *old = item;
            return Some(std::mem::replace(older, token));
        }
        places.insert_unique(hash, row.len(), |&place| row[place].1);
        row.push((key, hash, item, token));
        None
    }
}

/// See [`Pipe::latest_by`](crate::Pipe::latest_by).
pub struct Latest<F: Flow, Q, N> {
    upstream: F,
    interval: Duration,
    keys_max: usize,
    key: N,
    op: Arc<OpStats>,
    newest: Newest<Q, F::Item, F::Token>,
    /// When the interval ends. Only while something is kept.
    until: Option<Instant>,
    leaving: VecDeque<(F::Item, F::Token)>,
    timer: Timer,
    ended: bool,
}

impl<F: Flow, Q, N> Latest<F, Q, N> {
    pub(crate) fn new(upstream: F, interval: Duration, keys_max: usize, key: N, op: Arc<OpStats>) -> Self {
        let newest =
            Newest { row: Vec::new(), places: HashTable::new(), hasher: DefaultHashBuilder::default() };
        Latest {
            upstream,
            interval: bounded(interval),
            keys_max,
            key,
            op,
            newest,
            until: None,
            leaving: VecDeque::new(),
            timer: Timer::default(),
            ended: false,
        }
    }

    /// What one entry takes, with what the rows have in reserve.
    pub(crate) const ENTRY_BYTES: usize = 2
        * (size_of::<(Q, u64, F::Item, F::Token)>()
            + size_of::<(F::Item, F::Token)>()
            + size_of::<usize>()
            + 1);

    fn release(&mut self) {
        self.until = None;
        self.newest.places.clear();
        self.leaving.extend(self.newest.row.drain(..).map(|(_, _, item, token)| (item, token)));
    }
}

impl<F: Flow, Q: Hash + Eq, N: FnMut(&F::Item) -> Q> Flow for Latest<F, Q, N> {
    type Item = F::Item;
    type Token = F::Token;

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(F::Item, F::Token) -> ControlFlow<()>,
    {
        let now = Instant::now();
        let mut room = max;
        if self.leaving.is_empty() && self.until.is_some_and(|until| until <= now) {
            self.release();
        }
        while let Some((item, token)) = self.leaving.pop_front() {
            room -= 1;
            if sink(item, token).is_break() || room == 0 {
                return Poll::Ready(Step::More);
            }
        }
        if self.ended {
            return Poll::Ready(Step::End);
        }
        let Latest { upstream, interval, keys_max, key, op, newest, until, .. } = self;
        let mut dropped = Discard::<F::Token>::new(op);
        let step = upstream.poll_drive(cx, room, &mut |item, token| {
            if let Some(older) = newest.put(key(&item), item, token) {
                dropped.add(older);
            }
            until.get_or_insert(now + *interval);
            if newest.row.len() < *keys_max { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        drop(dropped);
        self.ended = step == Poll::Ready(Step::End);
        if self.ended || self.newest.row.len() >= self.keys_max {
            // Nothing comes any more, or no other key has room: what is here goes before its time.
            self.release();
        }
        if !self.leaving.is_empty() {
            return Poll::Ready(Step::More);
        }
        if step.is_pending()
            && let Some(until) = self.until
            && self.timer.poll_until(cx, until).is_ready()
        {
            return Poll::Ready(Step::More);
        }
        step
    }
}
