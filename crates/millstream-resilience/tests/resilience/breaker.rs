//! The circuit breaker: when it opens, what it lets through, and how it closes.

use std::time::Duration;

use millstream_resilience::{
    AllTransient, Backoff, BoxError, BreakerEvent, BreakerSettings, BreakerState, Cause, CircuitBreaker,
    Class, Classified, Error, Mode, Open, Retry,
};
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::time::{Instant, sleep, timeout};

const SECOND: Duration = Duration::from_secs(1);

fn breaker(set: impl FnOnce(BreakerSettings) -> BreakerSettings) -> CircuitBreaker {
    CircuitBreaker::new(set(BreakerSettings::default().calls_min(1)))
}

/// One that is open, after a failure.
fn open(set: impl FnOnce(BreakerSettings) -> BreakerSettings) -> CircuitBreaker {
    let breaker = breaker(set);
    ends(&breaker, [false]);
    assert_eq!(breaker.state(), BreakerState::Open);
    breaker
}

/// Calls that end so, each if it is let through.
fn ends(breaker: &CircuitBreaker, results: impl IntoIterator<Item = bool>) {
    for ok in results {
        match breaker.try_acquire() {
            Ok(permit) if ok => permit.succeed(),
            Ok(permit) => permit.fail(),
            Err(_) => {}
        }
    }
}

