//! The cases of `goals.md`, section *mediator*: what a call through the mediator costs over calling its handler.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use millstream_flow::Pipe;
use millstream_mediator::presets::{Environment, Profile, RetryPreset, Service, StreamPackage};
use millstream_mediator::{
    Breaker, Bulkhead, Error, Kind, Logging, Mediator, Notification, Publish, RateLimit, Request, Resume,
    Retries, StreamRequest, Timeout, Timing,
};
use millstream_resilience::BreakerSettings;
use tokio::runtime::{Builder, Runtime};

use crate::alloc;
use crate::case::{Bound, Case, Sample, Scale};
use crate::clock;

/// So few that a turn fits into one slice of a busy machine's scheduler.
const CALLS: u64 = 400_000;
const ITEMS: u64 = 40_000_000;
/// Measurements of either side, in turns; the least of each counts.
const TURNS: usize = 25;
const OVER: &str = "ns over";
const ALLOCATIONS: &str = "allocations";
const RATE: &str = "items/s";

#[derive(Clone)]
struct Ask(u64);

impl Request for Ask {
    type Response = u64;
    const KIND: Kind = Kind::Query;
    fn repeat(&self) -> Option<Self> {
        Some(self.clone())
    }
}

#[inline(never)]
async fn answer(ask: Ask) -> Result<u64, Error> {
    Ok(black_box(ask.0).wrapping_mul(3))
}

struct Told(u64);
impl Notification for Told {}

struct Count(u64);
impl StreamRequest for Count {
    type Item = u64;
    fn repeat(&self) -> Option<Self> {
        Some(Count(self.0))
    }
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_time().build().expect("a runtime starts")
}

/// Nanoseconds a call of `calls` calls.
fn timed(runtime: &Runtime, calls: u64, work: &impl AsyncFn(u64) -> u64) -> f64 {
    runtime.block_on(async {
        let began = clock::now();
        let mut sum = 0u64;
        for call in 0..calls {
            sum = sum.wrapping_add(work(call).await);
        }
        black_box(sum);
        began.elapsed().as_secs_f64() * 1e9 / calls as f64
    })
}

/// What `ours` takes, and how much more that is than `base`, in turns.
fn compare(scale: Scale, base: impl AsyncFn(u64) -> u64, ours: impl AsyncFn(u64) -> u64) -> Sample {
    let (runtime, calls) = (runtime(), scale.of(CALLS));
    timed(&runtime, calls / 4 + 1, &base);
    timed(&runtime, calls / 4 + 1, &ours);
    let (mut without, mut with) = (f64::MAX, f64::MAX);
    for _ in 0..TURNS {
        without = without.min(timed(&runtime, calls, &base));
        with = with.min(timed(&runtime, calls, &ours));
    }
    Sample::new().with("ns", with).with(OVER, with - without)
}

async fn direct(call: u64) -> u64 {
    answer(Ask(call)).await.unwrap_or(0)
}

fn bare() -> Mediator {
    Mediator::builder().request(answer).build().expect("it is complete")
}

/// A behaviour's cost: the same mediator with and without it.
fn behaviour(name: &'static str, make: impl Fn() -> Mediator + 'static) -> Case {
    Case::new(name)
        .ours("ours", move |scale| {
            let (without, with) = (bare(), make());
            compare(
                scale,
                async |call| without.send(Ask(call)).await.unwrap_or(0),
                async |call| with.send(Ask(call)).await.unwrap_or(0),
            )
        })
        .goal_on(OVER, Bound::AtMost(25.0), "over the same without it")
}

fn with<B: millstream_mediator::Behaviour>(
    behaviour: impl Fn() -> B + 'static,
) -> impl Fn() -> Mediator + 'static {
    move || Mediator::builder().behaviour(behaviour()).request(answer).build().expect("it is complete")
}

/// Allocations a call in steady state.
fn allocations(ours: impl AsyncFn(u64) -> u64) -> f64 {
    let runtime = runtime();
    timed(&runtime, 1_000, &ours);
    let calls = 10_000;
    let ((), count) = alloc::count(|| _ = timed(&runtime, calls, &ours));
    count as f64 / calls as f64
}

fn streamed(scale: Scale, mediator: &Mediator) -> Sample {
    let (runtime, items) = (runtime(), scale.of(ITEMS));
    runtime.block_on(async {
        let began = clock::now();
        let stream = mediator.stream(Count(items)).await.expect("it opens");
        let sum = stream.fold(0u64, |sum, item| *sum = sum.wrapping_add(item.unwrap_or(0)));
        let (sum, _) = sum.await.expect("it runs");
        let elapsed = began.elapsed();
        assert_eq!(sum, items * (items - 1) / 2, "all items came");
        Sample::new().with(RATE, items as f64 / elapsed.as_secs_f64())
    })
}

// Before the module that uses it.
macro_rules! counting {
    () => {
        async |to: Count| Ok::<_, Error>(Pipe::from_iter(0..to.0).map(Ok::<_, Error>))
    };
}

mod behaviours;

/// Four handlers that a notification goes to.
async fn told(told: Arc<Told>) -> Result<(), Error> {
    black_box(told.0);
    Ok(())
}

