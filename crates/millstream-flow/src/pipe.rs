//! [`Pipe`]: what users build flows with. Its ends and its task boundaries are in the modules below it.

use std::convert::identity;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_core::Stream;

use crate::channel::{FromChannel, Sender, channel};
use crate::clock::Clock;
use crate::failure::BoxError;
use crate::flow::Flow;
use crate::knob::Knob;
use crate::measure::Measure;
use crate::op::basic::{Inspect, Map, Scan};
use crate::op::batch::{Batch, Batched};
use crate::op::boxed::{self, BoxFlow};
use crate::op::flat_map::{FlatMap, Unbatch};
use crate::op::inputs::{Changing, Inputs};
use crate::op::meter::{Meter, Metered};
use crate::replay::{Recorded, Replay};
use crate::run::Monitor;
use crate::scope::{PanicPolicy, Scope};
use crate::source::{FromIter, FromStream, FromTracked, Stopping};
use crate::stats::OpStats;
use crate::token::{Account, Settle, Tracked};

mod boundaries;
mod calls;
mod contexts;
mod ends;
mod failing;
mod joining;
mod lanes;
mod selecting;
mod timing;
mod windows;

pub use boundaries::Buffered;
pub(crate) use boundaries::add_hop;
pub use lanes::{Lane, LaneFlow};

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
        Pipe::source("iter", |scope, _| FromIter::new(items.into_iter(), scope))
    }
}

impl<S: Stream> Pipe<FromStream<S>> {
    /// A flow of any stream's items.
    pub fn from_stream(stream: S) -> Self {
        Pipe::source("stream", |scope, _| FromStream::new(stream, scope))
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
        let pipe = Pipe::source("channel", |scope, _| {
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
        Pipe::source("source", |scope, _| {
            scope.add_account(account);
            FromTracked::new(stream, scope)
        })
    }

    /// As [`from_tracked`](Self::from_tracked), of a stream that hears itself when the run is to stop, and ends then: after what belongs
    /// together, such as the rest of a block that has one position. One that does not end is dropped when the
    /// [deadline](crate::Run::shutdown) has passed.
    pub fn from_tracked_until(account: Arc<Account>, make: impl FnOnce(Stopping) -> S) -> Self {
        Pipe::source("source", |scope, _| {
            scope.add_account(account);
            FromTracked::until(make, scope)
        })
    }
}

impl<T: Send + 'static, K: Settle> Pipe<Changing<T, K>> {
    /// A flow of other flows' items, which are added while it runs: one for each connection, for each file that appears. It
    /// ends when all handles are dropped and all inputs have ended.
    ///
    /// # Ordering
    /// Each input's order is kept; they take turns of up to 256 items.
    ///
    /// # Backpressure
    /// Felt by each input, through a buffer of 256 items.
    ///
    /// ```
    /// use millstream_flow::Pipe;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let (inputs, pipe) = Pipe::inputs();
    /// let run = pipe.fold(0, |sum, n| *sum += n).start();
    /// for connection in 1..=3 {
    ///     inputs.add(Pipe::from_iter(0..100).map(move |n| n * connection)).expect("the flow has not ended");
    /// }
    /// drop(inputs);
    /// let (sum, report) = run.join().await.unwrap();
    /// assert_eq!((sum, report.ledger.received), (4950 * 6, 300));
    /// # }
    /// ```
    pub fn inputs() -> (Inputs<T, K>, Self) {
        let mut inputs = None;
        let pipe = Pipe::source("inputs", |scope, _| {
            let (handle, flow) = Inputs::new(scope);
            inputs = Some(handle);
            flow
        });
        (inputs.expect("the source was made just now"), pipe)
    }
}

impl<F: Flow> Pipe<F> {
    pub(crate) fn source(kind: &'static str, flow: impl FnOnce(&Arc<Scope>, Arc<OpStats>) -> F) -> Self {
        let (scope, op) = (Scope::new(), OpStats::new(kind));
        Pipe { flow: flow(&scope, op.clone()), ops: vec![op], boundary: None, scope }
    }

    /// A flow made by an operator of your own, in the place of this one.
    pub fn via<G: Flow>(self, name: &str, operator: impl FnOnce(F) -> G) -> Pipe<G> {
        let Pipe { flow, scope, mut ops, .. } = self;
        let op = OpStats::new("via");
        op.rename(name.into());
        ops.push(op);
        Pipe { flow: operator(flow), scope, ops, boundary: None }
    }

    pub(crate) fn scope(&self) -> &Arc<Scope> {
        &self.scope
    }

    pub(crate) fn into_flow(self) -> F {
        self.flow
    }

