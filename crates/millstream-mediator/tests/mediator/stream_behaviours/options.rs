//! Options of stream behaviours, one by one.

use super::*;
use millstream_resilience::CircuitBreaker;

struct Other;
impl StreamRequest for Other {
    type Item = u64;
}

#[tokio::test(start_paused = true)]
async fn a_breaker_that_streams_share_opens_for_all_of_them() {
    let settings = || BreakerSettings::default().calls_min(2);
    for (breaker, shared) in [
        (StreamBreaker::new(settings()), false),
        (StreamBreaker::shared(CircuitBreaker::new(settings())), true),
        (StreamBreaker::by_key(9, settings(), |_| String::new()), true),
    ] {
        let mediator = Mediator::builder()
            .stream_behaviour(breaker)
            .stream(async |_: Count| Ok::<_, Error>(breaks_at(0, 1)))
            .stream(async |_: Other| Ok::<_, Error>(at_once(1)))
            .build()
            .unwrap();
        for _ in 0..2 {
            assert!(all(mediator.stream(Count(1)).await.unwrap()).await.1.is_some());
        }
        assert!(mediator.stream(Count(1)).await.is_err());
        assert_eq!(mediator.stream(Other).await.is_err(), shared);
        let failed = [("type", "Count"), ("outcome", "failed")];
        assert_eq!(number(&mediator, "mediator_circuit_operations", &failed), 2.0, "shared: {shared}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_panics_counts_as_failed() {
    let settings = BreakerSettings::default().calls_min(1);
    let mediator = mediator(StreamBreaker::new(settings), |_, _| {
        Pipe::from_iter(0..2).map(|_| -> Result<u64, BoxError> { panic!("out of luck") }).boxed()
    });
    assert!(all(mediator.stream(Count(1)).await.unwrap()).await.1.is_some());
    let error = mediator.stream(Count(1)).await.map(drop).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::CircuitOpen { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_total_limit_holds_also_for_a_stream_that_never_waits() {
    let mediator = mediator(StreamTimeout::new().total(4 * SECOND), |_, _| at_once(1_000_000));
    let mut stream = mediator.stream(Count(0)).await.unwrap();
    let began = Instant::now();
    let mut items = 0;
    let error = loop {
        match stream.next().await.unwrap() {
            Ok(_) => items += 1,
            Err(error) => break error,
        }
        sleep(SECOND).await; // the reader's time counts, too
        assert!(items < 100, "it goes on and on");
    };
    assert_eq!(error.error().kind(), &ErrorKind::TimedOut { limit: 4 * SECOND });
    assert!((4..=6).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    assert_eq!(error.position(), items);
    assert!(stream.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn openings_are_counted_also_of_streams_that_were_dropped() {
    let mediator = mediator(StreamTiming::new(), |_, to| at_once(to));
    let labels = [("type", "Count")];
    for _ in 0..3 {
        drop(mediator.stream(Count(1)).await.unwrap());
    }
    all(mediator.stream(Count(1)).await.unwrap()).await;
    assert_eq!(number(&mediator, "mediator_streams_opened_total", &labels), 4.0);
}
