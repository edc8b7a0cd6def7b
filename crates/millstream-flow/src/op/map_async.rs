//! Async functions with many calls in flight, in one task.
//!
//! Each call lives in a slot that is allocated once ([`slots`]); a slot's waker marks its bit in a set of ready
//! slots and wakes the stage. Polling looks at set bits only, so that a thousand sleeping calls cost nothing, and
//! no item allocates. A call that is ready at once never enters the book: its result goes straight on.

use std::future::Future;
use std::ops::ControlFlow;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use crate::flow::{Flow, Step};
use crate::held::Held;
use crate::knob::{Knob, Setting};
use limit::Deadlines;
use slots::Slab;

pub(crate) mod limit;
mod ready;
mod slots;

/// How many calls run at once, whether results keep the order of their items, and how long a call may take.
///
/// `map_async(8, ..)` is eight in flight, in order, for as long as they take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Concurrency {
    pub(crate) limit: Setting,
    pub(crate) unordered: bool,
    pub(crate) time_limit: Option<Duration>,
}

impl Concurrency {
    /// Up to `limit` calls at once; results in the order of their items. A slow call holds back the results
    /// behind it, of which at most `limit` wait.
    ///
    /// # Panics
    /// If `limit` is 0 or above 65,536.
    pub fn ordered(limit: usize) -> Self {
        assert!((1..=LIMIT_MAX).contains(&limit), "calls in flight are 1 to {LIMIT_MAX}, not {limit}");
        Concurrency { limit: limit.into(), unordered: false, time_limit: None }
    }

    /// Up to `limit` calls at once; results as they come.
    ///
    /// # Panics
    /// If `limit` is 0 or above 65,536.
    pub fn unordered(limit: usize) -> Self {
        Concurrency { unordered: true, ..Concurrency::ordered(limit) }
    }

    /// As many calls as the tuner finds best, in order. The first value is 16; if those are not enough, it is by how long
    /// they took what makes a thousand items a second, up to 256.
    pub fn auto() -> Self {
        Concurrency::default()
    }

    /// How long the call for one item may take; `None` is the default, for ever. A call that takes longer is dropped where it
    /// waits, and that item has failed: with [`TimedOut`](crate::TimedOut) in a [`Failed`](crate::Failed) that holds the input,
    /// where the function may fail; else by the run's [`PanicPolicy`](crate::PanicPolicy), like one whose call panics. Other
    /// items go on, in their order.
    ///
    /// The time runs from when the function first waits: a call that is ready at once costs no look at the clock, and one that
    /// blocks its thread cannot be interrupted by anybody ([`StageReport::stalls`](crate::StageReport::stalls) counts those). It
    /// holds for all attempts of a call together, with the delays between them, while
    /// [`Retry::timeout`](crate::Retry::timeout) is for one. Waiting for the turn of a key, or for what another item looks up,
    /// takes none of it, and a call that could have gone on while nobody asked for results, because what comes after is slow,
    /// begins its time anew. All calls of an operator share one timer.
    ///
    /// # Panics
    /// If the limit is zero.
    ///
    /// ```
    /// use millstream_flow::{Concurrency, PanicPolicy, Pipe};
    /// use std::time::Duration;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// let calls = Concurrency::ordered(8).time_limit(Duration::from_secs(5));
    /// let (done, report) = Pipe::from_iter(1..=5)
    ///     .on_panic(PanicPolicy::Dead)
    ///     .map_async(calls, async |n| if n == 3 { std::future::pending().await } else { n })
    ///     .collect()
    ///     .await
    ///     .unwrap();
    /// assert_eq!((done, report.ledger.dead), (vec![1, 2, 4, 5], 1));
    /// # }
    /// ```
    #[must_use]
    pub fn time_limit(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.time_limit = limit.into();
        assert!(self.time_limit != Some(Duration::ZERO), "nothing can be done in no time");
        self
    }

    /// How long the call for one item may take, if that is limited.
    pub fn time_limit_used(&self) -> Option<Duration> {
        self.time_limit
    }

    /// The same, with results as soon as they are there.
    #[must_use]
    pub fn in_any_order(mut self) -> Self {
        self.unordered = true;
        self
    }

    /// Whether results come in the order of their items, as also do those of calls one at a time.
    pub fn is_ordered(&self) -> bool {
        !self.unordered || matches!(self.limit, Setting::Fixed(1))
    }

    pub(crate) fn knob(&self, name: String) -> Knob {
        let max = match self.limit {
            Setting::Fixed(limit) => limit,
            Setting::Auto => 1024,
        };
        Knob::new(name, self.limit, FIRST, 1..=max)
    }
}

const LIMIT_MAX: usize = 1 << 16;
/// An automatic limit, before anything is known of the calls.
const FIRST: usize = 16;
/// The most that it is as soon as something is known.
const MEASURED_MAX: usize = 256;
/// What it is to make possible, in calls a second.
const RATE: f64 = 1000.0;

