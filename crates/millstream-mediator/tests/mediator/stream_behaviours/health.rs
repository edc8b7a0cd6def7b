//! What watchdogs find.

use super::*;

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
    let (memory, little) = (Memory::new(1 << 30), Memory::new(100));
    let _held = little.reserve(95);
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
        (Health::new(10 * SECOND).error_rate(0.0), Severity::Unhealthy, "more than 0 %"),
        (Health::new(10 * SECOND).memory(&little), Severity::Unhealthy, "memory is short, 95 of 100 bytes"),
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
async fn a_stream_that_was_faster_is_found_and_told_of_at_its_end() {
    for (part, told) in [(0.4, 0), (0.6, 1)] {
        let (reports, report) = reports();
        let ends = Arc::new(Mutex::new(Vec::new()));
        let end = ends.clone();
        let health = Health::new(10 * SECOND).slowdown(part).report(report).on_end(move |health| {
            end.lock().unwrap().push(health.clone());
            panic!("told of the end");
        });
        // Two a second, then one.
        let mediator = mediator(health, |_, to| {
            let items = stream::iter(0..to).then(|n| async move {
                sleep(if n < 100 { SECOND / 2 } else { SECOND }).await;
                Ok(n)
            });
            Pipe::from_stream(items).boxed()
        });
        let (text, _guard) = logged(tracing::Level::INFO);
        let mut stream = mediator.stream(Count(1000)).await.unwrap();
        for _ in 0..150 {
            stream.next().await.unwrap().unwrap();
        }
        assert_eq!(reports.lock().unwrap().len(), told, "{part}");
        if let [health] = &reports.lock().unwrap()[..] {
            assert_eq!(health.severity, Severity::Degraded);
            assert_eq!(health.warnings[0].to_string(), "1.0 items/s, after 2.0 at best");
        }
        drop(stream);
        let ends = ends.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        assert_eq!((ends.len(), ends[0].ended, ends[0].items), (1, Some("cancelled"), 150));
        assert!(text().contains("panicked: told of the end"), "{}", text());
    }
}

