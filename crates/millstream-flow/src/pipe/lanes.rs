//! One flow to several tasks: every item to all, or each to one.

use std::collections::hash_map::DefaultHasher;
use std::hash::{BuildHasher, BuildHasherDefault, Hash};
use std::sync::atomic::Ordering;

use super::Pipe;
use super::boundaries::Buffered;
use crate::flow::Flow;
use crate::measure::{Capacity, Unmeasured};
use crate::op::broadcast::{Companions, FanOut, Outlet, Route, ToAll, ToLane};
use crate::op::buffer::{Hop, quantum_max};
use crate::op::merge::{Either, Merge};
use crate::op::overflow::{Overflow, Shedding};
use crate::op::switch::{Board, Switch, ToRoute};
use crate::spawn::Tasks;
use crate::token::Settle;

/// One of the ways out of a fan-out: how many items may wait there, and what happens when it is full.
///
/// ```
/// use millstream_flow::{Lane, Overflow};
/// let audit = Lane::capacity(1000); // a full lane makes the others wait
/// let screen = Lane::capacity(1).overflow(Overflow::DropOldest); // it always shows the newest
/// # let _ = (audit, screen);
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct Lane {
    pub(crate) capacity: Capacity,
    pub(crate) overflow: Overflow,
}

impl Lane {
    /// A lane in which so many items may wait.
    ///
    /// # Panics
    /// If `capacity` is 0 items.
    pub fn capacity(capacity: impl Into<Capacity>) -> Self {
        Lane { capacity: capacity.into(), overflow: Overflow::Wait }
    }

    /// What happens to an item for which the lane has no room; by default the whole fan-out waits.
    pub fn overflow(mut self, overflow: Overflow) -> Self {
        self.overflow = overflow;
        self
    }
}

impl<C: Into<Capacity>> From<C> for Lane {
    fn from(capacity: C) -> Self {
        Lane::capacity(capacity)
    }
}

