use std::any::Any;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use millstream_flow::flows::BoxFlow;
use millstream_flow::{BoxError, Pipe};
use millstream_mediator::{
    Backpressure, Call, Error, ErrorKind, Health, HealthBoard, ItemErrors, Mediator, Memory, PressureEvent,
    Resume, Severity, Strategy, StreamAdmission, StreamBehaviour, StreamBreaker, StreamBulkhead, StreamError,
    StreamHealth, StreamIntercept, StreamInterceptor, StreamLogging, StreamOptions, StreamRateLimit,
    StreamRequest, StreamRetries, StreamTimeout, StreamTiming, Streaming,
};
use millstream_resilience::{Backoff, BreakerSettings, Class, Classified, Retry};
use tokio::time::{Instant, sleep};

use crate::behaviours::logged;
use crate::streams::Count;

const SECOND: Duration = Duration::from_secs(1);

type Items = Pipe<BoxFlow<Result<u64, BoxError>>>;

/// A mediator with one behaviour around streams that this makes, each from the number of its opening, from 0 on.
fn mediator(
    behaviour: impl StreamBehaviour,
    make: impl Fn(u64, u64) -> Items + Send + Sync + 'static,
) -> Mediator {
    let opened = AtomicU64::new(0);
    Mediator::builder()
        .stream_behaviour(behaviour)
        .stream(move |to: Count| {
            std::future::ready(Ok::<_, Error>(make(opened.fetch_add(1, Ordering::SeqCst), to.0)))
        })
        .build()
        .unwrap()
}

fn at_once(to: u64) -> Items {
    Pipe::from_iter(0..to).map(Ok::<_, BoxError>).boxed()
}

/// An item each so long, from the first on.
fn each(time: Duration, to: u64) -> Items {
    let items = stream::unfold(0, move |n| async move {
        if n == to {
            return None;
        }
        sleep(time).await;
        Some((Ok(n), n + 1))
    });
    Pipe::from_stream(items).boxed()
}

/// Items from `from` up to where it breaks.
fn breaks_at(from: u64, at: u64) -> Items {
    Pipe::from_iter(from..=at).map(move |n| if n < at { Ok(n) } else { Err("broken".into()) }).boxed()
}

async fn all(stream: Streaming<u64>) -> (Vec<u64>, Option<StreamError>) {
    let (items, _) = stream.collect().await.unwrap();
    let mut error = None;
    let items = items.into_iter().filter_map(|item| match item {
        Ok(item) => Some(item),
        Err(last) => {
            assert!(error.is_none(), "nothing comes after the last");
            error = Some(last);
            None
        }
    });
    (items.collect(), error)
}

fn number(mediator: &Mediator, name: &str, labels: &[(&str, &str)]) -> f64 {
    mediator
        .metrics()
        .snapshot()
        .number(name, labels)
        .unwrap_or_else(|| panic!("there is no {name} {labels:?}"))
}

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
async fn a_rate_limit_delays_items() {
    let mediator = mediator(StreamRateLimit::new(10, SECOND).burst(5), |_, to| at_once(to));
    let began = Instant::now();
    assert_eq!(all(mediator.stream(Count(25)).await.unwrap()).await.0.len(), 25);
    assert!((20..=21).contains(&(began.elapsed().as_millis() / 100)), "twenty at ten a second, and the end");
}

fn retry(attempts: u32) -> Retry {
    Retry::new(attempts).backoff(Backoff::fixed(SECOND))
}

