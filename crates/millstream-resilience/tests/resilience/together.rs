//! Policies around one another, as one [`Policy`] and as layers of `tower`.

use std::cell::Cell;
use std::future::{Ready, pending, poll_fn, ready};
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use millstream_resilience::{
    AllTransient, Backoff, BoxError, BreakerSettings, BreakerState, Bulkhead, CircuitBreaker, Class, Error,
    Fallback, FromRetry, Hedge, Policy, Rate, RateLimiter, Retry, Stop, Timeout, Tried, tower::RetryService,
};
use tokio::time::{Instant, Sleep, sleep, timeout};
use tower_layer::Layer;
use tower_service::Service;

const SECOND: Duration = Duration::from_secs(1);

fn transient() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

fn every_second(attempts: u32) -> Retry {
    Retry::new(attempts).backoff(Backoff::fixed(SECOND))
}

fn breaker(set: impl FnOnce(BreakerSettings) -> BreakerSettings) -> CircuitBreaker {
    CircuitBreaker::new(set(BreakerSettings::default().calls_min(2).pause(10 * SECOND).probes(1)))
}

#[tokio::test(start_paused = true)]
async fn a_retry_waits_as_long_as_the_breaker_inside_it_is_open() {
    let breaker = breaker(|settings| settings);
    let policy = Policy::new().retry(every_second(10)).breaker(breaker.clone());
    let (began, calls) = (Instant::now(), Cell::new(0));
    let result = policy.call(async || {
        calls.set(calls.get() + 1);
        if began.elapsed() < 11 * SECOND { Err(transient()) } else { Ok(began.elapsed().as_secs()) }
    });
    assert_eq!(result.await.unwrap(), 11, "two failures, a refusal, and the pause");
    assert_eq!((calls.get(), breaker.state()), (3, BreakerState::Closed));
    assert_eq!(breaker.snapshot().rejected, 1);
}

#[tokio::test(start_paused = true)]
async fn a_retry_sees_the_cause_through_breaker_and_timeout_and_keeps_its_history() {
    let policy = Policy::new()
        .retry(every_second(3))
        .breaker(breaker(|settings| settings.calls_min(100)))
        .attempt_timeout(Timeout::new(SECOND));
    let calls = Cell::new(0);
    let error = policy.call(async || match calls.replace(calls.get() + 1) {
        0 => pending().await,
        1 => Err::<(), _>(transient()),
        _ => Err(io::Error::from(io::ErrorKind::NotFound)),
    });
    let Error::Tried(tried) = error.await.unwrap_err() else { panic!("it was tried three times") };
    assert_eq!((tried.attempts(), tried.stop()), (3, Stop::Permanent));
    let before: Vec<_> = tried.earlier().map(|failure| failure.error.to_string()).collect();
    assert_eq!(before, ["it took longer than 1s", "the call failed"]);
    assert_eq!(Error::Tried(tried).into_failure().unwrap().kind(), io::ErrorKind::NotFound);
}

#[tokio::test(start_paused = true)]
async fn a_timeout_of_a_policy_holds_for_all_attempts_and_delays_together() {
    let policy = Policy::new().timeout(Timeout::new(5 * SECOND)).retry(every_second(100));
    let began = Instant::now();
    let error = policy.call(async || Err::<(), _>(transient())).await.unwrap_err();
    assert!(matches!(error, Error::TimedOut(_)));
    assert_eq!((began.elapsed(), error.attempts(), error.failure().is_none()), (5 * SECOND, 1, true));
}

#[tokio::test(start_paused = true)]
async fn a_call_takes_one_place_and_each_attempt_a_turn() {
    let (bulkhead, limiter) = (Bulkhead::new(1), RateLimiter::new(Rate::new(1, 5 * SECOND)));
    let policy = Policy::new().bulkhead(bulkhead.clone()).rate_limit(limiter.clone()).retry(every_second(3));
    let began = Instant::now();
    let error = policy
        .call(async || {
            assert_eq!(bulkhead.running(), 1);
            Err::<(), _>(transient())
        })
        .await
        .unwrap_err();
    assert_eq!((error.attempts(), began.elapsed()), (3, 10 * SECOND));
    let _place = bulkhead.acquire().await.unwrap();
    let full = policy.call(async || Ok::<_, io::Error>(())).await.unwrap_err();
    assert!(matches!(full, Error::Full(_)), "and it is refused before it is tried");
}

