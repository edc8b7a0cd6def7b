//! The presets of retries and breakers, each value by its effect.

use std::sync::Mutex;

use millstream_mediator::Retries;

use super::*;

const MILLISECOND: Duration = Duration::from_millis(1);

/// A mediator whose handler takes so long to fail, and how often it was called.
fn failing(retries: Retries, takes: Duration) -> (Mediator, Arc<AtomicU64>) {
    let calls = Arc::new(AtomicU64::new(0));
    let count = calls.clone();
    let mediator = Mediator::builder()
        .behaviour(retries)
        .request(move |_: Ask| {
            count.fetch_add(1, Ordering::SeqCst);
            async move {
                sleep(takes).await;
                Err::<u64, _>("busy")
            }
        })
        .build()
        .unwrap();
    (mediator, calls)
}

#[tokio::test(start_paused = true)]
async fn retry_presets_wait_as_long_as_they_say_and_leave_to_chance_what_they_say() {
    for (preset, delays, jitter) in [
        (RetryPreset::Conservative, &[500, 500][..], false),
        (RetryPreset::Database, &[1000, 2000, 4000], false),
        (RetryPreset::Aggressive, &[200, 400, 800, 1600, 3200], true),
        (RetryPreset::HttpApi, &[750, 1500, 3000, 6000], true),
    ] {
        let seen = Arc::new(Mutex::new(vec![Vec::new(); delays.len()]));
        let told = seen.clone();
        let retry = preset.retry().on_retry(move |next| {
            told.lock().unwrap()[next.attempts as usize - 1].push(next.delay);
        });
        let (mediator, _) = failing(Retries::new(retry), Duration::ZERO);
        for n in 0..200 {
            mediator.send(Ask(n)).await.unwrap_err();
        }
        for (seen, most) in seen.lock().unwrap().iter().zip(delays) {
            let most = *most * MILLISECOND;
            assert_eq!(seen.len(), 200, "{preset}");
            if !jitter {
                assert!(seen.iter().all(|delay| *delay == most), "{preset}: {seen:?}");
                continue;
            }
            assert!(seen.iter().all(|delay| *delay <= most), "{preset}: {seen:?}");
            // Of two hundred, some are in the lowest and some in the highest tenth.
            assert!(seen.iter().any(|delay| *delay < most / 10), "{preset}: {seen:?}");
            assert!(seen.iter().any(|delay| *delay > most * 9 / 10), "{preset}: {seen:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn retry_presets_begin_no_try_after_their_time() {
    // How long a try takes with which the last one just begins within the time, whatever chance says; and with which it
    // would begin too late.
    for (preset, attempts, in_time, too_late) in [
        (RetryPreset::Conservative, 3, 4_500, 4_501),
        (RetryPreset::Database, 4, 7_666, 7_667),
        (RetryPreset::Aggressive, 6, 22_760, 24_001),
        (RetryPreset::HttpApi, 5, 8_437, 11_251),
    ] {
        for (takes, expected) in [(in_time, attempts), (too_late, attempts - 1)] {
            for _ in 0..20 {
                let (mediator, calls) = failing(preset.behaviour(), takes * MILLISECOND);
                mediator.send(Ask(1)).await.unwrap_err();
                assert_eq!(calls.load(Ordering::SeqCst), expected, "{preset}: {takes} ms each");
            }
        }
    }
}

/// A mediator whose handler fails for 0, and whether its breaker is open.
fn broken(preset: BreakerPreset) -> (Mediator, impl Fn(&Mediator) -> bool) {
    let mediator = Mediator::builder()
        .behaviour(preset.behaviour())
        .request(async |ask: Ask| if ask.0 == 0 { Err("busy") } else { Ok(ask.0) })
        .build()
        .unwrap();
    (mediator, |mediator| number(mediator, "mediator_circuit_state", &[]) == 2.0)
}

#[tokio::test(start_paused = true)]
async fn breaker_presets_open_at_their_rate_and_not_below() {
    for (preset, percent) in [
        (BreakerPreset::Sensitive, 30),
        (BreakerPreset::Balanced, 50),
        (BreakerPreset::Resilient, 70),
        (BreakerPreset::Database, 40),
        (BreakerPreset::ExternalApi, 60),
    ] {
        let (mediator, is_open) = broken(preset);
        for _ in percent..100 {
            mediator.send(Ask(1)).await.unwrap();
        }
        for n in 0..percent {
            assert!(!is_open(&mediator), "{preset}: after {n} of {}", 100 - percent + n);
            let _ = mediator.send(Ask(0)).await;
        }
        assert!(is_open(&mediator), "{preset}");
    }
}

#[tokio::test(start_paused = true)]
async fn breaker_presets_forget_what_is_older_than_their_window() {
    for (preset, calls, window) in [
        (BreakerPreset::Sensitive, 3, 30),
        (BreakerPreset::Balanced, 5, 60),
        (BreakerPreset::Resilient, 10, 120),
        (BreakerPreset::Database, 5, 60),
        (BreakerPreset::ExternalApi, 8, 180),
    ] {
        // It forgets a tenth at a time.
        for (passed, opens) in [(window * SECOND * 89 / 100, true), (window * SECOND * 111 / 100, false)] {
            let (mediator, is_open) = broken(preset);
            for _ in 1..calls {
                let _ = mediator.send(Ask(0)).await;
            }
            sleep(passed).await;
            let _ = mediator.send(Ask(0)).await;
            assert_eq!(is_open(&mediator), opens, "{preset}: after {passed:?}");
        }
    }
}
