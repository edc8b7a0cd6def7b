//! [`Pipe`]: what users build flows with. Its ends and its task boundaries are in the modules below it.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use futures_core::Stream;

use crate::channel::{FromChannel, Sender, channel};
use crate::failure::{BoxError, Failed};
use crate::flow::Flow;
use crate::measure::Measure;
use crate::op::basic::{Filter, FilterMap, Inspect, Map, Skip, Take};
use crate::op::batch::{Batch, Batched};
use crate::op::boxed::{self, BoxFlow};
use crate::op::errors::{DeadLetter, FailFast, Fallback, Reject, SkipErrors};
use crate::op::flat_map::{FlatMap, Unbatch};
use crate::op::map_async::{Concurrency, MapAsync};
use crate::op::merge::{Either, Merge};
use crate::op::try_map::TryMap;
use crate::retry::Retry;
use crate::run::Monitor;
use crate::scope::{PanicPolicy, Scope};
use crate::source::{FromIter, FromStream, FromTracked};
use crate::stats::OpStats;
use crate::token::{Account, Settle, Tracked};

mod boundaries;
mod ends;

pub use boundaries::{Buffered, LaneFlow};

/// A flow of items from a source through operators, not yet started.
///
/// Operators are methods and fuse: everything between two task boundaries ([`buffer`](Pipe::buffer),
/// [`parallel`](Pipe::parallel), [`broadcast`](Pipe::broadcast), [`partition`](Pipe::partition)) is one stage,
/// one task, one loop. Nothing runs before the flow is given an end ([`for_each`](Pipe::for_each),
/// [`collect`](Pipe::collect), [`into_sink`](Pipe::into_sink)) and started, or is polled as a
/// [`Stream`](futures_core::Stream).
///
/// ```
/// use millstream_flow::Pipe;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let (sum, report) = Pipe::from_iter(1..=1000u64)
///     .filter(|n| n % 3 == 0).named("multiples of three")
///     .map(|n| n * n)
///     .fold(0, |sum, n| *sum += n)
///     .await
///     .unwrap();
/// assert_eq!(sum, 111_277_611);
/// assert_eq!(report.ledger.received, 1000);
/// assert_eq!(report.ledger.dropped["multiples of three"], 667);
/// assert_eq!(report.ledger.completed, 333);
/// # }
/// ```
#[must_use = "a pipe does nothing until it is given an end and started"]
pub struct Pipe<F> {
    flow: F,
    scope: Arc<Scope>,
    /// The operators of the stage being built.
    ops: Vec<Arc<OpStats>>,
    /// The task boundary before it, until an operator follows.
    boundary: Option<Arc<OpStats>>,
}

/// An automatic hop begins with this capacity; the ring behind it has room for the tuner to move.
const HOP_AUTO: usize = 1024;
const HOP_AUTO_MAX: usize = 16 << 10;
/// The most memory of slots that an automatic hop may reach, for fat items.
const HOP_AUTO_BYTES: usize = 4 << 20;
/// Before a terminal a quantum may grow to this many items.
const QUANTUM_MAX: usize = 8192;

// Where flows begin.

impl<I: Iterator> Pipe<FromIter<I>> {
    /// A flow of an iterator's items.
    ///
    /// The iterator is asked for an item only when it can be passed on. It must not block.
    #[expect(
        clippy::should_implement_trait,
        reason = "it is one of several ways in, and named as users expect"
    )]
    pub fn from_iter(items: impl IntoIterator<IntoIter = I>) -> Self {
        Pipe::source("iter", |scope| FromIter::new(items.into_iter(), scope))
    }
}

impl<S: Stream> Pipe<FromStream<S>> {
    /// A flow of any stream's items.
    pub fn from_stream(stream: S) -> Self {
        Pipe::source("stream", |scope| FromStream::new(stream, scope))
    }
}

