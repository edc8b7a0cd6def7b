//! [`Pipe`]: what users build flows with.

use std::collections::hash_map::DefaultHasher;
use std::fmt;
use std::future::Future;
use std::hash::{BuildHasher, BuildHasherDefault, Hash};
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use futures_core::Stream;

use crate::drive::Driver;
use crate::failure::{BoxError, Failed};
use crate::finish::{Drain, run_sink};
use crate::flow::{Flow, Step};
use crate::knob::{Knob, Setting};
use crate::measure::{Capacity, Measure, Unmeasured};
use crate::op::basic::{Filter, FilterMap, Inspect, Map, Skip, Take};
use crate::op::batch::{Batch, Batched};
use crate::op::boxed::{self, BoxFlow};
use crate::op::broadcast::{FanOut, Lane, Route, ToAll, ToLane};
use crate::op::buffer::{Hop, Pump, chunk_items};
use crate::op::errors::{DeadLetter, FailFast, Fallback, Reject, SkipErrors};
use crate::op::flat_map::{FlatMap, Unbatch};
use crate::op::map_async::{Concurrency, MapAsync};
use crate::op::merge::{Either, Merge};
use crate::op::overflow::{Overflow, Shedder, Shedding, Shelf};
use crate::op::parallel::{self, Parallel, Workers};
use crate::op::try_map::TryMap;
use crate::retry::Retry;
use crate::ring::ring;
use crate::run::{Monitor, Plan};
use crate::scope::{HopEntry, PanicPolicy, Scope};
use crate::sink::Sink;
use crate::source::{FromIter, FromStream, FromTracked};
use crate::spawn::Tasks;
use crate::stats::{HopStats, OpStats, StageStats};
use crate::token::{Account, Settle, Tracked};

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
        Pipe { flow: flow(&scope), ops: vec![OpStats::new(kind)], scope }
    }

    /// A flow made by an operator of your own, in the place of this one.
    pub fn via<G: Flow>(self, name: &str, operator: impl FnOnce(F) -> G) -> Pipe<G> {
        let Pipe { flow, scope, mut ops } = self;
        let op = OpStats::new("via");
        op.rename(name.into());
        ops.push(op);
        Pipe { flow: operator(flow), scope, ops }
    }

    fn then<G>(self, kind: &'static str, make: impl FnOnce(F, Arc<OpStats>, &Arc<Scope>) -> G) -> Pipe<G> {
        let Pipe { flow, scope, mut ops } = self;
        let op = OpStats::new(kind);
        ops.push(op.clone());
        if !F::Token::TRACKED {
            scope.add_untracked_op(op.clone());
        }
        Pipe { flow: make(flow, op, &scope), scope, ops }
    }

    /// Names the last operator: in reports, in failures, and as what dropped an item.
    pub fn named(self, name: &str) -> Self {
        if let Some(op) = self.ops.last() {
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
    /// 0.1 to 0.2 ns for a small item, about 7 ns for one of 200 bytes.
    pub fn boxed(self) -> Pipe<BoxFlow<F::Item, F::Token>>
    where
        F: Send + 'static,
    {
        let Pipe { flow, scope, ops } = self;
        scope.add_memory("boxed".into(), boxed::CHUNK * size_of::<(F::Item, F::Token)>());
        Pipe { flow: BoxFlow::new(flow), scope, ops }
    }

    /// This flow and another of the same items, by turns of up to 256 items. Ends when both have ended.
    ///
    /// # Ordering
    /// Each input's order is kept.
    pub fn merge<G>(self, other: Pipe<G>) -> Pipe<Merge<Either<F, G>>>
    where
        G: Flow<Item = F::Item, Token = F::Token>,
    {
        let Pipe { flow, scope, mut ops } = self;
        scope.adopt(&other.scope);
        ops.extend(other.ops);
        let flow = Merge::new([Either::Left(flow), Either::Right(other.flow)]);
        ops.push(OpStats::new("merge"));
        Pipe { flow, scope, ops }
    }

    /// Any number of flows of one type as one, by turns.
    ///
    /// # Panics
    /// If there is none.
    pub fn merge_all(pipes: impl IntoIterator<Item = Pipe<F>>) -> Pipe<Merge<F>> {
        let mut pipes = pipes.into_iter();
        let first = pipes.next().expect("merging takes at least one flow");
        let Pipe { flow, scope, mut ops } = first;
        let mut flows = vec![flow];
        for pipe in pipes {
            scope.adopt(&pipe.scope);
            ops.extend(pipe.ops);
            flows.push(pipe.flow);
        }
        ops.push(OpStats::new("merge"));
        Pipe { flow: Merge::new(flows), scope, ops }
    }

    // Ends.

    fn driver(self, kind: &'static str) -> (F, Driver) {
        let Pipe { flow, scope, mut ops } = self;
        ops.push(OpStats::new(kind));
        let stats = Arc::new(StageStats::new(ops));
        scope.add_stage(stats.clone());
        (flow, Driver::new(scope, stats, QUANTUM_MAX))
    }

    /// Ends the flow in a function. An item is confirmed when the function returns.
    pub fn for_each(self, mut each: impl FnMut(F::Item) + Send + 'static) -> Plan<()>
    where
        F: Send + 'static,
    {
        self.end("for_each", (), move |(), item| each(item))
    }

    /// Ends the flow in one value.
    pub fn fold<A: Send + 'static>(
        self,
        initial: A,
        each: impl FnMut(&mut A, F::Item) + Send + 'static,
    ) -> Plan<A>
    where
        F: Send + 'static,
    {
        self.end("fold", initial, each)
    }

    /// Ends the flow in a vector of its items, which is bounded by nothing but their number.
    pub fn collect(self) -> Plan<Vec<F::Item>>
    where
        F: Send + 'static,
        F::Item: Send,
    {
        self.end("collect", Vec::new(), |items: &mut Vec<_>, item| items.push(item))
    }

    fn end<A: Send + 'static>(
        self,
        kind: &'static str,
        state: A,
        each: impl FnMut(&mut A, F::Item) + Send + 'static,
    ) -> Plan<A>
    where
        F: Send + 'static,
    {
        let (flow, driver) = self.driver(kind);
        let scope = driver.scope.clone();
        Plan::new(scope, Drain { flow, state: Some(state), each, driver })
    }

    /// Ends the flow in a sink, which confirms items to their source as it writes them. The run gives the sink
    /// back.
    pub fn into_sink<S: Sink<Item = F::Item>>(self, sink: S) -> Plan<S>
    where
        F: Send + 'static,
        F::Item: Send,
    {
        let chunk = sink.chunk().max(1);
        let (flow, driver) = self.driver("sink");
        let scope = driver.scope.clone();
        scope.add_memory("sink".into(), chunk.saturating_mul(size_of::<(F::Item, F::Token)>()));
        Plan::new(scope, run_sink(flow, sink, driver))
    }
}