/// Counts from a position, and tells items apart by themselves.
#[derive(Clone)]
struct Numbers {
    from: u64,
}
impl StreamRequest for Numbers {
    type Item = u64;
    fn repeat(&self) -> Option<Self> {
        Some(self.clone())
    }
    fn resume(&self, position: u64) -> Option<Self> {
        Some(Numbers { from: self.from + position })
    }
    fn key(item: &u64) -> Option<u64> {
        Some(*item)
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_broke_goes_on_as_declared() {
    // The first try breaks after 5 items, the second after 7 of its own, the third gives ten from its beginning.
    for (resume, items, failed, duplicates) in [
        (Resume::Never, vec![0, 1, 2, 3, 4], true, 0.0),
        (
            Resume::Restart,
            [&[0, 1, 2, 3, 4][..], &[0, 1, 2, 3, 4, 5, 6], &(0..10).collect::<Vec<_>>()].concat(),
            false,
            0.0,
        ),
        (Resume::Position, (0..10).collect(), false, 0.0),
        (Resume::Skip, (0..10).collect(), false, 12.0),
        (Resume::Dedupe(100), (0..10).collect(), false, 12.0),
        // Of two keys only the newest two are left out.
        (
            Resume::Dedupe(2),
            vec![0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
            false,
            0.0,
        ),
    ] {
        let opened = AtomicU64::new(0);
        let mediator = Mediator::builder()
            .stream_behaviour(StreamRetries::new(retry(3), resume))
            .stream(move |asked: Numbers| {
                let pipe: Items = match opened.fetch_add(1, Ordering::SeqCst) {
                    0 => breaks_at(asked.from, 5),
                    1 => breaks_at(asked.from, 7),
                    _ => Pipe::from_iter(asked.from..10).map(Ok).boxed(),
                };
                std::future::ready(Ok::<_, Error>(pipe))
            })
            .build()
            .unwrap();
        let began = Instant::now();
        let (got, error) = all(mediator.stream(Numbers { from: 0 }).await.unwrap()).await;
        assert_eq!((got, error.is_some()), (items, failed), "{resume:?}");
        assert_eq!(began.elapsed().as_secs(), if failed { 0 } else { 2 }, "{resume:?}");
        let dropped = [("reason", "duplicate")];
        assert_eq!(number(&mediator, "mediator_stream_dropped_items", &dropped), duplicates, "{resume:?}");
        let saved = number(&mediator, "mediator_retry_attempts_total", &[("outcome", "saved")]);
        assert_eq!(saved, if failed { 0.0 } else { 2.0 }, "{resume:?}");
        assert!(mediator.describe().to_string().contains(resume.delivery()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_out_of_tries_ends_with_an_error_that_says_where() {
    let mediator = mediator(StreamRetries::new(retry(3), Resume::Skip), |opened, _| {
        breaks_at(0, if opened == 0 { 4 } else { 2 })
    });
    let (items, error) = all(mediator.stream(Count(0)).await.unwrap()).await;
    let error = error.unwrap();
    assert_eq!((items, error.position(), error.delivered()), (vec![0, 1, 2, 3], 2, 4));
    assert_eq!(number(&mediator, "mediator_retry_attempts_total", &[("outcome", "given_up")]), 1.0);
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_the_reader_costs_its_item_and_not_the_rest() {
    let mediator = mediator(StreamRetries::new(retry(3), Resume::Skip), |opened, to| {
        if opened == 0 { breaks_at(0, 5) } else { at_once(to) }
    });
    let stream = mediator.stream(Count(10)).await.unwrap().on_panic(millstream_flow::PanicPolicy::Dead);
    let (items, report) = stream
        .map(|item| {
            let item = item.unwrap();
            assert!(item != 2 && item != 7, "not this one");
            item
        })
        .collect()
        .await
        .unwrap();
    assert_eq!((items, report.ledger.dead), (vec![0, 1, 3, 4, 5, 6, 8, 9], 2));
}

#[tokio::test(start_paused = true)]
async fn tries_are_counted_anew_where_new_items_came_but_not_for_ever() {
    let mediator = mediator(StreamRetries::new(retry(2), Resume::Skip), |opened, to| {
        if opened < to { breaks_at(0, opened + 1) } else { at_once(to) }
    });
    let (items, error) = all(mediator.stream(Count(9)).await.unwrap()).await;
    assert_eq!((items.len(), error.is_none()), (9, true), "each of nine tries brought one more");

    let restarts = self::mediator(StreamRetries::new(retry(4), Resume::Restart), |_, _| breaks_at(0, 1));
    let (items, error) = all(restarts.stream(Count(9)).await.unwrap()).await;
    assert_eq!((items, error.is_some()), (vec![0; 4], true));
}

#[tokio::test(start_paused = true)]
async fn an_opening_is_tried_again_and_permanent_errors_are_not() {
    let opened = Arc::new(AtomicU64::new(0));
    let build = |permanent: bool| {
        let count = opened.clone();
        Mediator::builder()
            .stream_behaviour(StreamRetries::new(retry(3), Resume::Never))
            .stream(move |to: Count| {
                let first = count.fetch_add(1, Ordering::SeqCst) < 2;
                let class = if permanent { Class::Permanent } else { Class::Transient };
                std::future::ready(if first {
                    Err(Classified::new(class, "closed"))
                } else {
                    Ok(at_once(to.0))
                })
            })
            .build()
            .unwrap()
    };
    assert_eq!(all(build(false).stream(Count(2)).await.unwrap()).await.0, [0, 1]);
    assert_eq!(opened.swap(0, Ordering::SeqCst), 3);
    assert!(build(true).stream(Count(2)).await.is_err());
    assert_eq!(opened.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_breaker_opens_when_streams_fail_and_is_left_alone_by_those_that_gave_enough() {
    let settings = BreakerSettings::default().calls_min(2).probes(1).pause(10 * SECOND);
    for (enough, opens) in [(u64::MAX, true), (3, false)] {
        let breaker = StreamBreaker::new(settings.clone()).success_after(enough);
        let mediator = mediator(breaker, |_, to| if to == 0 { breaks_at(0, 3) } else { at_once(to) });
        for _ in 0..2 {
            all(mediator.stream(Count(0)).await.unwrap()).await;
        }
        let refused = mediator.stream(Count(1)).await.map(drop);
        assert_eq!(refused.is_err(), opens);
        if opens {
            assert_eq!(
                refused.unwrap_err().kind(),
                &ErrorKind::CircuitOpen { retry_after: Some(10 * SECOND) }
            );
            assert_eq!(number(&mediator, "mediator_circuit_operations", &[("outcome", "rejected")]), 1.0);
            sleep(10 * SECOND).await;
            assert_eq!(all(mediator.stream(Count(1)).await.unwrap()).await.0, [0]);
            assert_eq!(number(&mediator, "mediator_circuit_state", &[]), 0.0);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn retries_inside_a_breaker_retry_what_the_handler_failed_with() {
    let opened = Arc::new(AtomicU64::new(0));
    let count = opened.clone();
    let mediator = Mediator::builder()
        .stream_behaviour(StreamBreaker::new(BreakerSettings::default().calls_min(2)))
        .stream_behaviour(StreamRetries::new(retry(3), Resume::Skip))
        .stream(move |to: Count| {
            let broken = count.fetch_add(1, Ordering::SeqCst).is_multiple_of(2);
            std::future::ready(Ok::<_, Error>(if broken { breaks_at(0, 2) } else { at_once(to.0) }))
        })
        .build()
        .unwrap();
    for _ in 0..5 {
        assert_eq!(all(mediator.stream(Count(4)).await.unwrap()).await.0, [0, 1, 2, 3]);
    }
    assert_eq!(number(&mediator, "mediator_circuit_failure_rate", &[]), 0.0);
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

/// Reads nothing for a second, so that the handler runs ahead as far as it may, then the rest.
async fn slowly(mediator: &Mediator, to: u64) -> Vec<u64> {
    let mut stream = mediator.stream(Count(to)).await.unwrap();
    let mut items = vec![stream.next().await.unwrap().unwrap()];
    sleep(SECOND).await;
    while let Some(item) = stream.next().await {
        items.push(item.unwrap());
    }
    items
}

#[tokio::test(start_paused = true)]
async fn strategies_that_wait_lose_nothing_and_hold_no_more_than_they_may() {
    for (strategy, ahead) in [(Strategy::Buffer, 10), (Strategy::Block, 8), (Strategy::Throttle, 8)] {
        let made = Arc::new(AtomicU64::new(0));
        let count = made.clone();
        let mediator = mediator(Backpressure::new(strategy, 10), move |_, to| {
            let count = count.clone();
            Pipe::from_iter(0..to).inspect(move |_| _ = count.fetch_add(1, Ordering::SeqCst)).map(Ok).boxed()
        });
        let mut stream = mediator.stream(Count(1000)).await.unwrap();
        assert_eq!(made.load(Ordering::SeqCst), 0, "nothing runs before it is asked");
        stream.next().await.unwrap().unwrap();
        sleep(SECOND).await;
        // What was taken, what waits, and one chunk at either side.
        let most = 1 + ahead + 64 + 64;
        assert!(made.load(Ordering::SeqCst) <= most, "{strategy}: {made:?} items were made");
        let (rest, error) = all(stream).await;
        assert_eq!((rest.len(), error.is_none()), (999, true), "{strategy}");
        assert_eq!(number(&mediator, "mediator_stream_dropped_items", &[("reason", "backpressure")]), 0.0);
        assert!(
            number(&mediator, "mediator_stream_backpressure_events", &[("type", "Count")]) >= 1.0,
            "{strategy}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn strategies_that_drop_count_what_they_dropped_and_nothing_more() {
    for (strategy, first, last) in [
        (Strategy::DropOldest, None, Some(999)),
        (Strategy::DropNewest, Some(1), None),
        (Strategy::Sample(NonZeroU64::new(10).unwrap()), Some(1), None),
    ] {
        let mediator = mediator(Backpressure::new(strategy, 10).marks(0.5, 0.2), |_, to| at_once(to));
        let items = slowly(&mediator, 1000).await;
        assert!(items.is_sorted() && items.len() < 1000, "{strategy}: {items:?}");
        if let Some(last) = last {
            assert_eq!(items.last(), Some(&last), "{strategy}");
        }
        if let Some(first) = first {
            assert_eq!(items.get(1), Some(&first), "{strategy}");
        }
        let dropped = number(&mediator, "mediator_stream_dropped_items", &[("reason", "backpressure")]);
        assert_eq!(dropped as usize + items.len(), 1000, "{strategy}");
        // Room again: nothing is dropped because something once was.
        let slow = self::mediator(Backpressure::new(strategy, 10), |_, to| each(SECOND, to));
        assert_eq!(slowly(&slow, 100).await.len(), 100, "{strategy}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_is_never_dropped() {
    let mediator = mediator(Backpressure::new(Strategy::DropNewest, 2), |_, _| breaks_at(0, 500));
    let mut stream = mediator.stream(Count(0)).await.unwrap();
    stream.next().await.unwrap().unwrap();
    sleep(SECOND).await;
    assert!(all(stream).await.1.is_some());
}

#[tokio::test(start_paused = true)]
async fn pressure_is_told_with_marks_triggers_and_fallback() {
    let events = Arc::new(Mutex::new(Vec::new()));
    let told = events.clone();
    let rule = Backpressure::new(Strategy::Block, 10)
        .marks(0.8, 0.2)
        .fallback(5 * SECOND, Strategy::DropNewest)
        .on_event(move |about, event| {
            let word = match event {
                PressureEvent::Entered(pressure) => format!("entered at {}", pressure.len),
                PressureEvent::Left(pressure) => format!("left at {}", pressure.len),
                PressureEvent::FellBack(strategy, _) => format!("{strategy} for {}", about.name),
                _ => "else".into(),
            };
            told.lock().unwrap().push(word);
        });
    let mediator = mediator(rule, |_, to| at_once(to));
    let mut stream = mediator.stream(Count(1000)).await.unwrap();
    stream.next().await.unwrap().unwrap();
    sleep(SECOND).await;
    assert_eq!(events.lock().unwrap().len(), 1, "{events:?}");
    sleep(5 * SECOND).await;
    let (rest, _) = all(stream).await;
    assert!(rest.len() < 999, "it fell back to dropping");
    assert_eq!(events.lock().unwrap()[..2], ["entered at 8", "drop newest for Count"]);

    let triggered = Arc::new(Mutex::new(Vec::new()));
    let told = triggered.clone();
    let rule = Backpressure::new(Strategy::Block, 1000)
        .trigger(|pressure| pressure.len >= 3)
        .on_event(move |_, event| told.lock().unwrap().push(*event));
    let mediator = self::mediator(rule, |_, to| each(SECOND, to));
    let mut stream = mediator.stream(Count(20)).await.unwrap();
    stream.next().await.unwrap().unwrap();
    sleep(100 * SECOND).await;
    let (rest, _) = all(stream).await;
    assert_eq!(rest.len(), 19, "a trigger holds back and loses nothing");
    assert!(matches!(triggered.lock().unwrap()[0], PressureEvent::Entered(pressure) if pressure.len == 3));
}

#[tokio::test(start_paused = true)]
async fn what_waits_in_a_buffer_counts_as_held_memory() {
    let memory = Memory::new(1 << 20);
    let mediator =
        mediator(Backpressure::new(Strategy::Buffer, 100).memory(memory.clone()), |_, to| at_once(to));
    let mut stream = mediator.stream(Count(1000)).await.unwrap();
    stream.next().await.unwrap().unwrap();
    sleep(SECOND).await;
    let items = memory.used() / size_of::<Result<u64, StreamError>>() as u64;
    assert!((88..=100).contains(&items), "{items} wait");
    assert_eq!(number(&mediator, "mediator_stream_buffer_size", &[]), 100.0);
    assert_eq!(number(&mediator, "mediator_stream_buffer_usage", &[]), 100.0);
    drop(stream);
    tokio::task::yield_now().await;
    assert_eq!(memory.used(), 0);
}

fn reports() -> (
    Arc<Mutex<Vec<StreamHealth>>>,
    impl Fn(StreamHealth) -> std::future::Ready<()> + Clone + Send + Sync + 'static,
) {
    let reports = Arc::new(Mutex::new(Vec::new()));
    let tell = reports.clone();
    (reports, move |health| {
        tell.lock().unwrap().push(health);
        std::future::ready(())
    })
}

#[tokio::test(start_paused = true)]
async fn a_stall_is_found_by_the_clock_and_taken_back_with_hysteresis() {
    let (reports, report) = reports();
    let board = HealthBoard::default();
    let health = Health::new(SECOND).stall(3 * SECOND).recover_after(3).report(report).board(&board);
    // One item, ten seconds nothing, then an item each half second.
    let mediator = mediator(health, |_, to| {
        let items = stream::iter(0..to).then(|n| async move {
            sleep(match n {
                0 => Duration::from_millis(100),
                1 => 10 * SECOND,
                _ => SECOND / 2,
            })
            .await;
            Ok(n)
        });
        Pipe::from_stream(items).boxed()
    });
    let reading = tokio::spawn(all(mediator.stream(Count(40)).await.unwrap()));
    sleep(Duration::from_millis(8500)).await;
    assert!(!board.is_ready());
    let found = board.open();
    assert_eq!((found[0].severity, found[0].items, found[0].warnings.len()), (Severity::Unhealthy, 1, 1));
    reading.await.unwrap();
    let reports = reports.lock().unwrap();
    let told: Vec<_> =
        reports.iter().map(|health| (health.severity, health.seconds.round() as u64)).collect();
    assert_eq!(told, [(Severity::Unhealthy, 4), (Severity::Healthy, 13)], "three checks after it moved");
    assert!(board.is_ready() && board.open().is_empty());
    assert_eq!((board.ended()[0].ended, board.ended()[0].items), (Some("ok"), 40));
}

#[tokio::test(start_paused = true)]
async fn throughput_errors_and_memory_are_each_found() {
    let memory = Memory::new(1 << 30);
    let (slow, report) = reports();
    let mediator_of = |health: Health| {
        let opened = memory.clone();
        Mediator::builder()
            .stream_behaviour(health)
            .stream_options::<Count>(StreamOptions::new().item_errors(ItemErrors::pass()))
            .stream(move |to: Count| {
                let (memory, mut held) = (opened.clone(), Vec::new());
                let items = stream::iter(0..to.0).then(async |n| {
                    sleep(SECOND / 2).await;
                    if n % 4 == 0 { Err(BoxError::from("bad")) } else { Ok(n) }
                });
                let items = items.inspect(move |_| held.push(memory.reserve(1000)));
                std::future::ready(Ok::<_, Error>(Pipe::from_stream(items).boxed()))
            })
            .build()
            .unwrap()
    };
    for (health, severity, text) in [
        (Health::new(10 * SECOND).throughput(10.0), Severity::Degraded, "items/s, fewer than 10"),
        (Health::new(10 * SECOND).error_rate(0.1), Severity::Unhealthy, "of the items fail, more than 10 %"),
        (Health::new(10 * SECOND).memory_growth(&memory, 5_000), Severity::Degraded, "more than 5000"),
    ] {
        slow.lock().unwrap().clear();
        let tell = report.clone();
        let mediator = mediator_of(health.report(tell));
        mediator.stream(Count(40)).await.unwrap().for_each(drop).await.unwrap();
        let reports = slow.lock().unwrap();
        assert_eq!(reports[0].severity, severity, "{text}");
        assert!(reports[0].warnings[0].to_string().contains(text), "{:?}", reports[0].warnings);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_nobody_reads_is_well_and_a_slow_reporter_stalls_nobody() {
    let health = Health::new(SECOND).stall(2 * SECOND).throughput(5.0).report(|_| std::future::pending());
    let mediator = mediator(health, |_, to| {
        if to == 0 { Pipe::from_stream(stream::pending()).boxed() } else { each(SECOND / 10, to) }
    });
    let (text, _guard) = logged(tracing::Level::INFO);
    let mut stream = mediator.stream(Count(50)).await.unwrap();
    stream.next().await.unwrap().unwrap();
    sleep(60 * SECOND).await;
    assert_eq!(text(), "");
    let began = Instant::now();
    all(stream).await;
    assert!(began.elapsed() <= 5 * SECOND);
    let mut stalled = mediator.stream(Count(0)).await.unwrap();
    assert!(tokio::time::timeout(20 * SECOND, stalled.next()).await.is_err());
    assert!(text().contains("a health reporter took longer than an interval"), "{}", text());
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
