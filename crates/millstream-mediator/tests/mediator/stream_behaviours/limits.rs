//! How long a stream may take, how fast it may be, and how many there may be.

use super::*;

#[tokio::test(start_paused = true)]
async fn timeouts_end_a_stream_that_waits_too_long() {
    for (timeout, seconds, items, limit) in [
        (StreamTimeout::new().first(2 * SECOND), 2, 0, 2),
        (StreamTimeout::new().next(2 * SECOND), 9, 3, 2),
        (StreamTimeout::new().total(4 * SECOND).next(9 * SECOND), 4, 1, 4),
    ] {
        // Items after 3, 5, 7 seconds, and one that never comes.
        let mediator = mediator(timeout, |_, _| {
            let first = stream::once(sleep(SECOND)).filter_map(async |()| None::<Result<u64, BoxError>>);
            let items = stream::iter(0..3).then(async |n| {
                sleep(2 * SECOND).await;
                Ok(n)
            });
            Pipe::from_stream(first.chain(items).chain(stream::pending())).boxed()
        });
        let began = Instant::now();
        let (got, error) = all(mediator.stream(Count(0)).await.unwrap()).await;
        let error = error.unwrap();
        assert_eq!((began.elapsed().as_secs(), got.len() as u64), (seconds, items));
        assert_eq!(error.error().kind(), &ErrorKind::TimedOut { limit: limit * SECOND });
        assert_eq!(error.position(), items);
    }
}

#[tokio::test(start_paused = true)]
async fn a_limit_of_the_first_item_counts_from_when_somebody_asks() {
    for (opening, took, late) in [(0, 3, false), (0, 5, true), (2, 1, false), (2, 3, true)] {
        let mediator = Mediator::builder()
            .stream_behaviour(StreamTimeout::new().first(4 * SECOND))
            .stream(move |_: Count| async move {
                sleep(opening * SECOND).await; // somebody waits for this, too
                Ok::<_, Error>(each(took * SECOND, 1))
            })
            .build()
            .unwrap();
        let stream = mediator.stream(Count(0)).await.unwrap();
        sleep(60 * SECOND).await;
        let began = Instant::now();
        let (items, error) = all(stream).await;
        assert_eq!((items.is_empty(), error.is_some()), (late, late), "{opening} s, {took} s");
        let seconds = if late { 4 - opening } else { took };
        assert_eq!(began.elapsed(), seconds * SECOND, "{opening} s, {took} s");
    }
}

#[tokio::test(start_paused = true)]
async fn times_longer_than_any_stream_are_no_reason_to_panic() {
    let longest = Duration::MAX;
    let mediator = Mediator::builder()
        .stream_behaviour(StreamTimeout::new().first(longest).next(longest).total(longest))
        .stream_behaviour(StreamTiming::new().interval(longest).first_item(SECOND).total(longest))
        .stream_behaviour(Health::new(longest))
        .stream_behaviour(StreamLogging::new().every(longest))
        .stream_behaviour(Backpressure::new(Strategy::Block, 2).fallback(longest, Strategy::Buffer))
        .stream(async |to: Count| Ok::<_, Error>(each(2 * SECOND, to.0)))
        .build()
        .unwrap();
    let mut stream = mediator.stream(Count(10)).await.unwrap();
    stream.next().await.unwrap().unwrap();
    sleep(30 * SECOND).await;
    let (items, error) = all(stream).await;
    assert_eq!((items.len(), error.is_none()), (9, true), "{error:?}");
    let late = [("warning", "first_item")];
    assert_eq!(number(&mediator, "mediator_slow_streams_total", &late), 1.0, "who watches lives");
}

#[tokio::test(start_paused = true)]
async fn a_rate_limit_delays_items() {
    let mediator = mediator(StreamRateLimit::new(10, SECOND).burst(5), |_, to| at_once(to));
    let began = Instant::now();
    assert_eq!(all(mediator.stream(Count(25)).await.unwrap()).await.0.len(), 25);
    assert!((20..=21).contains(&(began.elapsed().as_millis() / 100)), "twenty at ten a second, and the end");
}