#[test]
fn a_board_asks_components_when_it_is_asked() {
    let board = HealthBoard::default();
    let severity = Arc::new(Mutex::new(Severity::Healthy));
    let asked = severity.clone();
    board.component("orders", move || *asked.lock().unwrap());
    for (found, ready) in
        [(Severity::Healthy, true), (Severity::Degraded, true), (Severity::Unhealthy, false)]
    {
        *severity.lock().unwrap() = found;
        assert_eq!((board.components(), board.is_ready()), (vec![("orders".to_owned(), found)], ready));
    }
    board.component("orders", || panic!("nobody knows"));
    assert!(!board.is_ready(), "whoever cannot tell is not well");
    board.component("orders", || Severity::Healthy);
    assert!(board.is_ready());
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

#[tokio::test(start_paused = true)]
async fn a_reporter_that_panics_is_logged_and_the_watchdog_goes_on() {
    for at_once in [true, false] {
        let told = Arc::new(Mutex::new(Vec::new()));
        let tell = told.clone();
        let health = Health::new(SECOND).stall(3 * SECOND).recover_after(1).report(move |health| {
            tell.lock().unwrap().push(health.severity);
            assert!(!at_once, "told at once");
            async { panic!("told later") }
        });
        let mediator = mediator(health, |_, to| each(5 * SECOND, to));
        let (text, _guard) = logged(tracing::Level::INFO);
        let (items, error) = all(mediator.stream(Count(2)).await.unwrap()).await;
        assert_eq!((items.len(), error.is_none()), (2, true));
        use Severity::{Healthy, Unhealthy};
        assert_eq!(*told.lock().unwrap(), [Unhealthy, Healthy, Unhealthy], "{}", text());
        let why = if at_once { "told at once" } else { "told later" };
        assert!(text().contains("a health reporter panicked") && text().contains(why), "{}", text());
    }
}

#[tokio::test(start_paused = true)]
async fn a_check_that_comes_late_counts_by_the_time_that_has_passed() {
    let (reports, report) = reports();
    let health = Health::new(10 * SECOND).throughput(5.0).report(report);
    let logging = StreamLogging::new().every(10 * SECOND).progress(tracing::Level::INFO);
    let timing = StreamTiming::new().interval(10 * SECOND).throughput(5.0);
    let mediator = Mediator::builder()
        .stream_behaviour(logging)
        .stream_behaviour(timing)
        .stream_behaviour(health)
        .stream(async |_: Count| {
            Ok::<_, Error>(Pipe::from_stream(
                stream::iter(0..100).map(Ok::<_, BoxError>).chain(stream::pending()),
            ))
        })
        .build()
        .unwrap();
    let (text, _guard) = logged(tracing::Level::INFO);
    let mut stream = mediator.stream(Count(0)).await.unwrap();
    let mut reading = std::pin::pin!(async { while stream.next().await.is_some() {} });
    assert!(tokio::time::timeout(SECOND, reading.as_mut()).await.is_err());
    tokio::time::advance(24 * SECOND).await; // as if the process had been stopped
    assert!(tokio::time::timeout(Duration::from_millis(1), reading).await.is_err());
    assert!(text().contains("lately=4.0") || text().contains("lately=Some(4.0)"), "{}", text());
    assert!(text().contains("warning=\"throughput\""), "{}", text());
    let reports = reports.lock().unwrap();
    assert_eq!(reports.len(), 1, "100 items in 25 s are fewer than 5 a second");
    assert_eq!(reports[0].rate, 4.0);
}

#[tokio::test(start_paused = true)]
async fn only_time_in_which_somebody_waits_for_an_item_counts_as_a_stall() {
    // Each with a reader that comes back shortly before a check, and then waits for less than the limit.
    for (interval, stall, away, wait) in [(10, 5, 9_900, 500), (5, 10, 4_900, 5_500), (2, 5, 1_900, 4_300)] {
        let (reports, report) = reports();
        let health = Health::new(interval * SECOND).stall(stall * SECOND).report(report);
        let mediator = mediator(health, move |_, to| each(Duration::from_millis(wait), to));
        let mut stream = mediator.stream(Count(5)).await.unwrap();
        sleep(Duration::from_millis(away)).await;
        stream.next().await.unwrap().unwrap();
        drop(stream);
        assert!(reports.lock().unwrap().is_empty(), "it waited {wait} ms, and {stall} s are a stall");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_as_fast_as_while_somebody_waits_for_its_items() {
    let health = |report| Health::new(10 * SECOND).throughput(5.0).slowdown(0.5).report(report);
    // Ten items a second, whose reader goes away for a while.
    let (told, report) = reports();
    let fast = mediator(health(report), |_, to| each(SECOND / 10, to));
    let mut stream = fast.stream(Count(1000)).await.unwrap();
    for away in [0, 20, 29, 3] {
        sleep(away * SECOND).await;
        for _ in 0..95 {
            stream.next().await.unwrap().unwrap();
        }
    }
    drop(stream);
    assert!(told.lock().unwrap().is_empty(), "{:?}", told.lock().unwrap());
    // One item a second is too slow, whoever reads.
    let (told, report) = reports();
    let slow = mediator(health(report), |_, to| each(SECOND, to));
    all(slow.stream(Count(25)).await.unwrap()).await;
    let told = told.lock().unwrap();
    assert!(told[0].warnings[0].to_string().ends_with("items/s, fewer than 5"), "{:?}", told[0]);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_leaves_all_its_items_out_stalls() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = told.clone();
    let health = Health::new(SECOND).stall(5 * SECOND).report(move |health: StreamHealth| {
        tell.lock().unwrap().push((health.severity, health.seconds));
        std::future::ready(())
    });
    let mediator = Mediator::builder()
        .stream_behaviour(health)
        .stream_options::<Count>(StreamOptions::new().item_errors(ItemErrors::skip()))
        .stream(|_: Count| {
            let failed = stream::repeat(()).then(|()| async {
                sleep(Duration::from_millis(371)).await;
                Err::<u64, BoxError>("no".into())
            });
            std::future::ready(Ok::<_, Error>(Pipe::from_stream(Box::pin(failed)).boxed()))
        })
        .build()
        .unwrap();
    let mut stream = mediator.stream(Count(0)).await.unwrap();
    assert!(tokio::time::timeout(30 * SECOND, stream.next()).await.is_err());
    let told = told.lock().unwrap();
    assert!(matches!(told[..], [(Severity::Unhealthy, 5.0..=6.0)]), "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn the_most_items_a_second_is_a_number_that_was_shown() {
    let board = HealthBoard::default();
    let health = Health::new(SECOND).slowdown(0.1).board(&board);
    let mediator = mediator(health, |_, to| each(SECOND / 10, to));
    let mut stream = mediator.stream(Count(100)).await.unwrap();
    let mut most = 0_f64;
    for _ in 0..100 {
        stream.next().await.unwrap().unwrap();
        // Nobody asks meanwhile: while somebody does there are ten a second, and in all there are fewer.
        sleep(Duration::from_millis(60)).await;
        for health in board.open() {
            most = most.max(health.rate);
            assert!(health.rate_max <= most, "{} of at most {most}", health.rate_max);
        }
    }
    assert!((4.0..8.0).contains(&most), "{most}");
}
