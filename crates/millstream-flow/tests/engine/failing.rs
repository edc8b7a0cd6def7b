//! Failed items: what they carry, what `Result` does for them, and how long an attempt may take.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use millstream_flow::{BoxError, Concurrency, Failed, Pipe, Retry, TimedOut};
use millstream_resilience::{Backoff, Budget, Class, Classified};
use tokio::time::{Instant, sleep};

use crate::support::{End, tracked};

#[tokio::test(start_paused = true)]
async fn a_failed_item_tells_how_each_attempt_ended() {
    let tries = AtomicU32::new(0);
    let retry = Retry::attempts(3).unwrap().first_delay(Duration::from_secs(1));
    let fails = move |_: &&str| Err::<(), _>(format!("no {}", tries.fetch_add(1, Ordering::Relaxed)));
    let by_hand = Pipe::from_iter(["a"]).try_map_retry(retry.clone(), fails).named("call");
    let tries = AtomicU32::new(0);
    let fails = async move |_: &&str| Err::<(), _>(format!("no {}", tries.fetch_add(1, Ordering::Relaxed)));
    let by_async = Pipe::from_iter(["a"]).try_map_async(1, retry, fails).named("call");
    let (sync, _) = by_hand.collect().await.unwrap();
    let (asynchronous, _) = by_async.collect().await.unwrap();
    for result in [sync, asynchronous] {
        let failed = result.into_iter().next().unwrap().unwrap_err();
        assert_eq!((failed.input, failed.attempts, failed.error.to_string()), ("a", 3, "no 2".to_owned()));
        let history: Vec<_> =
            failed.history().iter().map(|earlier| (earlier.attempts, earlier.reason.as_str())).collect();
        assert_eq!(history, [(1, "no 0"), (2, "no 1")]);
        let apart = failed.at.duration_since(failed.history()[0].at).unwrap();
        assert_eq!(apart, Duration::from_secs(3), "after one second and two");
        assert_eq!(failed.map_input(str::len).history().len(), 2, "the history stays");
    }
}

