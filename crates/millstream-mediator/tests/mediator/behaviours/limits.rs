//! How much may be under way at once.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_bulkhead_runs_so_many_has_so_many_wait_and_refuses_the_rest() {
    let slow = async |ask: Ask| {
        sleep(SECOND * ask.0 as u32).await;
        Ok::<_, BoxError>(ask.0)
    };
    let mediator = Mediator::builder().behaviour(Bulkhead::new(2).queue(1)).request(slow).build().unwrap();
    let sent: Vec<_> = (0..4)
        .map(|_| {
            tokio::spawn({
                let m = mediator.clone();
                async move { m.send(Ask(4)).await }
            })
        })
        .collect();
    sleep(SECOND).await;
    let labels = [("type", "Ask"), ("resource", "calls")];
    assert_eq!(number(&mediator, "mediator_resources_available", &labels), 0.0);
    assert_eq!(number(&mediator, "mediator_resources_utilization", &labels), 1.0);
    assert_eq!(number(&mediator, "mediator_requests_queued", &[("type", "Ask")]), 1.0);
    let ended =
        join_all(sent).await.into_iter().map(|ended| ended.unwrap().map_err(|error| error.kind().clone()));
    assert_eq!(ended.collect::<Vec<_>>(), [Ok(4), Ok(4), Ok(4), Err(ErrorKind::Full)]);

    let mediator = Mediator::builder()
        .behaviour(Bulkhead::new(1).queue(9).wait_max(SECOND))
        .request(slow)
        .build()
        .unwrap();
    let (first, second) = tokio::join!(mediator.send(Ask(5)), mediator.send(Ask(5)));
    assert_eq!((first.unwrap(), second.unwrap_err().kind()), (5, &ErrorKind::Full));

    let both = Mediator::builder()
        .behaviour(Bulkhead::new(1).shared())
        .request(slow)
        .request(async |_: Do| Ok::<_, BoxError>(()))
        .build()
        .unwrap();
    let (first, second) = tokio::join!(both.send(Ask(5)), both.send(Do(String::new())));
    assert_eq!((first.unwrap(), second.unwrap_err().kind()), (5, &ErrorKind::Full));
}

#[tokio::test(start_paused = true)]
async fn a_place_in_a_bulkhead_comes_back_when_its_call_is_dropped() {
    let mediator = Mediator::builder()
        .behaviour(Bulkhead::new(1).by_key(8, |_| "all".into()))
        .request(async |_: Ask| std::future::pending::<Result<u64, BoxError>>().await)
        .build()
        .unwrap();
    for _ in 0..3 {
        let ended = tokio::time::timeout(SECOND, mediator.send(Ask(1))).await;
        assert!(ended.is_err(), "it had a place and waited");
    }
}

#[tokio::test(start_paused = true)]
async fn a_rate_limit_lets_a_burst_pass_and_others_wait_or_fail() {
    let answer = async |ask: Ask| Ok::<_, BoxError>(ask.0);
    let limit = RateLimit::new(10, SECOND).burst(3);
    let mediator = Mediator::builder().behaviour(limit.clone()).request(answer).build().unwrap();
    for _ in 0..3 {
        mediator.send(Ask(1)).await.unwrap();
    }
    let error = mediator.send(Ask(1)).await.unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Throttled { retry_after: SECOND / 10 });

    let mediator =
        Mediator::builder().behaviour(limit.clone().wait_max(SECOND)).request(answer).build().unwrap();
    let began = Instant::now();
    for _ in 0..13 {
        mediator.send(Ask(1)).await.unwrap();
    }
    assert_eq!(began.elapsed(), SECOND);

    for (limit, refused) in
        [(limit.clone().shared(), true), (limit.by_key(4, |call| call.about().name.to_string()), false)]
    {
        let mediator = Mediator::builder()
            .behaviour(limit)
            .request(answer)
            .request(async |_: Do| Ok::<_, BoxError>(()))
            .build()
            .unwrap();
        for _ in 0..3 {
            mediator.send(Ask(1)).await.unwrap();
        }
        assert_eq!(mediator.send(Do(String::new())).await.is_err(), refused);
    }
}

