//! Allocations an item in steady state, operator by operator.

use std::time::{Duration, SystemTime};

use millstream_flow::{
    Batch, BoxError, Capacity, Concurrency, Debounce, Dedupe, EventTime, Outcome, Overflow, Pipe, Plan,
    RateLimit, Replay, Sample as SampleRule, Sum, Throttle, Tracked, Tracker, Window,
};

use super::run::Threads;
use crate::alloc;
use crate::case::{Bound, Case, Sample, Scale};

const ITEMS: u64 = 100_000;
const METRIC: &str = "allocations";

/// What a long run allocates more than a short one, an item: what it takes to start does not count.
fn steady(threads: Threads, plan: impl Fn(u64) -> Plan<u64> + 'static) -> impl Fn(Scale) -> Sample {
    move |scale| {
        let runtime = threads.runtime();
        let allocations = |items: u64| {
            let plan = runtime.block_on(async { plan(items) });
            let (_, count) =
                alloc::count(|| runtime.block_on(async { plan.await.expect("the run succeeds") }));
            count as f64
        };
        let items = scale.of(ITEMS);
        allocations(items); // The runtime's own queues grow once.
        let (short, long) = (allocations(items), allocations(4 * items));
        Sample::new().with(METRIC, ((long - short) / (3 * items) as f64).max(0.0))
    }
}

/// One allocation in ten thousand items is a queue that grows, or noise of the runtime; one an item is 1.
const NONE: f64 = 0.0001;

fn none(name: &'static str, plan: impl Fn(u64) -> Plan<u64> + 'static) -> Case {
    Case::new(name).ours("ours", steady(Threads::One, plan)).goal_on(METRIC, Bound::AtMost(NONE), "0 an item")
}

fn count(sum: &mut u64, _: u64) {
    *sum += 1;
}

