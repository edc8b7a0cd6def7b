//! When items pass: each claim with time paused.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use millstream_flow::{
    Batch, Debounce, Ended, Pipe, RateLimit, Retry, RunErrorKind, Sender, Silent, Throttle,
};
use millstream_resilience::{Backoff, Class, Classified};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::support::{End, tracked, tracked_stream};

const SECOND: Duration = Duration::from_secs(1);

const MS: Duration = Duration::from_millis(1);

/// Sends each item at its millisecond, then ends.
async fn script(mut sender: Sender<u32>, items: &[(u32, u32)]) {
    let began = Instant::now();
    for (at, item) in items {
        sleep_until(began + *at * MS).await;
        sender.send(*item).await.expect("the flow takes what it is sent");
    }
}

/// What passes of a script, each item with its millisecond.
async fn passes<F>(
    items: &'static [(u32, u32)],
    operators: impl FnOnce(Channel) -> Pipe<F>,
) -> Vec<(u32, u32)>
where
    F: millstream_flow::Flow<Item = u32, Token = ()>,
{
    let (sender, pipe) = Pipe::channel(64);
    let mut pipe = operators(pipe);
    let began = Instant::now();
    let script = tokio::spawn(script(sender, items));
    let mut passed = Vec::new();
    while let Some(item) = pipe.next().await {
        passed.push((began.elapsed().as_millis() as u32, item));
    }
    script.await.unwrap();
    passed
}

type Channel = Pipe<millstream_flow::flows::FromChannel<u32>>;

const BURSTS: &[(u32, u32)] = &[(0, 1), (40, 2), (80, 3), (250, 4), (400, 5), (450, 6)];

#[tokio::test(start_paused = true)]
async fn debounce_passes_the_newest_once_it_is_quiet_and_what_is_held_at_the_end() {
    let passed = passes(BURSTS, |pipe| pipe.debounce(Debounce::trailing(100 * MS))).await;
    assert_eq!(passed, [(180, 3), (350, 4), (450, 6)], "the last at once, by the flow's end");
}

#[tokio::test(start_paused = true)]
async fn debounce_leading_passes_the_first_at_once_and_each_item_extends_the_quiet_time() {
    let passed = passes(BURSTS, |pipe| pipe.debounce(Debounce::leading(100 * MS))).await;
    assert_eq!(passed, [(0, 1), (250, 4), (400, 5)]);
}

