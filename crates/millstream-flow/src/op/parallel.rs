//! CPU work on several cores: workers that pull.
//!
//! Each worker locks upstream, pulls a chunk sized to about 100 µs of work, takes a ticket, unlocks, works, and
//! delivers. Pulling needs no dispatcher that could sit behind a worker's long poll in the scheduler, and spreads
//! uneven work by itself: whoever is free takes the next chunk.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::sync::Mutex as AsyncMutex;

use crate::chunk::{Chunk, VecFilling};
use crate::clock::Tick;
use crate::drive::{Driver, Turn, settle_panic};
use crate::failure::Panicked;
use crate::flow::{Flow, Step};
use crate::knob::{Knob, Setting};
use crate::scope::Scope;
use crate::spawn::Tasks;
use crate::stats::StageStats;
use crate::token::{CatchScope, Settle};

/// How many workers, and whether results keep the order of their items.
///
/// `parallel(4, ..)` is four workers, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Workers {
    pub(crate) count: Setting,
    pub(crate) unordered: bool,
}

impl Workers {
    /// So many workers; results in the order of their items.
    ///
    /// # Panics
    /// If `workers` is 0 or above 1,024.
    pub fn ordered(workers: usize) -> Self {
        assert!((1..=1024).contains(&workers), "workers are 1 to 1024, not {workers}");
        Workers { count: workers.into(), unordered: false }
    }

    /// So many workers; results as they come.
    ///
    /// # Panics
    /// If `workers` is 0 or above 1,024.
    pub fn unordered(workers: usize) -> Self {
        Workers { unordered: true, ..Workers::ordered(workers) }
    }

    /// A worker for each core to begin with, the tuner's to move, in order.
    pub fn auto() -> Self {
        Workers::default()
    }

    pub(crate) fn knob(&self, name: String) -> Knob {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        let max = match self.count {
            Setting::Fixed(count) => count,
            Setting::Auto => cores,
        };
        Knob::new(name, self.count, cores, 1..=max)
    }
}

impl From<usize> for Workers {
    fn from(workers: usize) -> Self {
        Workers::ordered(workers)
    }
}

/// How much work a chunk should be: long enough to make the hand-over cheap, short enough to share.
const CHUNK_WORK: Duration = Duration::from_micros(100);
/// The most items of a chunk, and the most chunks a worker may be ahead of the slowest.
pub(crate) const CHUNK_MAX: usize = 1024;
pub(crate) const CHUNKS_AHEAD: usize = 4;
/// One, as long as nobody knows what an item costs: what a worker has pulled no other can take.
const CHUNK_FIRST: usize = 1;

/// A chunk of results.
type Done<F, U> = Chunk<(U, <F as Flow>::Token)>;

/// What the workers and the reader share. `T` goes in, `U` comes out.
pub(crate) struct Crew<F: Flow, U> {
    upstream: AsyncMutex<Upstream<F>>,
    output: Mutex<Output<U, F::Token>>,
    workers: Knob,
    unordered: bool,
    /// How many items the next chunk takes.
    chunk: AtomicUsize,
    scope: Arc<Scope>,
    stats: Arc<StageStats>,
}

struct Upstream<F> {
    flow: F,
    driver: Driver,
    next_ticket: u64,
    ended: bool,
}

struct Output<U, K> {
    /// Chunks by ticket from `first_ticket`; `None` is being worked on. Unordered: finished chunks only.
    chunks: VecDeque<Option<Chunk<(U, K)>>>,
    /// Chunks that were read, to be filled again.
    spare: Vec<Chunk<(U, K)>>,
    first_ticket: u64,
    /// Chunks taken from upstream and not yet taken by the reader.
    outstanding: usize,
    reader: Option<Waker>,
    /// The worker that holds upstream and waits for the reader to catch up.
    waiting: Option<Waker>,
    /// The worker that waits for upstream.
    pulling: Option<Waker>,
    /// Workers above the knob's number.
    parked: Vec<Waker>,
    workers_left: usize,
    /// Nobody reads any more, or the run has failed.
    closed: bool,
}

impl<F: Flow, U> Crew<F, U> {
    fn output(&self) -> MutexGuard<'_, Output<U, F::Token>> {
        self.output.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Waits until the worker may take part.
    fn poll_turn(&self, cx: &mut Context<'_>, worker: usize, started: usize) -> Poll<()> {
        let mut output = self.output();
        let over = output.closed || output.workers_left < started;
        if worker < self.workers.value() || over {
            return Poll::Ready(());
        }
        output.parked.push(cx.waker().clone());
        Poll::Pending
    }

