//! What turns a stage: quanta paced by time, panics caught, time accounted.

use std::cell::Cell;
use std::mem;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::clock::Tick;
use crate::failure::{Failure, Panicked};
use crate::flow::{Flow, Step};
use crate::held::Held;
use crate::scope::{PanicPolicy, RunErrorKind, Scope};
use crate::stats::StageStats;
use crate::token::{CatchScope, Outcome, Settle};

/// How long a stage works before it lets others run. tokio's current-thread runtime looks at timers once in 61
/// polls, so a slice of 50 µs can delay a timer by 3 ms. What yielding costs is the case `fairness` of
/// `cargo xtask bench engine`.
const SLICE: Duration = Duration::from_micros(10);

/// A quantum may double while it takes less than this.
const QUANTUM_SHORT: Duration = Duration::from_nanos(2_500);

/// The first quantum; it doubles while items are cheap and halves when they are dear.
const QUANTUM_FIRST: usize = 16;

/// Why a stage last stopped working, so that the time until it is polled again has a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Idle {
    /// It gave way to others, or has not begun.
    Yielded,
    /// Nothing came from upstream.
    Starved,
    /// There was no room downstream.
    Blocked,
}

/// The driver of one stage: calls its flow in quanta and keeps its account.
#[derive(Debug)]
pub(crate) struct Driver {
    pub(crate) scope: Arc<Scope>,
    pub(crate) stats: Arc<StageStats>,
    quantum: usize,
    quantum_max: usize,
    slice_began: Tick,
    /// When the last quantum ended, or the slice began: what comes after it belongs to the next quantum, so that one
    /// reading of the clock is enough.
    last: Tick,
    idle: Idle,
    idle_since: Option<Tick>,
    taken: u64,
}

/// Counts the items that a sink takes; told when this goes, also by unwinding.
pub(crate) struct Taken<'a> {
    pub(crate) items: u64,
    to: &'a mut u64,
}

impl<'a> Taken<'a> {
    #[inline(always)]
    pub(crate) fn new(to: &'a mut u64) -> Self {
        Taken { items: 0, to }
    }
}

impl Drop for Taken<'_> {
    #[inline]
    fn drop(&mut self) {
        *self.to += self.items;
    }
}

/// What the driver's caller does after a quantum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Go on.
    Again,
    /// Return `Pending`: the stage has used its slice and woken itself, or upstream has nothing.
    Wait,
    /// The flow has ended.
    End,
    /// The run has failed at this stage; stop.
    Failed,
}

impl Driver {
    pub(crate) fn new(scope: Arc<Scope>, stats: Arc<StageStats>, quantum_max: usize) -> Self {
        let now = Tick::now();
        Driver {
            scope,
            stats,
            quantum: QUANTUM_FIRST.min(quantum_max),
            quantum_max,
            slice_began: now,
            last: now,
            idle: Idle::Yielded,
            idle_since: None,
            taken: 0,
        }
    }

    /// To be called when the task is polled: a new slice begins, and the wait that ended is accounted for.
    pub(crate) fn begin(&mut self) {
        let now = Tick::now();
        self.slice_began = now;
        self.last = now;
        if let Some(since) = self.idle_since.take() {
            match self.idle {
                Idle::Starved => self.stats.add_starved(now.since(since)),
                Idle::Blocked => self.stats.add_blocked(now.since(since)),
                Idle::Yielded => {}
            }
        }
    }

    /// How many items the sink took in the last quantum; one that it panicked over is not among them.
    pub(crate) fn taken(&self) -> u64 {
        self.taken
    }

    /// To be called before returning `Pending` because there is no room downstream.
    pub(crate) fn blocked(&mut self) {
        self.idle = Idle::Blocked;
        // Not a reading of its own: the last quantum ended just now, or the slice began.
        self.idle_since = Some(self.last);
    }

    /// Drives the flow for one quantum of up to `room` items into `sink`.
    #[inline]
    pub(crate) fn turn<F: Flow>(
        &mut self,
        flow: &mut F,
        cx: &mut Context<'_>,
        room: usize,
        sink: impl FnMut(F::Item, F::Token) -> ControlFlow<()>,
    ) -> Turn {
        self.turn_with(flow, cx, room, |_| sink)
    }

    /// As [`turn`](Self::turn), with a sink that is made for as many items as it is told, inside of what catches panics.
    /// What such a sink owns can live in registers; what a sink borrows from outside is read and written in memory for
    /// every item, which costs a cheap flow more than its items.
    #[inline]
    pub(crate) fn turn_with<F: Flow, S>(
        &mut self,
        flow: &mut F,
        cx: &mut Context<'_>,
        room: usize,
        make_sink: impl FnOnce(usize) -> S,
    ) -> Turn
    where
        S: FnMut(F::Item, F::Token) -> ControlFlow<()>,
    {
        self.turn_by(flow, cx, room, |flow, cx, max, items| {
            let mut sink = make_sink(max);
            let mut taken = Taken::new(items);
            flow.poll_drive(cx, max, &mut |item, token| {
                let flow = sink(item, token);
                taken.items += 1;
                flow
            })
        })
    }

