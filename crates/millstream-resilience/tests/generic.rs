//! Policies in generic code: their futures are `Send` wherever those of the calls are, also where nobody knows their types.

use std::io;
use std::pin::Pin;
use std::sync::Arc;

use millstream_resilience::{
    Backoff, BoxError, BreakerSettings, Bulkhead, CircuitBreaker, Classify, Error, Hedge, Policy, Rate,
    RateLimiter, Retry, RetryError, Timeout,
};
use std::time::Duration;

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

fn by_policy<T, E, F, G>(policy: Policy, call: F) -> Boxed<Result<T, Error<E>>>
where
    F: Fn() -> G + Send + Sync + 'static,
    G: Future<Output = Result<T, E>> + Send + 'static,
    E: Classify + Send + Sync + 'static,
    T: Send + 'static,
{
    Box::pin(async move { policy.call(call).await })
}

fn by_retry<T, E, F, G>(retry: Retry, call: F) -> Boxed<Result<T, RetryError<E>>>
where
    F: FnMut() -> G + Send + 'static,
    G: Future<Output = Result<T, E>> + Send + 'static,
    E: Classify + Send + Sync + 'static,
    T: Send + 'static,
{
    Box::pin(async move { retry.call(call).await })
}

type Dynamic = Arc<dyn Fn() -> Boxed<Result<u32, BoxError>> + Send + Sync>;

fn dynamic(policy: Arc<Policy>, call: Dynamic) -> Boxed<Result<u32, Error<BoxError>>> {
    Box::pin(async move { policy.call(|| call()).await })
}

fn everything() -> Policy {
    let s = Duration::from_secs;
    Policy::new()
        .timeout(Timeout::new(s(10)))
        .bulkhead(Bulkhead::new(1))
        .retry(Retry::new(2).backoff(Backoff::fixed(s(1))))
        .hedge(Hedge::after(s(1)))
        .rate_limit(RateLimiter::new(Rate::new(10, s(1))))
        .breaker(CircuitBreaker::new(BreakerSettings::default()))
        .attempt_timeout(Timeout::new(s(1)))
}

#[tokio::test(start_paused = true)]
async fn calls_of_unknown_types_can_be_boxed_and_spawned() {
    let call = || async { Ok::<_, io::Error>(17) };
    assert_eq!(tokio::spawn(by_policy(everything(), call)).await.unwrap().unwrap(), 17);
    assert_eq!(tokio::spawn(by_retry(Retry::new(2), call)).await.unwrap().unwrap(), 17);
    let call: Dynamic = Arc::new(|| Box::pin(async { Ok(17) }));
    assert_eq!(dynamic(Arc::new(everything()), call).await.unwrap(), 17);
    let (policy, text) = (everything(), String::from("seventeen"));
    let call = async move { policy.call(async || Ok::<_, io::Error>(text.len())).await };
    assert_eq!(tokio::spawn(call).await.unwrap().unwrap(), 9);
}