// Task boundaries.

impl<F> Pipe<F>
where
    F: Flow + Send + 'static,
    F::Item: Send,
{
    /// Closes the stage built so far.
    fn boundary(self, kind: &'static str, quantum_max: usize) -> (F, Driver, Arc<OpStats>) {
        let Pipe { flow, scope, mut ops } = self;
        let op = OpStats::new(kind);
        if !F::Token::TRACKED {
            scope.add_untracked_op(op.clone());
        }
        // The stage ends with the hand-over, so that its report says where it leads.
        ops.push(op.clone());
        let stats = Arc::new(StageStats::new(ops));
        scope.add_stage(stats.clone());
        (flow, Driver::new(scope, stats, quantum_max), op)
    }

    fn hop_knob(scope: &Scope, op: &OpStats, items: Setting) -> Knob {
        let max = match items {
            Setting::Fixed(items) => items,
            Setting::Auto => {
                (HOP_AUTO_BYTES / size_of::<(F::Item, F::Token)>().max(1)).clamp(HOP_AUTO, HOP_AUTO_MAX)
            }
        };
        let knob =
            Knob::new(format!("{} {} capacity", op.name(), scope.hop_count() + 1), items, HOP_AUTO, 1, max);
        scope.add_knob(knob.clone());
        knob
    }

    /// Runs what was built so far in a task of its own, with a bounded buffer of items between it and what
    /// follows. A full buffer makes the producer wait.
    ///
    /// Items cross in chunks, handed over the moment the producer would wait: a busy flow moves hundreds a
    /// wake-up, an idle one moves each item at once.
    ///
    /// # Ordering
    /// Kept.
    ///
    /// # Cancel safety
    /// When the run is dropped, the items in the buffer are given back to their source by their tokens, or are
    /// dropped if they have none.
    pub fn buffer(self, capacity: impl Into<Capacity>) -> Pipe<Hop<F::Item, F::Token, Unmeasured>> {
        self.buffer_measured(capacity.into())
    }

    /// As [`buffer`](Pipe::buffer), bounded in bytes too.
    pub fn buffer_measured<W>(self, capacity: Capacity<W>) -> Pipe<Hop<F::Item, F::Token, W>>
    where
        W: Measure<F::Item> + Clone,
    {
        let Capacity { items, bytes_max, measure } = capacity;
        let (flow, driver, op) = self.boundary("buffer", chunk_items::<(F::Item, F::Token)>());
        let scope = driver.scope.clone();
        let (capacity, stats) = Self::add_hop(&scope, &op, items, bytes_max);
        let (writer, reader) = ring(capacity.bounds().1);
        let bytes_max = bytes_max.unwrap_or(usize::MAX);
        let pump = Pump {
            flow,
            measure: measure.clone(),
            writer,
            capacity,
            bytes_max,
            stats: stats.clone(),
            driver,
        };
        let tasks = Tasks::new(scope.clone(), vec![Box::pin(pump)]);
        Pipe { flow: Hop { reader, measure, stats, tasks }, scope, ops: Vec::new() }
    }

    fn add_hop(
        scope: &Scope,
        op: &OpStats,
        items: Setting,
        bytes_max: Option<usize>,
    ) -> (Knob, Arc<HopStats>) {
        let capacity = Self::hop_knob(scope, op, items);
        let stats = Arc::new(HopStats::default());
        scope.add_hop(HopEntry { stats: stats.clone(), capacity: capacity.clone(), bytes_max });
        let slots = capacity.bounds().1.next_power_of_two().saturating_mul(size_of::<(F::Item, F::Token)>());
        scope.add_memory(op.name().to_string(), slots.saturating_add(bytes_max.unwrap_or(0)));
        (capacity, stats)
    }

    /// As [`buffer_measured`](Pipe::buffer_measured), and says what happens when it is full.
    ///
    /// Dropped items are settled and counted by this operator's name.
    pub fn buffer_with<W>(self, capacity: Capacity<W>, overflow: Overflow) -> Pipe<Buffered<F, W>>
    where
        W: Measure<F::Item> + Clone,
    {
        if overflow == Overflow::Wait {
            let Pipe { flow, scope, ops } = self.buffer_measured(capacity);
            return Pipe { flow: Either::Left(flow), scope, ops };
        }
        let Capacity { items, bytes_max, measure } = capacity;
        let (flow, driver, op) = self.boundary("buffer", chunk_items::<(F::Item, F::Token)>());
        let scope = driver.scope.clone();
        let (capacity, stats) = Self::add_hop(&scope, &op, items, bytes_max);
        let shelf = Shelf::new();
        let shedder = Shedder {
            flow,
            measure: measure.clone(),
            shelf: shelf.clone(),
            capacity,
            bytes_max: bytes_max.unwrap_or(usize::MAX),
            oldest: overflow == Overflow::DropOldest,
            op,
            stats: stats.clone(),
            driver,
            chunk: Vec::new(),
        };
        let tasks = Tasks::new(scope.clone(), vec![Box::pin(shedder)]);
        let flow = Either::Right(Shedding { shelf, measure, stats, tasks, taken: Default::default() });
        Pipe { flow, scope, ops: Vec::new() }
    }

    /// Calls a function that needs the processor, on several cores.
    ///
    /// Workers pull chunks of about 100 µs of work from what was built so far, so uneven work spreads by
    /// itself. From about 0.2 µs an item on, two cores do nearly twice the work of one.
    ///
    /// # Ordering
    /// As [`Workers`] says: in order, with a bounded window of chunks ahead of the slowest, or as they come.
    ///
    /// # Panics
    /// A panic costs its own item; the run's [`PanicPolicy`] decides.
    pub fn parallel<U, M>(self, workers: impl Into<Workers>, map: M) -> Pipe<Parallel<F, U>>
    where
        U: Send + 'static,
        M: Fn(F::Item) -> U + Send + Sync + 'static,
    {
        let workers = workers.into();
        let (flow, driver, op) = self.boundary("pull", parallel::CHUNK_MAX);
        let scope = driver.scope.clone();
        let work = OpStats::new("parallel");
        let knob = workers.knob(format!("{} workers", work.name()));
        let each = size_of::<(F::Item, F::Token)>().max(size_of::<(U, F::Token)>());
        let chunks = knob.bounds().1 * parallel::CHUNKS_AHEAD;
        scope.add_memory(op.name().to_string(), chunks * parallel::CHUNK_MAX * each);
        scope.add_knob(knob.clone());
        let stats = Arc::new(StageStats::new(vec![work]));
        scope.add_stage(stats.clone());
        let flow = Parallel::new(flow, map, knob, workers.unordered, driver, stats);
        Pipe { flow, scope, ops: Vec::new() }
    }

    fn fan_out<R>(
        self,
        kind: &'static str,
        lanes: usize,
        capacity: Capacity,
        route: R,
    ) -> Vec<Pipe<LaneFlow<F>>>
    where
        R: Route<F::Item, F::Token>,
    {
        assert!(lanes > 0, "a flow goes to at least one lane");
        let (flow, driver, op) = self.boundary(kind, chunk_items::<(F::Item, F::Token)>());
        let scope = driver.scope.clone();
        let mut ends = Vec::with_capacity(lanes);
        let lanes = (0..lanes)
            .map(|_| {
                let (capacity, stats) = Self::add_hop(&scope, &op, capacity.items, None);
                let (writer, reader) = ring(capacity.bounds().1);
                ends.push((reader, stats.clone()));
                Lane { writer: Some(writer), capacity, stats }
            })
            .collect();
        let tasks = Tasks::new(scope.clone(), vec![Box::pin(FanOut { flow, route, lanes, driver })]);
        ends.into_iter()
            .map(|(reader, stats)| Pipe {
                flow: Hop { reader, measure: Unmeasured, stats, tasks: tasks.clone() },
                scope: scope.clone(),
                ops: Vec::new(),
            })
            .collect()
    }

    /// Gives every item to each of `subscribers` flows, through a buffer each. The slowest sets the pace; one
    /// that is dropped is left out. An item is settled when all have settled it.
    ///
    /// # Panics
    /// If `subscribers` is 0.
    pub fn broadcast(self, subscribers: usize, capacity: impl Into<Capacity>) -> Vec<Pipe<LaneFlow<F>>>
    where
        F::Item: Clone,
    {
        self.fan_out("broadcast", subscribers, capacity.into(), ToAll)
    }

    /// Splits the flow into `lanes` by key: items of one key go to one lane, in order. The same key always goes
    /// to the same lane, in every run and process.
    ///
    /// # Backpressure
    /// A full lane holds the others back, once their buffers are used up: order by key and bounded memory leave
    /// no other way.
    ///
    /// # Panics
    /// If `lanes` is 0.
    pub fn partition<Q: Hash>(
        self,
        lanes: usize,
        capacity: impl Into<Capacity>,
        mut key: impl FnMut(&F::Item) -> Q + Send + 'static,
    ) -> Vec<Pipe<LaneFlow<F>>> {
        let hasher = BuildHasherDefault::<DefaultHasher>::default();
        let lane = move |item: &F::Item| hasher.hash_one(key(item)) as usize;
        self.fan_out("partition", lanes, capacity.into(), ToLane(lane))
    }

    /// Splits by key, lets `lane` build what each lane does, in a task of its own, and merges the lanes again.
    ///
    /// # Ordering
    /// By key.
    ///
    /// # Panics
    /// If `lanes` is 0.
    pub fn per_key<Q: Hash, G>(
        self,
        lanes: usize,
        capacity: impl Into<Capacity>,
        key: impl FnMut(&F::Item) -> Q + Send + 'static,
        lane: impl FnMut(Pipe<LaneFlow<F>>) -> Pipe<G>,
    ) -> Pipe<Merge<LaneFlow<G>>>
    where
        G: Flow + Send + 'static,
        G::Item: Send,
    {
        let capacity = capacity.into();
        let lanes = self.partition(lanes, capacity, key).into_iter().map(lane);
        Pipe::merge_all(lanes.map(|pipe| pipe.buffer(capacity)))
    }
}