    /// As [`turn`](Self::turn), for a sink that takes items in stretches: `stretch` drives the flow for as many as it has
    /// room for in a row, up to what it is told, counts what is taken, and says how it went and how many it asked for.
    #[inline]
    pub(crate) fn turn_in_stretches<F: Flow>(
        &mut self,
        flow: &mut F,
        cx: &mut Context<'_>,
        room: usize,
        mut stretch: impl FnMut(&mut F, &mut Context<'_>, usize, &mut u64) -> (Poll<Step>, usize),
    ) -> Turn {
        self.turn_by(flow, cx, room, |flow, cx, max, items| {
            let mut left = max;
            loop {
                let before = *items;
                let (step, asked) = stretch(flow, cx, left, items);
                left -= asked;
                let short = *items - before < asked as u64;
                if short || left == 0 || step != Poll::Ready(Step::More) {
                    return step;
                }
            }
        })
    }

    /// What all turns have in common: panics caught, time taken, the next quantum sized. `quantum` drives the flow for up to
    /// as many items as it is told, and counts what is taken, also when it unwinds.
    #[inline]
    fn turn_by<F: Flow>(
        &mut self,
        flow: &mut F,
        cx: &mut Context<'_>,
        room: usize,
        quantum: impl FnOnce(&mut F, &mut Context<'_>, usize, &mut u64) -> Poll<Step>,
    ) -> Turn {
        let max = self.quantum.min(room);
        let mut items = 0u64;
        let catching = F::Token::TRACKED.then(CatchScope::enter);
        self.stats.work(Some(self.last));
        let step = catch_unwind(AssertUnwindSafe(|| quantum(&mut Held::new(flow), cx, max, &mut items)));
        self.taken = items;
        let step = match step {
            Ok(step) => {
                drop(catching);
                step
            }
            Err(payload) => {
                let error = Panicked::new(payload);
                if settle_panic::<F::Token>(&self.scope, &self.stats, error, catching) {
                    return Turn::Failed;
                }
                Poll::Ready(Step::More)
            }
        };
        let now = Tick::now();
        let took = now.since(self.last);
        self.last = now;
        self.stats.work(None);
        self.stats.add_quantum(items, took);
        // Only a full quantum says what an item costs.
        if took > SLICE / 2 {
            self.quantum = (self.quantum / 2).max(1);
            self.stats.add_stall(took);
        } else if took < QUANTUM_SHORT && max == self.quantum && step == Poll::Ready(Step::More) {
            self.quantum = (self.quantum * 2).min(self.quantum_max);
        }
        match step {
            Poll::Pending => {
                self.idle = Idle::Starved;
                self.idle_since = Some(now);
                Turn::Wait
            }
            Poll::Ready(Step::End) => Turn::End,
            Poll::Ready(Step::More) if now.since(self.slice_began) >= SLICE => {
                self.idle = Idle::Yielded;
                self.idle_since = Some(now);
                cx.waker().wake_by_ref();
                Turn::Wait
            }
            Poll::Ready(Step::More) => Turn::Again,
        }
    }
}

thread_local! {
    /// The function that panics has no item in hand.
    static NO_ITEM: Cell<bool> = const { Cell::new(false) };
}

/// Calls a user's function that has no item in hand: its panic costs none.
pub(crate) fn without_item<R>(function: impl FnOnce() -> R) -> R {
    struct Calling;
    impl Drop for Calling {
        fn drop(&mut self) {
            NO_ITEM.set(true);
        }
    }
    let calling = Calling;
    let result = function();
    mem::forget(calling);
    result
}

/// Settles what a panic took with it, by the run's policy. Returns whether the run fails.
#[cold]
pub(crate) fn settle_panic<K: Settle>(
    scope: &Arc<Scope>,
    stats: &StageStats,
    error: Panicked,
    catching: Option<CatchScope>,
) -> bool {
    stats.add_panic();
    let no_item = NO_ITEM.take();
    let failure = Failure::new(stats.name(), &error, scope.clock().now());
    let unwound = catching.map(CatchScope::leave);
    tracing::error!(stage = %failure.stage, reason = %failure.reason, "a user function panicked");
    match scope.panic_policy() {
        PanicPolicy::Dead => {
            if !K::TRACKED && !no_item {
                scope.counts.dead.fetch_add(1, Ordering::Relaxed);
            }
            if let Some(unwound) = unwound {
                unwound.settle(&Outcome::Dead(Arc::new(failure)));
            }
            false
        }
        PanicPolicy::Fail => {
            if let Some(unwound) = unwound {
                unwound.settle(&Outcome::Abandoned);
            }
            scope.fail(RunErrorKind::Item(failure));
            true
        }
    }
}
