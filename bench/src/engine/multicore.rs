//! Work for the processor on two cores: how near to twice the speed of one.

use std::hint::black_box;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use millstream_flow::Pipe;
use rayon::iter::{IntoParallelRefIterator, ParallelIterator};

use super::run::{Threads, future, plan};
use crate::case::{Bound, Case, Sample, Scale};
use crate::clock::{By, Watch};
use crate::work::{TOIL_MICROSECOND, toil, toils};

/// One core works for this long in every contestant, so that two can be compared with it.
const WORK: Duration = Duration::from_millis(200);

/// How much work an item is, in nanoseconds.
#[derive(Clone, Copy)]
struct Toil(u64);

impl Toil {
    fn rounds(self) -> u64 {
        self.0 * TOIL_MICROSECOND / 1_000
    }

    fn items(self, scale: Scale) -> u64 {
        scale.of(WORK.as_nanos() as u64 / self.0)
    }
}

pub(crate) fn cases() -> Vec<Case> {
    vec![
        parallel("parallel(2) ordered, 0.2 µs an item", Toil(200))
            .goal(Bound::TimesFaster(1.92, "one core"), ""),
        parallel("parallel(2) ordered, 2 µs an item", Toil(2_000))
            .goal(Bound::TimesFaster(1.96, "one core"), ""),
        parallel("parallel(2) ordered, 20 µs an item", Toil(20_000))
            .goal(Bound::TimesFaster(1.99, "one core"), ""),
        two_stages("two heavy stages, one hop, 0.2 µs each", Toil(200))
            .goal(Bound::TimesFaster(1.95, "one core"), ""),
        two_stages("two heavy stages, one hop, 2 µs each", Toil(2_000))
            .goal(Bound::TimesFaster(1.95, "one core"), ""),
        two_stages("two heavy stages, one hop, 20 µs each", Toil(20_000))
            .goal(Bound::TimesFaster(1.95, "one core"), ""),
    ]
}

/// By the clock on the wall, as the others are: the speed-up is one of real time.
fn one_core(items: u64, expected: u64, work: impl FnOnce() -> u64) -> Sample {
    let watch = Watch::start(By::Wall);
    let sum = work();
    Sample::per_item(watch.elapsed(), items, sum, expected)
}

fn add(sum: &mut u64, x: u64) {
    *sum = sum.wrapping_add(x);
}

fn parallel(name: &'static str, work: Toil) -> Case {
    let rounds = work.rounds();
    Case::new(name)
        .floor("one core", move |scale| {
            let items = work.items(scale);
            one_core(items, toils(items, rounds), || toils(black_box(items), rounds))
        })
        .peer("rayon, all in memory", move |scale| {
            let items = work.items(scale);
            let expected = toils(items, rounds);
            let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("a pool of two starts");
            let all: Vec<u64> = (0..items).collect();
            one_core(items, expected, || {
                pool.install(|| all.par_iter().map(|i| toil(*i, rounds)).reduce(|| 0, u64::wrapping_add))
            })
        })
        .peer("spawn + buffered(16)", move |scale| {
            let items = work.items(scale);
            future(Threads::Two, items, toils(items, rounds), move || async move {
                let spawned = stream::iter(0..items).map(|i| tokio::spawn(async move { toil(i, rounds) }));
                let mut stream = spawned.buffered(16);
                let mut sum = 0;
                while let Some(x) = stream.next().await {
                    add(&mut sum, x.expect("toil does not panic"));
                }
                sum
            })
        })
        .ours("ours", move |scale| {
            let items = work.items(scale);
            plan(Threads::Two, items, toils(items, rounds), || {
                Pipe::from_iter(0..items).parallel(2, move |i| toil(i, rounds)).fold(0u64, add)
            })
        })
}

fn two_stages(name: &'static str, work: Toil) -> Case {
    let rounds = work.rounds();
    let expected =
        move |items: u64| (0..items).fold(0u64, |sum, i| sum.wrapping_add(toil(toil(i, rounds), rounds)));
    Case::new(name)
        .floor("one core", move |scale| {
            let items = work.items(scale) / 2;
            one_core(items, expected(items), || expected(black_box(items)))
        })
        .peer("tokio::mpsc", move |scale| {
            let items = work.items(scale) / 2;
            future(Threads::Two, items, expected(items), move || async move {
                let (tx, mut rx) = tokio::sync::mpsc::channel(1024);
                tokio::spawn(async move {
                    for i in 0..items {
                        let _ = tx.send(toil(i, rounds)).await;
                    }
                });
                let mut sum = 0;
                while let Some(x) = rx.recv().await {
                    add(&mut sum, toil(x, rounds));
                }
                sum
            })
        })
        .ours("ours", move |scale| {
            let items = work.items(scale) / 2;
            plan(Threads::Two, items, expected(items), || {
                let first = Pipe::from_iter(0..items).map(move |i| toil(i, rounds));
                first.buffer(1024).map(move |x| toil(x, rounds)).fold(0u64, add)
            })
        })
}