/// A call that succeeds after this time.
async fn takes(breaker: &CircuitBreaker, time: Duration) {
    let call = breaker.call(async || {
        sleep(time).await;
        Ok::<_, BoxError>(())
    });
    call.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn it_opens_when_the_rate_is_reached_and_not_before_there_are_enough_calls() {
    let rule = |settings: BreakerSettings| settings.failure_rate(0.5).calls_min(4);
    let (few, half, less) = (breaker(rule), breaker(rule), breaker(rule));
    let last_is_good = breaker(rule);
    ends(&last_is_good, [false, false, true, true]);
    assert_eq!(last_is_good.state(), BreakerState::Open);
    ends(&few, [false, false, false]);
    assert_eq!(few.state(), BreakerState::Closed);
    ends(&half, [true, false, true, false]);
    assert_eq!(half.state(), BreakerState::Open);
    ends(&less, [true, true, true, false, false]);
    assert_eq!(less.state(), BreakerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_time_window_forgets_what_is_longer_ago() {
    let breaker = breaker(|settings| settings.calls_min(4).time_window(10 * SECOND));
    ends(&breaker, [false, false, false]);
    sleep(11 * SECOND).await;
    assert_eq!(breaker.snapshot().calls, 0);
    ends(&breaker, [true, false]);
    sleep(9 * SECOND).await;
    assert_eq!((breaker.snapshot().calls, breaker.snapshot().failure_rate()), (2, 0.5));
    ends(&breaker, [true, false]);
    assert_eq!(breaker.state(), BreakerState::Open, "two of the four of the last ten seconds");
}

#[tokio::test(start_paused = true)]
async fn a_count_window_forgets_what_is_more_calls_ago() {
    let breaker = breaker(|settings| settings.count_window(4).calls_min(4));
    ends(&breaker, [true, true, false, true]);
    assert_eq!((breaker.snapshot().calls, breaker.snapshot().failures), (4, 1));
    ends(&breaker, [true, true, true]);
    assert_eq!((breaker.snapshot().calls, breaker.snapshot().failures), (4, 0));
    sleep(1_000_000 * SECOND).await;
    ends(&breaker, [false]);
    assert_eq!(breaker.state(), BreakerState::Closed);
    ends(&breaker, [false]);
    assert_eq!(breaker.state(), BreakerState::Open, "two of the last four");
}

#[tokio::test(start_paused = true)]
async fn a_count_window_that_is_smaller_than_the_fewest_calls_is_enough() {
    let breaker = breaker(|settings| settings.count_window(3).calls_min(100));
    ends(&breaker, [false, false]);
    assert_eq!(breaker.state(), BreakerState::Closed);
    ends(&breaker, [false]);
    assert_eq!(breaker.state(), BreakerState::Open);
}

#[tokio::test(start_paused = true)]
async fn slow_calls_open_it_though_they_succeed() {
    let breaker = breaker(|settings| settings.calls_min(4).slow_rate(0.75, SECOND));
    for time in [2 * SECOND, SECOND, 2 * SECOND, 2 * SECOND] {
        assert_eq!(breaker.state(), BreakerState::Closed);
        takes(&breaker, time).await;
    }
    assert_eq!(breaker.state(), BreakerState::Open);
    let mut events = breaker.events();
    breaker.reset();
    for _ in 0..4 {
        takes(&breaker, 2 * SECOND).await;
    }
    events.recv().await.unwrap();
    assert_eq!(events.recv().await.unwrap().cause, Cause::SlowRate { slow: 4, calls: 4 });
}

#[tokio::test(start_paused = true)]
async fn probes_that_are_too_slow_open_it_again() {
    let breaker = breaker(|settings| {
        settings.calls_min(2).slow_rate(0.6, SECOND).probes(2).pause(10 * SECOND).probe_time(60 * SECOND)
    });
    let slow = 2 * SECOND;
    for _ in 0..2 {
        takes(&breaker, slow).await;
    }
    assert_eq!(breaker.state(), BreakerState::Open);
    let mut events = breaker.events();
    sleep(10 * SECOND).await;
    for _ in 0..2 {
        takes(&breaker, slow).await;
    }
    assert_eq!(breaker.state(), BreakerState::Open, "it would be slow again at once");
    assert_eq!(events.recv().await.unwrap().cause, Cause::PauseOver);
    assert_eq!(events.recv().await.unwrap().cause, Cause::SlowRate { slow: 2, calls: 2 });
    sleep(10 * SECOND).await;
    for time in [slow, Duration::ZERO] {
        takes(&breaker, time).await;
    }
    assert_eq!(breaker.state(), BreakerState::Closed, "half of them are fewer than it takes");
}

#[tokio::test(start_paused = true)]
async fn it_lets_exactly_its_probes_through_when_half_open_and_closes_when_all_have_succeeded() {
    let breaker = open(|settings| settings.pause(30 * SECOND).probes(3));
    sleep(30 * SECOND - Duration::from_millis(1)).await;
    assert!(breaker.try_acquire().is_err());
    sleep(Duration::from_millis(1)).await;
    let probes: Vec<_> = (0..3).map(|_| breaker.try_acquire().unwrap()).collect();
    let refused = breaker.try_acquire().unwrap_err();
    assert_eq!(refused.state, BreakerState::HalfOpen);
    for probe in probes {
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
        assert!(breaker.try_acquire().is_err(), "a probe that has succeeded leaves its place to nobody");
        probe.succeed();
    }
    assert_eq!(breaker.state(), BreakerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_fails_begins_the_next_pause_and_the_others_no_longer_count() {
    let breaker = open(|settings| settings.pause(30 * SECOND).probes(2));
    sleep(30 * SECOND).await;
    let (first, second) = (breaker.try_acquire().unwrap(), breaker.try_acquire().unwrap());
    first.fail();
    assert_eq!(breaker.state(), BreakerState::Open);
    sleep(30 * SECOND).await;
    let third = breaker.try_acquire().unwrap();
    second.succeed();
    third.succeed();
    assert_eq!(breaker.state(), BreakerState::HalfOpen, "one of the two that are needed");
    ends(&breaker, [true]);
    assert_eq!(breaker.state(), BreakerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn the_place_of_a_probe_that_is_dropped_or_cancelled_goes_to_another() {
    let breaker = open(|settings| settings.pause(SECOND).probes(1));
    sleep(SECOND).await;
    let hangs = breaker.call(async || std::future::pending::<Result<(), BoxError>>().await);
    assert!(timeout(SECOND / 2, hangs).await.is_err());
    breaker.try_acquire().unwrap().end(Some(Class::Cancelled));
    assert_eq!(breaker.state(), BreakerState::HalfOpen);
    let probe = breaker.try_acquire().unwrap();
    let waiting = breaker.acquire();
    tokio::pin!(waiting);
    assert!(timeout(SECOND / 8, waiting.as_mut()).await.is_err());
    drop(probe);
    timeout(Duration::ZERO, waiting).await.expect("it is told at once").succeed();
    assert_eq!(breaker.state(), BreakerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn probes_that_never_end_count_as_failed_when_their_time_is_over() {
    let rule = |settings: BreakerSettings| settings.pause(10 * SECOND).probes(1).probe_time(3 * SECOND);
    let breaker = open(rule);
    let mut events = breaker.events();
    sleep(10 * SECOND).await;
    let hangs = breaker.try_acquire().unwrap();
    sleep(3 * SECOND).await;
    assert_eq!(breaker.try_acquire().unwrap_err().state, BreakerState::Open);
    assert_eq!(events.recv().await.unwrap().cause, Cause::PauseOver);
    assert_eq!(events.recv().await.unwrap().cause, Cause::ProbesHung);
    sleep(10 * SECOND).await;
    let next = breaker.try_acquire().unwrap();
    hangs.succeed();
    assert_eq!(breaker.state(), BreakerState::HalfOpen, "it came too late to count");
    next.succeed();
    assert_eq!(breaker.state(), BreakerState::Closed);
    // A probe has all of its time, however long ago the last one gave up.
    let breaker = open(rule);
    sleep(10 * SECOND).await;
    drop(breaker.try_acquire().unwrap());
    sleep(100 * SECOND).await;
    let probe = breaker.try_acquire().unwrap();
    sleep(2 * SECOND).await;
    assert_eq!(breaker.try_acquire().unwrap_err().state, BreakerState::HalfOpen);
    probe.succeed();
    assert_eq!(breaker.state(), BreakerState::Closed);
    // Whoever waits meanwhile is not forgotten: the first pause's length is the time of probes by default.
    let breaker = open(|settings| settings.pause(10 * SECOND).probes(1));
    sleep(10 * SECOND).await;
    let _hangs = breaker.try_acquire().unwrap();
    let began = Instant::now();
    drop(breaker.acquire().await);
    assert_eq!(began.elapsed(), 20 * SECOND, "ten for the probe, and the next pause");
}

#[tokio::test(start_paused = true)]
async fn results_of_calls_that_began_in_another_state_do_not_count() {
    let breaker = breaker(|settings| settings.pause(SECOND).probes(1));
    let (good, bad) = (breaker.try_acquire().unwrap(), breaker.try_acquire().unwrap());
    ends(&breaker, [false]);
    good.succeed();
    assert_eq!(breaker.state(), BreakerState::Open);
    sleep(SECOND).await;
    ends(&breaker, [true]);
    bad.fail();
    assert_eq!((breaker.state(), breaker.snapshot().calls), (BreakerState::Closed, 0));
}

#[tokio::test(start_paused = true)]
async fn pauses_grow_until_it_closes() {
    let pauses = Backoff::exponential(SECOND).max(4 * SECOND);
    let breaker = open(|settings| settings.pauses(pauses).probes(1));
    let mut waited = Vec::new();
    for good in [false, false, false, true] {
        let began = Instant::now();
        let permit = breaker.acquire().await;
        waited.push(began.elapsed().as_secs());
        if good { permit.succeed() } else { permit.fail() }
    }
    assert_eq!(waited, [1, 2, 4, 4]);
    ends(&breaker, [false]);
    assert_eq!(breaker.snapshot().retry_after, Some(SECOND), "it begins with the first again");
}

#[tokio::test(start_paused = true)]
async fn errors_count_by_their_class() {
    let breaker = breaker(|settings| settings.calls_min(2).failure_rate(1.0));
    let fail = async |class| {
        let _ = breaker.call(async || Err::<(), BoxError>(Classified::new(class, "no").into())).await;
        (breaker.snapshot().calls, breaker.snapshot().failures)
    };
    assert_eq!(fail(Class::Permanent).await, (1, 0), "the callee answered");
    assert_eq!(fail(Class::Cancelled).await, (1, 0), "nobody waited for an answer");
    assert_eq!(fail(Class::Throttled { retry_after: None }).await, (2, 1));
    assert_eq!(fail(Class::Transient).await, (3, 2));
    let by_another =
        breaker.call_with(&|_: &BoxError| Class::Permanent, async || Err::<(), BoxError>("no".into()));
    by_another.await.unwrap_err();
    assert_eq!((breaker.snapshot().calls, breaker.snapshot().failures), (4, 2));
    let by_all = breaker.call_with(&AllTransient, async || Err::<(), Error<()>>(Error::Failed(())));
    by_all.await.unwrap_err();
    assert_eq!((breaker.snapshot().calls, breaker.snapshot().failures), (5, 3));
}

#[tokio::test(start_paused = true)]
async fn an_open_one_says_its_name_and_for_how_long() {
    let breaker = open(|settings| settings.name("orders").pause(30 * SECOND));
    sleep(10 * SECOND).await;
    let refused = breaker.call(async || Ok::<_, BoxError>(())).await.unwrap_err();
    let refused = refused.downcast_ref::<Open>().unwrap();
    assert_eq!(refused.to_string(), "orders is open for another 20s");
    assert_eq!(refused.retry_after, Some(20 * SECOND));
    let snapshot = breaker.snapshot();
    assert_eq!(
        (&*snapshot.name, snapshot.state, snapshot.mode),
        ("orders", BreakerState::Open, Mode::Automatic)
    );
    assert_eq!((snapshot.age, snapshot.retry_after), (10 * SECOND, Some(20 * SECOND)));
    assert_eq!((snapshot.opened, snapshot.rejected), (1, 1));
    assert_eq!((snapshot.calls_total, snapshot.failures_total, snapshot.calls), (1, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn it_obeys_by_hand() {
    let breaker = breaker(|settings| settings.pause(SECOND).probes(1));
    breaker.force_open();
    sleep(3600 * SECOND).await;
    assert_eq!(breaker.try_acquire().unwrap_err().to_string(), "circuit breaker was opened by hand");
    breaker.force_closed();
    ends(&breaker, [false, false]);
    let snapshot = breaker.snapshot();
    assert_eq!((snapshot.state, snapshot.failures), (BreakerState::Closed, 2), "it counts and stays closed");
    breaker.disable();
    ends(&breaker, [false, false]);
    assert_eq!((breaker.state(), breaker.snapshot().calls), (BreakerState::Closed, 0));
    assert_eq!(breaker.snapshot().mode, Mode::Disabled);
    breaker.reset();
    assert_eq!((breaker.state(), breaker.snapshot().mode), (BreakerState::Closed, Mode::Automatic));
    breaker.trip();
    assert_eq!(breaker.state(), BreakerState::Open);
    let began = Instant::now();
    breaker.until_ready().await;
    assert_eq!(began.elapsed(), SECOND);
    breaker.force_open();
    let waiting = tokio::spawn({
        let breaker = breaker.clone();
        async move { breaker.until_ready().await }
    });
    sleep(SECOND).await;
    assert!(!waiting.is_finished());
    breaker.reset();
    timeout(SECOND, waiting).await.expect("whoever waits is told").unwrap();
}

#[tokio::test(start_paused = true)]
async fn events_tell_each_change_and_wait_for_nobody() {
    let breaker = breaker(|settings| settings.name("orders").pause(SECOND).probes(1));
    let (mut events, mut states) = (breaker.events(), breaker.states());
    ends(&breaker, [false]);
    assert_eq!(*states.borrow_and_update(), BreakerState::Open);
    sleep(SECOND).await;
    ends(&breaker, [true]);
    let told: Vec<BreakerEvent> = std::iter::from_fn(|| events.try_recv().ok()).collect();
    let told: Vec<_> = told.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            "orders: closed to open, 1 of 1 calls failed",
            "orders: open to half-open, the pause is over",
            "orders: half-open to closed, all probes succeeded"
        ]
    );
    assert_eq!(*states.borrow_and_update(), BreakerState::Closed);
    (0..100).for_each(|_| breaker.trip());
    assert_eq!(events.recv().await, Err(RecvError::Lagged(36)), "64 are kept");
    assert_eq!((0..).map_while(|_| events.try_recv().ok()).count(), 64);
    assert_eq!(events.try_recv(), Err(TryRecvError::Empty));
}

#[tokio::test(start_paused = true)]
async fn several_can_tell_their_events_in_one_place() {
    let events = tokio::sync::broadcast::Sender::new(16);
    let mut told = events.subscribe();
    for name in ["a", "b"] {
        let settings = BreakerSettings::default().name(name);
        CircuitBreaker::with_events(settings, events.clone()).trip();
    }
    assert_eq!((&*told.recv().await.unwrap().name, &*told.recv().await.unwrap().name), ("a", "b"));
}

#[tokio::test(start_paused = true)]
async fn among_very_many_calls_few_good_ones_are_forgotten_early_and_no_bad_one() {
    let breaker = breaker(|settings| settings.calls_min(1).failure_rate(0.5).time_window(10 * SECOND));
    ends(&breaker, (0..100_000).map(|n| n % 100 != 99));
    assert_eq!((breaker.snapshot().calls, breaker.snapshot().failures), (100_000, 1000));
    // The calls after a pause may be taken for some of before it, if they are fewer than sixteen.
    ends(&breaker, (0..24).map(|_| true));
    sleep(10 * SECOND).await;
    ends(&breaker, [true; 40]);
    let calls = breaker.snapshot().calls;
    assert!((40 - 15..=40).contains(&calls), "{calls}");
}

#[test]
fn settings_that_cannot_work_are_refused() {
    let refused = |build: fn(BreakerSettings) -> BreakerSettings| {
        std::panic::catch_unwind(|| build(BreakerSettings::default())).is_err()
    };
    assert!(refused(|settings| settings.failure_rate(0.0)));
    assert!(refused(|settings| settings.failure_rate(1.1)));
    assert!(refused(|settings| settings.failure_rate(f64::NAN)));
    assert!(refused(|settings| settings.slow_rate(0.0, SECOND)));
    assert!(refused(|settings| settings.calls_min(0)));
    assert!(refused(|settings| settings.time_window(Duration::ZERO)));
    assert!(refused(|settings| settings.count_window(0)));
    assert!(refused(|settings| settings.count_window(u32::MAX)));
    assert!(refused(|settings| settings.pause(Duration::ZERO)));
    assert!(refused(|settings| settings.pauses(Backoff::fixed(Duration::ZERO))));
    assert!(refused(|settings| settings.probes(0)));
    assert!(refused(|settings| settings.probe_time(Duration::ZERO)));
}

#[test]
fn settings_print_themselves() {
    let settings = BreakerSettings::default().slow_rate(0.8, SECOND);
    assert_eq!(
        settings.to_string(),
        "opens at 50% failures or 80% calls above 1s of at least 20 in 10s; open 30s each time, then 3 probes"
    );
    let settings = BreakerSettings::default().count_window(100).pauses(Backoff::exponential(SECOND));
    assert_eq!(
        settings.to_string(),
        "opens at 50% failures of at least 20 of the last 100; open exponential from 1s to 30s, then 3 probes"
    );
}

#[tokio::test(start_paused = true)]
async fn calls_of_a_task_that_panics_elsewhere_have_not_failed() {
    let breaker = CircuitBreaker::new(BreakerSettings::default().calls_min(2));
    let calls = breaker.clone();
    let task = async move {
        let call = || async {
            calls
                .call(async || {
                    sleep(Duration::from_secs(1)).await;
                    Ok::<_, BoxError>(())
                })
                .await
        };
        let broken = async {
            tokio::task::yield_now().await;
            panic!("something else of the task");
        };
        tokio::join!(call(), call(), broken)
    };
    assert!(tokio::spawn(task).await.unwrap_err().is_panic());
    assert_eq!((breaker.state(), breaker.snapshot().failures_total), (BreakerState::Closed, 0));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_panics_has_failed() {
    let breaker = CircuitBreaker::new(BreakerSettings::default().calls_min(2));
    for _ in 0..2 {
        let breaker = breaker.clone();
        let call =
            async move { breaker.call(async || -> Result<(), BoxError> { panic!("out of luck") }).await };
        assert!(tokio::spawn(call).await.unwrap_err().is_panic());
    }
    assert_eq!((breaker.state(), breaker.snapshot().failures_total), (BreakerState::Open, 2));
}

#[tokio::test(start_paused = true)]
async fn who_comes_while_probes_are_under_way_is_not_sent_away_until_they_may_hang() {
    let settings = BreakerSettings::default().calls_min(1).failure_rate(1.0).pause(30 * SECOND).probes(1);
    let breaker = CircuitBreaker::new(settings);
    breaker.try_acquire().unwrap().fail();
    assert_eq!(breaker.try_acquire().unwrap_err().retry_after, Some(30 * SECOND));
    sleep(30 * SECOND).await;
    let probe = breaker.try_acquire().unwrap();
    let refused = breaker.try_acquire().unwrap_err();
    assert_eq!((refused.state, refused.retry_after), (BreakerState::HalfOpen, None));
    // So a retry comes back at its own pace.
    let retry = Retry::new(5).backoff(Backoff::fixed(SECOND / 10));
    let began = Instant::now();
    let call = retry.call(async || breaker.call(async || Ok::<_, BoxError>(7)).await);
    let probing = async {
        sleep(SECOND / 4).await;
        probe.succeed();
    };
    assert_eq!(tokio::join!(call, probing).0.unwrap(), 7);
    assert!(began.elapsed() < SECOND);
}