#[tokio::test(start_paused = true)]
async fn the_history_keeps_the_newest_sixteen_attempts() {
    let retry = Retry::attempts(40).unwrap();
    let (failed, _) =
        Pipe::from_iter([()]).try_map_retry(retry, |()| Err::<(), _>("no")).collect().await.unwrap();
    let failed = failed.into_iter().next().unwrap().unwrap_err();
    let attempts: Vec<_> = failed.history().iter().map(|earlier| earlier.attempts).collect();
    assert_eq!(attempts, (24..40).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_takes_too_long_is_dropped_then_and_tried_again() {
    let began = Instant::now();
    let retry =
        Retry::attempts(2).unwrap().first_delay(Duration::from_secs(1)).timeout(Duration::from_secs(5));
    let calls = AtomicU32::new(0);
    let slow_at_first = async move |n: &u32| {
        if calls.fetch_add(1, Ordering::Relaxed) < 3 {
            sleep(Duration::from_secs(3600)).await;
        }
        Ok::<_, io::Error>(*n)
    };
    let (results, _) = Pipe::from_iter([1, 2])
        .try_map_async(Concurrency::ordered(1), retry, slow_at_first)
        .collect()
        .await
        .unwrap();
    let failed = results[0].as_ref().unwrap_err();
    assert_eq!(failed.error.downcast_ref(), Some(&TimedOut { limit: Duration::from_secs(5) }));
    assert_eq!((failed.attempts, failed.history()[0].reason.as_str()), (2, "it took longer than 5s"));
    assert_eq!(*results[1].as_ref().unwrap(), 2);
    assert_eq!(began.elapsed().as_secs(), 5 + 1 + 5 + 5 + 1);
}

#[tokio::test]
async fn a_function_that_blocks_too_long_has_failed_when_it_returns() {
    let blocks = |n: &u64| {
        #[expect(clippy::disallowed_methods, reason = "the time that a function takes cannot be paused")]
        std::thread::sleep(Duration::from_millis(*n));
        Ok::<_, io::Error>(*n)
    };
    let within = |limit| Pipe::from_iter([20]).try_map_retry(Retry::never().timeout(limit), blocks).collect();
    let (results, _) = within(Duration::from_secs(3600)).await.unwrap();
    assert_eq!(*results[0].as_ref().unwrap(), 20);
    let (results, _) = within(Duration::from_millis(1)).await.unwrap();
    assert!(results[0].as_ref().unwrap_err().error.is::<TimedOut>());
}

#[tokio::test]
async fn results_are_mapped_mended_and_followed_up_in_place() {
    let (pipe, ear, _) = tracked(["7", "x", "-3", ""]);
    let mut seen = Vec::new();
    let (out, report) = pipe
        .try_map(|text| text.parse::<i32>())
        .map_err(|failed| (failed.input, failed))
        .inspect_err(move |(text, _)| {
            seen.push(*text);
            assert!(["x", ""].contains(text));
        })
        .recover(|(text, failed)| if text.is_empty() { Ok(0) } else { Err((text, failed)) })
        .map_err(|(_, failed)| failed)
        .and_then(|n| Ok(2 * n))
        .reject()
        .collect()
        .await
        .unwrap();
    assert_eq!((out, report.ledger.dead), (vec![14, -6, 0], 1));
    assert!(matches!(&ear.list()[1], End::Dead(reason) if reason.contains("invalid digit")));
}

#[tokio::test(start_paused = true)]
async fn an_error_that_says_that_another_attempt_cannot_help_is_final_and_one_that_says_when_is_obeyed() {
    let second = Duration::from_secs(1);
    let asks = Class::Throttled { retry_after: Some(5 * second) };
    let call = move |n: &u32| match n {
        0 => Err(BoxError::from(io::Error::from(io::ErrorKind::NotFound))),
        1 => Err(Classified::new(asks, "busy").into()),
        n => Ok(*n),
    };
    let retry = Retry::attempts(3).unwrap().first_delay(second);
    assert_eq!(retry.next_delay(1, &*call(&0).unwrap_err()), None);
    assert_eq!(retry.next_delay(1, &*call(&1).unwrap_err()), Some(5 * second));
    for only_if in [false, true] {
        let retry = if only_if { retry.clone().only_if(|_| true) } else { retry.clone() };
        let began = Instant::now();
        let by_hand = Pipe::from_iter(0..3).try_map_retry(retry.clone(), call).collect().await.unwrap().0;
        let took = began.elapsed();
        let by_async = Pipe::from_iter(0..3)
            .try_map_async(1, retry, async move |n: &u32| call(n))
            .collect()
            .await
            .unwrap()
            .0;
        for results in [by_hand, by_async] {
            let attempts: Vec<_> =
                results.iter().map(|result| result.as_ref().map_err(|failed| failed.attempts)).collect();
            assert_eq!(attempts, [Err(if only_if { 3 } else { 1 }), Err(3), Ok(&2)]);
        }
        assert_eq!(took, if only_if { 13 * second } else { 10 * second });
        assert_eq!(began.elapsed(), 2 * took);
    }
}

#[tokio::test(start_paused = true)]
async fn a_retry_of_the_resilience_crate_brings_its_delays_its_time_and_its_budget() {
    let second = Duration::from_secs(1);
    let budget = Budget::new(5, 0.5);
    let policy = millstream_resilience::Retry::new(10)
        .backoff(Backoff::linear(second))
        .elapsed_max(4 * second)
        .budget(budget.clone());
    let fails = |_: &u32| Err::<u32, _>("no");
    let began = Instant::now();
    let pipe = Pipe::from_iter([0]).try_map_retry(policy.clone().into(), fails);
    let attempts = |results: Vec<Result<u32, Failed<u32>>>| results[0].as_ref().unwrap_err().attempts;
    assert_eq!(attempts(pipe.collect().await.unwrap().0), 3, "one and two seconds; three more are too long");
    assert_eq!((began.elapsed(), budget.left()), (3 * second, 3));
    // The attempts themselves take time too.
    let slow = async move |_: &u32| {
        sleep(second).await;
        Err::<u32, _>("no")
    };
    let pipe = Pipe::from_iter([0]).try_map_async(1, policy.clone().into(), slow);
    assert_eq!(attempts(pipe.collect().await.unwrap().0), 2);
    let pipe = Pipe::from_iter([0]).try_map_async(1, policy.clone().into(), async move |n: &u32| fails(n));
    assert_eq!(attempts(pipe.collect().await.unwrap().0), 3);
    let pipe = Pipe::from_iter([0]).try_map_retry(policy.clone().into(), fails);
    assert_eq!((attempts(pipe.collect().await.unwrap().0), budget.left()), (1, 0));
    let good = |n: &u32| Ok::<_, String>(*n);
    Pipe::from_iter(0..4).try_map_retry(policy.clone().into(), good).collect().await.unwrap();
    Pipe::from_iter(0..2)
        .try_map_async(1, policy.into(), async move |n: &u32| good(n))
        .collect()
        .await
        .unwrap();
    assert_eq!(budget.left(), 3);
}

#[tokio::test]
async fn a_panic_before_the_first_wait_of_an_async_call_is_its_items_error_too() {
    let call = |n: &u32| {
        assert!(*n != 2, "a test panics");
        let n = *n;
        async move { Ok::<_, io::Error>(n) }
    };
    let by_fn = Pipe::from_iter(1..4u32).try_map_async(2, Retry::never(), call);
    let (results, _) = by_fn.collect().await.unwrap();
    assert_eq!(results[0].as_ref().unwrap(), &1);
    assert_eq!(results[1].as_ref().unwrap_err().error.to_string(), "panicked: a test panics");
    assert_eq!(results[2].as_ref().unwrap(), &3);
}
