//! What a policy costs around an async call that is ready at once: nanoseconds and allocations a call.

use std::hint::black_box;
use std::io;
use std::time::Duration;

use millstream_resilience::{
    BreakerSettings, Budget, Bulkhead, CircuitBreaker, Error, Hedge, Policy, Rate, RateLimiter, Retry,
    Timeout,
};
use tower_layer::Layer;
use tower_service::Service;

use crate::alloc;
use crate::case::{Bound, Case, Sample, Scale};
use crate::clock::{By, Watch};
use crate::work::mix;

const CALLS: u64 = 20_000_000;
const ALLOCATIONS: &str = "allocations";
const MINUTE: Duration = Duration::from_secs(60);

type Answer = Result<u64, Error<io::Error>>;

async fn direct(n: u64) -> Answer {
    Ok(mix(black_box(n)))
}

/// Calls one after the other, in one task.
fn measure<F>(scale: Scale, make: impl FnOnce() -> F) -> Sample
where
    F: AsyncFnMut(u64) -> Answer,
{
    let calls = scale.of(CALLS);
    let expected = (0..calls).fold(0u64, |sum, n| sum.wrapping_add(mix(n)));
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
    let mut call = runtime.block_on(async { make() });
    let run = async {
        let watch = Watch::start(By::Cpu);
        let mut sum = 0u64;
        for n in 0..calls {
            sum = sum.wrapping_add(call(n).await.expect("it succeeds"));
        }
        (watch.elapsed(), sum)
    };
    let ((elapsed, sum), allocations) = alloc::count(|| runtime.block_on(run));
    Sample::per_item(elapsed, calls, sum, expected).with(ALLOCATIONS, allocations as f64 / calls as f64)
}

fn case<F>(name: &'static str, make: impl Fn() -> F + 'static) -> Case
where
    F: AsyncFnMut(u64) -> Answer,
{
    Case::new(name)
        .floor("direct call", |scale| measure(scale, || async |n| direct(n).await))
        .ours("ours", move |scale| measure(scale, &make))
        .goal_on(ALLOCATIONS, Bound::AtMost(0.0001), "0 a call")
}

/// What `goals.md` allows each standard behaviour of the mediator, over the direct call.
const EACH: &str = "≤ 25 ns a call";

pub(crate) fn cases() -> Vec<Case> {
    let mut cases =
        vec![timeout(), retry(), breaker(), rate_limit(), bulkhead(), hedge(), together(), as_layers()];
    cases.iter_mut().for_each(|case| case.remark = "a call that is ready at once");
    cases
}

fn timeout() -> Case {
    let policy = Timeout::new(MINUTE);
    case("timeout", move || async move |n| policy.call(|| direct(n)).await)
        .peer("tokio timeout", |scale| {
            measure(scale, || async |n| tokio::time::timeout(MINUTE, direct(n)).await.expect("it is in time"))
        })
        .goal(Bound::AtMost(25.0), EACH)
        .goal(Bound::TimesAtMost(1.0, "tokio timeout"), "")
}

fn retry() -> Case {
    let case = case("retry", || {
        let policy = Retry::new(3).elapsed_max(MINUTE).budget(Budget::new(10, 0.1));
        async move |n| policy.call(|| direct(n)).await.map_err(millstream_resilience::RetryError::into_error)
    });
    peers::retry(case).goal(Bound::AtMost(25.0), EACH)
}

fn breaker() -> Case {
    let over = |settings: fn(BreakerSettings) -> BreakerSettings| {
        move || {
            let breaker = CircuitBreaker::new(settings(BreakerSettings::default()));
            async move |n| breaker.call(|| direct(n)).await
        }
    };
    let count = over(|settings| settings.count_window(100));
    let slow = over(|settings| settings.slow_rate(0.5, MINUTE));
    let case = case("circuit breaker", over(|settings| settings))
        .ours("ours, count window", move |scale| measure(scale, count))
        .ours("ours, slow calls too", move |scale| measure(scale, slow));
    peers::breaker(case).goal(Bound::AtMost(25.0), EACH)
}

fn rate_limit() -> Case {
    let case = case("rate limit", || {
        let limiter = RateLimiter::new(Rate::new(1_000_000_000, Duration::from_secs(1)).burst(1_000_000));
        async move |n| limiter.call(|| direct(n)).await
    });
    peers::rate_limit(case).goal(Bound::AtMost(50.0), "")
}

