//! What the workers and the reader share.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::vec::Drain;

use tokio::sync::Mutex as AsyncMutex;

use super::output::{Output, Place};
use super::workers::Workers;
use super::{CHUNK_FIRST, CHUNKS_AHEAD};
use crate::chunk::{Chunk, VecFilling};
use crate::drive::{Driver, Turn};
use crate::flow::Flow;
use crate::knob::Knob;
use crate::measure::Measure;
use crate::scope::Scope;
use crate::stats::StageStats;

/// A chunk of results.
pub(super) type Done<F, U> = Chunk<(U, <F as Flow>::Token)>;
/// Items as upstream hands them over.
pub(super) type Pulled<F> = (<F as Flow>::Item, <F as Flow>::Token);
/// What workers and reader share, beside upstream.
type Shared<F, U> = Output<Pulled<F>, (U, <F as Flow>::Token)>;
/// What a worker is to do.
pub(super) struct Job<F: Flow, U> {
    pub(super) place: Place,
    /// An empty chunk for the results.
    pub(super) output: Done<F, U>,
    /// How many items were asked for, of what comes from upstream.
    pub(super) pulled: Option<usize>,
}

/// What the workers and the reader share. `T` goes in, `U` comes out.
pub(crate) struct Crew<F: Flow, U> {
    pub(super) upstream: AsyncMutex<Upstream<F>>,
    output: Mutex<Shared<F, U>>,
    /// How many workers have nothing to do.
    pub(super) idle: AtomicUsize,
    workers: Knob,
    /// How many items the next chunk takes.
    pub(super) chunk: AtomicUsize,
    pub(super) limit: Limit,
    pub(super) scope: Arc<Scope>,
    pub(super) stats: Arc<StageStats>,
}

/// How much may be pulled and not read, and one chunk of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limit {
    chunks: usize,
    bytes: usize,
    pub(super) chunk_bytes: usize,
}

impl Limit {
    /// A worker has as much in hand as waits for it to be read.
    fn new(workers: usize, bytes_max: Option<usize>) -> Self {
        let chunks = workers * CHUNKS_AHEAD;
        match bytes_max {
            None => Limit { chunks, bytes: usize::MAX, chunk_bytes: usize::MAX },
            Some(bytes_max) => {
                let chunk_bytes = (bytes_max / (2 * workers)).max(1);
                Limit { chunks, bytes: bytes_max - chunk_bytes.min(bytes_max), chunk_bytes }
            }
        }
    }
}

pub(super) struct Upstream<F> {
    flow: F,
    driver: Driver,
    next_ticket: u64,
    pub(super) ended: bool,
}

impl<F: Flow, U> Crew<F, U> {
    pub(super) fn new<W>(
        flow: F,
        driver: Driver,
        knob: Knob,
        workers: &Workers<W>,
        stats: Arc<StageStats>,
    ) -> Self {
        let started = knob.bounds().1;
        Crew {
            scope: driver.scope.clone(),
            upstream: AsyncMutex::new(Upstream { flow, driver, next_ticket: 0, ended: false }),
            output: Mutex::new(Output::new(started, workers.unordered)),
            idle: AtomicUsize::new(0),
            limit: Limit::new(started, workers.bytes_max),
            workers: knob,
            chunk: AtomicUsize::new(CHUNK_FIRST),
            stats,
        }
    }

    pub(super) fn output(&self) -> MutexGuard<'_, Shared<F, U>> {
        self.output.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Waits until the worker may take part.
    pub(super) fn poll_turn(&self, cx: &mut Context<'_>, worker: usize, started: usize) -> Poll<()> {
        let mut output = self.output();
        let over = output.closed || output.workers_left < started;
        if worker < self.workers.value() || over {
            return Poll::Ready(());
        }
        output.parked.retain(|(parked, _)| *parked != worker);
        output.parked.push((worker, cx.waker().clone()));
        Poll::Pending
    }

    /// Waits until the reader is no more than the window behind, and returns an empty chunk for what is to come.
    pub(super) fn poll_window(&self, cx: &mut Context<'_>) -> Poll<Done<F, U>> {
        let mut output = self.output();
        if !output.closed && output.is_within(self.limit.chunks, self.limit.bytes) {
            return Poll::Ready(output.reserve());
        }
        output.waiting = Some(cx.waker().clone());
        Poll::Pending
    }

    /// What another worker could not get done.
    pub(super) fn offered(&self, input: &mut Vec<Pulled<F>>) -> Option<Job<F, U>> {
        let mut output = self.output();
        if output.closed {
            return None;
        }
        let offer = output.offer()?;
        *input = offer.items;
        Some(Job { place: offer.place, output: output.spare(), pulled: None })
    }