#[tokio::test(start_paused = true)]
async fn the_breaker_of_a_policy_judges_hedges_and_timeouts_too() {
    let breaker = breaker(|settings| settings.calls_min(2).failure_rate(1.0));
    let policy = Policy::new()
        .hedge(Hedge::after(SECOND))
        .breaker(breaker.clone())
        .attempt_timeout(Timeout::new(3 * SECOND));
    let error = policy.call(pending::<Result<(), io::Error>>).await.unwrap_err();
    assert!(matches!(error, Error::TimedOut(_)));
    assert_eq!(breaker.state(), BreakerState::Open, "both attempts took too long");
    let error = policy.call(async || Ok::<_, io::Error>(())).await.unwrap_err();
    assert_eq!(error.to_string(), "circuit breaker is open for another 10s");
}

#[tokio::test(start_paused = true)]
async fn a_policy_asks_its_classifier() {
    let by_number = |error: &u32| if *error > 9 { Class::Transient } else { Class::Permanent };
    let policy = Policy::new().retry(every_second(4)).classified_by(by_number);
    let attempts = async |error| policy.call(async || Err::<(), u32>(error)).await.unwrap_err().attempts();
    assert_eq!((attempts(17).await, attempts(4).await), (4, 1));
}

/// A service that answers with what its function says, after a second if it has to.
#[derive(Clone)]
struct Answers<F>(F);

struct Answer<E>(Option<Result<u32, E>>, Option<std::pin::Pin<Box<Sleep>>>);

impl<E: Unpin> Future for Answer<E> {
    type Output = Result<u32, E>;
    fn poll(mut self: std::pin::Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(sleep) = &mut self.1
            && sleep.as_mut().poll(cx).is_pending()
        {
            return Poll::Pending;
        }
        Poll::Ready(self.0.take().expect("polled once"))
    }
}

impl<E: Unpin, F: Fn(u32) -> (u32, Result<u32, E>)> Service<u32> for Answers<F> {
    type Response = u32;
    type Error = E;
    type Future = Answer<E>;
    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), E>> {
        Poll::Ready(Ok(()))
    }
    fn call(&mut self, request: u32) -> Answer<E> {
        let (seconds, result) = (self.0)(request);
        Answer(Some(result), (seconds > 0).then(|| Box::pin(sleep(seconds * SECOND))))
    }
}

async fn call<S: Service<u32>>(service: &mut S, request: u32) -> Result<S::Response, S::Error> {
    poll_fn(|cx| service.poll_ready(cx)).await?;
    service.call(request).await
}

type Boxed = Result<u32, BoxError>;

fn boxed(seconds: u32, result: Boxed) -> (u32, Boxed) {
    (seconds, result)
}

#[tokio::test(start_paused = true)]
async fn layers_do_what_the_policies_do() {
    let calls = Arc::new(AtomicUsize::new(0));
    let count = calls.clone();
    let flaky = Answers(move |n| {
        boxed(0, if count.fetch_add(1, Ordering::Relaxed) < 2 { Err(transient().into()) } else { Ok(n) })
    });
    let breaker = breaker(|settings| settings.calls_min(4));
    let mut service = (every_second(5), breaker.clone(), Timeout::new(SECOND)).layer(flaky);
    let began = Instant::now();
    assert_eq!(call(&mut service, 17).await.unwrap(), 17);
    assert_eq!((calls.load(Ordering::Relaxed), began.elapsed()), (3, 2 * SECOND));
    assert_eq!((breaker.snapshot().calls, breaker.snapshot().failures), (3, 2));

    let never = Answers(|_| boxed(100, Ok(0)));
    let mut service = (every_second(2), Timeout::new(SECOND)).layer(never);
    let error = call(&mut service, 17).await.unwrap_err();
    assert_eq!(error.downcast_ref::<Tried>().unwrap().attempts(), 2);

    breaker.trip();
    let mut service = breaker.layer(Answers(|n| boxed(0, Ok(n))));
    assert_eq!(
        call(&mut service, 17).await.unwrap_err().to_string(),
        "circuit breaker is open for another 10s"
    );
}