    /// What flows behind the task boundary `op`.
    pub(crate) fn behind(flow: F, scope: Arc<Scope>, op: Arc<OpStats>) -> Self {
        Pipe { flow, scope, ops: Vec::new(), boundary: Some(op) }
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

    /// What becomes of the run when a function of the user panics, or takes longer than its
    /// [limit](crate::Concurrency::time_limit), where no error is expected, as in [`map`](Pipe::map) and
    /// [`map_async`](Pipe::map_async). [`try_map`](Pipe::try_map) and its kin make it the item's error instead.
    pub fn on_panic(self, policy: PanicPolicy) -> Self {
        self.scope.set_panic_policy(policy);
        self
    }

    /// Lets the flow's wall clock show `wall` now: what failures are stamped with, and what arrival-time windows are cut by.
    /// For tests, and for the replay of what happened another day. Without it the system's clock is read once, when the
    /// flow is built.
    pub fn starting_at(self, wall: SystemTime) -> Self {
        self.scope.set_clock(Clock::starting_at(wall));
        self
    }

    /// Shows a number of a source or an operator of your own, if there is one, among [those of the flow](Monitor::knobs) that may
    /// be moved. Whoever made the knob reads it.
    ///
    /// ```
    /// use millstream_flow::{Knob, Pipe, Setting};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let page = Knob::new("page", Setting::Auto, 100, 1..=1000);
    /// let asked = page.clone();
    /// let pages = Pipe::from_iter((0..2).map(move |_| asked.value())).knob(page);
    /// pages.monitor().knobs()[0].set(5000).unwrap();
    /// assert_eq!(pages.collect().await.unwrap().0, [1000, 1000]); // within its bounds
    /// # }
    /// ```
    pub fn knob(self, knob: impl Into<Option<Knob>>) -> Self {
        knob.into().into_iter().for_each(|knob| self.scope.add_knob(knob));
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

    /// Turns each item into any number of items, in order. The item is settled when its last part is; an item
    /// without parts is dropped by this operator's name.
    pub fn flat_map<I: IntoIterator, M: FnMut(F::Item) -> I>(self, map: M) -> Pipe<FlatMap<F, I, M>> {
        self.then("flat_map", |upstream, op, scope| FlatMap::new(upstream, map, op, scope.clone()))
    }

    /// As [`flat_map`](Pipe::flat_map), of items that are collections themselves.
    pub fn flatten(self) -> Pipe<impl Flow<Item = <F::Item as IntoIterator>::Item, Token = F::Token>>
    where
        F::Item: IntoIterator,
    {
        self.then("flatten", |upstream, op, scope| FlatMap::new(upstream, identity, op, scope.clone()))
    }

    /// Turns each item into another with a state that all of them share: a running sum, a difference to the item
    /// before, a number.
    ///
    /// # Panics
    /// A panic of `step` is that item's, by the run's [`PanicPolicy`]; the state stays as `step` left it.
    ///
    /// ```
    /// # use millstream_flow::Pipe;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let (sums, _) = Pipe::from_iter([3, 1, 4])
    ///     .scan(0, |sum, n| {
    ///         *sum += n;
    ///         *sum
    ///     })
    ///     .collect()
    ///     .await
    ///     .unwrap();
    /// assert_eq!(sums, [3, 4, 8]);
    /// # }
    /// ```
    pub fn scan<A, U, M: FnMut(&mut A, F::Item) -> U>(self, initial: A, step: M) -> Pipe<Scan<F, A, M>> {
        self.then("scan", |upstream, _, _| Scan { upstream, state: initial, step })
    }

    /// Gathers items into vectors. See [`Batch`] for when one is complete; what is left at the end of the flow
    /// is the last one. When the run fails, what is left is given back to its source instead.
    ///
    /// A batch's token stands for all of its items: confirming the batch confirms them.
    ///
    /// # Backpressure
    /// At most one batch is held. Its age is watched only while upstream has nothing more to give, so the timer
    /// costs a busy flow nothing.
    pub fn batch<W: Measure<F::Item>>(self, rule: Batch<W>) -> Pipe<Batched<F, W>> {
        self.then("batch", |upstream, op, scope| {
            let knobs = rule.knobs::<F::Item>(&op.name());
            scope.add_memory("batch".into(), knobs.memory(size_of::<F::Item>()));
            knobs.all().for_each(|knob| scope.add_knob(knob.clone()));
            Batched::new(upstream, rule, knobs, scope.clone())
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

    /// Tells how many items passed in each interval, from the first item on and a last time at the end, as long as the flow is
    /// polled. The items pass as they are.
    ///
    /// For the figures of a whole run see [`monitor`](Pipe::monitor), which costs nothing.
    ///
    /// # Panics
    /// If `interval` is zero.
    pub fn meter(self, interval: Duration, tell: impl FnMut(Metered)) -> Pipe<Meter<F, impl FnMut(Metered)>> {
        assert!(!interval.is_zero(), "an interval of no time ends at once");
        self.then("meter", |upstream, _, _| Meter::new(upstream, interval, tell))
    }

    /// Remembers the newest items for those who come late, and passes all. See [`Replay`].
    ///
    /// # Backpressure
    /// Felt through those who subscribed to all that comes, if any.
    pub fn replay(self, replay: &Replay<F::Item>) -> Pipe<Recorded<F>>
    where
        F::Item: Clone,
    {
        self.then("replay", |upstream, _, scope| {
            scope.add_memory("replay".into(), replay.memory());
            Recorded::new(upstream, replay.clone())
        })
    }

    /// Forgets the operators' types: any flow of the same items is then of one type. Compiles faster, and costs
    /// each item one move into a chunk and one out of it (`cargo xtask bench engine boxed`).
    ///
    /// The type of what settles an item remains: [`batch`](Pipe::batch), windows and [`zip`](Pipe::zip) turn
    /// [`Token`](crate::Token) into [`TokenRuns`](crate::TokenRuns), which settles several at once.
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
}

// Nothing is pinned in place: operators that need pinning box what they pin.
impl<F> Unpin for Pipe<F> {}

impl<F> fmt::Debug for Pipe<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.ops.iter().map(|op| op.name()).collect();
        f.debug_struct("Pipe").field("stage", &names).finish_non_exhaustive()
    }
}