fn bulkhead() -> Case {
    case("bulkhead", || {
        let bulkhead = Bulkhead::new(100).queue(100);
        async move |n| bulkhead.call(|| direct(n)).await
    })
    .peer("tokio semaphore", |scale| {
        measure(scale, || {
            let places = tokio::sync::Semaphore::new(100);
            async move |n| {
                let _place = places.acquire().await.expect("nobody closes it");
                direct(n).await
            }
        })
    })
    .goal(Bound::AtMost(50.0), "")
}

fn hedge() -> Case {
    case("hedge", || {
        let hedge = Hedge::after(MINUTE);
        async move |n| hedge.call(|| direct(n)).await
    })
    .goal(Bound::AtMost(25.0), EACH)
}

fn policy() -> Policy {
    Policy::new()
        .retry(Retry::new(3))
        .breaker(CircuitBreaker::new(BreakerSettings::default()))
        .attempt_timeout(Timeout::new(MINUTE))
}

fn together() -> Case {
    case("retry, breaker and timeout as a policy", || {
        let policy = policy();
        async move |n| {
            let call = async || Ok::<u64, io::Error>(mix(black_box(n)));
            policy.call(call).await
        }
    })
    .goal(Bound::AtMost(75.0), "≤ 25 ns a call and policy")
}

/// The direct call, as a service.
#[derive(Clone)]
struct Direct;

impl Service<u64> for Direct {
    type Response = u64;
    type Error = Error<io::Error>;
    type Future = std::future::Ready<Answer>;

    fn poll_ready(&mut self, _cx: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, n: u64) -> Self::Future {
        std::future::ready(Ok(mix(black_box(n))))
    }
}

fn as_layers() -> Case {
    case("retry, breaker and timeout as tower layers", || {
        let breaker = CircuitBreaker::new(BreakerSettings::default());
        let mut service = (Retry::new(3), breaker, Timeout::new(MINUTE)).layer(Direct);
        async move |n| service.call(n).await
    })
    .goal(Bound::AtMost(75.0), "≤ 25 ns a call and policy")
}

#[cfg(not(feature = "peers-resilience"))]
mod peers {
    use crate::case::Case;

    pub(super) fn retry(case: Case) -> Case {
        case
    }

    pub(super) fn breaker(case: Case) -> Case {
        case
    }

    pub(super) fn rate_limit(case: Case) -> Case {
        case
    }
}

#[cfg(feature = "peers-resilience")]
mod peers {
    use std::num::NonZeroU32;

    use backon::{ConstantBuilder, Retryable};
    use failsafe::futures::CircuitBreaker as _;
    use governor::{Quota, RateLimiter};

    use super::{MINUTE, direct, measure};
    use crate::case::{Bound, Case};

    pub(super) fn retry(case: Case) -> Case {
        let run = |scale| {
            let retry = ConstantBuilder::default().with_max_times(2);
            measure(scale, || async move |n| (|| direct(n)).retry(retry).await)
        };
        case.peer("backon", run)
    }

    pub(super) fn breaker(case: Case) -> Case {
        let run = |scale| {
            measure(scale, || {
                let strategy = failsafe::backoff::constant(MINUTE);
                let policy =
                    failsafe::failure_policy::success_rate_over_time_window(0.5, 20, MINUTE, strategy);
                let breaker = failsafe::Config::new().failure_policy(policy).build();
                async move |n| match breaker.call(direct(n)).await {
                    Ok(n) => Ok(n),
                    Err(failsafe::Error::Inner(error)) => Err(error),
                    Err(failsafe::Error::Rejected) => unreachable!("nothing has failed"),
                }
            })
        };
        case.peer("failsafe", run).goal(Bound::TimesAtMost(1.0, "failsafe"), "")
    }

    pub(super) fn rate_limit(case: Case) -> Case {
        let run = |scale| {
            measure(scale, || {
                let rate = NonZeroU32::new(1_000_000_000).expect("it is not 0");
                let limiter = RateLimiter::direct(Quota::per_second(rate));
                async move |n| {
                    limiter.until_ready().await;
                    direct(n).await
                }
            })
        };
        case.peer("governor", run)
    }
}