#[tokio::test(start_paused = true)]
async fn the_order_in_which_a_limit_is_said_does_not_matter() {
    let answer = async |ask: Ask| {
        sleep(SECOND * ask.0 as u32).await;
        Ok::<_, BoxError>(ask.0)
    };
    let do_it = async |_: Do| Ok::<_, BoxError>(());
    let limits = [
        RateLimit::new(1, SECOND).shared().burst(2).wait_max(Duration::ZERO),
        RateLimit::new(1, SECOND).by_key(4, |_| "all".into()).burst(2).wait_max(Duration::ZERO),
    ];
    for limit in limits {
        let words = format!("{limit:?}");
        let mediator = Mediator::builder().behaviour(limit).request(answer).request(do_it).build().unwrap();
        assert!(mediator.send(Ask(0)).await.is_ok(), "{words}");
        assert!(mediator.send(Do(String::new())).await.is_ok(), "{words}: a burst of two");
        let error = mediator.send(Do(String::new())).await.unwrap_err();
        assert_eq!(error.kind().word(), "throttled", "{words}: one limit for all");
    }
    let bulkheads = [
        Bulkhead::new(1).shared().queue(1).wait_max(SECOND),
        Bulkhead::new(1).by_key(4, |_| "all".into()).queue(1).wait_max(SECOND),
    ];
    for bulkhead in bulkheads {
        let words = format!("{bulkhead:?}");
        let mediator =
            Mediator::builder().behaviour(bulkhead).request(answer).request(do_it).build().unwrap();
        let began = Instant::now();
        let (first, second, third) = tokio::join!(
            mediator.send(Ask(5)),
            mediator.send(Do(String::new())),
            mediator.send(Do(String::new()))
        );
        assert!(first.is_ok(), "{words}");
        assert_eq!(second.unwrap_err().kind(), &ErrorKind::Full, "{words}: one place for all");
        assert_eq!(third.unwrap_err().kind(), &ErrorKind::Full, "{words}");
        assert_eq!(began.elapsed(), 5 * SECOND);
    }
}

#[tokio::test(start_paused = true)]
async fn memory_that_grew_too_fast_is_short_while_it_does_and_no_longer() {
    let used = Arc::new(AtomicU64::new(600));
    let read = used.clone();
    let memory = Memory::new(1000).marks(0.9, 0.5).growth_max(50);
    let memory = memory.probe(SECOND, move || Some(read.load(Ordering::SeqCst)));
    assert!(!memory.is_short());
    for (bytes, short) in
        [(650, false), (750, true), (750, false), (800, false), (900, true), (600, true), (500, false)]
    {
        used.store(bytes, Ordering::SeqCst);
        sleep(SECOND).await;
        assert_eq!(memory.is_short(), short, "{bytes}: between the marks only growth counts");
    }
}

#[tokio::test(start_paused = true)]
async fn what_becomes_known_has_not_grown() {
    let used = Arc::new(AtomicU64::new(0));
    let read = used.clone();
    let memory = Memory::new(1000).growth_max(50).probe(SECOND, move || match read.load(Ordering::SeqCst) {
        0 => None,
        bytes => Some(bytes),
    });
    for (bytes, short) in [(0, false), (600, false), (0, false), (700, false), (800, true)] {
        used.store(bytes, Ordering::SeqCst);
        sleep(SECOND).await;
        assert_eq!(memory.is_short(), short, "{bytes}");
    }
}

#[test]
fn a_limit_of_growth_that_nobody_could_find_is_refused() {
    let unread = || Memory::new(1 << 20).growth_max(1000);
    let health = Health::new(SECOND).memory_growth(&unread(), 1);
    let error = Mediator::builder()
        .behaviour(Admission::new(unread()))
        .stream_behaviour(StreamAdmission::new(unread()))
        .stream_behaviour(Backpressure::new(Strategy::Buffer, 1).memory(unread()))
        .stream_behaviour(health)
        .build()
        .unwrap_err();
    assert_eq!(error.problems().len(), 4, "{error}");
    assert_eq!(
        error.problems()[0],
        "the behaviour `admission within 1 MiB`: `growth_max(1000)` of a memory budget has no effect without a probe; \
         add `probe`, or remove it"
    );
    let probed = Memory::new(1 << 20).growth_max(1000).probe(SECOND, || None);
    assert!(Mediator::builder().behaviour(Admission::new(probed)).build().is_ok());
}

#[tokio::test(start_paused = true)]
async fn metrics_show_the_worst_of_what_each_key_has() {
    let key = |call: &Call<'_>| call.context().get::<u64>().map_or_else(String::new, u64::to_string);
    let mediator = Mediator::builder()
        .behaviour(Bulkhead::new(4).queue(9).by_key(8, key))
        .behaviour(Breaker::by_key(8, settings(), key))
        .request(async |ask: Ask| {
            if ask.0 == 0 {
                return Err("busy");
            }
            sleep(SECOND * ask.0 as u32).await;
            Ok(ask.0)
        })
        .build()
        .unwrap();
    let contexts = [Context::new().with(1u64), Context::new().with(2u64)];
    assert_eq!(number(&mediator, "mediator_circuit_state", &[("type", "Ask")]), 0.0, "no key yet");
    assert_eq!(number(&mediator, "mediator_resources_available", &[("resource", "calls")]), 4.0);
    for _ in 0..2 {
        assert!(mediator.send_in(&contexts[0], Ask(0)).await.is_err());
    }
    assert_eq!(number(&mediator, "mediator_circuit_state", &[]), 2.0);
    assert_eq!(number(&mediator, "mediator_circuit_failure_rate", &[]), 0.0, "an open one begins anew");
    assert!(mediator.send_in(&contexts[1], Ask(0)).await.is_err());
    assert_eq!(number(&mediator, "mediator_circuit_failure_rate", &[]), 1.0);
    sleep(10 * SECOND).await;
    let calls = (0..3).map(|_| mediator.send_in(&contexts[0], Ask(9)));
    let calls = calls.chain((0..6).map(|_| mediator.send_in(&contexts[1], Ask(9))));
    let mut calls = std::pin::pin!(join_all(calls));
    assert!(tokio::time::timeout(SECOND, calls.as_mut()).await.is_err());
    let of_calls = [("type", "Ask"), ("resource", "calls")];
    assert_eq!(number(&mediator, "mediator_resources_available", &of_calls), 0.0);
    assert_eq!(number(&mediator, "mediator_resources_utilization", &of_calls), 1.0);
    assert_eq!(number(&mediator, "mediator_requests_queued", &[("type", "Ask")]), 2.0);
    calls.await;
}