#[tokio::test(start_paused = true)]
async fn a_bulkhead_bounds_the_streams_that_are_open() {
    let mediator = mediator(StreamBulkhead::new(1).queue(1), |_, to| each(SECOND, to));
    let first = mediator.stream(Count(5)).await.unwrap();
    let (second, third) = tokio::join!(
        async {
            let stream = mediator.stream(Count(1)).await;
            (stream.is_ok(), Instant::now())
        },
        async {
            let refused = mediator.stream(Count(1)).await.map(drop).unwrap_err();
            assert_eq!(number(&mediator, "mediator_requests_queued", &[]), 1.0);
            let began = Instant::now();
            all(first).await;
            (refused.kind().clone(), began + 5 * SECOND)
        }
    );
    assert_eq!(second, (true, third.1));
    assert_eq!(third.0, ErrorKind::Full);
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_held_back_while_memory_is_short() {
    let memory = Memory::new(1000);
    let mediator = mediator(StreamAdmission::new(memory.clone()), |_, to| at_once(to));
    let mut stream = mediator.stream(Count(100)).await.unwrap();
    stream.next().await.unwrap().unwrap();
    let held = memory.reserve(950);
    let began = Instant::now();
    let release = async {
        sleep(3 * SECOND).await;
        drop(held);
    };
    let (rest, ()) = tokio::join!(all(stream), release);
    assert_eq!((rest.0.len(), began.elapsed()), (99, 3 * SECOND));
    assert_eq!(number(&mediator, "mediator_streams_held_back_total", &[]), 1.0);
}

/// Who asks, in a call's context.
struct Tenant(&'static str);

fn tenant(call: &Call<'_>) -> String {
    call.context().get::<Tenant>().map_or("nobody", |tenant| tenant.0).into()
}

#[tokio::test(start_paused = true)]
async fn a_bulkhead_is_waited_for_as_long_as_it_says() {
    let mediator = mediator(StreamBulkhead::new(1).queue(1).wait_max(2 * SECOND), |_, to| each(SECOND, to));
    let first = mediator.stream(Count(5)).await.unwrap();
    let began = Instant::now();
    let refused = mediator.stream(Count(1)).await.map(drop).unwrap_err();
    assert_eq!((refused.kind(), began.elapsed()), (&ErrorKind::Full, 2 * SECOND));
    drop(first);
    assert!(mediator.stream(Count(1)).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn the_places_of_a_bulkhead_are_each_handlers_or_all_handlers_or_each_keys() {
    struct Other;
    impl StreamRequest for Other {
        type Item = u64;
    }
    let a = Context::new().with(Tenant("a"));
    let b = Context::new().with(Tenant("b"));
    for (bulkhead, other_type, other_key) in [
        (StreamBulkhead::new(1), true, false),
        (StreamBulkhead::new(1).shared(), false, false),
        (StreamBulkhead::new(1).by_key(10, tenant), false, true),
    ] {
        let name = format!("{bulkhead:?}");
        let mediator = Mediator::builder()
            .stream_behaviour(bulkhead)
            .stream(async |to: Count| Ok::<_, Error>(at_once(to.0)))
            .stream(async |_: Other| Ok::<_, Error>(at_once(1)))
            .build()
            .unwrap();
        let open = mediator.stream_in(&a, Count(1)).await.unwrap();
        assert!(mediator.stream_in(&a, Count(1)).await.is_err(), "{name}");
        assert_eq!(mediator.stream_in(&a, Other).await.is_ok(), other_type, "{name}");
        assert_eq!(mediator.stream_in(&b, Count(1)).await.is_ok(), other_key, "{name}");
        all(open).await;
        assert!(mediator.stream_in(&a, Count(1)).await.is_ok(), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_breaker_is_each_handlers_or_shared_or_each_keys() {
    struct Other;
    impl StreamRequest for Other {
        type Item = u64;
    }
    let a = Context::new().with(Tenant("a"));
    let b = Context::new().with(Tenant("b"));
    let settings = || BreakerSettings::default().calls_min(2);
    for (breaker, other_type, other_key) in [
        (StreamBreaker::new(settings()), true, false),
        (StreamBreaker::shared(CircuitBreaker::new(settings())), false, false),
        (StreamBreaker::by_key(10, settings(), tenant), false, true),
    ] {
        let name = format!("{breaker:?}");
        let mediator = Mediator::builder()
            .stream_behaviour(breaker)
            .stream(async |to: Count| Ok::<_, Error>(if to.0 == 0 { breaks_at(0, 2) } else { at_once(to.0) }))
            .stream(async |_: Other| Ok::<_, Error>(at_once(1)))
            .build()
            .unwrap();
        for _ in 0..2 {
            all(mediator.stream_in(&a, Count(0)).await.unwrap()).await;
        }
        let refused = mediator.stream_in(&a, Count(1)).await.map(drop).unwrap_err();
        assert!(matches!(refused.kind(), ErrorKind::CircuitOpen { .. }), "{name}");
        assert_eq!(mediator.stream_in(&a, Other).await.is_ok(), other_type, "{name}");
        assert_eq!(mediator.stream_in(&b, Count(1)).await.is_ok(), other_key, "{name}");
        assert_eq!(number(&mediator, "mediator_circuit_state", &[("type", "Count")]), 2.0, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_breaker_counts_streams_of_whose_items_too_many_failed_and_errors_of_the_class_it_is_told() {
    let settings = || BreakerSettings::default().calls_min(1);
    // So many of ten items fail, and then the stream ends well.
    for (failed, opens) in [(2, false), (3, true)] {
        let mediator = Mediator::builder()
            .stream_behaviour(StreamBreaker::new(settings()).item_failures(0.2))
            .stream_options::<Count>(StreamOptions::new().item_errors(ItemErrors::pass()))
            .stream(async |failed: Count| {
                let item = move |n| if n < failed.0 { Err(BoxError::from("bad")) } else { Ok(n) };
                Ok::<_, Error>(Pipe::from_iter(0..10).map(item))
            })
            .build()
            .unwrap();
        assert_eq!(StreamExt::count(mediator.stream(Count(failed)).await.unwrap()).await, 10);
        assert_eq!(number(&mediator, "mediator_circuit_state", &[]) == 2.0, opens, "{failed} of ten");
    }
    for (class, opens) in [(Class::Permanent, false), (Class::Transient, true)] {
        let breaker = StreamBreaker::new(settings()).classify(move |error| {
            assert_eq!(error.kind(), &ErrorKind::Failed);
            class
        });
        let mediator = mediator(breaker, |_, _| breaks_at(0, 2));
        all(mediator.stream(Count(0)).await.unwrap()).await;
        assert_eq!(number(&mediator, "mediator_circuit_state", &[]) == 2.0, opens, "{class:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn retries_go_by_the_class_that_they_are_told() {
    for (class, tries) in [(Class::Permanent, 1), (Class::Transient, 3)] {
        for opens in [false, true] {
            let opened = Arc::new(AtomicU64::new(0));
            let count = opened.clone();
            let rule = StreamRetries::new(retry(3), Resume::Skip).classify(move |error| {
                assert_eq!(error.kind(), &ErrorKind::Failed);
                class
            });
            let mediator = Mediator::builder()
                .stream_behaviour(rule)
                .stream(move |_: Count| {
                    count.fetch_add(1, Ordering::SeqCst);
                    std::future::ready(if opens { Ok(breaks_at(0, 2)) } else { Err("closed") })
                })
                .build()
                .unwrap();
            if let Ok(stream) = mediator.stream(Count(0)).await {
                all(stream).await;
            }
            assert_eq!(opened.load(Ordering::SeqCst), tries, "{class:?}, {opens}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_opening_that_hangs_is_over_with_the_first_item_or_all_of_the_stream() {
    for (limits, limit) in [
        (StreamTimeout::new().first(2 * SECOND), 2 * SECOND),
        (StreamTimeout::new().total(3 * SECOND), 3 * SECOND),
        (StreamTimeout::new().first(5 * SECOND).total(3 * SECOND), 3 * SECOND),
    ] {
        // The first opens, breaks, and is opened again by the retries around it; the second time it hangs, and the third time not.
        let opened = Arc::new(AtomicU64::new(0));
        let counted = opened.clone();
        let mediator = Mediator::builder()
            .stream_behaviour(StreamRetries::new(
                Retry::new(3).backoff(Backoff::fixed(SECOND)),
                Resume::Restart,
            ))
            .stream_behaviour(limits)
            .stream(move |Count(to): Count| {
                let nth = counted.fetch_add(1, Ordering::SeqCst);
                async move {
                    match nth {
                        0 => Ok(breaks_at(0, 1)),
                        1 => std::future::pending().await,
                        _ => Ok::<_, Error>(at_once(to)),
                    }
                }
            })
            .build()
            .unwrap();
        let began = Instant::now();
        let (items, error) = all(mediator.stream(Count(2)).await.unwrap()).await;
        assert!(error.is_none(), "{error:?}");
        assert_eq!((items, opened.load(Ordering::SeqCst)), (vec![0, 0, 1], 3));
        assert_eq!(began.elapsed(), limit + 2 * SECOND, "and two delays");
    }
    let mediator = Mediator::builder()
        .stream_behaviour(StreamTimeout::new().first(SECOND))
        .stream(async |_: Count| std::future::pending::<Result<Items, Error>>().await)
        .build()
        .unwrap();
    let error = mediator.stream(Count(1)).await.map(drop).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::TimedOut { limit: SECOND });
}
