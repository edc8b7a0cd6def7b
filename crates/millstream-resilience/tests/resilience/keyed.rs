//! One of something for each key: what those have that found no place.

use std::time::Duration;

use millstream_resilience::{BreakerSettings, Bulkhead, CircuitBreaker, Keyed, Rate, RateLimiter};

#[tokio::test(start_paused = true)]
async fn what_keys_without_a_place_share_can_be_seen_and_has_a_name_of_its_own() {
    let breakers = Keyed::with_others(1, |key: Option<&str>| {
        CircuitBreaker::new(BreakerSettings::default().name(key.unwrap_or("others")))
    });
    breakers.of("a").trip();
    assert!(breakers.others().is_none(), "all have found a place");
    breakers.of("b").trip();
    let others = breakers.others().expect("b has found none");
    assert_eq!((&*others.snapshot().name, others.snapshot().opened), ("others", 1));
    let listed: Vec<_> =
        breakers.list().into_iter().map(|(key, breaker)| (key, breaker.snapshot().name)).collect();
    assert_eq!(listed, [("a".to_owned(), "a".into())]);
}

#[tokio::test(start_paused = true)]
async fn what_is_made_by_key_alone_is_made_for_the_first_that_finds_no_place() {
    let bulkheads = Keyed::new(1, |key: &usize| Bulkhead::new(*key));
    let _held = bulkheads.of(&1).try_acquire().unwrap();
    let shared = bulkheads.of(&7);
    assert_eq!(bulkheads.others().map(|others| others.running()), Some(0));
    let _place = shared.try_acquire().unwrap();
    assert_eq!(bulkheads.others().map(|others| others.running()), Some(1));
}

#[tokio::test(start_paused = true)]
async fn what_somebody_still_has_is_not_forgotten() {
    let bulkheads = Keyed::new(1, |_: &str| Bulkhead::new(1));
    let (first, _) = (bulkheads.of("a"), bulkheads.of("b"));
    let _place = first.try_acquire().unwrap();
    assert!(bulkheads.of("a").try_acquire().is_none(), "two places for one key");

    let limiters = Keyed::new(1, |_: &str| RateLimiter::new(Rate::new(1, Duration::from_secs(1))));
    let (first, _) = (limiters.of("a"), limiters.of("b"));
    first.try_acquire(1).unwrap();
    assert!(limiters.of("a").try_acquire(1).is_err(), "twice the rate for one key");

    let breakers = Keyed::new(1, |_: &str| CircuitBreaker::new(BreakerSettings::default()));
    let (first, _) = (breakers.of("a"), breakers.of("b"));
    first.trip();
    assert!(breakers.of("a").try_acquire().is_err(), "a second breaker for one key");

    let bulkheads = Keyed::new(1, |_: &str| Bulkhead::new(1));
    drop(bulkheads.of("a"));
    drop(bulkheads.of("b"));
    assert_eq!(bulkheads.list()[0].0, "b", "what nobody has any more is forgotten");
}

#[tokio::test(start_paused = true)]
async fn who_has_used_the_shared_one_gets_no_second_beside_it() {
    let bulkheads = Keyed::new(1, |_: &str| Bulkhead::new(1));
    let alice = bulkheads.of("alice").try_acquire().unwrap();
    let bob = bulkheads.of("bob").try_acquire().expect("of the shared one");
    drop(alice);
    assert!(bulkheads.of("bob").try_acquire().is_none(), "two places for one key");
    assert!(bulkheads.of("carol").try_acquire().is_some(), "she has never shared");
    drop(bob);
    assert!(bulkheads.of("dave").try_acquire().is_some());
    assert_eq!(bulkheads.list()[0].0, "dave", "the shared one is idle, and there is a place");

    let minute = Duration::from_secs(60);
    let limiters = Keyed::new(1, move |_: &str| RateLimiter::new(Rate::new(1, minute)));
    limiters.of("alice").try_acquire(1).unwrap();
    tokio::time::advance(minute / 2).await;
    limiters.of("bob").try_acquire(1).unwrap();
    tokio::time::advance(minute / 2).await;
    assert!(limiters.of("bob").try_acquire(1).is_err(), "twice the rate for one key");
    tokio::time::advance(minute / 2).await;
    assert!(limiters.of("bob").try_acquire(1).is_ok());
}

#[tokio::test(start_paused = true)]
async fn who_shares_is_known_and_the_others_go_on_as_if_nothing_were() {
    let bulkheads = Keyed::new(1, |_: &usize| Bulkhead::new(100));
    let held = bulkheads.of(&0).try_acquire().unwrap();
    let shared: Vec<_> =
        (1..=100).map(|key| bulkheads.of(&key).try_acquire().expect("of the shared one")).collect();
    drop(held);
    for key in [1, 90] {
        assert!(bulkheads.of(&key).try_acquire().is_none(), "{key} would have two");
    }
    assert!(bulkheads.of(&200).try_acquire().is_some(), "it has never shared");
    drop(shared);
    assert!(bulkheads.of(&90).try_acquire().is_some());
    assert_eq!(bulkheads.list()[0].0, 90, "it has a place now");
}

#[tokio::test(start_paused = true)]
async fn a_crowd_that_has_gone_leaves_nobody_behind() {
    // As many have shared as ever are known, and more; some of them keep what they share in use.
    let bulkheads = Keyed::new(64, |_: &usize| Bulkhead::new(2));
    let crowd: Vec<_> = (0..300).map(|key| bulkheads.of(&key)).collect();
    let busy = bulkheads.others().unwrap().try_acquire().unwrap();
    drop(crowd);
    for key in 1000..3000 {
        assert!(bulkheads.of(&key).try_acquire().is_some(), "{key} comes when all places are idle");
    }
    let stays = bulkheads.of(&299).try_acquire().expect("a second place of the shared one");
    assert!(bulkheads.of(&299).try_acquire().is_none());
    tokio::time::advance(Duration::from_secs(121)).await;
    assert!(bulkheads.of(&299).try_acquire().is_some(), "it has shared long enough");
    drop((busy, stays));
}