impl<T> Pipe<FromChannel<T>> {
    /// A flow of what is sent to it, and the end to send with: for items that come from a callback, a
    /// connection, a thread of your own. At most `capacity` items wait; a full flow makes the sender wait.
    ///
    /// Several producers have a channel each, and [`merge_all`](Pipe::merge_all) joins them.
    ///
    /// # Panics
    /// If `capacity` is 0.
    ///
    /// ```
    /// use millstream_flow::Pipe;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let (mut sender, pipe) = Pipe::channel(16);
    /// let run = pipe.collect().start();
    /// for n in 0..100 {
    ///     sender.send(n).await.unwrap();
    /// }
    /// drop(sender); // the flow ends after what was sent
    /// let (items, _) = run.join().await.unwrap();
    /// assert_eq!(items, (0..100).collect::<Vec<_>>());
    /// # }
    /// ```
    pub fn channel(capacity: usize) -> (Sender<T>, Self) {
        assert!(capacity > 0, "a channel of no items moves nothing");
        let mut sender = None;
        let pipe = Pipe::source("channel", |scope| {
            let (sending, receiving) = channel(capacity, scope);
            scope.add_memory("channel".into(), capacity.next_power_of_two().saturating_mul(size_of::<T>()));
            sender = Some(sending);
            receiving
        });
        (sender.expect("the source was made just now"), pipe)
    }
}

impl<S, T, K> Pipe<FromTracked<S>>
where
    S: Stream<Item = Result<Tracked<T, K>, BoxError>>,
    K: Settle,
{
    /// A flow of items that must be acknowledged, each with its token. `account` is the
    /// [`Tracker`](crate::Tracker)'s that issues the tokens. An `Err` of the stream fails the run.
    ///
    /// ```
    /// use millstream_flow::{BoxError, Outcome, Pipe, Tracked, Tracker};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let mut tracker = Tracker::new(|items: std::ops::Range<u64>, outcome: &Outcome| {
    ///     // tell the broker, the file's position, the client that waits ...
    ///     # let _ = (items, outcome);
    /// });
    /// let account = tracker.account();
    /// let deliveries = futures_util::stream::iter(["a", "b", "c"])
    ///     .map(move |value| Ok::<_, BoxError>(Tracked { value, token: tracker.issue() }));
    /// # use futures_util::StreamExt;
    /// let (_, report) = Pipe::from_tracked(account, deliveries).for_each(drop).await.unwrap();
    /// assert_eq!(report.ledger.completed, 3);
    /// # }
    /// ```
    pub fn from_tracked(account: Arc<Account>, stream: S) -> Self {
        Pipe::source("source", |scope| {
            scope.add_account(account);
            FromTracked::new(stream, scope)
        })
    }
}

impl<F: Flow> Pipe<F> {
    fn source(kind: &'static str, flow: impl FnOnce(&Arc<Scope>) -> F) -> Self {
        let scope = Scope::new();
        Pipe { flow: flow(&scope), ops: vec![OpStats::new(kind)], boundary: None, scope }
    }

    /// A flow made by an operator of your own, in the place of this one.
    pub fn via<G: Flow>(self, name: &str, operator: impl FnOnce(F) -> G) -> Pipe<G> {
        let Pipe { flow, scope, mut ops, .. } = self;
        let op = OpStats::new("via");
        op.rename(name.into());
        ops.push(op);
        Pipe { flow: operator(flow), scope, ops, boundary: None }
    }

    fn then<G>(self, kind: &'static str, make: impl FnOnce(F, Arc<OpStats>, &Arc<Scope>) -> G) -> Pipe<G> {
        let Pipe { flow, scope, mut ops, .. } = self;
        let op = OpStats::new(kind);
        ops.push(op.clone());
        if !F::Token::TRACKED {
            scope.add_untracked_op(op.clone());
        }
        Pipe { flow: make(flow, op, &scope), scope, ops, boundary: None }
    }

    /// Names the last operator: in reports, in failures, and as what dropped an item.
    pub fn named(self, name: &str) -> Self {
        if let Some(op) = self.ops.last().or(self.boundary.as_ref()) {
            op.rename(name.into());
        }
        self
    }

    /// What becomes of the run when a function of the user panics where no error is expected, as in
    /// [`map`](Pipe::map). [`try_map`](Pipe::try_map) makes a panic the item's error instead.
    pub fn on_panic(self, policy: PanicPolicy) -> Self {
        self.scope.set_panic_policy(policy);
        self
    }

    /// A handle to watch the flow with, started or not.
    pub fn monitor(&self) -> Monitor {
        Monitor::new(self.scope.clone())
    }

    // Fused operators: order kept, backpressure felt, nothing held.