    /// Waits until the reader is no more than the window behind, and returns an empty chunk for what is to come. `None`
    /// if the crew is closed.
    fn poll_window(&self, cx: &mut Context<'_>) -> Poll<Option<Done<F, U>>> {
        let mut output = self.output();
        if output.closed {
            return Poll::Ready(None);
        }
        if output.outstanding < self.workers.bounds().1 * CHUNKS_AHEAD {
            output.outstanding += 1;
            return Poll::Ready(Some(output.spare.pop().unwrap_or_else(Chunk::new)));
        }
        output.waiting = Some(cx.waker().clone());
        Poll::Pending
    }

    /// For a worker that waits for upstream: ready if the crew is closed, which wakes it.
    fn poll_closed(&self, cx: &Context<'_>) -> Poll<()> {
        let mut output = self.output();
        if output.closed {
            return Poll::Ready(());
        }
        output.pulling = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Hands a finished chunk to the reader.
    fn deliver(&self, ticket: u64, chunk: Chunk<(U, F::Token)>) {
        let mut output = self.output();
        if self.unordered {
            output.chunks.push_back(Some(chunk));
        } else {
            let at = (ticket - output.first_ticket) as usize;
            if output.chunks.len() <= at {
                output.chunks.resize_with(at + 1, || None);
            }
            output.chunks[at] = Some(chunk);
        }
        let reader =
            output.chunks.front().is_some_and(Option::is_some).then(|| output.reader.take()).flatten();
        let parked = std::mem::take(&mut output.parked);
        drop(output);
        parked.into_iter().chain(reader).for_each(Waker::wake);
    }

    /// Ends all workers: nobody reads any more, or the run has failed.
    fn close(&self) {
        let mut output = self.output();
        output.closed = true;
        let (waiting, pulling) = (output.waiting.take(), output.pulling.take());
        let parked = std::mem::take(&mut output.parked);
        drop(output);
        parked.into_iter().chain(waiting).chain(pulling).for_each(Waker::wake);
    }

    /// One worker ends; with the last one the flow ends.
    fn leave(&self) {
        let mut output = self.output();
        output.workers_left -= 1;
        let wakers: Vec<_> = output.parked.drain(..).collect();
        let reader = output.reader.take();
        drop(output);
        wakers.into_iter().chain(reader).for_each(Waker::wake);
    }
}

impl<F: Flow> Upstream<F> {
    /// Pulls up to `max` items, as many as are to be had without waiting, at least one.
    fn poll_pull(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
        out: &mut Vec<(F::Item, F::Token)>,
    ) -> Poll<()> {
        self.driver.begin();
        loop {
            let room = max - out.len();
            let turn = self.driver.turn_with(&mut self.flow, cx, room, |max| {
                let mut out = VecFilling::new(out, max);
                move |item, token| {
                    out.push((item, token));
                    ControlFlow::Continue(())
                }
            });
            match turn {
                Turn::End | Turn::Failed => {
                    self.ended = true;
                    return Poll::Ready(());
                }
                _ if out.len() == max => return Poll::Ready(()),
                Turn::Wait if out.is_empty() => return Poll::Pending,
                Turn::Wait => return Poll::Ready(()),
                Turn::Again => {}
            }
        }
    }
}

/// One worker's life.
async fn work<F, U, M>(crew: Arc<Crew<F, U>>, map: Arc<M>, worker: usize, started: usize)
where
    F: Flow + Send + 'static,
    F::Item: Send,
    U: Send + 'static,
    M: Fn(F::Item) -> U + Send + Sync + 'static,
{
    let _leaving = Leaving(&crew);
    let mut input = Vec::new();
    loop {
        poll_fn(|cx| crew.poll_turn(cx, worker, started)).await;
        let mut upstream = crew.upstream.lock().await;
        if upstream.ended {
            return;
        }
        let Some(mut output) = poll_fn(|cx| crew.poll_window(cx)).await else { return };
        let max = crew.chunk.load(Ordering::Relaxed);
        let pull = |cx: &mut Context<'_>| match upstream.poll_pull(cx, max, &mut input) {
            Poll::Ready(()) => Poll::Ready(true),
            Poll::Pending => crew.poll_closed(cx).map(|()| false),
        };
        if !poll_fn(pull).await {
            return;
        }
        let ticket = upstream.next_ticket;
        upstream.next_ticket += 1;
        drop(upstream);

        let began = Tick::now();
        let items = input.len();
        crew.stats.work_as(worker, Some(began));
        let goes_on = work_chunk(&crew, &mut input, &mut output, &*map);
        crew.stats.work_as(worker, None);
        if !goes_on {
            crew.close();
            return;
        }
        let took = Tick::now().since(began);
        crew.stats.add_quantum_shared(items as u64, took);
        if took > CHUNK_WORK {
            crew.stats.add_stall(took);
        }
        if let Some(each) = took.checked_div(items as u32) {
            let fit = CHUNK_WORK.as_nanos() / each.as_nanos().max(1);
            // Grow by doubling only: the first items of a run are often the slow ones.
            let next = (fit as usize).clamp(1, CHUNK_MAX).min(max.saturating_mul(2));
            crew.chunk.store(next, Ordering::Relaxed);
        }
        crew.deliver(ticket, output);
        // The reader may be waiting on this very thread, behind this long poll.
        tokio::task::yield_now().await;
    }
}