pub(crate) fn cases() -> Vec<Case> {
    vec![
        none("allocations: map, filter, filter_map, inspect, skip, take", |items| {
            let pipe = Pipe::from_iter(0..items).map(|i| i + 1).filter(|i| i % 3 != 0).inspect(|_| {});
            pipe.filter_map(|i| (i % 5 != 0).then_some(i)).skip(10).take(usize::MAX).fold(0, count)
        }),
        none("allocations: flat_map", |items| Pipe::from_iter(0..items).flat_map(|i| [i, i]).fold(0, count)),
        none("allocations: try_map, errors skipped", |items| {
            let pipe = Pipe::from_iter(0..items).try_map(|i| Ok::<u64, BoxError>(*i));
            pipe.skip_errors().fold(0, count)
        }),
        none("allocations: map_async(50) ordered", |items| {
            Pipe::from_iter(0..items).map_async(50, yielding).fold(0, count)
        }),
        none("allocations: map_async(50) unordered", |items| {
            Pipe::from_iter(0..items).map_async(Concurrency::unordered(50), yielding).fold(0, count)
        }),
        none("allocations: map_async(50) with a time limit", |items| {
            let calls = Concurrency::ordered(50).time_limit(SECOND);
            Pipe::from_iter(0..items).map_async(calls, yielding).fold(0, count)
        }),
        none("allocations: buffer", |items| Pipe::from_iter(0..items).buffer(1024).fold(0, count)),
        none("allocations: merge", |items| {
            let pipe = Pipe::from_iter(0..items / 2).buffer(1024);
            pipe.merge(Pipe::from_iter(0..items / 2)).fold(0, count)
        }),
        none("allocations: partition and merge (per_key)", |items| {
            Pipe::from_iter(0..items).per_key(2, 1024, |i| *i, |lane| lane.map(|i| i + 1)).fold(0, count)
        }),
        none("allocations: replay with a subscriber", |items| {
            let replay = Replay::new(1024);
            let _subscriber = replay.subscribe();
            Pipe::from_iter(0..items).replay(&replay).fold(0, count)
        }),
        none("allocations: boxed", |items| Pipe::from_iter(0..items).boxed().fold(0, count)),
        none("allocations: scan, take_while, skip_while, sample, distinct_until_changed", |items| {
            let pipe = Pipe::from_iter(0..items).scan(0u64, |sum, i| {
                *sum = sum.wrapping_add(i);
                *sum
            });
            let pipe = pipe.skip_while(|i| *i < 10).take_while(|_| true).sample(SampleRule::rate(0.5));
            pipe.distinct_until_changed(|i| i % 7).fold(0, count)
        }),
        none("allocations: dedupe of 1,000 keys", |items| {
            Pipe::from_iter(0..items).dedupe(Dedupe::keys(1000).ttl(SECOND), |i| i % 3000).fold(0, count)
        }),
        none("allocations: debounce, throttle, rate_limit, idle_timeout", |items| {
            let pipe = Pipe::from_iter(0..items).idle_timeout(SECOND);
            let pipe = pipe.rate_limit(RateLimit::new(u64::MAX, SECOND).burst(1 << 40));
            pipe.throttle(Throttle::both(NANOSECOND)).debounce(Debounce::both(NANOSECOND)).fold(0, count)
        }),
        none("allocations: latest_by, 100 keys", |items| {
            Pipe::from_iter(0..items).latest_by(SECOND, 100, |i| i % 150).fold(0, count)
        }),
        none("allocations: zip and concat", |items| {
            let pairs = Pipe::from_iter(0..items).zip(Pipe::from_iter(0..items)).map(|(a, b)| a + b);
            pairs.concat(Pipe::from_iter(0..items)).fold(0, count)
        }),
        none("allocations: switch", |items| {
            let switch = Pipe::from_iter(0..items).switch(|i| i & 3);
            Pipe::merge_all((0..3).map(|key| switch.route(key, 1024))).fold(0, count)
        }),
        none("allocations: conflate", |items| {
            Pipe::from_iter(0..items).conflate(1024, |i| i % 2000).fold(0, count)
        }),
        none("allocations: buffer that drops the oldest", |items| {
            Pipe::from_iter(0..items).buffer_with(Capacity::items(64), Overflow::DropOldest).fold(0, count)
        }),
        none("allocations: windows of 10,000 items, 1,000 keys, tumbling", |items| {
            windows(items, Window::tumbling(10_000 * NANOSECOND))
        }),
        none("allocations: the same, sliding", |items| {
            windows(items, Window::sliding(20_000 * NANOSECOND, 5_000 * NANOSECOND))
        }),
        none("allocations: the same, sessions", |items| windows(items, Window::session(500 * NANOSECOND))),
        none("allocations: the same, of a count", |items| windows(items, Window::count(10))),
        none("allocations: a tracked flow", |items| {
            let mut tracker = Tracker::new(|_: std::ops::Range<u64>, _: &Outcome| {});
            let account = tracker.account();
            let deliveries =
                (0..items).map(move |value| Ok::<_, BoxError>(Tracked { value, token: tracker.issue() }));
            let pipe = Pipe::from_tracked(account, futures_util::stream::iter(deliveries));
            pipe.filter(|i| i % 3 != 0).buffer(1024).fold(0, count)
        }),
        Case::new("allocations: parallel(2)")
            .ours(
                "ours",
                steady(Threads::Two, |items| Pipe::from_iter(0..items).parallel(2, |i| i + 1).fold(0, count)),
            )
            .goal_on(METRIC, Bound::AtMost(NONE), "0 an item"),
        Case::new("allocations: batch(100), a batch")
            .ours("ours", |scale| {
                let sample = steady(Threads::One, |items| {
                    let pipe = Pipe::from_iter(0..items).batch(Batch::count(100));
                    pipe.map(|batch| batch.len() as u64).fold(0, count)
                })(scale);
                let an_item = sample.0.get(METRIC).copied().expect("allocations were counted");
                Sample::new().with(METRIC, an_item * 100.0)
            })
            .goal_on(METRIC, Bound::AtMost(1.001), "1 a batch"),
    ]
}

const SECOND: Duration = Duration::from_secs(1);
const NANOSECOND: Duration = Duration::from_nanos(1);

/// An item a nanosecond, of a thousand keys by turns.
fn windows(items: u64, window: Window) -> Plan<u64> {
    let time = EventTime::new(|i: &u64| SystemTime::UNIX_EPOCH + Duration::from_nanos(*i));
    let windows = Pipe::from_iter(0..items).window(window.event_time(time), |i| i % 1000, Sum(|i: &u64| *i));
    windows.fold(0, |sum, _| *sum += 1)
}

async fn yielding(i: u64) -> u64 {
    tokio::task::yield_now().await;
    i
}