/// How long calls take, found by Little's law: when so many are in flight all the time, as many end in the time of one.
#[derive(Debug, Clone, Copy)]
enum ServiceTime {
    /// Until there are as many calls as may be, there is no need to know.
    Waiting,
    /// The limit was reached at this time, when so many calls had ended.
    Measuring { since: Instant, ended: u64 },
    /// It is known, or nobody asks.
    Done,
}

impl ServiceTime {
    /// To be called when the limit is reached.
    #[cold]
    fn look(&mut self, ended: u64, limit: &Knob) {
        match *self {
            ServiceTime::Waiting => *self = ServiceTime::Measuring { since: Instant::now(), ended },
            ServiceTime::Measuring { since, ended: before } if ended - before >= limit.value() as u64 => {
                let enough = (since.elapsed().as_secs_f64() * RATE).ceil() as usize;
                // Whoever moved it meanwhile knows better.
                if limit.value() == FIRST && enough > FIRST {
                    let _ = limit.set(enough.min(MEASURED_MAX));
                }
                *self = ServiceTime::Done;
            }
            ServiceTime::Measuring { .. } | ServiceTime::Done => {}
        }
    }
}

impl From<usize> for Concurrency {
    fn from(limit: usize) -> Self {
        Concurrency::ordered(limit)
    }
}

/// See [`Pipe::map_async`](crate::Pipe::map_async).
pub struct MapAsync<F: Flow, M, Fut: Future> {
    upstream: F,
    map: M,
    limit: Knob,
    slab: Slab<Fut, F::Token>,
    service_time: ServiceTime,
    ended: bool,
}

impl<F: Flow, M, Fut: Future> MapAsync<F, M, Fut> {
    pub(crate) fn new(
        upstream: F,
        map: M,
        limit: Knob,
        unordered: bool,
        deadlines: Box<[Deadlines]>,
    ) -> Self {
        let slab = Slab::new(limit.bounds().1, unordered, deadlines);
        let service_time = if limit.is_frozen() { ServiceTime::Done } else { ServiceTime::Waiting };
        MapAsync { upstream, map, limit, slab, service_time, ended: false }
    }
}

impl<F, M, Fut> Flow for MapAsync<F, M, Fut>
where
    F: Flow,
    M: FnMut(F::Item) -> Fut,
    Fut: Future,
{
    type Item = Fut::Output;
    type Token = F::Token;

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(Fut::Output, F::Token) -> ControlFlow<()>,
    {
        let MapAsync { upstream, map, limit: knob, slab, service_time, ended } = self;
        let limit = knob.value();
        let mut room = max;
        // Apart from the rest of the stage's state: the book is written by calls out of line, which must not keep
        // what lies beside it out of registers.
        let mut slab = Held::new(slab);
        let slab = &mut *slab;
        let stage = cx.waker();
        let polling = slab.begin(stage);
        match slab.end_late(&mut room, sink) {
            ControlFlow::Break(()) => return slab.more(),
            ControlFlow::Continue(true) => return Poll::Ready(Step::End),
            ControlFlow::Continue(false) => {}
        }
        loop {
            if slab.poll_ready(&polling, &mut room, sink).is_break() {
                return slab.more();
            }
            if *ended {
                return if slab.in_flight() == 0 { Poll::Ready(Step::End) } else { slab.pending_until(cx) };
            }
            if slab.in_flight() >= limit {
                if !matches!(service_time, ServiceTime::Done) {
                    service_time.look(slab.calls_ended(), knob);
                }
                return slab.pending_until(cx);
            }
            let mut broke = false;
            let (mut spare, mut straight) = slab.next_place();
            let step = upstream.poll_drive(cx, room, &mut |item, token| {
                // Such an item takes one from the room that upstream was given, so upstream stops by itself.
                // SAFETY: it is the slab's spare place, looked up anew after each call that stays.
                match unsafe { spare.start(map(item)) } {
                    Poll::Ready(output) if straight => {
                        room -= 1;
                        let flow = sink(output, token);
                        broke |= flow.is_break();
                        flow
                    }
                    begun => {
                        slab.keep(begun, token, stage);
                        (spare, straight) = slab.next_place();
                        if slab.in_flight() >= limit {
                            ControlFlow::Break(())
                        } else {
                            ControlFlow::Continue(())
                        }
                    }
                }
            });
            *ended = step == Poll::Ready(Step::End);
            if broke || room == 0 {
                let over = *ended && slab.in_flight() == 0;
                return if over { Poll::Ready(Step::End) } else { slab.more() };
            }
            match step {
                Poll::Pending => {
                    let flow = slab.poll_ready(&polling, &mut room, sink);
                    return if flow.is_break() { slab.more() } else { slab.pending_until(cx) };
                }
                Poll::Ready(Step::More) if slab.in_flight() < limit => return slab.more(),
                // Full, or upstream has ended: what is in flight decides. Calls may have woken themselves.
                Poll::Ready(_) => {}
            }
        }
    }
}
