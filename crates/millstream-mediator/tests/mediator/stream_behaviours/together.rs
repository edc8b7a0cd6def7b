//! Behaviours of streams around one another.

use super::attempts::Numbers;
use super::*;

#[tokio::test(start_paused = true)]
async fn a_limit_inside_of_retries_takes_none_of_their_items() {
    let opened = AtomicU64::new(0);
    let mediator = Mediator::builder()
        .stream_behaviour(StreamRetries::new(retry(3), Resume::Position))
        .stream_behaviour(StreamTimeout::new().total(4 * SECOND))
        .stream(move |Numbers { from }| {
            let first = opened.fetch_add(1, Ordering::SeqCst) == 0;
            let pipe: Items =
                if first { breaks_at(from, 1) } else { Pipe::from_iter(from..20).map(Ok).boxed() };
            std::future::ready(Ok::<_, Error>(pipe))
        })
        .build()
        .unwrap();
    let mut stream = mediator.stream(Numbers { from: 0 }).await.unwrap();
    let mut items = Vec::new();
    while let Some(item) = stream.next().await {
        items.push(item.unwrap());
        sleep(SECOND).await; // so that each try is too late after some items, while the next is there
    }
    assert_eq!(items, (0..20).collect::<Vec<_>>());
}

/// May be opened anew once.
struct Once(bool);

impl StreamRequest for Once {
    type Item = u64;
    fn repeat(&self) -> Option<Self> {
        self.0.then_some(Once(false))
    }
}

fn attempts(mediator: &Mediator) -> [Option<f64>; 4] {
    ["again", "saved", "given_up", "unrepeatable"].map(|outcome| {
        mediator.metrics().snapshot().number("mediator_retry_attempts_total", &[("outcome", outcome)])
    })
}

