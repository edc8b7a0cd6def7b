//! Task boundaries: buffers, workers, fan-out.

use std::collections::hash_map::DefaultHasher;
use std::hash::{BuildHasher, BuildHasherDefault, Hash};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{HOP_AUTO, HOP_AUTO_BYTES, HOP_AUTO_MAX, Pipe};
use crate::drive::Driver;
use crate::flow::Flow;
use crate::knob::{Knob, Setting};
use crate::measure::{Capacity, Measure, Unmeasured};
use crate::op::broadcast::{FanOut, Lane, Route, ToAll, ToLane};
use crate::op::buffer::{Hop, Pump, chunk_items, quantum_max};
use crate::op::merge::{Either, Merge};
use crate::op::overflow::{Overflow, Shedder, Shedding, Shelf};
use crate::op::parallel::{self, Parallel, Workers};
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
    fn boundary(self, kind: &'static str, quantum_max: usize) -> (F, Driver, Arc<OpStats>) {
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
        let chunk = chunk_items::<(F::Item, F::Token)>();
        let (flow, driver, op) = self.boundary("buffer", quantum_max::<F::Item, W>(chunk));
        let (scope, stage) = (driver.scope.clone(), driver.stats.clone());
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
        let tasks = Tasks::new(scope.clone(), stage, vec![Box::pin(pump)]);
        Pipe { flow: Hop { reader, measure, stats, tasks }, scope, ops: Vec::new(), boundary: Some(op) }
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
            let Pipe { flow, scope, ops, boundary } = self.buffer_measured(capacity);
            return Pipe { flow: Either::Left(flow), scope, ops, boundary };
        }
        let Capacity { items, bytes_max, measure } = capacity;
        let (flow, driver, op) = self.boundary("buffer", chunk_items::<(F::Item, F::Token)>());
        let (scope, stage) = (driver.scope.clone(), driver.stats.clone());
        let (capacity, stats) = Self::add_hop(&scope, &op, items, bytes_max);
        let shelf = Shelf::new();
        let shedder = Shedder {
            flow,
            measure: measure.clone(),
            shelf: shelf.clone(),
            capacity,
            bytes_max: bytes_max.unwrap_or(usize::MAX),
            oldest: overflow == Overflow::DropOldest,
            op: op.clone(),
            stats: stats.clone(),
            driver,
            chunk: Vec::new(),
        };
        let tasks = Tasks::new(scope.clone(), stage, vec![Box::pin(shedder)]);
        let flow = Either::Right(Shedding { shelf, measure, stats, tasks, taken: Default::default() });
        Pipe { flow, scope, ops: Vec::new(), boundary: Some(op) }
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
        let stats = Arc::new(StageStats::new(vec![work.clone()]));
        scope.add_stage(stats.clone());
        let flow = Parallel::new(flow, map, knob, workers.unordered, driver, stats);
        Pipe { flow, scope, ops: Vec::new(), boundary: Some(work) }
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
        let (flow, driver, op) = self.boundary(kind, quantum_max::<F::Item, Unmeasured>(0));
        let (scope, stage) = (driver.scope.clone(), driver.stats.clone());
        scope.counts.several_ends.store(true, Ordering::Relaxed);
        let mut ends = Vec::with_capacity(lanes);
        let lanes = (0..lanes)
            .map(|_| {
                let (capacity, stats) = Self::add_hop(&scope, &op, capacity.items, None);
                let (writer, reader) = ring(capacity.bounds().1);
                ends.push((reader, stats.clone()));
                Lane { writer: Some(writer), capacity, stats }
            })
            .collect();
        let tasks = Tasks::new(scope.clone(), stage, vec![Box::pin(FanOut { flow, route, lanes, driver })]);
        ends.into_iter()
            .map(|(reader, stats)| Pipe {
                flow: Hop { reader, measure: Unmeasured, stats, tasks: tasks.clone() },
                scope: scope.clone(),
                ops: Vec::new(),
                boundary: Some(op.clone()),
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
