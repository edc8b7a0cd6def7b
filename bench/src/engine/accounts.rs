//! What the engine keeps account of, and what that costs: settlement, and the figures of stages and ledger.

use std::future::Future;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::stream;
use millstream_flow::{BoxError, Flow, Outcome, Pipe, Step, Tracked, Tracker};

use super::run::{Threads, future, nanoseconds, plan};
use crate::case::{Bound, Case, Sample, Scale};
use crate::clock;
use crate::work::{kept, mix, multiply, one, three};

const ITEMS: u64 = 20_000_000;
const ADDED: &str = "added ns";

pub(crate) fn cases() -> Vec<Case> {
    vec![
        tracked("tracked against untracked, fused, ct", Threads::One, false),
        tracked("tracked against untracked, one hop, ct", Threads::One, true),
        tracked("tracked against untracked, one hop, mt", Threads::Two, true),
        tracked_lanes(),
        metrics(),
    ]
}

fn add(sum: &mut u64, x: u64) {
    *sum = sum.wrapping_add(x);
}

/// Both flows in one process, one after the other: the goal is about their difference.
fn tracked(name: &'static str, threads: Threads, hop: bool) -> Case {
    Case::new(name)
        .ours("ours", move |scale| {
            let items = scale.of(ITEMS / 2);
            let untracked = plan(threads, items, three(items), || {
                let source = Pipe::from_stream(stream::iter(0..items)).map(multiply);
                match hop {
                    false => source.filter(kept).map(mix).fold(0u64, add),
                    true => source.buffer(1024).filter(kept).map(mix).fold(0u64, add),
                }
            });
            let tracked = plan(threads, items, three(items), || {
                let mut tracker = Tracker::new(|_: std::ops::Range<u64>, _: &Outcome| {});
                let account = tracker.account();
                let deliveries =
                    (0..items).map(move |value| Ok::<_, BoxError>(Tracked { value, token: tracker.issue() }));
                let source = Pipe::from_tracked(account, stream::iter(deliveries)).map(multiply);
                match hop {
                    false => source.filter(kept).map(mix).fold(0u64, add),
                    true => source.buffer(1024).filter(kept).map(mix).fold(0u64, add),
                }
            });
            let (untracked, tracked) = (nanoseconds(&untracked), nanoseconds(&tracked));
            Sample::new()
                .with(ADDED, tracked - untracked)
                .with("untracked ns", untracked)
                .with("tracked ns", tracked)
        })
        .goal_on(ADDED, Bound::AtMost(8.0), "an item")
}

/// The same where every item has two handles, for two tasks.
fn tracked_lanes() -> Case {
    async fn sum<F: Flow<Item = u64> + Send + 'static>(lanes: Vec<Pipe<F>>) -> u64 {
        let runs: Vec<_> = lanes.into_iter().map(|lane| lane.map(multiply).fold(0u64, add).start()).collect();
        let mut sum = 0u64;
        for run in runs {
            let (part, _) = run.join().await.expect("the run succeeds");
            sum = sum.wrapping_add(part);
        }
        sum
    }
    Case::new("tracked against untracked, broadcast to 2 tasks, ct")
        .ours("ours", |scale| {
            let items = scale.of(ITEMS / 4);
            let expected = one(items).wrapping_mul(2);
            let untracked = future(Threads::One, items, expected, move || async move {
                sum(Pipe::from_stream(stream::iter(0..items)).broadcast(2, 1024)).await
            });
            let tracked = future(Threads::One, items, expected, move || async move {
                let mut tracker = Tracker::new(|_: std::ops::Range<u64>, _: &Outcome| {});
                let account = tracker.account();
                let deliveries =
                    (0..items).map(move |value| Ok::<_, BoxError>(Tracked { value, token: tracker.issue() }));
                sum(Pipe::from_tracked(account, stream::iter(deliveries)).broadcast(2, 1024)).await
            });
            let (untracked, tracked) = (nanoseconds(&untracked), nanoseconds(&tracked));
            Sample::new()
                .with(ADDED, tracked - untracked)
                .with("untracked ns", untracked)
                .with("tracked ns", tracked)
        })
        .goal_on(ADDED, Bound::AtMost(50.0), "an item that ends when both have settled it")
}

fn metrics() -> Case {
    fn pipe(items: u64) -> Pipe<impl Flow<Item = u64, Token = ()> + Send + 'static> {
        Pipe::from_iter(0..items).map(multiply).filter(kept).map(mix)
    }
    Case::new("metrics, ledger and signals on against off, 3 fused operators, ct")
        .floor("the same flow, paced but unaccounted", |scale: Scale| {
            let items = scale.of(5 * ITEMS);
            future(Threads::One, items, three(items), || unaccounted(pipe(items), true))
        })
        .ours("ours", |scale| {
            let items = scale.of(5 * ITEMS);
            plan(Threads::One, items, three(items), || pipe(items).fold(0u64, add))
        })
        .goal(Bound::TimesAtMost(1.02, "the same flow, paced but unaccounted"), "")
        .remark(
            "The engine has no switch to compile its account out; the floor drives the same operators from this crate, \
             in the same quanta and slices, and counts nothing but what sources and operators themselves do.",
        )
}

/// Drives a flow's operators by hand, without the engine's driver: no stage figures, no panics caught.
/// With `paced` in the engine's rhythm (quanta that double while they are short, slices of 10 µs), without it in
/// quanta of 8,192 and never yielding.
pub(crate) fn unaccounted<F>(pipe: Pipe<F>, paced: bool) -> impl Future<Output = u64> + Send
where
    F: Flow<Item = u64, Token = ()> + Send + 'static,
{
    let mut taken = None;
    let rest = pipe.via("taken out", |flow| {
        taken = Some(flow);
        Nothing
    });
    let flow = taken.expect("`via` calls its function");
    Bare { flow, _scope: rest, sum: 0, quantum: 16, paced }
}

/// What is left of a pipe when its flow is taken out; it keeps the scope that the flow counts into.
struct Nothing;

impl Flow for Nothing {
    type Item = u64;
    type Token = ();

    fn poll_drive<S>(&mut self, _: &mut Context<'_>, _: usize, _: &mut S) -> Poll<Step>
    where
        S: FnMut(u64, ()) -> ControlFlow<()>,
    {
        Poll::Ready(Step::End)
    }
}

struct Bare<F> {
    flow: F,
    _scope: Pipe<Nothing>,
    sum: u64,
    quantum: usize,
    paced: bool,
}

impl<F> Unpin for Bare<F> {}

impl<F: Flow<Item = u64, Token = ()>> Future for Bare<F> {
    type Output = u64;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<u64> {
        const SLICE_NANOSECONDS: u128 = 10_000;
        let Bare { flow, sum, quantum, paced, .. } = &mut *self;
        let began = clock::now();
        let mut last = began;
        loop {
            let max = if *paced { *quantum } else { 8_192 };
            let step = ready!(flow.poll_drive(cx, max, &mut |x, ()| {
                *sum = sum.wrapping_add(x);
                ControlFlow::Continue(())
            }));
            if step == Step::End {
                return Poll::Ready(*sum);
            }
            if *paced {
                let now = clock::now();
                let took = (now - last).as_nanos();
                last = now;
                if took > SLICE_NANOSECONDS / 2 {
                    *quantum = (*quantum / 2).max(1);
                } else if took < SLICE_NANOSECONDS / 4 {
                    *quantum = (*quantum * 2).min(8_192);
                }
                if (now - began).as_nanos() >= SLICE_NANOSECONDS {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
            }
        }
    }
}
