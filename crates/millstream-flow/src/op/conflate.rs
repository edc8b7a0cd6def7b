//! A buffer of the newest item of each key.

use std::collections::VecDeque;
use std::future::Future;
use std::hash::Hash;
use std::mem;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use crate::drive::{Driver, Turn};
use crate::flow::{Flow, Step};
use crate::keyed::KeyedQueue;
use crate::knob::Knob;
use crate::op::Discard;
use crate::op::buffer::chunk_items;
use crate::spawn::Tasks;
use crate::stats::{HopStats, OpStats};
use crate::token::Settle;

/// What the two sides share.
pub(crate) struct LatestShelf<Q, T, K>(Mutex<Latest<Q, T, K>>);

struct Latest<Q, T, K> {
    row: KeyedQueue<Q, (T, K)>,
    reader: Option<Waker>,
    writer: Option<Waker>,
    writer_gone: bool,
    reader_gone: bool,
}

impl<Q, T, K> LatestShelf<Q, T, K> {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(LatestShelf(Mutex::new(Latest {
            row: KeyedQueue::default(),
            reader: None,
            writer: None,
            writer_gone: false,
            reader_gone: false,
        })))
    }

    fn latest(&self) -> MutexGuard<'_, Latest<Q, T, K>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// The task on the filling side.
pub(crate) struct Conflater<F: Flow, Q, N> {
    pub(crate) flow: F,
    pub(crate) key: N,
    pub(crate) shelf: Arc<LatestShelf<Q, F::Item, F::Token>>,
    pub(crate) capacity: Knob,
    pub(crate) op: Arc<OpStats>,
    pub(crate) stats: Arc<HopStats>,
    pub(crate) driver: Driver,
    /// Taken from upstream and not on the shelf yet.
    pub(crate) chunk: VecDeque<(Q, F::Item, F::Token)>,
    /// Upstream has ended: it is not driven again.
    pub(crate) ended: bool,
    /// Items replaced while the lock is held, until it is free: a user's `Drop` may do anything.
    pub(crate) replaced: Vec<F::Item>,
}

impl<F: Flow, Q, N> Unpin for Conflater<F, Q, N> {}

impl<F: Flow, Q: Hash + Eq, N> Conflater<F, Q, N> {
    /// Puts the chunk on the shelf. Pending if it does not fit, an error if nobody reads any more.
    fn poll_publish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ()>> {
        let Conflater { shelf, capacity, op, stats, chunk, replaced, .. } = self;
        if chunk.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let mut dropped = Discard::<F::Token>::new(op);
        let came = chunk.len();
        let mut latest = shelf.latest();
        if latest.reader_gone {
            return Poll::Ready(Err(()));
        }
        while let Some((key, item, token)) = chunk.pop_front() {
            let waiting = latest.row.len();
            match latest.row.find(&key) {
                Ok(older) => {
                    let (older, its_token) = mem::replace(older, (item, token));
                    dropped.add(its_token);
                    replaced.push(older);
                }
                Err(absent) if waiting < capacity.value() => latest.row.push_back(key, absent, (item, token)),
                Err(_) => {
                    chunk.push_front((key, item, token));
                    latest.writer = Some(cx.waker().clone());
                    break;
                }
            }
        }
        stats.shelved(came - chunk.len(), latest.row.len(), 0);
        let reader = latest.reader.take();
        drop(latest);
        replaced.clear();
        if let Some(reader) = reader {
            reader.wake();
        }
        if chunk.is_empty() { Poll::Ready(Ok(())) } else { Poll::Pending }
    }
}

impl<F, Q, N> Future for Conflater<F, Q, N>
where
    F: Flow,
    Q: Hash + Eq,
    N: FnMut(&F::Item) -> Q,
{
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.driver.begin();
        let mut turn = Turn::Again;
        loop {
            match self.poll_publish(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(())) => return Poll::Ready(()),
                Poll::Pending => {
                    self.driver.blocked();
                    return Poll::Pending;
                }
            }
            match turn {
                _ if self.ended => return Poll::Ready(()),
                Turn::Wait => return Poll::Pending,
                _ => {}
            }
            let Conflater { flow, key, driver, chunk, ended, .. } = &mut *self;
            turn = driver.turn(flow, cx, chunk_items::<(F::Item, F::Token)>(), |item, token| {
                chunk.push_back((key(&item), item, token));
                ControlFlow::Continue(())
            });
            if turn == Turn::Failed {
                return Poll::Ready(());
            }
            *ended = turn == Turn::End;
        }
    }
}

impl<F: Flow, Q, N> Drop for Conflater<F, Q, N> {
    fn drop(&mut self) {
        let mut latest = self.shelf.latest();
        latest.writer_gone = true;
        let reader = latest.reader.take();
        drop(latest);
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

/// The reading side. See [`Pipe::conflate`](crate::Pipe::conflate).
pub struct Conflated<Q, T, K: Settle> {
    pub(crate) shelf: Arc<LatestShelf<Q, T, K>>,
    pub(crate) stats: Arc<HopStats>,
    pub(crate) tasks: Tasks,
    /// Taken off the shelf and not yet pushed.
    pub(crate) taken: VecDeque<(T, K)>,
}

impl<Q: Hash + Eq, T, K: Settle> Flow for Conflated<Q, T, K> {
    type Item = T;
    type Token = K;

    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(T, K) -> ControlFlow<()>,
    {
        self.tasks.start();
        let mut room = max;
        loop {
            while room > 0 {
                let Some((item, token)) = self.taken.pop_front() else { break };
                room -= 1;
                if sink(item, token).is_break() {
                    return Poll::Ready(Step::More);
                }
            }
            if room == 0 {
                return Poll::Ready(Step::More);
            }
            let mut latest = self.shelf.latest();
            if latest.row.is_empty() {
                if latest.writer_gone {
                    return Poll::Ready(Step::End);
                }
                if latest.reader.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
                    latest.reader = Some(cx.waker().clone());
                }
                return Poll::Pending;
            }
            // No more than is asked for: what stays can still be replaced by something newer.
            for _ in 0..room.min(chunk_items::<(T, K)>()) {
                let Some(waiting) = latest.row.pop_front() else { break };
                self.taken.push_back(waiting);
            }
            self.stats.observed(latest.row.len(), 0);
            let writer = latest.writer.take();
            drop(latest);
            if let Some(writer) = writer {
                writer.wake();
            }
        }
    }
}

impl<Q, T, K: Settle> Drop for Conflated<Q, T, K> {
    fn drop(&mut self) {
        let mut latest = self.shelf.latest();
        latest.reader_gone = true;
        let writer = latest.writer.take();
        drop(latest);
        if let Some(writer) = writer {
            writer.wake();
        }
    }
}
