//! How long an item is under way, and how long a neighbour waits.

use std::future::ready;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::{FutureExt, StreamExt, stream};
use hdrhistogram::Histogram;
use millstream_flow::{Capacity, Pipe};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::accounts::unaccounted;
use super::run::Threads;
use crate::case::{Bound, Case, NS, Sample, Scale};
use crate::clock;
use crate::work::{kept, mix, multiply, three};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        idle("idle: 1 item/ms through one hop, ct", Threads::One),
        idle("idle: 1 item/ms through one hop, mt", Threads::Two),
        flat_out(),
        fairness(),
    ]
}

const P50: &str = "p50 µs";
const P99: &str = "p99 µs";
const WORST: &str = "worst ms";

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("a nanosecond to a minute, to three digits")
}

fn record(latencies: &mut Histogram<u64>, sent: Instant) {
    let nanoseconds = u64::try_from((clock::now() - sent).as_nanos()).unwrap_or(u64::MAX);
    latencies.saturating_record(nanoseconds);
}

fn percentiles(latencies: &Histogram<u64>) -> Sample {
    let microseconds = |quantile| latencies.value_at_quantile(quantile) as f64 / 1e3;
    Sample::new().with(P50, microseconds(0.5)).with(P99, microseconds(0.99))
}

/// A moment a millisecond, `count` times.
fn moments(count: u64) -> impl stream::Stream<Item = Instant> + Send {
    let mut ticks = interval(Duration::from_millis(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let moments = stream::unfold(ticks, async |mut ticks| {
        ticks.tick().await;
        Some((clock::now(), ticks))
    });
    moments.take(usize::try_from(count).unwrap_or(usize::MAX)).boxed()
}

fn idle(name: &'static str, threads: Threads) -> Case {
    const ITEMS: u64 = 1_000;
    Case::new(name)
        .peer("tokio::mpsc", move |scale| {
            threads.runtime().block_on(async move {
                let (tx, mut rx) = mpsc::channel(1024);
                tokio::spawn(async move {
                    let mut moments = moments(scale.of(ITEMS));
                    while let Some(sent) = moments.next().await {
                        let _ = tx.send(sent).await;
                    }
                });
                let reader = tokio::spawn(async move {
                    let mut latencies = histogram();
                    while let Some(sent) = rx.recv().await {
                        record(&mut latencies, sent);
                    }
                    latencies
                });
                percentiles(&reader.await.expect("the reader does not panic"))
            })
        })
        .ours("ours", move |scale| {
            threads.runtime().block_on(async move {
                let pipe = Pipe::from_stream(moments(scale.of(ITEMS))).buffer(Capacity::auto());
                let (latencies, _) = pipe.fold(histogram(), record).await.expect("the run succeeds");
                percentiles(&latencies)
            })
        })
        .goal_on(P50, Bound::TimesAtMost(1.1, "tokio::mpsc"), "no worse; 10 % is noise")
        .goal_on(P99, Bound::TimesAtMost(1.25, "tokio::mpsc"), "no worse; 25 % is noise")
}

fn flat_out() -> Case {
    fn sample(items: u64, latencies: &Histogram<u64>, watch: &clock::Watch) -> Sample {
        let elapsed = watch.elapsed();
        assert_eq!(latencies.len(), items, "every item arrives");
        percentiles(latencies).with(NS, elapsed.as_secs_f64() * 1e9 / items as f64)
    }
    const ITEMS: u64 = 2_000_000;
    Case::new("flat out: latency through one hop, ct")
        .peer("tokio::mpsc(1024)", |scale| {
            let items = scale.of(ITEMS / 2);
            Threads::One.runtime().block_on(async move {
                let watch = clock::Watch::start(clock::By::Cpu);
                let (tx, mut rx) = mpsc::channel(1024);
                tokio::spawn(async move {
                    for _ in 0..items {
                        let _ = tx.send(clock::now()).await;
                    }
                });
                let reader = tokio::spawn(async move {
                    let mut latencies = histogram();
                    while let Some(sent) = rx.recv().await {
                        record(&mut latencies, sent);
                    }
                    latencies
                });
                sample(items, &reader.await.expect("the reader does not panic"), &watch)
            })
        })
        .ours("ours, capacity 256", |scale| {
            let items = scale.of(ITEMS);
            Threads::One.runtime().block_on(async move {
                let watch = clock::Watch::start(clock::By::Cpu);
                let pipe = Pipe::from_iter((0..items).map(|_| clock::now())).buffer(256);
                let (latencies, _) = pipe.fold(histogram(), record).await.expect("the run succeeds");
                sample(items, &latencies, &watch)
            })
        })
        .goal_on(P50, Bound::TimesAtMost(6.0 / 7.0, "tokio::mpsc(1024)"), "≤ 6 µs at its 7.0")
        .goal_on(NS, Bound::TimesAtMost(0.45, "tokio::mpsc(1024)"), "reading both clocks included")
}

/// The longest that a sleep of 1 ms took, beside `work`, on one thread.
fn sleeper(work: impl Future<Output = u64> + Send + 'static, items: u64) -> Sample {
    Threads::One.runtime().block_on(async move {
        let done = Arc::new(AtomicBool::new(false));
        let (asleep, is_asleep) = oneshot::channel();
        let beside = tokio::spawn({
            let done = done.clone();
            async move {
                let _ = asleep.send(());
                let mut worst = Duration::ZERO;
                while !done.load(Ordering::Acquire) {
                    let began = clock::now();
                    sleep(Duration::from_millis(1)).await;
                    worst = worst.max(clock::now() - began);
                }
                worst
            }
        });
        let _ = is_asleep.await;
        let watch = clock::Watch::start(clock::By::Cpu);
        let sum = tokio::spawn(work).await.expect("the work does not panic");
        let elapsed = watch.elapsed();
        done.store(true, Ordering::Release);
        let worst = beside.await.expect("the sleeper does not panic");
        Sample::per_item(elapsed, items, sum, three(items)).with(WORST, worst.as_secs_f64() * 1e3)
    })
}

fn fairness() -> Case {
    const ITEMS: u64 = 100_000_000;
    fn pipe(items: u64) -> Pipe<impl millstream_flow::Flow<Item = u64, Token = ()> + Send + 'static> {
        Pipe::from_iter(0..items).map(multiply).filter(kept).map(mix)
    }
    let add = |sum: &mut u64, x: u64| *sum = sum.wrapping_add(x);
    Case::new("fairness: a 1 ms sleeper beside a flat-out pipeline, ct")
        .floor("the same flow, never yielding", |scale: Scale| {
            let items = scale.of(ITEMS);
            sleeper(unaccounted(pipe(items), false), items)
        })
        .peer("futures::stream::iter", |scale| {
            let items = scale.of(ITEMS);
            let work = stream::iter(0..items)
                .map(multiply)
                .filter_map(|x| ready(kept(&x).then_some(x)))
                .fold(0u64, |sum, x| ready(sum.wrapping_add(mix(x))));
            sleeper(work, items)
        })
        .ours("ours", move |scale| {
            let items = scale.of(ITEMS);
            let work = async move { pipe(items).fold(0u64, add).await.expect("the run succeeds").0 };
            sleeper(work.boxed(), items)
        })
        .goal_on(WORST, Bound::AtMost(3.0), "in ms; alone it is 2.08")
        .goal_on(NS, Bound::TimesAtMost(1.04, "the same flow, never yielding"), "≤ 4 % of the throughput")
}
