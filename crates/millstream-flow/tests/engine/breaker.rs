//! The breaker that pauses the source: when it opens, what waits, and how it closes.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use millstream_flow::test::{Script, virtual_time};
use millstream_flow::{Breaker, BreakerState, Retry};
use millstream_resilience::{BreakerSettings, CircuitBreaker};
use tokio::time::{Instant, sleep, timeout};

const SECOND: Duration = Duration::from_secs(1);

async fn calls(breaker: &Breaker, results: impl IntoIterator<Item = bool>) {
    for ok in results {
        let _ = breaker.call(async || if ok { Ok(()) } else { Err(()) }).await;
    }
}

#[tokio::test(start_paused = true)]
async fn it_opens_when_the_part_of_failed_calls_is_reached_and_not_before_enough_were_made() {
    let breaker = Breaker::new(0.5, 4);
    calls(&breaker, [false, false, true]).await;
    assert_eq!(breaker.state(), BreakerState::Closed, "three calls are too few");
    calls(&breaker, [true]).await;
    assert_eq!((breaker.state(), breaker.times_opened()), (BreakerState::Open, 1), "two of four");
    let breaker = Breaker::new(0.5, 4);
    calls(&breaker, [true, true, true, false, false]).await;
    assert_eq!(breaker.state(), BreakerState::Closed, "two of five");
}

#[tokio::test(start_paused = true)]
async fn failures_that_are_longer_ago_than_the_window_are_forgotten() {
    let breaker = Breaker::new(0.5, 4).window(10 * SECOND);
    calls(&breaker, [false, false, false]).await;
    sleep(11 * SECOND).await;
    calls(&breaker, [false]).await;
    assert_eq!(breaker.state(), BreakerState::Closed);
    sleep(5 * SECOND).await;
    calls(&breaker, [false, false, false]).await;
    assert_eq!(breaker.state(), BreakerState::Open, "four in the last ten seconds");
}