/// What flows behind a buffer that may shed.
pub type Buffered<F, W> =
    Either<Hop<<F as Flow>::Item, <F as Flow>::Token, W>, Shedding<<F as Flow>::Item, <F as Flow>::Token, W>>;

/// What flows in one lane of a fan-out.
pub type LaneFlow<F> = Hop<<F as Flow>::Item, <F as Flow>::Token, Unmeasured>;

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

/// A flow *is* a stream: exact, without read-ahead. Polling it for one item takes one item from the source.
///
/// If the run can fail (a tracked source's error, [`fail_fast`](Pipe::fail_fast), a panic in another stage), a
/// stream's end does not say so; end the flow with [`collect`](Pipe::collect) or a sink to be told.
impl<F: Flow<Token = ()>> Stream for Pipe<F> {
    type Item = F::Item;

    #[inline]
    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<F::Item>> {
        let this = self.get_mut();
        loop {
            let mut next = None;
            let step = this.flow.poll_drive(cx, 1, &mut |item, ()| {
                next = Some(item);
                ControlFlow::Break(())
            });
            if next.is_some() {
                let completed = &this.scope.counts.completed;
                completed.store(completed.load(Ordering::Relaxed) + 1, Ordering::Release);
                return Poll::Ready(next);
            }
            match step {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Step::End) => return Poll::Ready(None),
                Poll::Ready(Step::More) => {} // the item was dropped by a filter
            }
        }
    }
}

impl<F> fmt::Debug for Pipe<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.ops.iter().map(|op| op.name()).collect();
        f.debug_struct("Pipe").field("stage", &names).finish_non_exhaustive()
    }
}