    /// Turns each item into another.
    pub fn map<U, M: FnMut(F::Item) -> U>(self, map: M) -> Pipe<Map<F, M>> {
        self.then("map", |upstream, _, _| Map { upstream, map })
    }

    /// Looks at each item as it passes.
    pub fn inspect<I: FnMut(&F::Item)>(self, inspect: I) -> Pipe<Inspect<F, I>> {
        self.then("inspect", |upstream, _, _| Inspect { upstream, inspect })
    }

    /// Passes the items that `keep` answers `true` for. The others are done: settled, and counted as dropped by
    /// this operator's name.
    pub fn filter<P: FnMut(&F::Item) -> bool>(self, keep: P) -> Pipe<Filter<F, P>> {
        self.then("filter", |upstream, op, _| Filter { upstream, keep, op })
    }

    /// Maps and filters in one: `None` is dropped, as by [`filter`](Pipe::filter).
    pub fn filter_map<U, M: FnMut(F::Item) -> Option<U>>(self, map: M) -> Pipe<FilterMap<F, M>> {
        self.then("filter_map", |upstream, op, _| FilterMap { upstream, map, op })
    }

    /// Turns each item into any number of items, in order. The item is settled when its last part is; an item
    /// without parts is dropped by this operator's name.
    pub fn flat_map<I: IntoIterator, M: FnMut(F::Item) -> I>(self, map: M) -> Pipe<FlatMap<F, I, M>> {
        self.then("flat_map", |upstream, op, scope| FlatMap::new(upstream, map, op, scope.clone()))
    }

    /// Ends after `count` items. No further item is taken from the source.
    pub fn take(self, count: usize) -> Pipe<Take<F>> {
        self.then("take", |upstream, _, _| Take { upstream, left: count })
    }

    /// Drops the first `count` items.
    pub fn skip(self, count: usize) -> Pipe<Skip<F>> {
        self.then("skip", |upstream, op, _| Skip { upstream, left: count, op })
    }

    /// Gathers items into vectors. See [`Batch`] for when one is complete; what is left at the end of the flow
    /// is the last one.
    ///
    /// A batch's token stands for all of its items: confirming the batch confirms them.
    ///
    /// # Backpressure
    /// At most one batch is held. Its age is watched only while upstream has nothing more to give, so the timer
    /// costs a busy flow nothing.
    pub fn batch<W: Measure<F::Item>>(self, rule: Batch<W>) -> Pipe<Batched<F, W>> {
        self.then("batch", |upstream, op, scope| {
            let count = rule.knob(format!("{} count", op.name()));
            let slots = count.bounds().1.saturating_mul(size_of::<F::Item>());
            scope.add_memory("batch".into(), slots.saturating_add(rule.bytes_max().unwrap_or(0)));
            scope.add_knob(count.clone());
            Batched::new(upstream, rule, count, scope.clone())
        })
    }

    /// Takes batches apart again. A batch that still has as many items as it was made of gives each item its
    /// own token back; otherwise the items share the batch's.
    pub fn unbatch<T>(self) -> Pipe<Unbatch<F, T>>
    where
        F: Flow<Item = Vec<T>>,
    {
        self.then("unbatch", |upstream, op, scope| Unbatch::new(upstream, op, scope.clone()))
    }

    /// Calls a function that may fail, and gives `Ok` with its output or `Err` with a [`Failed`] that holds the
    /// *input*. What happens to failures is declared next: [`fail_fast`](Pipe::fail_fast),
    /// [`skip_errors`](Pipe::skip_errors), [`fallback`](Pipe::fallback), [`reject`](Pipe::reject) or
    /// [`dead_letter`](Pipe::dead_letter).
    ///
    /// # Panics
    /// A panic of the function is that item's failure, with [`Panicked`](crate::Panicked) as its error.
    ///
    /// ```
    /// use millstream_flow::Pipe;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let mut bad = Vec::new();
    /// let (numbers, _) = Pipe::from_iter(["1", "two", "3"])
    ///     .try_map(|text| text.parse::<u32>()).named("parse")
    ///     .fallback(move |failed| {
    ///         assert_eq!((failed.input, &*failed.stage, failed.position), ("two", "parse", 1));
    ///         bad.push(failed.input);
    ///         0
    ///     })
    ///     .collect()
    ///     .await
    ///     .unwrap();
    /// assert_eq!(numbers, [1, 0, 3]);
    /// # }
    /// ```
    pub fn try_map<U, E, M>(self, map: M) -> Pipe<TryMap<F, M>>
    where
        M: FnMut(&F::Item) -> Result<U, E>,
        E: Into<BoxError>,
    {
        self.try_map_retry(Retry::never(), map)
    }

