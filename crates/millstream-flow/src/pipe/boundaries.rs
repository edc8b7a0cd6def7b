//! Task boundaries: buffers and workers.

use std::hash::Hash;
use std::sync::Arc;

use super::{HOP_AUTO, HOP_AUTO_BYTES, HOP_AUTO_MAX, Pipe};
use crate::drive::Driver;
use crate::flow::Flow;
use crate::knob::{Knob, Setting};
use crate::measure::{Capacity, Measure, Unmeasured};
use crate::op::buffer::{Hop, Pump, chunk_items, quantum_max};
use crate::op::conflate::{Conflated, Conflater, LatestShelf};
use crate::op::merge::Either;
use crate::op::overflow::{Overflow, Shedder, Shedding, Shelf, Thinning};
use crate::op::parallel::{self, Parallel, Workers};
use crate::op::spill::{Spill, Spiller};
use crate::ring::ring;
use crate::scope::{HopEntry, Scope};
use crate::spawn::Tasks;
use crate::stats::{HopStats, OpStats, StageStats};
use crate::token::Settle;

impl<F> Pipe<F>
where
    F: Flow + Send + 'static,
    F::Item: Send,
{
    /// Closes the stage built so far.
    pub(super) fn boundary(self, kind: &'static str, quantum_max: usize) -> (F, Driver, Arc<OpStats>) {
        let Pipe { flow, scope, mut ops, .. } = self;
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
        let chunk = chunk_items::<(F::Item, F::Token)>();
        let (flow, driver, op) = self.boundary("buffer", quantum_max::<F::Item, W>(chunk));
        let (scope, stage) = (driver.scope.clone(), driver.stats.clone());
        let (capacity, stats) = add_hop::<(F::Item, F::Token)>(&scope, &op, items, bytes_max);
        let (writer, reader) = ring(capacity.bounds().1);
        stats.of_ring(&writer);
        let bytes_max = bytes_max.unwrap_or(usize::MAX);
        let pump = Pump { flow, measure: measure.clone(), writer, capacity, bytes_max, stats, driver };
        let tasks = Tasks::new(scope.clone(), stage, vec![Box::pin(pump)]);
        Pipe { flow: Hop { reader, measure, tasks }, scope, ops: Vec::new(), boundary: Some(op) }
    }

    /// As [`buffer_measured`](Pipe::buffer_measured), and says what happens when it is full.
    ///
    /// Dropped items are settled and counted by this operator's name.
    pub fn buffer_with<W>(self, capacity: Capacity<W>, overflow: Overflow) -> Pipe<Buffered<F, W>>
    where
        W: Measure<F::Item> + Clone,
    {
        if overflow == Overflow::Wait {
            let Pipe { flow, scope, ops, boundary } = self.buffer_measured(capacity);
            return Pipe { flow: Either::Left(flow), scope, ops, boundary };
        }
        let Capacity { items, bytes_max, measure } = capacity;
        let (flow, driver, op) = self.boundary("buffer", chunk_items::<(F::Item, F::Token)>());
        let (scope, stage) = (driver.scope.clone(), driver.stats.clone());
        let (capacity, stats) = add_hop::<(F::Item, F::Token)>(&scope, &op, items, bytes_max);
        let shelf = Shelf::new();
        let shedder = Shedder {
            flow,
            measure: measure.clone(),
            shelf: shelf.clone(),
            capacity,
            bytes_max: bytes_max.unwrap_or(usize::MAX),
            overflow,
            thinning: Thinning::default(),
            op: op.clone(),
            stats: stats.clone(),
            driver,
            chunk: Vec::new(),
            shed: Vec::new(),
        };
        let tasks = Tasks::new(scope.clone(), stage, vec![Box::pin(shedder)]);
        let flow = Either::Right(Shedding { shelf, measure, stats, tasks, taken: Default::default() });
        Pipe { flow, scope, ops: Vec::new(), boundary: Some(op) }
    }

    /// As [`buffer`](Pipe::buffer), which goes on in `spill` when memory is full: for bursts that are larger than memory may
    /// be. `spilled` items fit there; then the producer waits.
    ///
    /// What waits in the spill is in flight, like what waits in memory: it is settled when it comes through, and given
    /// back to its source if the run ends before. For tracked flows its tokens stay in memory.
    ///
    /// # Ordering
    /// Kept.
    ///
    /// # Errors
    /// An error of the spill ends the run: [`RunErrorKind::Stage`](crate::RunErrorKind::Stage).
    ///
    /// # Panics
    /// If `spilled` is 0.
    pub fn buffer_spilling<S: Spill<F::Item>>(
        self,
        capacity: impl Into<Capacity>,
        spilled: usize,
        spill: S,
    ) -> Pipe<Hop<F::Item, F::Token, Unmeasured>> {
        assert!(spilled > 0, "a spill of no items is a buffer; use `buffer`");
        let items = capacity.into().items;
        let chunk = chunk_items::<(F::Item, F::Token)>();
        let (flow, driver, op) = self.boundary("buffer_spilling", chunk);
        let (scope, stage) = (driver.scope.clone(), driver.stats.clone());
        let (capacity, stats) = add_hop::<(F::Item, F::Token)>(&scope, &op, items, None);
        // A chunk on its way to the spill or back, and the tokens of what is there.
        let moving = 2 * chunk * size_of::<(F::Item, F::Token)>();
        let tokens = spilled.saturating_mul(2 * size_of::<F::Token>());
        scope.add_memory(op.name().to_string(), moving.saturating_add(tokens));
        let (writer, reader) = ring(capacity.bounds().1);
        stats.of_ring(&writer);
        let spiller = Spiller {
            flow,
            writer,
            capacity,
            spilled_max: spilled,
            stats,
            driver,
            chunk: Default::default(),
            tokens: Default::default(),
            ended: false,
        };
        let tasks = Tasks::new(scope.clone(), stage, vec![Box::pin(spiller.run(spill))]);
        Pipe::behind(Hop { reader, measure: Unmeasured, tasks }, scope, op)
    }

    /// As [`buffer`](Pipe::buffer), of the newest item of each key: an item that comes while another of its key still waits takes
    /// its place, and the older one is dropped, settled, and counted by this operator's name. So a slow reader sees
    /// fewer states, but never an old one.
    ///
    /// # Ordering
    /// Keys are read in the order in which they came to wait.
    ///
    /// # Backpressure
    /// When as many keys wait as may, and another comes, the producer waits.
    pub fn conflate<Q>(
        self,
        capacity: impl Into<Capacity>,
        key: impl FnMut(&F::Item) -> Q + Send + 'static,
    ) -> Pipe<Conflated<Q, F::Item, F::Token>>
    where
        Q: Hash + Eq + Send + 'static,
    {
        let items = capacity.into().items;
        let (flow, driver, op) = self.boundary("conflate", chunk_items::<(F::Item, F::Token)>());
        let (scope, stage) = (driver.scope.clone(), driver.stats.clone());
        // A slot holds the key and its hash too, and its place in the table.
        let (capacity, stats) = add_hop::<(Q, [u64; 2], F::Item, F::Token)>(&scope, &op, items, None);
        let shelf = LatestShelf::new();
        let conflater = Conflater {
            flow,
            key,
            shelf: shelf.clone(),
            capacity,
            op: op.clone(),
            stats: stats.clone(),
            driver,
            chunk: Default::default(),
            ended: false,
            replaced: Vec::new(),
        };
        let tasks = Tasks::new(scope.clone(), stage, vec![Box::pin(conflater)]);
        Pipe::behind(Conflated { shelf, stats, tasks, taken: Default::default() }, scope, op)
    }

    /// Calls a function that needs the processor, on several cores.
    ///
    /// Workers pull chunks of about 100 µs of work from what was built so far, so uneven work spreads by
    /// itself; a chunk that takes longer than was expected is split while another worker has nothing to do. What stands
    /// behind one long call in its chunk waits for it. From about 0.2 µs an item on, two cores do nearly twice the work of one.
    ///
    /// # Ordering
    /// As [`Workers`] says: in order, with a bounded window of chunks ahead of the slowest, or as they come.
    ///
    /// # Panics
    /// A panic costs its own item; the run's [`PanicPolicy`](crate::PanicPolicy) decides.
    pub fn parallel<U, M>(self, workers: impl Into<Workers>, map: M) -> Pipe<Parallel<F, U>>
    where
        U: Send + 'static,
        M: Fn(F::Item) -> U + Send + Sync + 'static,
    {
        self.parallel_measured(workers.into(), map)
    }

    /// As [`parallel`](Pipe::parallel), bounded in bytes too: of items from when they are pulled until their results are read.
    ///
    /// ```
    /// use millstream_flow::{Pipe, Workers};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), millstream_flow::RunError> {
    /// let workers = Workers::ordered(2).bytes(1 << 20, |line: &String| line.capacity());
    /// let lines = Pipe::from_iter(["a b".to_owned(), "c".to_owned()]);
    /// let (words, _) = lines.parallel_measured(workers, |line| line.split(' ').count()).collect().await?;
    /// assert_eq!(words, [2, 1]);
    /// # Ok(()) }
    /// ```
    pub fn parallel_measured<U, M, W>(self, workers: Workers<W>, map: M) -> Pipe<Parallel<F, U>>
    where
        U: Send + 'static,
        M: Fn(F::Item) -> U + Send + Sync + 'static,
        W: Measure<F::Item> + Clone,
    {
        let (flow, driver, op) = self.boundary("pull", parallel::CHUNK_MAX);
        let scope = driver.scope.clone();
        let work = OpStats::new("parallel");
        let knob = workers.knob(format!("{} workers", work.name()));
        let each = size_of::<(F::Item, F::Token)>().max(size_of::<(U, F::Token)>());
        let chunks = knob.bounds().1 * parallel::CHUNKS_AHEAD;
        let slots = chunks * parallel::CHUNK_MAX * each;
        scope.add_memory(op.name().to_string(), slots.saturating_add(workers.bytes_max.unwrap_or(0)));
        scope.add_knob(knob.clone());
        let stats = Arc::new(StageStats::new(vec![work.clone()]));
        scope.add_stage(stats.clone());
        let flow = Parallel::new(flow, map, knob, workers, driver, stats);
        Pipe { flow, scope, ops: Vec::new(), boundary: Some(work) }
    }
}

