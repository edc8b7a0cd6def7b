//! One flow to several tasks: every item to all of them, or each to the lane of its key.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::mem;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Sleep, sleep};

use crate::drive::{Driver, Taken, Turn};
use crate::flow::Flow;
use crate::held::Held;
use crate::knob::Knob;
use crate::measure::{Capacity, Unmeasured};
use crate::op::Tally;
use crate::op::buffer::{Hop, chunk_items};
use crate::pipe::{Pipe, add_hop};
use crate::ring::{Reader, ReaderGone, Room, Stretch, Writer, ring};
use crate::scope::{RunErrorKind, Scope};
use crate::spawn::{Starter, Tasks};
use crate::stats::{HopStats, OpStats};
use crate::token::Settle;

/// One lane of a fan-out: the writing end of its hop.
pub(crate) struct Outlet<T, K> {
    /// `None` once its reader is gone.
    pub(crate) writer: Option<Writer<(T, K)>>,
    pub(crate) capacity: Knob,
    pub(crate) stats: Arc<HopStats>,
}

/// The reading end of an outlet, before it knows the tasks that fill it.
pub(crate) struct End<T, K> {
    reader: Reader<(T, K)>,
}

impl<T: Send + 'static, K: Send + 'static> Outlet<T, K> {
    pub(crate) fn new(scope: &Scope, op: &OpStats, capacity: Capacity) -> (Self, End<T, K>) {
        let (capacity, stats) = add_hop::<(T, K)>(scope, op, capacity.items, None);
        let (writer, reader) = ring(capacity.bounds().1);
        stats.of_ring(&writer);
        (Outlet { writer: Some(writer), capacity, stats }, End { reader })
    }
}

impl<T, K: Settle> End<T, K> {
    pub(crate) fn pipe(
        self,
        tasks: &Tasks,
        scope: &Arc<Scope>,
        op: &Arc<OpStats>,
    ) -> Pipe<Hop<T, K, Unmeasured>> {
        let flow = Hop { reader: self.reader, measure: Unmeasured, tasks: tasks.clone() };
        Pipe::behind(flow, scope.clone(), op.clone())
    }
}

/// Tasks behind a fan-out that it starts with itself.
#[derive(Clone, Default)]
pub(crate) struct Companions(Arc<Mutex<Vec<Starter>>>);

impl Companions {
    pub(crate) fn add(&self, starter: Starter) {
        self.0.lock().expect("nothing panics while companions are held").push(starter);
    }

    pub(crate) fn start(&self) {
        let starters = mem::take(&mut *self.0.lock().expect("nothing panics while companions are held"));
        starters.into_iter().for_each(Starter::start);
    }
}

/// Decides where an item goes. Called only while every lane that is still read has room.
pub(crate) trait Route<T, K>: Send + 'static {
    /// Pushes `item`; adds to `sent` how many lanes got it. Adds before it calls what may panic: the driver counts
    /// a death for that.
    fn route<P: Place<T, K>>(&mut self, item: T, token: K, lanes: &mut [P], sent: &mut u64);

    /// Adds and takes away lanes, if that can be done, before a slice of work. Pending: no lane is there, but one may come.
    fn poll_lanes(&mut self, _cx: &mut Context<'_>, _lanes: &mut Vec<Outlet<T, K>>) -> Poll<()> {
        Poll::Ready(())
    }

    /// Whether lanes may still be added when none is read any more.
    fn may_grow(&self) -> bool {
        false
    }

    /// Whether an item that its source hears of came for a lane that nobody reads, and that has not been taken away since. The item
    /// was given back, and would come again and again.
    fn is_stuck(&self) -> bool {
        false
    }

    /// How many items came for a lane that nobody reads, and can be given back to no source, since it was last asked.
    fn take_lost(&mut self) -> u64 {
        0
    }

    /// Forgets that: no lane is read now.
    fn forget_stuck(&mut self) {}
}

/// Items go to a lane that nobody reads, while others are read: the error of a [run](crate::RunErrorKind::Stage) whose items
/// would be given back, and come again, for ever.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unread(String);