#[tokio::test(start_paused = true)]
async fn calls_wait_for_the_pause_and_then_a_few_are_tried() {
    let breaker = Breaker::new(1.0, 1).pause(30 * SECOND).probes(2);
    calls(&breaker, [false]).await;
    let began = Instant::now();
    let running = Arc::new(AtomicUsize::new(0));
    let tries: Vec<_> = (0..5)
        .map(|_| {
            let (breaker, running) = (breaker.clone(), running.clone());
            tokio::spawn(async move {
                breaker
                    .call(async || {
                        running.fetch_add(1, Ordering::Relaxed);
                        sleep(SECOND).await;
                        Ok::<_, ()>(Instant::now())
                    })
                    .await
            })
        })
        .collect();
    sleep(30 * SECOND + SECOND / 2).await;
    assert_eq!((running.load(Ordering::Relaxed), breaker.state()), (2, BreakerState::HalfOpen));
    let mut ends = Vec::new();
    for call in tries {
        ends.push((call.await.unwrap().unwrap() - began).as_secs());
    }
    ends.sort_unstable();
    assert_eq!(ends, [31, 31, 32, 32, 32]);
    assert_eq!(breaker.state(), BreakerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_try_that_fails_begins_the_next_pause_and_one_that_is_dropped_gives_way() {
    let breaker = Breaker::new(1.0, 1).pause(30 * SECOND).probes(1);
    let mut states = breaker.states();
    calls(&breaker, [false]).await;
    assert_eq!(*states.borrow_and_update(), BreakerState::Open);
    sleep(30 * SECOND).await;
    // Dropped in the middle: neither good nor bad, and the place is free again.
    let hangs = breaker.call(async || pending::<Result<(), ()>>().await);
    assert!(timeout(SECOND, hangs).await.is_err());
    assert_eq!(breaker.state(), BreakerState::HalfOpen);
    assert_eq!(*states.borrow_and_update(), BreakerState::HalfOpen);
    calls(&breaker, [false]).await;
    assert_eq!((breaker.state(), breaker.times_opened()), (BreakerState::Open, 2));
    let began = Instant::now();
    calls(&breaker, [true]).await;
    assert_eq!((breaker.state(), began.elapsed()), (BreakerState::Closed, 30 * SECOND));
    assert_eq!(*states.borrow_and_update(), BreakerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn results_of_calls_that_began_before_do_not_count() {
    let breaker = Breaker::new(1.0, 1).pause(10 * SECOND).probes(1);
    let slow = tokio::spawn({
        let breaker = breaker.clone();
        async move {
            breaker
                .call(async || {
                    sleep(15 * SECOND).await;
                    Err::<(), _>(())
                })
                .await
        }
    });
    sleep(SECOND).await;
    calls(&breaker, [false]).await;
    sleep(10 * SECOND).await;
    calls(&breaker, [true]).await;
    assert_eq!(breaker.state(), BreakerState::Closed);
    let _ = slow.await;
    assert_eq!(
        breaker.state(),
        BreakerState::Closed,
        "it failed, but before the others succeeded it had begun"
    );
}

#[tokio::test(start_paused = true)]
async fn it_is_opened_and_closed_by_hand() {
    let breaker = Breaker::new(1.0, 1);
    breaker.trip();
    assert_eq!(breaker.state(), BreakerState::Open);
    let waits = breaker.call(async || Ok::<_, ()>(()));
    let resets = async {
        sleep(SECOND).await;
        breaker.reset();
    };
    let began = Instant::now();
    let (called, ()) = tokio::join!(waits, resets);
    assert_eq!((called, began.elapsed()), (Ok(()), SECOND));
}

#[test]
fn while_it_is_open_the_source_is_paused_and_no_item_fails_for_it() {
    virtual_time(async {
        let (pipe, outcomes) = Script::new().items(0..1000).tracked();
        let down = Arc::new(AtomicBool::new(true));
        let breaker = Breaker::new(0.5, 4).pause(60 * SECOND);
        let (guard, is_down) = (breaker.clone(), down.clone());
        let call = async move |n: &i32| {
            let ask = async || if is_down.load(Ordering::Relaxed) { Err("refused") } else { Ok(*n) };
            guard.call(ask).await
        };
        let retry = Retry::attempts(100).unwrap();
        let run = pipe.try_map_async(8, retry, call).reject().collect().start();
        sleep(600 * SECOND).await;
        assert_eq!(outcomes.issued(), 8, "as many as may be in flight, and none more in ten minutes");
        down.store(false, Ordering::Relaxed);
        let (items, report) = run.join().await.unwrap();
        assert_eq!((items.len(), report.ledger.dead), (1000, 0));
        assert_eq!(outcomes.list().len(), 1000);
    });
}

#[test]
fn a_service_that_hangs_opens_it_and_no_item_fails_while_it_is_open() {
    virtual_time(async {
        let (pipe, outcomes) = Script::new().items(0..100).tracked();
        let hangs = Arc::new(AtomicBool::new(true));
        let breaker = Breaker::new(0.5, 4).pause(60 * SECOND);
        let (guard, does_hang) = (breaker.clone(), hangs.clone());
        let call = async move |n: &i32| {
            let ask = async || {
                if does_hang.load(Ordering::Relaxed) {
                    pending::<()>().await;
                }
                Ok::<_, std::io::Error>(*n)
            };
            guard.call_within(5 * SECOND, ask).await
        };
        // Each call is made anew when the pause is over, and so at most a few times in ten minutes.
        let retry = Retry::attempts(20).unwrap();
        let run = pipe.try_map_async(8, retry, call).reject().collect().start();
        sleep(600 * SECOND).await;
        assert!(breaker.times_opened() > 5, "{}", breaker.times_opened());
        assert_eq!(outcomes.issued(), 8);
        hangs.store(false, Ordering::Relaxed);
        let (items, report) = run.join().await.unwrap();
        assert_eq!((items.len(), report.ledger.dead), (100, 0));
    });
}

#[tokio::test(start_paused = true)]
async fn a_call_that_panics_has_failed() {
    let breaker = Breaker::new(1.0, 2);
    for _ in 0..2 {
        let guard = breaker.clone();
        let call = async move { guard.call(async || -> Result<(), ()> { panic!("a test panics") }).await };
        assert!(tokio::spawn(call).await.unwrap_err().is_panic());
    }
    assert_eq!(breaker.state(), BreakerState::Open);
}

#[test]
fn rules_that_cannot_work_are_refused() {
    let refused = |build: fn()| std::panic::catch_unwind(build).is_err();
    assert!(refused(|| _ = Breaker::new(0.0, 1)));
    assert!(refused(|| _ = Breaker::new(1.1, 1)));
    assert!(refused(|| _ = Breaker::new(f64::NAN, 1)));
    assert!(refused(|| _ = Breaker::new(0.5, 0)));
    assert!(refused(|| _ = Breaker::new(0.5, 1).window(Duration::ZERO)));
    assert!(refused(|| _ = Breaker::new(0.5, 1).pause(Duration::ZERO)));
    assert!(refused(|| _ = Breaker::new(0.5, 1).probes(0)));
    // Another pause would be another breaker, of which the first one's other holders know nothing.
    fn shared() -> Breaker {
        Breaker::from(CircuitBreaker::new(BreakerSettings::default()))
    }
    assert!(refused(|| _ = shared().pause(SECOND)));
    assert!(refused(|| _ = shared().window(SECOND)));
    assert!(refused(|| _ = shared().probes(1)));
}

#[tokio::test(start_paused = true)]
async fn a_circuit_breaker_of_others_can_pause_a_flow_too() {
    let circuit = CircuitBreaker::new(BreakerSettings::default().calls_min(1).pause(SECOND).probes(1));
    let breaker = Breaker::from(circuit.clone());
    calls(&breaker, [false]).await;
    assert!(circuit.try_acquire().is_err());
    let began = Instant::now();
    calls(&breaker, [true]).await;
    assert_eq!((began.elapsed(), breaker.circuit().state()), (SECOND, BreakerState::Closed));
}
