//! What is told and counted of streams.

use super::*;

#[tokio::test(start_paused = true)]
async fn logging_tells_of_streams_by_items_by_time_and_at_the_end() {
    use tracing::Level;
    let logging =
        StreamLogging::new().every_items(2).every(3 * SECOND).level(Level::INFO).progress(Level::WARN);
    let mediator = mediator(logging, |_, to| each(2 * SECOND, to));
    let (text, _guard) = logged(Level::INFO);
    all(mediator.stream(Count(3)).await.unwrap()).await;
    let text = text();
    let lines: Vec<_> = text.lines().map(|line| line.split_once(": ").unwrap().1).collect();
    let parts = ["a stream is open", "items=1", "items=2", "items=", "a stream has ended"];
    assert_eq!(lines.len(), parts.len(), "{text}");
    for (line, part) in lines.iter().zip(parts) {
        assert!(line.contains(part) && line.contains("stream=Count"), "{line} has no {part}");
    }
    assert!(
        lines[4].contains("outcome=\"ok\" items=3 rate=0.5") && lines[4].contains("first=Some(2s)"),
        "{text}"
    );
}

#[tokio::test(start_paused = true)]
async fn logging_tells_why_a_stream_failed_and_that_it_was_dropped() {
    let mediator = mediator(StreamLogging::new(), |_, _| breaks_at(0, 2));
    let (text, _guard) = logged(tracing::Level::INFO);
    all(mediator.stream(Count(0)).await.unwrap()).await;
    mediator.stream(Count(0)).await.unwrap().next().await;
    let text = text();
    assert!(text.contains("a stream has failed") && text.contains("failed: broken"), "{text}");
    assert!(text.contains("outcome=\"cancelled\" items=1"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn timing_counts_streams_and_shows_throughput_and_latency() {
    let mediator = mediator(StreamTiming::new().interval(10 * SECOND), |_, to| each(SECOND / 2, to));
    let mut stream = mediator.stream(Count(30)).await.unwrap();
    for _ in 0..25 {
        stream.next().await;
    }
    let labels = [("type", "Count")];
    assert_eq!(number(&mediator, "mediator_active_streams", &labels), 1.0);
    assert_eq!(number(&mediator, "mediator_stream_throughput", &labels), 2.0);
    assert_eq!(number(&mediator, "mediator_stream_latency", &labels), 500.0);
    while stream.next().await.is_some() {}
    let ended = [("type", "Count"), ("status", "ok")];
    assert_eq!(number(&mediator, "mediator_streams_total", &ended), 1.0);
    assert_eq!(number(&mediator, "mediator_stream_items_total", &labels), 30.0);
    assert_eq!(number(&mediator, "mediator_active_streams", &labels), 0.0);
    assert_eq!(number(&mediator, "mediator_stream_duration_seconds", &labels), 1.0);
    assert_eq!(number(&mediator, "mediator_stream_first_item_seconds", &labels), 1.0);
    drop(mediator.stream(Count(1)).await.unwrap());
    assert_eq!(number(&mediator, "mediator_streams_total", &[("status", "cancelled")]), 1.0);
}

#[tokio::test(start_paused = true)]
async fn throughput_is_that_of_all_streams_of_a_type_together() {
    let mediator = mediator(StreamTiming::new().interval(10 * SECOND), |_, to| each(SECOND / 2, to));
    sleep(1000 * SECOND).await; // the time before the first one does not count
    let read = async || all(mediator.stream(Count(30)).await.unwrap()).await;
    let look = async {
        sleep(12 * SECOND).await;
        assert_eq!(number(&mediator, "mediator_active_streams", &[]), 3.0);
        let throughput = number(&mediator, "mediator_stream_throughput", &[]);
        assert!((5.7..=6.0).contains(&throughput), "{throughput} items/s");
        assert_eq!(number(&mediator, "mediator_stream_latency", &[]), 500.0);
    };
    tokio::join!(read(), read(), read(), look);
}

#[tokio::test(start_paused = true)]
async fn timing_warns_by_the_clock_though_nothing_comes() {
    let timing =
        StreamTiming::new().first_item(5 * SECOND).throughput(10.0).interval(30 * SECOND).total(100 * SECOND);
    let mediator = mediator(timing, |_, _| Pipe::from_stream(stream::pending()).boxed());
    let mut stream = mediator.stream(Count(1)).await.unwrap();
    let warned = |warning| number(&mediator, "mediator_slow_streams_total", &[("warning", warning)]);
    for (seconds, first, throughput, total) in
        [(4, 0.0, 0.0, 0.0), (2, 1.0, 0.0, 0.0), (25, 1.0, 1.0, 0.0), (70, 1.0, 3.0, 1.0)]
    {
        assert!(tokio::time::timeout(seconds * SECOND, stream.next()).await.is_err());
        assert_eq!((warned("first_item"), warned("throughput"), warned("total")), (first, throughput, total));
    }
}

#[tokio::test]
async fn an_interceptor_sees_request_items_and_end() {
    #[derive(Default, Clone)]
    struct Sees(Arc<Mutex<Vec<String>>>);
    impl StreamInterceptor for Sees {
        fn request(&self, _: &Call<'_>, request: &mut dyn Any) -> Result<(), BoxError> {
            let count = request.downcast_mut::<Count>().unwrap();
            count.0 += 1;
            if count.0 > 10 { Err("too many".into()) } else { Ok(()) }
        }
        fn item(&self, _: &Call<'_>, item: &mut dyn Any) {
            *item.downcast_mut::<u64>().unwrap() *= 10;
        }
        fn end(&self, call: &Call<'_>, error: Option<&StreamError>) {
            self.0.lock().unwrap().push(format!("{} {}", call.about().name, error.is_some()));
        }
    }
    let sees = Sees::default();
    let mediator =
        mediator(
            StreamIntercept::new(sees.clone()),
            |_, to| if to == 5 { breaks_at(0, 1) } else { at_once(to) },
        );
    assert_eq!(all(mediator.stream(Count(2)).await.unwrap()).await.0, [0, 10, 20]);
    assert_eq!(all(mediator.stream(Count(4)).await.unwrap()).await.0, [0]);
    assert_eq!(mediator.stream(Count(10)).await.map(drop).unwrap_err().kind(), &ErrorKind::Invalid);
    assert_eq!(*sees.0.lock().unwrap(), ["Count false", "Count true"]);
}

#[tokio::test(start_paused = true)]
async fn streams_shorter_than_an_interval_are_shown_each_and_nothing_when_they_are_long_over() {
    let mediator = mediator(StreamTiming::new().interval(10 * SECOND), |_, to| each(SECOND / to as u32, to));
    let shown = || {
        let number = |name| number(&mediator, name, &[("type", "Count")]);
        (number("mediator_stream_throughput"), number("mediator_stream_latency"))
    };
    for (items, throughput, latency) in [(2, 2.0, 500.0), (10, 10.0, 100.0), (4, 4.0, 250.0)] {
        all(mediator.stream(Count(items)).await.unwrap()).await;
        assert_eq!(shown(), (throughput, latency));
        sleep(3 * SECOND).await;
        // One that nobody reads says nothing of speed.
        drop(mediator.stream(Count(1)).await.unwrap());
        assert_eq!(shown(), (throughput, latency));
    }
    sleep(8 * SECOND).await;
    assert_eq!(shown(), (0.0, 0.0), "an interval has passed without any");
}

#[tokio::test(start_paused = true)]
async fn short_streams_of_which_one_is_always_open_are_shown_each_interval() {
    let mediator = mediator(StreamTiming::new().interval(10 * SECOND), |_, to| each(SECOND / 2, to));
    let read = async |first: u64| {
        sleep(first as u32 * SECOND).await;
        for _ in 0..10 {
            all(mediator.stream(Count(8)).await.unwrap()).await; // 4 s each
        }
    };
    let look = async {
        for _ in 0..3 {
            sleep(12 * SECOND).await;
            let throughput = number(&mediator, "mediator_stream_throughput", &[]);
            assert!((3.3..=4.3).contains(&throughput), "{throughput} items/s");
        }
    };
    tokio::join!(read(0), read(2), look);
}

#[tokio::test(start_paused = true)]
async fn time_before_anybody_asks_is_not_that_of_a_first_item() {
    let timing = StreamTiming::new().first_item(5 * SECOND);
    let mediator = mediator(timing, |_, _| each(6 * SECOND, 1));
    let warned = || number(&mediator, "mediator_slow_streams_total", &[("warning", "first_item")]);
    let mut stream = mediator.stream(Count(0)).await.unwrap();
    sleep(12 * SECOND).await;
    let mut first = std::pin::pin!(stream.next());
    assert!(tokio::time::timeout(SECOND * 49 / 10, first.as_mut()).await.is_err());
    assert_eq!(warned(), 0.0);
    assert!(tokio::time::timeout(SECOND / 2, first.as_mut()).await.is_err());
    assert_eq!(warned(), 1.0, "five seconds after it was asked for");
    first.await.unwrap().unwrap();
    let snapshot = mediator.metrics().snapshot().to_string();
    assert!(snapshot.contains("mediator_stream_first_item_seconds_sum{type=\"Count\"} 6\n"), "{snapshot}");
}

#[tokio::test(start_paused = true)]
async fn each_item_is_counted_by_how_long_it_was_waited_for_within_bounds_as_they_are_set() {
    let timing = StreamTiming::new().bounds(&[SECOND, 20 * SECOND]).item_bounds(&[SECOND, 2 * SECOND]);
    // Three at once, one after 2 s, 3,000 more with one after 5 s.
    let mediator = mediator(timing, |_, _| {
        let after = |seconds, item| {
            stream::once(async move {
                sleep(seconds * SECOND).await;
                item
            })
        };
        let items = stream::iter(0..3).chain(after(2, 3)).chain(after(5, 4)).chain(stream::iter(5..3005));
        Pipe::from_stream(Box::pin(items)).map(Ok).boxed()
    });
    let counts = |name: &str| {
        let text = mediator.metrics().snapshot().to_string();
        let lines = text.lines().filter_map(|line| line.strip_prefix(&format!("{name}_")));
        lines.map(|line| line.replace("type=\"Count\"", "")).collect::<Vec<_>>()
    };
    let mut stream = mediator.stream(Count(0)).await.unwrap();
    while stream.next().await.is_some() {}
    assert_eq!(
        counts("mediator_stream_item_wait_seconds"),
        [
            "bucket{,le=\"1\"} 3003",
            "bucket{,le=\"2\"} 3004",
            "bucket{,le=\"+Inf\"} 3005",
            "sum{} 7",
            "count{} 3005"
        ]
    );
    let buckets = |name| counts(name)[..3].join(" ");
    assert_eq!(
        buckets("mediator_stream_duration_seconds"),
        "bucket{,le=\"1\"} 0 bucket{,le=\"20\"} 1 bucket{,le=\"+Inf\"} 1"
    );
    assert_eq!(
        buckets("mediator_stream_first_item_seconds"),
        "bucket{,le=\"1\"} 1 bucket{,le=\"2\"} 1 bucket{,le=\"+Inf\"} 1"
    );
}

/// Panics at an item, an end, or a request.
struct Fussy(&'static str);

impl StreamInterceptor for Fussy {
    fn request(&self, _: &Call<'_>, _: &mut dyn Any) -> Result<(), BoxError> {
        assert!(self.0 != "request", "not this request");
        Ok(())
    }
    fn item(&self, _: &Call<'_>, item: &mut dyn Any) {
        assert!(self.0 != "item" || item.downcast_ref() != Some(&2_u64), "not this item");
    }
    fn end(&self, _: &Call<'_>, _: Option<&StreamError>) {
        assert!(self.0 != "end", "no end");
    }
}

#[tokio::test]
async fn a_panic_of_a_behaviour_is_the_streams_end_and_not_its_readers() {
    // Those around hear of a hook that panics at an item. One that panics at the end ends nothing that was open.
    for (at, items, status) in [("item", 2, "panicked"), ("end", 4, "cancelled")] {
        let mediator = Mediator::builder()
            .stream_behaviour(StreamTiming::new())
            .stream_behaviour(StreamIntercept::new(Fussy(at)))
            .stream(async |to: Count| Ok::<_, Error>(at_once(to.0)))
            .build()
            .unwrap();
        let mut stream = mediator.stream(Count(4)).await.unwrap();
        let mut got = Vec::new();
        while let Some(item) = stream.next().await {
            got.push(item);
        }
        let error = got.pop().unwrap().unwrap_err();
        assert_eq!((error.error().kind(), error.is_last()), (&ErrorKind::Panicked, true), "{at}");
        assert_eq!((error.position(), error.delivered(), got.len()), (items, items, items as usize), "{at}");
        assert_eq!(number(&mediator, "mediator_streams_total", &[("status", status)]), 1.0, "{at}");
    }
    let refused = mediator(StreamIntercept::new(Fussy("request")), |_, to| at_once(to));
    assert_eq!(refused.stream(Count(4)).await.map(drop).unwrap_err().kind(), &ErrorKind::Panicked);
}