impl Unread {
    /// The operator's name.
    pub fn operator(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}` has items for a lane that nobody reads any more; read all lanes to their end, or none",
            self.0
        )
    }
}

impl Error for Unread {}

/// Every item to every lane.
pub(crate) struct ToAll;

impl<T: Clone, K: Settle> Route<T, K> for ToAll {
    #[inline(always)]
    fn route<P: Place<T, K>>(&mut self, item: T, token: K, lanes: &mut [P], sent: &mut u64) {
        let mut open = lanes.iter_mut().filter(|lane| lane.is_open());
        let Some(mut lane) = open.next() else { return };
        for next in open {
            *sent += 1;
            lane.place(item.clone(), token.share());
            lane = next;
        }
        *sent += 1;
        lane.place(item, token);
    }
}

/// Each item to the lane that the function names.
pub(crate) struct ToLane<N> {
    lane: N,
    stuck: bool,
    /// Items that nobody hears of, for a lane whose reader is gone.
    lost: u64,
}

impl<N> ToLane<N> {
    pub(crate) fn new(lane: N) -> Self {
        ToLane { lane, stuck: false, lost: 0 }
    }
}

impl<T, K: Settle, N: FnMut(&T) -> usize + Send + 'static> Route<T, K> for ToLane<N> {
    #[inline(always)]
    fn route<P: Place<T, K>>(&mut self, item: T, token: K, lanes: &mut [P], sent: &mut u64) {
        *sent += 1;
        let lane = (self.lane)(&item) % lanes.len();
        // If nobody reads that lane any more, dropping the token gives the item back.
        if lanes[lane].is_open() {
            lanes[lane].place(item, token);
        } else if K::TRACKED {
            self.stuck = true;
        } else {
            self.lost += 1;
        }
    }

    fn take_lost(&mut self) -> u64 {
        mem::take(&mut self.lost)
    }

    fn is_stuck(&self) -> bool {
        self.stuck
    }
}

/// Where an item of one lane goes.
pub(crate) trait Place<T, K> {
    /// Whether anybody reads it.
    fn is_open(&self) -> bool;
    fn place(&mut self, item: T, token: K);
}

impl<T, K> Place<T, K> for Outlet<T, K> {
    fn is_open(&self) -> bool {
        self.writer.is_some()
    }
    fn place(&mut self, item: T, token: K) {
        if let Some(writer) = &mut self.writer {
            writer.push((item, token));
        }
    }
}

impl<T, K> Place<T, K> for Stretch<'_, (T, K)> {
    #[inline(always)]
    fn is_open(&self) -> bool {
        true
    }
    #[inline(always)]
    fn place(&mut self, item: T, token: K) {
        self.push((item, token));
    }
}

/// The lanes' rings as an array of so many, so that each one's position can be in a register. `None` if there are
/// more or fewer, or if one is not read any more.
fn rooms<const N: usize, T, K>(lanes: &mut [Outlet<T, K>]) -> Option<[Room<'_, (T, K)>; N]> {
    let lanes: &mut [Outlet<T, K>; N] = lanes.try_into().ok()?;
    if lanes.iter().any(|lane| lane.writer.is_none()) {
        return None;
    }
    Some(
        lanes
            .each_mut()
            .map(|lane| lane.writer.as_mut().expect("all lanes are read").room(chunk_items::<(T, K)>())),
    )
}

/// The task on the filling side of a fan-out.
pub(crate) struct FanOut<F: Flow, R> {
    pub(crate) flow: F,
    pub(crate) route: R,
    pub(crate) lanes: Vec<Outlet<F::Item, F::Token>>,
    /// Started when this is.
    pub(crate) companions: Option<Companions>,
    pub(crate) driver: Driver,
    /// Since a lane that nobody reads was given an item: what it waits for.
    pub(crate) grace: Option<Grace>,
}

/// The time in which a lane that nobody reads may be taken away, or the others may go, too.
pub(crate) struct Grace {
    timer: Pin<Box<Sleep>>,
    /// The flow has ended, and must not be driven again.
    ended: bool,
}

/// How long after the first lane the last one may go, or the first one be taken away: whoever drops all of them does so one
/// after the other, and a reader goes before its route or behind it.
const GRACE: Duration = Duration::from_millis(100);

impl<F: Flow, R> Unpin for FanOut<F, R> {}

impl<F: Flow, R> FanOut<F, R> {
    /// How many items every lane can take: the slowest sets the pace. `None` if no lane is read any more.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Option<usize>> {
        let mut room = usize::MAX;
        let mut read = false;
        for lane in &mut self.lanes {
            let Some(writer) = &mut lane.writer else { continue };
            match writer.poll_room(cx, lane.capacity.value(), usize::MAX) {
                Poll::Ready(Ok(free)) => {
                    room = room.min(free);
                    read = true;
                }
                Poll::Ready(Err(ReaderGone)) => lane.writer = None,
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(read.then_some(room))
    }
}

impl<F: Flow, R: Route<F::Item, F::Token>> FanOut<F, R> {
    /// Waits whether the lane that nobody reads is taken away, or all go; fails the run if neither happens. `Break`: the
    /// stage is over.
    #[cold]
    fn poll_grace(&mut self, cx: &mut Context<'_>) -> Poll<ControlFlow<()>> {
        let FanOut { route, lanes, driver, grace, .. } = self;
        let Some(Grace { timer, ended }) = grace else { return Poll::Ready(ControlFlow::Continue(())) };
        let over = if *ended { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
        // What was taken away before its reader went is on the board by now.
        let lanes_there = route.poll_lanes(cx, lanes);
        if !route.is_stuck() {
            *grace = None;
            return if over.is_break() { Poll::Ready(over) } else { lanes_there.map(|()| over) };
        }
        let mut read = false;
        for lane in lanes {
            let Some(writer) = &mut lane.writer else { continue };
            match writer.poll_room(cx, lane.capacity.value(), usize::MAX) {
                Poll::Ready(Err(ReaderGone)) => lane.writer = None,
                Poll::Ready(Ok(_)) | Poll::Pending => read = true,
            }
        }
        if read {
            ready!(timer.as_mut().poll(cx));
            let name = driver.stats.ops().last().map(|op| op.name().to_string());
            driver.scope.fail(RunErrorKind::Stage(Box::new(Unread(name.unwrap_or_default()))));
            return Poll::Ready(ControlFlow::Break(()));
        }
        if !route.may_grow() {
            return Poll::Ready(ControlFlow::Break(()));
        }
        *grace = None;
        route.forget_stuck();
        Poll::Ready(over)
    }

    /// One quantum into the lanes, which are `N` in the usual case.
    #[inline]
    fn turn<const N: usize>(&mut self, cx: &mut Context<'_>, room: usize) -> Turn {
        let FanOut { flow, route, lanes, driver, .. } = self;
        // Apart from the driver, which is borrowed as a whole while it turns.
        let counts = if F::Token::TRACKED { None } else { Some(driver.scope.clone()) };
        let counts = counts.as_deref().map(|scope| &scope.counts);
        let mut split = Tally::of(counts.map(|counts| &counts.split));
        let mut merged = Tally::of(counts.map(|counts| &counts.merged));
        let Some(mut rooms) = rooms::<N, _, _>(lanes) else {
            return driver.turn(flow, cx, room, |item, token| {
                merged.add(1);
                route.route(item, token, lanes, split.count());
                ControlFlow::Continue(())
            });
        };
        driver.turn_in_stretches(flow, cx, room, |flow, cx, max, taken| {
            let items = rooms.iter_mut().fold(max, |items, room| items.min(room.in_a_row()));
            let mut lanes = rooms.each_mut().map(|room| room.stretch(items));
            let mut route = Held::new(&mut *route);
            let mut taken = Taken::new(taken);
            let step = flow.poll_drive(cx, items, &mut |item, token| {
                merged.add(1);
                route.route(item, token, &mut lanes, split.count());
                taken.items += 1;
                ControlFlow::Continue(())
            });
            (step, items)
        })
    }
}

impl<F: Flow, R: Route<F::Item, F::Token>> Future for FanOut<F, R> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.driver.begin();
        if let Some(companions) = self.companions.take() {
            companions.start();
        }
        if self.grace.is_none() {
            let FanOut { route, lanes, .. } = &mut *self;
            ready!(route.poll_lanes(cx, lanes));
        } else if ready!(self.poll_grace(cx)).is_break() {
            return Poll::Ready(());
        }
        loop {
            let room = match self.poll_room(cx) {
                Poll::Ready(Some(room)) => room,
                Poll::Ready(None) if self.route.may_grow() => return Poll::Pending,
                Poll::Ready(None) => return Poll::Ready(()),
                Poll::Pending => {
                    self.driver.blocked();
                    return Poll::Pending;
                }
            };
            let turn = match self.lanes.len() {
                2 => self.turn::<2>(cx, room),
                3 => self.turn::<3>(cx, room),
                4 => self.turn::<4>(cx, room),
                _ => self.turn::<1>(cx, room),
            };
            let FanOut { lanes, route, driver, .. } = &mut *self;
            if let (lost @ 1.., Some(op)) = (route.take_lost(), driver.stats.ops().last()) {
                op.add_dropped(lost);
            }
            for lane in lanes {
                if let Some(writer) = &mut lane.writer
                    && writer.publish(0) > 0
                {
                    lane.stats.published(writer);
                }
            }
            if self.route.is_stuck() && turn != Turn::Failed {
                self.grace = Some(Grace { timer: Box::pin(sleep(GRACE)), ended: turn == Turn::End });
                if ready!(self.poll_grace(cx)).is_break() {
                    return Poll::Ready(());
                }
            }
            match turn {
                Turn::Again => {}
                Turn::Wait => return Poll::Pending,
                Turn::End | Turn::Failed => return Poll::Ready(()),
            }
        }
    }
}