#[tokio::test]
async fn what_was_shrunk_is_counted_of_all_budgets_together() {
    let budget = || Memory::new(1000).on_short(|| ());
    let (one, other) = (budget(), budget());
    let answer = async |ask: Ask| Ok::<_, BoxError>(ask.0);
    let mediator = Mediator::builder()
        .behaviour_for(Scope::of::<Ask>(), Admission::new(one.clone()))
        .behaviour_for(Scope::of::<Do>(), Admission::new(other.clone()))
        .request(answer)
        .request(async |_: Do| Ok::<_, BoxError>(()))
        .build()
        .unwrap();
    for memory in [one, other] {
        let held = memory.reserve(1000);
        assert!(memory.is_short());
        drop(held);
    }
    assert_eq!(number(&mediator, "mediator_resource_cleanup_triggered_total", &[]), 2.0);
}

#[tokio::test(start_paused = true)]
async fn admission_refuses_or_waits_while_memory_is_short() {
    let cleaned = Arc::new(AtomicU32::new(0));
    let count = cleaned.clone();
    let memory = Memory::new(1000).marks(0.9, 0.5).on_short(move || {
        count.fetch_add(1, Ordering::SeqCst);
    });
    let answer = async |ask: Ask| Ok::<_, BoxError>(ask.0);
    let mediator =
        Mediator::builder().behaviour(Admission::new(memory.clone())).request(answer).build().unwrap();
    let mut held = memory.reserve(899);
    assert_eq!(mediator.send(Ask(1)).await.unwrap(), 1);
    held.set(900);
    assert_eq!(mediator.send(Ask(1)).await.unwrap_err().kind(), &ErrorKind::Shed);
    held.set(501);
    assert_eq!(mediator.send(Ask(1)).await.unwrap_err().kind(), &ErrorKind::Shed, "down to the low mark");
    assert_eq!(cleaned.load(Ordering::SeqCst), 1);
    let labels = [("type", "Ask"), ("resource", "memory")];
    assert_eq!(number(&mediator, "mediator_resources_available", &labels), 499.0);
    assert_eq!(number(&mediator, "mediator_resources_utilization", &labels), 0.501);
    assert_eq!(number(&mediator, "mediator_resource_cleanup_triggered_total", &[]), 1.0);

    let waits = Admission::new(memory).wait_max(10 * SECOND);
    let mediator = Mediator::builder().behaviour(waits).request(answer).build().unwrap();
    let began = Instant::now();
    let release = async {
        sleep(3 * SECOND).await;
        held.set(500);
    };
    assert_eq!(tokio::join!(mediator.send(Ask(1)), release).0.unwrap(), 1);
    assert_eq!(began.elapsed(), 3 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_probe_is_asked_no_more_often_than_said() {
    let used = Arc::new(AtomicU64::new(100));
    let asked = Arc::new(AtomicU32::new(0));
    let (read, count) = (used.clone(), asked.clone());
    let memory = Memory::new(1000).probe(SECOND, move || {
        count.fetch_add(1, Ordering::SeqCst);
        Some(read.load(Ordering::SeqCst))
    });
    assert!(!memory.is_short());
    used.store(1000, Ordering::SeqCst);
    assert!(!memory.is_short());
    sleep(SECOND).await;
    assert!(memory.is_short());
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_memory_that_is_asked_about_but_once_waits_until_some_is_given_back() {
    for wait in [10 * SECOND, Duration::MAX] {
        let memory = Memory::new(1000).probe(Duration::MAX, || Some(10));
        let held = memory.reserve(950);
        let waits = Admission::new(memory).wait_max(wait);
        let mediator = Mediator::builder()
            .behaviour(waits)
            .request(async |ask: Ask| Ok::<_, BoxError>(ask.0))
            .build()
            .unwrap();
        let began = Instant::now();
        let release = async {
            sleep(3 * SECOND).await;
            drop(held);
        };
        assert_eq!(tokio::join!(mediator.send(Ask(1)), release).0.unwrap(), 1);
        assert_eq!(began.elapsed(), 3 * SECOND);
    }
}
