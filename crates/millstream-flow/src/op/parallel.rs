//! CPU work on several cores: workers that pull, and share.
//!
//! Each worker locks upstream, pulls a chunk sized to about 100 µs of work, takes a ticket, unlocks, works, and
//! delivers. Pulling needs no dispatcher that could sit behind a worker's long poll in the scheduler, and spreads
//! uneven work by itself: whoever is free takes the next chunk. A chunk that turns out to take longer is split while somebody
//! has nothing to do.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use crate::chunk::Chunk;
use crate::drive::Driver;
use crate::flow::{Flow, Step};
use crate::knob::Knob;
use crate::measure::Measure;
use crate::spawn::Tasks;
use crate::stats::StageStats;

mod crew;
mod output;
mod work;
mod workers;

use crew::Crew;
use work::work;
pub use workers::Workers;

/// How much work a chunk should be: long enough to make the hand-over cheap, short enough to share.
const CHUNK_WORK: Duration = Duration::from_micros(100);
/// The most items of a chunk, and the most chunks a worker may be ahead of the slowest.
pub(crate) const CHUNK_MAX: usize = 1024;
pub(crate) const CHUNKS_AHEAD: usize = 4;
/// One, as long as nobody knows what an item costs.
const CHUNK_FIRST: usize = 1;

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
    pub(crate) fn new<W: Measure<F::Item> + Clone>(
        flow: F,
        map: impl Fn(F::Item) -> U + Send + Sync + 'static,
        knob: Knob,
        workers: Workers<W>,
        driver: Driver,
        stats: Arc<StageStats>,
    ) -> Self {
        let started = knob.bounds().1;
        let scope = driver.scope.clone();
        stats.has_workers(started);
        let crew = Arc::new(Crew::new(flow, driver, knob, &workers, stats.clone()));
        let map = Arc::new(map);
        let life = |worker| work(crew.clone(), map.clone(), workers.measure.clone(), worker, started);
        let tasks = (0..started).map(|worker| Box::pin(life(worker)) as _).collect();
        Parallel { crew, tasks: Tasks::new(scope, stats, tasks), current: Chunk::new() }
    }
}

impl<F: Flow, U> Parallel<F, U> {
    /// Makes the next finished chunk the current one, which is empty. False at the end.
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let mut output = self.crew.output();
        let freed = output.has_read();
        let taken = output.take(&mut self.current);
        let waiting = if freed || taken { output.waiting.take() } else { None };
        let ended = !taken && output.workers_left == 0;
        if !taken && output.reader.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
            output.reader = Some(cx.waker().clone());
        }
        drop(output);
        if let Some(waiting) = waiting {
            waiting.wake();
        }
        if taken || ended { Poll::Ready(taken) } else { Poll::Pending }
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