impl<F> Pipe<F>
where
    F: Flow + Send + 'static,
    F::Item: Send,
{
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
        let lanes = vec![Lane::capacity(capacity); lanes];
        let (ends, _) = self.fan_out_to(kind, &lanes, route);
        ends
    }

    /// Starts the stage of a fan-out; the lanes that shed are still to be given what sheds.
    fn fan_out_to<R>(
        self,
        kind: &'static str,
        lanes: &[Lane],
        route: R,
    ) -> (Vec<Pipe<LaneFlow<F>>>, Companions)
    where
        R: Route<F::Item, F::Token>,
    {
        assert!(!lanes.is_empty(), "a flow goes to at least one lane");
        let (flow, driver, op) = self.boundary(kind, quantum_max::<F::Item, Unmeasured>(0));
        let (scope, stage) = (driver.scope.clone(), driver.stats.clone());
        scope.counts.several_ends.store(true, Ordering::Relaxed);
        let (outlets, ends): (Vec<_>, Vec<_>) =
            lanes.iter().map(|lane| Outlet::new(&scope, &op, lane.ring_capacity())).unzip();
        let companions = Companions::default();
        let started = Some(companions.clone());
        let fan_out = FanOut { flow, route, lanes: outlets, companions: started, driver, grace: None };
        let tasks = Tasks::new(scope.clone(), stage, vec![Box::pin(fan_out)]);
        let ends = ends.into_iter().map(|end| end.pipe(&tasks, &scope, &op)).collect();
        (ends, companions)
    }

    /// As [`broadcast`](Pipe::broadcast), with a declaration for each lane of what happens when it is full: one that only
    /// wants the newest does not hold back another that wants all.
    ///
    /// What a lane sheds is settled for that lane, and counted under its buffer's name; the item ends when all lanes have
    /// ended it.
    ///
    /// # Backpressure
    /// Lanes that wait set the pace; those that shed are served whether anybody reads them or not.
    ///
    /// # Panics
    /// If there is no lane.
    ///
    /// ```
    /// # use millstream_flow::{Lane, Overflow, Pipe};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let lanes = [Lane::capacity(100), Lane::capacity(1).overflow(Overflow::DropOldest)];
    /// let mut lanes = Pipe::from_iter(0..10_000).broadcast_to(&lanes).into_iter();
    /// let (all, newest) = (lanes.next().unwrap(), lanes.next().unwrap());
    /// let (count, _) = all.fold(0, |count, _| *count += 1).await.unwrap(); // nobody reads the other meanwhile
    /// assert_eq!((count, newest.collect().await.unwrap().0.last()), (10_000, Some(&9999)));
    /// # }
    /// ```
    pub fn broadcast_to(self, lanes: &[Lane]) -> Vec<Pipe<Buffered<F, Unmeasured>>>
    where
        F::Item: Clone,
    {
        let (ends, companions) = self.fan_out_to("broadcast", lanes, ToAll);
        ends.into_iter().zip(lanes).map(|(end, lane)| end.shedding(*lane, &companions)).collect()
    }

    /// Gives every item to each of `subscribers` flows, through a buffer each. The slowest sets the pace; one
    /// that is dropped is left out. An item is settled when all have settled it.
    ///
    /// One that ends early, as by [`take`](Pipe::take), is left out of what comes from then on. What its buffer had for it was
    /// settled by nobody there, so a tracked source hears that those items were given up, and may deliver them again, to all.
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
    /// # Errors
    /// When an item of a tracked source comes for a lane whose reader is gone, and others are still read a tenth of a second later,
    /// the run fails with [`Unread`](crate::Unread): the item would be given back, and come again, for ever. Of a flow that
    /// is not tracked, such an item is dropped, and counted by this operator's name.
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
        self.fan_out("partition", lanes, capacity.into(), ToLane::new(lane))
    }

    /// As [`partition`](Pipe::partition), also in its errors, with a function that names the lane, from 0 on.
    ///
    /// # Panics
    /// If `lanes` is 0. A lane that does not exist is a panic of `lane`, and with it the item's failure by the run's
    /// [`PanicPolicy`](crate::PanicPolicy).
    pub fn partition_by(
        self,
        lanes: usize,
        capacity: impl Into<Capacity>,
        mut lane: impl FnMut(&F::Item) -> usize + Send + 'static,
    ) -> Vec<Pipe<LaneFlow<F>>> {
        let lane = move |item: &F::Item| {
            let lane = lane(item);
            assert!(lane < lanes, "there is no lane {lane}: they are numbered from 0 to {}", lanes - 1);
            lane
        };
        self.fan_out("partition_by", lanes, capacity.into(), ToLane::new(lane))
    }

    /// Deals items out to `lanes`, one after the other. A lane whose reader is gone is an error, as in
    /// [`partition`](Pipe::partition).
    ///
    /// # Backpressure
    /// A full lane holds the others back. For work that takes unequal time [`parallel`](Pipe::parallel) is better: its
    /// workers take what they can.
    ///
    /// # Panics
    /// If `lanes` is 0.
    pub fn round_robin(self, lanes: usize, capacity: impl Into<Capacity>) -> Vec<Pipe<LaneFlow<F>>> {
        let mut next = lanes.wrapping_sub(1);
        let lane = move |_: &F::Item| {
            next = if next + 1 >= lanes { 0 } else { next + 1 };
            next
        };
        self.fan_out("round_robin", lanes, capacity.into(), ToLane::new(lane))
    }

    /// Splits the flow in two: items that `first` answers `true` for, and the others. A side whose reader is gone is an error, as in
    /// [`partition`](Pipe::partition).
    ///
    /// # Ordering
    /// Kept on either side.
    ///
    /// # Backpressure
    /// A side that is full holds the other back.
    pub fn split(
        self,
        capacity: impl Into<Capacity>,
        mut first: impl FnMut(&F::Item) -> bool + Send + 'static,
    ) -> (Pipe<LaneFlow<F>>, Pipe<LaneFlow<F>>) {
        let lane = move |item: &F::Item| usize::from(!first(item));
        let mut sides = self.fan_out("split", 2, capacity.into(), ToLane::new(lane)).into_iter();
        let mut side = || sides.next().expect("there are two lanes");
        (side(), side())
    }

    /// Sends each item to the route of its key. Routes are added to and taken from the [`Switch`] as it runs; items of a key
    /// without one go to the default route, or are dropped by this operator's name if there is none.
    ///
    /// Nothing flows before the first route is there and somebody reads it. When the handle is dropped and no route is left, the
    /// flow ends: nothing more is taken from its source.
    ///
    /// # Ordering
    /// Kept within a route.
    ///
    /// # Backpressure
    /// A full route holds the others back, unless its [`Lane`] says what it does instead. One whose reader was dropped
    /// without [`remove`](Switch::remove), or another [`route`](Switch::route) of its key, fails the run a tenth of a second after
    /// an item of a tracked source came for it, as in [`partition`](Pipe::partition).
    ///
    /// ```
    /// # use millstream_flow::Pipe;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let switch = Pipe::from_iter(["GET /", "POST /cart", "PUT /", "GET /shop"])
    ///     .switch(|request| request.split(' ').next().map(str::to_owned));
    /// let reads = switch.route(Some("GET".to_owned()), 10);
    /// let others = switch.default_route(10);
    /// let others = others.collect().start();
    /// assert_eq!(reads.collect().await.unwrap().0, ["GET /", "GET /shop"]);
    /// assert_eq!(others.join().await.unwrap().0, ["POST /cart", "PUT /"]);
    /// # }
    /// ```
    pub fn switch<Q>(self, key: impl FnMut(&F::Item) -> Q + Send + 'static) -> Switch<F, Q>
    where
        Q: Hash + Eq + Clone + Send + 'static,
    {
        let (flow, driver, op) = self.boundary("switch", quantum_max::<F::Item, Unmeasured>(0));
        let (scope, stage) = (driver.scope.clone(), driver.stats.clone());
        scope.counts.several_ends.store(true, Ordering::Relaxed);
        let board = Board::new();
        let route = ToRoute::new(key, board.clone(), op.clone());
        let fan_out = FanOut { flow, route, lanes: Vec::new(), companions: None, driver, grace: None };
        let tasks = Tasks::new(scope.clone(), stage, vec![Box::pin(fan_out)]);
        Switch::new(board, tasks, scope, op)
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

impl Lane {
    /// How much the ring behind a fan-out holds: of a lane that sheds, only what is on its way to what sheds.
    pub(crate) fn ring_capacity(&self) -> Capacity {
        if self.overflow == Overflow::Wait { self.capacity } else { Capacity::items(SHEDDING_RING) }
    }
}

/// Items between a fan-out and a lane that sheds.
const SHEDDING_RING: usize = 256;

impl<T: Send + 'static, K: Settle> Pipe<Hop<T, K, Unmeasured>> {
    /// Gives a lane that sheds what sheds, which the fan-out is to start with itself: otherwise a lane that nobody reads
    /// would hold the others back.
    pub(crate) fn shedding(self, lane: Lane, companions: &Companions) -> Pipe<Shed<T, K>> {
        let pipe = if lane.overflow == Overflow::Wait {
            let Pipe { flow, scope, ops, boundary } = self;
            Pipe { flow: Either::Left(flow), scope, ops, boundary }
        } else {
            self.buffer_with(lane.capacity, lane.overflow)
        };
        if let Either::Right(shedding) = &pipe.flow {
            companions.add(shedding.tasks.starter());
        }
        pipe
    }
}

/// What flows in a lane that may shed.
type Shed<T, K> = Either<Hop<T, K, Unmeasured>, Shedding<T, K, Unmeasured>>;

/// What flows in one lane of a fan-out.
pub type LaneFlow<F> = Hop<<F as Flow>::Item, <F as Flow>::Token, Unmeasured>;