    /// The same for a worker that waits for something else; with `None` if the crew is closed.
    pub(super) fn poll_offer(
        &self,
        cx: &Context<'_>,
        worker: usize,
        input: &mut Vec<Pulled<F>>,
    ) -> Poll<Option<Job<F, U>>> {
        let mut output = self.output();
        if output.closed {
            return Poll::Ready(None);
        }
        if let Some(offer) = output.offer() {
            *input = offer.items;
            return Poll::Ready(Some(Job { place: offer.place, output: output.spare(), pulled: None }));
        }
        let idle = output.wait(worker, Some(cx.waker().clone()));
        self.idle.store(idle, Ordering::Relaxed);
        Poll::Pending
    }

    /// As [`poll_offer`](Self::poll_offer), behind the end of upstream: `None` also when nobody works any more.
    pub(super) fn poll_rest(
        &self,
        cx: &Context<'_>,
        worker: usize,
        input: &mut Vec<Pulled<F>>,
    ) -> Poll<Option<Job<F, U>>> {
        match self.poll_offer(cx, worker, input) {
            // Whoever finishes the last chunk rouses those who have come to wait before.
            Poll::Pending if self.output().is_over() => Poll::Ready(None),
            polled => polled,
        }
    }

    /// The worker waits no more.
    pub(super) fn go_on(&self, worker: usize) {
        if self.idle.load(Ordering::Relaxed) > 0 {
            let mut output = self.output();
            let idle = output.wait(worker, None);
            self.idle.store(idle, Ordering::Relaxed);
        }
    }

    /// Hands half of the items that are left, of so many, to a worker that is idle.
    #[cold]
    pub(super) fn share(&self, place: &mut Place, items: &mut Drain<'_, Pulled<F>>, all: usize) {
        let shared = items.len() / 2;
        // As if each item weighed the same; together it is what was pulled.
        let bytes = (place.bytes as u128 * shared as u128 / all as u128) as usize;
        place.bytes -= bytes;
        let mut rest: Vec<_> = items.rev().take(shared).collect();
        rest.reverse();
        let mut output = self.output();
        output.split(*place, bytes, rest);
        let (waker, idle) = output.rouse();
        self.idle.store(idle, Ordering::Relaxed);
        drop(output);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Hands a finished chunk to the reader.
    pub(super) fn deliver(&self, place: Place, chunk: Done<F, U>) {
        let mut output = self.output();
        let reader = output.put(place, chunk).then(|| output.reader.take()).flatten();
        let others = match output.is_over() {
            true => self.rouse_all(&mut output),
            false => output.unpark(self.workers.value()),
        };
        drop(output);
        others.into_iter().chain(reader).for_each(Waker::wake);
    }

    fn rouse_all(&self, output: &mut Shared<F, U>) -> Vec<Waker> {
        self.idle.store(0, Ordering::Relaxed);
        output.rouse_all()
    }

    /// Ends all workers: nobody reads any more, or the run has failed.
    pub(super) fn close(&self) {
        let mut output = self.output();
        output.closed = true;
        let (waiting, others) = (output.waiting.take(), self.rouse_all(&mut output));
        drop(output);
        others.into_iter().chain(waiting).for_each(Waker::wake);
    }

    /// One worker ends; with the last one the flow ends.
    pub(super) fn leave(&self) {
        let mut output = self.output();
        output.workers_left -= 1;
        let wakers = self.rouse_all(&mut output);
        let reader = output.reader.take();
        drop(output);
        wakers.into_iter().chain(reader).for_each(Waker::wake);
    }
}

impl<F: Flow> Upstream<F> {
    /// The place of the chunk that was pulled.
    pub(super) fn ticket(&mut self, bytes: usize) -> Place {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        Place::of(ticket, bytes)
    }

    /// Pulls up to `max` items, of no more than `bytes_max` before the last one, as many as are to be had without waiting,
    /// at least one. Ready with what they weigh.
    pub(super) fn poll_pull<W: Measure<F::Item>>(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
        bytes_max: usize,
        measure: &mut W,
        out: &mut Vec<Pulled<F>>,
    ) -> Poll<usize> {
        self.driver.begin();
        let mut bytes = 0;
        loop {
            let room = max - out.len();
            let turn = self.driver.turn_with(&mut self.flow, cx, room, |max| {
                let mut out = VecFilling::new(out, max);
                let (bytes, measure) = (&mut bytes, &*measure);
                move |item, token| {
                    if W::MEASURES {
                        *bytes += measure.measure(&item);
                    }
                    out.push((item, token));
                    if W::MEASURES && *bytes >= bytes_max {
                        return ControlFlow::Break(());
                    }
                    ControlFlow::Continue(())
                }
            });
            match turn {
                Turn::End | Turn::Failed => {
                    self.ended = true;
                    return Poll::Ready(bytes);
                }
                _ if out.len() == max || bytes >= bytes_max => return Poll::Ready(bytes),
                Turn::Wait if out.is_empty() => return Poll::Pending,
                Turn::Wait => return Poll::Ready(bytes),
                Turn::Again => {}
            }
        }
    }
}
