//! A worker's life.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use super::crew::{Crew, Done, Job, Pulled};
use super::output::Place;
use super::{CHUNK_MAX, CHUNK_WORK};
use crate::clock::Tick;
use crate::drive::settle_panic;
use crate::failure::Panicked;
use crate::flow::Flow;
use crate::measure::Measure;
use crate::token::{CatchScope, Settle};

/// What a worker does next, with its items in `input`: the next chunk of upstream's, or a part of one that another worker could not
/// get done. `None` if there is nothing left to do.
async fn next<F: Flow, U, W: Measure<F::Item>>(
    crew: &Crew<F, U>,
    // Mutable, so that it need not be `Sync` to be held over a wait.
    measure: &mut W,
    worker: usize,
    input: &mut Vec<Pulled<F>>,
) -> Option<Job<F, U>> {
    if let Some(job) = crew.offered(input) {
        return Some(job);
    }
    let mut lock = pin!(crew.upstream.lock());
    let locked = poll_fn(|cx| match lock.as_mut().poll(cx) {
        Poll::Ready(upstream) => Poll::Ready(Ok(upstream)),
        Poll::Pending => crew.poll_offer(cx, worker, input).map(Err),
    });
    let mut upstream = match locked.await {
        Ok(upstream) => upstream,
        Err(job) => return job,
    };
    if !upstream.ended {
        let window = poll_fn(|cx| match crew.poll_window(cx) {
            Poll::Ready(chunk) => Poll::Ready(Ok(chunk)),
            Poll::Pending => crew.poll_offer(cx, worker, input).map(Err),
        });
        let chunk = match window.await {
            Ok(chunk) => chunk,
            Err(job) => return job,
        };
        let (max, bytes_max) = (crew.chunk.load(Ordering::Relaxed), crew.limit.chunk_bytes);
        let pulled = poll_fn(|cx| match upstream.poll_pull(cx, max, bytes_max, measure, input) {
            Poll::Ready(bytes) => Poll::Ready(Ok(bytes)),
            Poll::Pending => crew.poll_offer(cx, worker, input).map(Err),
        });
        return match pulled.await {
            Ok(bytes) => {
                if W::MEASURES {
                    crew.output().pulled(bytes);
                }
                if upstream.ended {
                    crew.output().ended = true;
                }
                Some(Job { place: upstream.ticket(bytes), output: chunk, pulled: Some(max) })
            }
            Err(job) => {
                crew.output().give_back(chunk);
                job
            }
        };
    }
    drop(upstream);
    poll_fn(|cx| crew.poll_rest(cx, worker, input)).await
}

/// One worker's life.
pub(super) async fn work<F, U, M, W>(
    crew: Arc<Crew<F, U>>,
    map: Arc<M>,
    mut measure: W,
    worker: usize,
    started: usize,
) where
    F: Flow + Send + 'static,
    F::Item: Send,
    U: Send + 'static,
    M: Fn(F::Item) -> U + Send + Sync + 'static,
    W: Measure<F::Item>,
{
    let _leaving = Leaving(&crew);
    let mut input = Vec::new();
    loop {
        poll_fn(|cx| crew.poll_turn(cx, worker, started)).await;
        let job = next(&crew, &mut measure, worker, &mut input).await;
        crew.go_on(worker);
        let Some(Job { mut place, mut output, pulled }) = job else { return };

        let began = Tick::now();
        crew.stats.work_as(worker, Some(began));
        let worked = work_chunk(&crew, began, &mut place, &mut input, &mut output, &*map);
        crew.stats.work_as(worker, None);
        let Some(items) = worked else {
            crew.close();
            return;
        };
        let took = Tick::now().since(began);
        crew.stats.add_quantum_shared(items as u64, took);
        if took > CHUNK_WORK {
            crew.stats.add_stall(took);
        }
        if let Some((max, each)) = pulled.zip(took.checked_div(items as u32)) {
            let fit = CHUNK_WORK.as_nanos() / each.as_nanos().max(1);
            // Grow by doubling only: the first items of a run are often the slow ones.
            let next = (fit as usize).clamp(1, CHUNK_MAX).min(max.saturating_mul(2));
            crew.chunk.store(next, Ordering::Relaxed);
        }
        crew.deliver(place, output);
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

/// Works through a chunk; a panic costs its own item. How many items it was: fewer than there were if others took some. `None` if
/// the run fails.
fn work_chunk<F: Flow, U>(
    crew: &Crew<F, U>,
    began: Tick,
    place: &mut Place,
    input: &mut Vec<Pulled<F>>,
    output: &mut Done<F, U>,
    map: &impl Fn(F::Item) -> U,
) -> Option<usize> {
    let mut sharing = Sharing { began, done: 0, look: 1 };
    let mut items = input.drain(..);
    loop {
        let catching = F::Token::TRACKED.then(CatchScope::enter);
        let result = catch_unwind(AssertUnwindSafe(|| {
            let mut output = output.fill(items.len());
            while let Some((item, token)) = items.next() {
                sharing.done += 1;
                output.push((map(item), token));
                if crew.idle.load(Ordering::Relaxed) > 0 && sharing.pays(items.len()) {
                    let all = sharing.done + items.len();
                    crew.share(place, &mut items, all);
                }
            }
        }));
        let Err(payload) = result else { return Some(sharing.done) };
        if settle_panic::<F::Token>(&crew.scope, &crew.stats, Panicked::new(payload), catching) {
            return None;
        }
    }
}

/// What another worker is woken for.
const SHARED_WORK: Duration = Duration::from_micros(20);
/// How many items are done between two looks at the clock, at most.
const LOOK_MAX: usize = 16;

/// When the rest of a chunk is worth another worker's while.
///
/// Nothing is split as long as all have something to do, nor before what is left is known to take long. It is the busy one
/// who splits, so that nobody has to search, and the others' items are out of reach: *lazy binary splitting* (Tzannes, Caragea,
/// Barua, Vishkin: Lazy binary-splitting, PPoPP 2010).
struct Sharing {
    began: Tick,
    done: usize,
    /// The number of items at which to look at the clock.
    look: usize,
}

impl Sharing {
    /// Whether somebody else should take half of the items that are left.
    fn pays(&mut self, left: usize) -> bool {
        if self.done < self.look || left < 2 {
            return false;
        }
        self.look = self.done + self.done.min(LOOK_MAX);
        let took = Tick::now().nanoseconds_since(self.began);
        took / self.done as u64 * left as u64 > SHARED_WORK.as_nanos() as u64
    }
}
