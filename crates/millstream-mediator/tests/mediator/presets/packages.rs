//! The packages of streams, each value by its effect.

use futures_util::stream;
use millstream_flow::flows::BoxFlow;
use tracing::Level;

use super::*;
use crate::support::logged;

type Items = Pipe<BoxFlow<Result<u64, BoxError>>>;

/// What a package sets, in numbers.
#[derive(Debug, Clone, Copy)]
struct Numbers {
    platinum: bool,
    /// Progress each so many items, and each so many seconds.
    items: u64,
    every: u32,
    /// Warnings: the first item, items a second in so long, all of it.
    first: u32,
    rate: u64,
    interval: u32,
    total: Option<u32>,
    /// The breaker's percent, window and pause.
    percent: u64,
    window: u32,
    pause: u32,
    /// The first delay of three tries, and the time for them.
    delay: u32,
    within: u32,
}

const PACKAGES: [Numbers; 2] = [
    Numbers {
        platinum: false,
        items: 1000,
        every: 30,
        first: 5,
        rate: 10,
        interval: 30,
        total: Some(300),
        percent: 60,
        window: 300,
        pause: 120,
        delay: 2,
        within: 300,
    },
    Numbers {
        platinum: true,
        items: 2500,
        every: 45,
        first: 3,
        rate: 50,
        interval: 20,
        total: None,
        percent: 50,
        window: 180,
        pause: 60,
        delay: 1,
        within: 180,
    },
];