struct Leaving<'a, F: Flow, U>(&'a Crew<F, U>);

impl<F: Flow, U> Drop for Leaving<'_, F, U> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// Works through a chunk; a panic costs its own item. False if the run fails by it.
fn work_chunk<F: Flow, U>(
    crew: &Crew<F, U>,
    input: &mut Vec<(F::Item, F::Token)>,
    output: &mut Chunk<(U, F::Token)>,
    map: &impl Fn(F::Item) -> U,
) -> bool {
    let mut items = input.drain(..);
    loop {
        let catching = F::Token::TRACKED.then(CatchScope::enter);
        let result = catch_unwind(AssertUnwindSafe(|| {
            let mut output = output.fill(items.len());
            for (item, token) in items.by_ref() {
                output.push((map(item), token));
            }
        }));
        let Err(payload) = result else { return true };
        if settle_panic::<F::Token>(&crew.scope, &crew.stats, Panicked::new(payload), catching) {
            return false;
        }
    }
}

/// See [`Pipe::parallel`](crate::Pipe::parallel).
pub struct Parallel<F: Flow, U> {
    crew: Arc<Crew<F, U>>,
    tasks: Tasks,
    /// A chunk that is being pushed.
    current: Chunk<(U, F::Token)>,
}

impl<F, U> Parallel<F, U>
where
    F: Flow + Send + 'static,
    F::Item: Send,
    U: Send + 'static,
{
    pub(crate) fn new(
        flow: F,
        map: impl Fn(F::Item) -> U + Send + Sync + 'static,
        workers: Knob,
        unordered: bool,
        driver: Driver,
        stats: Arc<StageStats>,
    ) -> Self {
        let started = workers.bounds().1;
        let scope = driver.scope.clone();
        stats.has_workers(started);
        let output = Output {
            chunks: VecDeque::new(),
            spare: Vec::new(),
            first_ticket: 0,
            outstanding: 0,
            reader: None,
            waiting: None,
            pulling: None,
            parked: Vec::new(),
            workers_left: started,
            closed: false,
        };
        let upstream = Upstream { flow, driver, next_ticket: 0, ended: false };
        let crew = Arc::new(Crew {
            upstream: AsyncMutex::new(upstream),
            output: Mutex::new(output),
            workers,
            unordered,
            chunk: AtomicUsize::new(CHUNK_FIRST),
            scope: scope.clone(),
            stats: stats.clone(),
        });
        let map = Arc::new(map);
        let tasks = (0..started)
            .map(|worker| Box::pin(work(crew.clone(), map.clone(), worker, started)) as _)
            .collect();
        Parallel { crew, tasks: Tasks::new(scope, stats, tasks), current: Chunk::new() }
    }
}

impl<F: Flow, U> Parallel<F, U> {
    /// Makes the next finished chunk the current one, which is empty. False at the end.
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let mut output = self.crew.output();
        if let Some(chunk) = output.chunks.front_mut().and_then(Option::take) {
            output.spare.push(std::mem::replace(&mut self.current, chunk));
            output.chunks.pop_front();
            output.first_ticket += 1;
            output.outstanding -= 1;
            let waiting = output.waiting.take();
            drop(output);
            if let Some(waiting) = waiting {
                waiting.wake();
            }
            return Poll::Ready(true);
        }
        if output.workers_left == 0 {
            return Poll::Ready(false);
        }
        if output.reader.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
            output.reader = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

impl<F: Flow, U> Flow for Parallel<F, U> {
    type Item = U;
    type Token = F::Token;

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(U, F::Token) -> ControlFlow<()>,
    {
        self.tasks.start();
        let mut room = max;
        loop {
            let broke = self.current.push_into(&mut room, sink).is_break();
            if broke || room == 0 {
                return Poll::Ready(Step::More);
            }
            match ready!(self.poll_chunk(cx)) {
                true => {}
                false => return Poll::Ready(Step::End),
            }
        }
    }
}

impl<F: Flow, U> Drop for Parallel<F, U> {
    fn drop(&mut self) {
        self.crew.close();
    }
}