/// What flows behind a buffer that may shed.
pub type Buffered<F, W> =
    Either<Hop<<F as Flow>::Item, <F as Flow>::Token, W>, Shedding<<F as Flow>::Item, <F as Flow>::Token, W>>;

/// A new hop of the run, whose slots hold `S`: its capacity, and where it counts.
pub(crate) fn add_hop<S>(
    scope: &Scope,
    op: &OpStats,
    items: Setting,
    bytes_max: Option<usize>,
) -> (Knob, Arc<HopStats>) {
    let max = match items {
        Setting::Fixed(items) => items,
        Setting::Auto => (HOP_AUTO_BYTES / size_of::<S>().max(1)).clamp(HOP_AUTO, HOP_AUTO_MAX),
    };
    let name = format!("{} {} capacity", op.name(), scope.hop_count() + 1);
    let capacity = Knob::new(name, items, HOP_AUTO, 1..=max);
    scope.add_knob(capacity.clone());
    let stats = Arc::new(HopStats::default());
    scope.add_hop(HopEntry { stats: stats.clone(), capacity: capacity.clone(), bytes_max });
    let slots = capacity.bounds().1.next_power_of_two().saturating_mul(size_of::<S>());
    scope.add_memory(op.name().to_string(), slots.saturating_add(bytes_max.unwrap_or(0)));
    (capacity, stats)
}
