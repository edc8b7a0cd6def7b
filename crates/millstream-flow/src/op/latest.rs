//! The newest item of each key, once an interval.

use std::collections::VecDeque;
use std::hash::Hash;
use std::mem;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use crate::flow::{Flow, Step};
use crate::keyed::KeyedQueue;
use crate::op::Discard;
use crate::stats::OpStats;
use crate::timer::{Timer, bounded};

/// See [`Pipe::latest_by`](crate::Pipe::latest_by).
pub struct Latest<F: Flow, Q, N> {
    upstream: F,
    interval: Duration,
    keys_max: usize,
    key: N,
    op: Arc<OpStats>,
    /// In the order in which their keys came.
    newest: KeyedQueue<Q, (F::Item, F::Token)>,
    /// When the interval ends. Only while something is kept.
    until: Option<Instant>,
    leaving: VecDeque<(F::Item, F::Token)>,
    timer: Timer,
    ended: bool,
}

impl<F: Flow, Q, N> Latest<F, Q, N> {
    pub(crate) fn new(upstream: F, interval: Duration, keys_max: usize, key: N, op: Arc<OpStats>) -> Self {
        Latest {
            upstream,
            interval: bounded(interval),
            keys_max,
            key,
            op,
            newest: KeyedQueue::default(),
            until: None,
            leaving: VecDeque::new(),
            timer: Timer::default(),
            ended: false,
        }
    }

    /// What it may hold at most, those on their way out included.
    pub(crate) fn memory(&self) -> usize {
        let entry = KeyedQueue::<Q, (F::Item, F::Token)>::ENTRY_BYTES + 2 * size_of::<(F::Item, F::Token)>();
        self.keys_max.saturating_mul(entry)
    }

    fn release(&mut self) {
        self.until = None;
        self.leaving.extend(self.newest.drain());
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
            let key = key(&item);
            match newest.find(&key) {
                Ok(kept) => dropped.add(mem::replace(kept, (item, token)).1),
                Err(absent) => newest.push_back(key, absent, (item, token)),
            }
            until.get_or_insert(now + *interval);
            if newest.len() < *keys_max { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        drop(dropped);
        self.ended = step == Poll::Ready(Step::End);
        if self.ended || self.newest.len() >= self.keys_max {
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