#[tokio::test(start_paused = true)]
async fn each_stream_that_was_opened_again_has_one_outcome() {
    const ONE: Option<f64> = Some(1.0);
    type Make = fn(u64) -> Result<Items, Classified>;
    let cases: [(&str, Resume, Make, _); 4] = [
        (
            "it ends well without another item",
            Resume::Skip,
            |opened| Ok(if opened == 0 { breaks_at(0, 3) } else { at_once(3) }),
            [ONE, ONE, None, None],
        ),
        (
            "it opens, and is empty",
            Resume::Never,
            |opened| {
                if opened == 0 { Err(Classified::new(Class::Transient, "closed")) } else { Ok(at_once(0)) }
            },
            [ONE, ONE, None, None],
        ),
        (
            "it fails for good",
            Resume::Skip,
            |opened| {
                if opened == 0 {
                    Ok(breaks_at(0, 3))
                } else {
                    Err(Classified::new(Class::Permanent, "wrong"))
                }
            },
            [ONE, None, ONE, None],
        ),
        ("it may not be opened again", Resume::Never, |_| Ok(breaks_at(0, 3)), [None, None, None, ONE]),
    ];
    for (words, resume, make, outcomes) in cases {
        let opened = AtomicU64::new(0);
        let mediator = Mediator::builder()
            .stream_behaviour(StreamRetries::new(retry(3), resume))
            .stream(move |_: Count| std::future::ready(make(opened.fetch_add(1, Ordering::SeqCst))))
            .build()
            .unwrap();
        all(mediator.stream(Count(0)).await.unwrap()).await;
        assert_eq!(attempts(&mediator), outcomes, "{words}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_opening_that_may_not_be_asked_for_again_fails_at_once() {
    let mediator = Mediator::builder()
        .stream_behaviour(StreamRetries::new(retry(3), Resume::Skip))
        .stream(async |_: Once| Err::<Items, _>("closed"))
        .build()
        .unwrap();
    let began = Instant::now();
    assert!(mediator.stream(Once(true)).await.is_err());
    assert_eq!((began.elapsed(), attempts(&mediator)), (Duration::ZERO, [None, None, None, Some(1.0)]));
}

/// Panics when a stream has ended.
struct NoEnd;

impl StreamInterceptor for NoEnd {
    fn end(&self, _: &Call<'_>, _: Option<&StreamError>) {
        panic!("no end")
    }
}

#[tokio::test(start_paused = true)]
async fn a_hook_that_panics_at_an_error_takes_it_from_nobody() {
    let mediator = mediator(StreamIntercept::new(NoEnd), |_, _| breaks_at(0, 2));
    let (text, _guard) = logged(tracing::Level::ERROR);
    let (items, error) = all(mediator.stream(Count(0)).await.unwrap()).await;
    let error = error.unwrap();
    assert_eq!((items, error.error().kind(), error.position()), (vec![0, 1], &ErrorKind::Failed, 2));
    assert!(text().contains("no end"), "{}", text());

    let mediator = Mediator::builder()
        .stream_behaviour(StreamRetries::new(retry(3), Resume::Skip))
        .stream_behaviour(StreamIntercept::new(NoEnd))
        .stream(async |_: Count| Ok::<_, Error>(breaks_at(0, 2)))
        .build()
        .unwrap();
    assert!(all(mediator.stream(Count(0)).await.unwrap()).await.1.is_some());
    assert_eq!(attempts(&mediator)[0], Some(2.0), "who stands around hears of the failure");
}

#[tokio::test(start_paused = true)]
async fn ways_to_fail_that_no_stream_knew_have_no_series() {
    let mediator = mediator(StreamTiming::new(), |_, to| if to == 0 { breaks_at(0, 2) } else { at_once(to) });
    let total = |status| {
        mediator
            .metrics()
            .snapshot()
            .number("mediator_streams_total", &[("type", "Count"), ("status", status)])
    };
    assert_eq!(["ok", "failed", "timed_out", "cancelled"].map(total), [Some(0.0), None, None, None]);
    all(mediator.stream(Count(0)).await.unwrap()).await;
    assert_eq!(["ok", "failed", "timed_out", "cancelled"].map(total), [Some(0.0), Some(1.0), None, None]);
}

#[tokio::test(start_paused = true)]
async fn two_buffers_around_one_type_show_all_that_waits_and_the_fuller_of_them() {
    let mediator = Mediator::builder()
        .stream_behaviour(Backpressure::new(Strategy::Buffer, 100))
        .stream_behaviour(Backpressure::new(Strategy::Buffer, 10))
        .stream(async |to: Count| Ok::<_, Error>(at_once(to.0)))
        .build()
        .unwrap();
    let mut stream = mediator.stream(Count(1000)).await.unwrap();
    stream.next().await.unwrap().unwrap();
    sleep(SECOND).await;
    let labels = [("type", "Count")];
    let (size, usage) = ("mediator_stream_buffer_size", "mediator_stream_buffer_usage");
    let size = number(&mediator, size, &labels);
    assert!((105.0..=110.0).contains(&size), "{size} items wait");
    assert_eq!(number(&mediator, usage, &labels), 100.0);
}

#[tokio::test(start_paused = true)]
async fn of_two_timings_around_one_type_one_is_shown_and_both_warn() {
    let timing = |seconds| StreamTiming::new().interval(seconds * SECOND).first_item(SECOND);
    let mediator = Mediator::builder()
        .stream_behaviour(timing(1000))
        .stream_behaviour(timing(10))
        .stream(async |to: Count| Ok::<_, Error>(each(2 * SECOND, to.0)))
        .build()
        .unwrap();
    let mut stream = mediator.stream(Count(10)).await.unwrap();
    for _ in 0..8 {
        stream.next().await.unwrap().unwrap();
    }
    let shown = |name: &str| number(&mediator, &format!("mediator_{name}"), &[("type", "Count")]);
    assert_eq!((shown("active_streams"), shown("streams_opened_total")), (1.0, 1.0));
    assert_eq!(shown("stream_items_total"), 8.0);
    assert!((0.4..=0.5).contains(&shown("stream_throughput")), "{} items/s", shown("stream_throughput"));
    assert_eq!(shown("stream_latency"), 2000.0);
    assert_eq!(number(&mediator, "mediator_slow_streams_total", &[("warning", "first_item")]), 2.0);
    drop(stream);
    assert_eq!(number(&mediator, "mediator_streams_total", &[("status", "cancelled")]), 1.0);
}

#[tokio::test(start_paused = true)]
async fn the_first_item_that_is_told_is_waited_for_from_when_somebody_asks() {
    let mediator = mediator(StreamLogging::new(), |_, to| each(2 * SECOND, to));
    let (text, _guard) = logged(tracing::Level::INFO);
    let stream = mediator.stream(Count(1)).await.unwrap();
    sleep(10 * SECOND).await;
    all(stream).await;
    assert!(text().contains("first=Some(2s)"), "{}", text());
}

#[tokio::test(start_paused = true)]
async fn items_that_passed_before_a_behaviour_panicked_are_counted() {
    let mediator = Mediator::builder()
        .stream_behaviour(StreamTiming::new())
        .stream_behaviour(StreamIntercept::new(NoEnd))
        .stream(async |to: Count| Ok::<_, Error>(at_once(to.0)))
        .build()
        .unwrap();
    let (items, error) = all(mediator.stream(Count(4)).await.unwrap()).await;
    assert_eq!((items.len(), error.unwrap().error().kind()), (4, &ErrorKind::Panicked));
    assert_eq!(number(&mediator, "mediator_stream_items_total", &[("type", "Count")]), 4.0);
}