#[tokio::test(start_paused = true)]
async fn debounce_both_passes_the_first_and_the_newest_but_no_item_twice() {
    let passed = passes(BURSTS, |pipe| pipe.debounce(Debounce::both(100 * MS))).await;
    assert_eq!(passed, [(0, 1), (180, 3), (250, 4), (400, 5), (450, 6)], "4 is alone in its burst");
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_never_quiet_passes_debounce_by_its_longest_wait() {
    let steady: &[(u32, u32)] =
        &[(0, 0), (60, 1), (120, 2), (180, 3), (240, 4), (300, 5), (360, 6), (420, 7)];
    let rule = Debounce::trailing(100 * MS);
    let passed = passes(steady, |pipe| pipe.debounce(rule)).await;
    assert_eq!(passed, [(420, 7)], "without one nothing passes before the end");
    let passed = passes(steady, |pipe| pipe.debounce(rule.max_wait(150 * MS))).await;
    assert_eq!(passed, [(150, 2), (330, 5), (420, 7)]);
}

#[tokio::test(start_paused = true)]
async fn throttle_leading_passes_the_first_item_of_each_period() {
    let passed = passes(BURSTS, |pipe| pipe.throttle(Throttle::leading(100 * MS))).await;
    assert_eq!(passed, [(0, 1), (250, 4), (400, 5)]);
    // What is dropped does not extend the period, unlike debounce.
    let steady = &[(0, 1), (60, 2), (120, 3), (180, 4), (240, 5)];
    let passed = passes(steady, |pipe| pipe.throttle(Throttle::leading(100 * MS))).await;
    assert_eq!(passed, [(0, 1), (120, 3), (240, 5)]);
}

#[tokio::test(start_paused = true)]
async fn throttle_trailing_passes_the_newest_item_at_the_end_of_each_period() {
    let passed = passes(BURSTS, |pipe| pipe.throttle(Throttle::trailing(100 * MS))).await;
    assert_eq!(passed, [(100, 3), (350, 4), (450, 5), (450, 6)], "the end of a period begins the next");
}

#[tokio::test(start_paused = true)]
async fn throttle_both_never_passes_two_items_closer_than_a_period_except_at_the_end() {
    let steady = &[(0, 1), (60, 2), (120, 3), (180, 4), (240, 5), (700, 6), (710, 7)];
    let passed = passes(steady, |pipe| pipe.throttle(Throttle::both(100 * MS))).await;
    assert_eq!(passed, [(0, 1), (100, 2), (200, 4), (300, 5), (700, 6), (710, 7)]);
}

#[tokio::test(start_paused = true)]
async fn a_period_that_has_passed_unnoticed_has_passed() {
    // The flow is not polled between the items: nobody asks for any.
    let (mut sender, pipe) = Pipe::channel(64);
    let mut pipe = pipe.throttle(Throttle::trailing(100 * MS));
    sender.send(1).await.unwrap();
    assert!(timeout(MS, pipe.next()).await.is_err());
    sleep(500 * MS).await;
    sender.send(2).await.unwrap();
    drop(sender);
    assert_eq!(pipe.collect().await.unwrap().0, [1, 2], "2 is of another period, though 1 was not taken yet");
}

#[tokio::test(start_paused = true)]
async fn what_bursts_leave_out_is_counted_and_settled_and_what_they_hold_is_given_back() {
    let (pipe, ear, _) = tracked(0..4u32);
    let (_, report) =
        pipe.debounce(Debounce::trailing(MS)).named("settle down").for_each(drop).await.unwrap();
    assert_eq!((report.ledger.dropped["settle down"], report.ledger.completed), (3, 1));
    let dropped = End::Dropped("settle down".into());
    assert_eq!(ear.list(), [dropped.clone(), dropped.clone(), dropped, End::Completed]);

    let (pipe, ear, account) =
        tracked_stream(futures_util::stream::iter([7u32]).chain(futures_util::stream::pending()));
    let run = pipe.throttle(Throttle::trailing(Duration::from_secs(60))).for_each(drop).start();
    while account.received() == 0 {
        yield_now().await;
    }
    drop(run);
    ear.all_ended().await;
    assert_eq!(ear.list(), [End::Abandoned]);
}

#[tokio::test(start_paused = true)]
async fn latest_by_passes_the_newest_of_each_key_at_the_end_of_its_interval() {
    let prices: &[(u32, u32)] = &[(0, 101), (10, 201), (20, 102), (30, 203), (250, 104), (260, 301)];
    let passed = passes(prices, |pipe| pipe.latest_by(100 * MS, 10, |n| n / 100)).await;
    assert_eq!(
        passed,
        [(100, 102), (100, 203), (260, 104), (260, 301)],
        "the end comes before the interval's"
    );
    let passed = passes(prices, |pipe| pipe.latest_by(100 * MS, 2, |n| n / 100)).await;
    assert_eq!(
        passed,
        [(10, 101), (10, 201), (30, 102), (30, 203), (260, 104), (260, 301)],
        "as many keys as may be held pass at once"
    );
}

#[tokio::test(start_paused = true)]
async fn a_rate_limit_spreads_items_evenly_and_saves_up_no_more_than_its_burst() {
    let limit = RateLimit::new(10, Duration::from_secs(1));
    let passed = passes(&[(0, 1), (0, 2), (0, 3), (900, 4), (900, 5)], |pipe| pipe.rate_limit(limit)).await;
    assert_eq!(passed, [(0, 1), (100, 2), (200, 3), (900, 4), (1000, 5)]);
    let passed = passes(&[(0, 1), (0, 2), (0, 3), (900, 4), (900, 5), (900, 6)], |pipe| {
        pipe.rate_limit(limit.burst(2))
    })
    .await;
    assert_eq!(passed, [(0, 1), (0, 2), (100, 3), (900, 4), (900, 5), (1000, 6)]);
}

#[tokio::test(start_paused = true)]
async fn a_rate_limit_is_exact_over_a_million_items_of_an_odd_rate() {
    let began = Instant::now();
    let limit = RateLimit::new(7_001, Duration::from_secs(3)).burst(7_001);
    Pipe::from_iter(0..1_007_001).rate_limit(limit).for_each(drop).await.unwrap();
    let ideal = 1_000_000.0 * 3.0 / 7_001.0;
    let took = began.elapsed().as_secs_f64();
    assert!((took - ideal).abs() < 0.002, "{took} s for {ideal}: tokio's timer has steps of a millisecond");
}

#[tokio::test(start_paused = true)]
async fn a_rate_limit_in_bytes_lets_one_item_owe_and_the_next_wait() {
    let limit = RateLimit::new(1000, Duration::from_secs(1)).burst(10).bytes(|n: &u32| *n as usize);
    let passed = passes(&[(0, 10), (0, 500), (0, 100), (0, 5)], |pipe| pipe.rate_limit(limit)).await;
    assert_eq!(passed, [(0, 10), (1, 500), (501, 100), (601, 5)]);
}

#[tokio::test(start_paused = true)]
async fn a_rate_limit_takes_from_its_source_only_what_may_pass() {
    let (pipe, ear, account) = tracked(0..100u32);
    let run = pipe.rate_limit(RateLimit::new(1, Duration::from_secs(1)).burst(3)).for_each(drop).start();
    sleep(1500 * MS).await;
    assert_eq!(account.received(), 4);
    drop(run);
    ear.all_ended().await;
    assert_eq!(ear.list(), vec![End::Completed; 4]);
}

#[tokio::test(start_paused = true)]
async fn a_silent_flow_fails_by_its_idle_timeout_and_a_slow_sink_is_no_silence() {
    let (mut sender, pipe) = Pipe::channel(8);
    let began = Instant::now();
    let run = pipe.idle_timeout(Duration::from_secs(5)).named("watch").for_each(drop).start();
    for _ in 0..3 {
        sleep(Duration::from_secs(4)).await;
        sender.send(()).await.unwrap();
    }
    let error = run.join().await.unwrap_err();
    assert_eq!(began.elapsed(), Duration::from_secs(17));
    let Ended::Failed(RunErrorKind::Stage(silent)) = error.ended() else { panic!("{error:?}") };
    let silent = silent.downcast_ref::<Silent>().expect("the error says what it is");
    assert_eq!((&*silent.stage, silent.waited), ("watch", Duration::from_secs(5)));

    let (mut sender, pipe) = Pipe::channel(8);
    let mut pipe = pipe.idle_timeout(Duration::from_secs(5));
    for n in 0..3 {
        sender.send(n).await.unwrap();
    }
    for n in 0..3 {
        sleep(Duration::from_secs(60)).await; // the reader's time, not the flow's
        assert_eq!(pipe.next().await, Some(n));
    }
}

#[tokio::test(start_paused = true)]
async fn times_longer_than_any_flow_are_no_reason_to_panic() {
    let longest = Duration::MAX;
    let pipe = Pipe::from_iter(0..10u32)
        .idle_timeout(longest)
        .meter(longest, |_| {})
        .rate_limit(RateLimit::new(u64::MAX, longest).burst(u64::MAX))
        .rate_limit(
            RateLimit::new(u64::MAX, Duration::from_nanos(1))
                .burst(u64::MAX)
                .bytes(|_: &u32| usize::MAX / 16),
        )
        .dedupe(millstream_flow::Dedupe::keys(100).ttl(longest), |n| *n)
        .latest_by(longest, 100, |n| *n)
        .throttle(Throttle::both(longest))
        .debounce(Debounce::both(longest).max_wait(longest))
        .batch(Batch::count(100).age(longest));
    assert_eq!(pipe.collect().await.unwrap().0, [[0, 9]]);
}

#[tokio::test(start_paused = true)]
async fn a_retry_that_is_asked_to_wait_for_ever_does() {
    let attempts = Arc::new(AtomicU32::new(0));
    let count = attempts.clone();
    let retry =
        millstream_resilience::Retry::new(3).backoff(Backoff::fixed(MS)).retry_after_max(Duration::MAX);
    let run = Pipe::from_iter([()])
        .try_map_retry(Retry::from(retry), move |()| {
            let first = count.fetch_add(1, Ordering::SeqCst) == 0;
            let class = Class::Throttled { retry_after: (!first).then_some(Duration::MAX) };
            Err::<(), _>(Classified::new(class, "not now"))
        })
        .reject()
        .collect()
        .start();
    assert!(timeout(1000 * MS, run.join()).await.is_err(), "it waits");
    assert_eq!(attempts.load(Ordering::SeqCst), 2);
}

#[test]
fn spans_rates_and_bursts_of_nothing_are_refused_where_they_are_built() {
    let refused = |build: fn()| std::panic::catch_unwind(build).is_err();
    assert!(refused(|| _ = Debounce::trailing(Duration::ZERO)));
    assert!(refused(|| _ = Debounce::leading(MS).max_wait(Duration::ZERO)));
    assert!(refused(|| _ = Throttle::both(Duration::ZERO)));
    assert!(refused(|| _ = RateLimit::new(0, MS)));
    assert!(refused(|| _ = RateLimit::new(1, Duration::ZERO)));
    assert!(refused(|| _ = RateLimit::new(1, MS).burst(0)));
}

#[tokio::test(start_paused = true)]
async fn a_meter_tells_each_intervals_items_and_the_rest_at_the_end() {
    let (sender, pipe) = Pipe::channel(64);
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = told.clone();
    let pipe = pipe.meter(100 * MS, move |meter| tell.lock().unwrap().push(meter));
    let sending = tokio::spawn(script(sender, &[(10, 1), (20, 2), (130, 3), (360, 4), (400, 5)]));
    pipe.collect().await.unwrap();
    sending.await.unwrap();
    let told: Vec<_> =
        told.lock().unwrap().iter().map(|meter| (meter.items, meter.time.as_millis(), meter.total)).collect();
    // From the first item, at 10 ms.
    assert_eq!(told, [(2, 100, 2), (1, 100, 3), (0, 100, 3), (2, 90, 5)]);
}

#[tokio::test(start_paused = true)]
async fn a_rate_of_many_a_millisecond_is_kept_though_timers_wake_once_in_one() {
    let took = async |count: u64, limit| {
        let began = Instant::now();
        Pipe::from_iter(0..count).rate_limit(limit).for_each(drop).await.unwrap();
        began.elapsed().as_millis()
    };
    let second = Duration::from_secs(1);
    assert!((1990..=2010).contains(&took(20_000, RateLimit::new(10_000, second)).await));
    assert!((1990..=2010).contains(&took(500_000, RateLimit::new(250_000, second)).await));
    // Item by item, as whoever polls it as a stream takes them.
    let began = Instant::now();
    let mut pipe = Pipe::from_iter(0..20_000u32).rate_limit(RateLimit::new(10_000, second));
    while pipe.next().await.is_some() {}
    assert!((1990..=2010).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
    let began = Instant::now();
    let bytes = RateLimit::new(1 << 20, second).bytes(|_: &u32| 100);
    Pipe::from_iter(0..20_000).rate_limit(bytes).for_each(drop).await.unwrap();
    let ideal = 2_000_000 * 1000 / (1 << 20);
    assert!(began.elapsed().as_millis().abs_diff(ideal) < 10, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_meter_that_panics_costs_no_item() {
    let pipe = Pipe::from_iter(0..10u32).meter(100 * MS, |_| panic!("a test panics"));
    let (items, report) = pipe.on_panic(millstream_flow::PanicPolicy::Dead).collect().await.unwrap();
    assert_eq!(items.len(), 10);
    assert_eq!((report.ledger.dead, report.ledger.completed), (0, 10));
    assert!(report.ledger.balances());
}

#[tokio::test(start_paused = true)]
async fn a_rate_limit_does_not_keep_a_run_that_is_told_to_stop() {
    // What has passed flows to its end, though the next item might not pass for an hour.
    let (pipe, ear, _) =
        tracked_stream(futures_util::stream::iter(0..3u32).chain(futures_util::stream::pending()));
    let limit = RateLimit::new(1, 3600 * SECOND).burst(3);
    let run = pipe.rate_limit(limit).batch(Batch::count(10)).collect().start();
    sleep(10 * SECOND).await;
    let began = Instant::now();
    let (batches, report) =
        run.shutdown(30 * SECOND).await.expect("nothing is under way but what has passed");
    assert_eq!((batches, report.ledger.completed), (vec![vec![0, 1, 2]], 3));
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert!(ear.list().iter().all(|end| *end == End::Completed));
    // What was accepted before it waits for its turn, also then.
    let (feed, fed) = tokio::sync::mpsc::channel(4);
    let pipe = Pipe::from_stream(tokio_stream::wrappers::ReceiverStream::new(fed)).buffer(4);
    let run = pipe.rate_limit(RateLimit::new(1, SECOND)).collect().start();
    for n in 0..3u32 {
        feed.send(n).await.unwrap();
    }
    sleep(SECOND / 2).await;
    let began = Instant::now();
    assert_eq!(run.shutdown(30 * SECOND).await.unwrap().0, [0, 1, 2]);
    assert_eq!(began.elapsed(), SECOND + SECOND / 2);
    // What is dropped before it waits for nothing.
    let (feed, fed) = tokio::sync::mpsc::channel(4);
    let pipe = Pipe::from_stream(tokio_stream::wrappers::ReceiverStream::new(fed)).buffer(4);
    let run = pipe.filter(|n| *n < 1).rate_limit(RateLimit::new(1, 3600 * SECOND).burst(1)).collect().start();
    for n in 0..4u32 {
        feed.send(n).await.unwrap();
        sleep(SECOND).await;
    }
    let began = Instant::now();
    assert_eq!(run.shutdown(30 * SECOND).await.unwrap().0, [0]);
    assert_eq!(began.elapsed(), Duration::ZERO);
}
