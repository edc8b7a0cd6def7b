//! A buffer that sheds when it is full, instead of making its producer wait.
//!
//! The oldest item can only be dropped where the reader takes from too, so both sides share a deque under a lock
//! and exchange chunks through it: one lock a chunk and side, not an item.

use std::collections::VecDeque;
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::mem;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use crate::chunk::VecFilling;
use crate::drive::{Driver, Turn};
use crate::flow::{Flow, Step};
use crate::knob::Knob;
use crate::measure::Measure;
use crate::op::Discard;
use crate::op::buffer::chunk_items;
use crate::scope::RunErrorKind;
use crate::spawn::Tasks;
use crate::stats::{HopStats, OpStats};
use crate::token::Settle;

/// What a full buffer does with one item more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Overflow {
    /// Makes the producer wait: backpressure.
    #[default]
    Wait,
    /// Drops the item that has waited longest, counted under the buffer's name.
    DropOldest,
    /// Drops the item that has just come, counted under the buffer's name.
    DropNewest,
    /// Thins the flow out before the buffer is full: from half of its items on, only the first of so many is let in, until
    /// no more than a quarter of them waits. Full, it drops the item that has just come.
    Sample(NonZeroUsize),
    /// Fails the run, with [`Overflowed`].
    Fail,
}

/// A buffer was full that was declared to fail then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overflowed {
    /// The buffer.
    pub stage: Arc<str>,
    /// How many items waited.
    pub items: usize,
}

impl fmt::Display for Overflowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: it was full, with {} items waiting", self.stage, self.items)
    }
}

impl Error for Overflowed {}

/// What [`Overflow::Sample`] counts.
#[derive(Debug, Default)]
pub(crate) struct Thinning {
    on: bool,
    /// Items that came since the last that was let in.
    left_out: usize,
}

impl Thinning {
    fn lets_in(&mut self, one_in: NonZeroUsize, len: usize, capacity: usize) -> bool {
        if self.on && len <= capacity / 4 {
            *self = Thinning::default();
        }
        if !self.on && len < capacity.div_ceil(2) {
            return true;
        }
        let first = !mem::replace(&mut self.on, true);
        self.left_out += 1;
        if first || self.left_out >= one_in.get() {
            self.left_out = 0;
            return true;
        }
        false
    }
}

pub(crate) struct Shelf<T, K> {
    queue: Mutex<Queue<T, K>>,
}

struct Queue<T, K> {
    items: VecDeque<(T, K)>,
    bytes: usize,
    reader: Option<Waker>,
    writer_gone: bool,
    reader_gone: bool,
}

impl<T, K> Shelf<T, K> {
    pub(crate) fn new() -> Arc<Self> {
        let queue =
            Queue { items: VecDeque::new(), bytes: 0, reader: None, writer_gone: false, reader_gone: false };
        Arc::new(Shelf { queue: Mutex::new(queue) })
    }

