//! What metrics show where several behaviours of a kind stand around one type, and where little happens.

use super::*;

#[tokio::test(start_paused = true)]
async fn two_breakers_around_one_type_show_as_the_worse_one_and_their_calls_as_a_sum() {
    for worse_outside in [true, false] {
        let strict = || Breaker::new(settings().calls_min(1));
        let lax = || Breaker::new(settings().calls_min(100));
        let (outer, inner) = if worse_outside { (strict(), lax()) } else { (lax(), strict()) };
        let (_, handler) = failing(1, 0);
        let mediator =
            Mediator::builder().behaviour(outer).behaviour(inner).request(handler).build().unwrap();
        assert_eq!(mediator.send(Ask(1)).await.unwrap_err().kind(), &ErrorKind::Failed);
        assert_eq!(number(&mediator, "mediator_circuit_state", &[("type", "Ask")]), 2.0, "{worse_outside}");
        assert_eq!(number(&mediator, "mediator_circuit_failure_rate", &[("type", "Ask")]), 1.0);
        let failed = [("type", "Ask"), ("outcome", "failed")];
        assert_eq!(number(&mediator, "mediator_circuit_operations", &failed), 2.0, "one in each book");
    }
}

#[tokio::test(start_paused = true)]
async fn a_breaker_that_is_a_handlers_own_and_a_shared_one_are_counted_together() {
    for own_outside in [true, false] {
        let own = Breaker::new(settings().calls_min(9));
        let shared = Breaker::shared(CircuitBreaker::new(settings().calls_min(9)));
        let (outer, inner) = if own_outside { (own, shared) } else { (shared, own) };
        let (_, handler) = failing(2, 0);
        let mediator =
            Mediator::builder().behaviour(outer).behaviour(inner).request(handler).build().unwrap();
        for _ in 0..2 {
            assert!(mediator.send(Ask(1)).await.is_err());
        }
        let failed = [("type", "Ask"), ("outcome", "failed")];
        assert_eq!(number(&mediator, "mediator_circuit_operations", &failed), 4.0, "{own_outside}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_breakers_calls_are_counted_by_how_they_ended() {
    let (_, handler) = failing(2, 0);
    let mediator = Mediator::builder()
        .behaviour(Breaker::new(settings().calls_min(4)))
        .request(handler)
        .build()
        .unwrap();
    for _ in 0..4 {
        let _ = mediator.send(Ask(1)).await;
    }
    assert!(matches!(mediator.send(Ask(1)).await.unwrap_err().kind(), ErrorKind::CircuitOpen { .. }));
    for (outcome, count) in [("succeeded", 2.0), ("failed", 2.0), ("rejected", 1.0)] {
        let labels = [("type", "Ask"), ("outcome", outcome)];
        assert_eq!(number(&mediator, "mediator_circuit_operations", &labels), count, "{outcome}");
    }

    // One that others share, too, has a book that says no types.
    let shared = Breaker::shared(CircuitBreaker::new(settings().calls_min(9)));
    let mediator = Mediator::builder()
        .behaviour(shared)
        .request(async |_: Ask| Err::<u64, _>("busy"))
        .request(async |_: Do| Err::<(), _>("busy"))
        .build()
        .unwrap();
    assert!(mediator.send(Ask(1)).await.is_err());
    assert!(mediator.send(Do(String::new())).await.is_err());
    assert!(mediator.send(Do(String::new())).await.is_err());
    let failed = |name| [("type", name), ("outcome", "failed")];
    assert_eq!(number(&mediator, "mediator_circuit_operations", &failed("Ask")), 1.0);
    assert_eq!(number(&mediator, "mediator_circuit_operations", &failed("Do")), 2.0);
}

#[tokio::test(start_paused = true)]
async fn two_bulkheads_and_two_budgets_show_what_is_least_free_and_all_that_wait() {
    let (empty, half) = (Memory::new(1000), Memory::new(1000).marks(0.9, 0.8));
    let mediator = Mediator::builder()
        .behaviour(Bulkhead::new(5).queue(1))
        .behaviour(Bulkhead::new(2).queue(3))
        .behaviour(Admission::new(half.clone()))
        .behaviour(Admission::new(empty))
        .request(async |_: Ask| std::future::pending::<Result<u64, BoxError>>().await)
        .build()
        .unwrap();
    let _held = half.reserve(500);
    let mut calls = std::pin::pin!(join_all((0..6).map(|_| mediator.send(Ask(1)))));
    assert!(tokio::time::timeout(SECOND, calls.as_mut()).await.is_err());
    let shown = |name, resource| number(&mediator, name, &[("type", "Ask"), ("resource", resource)]);
    assert_eq!(shown("mediator_resources_available", "calls"), 0.0);
    assert_eq!(shown("mediator_resources_utilization", "calls"), 1.0);
    assert_eq!(number(&mediator, "mediator_requests_queued", &[("type", "Ask")]), 4.0, "one and three");
    assert_eq!(shown("mediator_resources_available", "memory"), 500.0);
    assert_eq!(shown("mediator_resources_utilization", "memory"), 0.5);
}

#[tokio::test(start_paused = true)]
async fn two_caches_of_one_type_show_all_their_answers() {
    let (_, handler) = failing(0, 0);
    let mediator = Mediator::builder()
        .behaviour_of(Cache::new(Memo::new(1), |ask: &Ask| ask.0))
        .behaviour_of(Cache::new(Memo::new(10), |ask: &Ask| ask.0))
        .request(handler)
        .build()
        .unwrap();
    for n in [1, 1, 2, 1] {
        mediator.send(Ask(n)).await.unwrap();
    }
    let cached =
        |outcome| number(&mediator, "mediator_cache_total", &[("type", "Ask"), ("outcome", outcome)]);
    assert_eq!((cached("hit"), cached("miss")), (1.0 + 1.0, 3.0 + 2.0), "of the small one, and of the large");
}

#[tokio::test(start_paused = true)]
async fn what_never_happened_has_no_series_and_counts_from_its_first_time_on() {
    let (_, handler) = failing(1, 0);
    let mediator = Mediator::builder()
        .behaviour(retry(2))
        .behaviour(Breaker::new(settings()))
        .request(handler)
        .build()
        .unwrap();
    let attempts = |labels: &[(&str, &str)]| {
        mediator.metrics().snapshot().number("mediator_retry_attempts_total", labels)
    };
    let rejected =
        || mediator.metrics().snapshot().number("mediator_circuit_operations", &[("outcome", "rejected")]);
    assert_eq!((attempts(&[]), rejected()), (None, None));
    mediator.send(Ask(1)).await.unwrap();
    let again = [("operation", "Ask"), ("outcome", "again"), ("class", "transient")];
    assert_eq!(attempts(&again), Some(1.0));
    assert_eq!(attempts(&[("outcome", "saved"), ("class", "")]), Some(1.0));
    assert_eq!((attempts(&[("class", "throttled")]), attempts(&[("outcome", "given_up")])), (None, None));
    assert_eq!(rejected(), None);
}

#[tokio::test(start_paused = true)]
async fn one_attempt_alone_leaves_nothing_unrepeated() {
    let (_, handler) = failing(9, 0);
    let mediator = Mediator::builder().behaviour(retry(1)).request(handler).build().unwrap();
    assert!(mediator.send(Ask(1)).await.is_err());
    let counted = mediator.metrics().snapshot().number("mediator_retry_attempts_total", &[]);
    assert_eq!(counted, None, "it may be repeated, and is not by the retry's own word");
}

#[tokio::test(start_paused = true)]
async fn what_keys_without_a_place_share_is_shown_too_and_named_after_none_of_them() {
    let key = |call: &Call<'_>| call.context().get::<u64>().map_or_else(String::new, u64::to_string);
    let mediator = Mediator::builder()
        .behaviour(Bulkhead::new(2).by_key(1, key))
        .behaviour(Breaker::by_key(1, settings().calls_min(1), key))
        .request(async |ask: Ask| {
            if ask.0 == 0 {
                return Err("busy");
            }
            sleep(SECOND * ask.0 as u32).await;
            Ok(ask.0)
        })
        .build()
        .unwrap();
    let contexts = [0u64, 1, 2].map(|key| Context::new().with(key));
    // The first key is in use, so that the other two find no place.
    let calls = [
        mediator.send_in(&contexts[0], Ask(9)),
        mediator.send_in(&contexts[1], Ask(9)),
        mediator.send_in(&contexts[2], Ask(9)),
    ];
    let mut calls = std::pin::pin!(join_all(calls));
    assert!(tokio::time::timeout(SECOND, calls.as_mut()).await.is_err());
    let of_calls = [("type", "Ask"), ("resource", "calls")];
    assert_eq!(number(&mediator, "mediator_resources_available", &of_calls), 0.0, "two share two places");
    calls.await;

    let key = |call: &Call<'_>| call.context().get::<u64>().map_or_else(String::new, u64::to_string);
    let mediator = Mediator::builder()
        .behaviour(Breaker::by_key(1, settings().calls_min(1), key))
        .request(async |_: Ask| Err::<u64, _>("busy"))
        .build()
        .unwrap();
    assert!(mediator.send_in(&contexts[0], Ask(0)).await.is_err());
    assert!(mediator.send_in(&contexts[1], Ask(0)).await.is_err());
    let error = mediator.send_in(&contexts[2], Ask(0)).await.unwrap_err();
    let words = millstream_flow::chain(&error);
    assert!(words.contains("others is open"), "{words}");
}

#[tokio::test(start_paused = true)]
async fn each_call_that_was_tried_again_has_one_outcome() {
    const BUSY: Class = Class::Transient;
    const WRONG: Class = Class::Permanent;
    for (errors, again, outcome) in [
        (&[WRONG][..], None, None),
        (&[BUSY], Some(1.0), Some("saved")),
        (&[BUSY, WRONG], Some(1.0), Some("given_up")),
        (&[BUSY, BUSY], Some(1.0), Some("unrepeatable")),
    ] {
        let count = AtomicU32::new(0);
        let mediator = Mediator::builder()
            .behaviour(retry(5))
            .request(move |_: Once| {
                let error = errors.get(count.fetch_add(1, Ordering::SeqCst) as usize);
                std::future::ready(error.map_or(Ok(0), |class| Err(Classified::new(*class, "no"))))
            })
            .build()
            .unwrap();
        assert_eq!(mediator.send(Once(true)).await.is_ok(), outcome == Some("saved"));
        let attempts = |outcome| {
            mediator.metrics().snapshot().number("mediator_retry_attempts_total", &[("outcome", outcome)])
        };
        assert_eq!(attempts("again"), again, "{errors:?}");
        for word in ["saved", "given_up", "unrepeatable"] {
            assert_eq!(attempts(word), (outcome == Some(word)).then_some(1.0), "{errors:?}: {word}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn of_two_timings_around_one_handler_one_is_shown_and_both_warn() {
    let mediator = Mediator::builder()
        .behaviour(Timing::new().slow(3 * SECOND))
        .behaviour(Timing::new().slow(SECOND))
        .request(async |ask: Ask| {
            sleep(SECOND * ask.0 as u32).await;
            if ask.0 == 9 { Err("nine") } else { Ok(ask.0) }
        })
        .build()
        .unwrap();
    for n in [0, 2, 9] {
        let _ = mediator.send(Ask(n)).await;
    }
    let total = |status| number(&mediator, "mediator_requests_total", &[("type", "Ask"), ("status", status)]);
    assert_eq!((total("ok"), total("failed")), (2.0, 1.0));
    assert_eq!(number(&mediator, "mediator_request_duration_seconds", &[]), 3.0);
    assert_eq!(number(&mediator, "mediator_active_requests", &[]), 0.0);
    assert_eq!(
        number(&mediator, "mediator_slow_requests_total", &[]),
        3.0,
        "one of the outer, two of the inner"
    );
}
