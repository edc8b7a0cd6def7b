//! The tables of streamz' performance guide, side by side: the same operators, one at a time and as its pipelines.

use std::time::Duration;

use millstream_flow::{
    Batch, Capacity, Concurrency, Debounce, Flow, Pipe, Plan, Sample as SampleRule, Throttle,
};

use super::run::{Threads, plan};
use super::streamz;
use crate::case::{Bound, Case};
use crate::work::{multiply, one};

const ITEMS: u64 = 10_000_000;
/// What streamz is given, which takes two orders of magnitude longer.
const ITEMS_GO: u64 = 300_000;

const SPAN: Duration = Duration::from_millis(10);

pub(crate) fn cases() -> Vec<Case> {
    vec![
        row("guide: filter", "filter", 700.0, 1, |items| sum(Pipe::from_iter(0..items).filter(|_| true))),
        row("guide: mapper", "hop", 700.0, 1, |items| {
            Pipe::from_iter(0..items).map(multiply).fold(0u64, |sum, i| *sum = sum.wrapping_add(i))
        }),
        row("guide: tap", "tap", 700.0, 1, |items| sum(Pipe::from_iter(0..items).inspect(|_| {}))),
        row("guide: sample", "sample", 230.0, 1, |items| {
            sum(Pipe::from_iter(0..items).sample(SampleRule::rate(1.0)))
        }),
        row("guide: async mapper, 10 in flight", "async", 500.0, 1, |items| {
            Pipe::from_iter(0..items)
                .map_async(Concurrency::ordered(10), |i| std::future::ready(multiply(i)))
                .fold(0u64, |sum, i| *sum = sum.wrapping_add(i))
        }),
        row("guide: batcher (100, 1 s)", "batcher", 480.0, 1, |items| batches(Pipe::from_iter(0..items))),
        row("guide: buffer (1000)", "buffer", 200.0, 1, |items| sum(Pipe::from_iter(0..items).buffer(1000))),
        row("guide: throttle", "throttle", 200.0, 1, |items| {
            last(Pipe::from_iter(running(items)).throttle(Throttle::both(SPAN)))
        }),
        row("guide: debounce", "debounce", 300.0, 1, |items| {
            last(Pipe::from_iter(running(items)).debounce(Debounce::trailing(SPAN)))
        }),
        row("guide: fan-out 4, mapper each, fan-in", "fanout", 650.0, 4, |items| {
            let lanes = Pipe::from_iter(0..items).broadcast(4, 1024);
            sum(Pipe::merge_all(lanes.into_iter().map(|lane| lane.map(|i| i))))
        }),
        row("guide: partition round robin 4, mapper each, fan-in", "partition", 700.0, 1, |items| {
            let lanes = Pipe::from_iter(0..items).round_robin(4, 1024);
            sum(Pipe::merge_all(lanes.into_iter().map(|lane| lane.map(|i| i))))
        }),
        row("guide: switch, 2 routes", "switch", 150.0, 1, |items| {
            let switch = Pipe::from_iter(0..items).switch(|i| i & 1);
            sum(Pipe::merge_all([switch.route(0, 1024), switch.route(1, 1024)]))
        }),
        row("guide: the complex pipeline", "complex", 650.0, 1, |items| {
            let pipe = Pipe::from_iter(0..items).buffer(Capacity::items(1000)).filter(|_| true);
            batches(pipe.map_async(Concurrency::ordered(10), std::future::ready).inspect(|_| {}))
        }),
    ]
}

fn row(
    name: &'static str,
    workload: &'static str,
    times: f64,
    copies: u64,
    ours: fn(u64) -> Plan<u64>,
) -> Case {
    Case::new(name)
        .peer("streamz", move |scale| {
            let items = scale.of(ITEMS_GO);
            streamz::measure(workload, items, one(items).wrapping_mul(copies))
        })
        .ours("ours", move |scale| {
            let items = scale.of(ITEMS);
            plan(Threads::One, items, one(items).wrapping_mul(copies), move || ours(items))
        })
        .goal(Bound::TimesFaster(times, "streamz"), "")
}

fn sum<F: Flow<Item = u64> + Send + 'static>(pipe: Pipe<F>) -> Plan<u64> {
    pipe.fold(0u64, |sum, i| *sum = sum.wrapping_add(multiply(i)))
}

fn batches<F: Flow<Item = u64> + Send + 'static>(pipe: Pipe<F>) -> Plan<u64> {
    let batches = pipe.batch(Batch::count(100).age(Duration::from_secs(1)));
    batches.fold(0u64, |sum, batch: Vec<u64>| {
        for i in batch {
            *sum = sum.wrapping_add(multiply(i));
        }
    })
}

/// Running sums, of which the last is the sum of what goes in: for operators that leave items out by the clock, but not
/// the last.
fn running(items: u64) -> impl Iterator<Item = u64> + Send {
    (0..items).scan(0u64, |sum, i| {
        *sum = sum.wrapping_add(multiply(i));
        Some(*sum)
    })
}

fn last<F: Flow<Item = u64> + Send + 'static>(pipe: Pipe<F>) -> Plan<u64> {
    pipe.fold(0u64, |last, sum| *last = sum)
}