    fn queue(&self) -> MutexGuard<'_, Queue<T, K>> {
        self.queue.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// The task on the filling side.
pub(crate) struct Shedder<F: Flow, W> {
    pub(crate) flow: F,
    pub(crate) measure: W,
    pub(crate) shelf: Arc<Shelf<F::Item, F::Token>>,
    pub(crate) capacity: Knob,
    pub(crate) bytes_max: usize,
    pub(crate) overflow: Overflow,
    pub(crate) thinning: Thinning,
    pub(crate) op: Arc<OpStats>,
    pub(crate) stats: Arc<HopStats>,
    pub(crate) driver: Driver,
    pub(crate) chunk: Vec<(F::Item, F::Token)>,
    /// Items shed while the lock is held, until it is free: a user's `Drop` may do anything.
    pub(crate) shed: Vec<F::Item>,
}

impl<F: Flow, W> Unpin for Shedder<F, W> {}

impl<F: Flow, W: Measure<F::Item>> Shedder<F, W> {
    /// Puts the chunk on the shelf, shedding what does not fit. False if the stage is to end: nobody reads any more, or the
    /// run has failed.
    fn publish(&mut self) -> bool {
        let Shedder {
            measure,
            shelf,
            capacity,
            bytes_max,
            overflow,
            thinning,
            op,
            stats,
            chunk,
            shed,
            driver,
            ..
        } = self;
        let capacity = capacity.value();
        let mut dropped = Discard::<F::Token>::new(op);
        let published = chunk.len();
        let mut queue = shelf.queue();
        if queue.reader_gone {
            return false;
        }
        for (item, token) in chunk.drain(..) {
            let bytes = measure.measure(&item);
            let full = |queue: &Queue<_, _>| {
                queue.items.len() >= capacity
                    || (queue.bytes.saturating_add(bytes) > *bytes_max && !queue.items.is_empty())
            };
            let lets_in = match *overflow {
                Overflow::DropOldest => {
                    while full(&queue) {
                        let Some((item, token)) = queue.items.pop_front() else { break };
                        queue.bytes -= measure.measure(&item);
                        dropped.add(token);
                        shed.push(item);
                    }
                    true
                }
                Overflow::Sample(one_in) => {
                    thinning.lets_in(one_in, queue.items.len(), capacity) && !full(&queue)
                }
                Overflow::Fail if full(&queue) => {
                    let overflowed = Overflowed { stage: op.name(), items: queue.items.len() };
                    drop(queue);
                    driver.scope.fail(RunErrorKind::Stage(overflowed.into()));
                    return false;
                }
                Overflow::Wait | Overflow::DropNewest | Overflow::Fail => !full(&queue),
            };
            if !lets_in {
                dropped.add(token);
                shed.push(item);
                continue;
            }
            queue.bytes += bytes;
            queue.items.push_back((item, token));
        }
        stats.shelved(published, queue.items.len(), queue.bytes);
        let reader = queue.reader.take();
        drop(queue);
        shed.clear();
        if let Some(reader) = reader {
            reader.wake();
        }
        true
    }
}

impl<F: Flow, W: Measure<F::Item>> Future for Shedder<F, W> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.driver.begin();
        loop {
            let Shedder { flow, driver, chunk, .. } = &mut *self;
            let room = chunk_items::<(F::Item, F::Token)>();
            let turn = driver.turn_with(flow, cx, room, |max| {
                let mut filling = VecFilling::new(chunk, max);
                move |item, token| {
                    filling.push((item, token));
                    ControlFlow::Continue(())
                }
            });
            if !self.chunk.is_empty() && !self.publish() {
                return Poll::Ready(());
            }
            match turn {
                Turn::Again => {}
                Turn::Wait => return Poll::Pending,
                Turn::End | Turn::Failed => return Poll::Ready(()),
            }
        }
    }
}

impl<F: Flow, W> Drop for Shedder<F, W> {
    fn drop(&mut self) {
        let mut queue = self.shelf.queue();
        queue.writer_gone = true;
        let reader = queue.reader.take();
        drop(queue);
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

/// The reading side. See [`Pipe::buffer_with`](crate::Pipe::buffer_with).
pub struct Shedding<T, K: Settle, W> {
    pub(crate) shelf: Arc<Shelf<T, K>>,
    pub(crate) measure: W,
    pub(crate) stats: Arc<HopStats>,
    pub(crate) tasks: Tasks,
    /// A chunk taken off the shelf and not yet pushed.
    pub(crate) taken: VecDeque<(T, K)>,
}

impl<T, K: Settle, W: Measure<T>> Flow for Shedding<T, K, W> {
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
            let mut queue = self.shelf.queue();
            if queue.items.is_empty() {
                if queue.writer_gone {
                    return Poll::Ready(Step::End);
                }
                if queue.reader.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
                    queue.reader = Some(cx.waker().clone());
                }
                return Poll::Pending;
            }
            // No more than is asked for: what stays on the shelf can still be shed for something newer.
            for _ in 0..room.min(chunk_items::<(T, K)>()) {
                let Some((item, token)) = queue.items.pop_front() else { break };
                queue.bytes -= self.measure.measure(&item);
                self.taken.push_back((item, token));
            }
            self.stats.observed(queue.items.len(), queue.bytes);
        }
    }
}

impl<T, K: Settle, W> Drop for Shedding<T, K, W> {
    fn drop(&mut self) {
        self.shelf.queue().reader_gone = true;
    }
}
