//! Layers of tower around requests, and policies around a mediator that is a service of tower.

use std::task::Poll;

use futures_util::{FutureExt, poll};
use millstream_mediator::{Passing, Tower, TowerService};
use millstream_resilience::{Bulkhead, Policy, Rate, RateLimiter, Timeout};
use tower::{Layer, Service, ServiceExt};

use super::*;

/// A mediator whose only behaviour is this one, and whose handler fails so many times, each call after so many seconds.
fn behind(behaviour: impl Behaviour, times: u32, seconds: u64) -> (Arc<AtomicU32>, Mediator) {
    let (calls, handler) = failing(times, seconds);
    (calls, Mediator::builder().behaviour(behaviour).request(handler).build().unwrap())
}

#[tokio::test]
async fn a_tower_layer_stands_around_any_request() {
    let layer = tower::limit::ConcurrencyLimitLayer::new(1);
    let mediator = Mediator::builder()
        .behaviour_for(Scope::kind(Kind::Query), Tower::new("one at once", layer))
        .request(async |ask: Ask| if ask.0 > 0 { Ok(ask.0) } else { Err("zero") })
        .build()
        .unwrap();
    assert_eq!(mediator.send(Ask(2)).await.unwrap(), 2);
    let error = mediator.send(Ask(0)).await.unwrap_err();
    assert_eq!(
        millstream_flow::chain(&error),
        "Ask: its handler `closure in a_tower_layer_stands_around_any_request` failed: zero"
    );
    assert_eq!(mediator.service::<Ask>().unwrap().oneshot(Ask(5)).await.unwrap(), 5);
    assert!(mediator.describe().to_string().contains("one at once"));
}