    /// As [`try_map`](Pipe::try_map), and tries an item again as `retry` says before it counts as failed.
    ///
    /// # Ordering
    /// Kept: items behind a failing one wait while it is retried. To let them pass, use
    /// [`try_map_async`](Pipe::try_map_async) unordered.
    pub fn try_map_retry<U, E, M>(self, retry: Retry, map: M) -> Pipe<TryMap<F, M>>
    where
        M: FnMut(&F::Item) -> Result<U, E>,
        E: Into<BoxError>,
    {
        self.then("try_map", |upstream, op, scope| TryMap::new(upstream, map, retry, op, scope.clone()))
    }

    /// Calls an async function for each item, with many calls in flight in this stage's task.
    ///
    /// # Ordering
    /// As [`Concurrency`] says: in order, or as results come.
    ///
    /// # Backpressure
    /// At most the limit is in flight, waiting results of an ordered one included. No item allocates: calls live
    /// in slots that are made once.
    ///
    /// # Panics
    /// A call that panics is taken out; the run's [`PanicPolicy`] decides.
    pub fn map_async<M, Fut>(self, concurrency: impl Into<Concurrency>, map: M) -> Pipe<MapAsync<F, M, Fut>>
    where
        M: FnMut(F::Item) -> Fut,
        Fut: Future,
    {
        let concurrency = concurrency.into();
        self.then("map_async", |upstream, op, scope| {
            let limit = concurrency.knob(format!("{} in flight", op.name()));
            let call = size_of::<Fut>() + size_of::<Option<Fut::Output>>();
            scope.add_memory("map_async".into(), limit.bounds().1.saturating_mul(call));
            scope.add_knob(limit.clone());
            MapAsync::new(upstream, map, limit, concurrency.unordered)
        })
    }

    // What happens to failed items.

    /// Fails the run at the first failed item. What is under way, that item included, is given back to the
    /// source.
    pub fn fail_fast<T, I>(self) -> Pipe<FailFast<F>>
    where
        F: Flow<Item = Result<T, Failed<I>>>,
    {
        self.then("fail_fast", |upstream, _, scope| FailFast {
            upstream,
            scope: scope.clone(),
            failed: false,
        })
    }

    /// Drops failed items: settled, and counted by this operator's name.
    pub fn skip_errors<T, I>(self) -> Pipe<SkipErrors<F>>
    where
        F: Flow<Item = Result<T, Failed<I>>>,
    {
        self.then("skip_errors", |upstream, op, _| SkipErrors { upstream, op })
    }

    /// Puts something else in a failed item's place.
    pub fn fallback<T, I, M>(self, instead: M) -> Pipe<Fallback<F, M>>
    where
        F: Flow<Item = Result<T, Failed<I>>>,
        M: FnMut(Failed<I>) -> T,
    {
        self.then("fallback", |upstream, _, _| Fallback { upstream, instead })
    }

    /// Settles failed items as dead, with their reason: the source dead-letters them (a broker's queue moves the
    /// message to its dead-letter exchange).
    pub fn reject<T, I>(self) -> Pipe<Reject<F>>
    where
        F: Flow<Item = Result<T, Failed<I>>>,
    {
        self.then("reject", |upstream, _, scope| Reject { upstream, scope: scope.clone() })
    }