/// A mediator with the package around a handler of which each call makes a stream, or takes so long to fail.
fn around<F>(numbers: Numbers, make: impl Fn(Count) -> F + Send + Sync + 'static) -> Mediator
where
    F: Future<Output = Result<Items, BoxError>> + Send + 'static,
{
    let builder = Mediator::builder();
    if numbers.platinum {
        let package = StreamPackage::platinum(Resume::Skip);
        let memory = Memory::new(1 << 30);
        builder
            .platinum_package(&package, BackpressurePreset::Balanced, &memory)
            .stream(make)
            .build()
            .unwrap()
    } else {
        builder.stream_package(&StreamPackage::resilience(Resume::Skip)).stream(make).build().unwrap()
    }
}

/// An item each so long.
fn each(time: Duration) -> Items {
    let items = stream::unfold(0, move |n| async move {
        sleep(time).await;
        Some((Ok(n), n + 1))
    });
    Pipe::from_stream(items).boxed()
}

fn ready(items: Items) -> std::future::Ready<Result<Items, BoxError>> {
    std::future::ready(Ok(items))
}

/// A stream of one item each; for 0, one that breaks at once, and cannot be helped by another try.
fn one_or_broken(to: Count) -> std::future::Ready<Result<Items, BoxError>> {
    std::future::ready(if to.0 > 0 {
        Ok(Pipe::from_iter(0..1).map(Ok).boxed())
    } else {
        Err("broken".into())
    })
}

async fn read(mediator: &Mediator, count: u64) -> Result<usize, ErrorKind> {
    match mediator.stream(Count(count)).await {
        Ok(stream) => Ok(stream.count().await),
        Err(error) => Err(error.kind().clone()),
    }
}

fn state(mediator: &Mediator) -> f64 {
    number(mediator, "mediator_circuit_state", &[])
}

#[test]
fn stream_packages_print_what_they_stand_around_streams() {
    assert_eq!(
        StreamPackage::resilience(Resume::Position).to_string(),
        "logging each 1000 items each 30s\n\
         timing, first item within 5s, at least 10 items/s, each 30s, done within 300s\n\
         breaker opens at 60% failures of at least 3 in 300s; open 120s each time, then 2 probes\n\
         retry up to 3 attempts, exponential from 2s to 30s, within 300s, exactly once, by position\n"
    );
    let platinum = StreamPackage::platinum(Resume::Never);
    assert_eq!(
        platinum.to_string(),
        "logging each 2500 items each 45s\n\
         timing, first item within 3s, at least 50 items/s, each 20s\n\
         breaker opens at 50% failures of at least 3 in 180s; open 60s each time, then 2 probes\n\
         retry up to 3 attempts, exponential from 1s to 30s, within 180s, at most once\n"
    );
    let mediator = around(PACKAGES[1], |_| ready(each(SECOND)));
    let names = mediator.describe().lines[0].behaviours.join(" > ");
    let between = "each 20s > health each 30s, stall 120s, at least 50 items/s, errors 5%, growth 200 MiB > \
                   backpressure buffer 10000 80%/50% > held back within 1024 MiB > breaker";
    assert!(names.contains(between), "{names}");
}

#[tokio::test(start_paused = true)]
async fn stream_packages_tell_of_progress_by_items_and_by_time() {
    for numbers in PACKAGES {
        let (text, _guard) = logged(Level::DEBUG);
        let told = || text().lines().filter(|line| line.contains("a stream flows")).count();
        let at_once = around(numbers, |to| ready(Pipe::from_iter(0..to.0).map(Ok).boxed()));
        read(&at_once, numbers.items - 1).await.unwrap();
        assert_eq!(told(), 0, "{numbers:?}");
        read(&at_once, 3 * numbers.items).await.unwrap();
        assert_eq!(told(), 3, "{numbers:?}");

        let silent = around(numbers, |_| ready(Pipe::from_stream(stream::pending()).boxed()));
        let open = silent.stream(Count(1)).await.unwrap();
        let every = numbers.every * SECOND;
        for (passes, expected) in [(every - SECOND, 3), (2 * SECOND, 4), (every, 5)] {
            sleep(passes).await;
            assert_eq!(told(), expected, "{numbers:?}");
        }
        drop(open);
    }
}

#[tokio::test(start_paused = true)]
async fn stream_packages_warn_of_late_and_slow_and_long_streams() {
    let warned = |mediator: &Mediator, warning| {
        number(mediator, "mediator_slow_streams_total", &[("warning", warning)])
    };
    for numbers in PACKAGES {
        let Numbers { first, rate, interval, total, .. } = numbers;
        for (takes, late) in [(first * SECOND - SECOND / 10, 0.0), (first * SECOND + SECOND / 10, 1.0)] {
            let mediator = around(numbers, move |_| ready(each(takes)));
            mediator.stream(Count(1)).await.unwrap().next().await.unwrap().unwrap();
            assert_eq!(warned(&mediator, "first_item"), late, "{numbers:?}");
        }
        for (rate, slow) in [(rate * 5 / 4, 0.0), (rate * 4 / 5, 1.0)] {
            let mediator = around(numbers, move |_| ready(each(SECOND / rate as u32)));
            let stream = mediator.stream(Count(1)).await.unwrap();
            let reading = tokio::spawn(stream.count());
            sleep(interval * SECOND - SECOND / 10).await;
            assert_eq!(warned(&mediator, "throughput"), 0.0, "{numbers:?}: not before the interval is over");
            sleep(SECOND / 5).await;
            assert_eq!(warned(&mediator, "throughput"), slow, "{numbers:?}: {rate} items/s");
            sleep((total.unwrap_or(1000) - interval) * SECOND - SECOND).await;
            assert_eq!(warned(&mediator, "total"), 0.0, "{numbers:?}");
            sleep(2 * SECOND).await;
            assert_eq!(warned(&mediator, "total"), f64::from(total.map_or(0, |_| 1)), "{numbers:?}");
            reading.abort();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn stream_packages_try_again_as_often_and_as_long_as_they_say() {
    for numbers in PACKAGES {
        let Numbers { delay, within, .. } = numbers;
        // The time counts from the first failure: what comes before the last try is a try and both delays.
        let in_time = (within - 3 * delay) * SECOND;
        for (takes, expected) in [(Duration::ZERO, 3), (in_time, 3), (in_time + SECOND / 10, 2)] {
            let opened = Arc::new(AtomicU64::new(0));
            let count = opened.clone();
            let mediator = around(numbers, move |_| {
                let first = count.fetch_add(1, Ordering::SeqCst) == 0;
                async move {
                    let takes = if first { Duration::ZERO } else { takes };
                    let broken = stream::once(async move {
                        sleep(takes).await;
                        Err(BoxError::from("broken"))
                    });
                    Ok::<_, BoxError>(Pipe::from_stream(broken).boxed())
                }
            });
            let began = Instant::now();
            assert_eq!(read(&mediator, 1).await, Ok(1), "the error of the last try");
            assert_eq!(opened.load(Ordering::SeqCst), expected, "{numbers:?}: {takes:?} each");
            if takes.is_zero() {
                assert_eq!(began.elapsed(), 3 * delay * SECOND, "{numbers:?}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn stream_packages_open_their_breakers_at_their_rate_within_their_window() {
    for numbers in PACKAGES {
        let Numbers { percent, window, .. } = numbers;
        // All at once, since the tries of one after another take longer than the window.
        let mediator = around(numbers, one_or_broken);
        for _ in percent..100 {
            read(&mediator, 1).await.unwrap();
        }
        let fail = async |streams: u64| {
            let broken = (0..streams).map(|_| read(&mediator, 0));
            futures_util::future::join_all(broken).await;
        };
        fail(percent - 1).await;
        assert_eq!(state(&mediator), 0.0, "{numbers:?}");
        fail(1).await;
        assert_eq!(state(&mediator), 2.0, "{numbers:?}");

        // Two failures are too few, and a third counts with them for as long as the window says, a tenth less or more.
        for (passed, opens) in [(window * 85 / 100, true), (window * 115 / 100, false)] {
            let mediator = around(numbers, one_or_broken);
            for _ in 0..2 {
                let _ = read(&mediator, 0).await;
            }
            assert_eq!(state(&mediator), 0.0, "{numbers:?}");
            sleep(passed * SECOND).await;
            let _ = read(&mediator, 0).await;
            assert_eq!(state(&mediator) == 2.0, opens, "{numbers:?}: after {passed} s");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn stream_packages_keep_their_breakers_open_for_their_pause_and_close_them_after_two_probes() {
    for numbers in PACKAGES {
        let mediator = around(numbers, one_or_broken);
        for _ in 0..3 {
            assert_eq!(state(&mediator), 0.0, "{numbers:?}");
            let _ = read(&mediator, 0).await;
        }
        let is_open = |read: Result<usize, ErrorKind>| matches!(read, Err(ErrorKind::CircuitOpen { .. }));
        sleep(numbers.pause * SECOND - SECOND).await;
        assert!(is_open(read(&mediator, 1).await), "{numbers:?}");
        sleep(2 * SECOND).await;
        for _ in 0..2 {
            assert_ne!(state(&mediator), 0.0, "{numbers:?}");
            assert_eq!(read(&mediator, 1).await, Ok(1), "{numbers:?}");
        }
        assert_eq!(state(&mediator), 0.0, "{numbers:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_platinum_package_watches_streams_by_the_clock() {
    let (text, _guard) = logged(Level::WARN);
    let mediator = around(PACKAGES[1], |to| {
        let items = Pipe::from_stream(stream::iter((0..to.0).map(Ok)).chain(stream::pending()));
        ready(items.boxed())
    });
    let reading = tokio::spawn(mediator.stream(Count(10)).await.unwrap().count());
    let told =
        |word: &str| text().lines().filter(|line| line.contains("not well") && line.contains(word)).count();
    sleep(29 * SECOND).await;
    assert_eq!((told("items/s"), told("no item")), (0, 0), "{}", text());
    sleep(2 * SECOND).await;
    assert_eq!((told("items/s"), told("no item")), (1, 0), "{}", text());
    sleep(88 * SECOND).await;
    assert_eq!(told("no item"), 0, "{}", text());
    sleep(32 * SECOND).await;
    assert_eq!(told("no item"), 1, "{}", text());
    reading.abort();
}
