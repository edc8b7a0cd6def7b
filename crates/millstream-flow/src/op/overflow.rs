//! A buffer that sheds when it is full, instead of making its producer wait.
//!
//! The oldest item can only be dropped where the reader takes from too, so both sides share a deque under a lock
//! and exchange chunks through it: one lock a chunk and side, not an item.

use std::collections::VecDeque;
use std::future::Future;
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
    pub(crate) oldest: bool,
    pub(crate) op: Arc<OpStats>,
    pub(crate) stats: Arc<HopStats>,
    pub(crate) driver: Driver,
    pub(crate) chunk: Vec<(F::Item, F::Token)>,
}

impl<F: Flow, W> Unpin for Shedder<F, W> {}

impl<F: Flow, W: Measure<F::Item>> Shedder<F, W> {
    /// Puts the chunk on the shelf, shedding what does not fit. False if nobody reads any more.
    fn publish(&mut self) -> bool {
        let Shedder { measure, shelf, capacity, bytes_max, oldest, op, stats, chunk, .. } = self;
        let mut dropped = Discard::<F::Token>::new(op);
        // Items dropped are kept until the lock is free: a user's `Drop` may do anything.
        let mut shed = Vec::new();
        let published = chunk.len();
        let mut queue = shelf.queue();
        if queue.reader_gone {
            return false;
        }
        for (item, token) in chunk.drain(..) {
            let bytes = measure.measure(&item);
            let full = |queue: &Queue<_, _>| {
                queue.items.len() >= capacity.value()
                    || (queue.bytes.saturating_add(bytes) > *bytes_max && !queue.items.is_empty())
            };
            if *oldest {
                while full(&queue) {
                    let Some((item, token)) = queue.items.pop_front() else { break };
                    queue.bytes -= measure.measure(&item);
                    dropped.add(token);
                    shed.push(item);
                }
            } else if full(&queue) {
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