#[tokio::test(start_paused = true)]
async fn layers_that_admit_wait_in_the_call_and_give_back_when_dropped() {
    let bulkhead = Bulkhead::new(1).queue(1);
    let service = bulkhead.layer(Answers(|n| boxed(n, Ok(n))));
    let began = Instant::now();
    let mut services = [service.clone(), service.clone(), service];
    let [first, second, third] = &mut services;
    let (first, second, third) = tokio::join!(call(first, 2), call(second, 3), call(third, 4));
    assert_eq!((first.unwrap(), second.unwrap(), began.elapsed()), (2, 3, 5 * SECOND));
    assert!(third.is_err());
    assert!(timeout(SECOND, call(&mut services[0], 10)).await.is_err());
    assert_eq!((bulkhead.running(), bulkhead.waiting()), (0, 0));

    let mut service = RateLimiter::new(Rate::new(1, SECOND)).layer(Answers(|n| boxed(0, Ok(n))));
    let began = Instant::now();
    for n in 0..4 {
        assert_eq!(call(&mut service, n).await.unwrap(), n);
    }
    assert_eq!(began.elapsed(), 3 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn layers_hedge_fall_back_and_classify() {
    let times = Arc::new(Mutex::new(vec![1, 100]));
    let slow_once = Answers(move |n| boxed(times.lock().unwrap().pop().unwrap(), Ok(n)));
    let began = Instant::now();
    assert_eq!(call(&mut Hedge::after(SECOND).layer(slow_once), 17).await.unwrap(), 17);
    assert_eq!(began.elapsed(), 2 * SECOND);

    let fails = Answers(|n| (0, Err(if n == 0 { "bad" } else { "away" })));
    let instead = |_: &'static str| -> Ready<Result<u32, &'static str>> { ready(Ok(42)) };
    let mut service = Fallback::new(instead).when(|error| *error == "away").layer(fails);
    assert_eq!((call(&mut service, 1).await, call(&mut service, 0).await), (Ok(42), Err("bad")));

    let calls = Arc::new(AtomicUsize::new(0));
    let count = calls.clone();
    let fails = Answers(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        boxed(0, Err(io::Error::from(io::ErrorKind::NotFound).into()))
    });
    let breaker = breaker(|settings| settings.calls_min(3));
    let layers = (every_second(3).classified_by(AllTransient), breaker.clone().classified_by(AllTransient));
    let mut service: RetryService<_, _> = layers.layer(fails);
    call(&mut service, 17).await.unwrap_err();
    assert_eq!((calls.load(Ordering::Relaxed), breaker.state()), (3, BreakerState::Open));
}

#[tokio::test(start_paused = true)]
async fn a_policy_is_a_layer_for_services_of_any_error() {
    let calls = Arc::new(AtomicUsize::new(0));
    let count = calls.clone();
    let service = Answers(move |n| match count.fetch_add(1, Ordering::Relaxed) {
        0 => (100, Ok(n)),
        1 => (0, Err(transient())),
        _ => (0, Ok(n)),
    });
    let policy = Policy::new().retry(every_second(3)).attempt_timeout(Timeout::new(SECOND));
    let mut service = policy.layer(service);
    assert_eq!(call(&mut service, 17).await.unwrap(), 17);
    assert_eq!(calls.load(Ordering::Relaxed), 3);
    let error = policy.layer(Answers(|_| (0, Err::<u32, _>(transient())))).call(17).await.unwrap_err();
    assert_eq!(error.attempts(), 3);
    let _: fn(_) -> Error<io::Error> = Error::from_retry;
}

/// Calls until the breaker refuses, at most so often; each panics in a task of its own. How many were made.
async fn panicking<F: Future<Output = bool> + Send + 'static>(most: u32, call: impl Fn() -> F) -> u32 {
    for made in 0..most {
        if tokio::spawn(call()).await.is_ok() {
            return made;
        }
    }
    most
}

#[tokio::test(start_paused = true)]
async fn a_panic_behind_a_policy_or_a_layer_is_a_failure_also_of_a_probe() {
    fn fails(at_once: bool) -> Ready<Result<u32, BoxError>> {
        assert!(!at_once, "a test panics before there is a future");
        ready(Ok(0))
    }
    let by_policy = |breaker: CircuitBreaker| {
        let policy = Policy::new().breaker(breaker).attempt_timeout(Timeout::new(SECOND));
        move || {
            let policy = policy.clone();
            async move { policy.call(async || -> io::Result<u32> { panic!("a test panics") }).await.is_err() }
        }
    };
    let breaker_of_policy = breaker(|settings| settings);
    let call = by_policy(breaker_of_policy.clone());
    assert_eq!((panicking(9, &call).await, breaker_of_policy.state()), (2, BreakerState::Open));
    sleep(10 * SECOND).await;
    assert_eq!((panicking(9, &call).await, breaker_of_policy.state()), (1, BreakerState::Open));

    let breaker_of_layer = breaker(|settings| settings);
    let layer = breaker_of_layer.clone();
    let call = move || {
        let mut service = layer.layer(Begins(|_| fails(true)));
        async move { service.call(1).await.is_err() }
    };
    assert_eq!((panicking(9, &call).await, breaker_of_layer.state()), (2, BreakerState::Open));
    sleep(10 * SECOND).await;
    assert_eq!((panicking(9, &call).await, breaker_of_layer.state()), (1, BreakerState::Open));
    assert_eq!(breaker_of_layer.snapshot().failures_total, 3);
}

/// A service whose function makes the future.
struct Begins<F>(F);

impl<F: Fn(u32) -> Ready<Result<u32, BoxError>>> Service<u32> for Begins<F> {
    type Response = u32;
    type Error = BoxError;
    type Future = Ready<Result<u32, BoxError>>;
    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }
    fn call(&mut self, request: u32) -> Self::Future {
        (self.0)(request)
    }
}