#[tokio::test(start_paused = true)]
async fn a_layer_whose_service_cannot_be_cloned_is_shared_in_turn() {
    let two_a_second = tower::limit::RateLimitLayer::new(2, SECOND);
    let (_, mediator) = behind(Tower::in_turn("two a second", two_a_second), 0, 0);
    let began = Instant::now();
    let mediator = &mediator;
    let answered = join_all((0..6).map(|n| async move {
        assert_eq!(mediator.send(Ask(n)).await.unwrap(), n);
        began.elapsed().as_secs()
    }));
    assert_eq!(answered.await, [0, 0, 1, 1, 2, 2], "in the order in which they came");

    // Who waits for the next second, and then goes, leaves his turn to the one behind him.
    let (mut first, mut second) = (Box::pin(mediator.send(Ask(7))), Box::pin(mediator.send(Ask(8))));
    assert!(poll!(&mut first).is_pending() && poll!(&mut second).is_pending());
    drop(first);
    assert_eq!(second.await.unwrap(), 8);
    assert_eq!(began.elapsed().as_secs(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_shared_service_has_as_many_calls_under_way_as_it_lets() {
    let (_, mediator) = behind(Tower::in_turn("three", tower::limit::ConcurrencyLimitLayer::new(3)), 0, 1);
    let began = Instant::now();
    join_all((0..6).map(|n| mediator.send(Ask(n)))).await;
    assert_eq!(began.elapsed(), 2 * SECOND, "turns are for getting ready, not for being under way");
}

#[derive(Clone)]
struct Again(u32);

impl<T, E> tower::retry::Policy<Passing, T, E> for Again {
    type Future = std::future::Ready<()>;

    fn retry(&mut self, _: &mut Passing, result: &mut Result<T, E>) -> Option<Self::Future> {
        self.0 = self.0.checked_sub(1)?;
        result.is_err().then(|| std::future::ready(()))
    }

    fn clone_request(&mut self, passing: &Passing) -> Option<Passing> {
        passing.repeat()
    }
}

#[tokio::test]
async fn towers_retries_repeat_what_may_be_repeated() {
    let (calls, mediator) = behind(Tower::new("again", tower::retry::RetryLayer::new(Again(5))), 2, 0);
    assert_eq!(mediator.send(Ask(3)).await.unwrap(), 3);
    assert_eq!(calls.load(Ordering::SeqCst), 3);

    let calls = Arc::new(AtomicU32::new(0));
    let count = calls.clone();
    let mediator = Mediator::builder()
        .behaviour(Tower::new("again", tower::retry::RetryLayer::new(Again(5))))
        .request(move |_: Once| {
            count.fetch_add(1, Ordering::SeqCst);
            async { Err::<u64, _>("busy") }
        })
        .build()
        .unwrap();
    mediator.send(Once(false)).await.unwrap_err();
    assert_eq!(calls.swap(0, Ordering::SeqCst), 1, "it may not be repeated");
    mediator.send(Once(true)).await.unwrap_err();
    assert_eq!(calls.load(Ordering::SeqCst), 2, "it may be repeated once");
}

#[tokio::test]
async fn a_layer_can_look_at_what_passes() {
    let only_small = |passing: Passing| match passing.request::<Ask>() {
        Some(Ask(n)) if *n > 9 => Err(format!("{} of {n}", passing.about().name).into()),
        _ => Ok::<_, BoxError>(passing),
    };
    let (calls, mediator) = behind(Tower::new("small", tower::filter::FilterLayer::new(only_small)), 0, 0);
    assert_eq!(mediator.send(Ask(9)).await.unwrap(), 9);
    let error = mediator.send(Ask(10)).await.unwrap_err();
    assert!(millstream_flow::chain(&error).ends_with("failed: Ask of 10"), "{error:?}");
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_request_that_a_layer_sheds_is_never_asked() {
    let layer = tower::ServiceBuilder::new().load_shed().concurrency_limit(0);
    let (calls, mediator) = behind(Tower::new("none", layer.into_inner()), 0, 0);
    let error = mediator.send(Ask(1)).await.unwrap_err();
    assert!(error.find::<tower::load_shed::error::Overloaded>().is_some(), "{error:?}");
    assert_eq!(calls.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn our_policies_are_layers_too_and_their_errors_are_of_the_call() {
    let kind_of = async |mediator: &Mediator| {
        let error = mediator.send(Ask(1)).await.unwrap_err();
        assert_eq!((error.message(), error.handler().is_some()), ("Ask", true), "{error}");
        error.kind().clone()
    };
    let (_, timed) = behind(Tower::new("timeout", Timeout::new(SECOND)), 0, 2);
    assert_eq!(kind_of(&timed).await, ErrorKind::TimedOut { limit: SECOND });

    let breaker = CircuitBreaker::new(settings());
    let (calls, broken) = behind(Tower::new("breaker", breaker), 9, 0);
    assert_eq!([kind_of(&broken).await, kind_of(&broken).await], [ErrorKind::Failed, ErrorKind::Failed]);
    assert_eq!(kind_of(&broken).await, ErrorKind::CircuitOpen { retry_after: Some(10 * SECOND) });
    assert_eq!(calls.load(Ordering::SeqCst), 2);

    let bulkhead = Bulkhead::new(1);
    let (_, full) = behind(Tower::new("bulkhead", bulkhead.clone()), 0, 0);
    let place = bulkhead.try_acquire();
    assert_eq!(kind_of(&full).await, ErrorKind::Full);
    drop(place);
    assert_eq!(full.send(Ask(1)).await.unwrap(), 1);

    let limiter = RateLimiter::new(Rate::new(1, SECOND)).wait_max(Duration::ZERO);
    let (_, limited) = behind(Tower::new("rate", limiter), 0, 0);
    assert_eq!(limited.send(Ask(1)).await.unwrap(), 1);
    assert_eq!(kind_of(&limited).await, ErrorKind::Throttled { retry_after: SECOND });
}

fn service(times: u32, seconds: u64) -> (Arc<AtomicU32>, TowerService<Ask>) {
    let (calls, handler) = failing(times, seconds);
    (calls, Mediator::builder().request(handler).build().unwrap().service().unwrap())
}

#[tokio::test(start_paused = true)]
async fn our_policies_stand_around_a_mediator_as_a_service() {
    let (calls, inner) = service(2, 0);
    let layers =
        (Retry::new(3).backoff(Backoff::fixed(SECOND)), CircuitBreaker::new(BreakerSettings::default()));
    let layers = (layers, Timeout::new(SECOND), Bulkhead::new(1), RateLimiter::new(Rate::new(100, SECOND)));
    assert_eq!(layers.layer(inner).oneshot(Ask(4)).await.unwrap(), 4);
    assert_eq!(calls.load(Ordering::SeqCst), 3);

    let (_, inner) = service(9, 0);
    let error = Retry::new(2).backoff(Backoff::fixed(SECOND)).layer(inner).oneshot(Ask(4)).await.unwrap_err();
    assert_eq!((error.kind(), error.message()), (&ErrorKind::Failed, "Ask"), "the last attempt's");

    let (_, inner) = service(0, 2);
    let error = Timeout::new(SECOND).layer(inner).oneshot(Ask(4)).await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::TimedOut { limit: SECOND });
    assert_eq!(error.to_string(), "a call: took longer than 1s");

    let (calls, inner) = service(1, 0);
    let policy = Policy::new().retry(Retry::new(2).backoff(Backoff::fixed(SECOND)));
    assert_eq!(policy.layer(inner).oneshot(Ask(6)).await.unwrap(), 6);
    assert_eq!(calls.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_service_in_turn_that_is_not_ready_is_not_called() {
    let mut service = millstream_mediator::InTurn::new(tower::layer::util::Identity::new())
        .layer(tower::service_fn(async |n: u32| Ok::<_, BoxError>(n)));
    let mut other = service.clone();
    assert!(matches!(
        std::future::poll_fn(|cx| Poll::Ready(service.poll_ready(cx))).await,
        Poll::Ready(Ok(()))
    ));
    assert!(other.ready().now_or_never().is_none(), "it is the other's turn");
    assert_eq!(service.call(1).await.unwrap(), 1);
    assert_eq!(other.ready().await.unwrap().call(2).await.unwrap(), 2);
    drop(service);
}