fn four(publish: Publish) -> Mediator {
    let closure = || |notification: Arc<Told>| told(notification);
    Mediator::builder()
        .notification(closure())
        .notification(closure())
        .notification(closure())
        .notification(closure())
        .publish::<Told>(publish)
        .build()
        .expect("it is complete")
}

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = vec![
        Case::new("send, no behaviour")
            .ours("ours", |scale| {
                let mediator = bare();
                compare(scale, direct, async |call| mediator.send(Ask(call)).await.unwrap_or(0))
            })
            .goal_on(OVER, Bound::AtMost(25.0), "over the direct call"),
        Case::new("send by a handle, no behaviour")
            .ours("ours", |scale| {
                let handle = bare().handle::<Ask>().expect("it is handled");
                compare(scale, direct, async |call| handle.send(Ask(call)).await.unwrap_or(0))
            })
            .goal_on(OVER, Bound::AtMost(25.0), "over the direct call"),
        Case::new("allocations: send, no behaviour")
            .ours("ours", |_| {
                let mediator = bare();
                let count = allocations(async |call| mediator.send(Ask(call)).await.unwrap_or(0));
                Sample::new().with(ALLOCATIONS, count)
            })
            .goal_on(ALLOCATIONS, Bound::AtMost(1.0), "1 a call"),
        Case::new("allocations: send, a web service's profile")
            .ours("ours", |_| {
                let profile = Profile::new(Service::Web, Environment::Production, || Some(1 << 20));
                let mediator =
                    Mediator::builder().profile(&profile).request(answer).build().expect("it is complete");
                let count = allocations(async |call| mediator.send(Ask(call)).await.unwrap_or(0));
                Sample::new().with(ALLOCATIONS, count)
            })
            .goal_on(ALLOCATIONS, Bound::AtMost(1.0), "1 a call"),
        behaviour("behaviour: logging that nobody listens to", with(Logging::new)),
        behaviour("behaviour: timing, one in eight", with(|| Timing::new().slow(SECOND).sample(8))),
        behaviour("behaviour: timing, all", with(|| Timing::new().slow(SECOND))),
        behaviour("behaviour: timeout", with(|| Timeout::new(SECOND))),
        behaviour("behaviour: retry", with(|| Retries::new(RetryPreset::Database.retry()))),
        behaviour("behaviour: breaker, time window", with(|| Breaker::new(BreakerSettings::default()))),
        behaviour(
            "behaviour: breaker, count window",
            with(|| Breaker::new(BreakerSettings::default().count_window(100))),
        ),
        behaviour("behaviour: bulkhead", with(|| Bulkhead::new(100))),
        behaviour("behaviour: rate limit", with(|| RateLimit::new(u64::MAX, SECOND).burst(u64::MAX >> 8))),
        Case::new("send, a web service's profile of six")
            .ours("ours", |scale| {
                let profile = Profile::new(Service::Web, Environment::Production, || Some(1 << 20));
                let mediator =
                    Mediator::builder().profile(&profile).request(answer).build().expect("it is complete");
                compare(scale, direct, async |call| mediator.send(Ask(call)).await.unwrap_or(0))
            })
            .goal_on(OVER, Bound::AtMost(175.0), "over the direct call: seven times 25"),
        Case::new("publish to 4 handlers")
            .ours("ours", |scale| {
                let mediator = four(Publish::sequential());
                let base = async |call| {
                    let notification = Arc::new(Told(call));
                    for _ in 0..4 {
                        let _ = told(notification.clone()).await;
                    }
                    call
                };
                compare(scale, base, async |call| {
                    mediator.publish(Told(call)).await.failures().count() as u64
                })
            })
            .goal_on(OVER, Bound::AtMost(150.0), "over the direct calls"),
        Case::new("stream request, no behaviour")
            .ours("ours", |scale| {
                let mediator = Mediator::builder().stream(counting!()).build().expect("it is complete");
                streamed(scale, &mediator)
            })
            .goal_on(RATE, Bound::AtLeast(20e6), ""),
        Case::new("stream request, resilience package")
            .ours("ours", |scale| {
                let package = StreamPackage::resilience(Resume::Position);
                let mediator = Mediator::builder().stream_package(&package).stream(counting!());
                streamed(scale, &mediator.build().expect("it is complete"))
            })
            .goal_on(RATE, Bound::AtLeast(20e6), ""),
        Case::new("stream request, platinum package")
            .ours("ours", |scale| {
                use millstream_mediator::{Memory, presets::BackpressurePreset};
                let package = StreamPackage::platinum(Resume::Position);
                let memory = Memory::new(1 << 30);
                let mediator = Mediator::builder()
                    .platinum_package(&package, BackpressurePreset::Balanced, &memory)
                    .stream(counting!());
                streamed(scale, &mediator.build().expect("it is complete"))
            })
            .goal_on(RATE, Bound::AtLeast(20e6), "with a task and a buffer between"),
    ];
    cases.extend(behaviours::of_requests());
    cases.extend(behaviours::of_streams());
    cases
}

const SECOND: Duration = Duration::from_secs(1);
