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