    /// Hands failed items to `send`, one after the other, and settles each as dead when `send` has it safe. The
    /// flow waits meanwhile. If `send` fails or panics the run fails, and the item is given back to its source.
    pub fn dead_letter<T, I, D, Fut>(self, send: D) -> Pipe<DeadLetter<F, D>>
    where
        F: Flow<Item = Result<T, Failed<I>>>,
        D: FnMut(Failed<I>) -> Fut,
        Fut: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        self.then("dead_letter", |upstream, _, scope| DeadLetter {
            upstream,
            send,
            scope: scope.clone(),
            sending: None,
            ended: false,
        })
    }

    /// Forgets the operators' types: any flow of the same items is then of one type. Compiles faster, and costs
    /// each item one move into a chunk and one out of it (`cargo xtask bench engine boxed`).
    pub fn boxed(self) -> Pipe<BoxFlow<F::Item, F::Token>>
    where
        F: Send + 'static,
    {
        let Pipe { flow, scope, ops, boundary } = self;
        scope.add_memory(
            "boxed".into(),
            boxed::chunk_items::<(F::Item, F::Token)>() * size_of::<(F::Item, F::Token)>(),
        );
        Pipe { flow: BoxFlow::new(flow), scope, ops, boundary }
    }

    /// This flow and another of the same items, by turns of up to 256 items. Ends when both have ended.
    ///
    /// # Ordering
    /// Each input's order is kept.
    pub fn merge<G>(self, other: Pipe<G>) -> Pipe<Merge<Either<F, G>>>
    where
        G: Flow<Item = F::Item, Token = F::Token>,
    {
        let Pipe { flow, scope, mut ops, .. } = self;
        let scope = scope.adopt(&other.scope);
        ops.extend(other.ops);
        let flow = Merge::new([Either::Left(flow), Either::Right(other.flow)]);
        ops.push(OpStats::new("merge"));
        Pipe { flow, scope, ops, boundary: None }
    }

    /// Any number of flows of one type as one, by turns.
    ///
    /// # Panics
    /// If there is none.
    pub fn merge_all(pipes: impl IntoIterator<Item = Pipe<F>>) -> Pipe<Merge<F>> {
        let mut pipes = pipes.into_iter();
        let first = pipes.next().expect("merging takes at least one flow");
        let Pipe { flow, mut scope, mut ops, .. } = first;
        let mut flows = vec![flow];
        for pipe in pipes {
            scope = scope.adopt(&pipe.scope);
            ops.extend(pipe.ops);
            flows.push(pipe.flow);
        }
        ops.push(OpStats::new("merge"));
        Pipe { flow: Merge::new(flows), scope, ops, boundary: None }
    }
}

impl<F> Pipe<F>
where
    F: Flow,
    F::Item: Send + Sync + 'static,
{
    /// Calls an async function that may fail, with many calls in flight and retries, and gives `Ok` with its
    /// output or `Err` with a [`Failed`] that holds the input.
    ///
    /// A retried call keeps its place in flight while it waits for its next attempt.
    ///
    /// # Ordering
    /// As [`Concurrency`] says.
    ///
    /// ```
    /// use millstream_flow::{Concurrency, Pipe, Retry};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// let (replies, _) = Pipe::from_iter(1..=3)
    ///     .try_map_async(Concurrency::ordered(2), Retry::attempts(3).unwrap(), async |n: &i32| match n {
    ///         2 => Err("refused"),
    ///         n => Ok(n * 10),
    ///     })
    ///     .fallback(|failed| -(failed.attempts as i32))
    ///     .collect()
    ///     .await
    ///     .unwrap();
    /// assert_eq!(replies, [10, -3, 30]);
    /// # }
    /// ```
    pub fn try_map_async<U, E, M>(
        self,
        concurrency: impl Into<Concurrency>,
        retry: Retry,
        map: M,
    ) -> Pipe<impl Flow<Item = Result<U, Failed<F::Item>>, Token = F::Token>>
    where
        M: AsyncFn(&F::Item) -> Result<U, E> + 'static,
        E: Into<BoxError>,
    {
        let op = OpStats::new("try_map_async");
        let scope = self.scope.clone();
        let shared = Arc::new((map, retry, op.clone()));
        let mut position = 0;
        let mut pipe = self.map_async(concurrency, move |input| {
            let at = position;
            position += 1;
            crate::op::try_async::call(shared.clone(), scope.clone(), input, at)
        });
        // The operator that users see, and name, is this one.
        if let Some(last) = pipe.ops.last_mut() {
            *last = op;
        }
        pipe
    }
}

// Nothing is pinned in place: operators that need pinning box what they pin.
impl<F> Unpin for Pipe<F> {}

impl<F> fmt::Debug for Pipe<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.ops.iter().map(|op| op.name()).collect();
        f.debug_struct("Pipe").field("stage", &names).finish_non_exhaustive()
    }
}
