//! One of something for each key: what those have that found no place.

use millstream_resilience::{BreakerSettings, Bulkhead, CircuitBreaker, Keyed};

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
