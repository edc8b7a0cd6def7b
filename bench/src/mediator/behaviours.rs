//! What those behaviours cost that no profile has, and each behaviour of streams by itself.

use std::any::Any;

use millstream_flow::{BoxError, Memo};
use millstream_mediator::{
    Admission, Authorize, Backpressure, Cache, Call, Check, Dedupe, Fallback, Health, Hedging, Intercept,
    InterceptAll, Interceptor, InterceptorOf, Memory, Strategy, StreamAdmission, StreamBehaviour,
    StreamBreaker, StreamBulkhead, StreamIntercept, StreamInterceptor, StreamLogging, StreamRateLimit,
    StreamRetries, StreamTimeout, StreamTiming, Tower,
};
use millstream_resilience::{Budget, Hedge};
use tower_layer::Identity;

use super::*;

const GIB: u64 = 1 << 30;

/// Hooks that change nothing.
struct Nothing;
impl Interceptor for Nothing {}
impl InterceptorOf<Ask> for Nothing {}
impl StreamInterceptor for Nothing {
    fn item(&self, _: &Call<'_>, item: &mut dyn Any) {
        black_box(item);
    }
}

fn with_of<B: millstream_mediator::BehaviourOf<Ask>>(
    behaviour: impl Fn() -> B + 'static,
) -> impl Fn() -> Mediator + 'static {
    move || Mediator::builder().behaviour_of(behaviour()).request(answer).build().expect("it is complete")
}

pub(super) fn of_requests() -> Vec<Case> {
    let hedge = || Hedge::after(SECOND).budget(Budget::new(10, 0.1));
    vec![
        behaviour("behaviour: admission", with(|| Admission::new(Memory::new(GIB)))),
        behaviour(
            "behaviour: admission with a probe",
            with(|| Admission::new(Memory::new(GIB).probe(SECOND, || Some(1 << 20)))),
        ),
        behaviour("behaviour: hedging, none needed", with(move || Hedging::new(hedge()))),
        behaviour("behaviour: cache, one answer", with_of(|| Cache::new(Memo::new(1_000), |_: &Ask| 0_u64))),
        behaviour("behaviour: dedupe, all new", with_of(|| Dedupe::new(1_000, SECOND, |ask: &Ask| ask.0))),
        behaviour("behaviour: check", with_of(|| Check::valid(|ask: &Ask| valid(ask.0)))),
        behaviour(
            "behaviour: authorize",
            with(|| Authorize::new(|call| valid(call.context().get().copied().unwrap_or(0)))),
        ),
        behaviour("behaviour: fallback, none needed", with_of(|| Fallback::new(async |_| Ok(0)))),
        behaviour("behaviour: intercept, of one type", with_of(|| Intercept::new(Nothing))),
        behaviour("behaviour: intercept, of all types", with(|| InterceptAll::new(Nothing))),
        behaviour(
            "behaviour: tower, a layer that does nothing",
            with(|| Tower::new("nothing", Identity::new())),
        ),
    ]
}

fn valid(number: u64) -> Result<(), BoxError> {
    if black_box(number) == u64::MAX { Err("too many".into()) } else { Ok(()) }
}

/// A stream with one behaviour.
fn stream<S: StreamBehaviour>(name: &'static str, make: impl Fn() -> S + 'static) -> Case {
    Case::new(name)
        .ours("ours", move |scale| {
            let mediator = Mediator::builder().stream_behaviour(make()).stream(counting!());
            streamed(scale, &mediator.build().expect("it is complete"))
        })
        .goal_on(RATE, Bound::AtLeast(20e6), "")
}

pub(super) fn of_streams() -> Vec<Case> {
    let retry = || RetryPreset::Database.retry();
    vec![
        stream("stream behaviour: logging", || StreamLogging::new().every_items(1_000).every(SECOND)),
        stream("stream behaviour: timing", || StreamTiming::new().first_item(SECOND).throughput(10.0)),
        stream("stream behaviour: timeout", || {
            StreamTimeout::new().first(SECOND).next(SECOND).total(3600 * SECOND)
        }),
        stream("stream behaviour: retry, by position", move || StreamRetries::new(retry(), Resume::Position)),
        stream("stream behaviour: retry, by count", move || StreamRetries::new(retry(), Resume::Skip)),
        stream("stream behaviour: breaker", || StreamBreaker::new(BreakerSettings::default())),
        stream("stream behaviour: bulkhead", || StreamBulkhead::new(100)),
        // So much that it never waits: what is left is the account.
        stream("stream behaviour: rate limit", || {
            StreamRateLimit::new(u64::MAX, SECOND).burst(u64::MAX >> 8)
        }),
        stream("stream behaviour: admission", || StreamAdmission::new(Memory::new(GIB))),
        stream("stream behaviour: health", || Health::new(SECOND).stall(30 * SECOND).throughput(10.0)),
        stream("stream behaviour: intercept, each item", || StreamIntercept::new(Nothing)),
        stream("stream behaviour: backpressure, buffer", || Backpressure::new(Strategy::Buffer, 10_000)),
        stream("stream behaviour: backpressure, throttle", || Backpressure::new(Strategy::Throttle, 10_000)),
    ]
}
