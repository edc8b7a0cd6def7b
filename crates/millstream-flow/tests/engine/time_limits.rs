//! A call that does not return costs its own item, in its time, and nothing else.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use millstream_flow::{
    BoxError, Concurrency, Ended, Flow, Memo, PanicPolicy, Pipe, RateLimit, Report, Retry, RunErrorKind,
    Sink, SinkError, Spill, TimedOut,
};
use tokio::time::{Instant, advance, sleep, timeout};

use crate::support::{End, tracked};

const SECOND: Duration = Duration::from_secs(1);
const LIMIT: Duration = Duration::from_secs(5);
const LATE: &str = "it took longer than 5s";

fn ordered(calls: usize) -> Concurrency {
    Concurrency::ordered(calls).time_limit(LIMIT)
}

fn unordered(calls: usize) -> Concurrency {
    Concurrency::unordered(calls).time_limit(LIMIT)
}

/// Never returns for multiples of three, counts those that are under way.
async fn thirds(n: u32, under_way: Arc<AtomicUsize>) -> u32 {
    struct UnderWay(Arc<AtomicUsize>);
    impl Drop for UnderWay {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::Relaxed);
        }
    }
    under_way.fetch_add(1, Ordering::Relaxed);
    let _under_way = UnderWay(under_way);
    sleep(SECOND).await;
    if n.is_multiple_of(3) { pending().await } else { n }
}

/// The items, the report, and how long it took.
async fn survive<F: Flow<Item: Send> + Send + 'static>(pipe: Pipe<F>) -> (Vec<F::Item>, Report, Duration) {
    let began = Instant::now();
    let run = pipe.on_panic(PanicPolicy::Dead).collect();
    let (items, report) = timeout(1000 * SECOND, run.into_future()).await.expect("the run ends").unwrap();
    assert!(report.ledger.balances(), "{:?}", report.ledger);
    assert_eq!(report.ledger.in_flight, 0, "{:?}", report.ledger);
    (items, report, began.elapsed())
}

#[tokio::test(start_paused = true)]
async fn a_call_that_never_returns_costs_its_item_alone_and_no_more_than_its_time() {
    let under_way = Arc::new(AtomicUsize::new(0));
    let others = [1, 2, 4, 5, 7, 8];
    let dead: Vec<_> =
        (1..=9).map(|n| if n % 3 == 0 { End::Dead(LATE.into()) } else { End::Completed }).collect();
    for calls in [ordered(9), unordered(9)] {
        let count = || {
            let under_way = under_way.clone();
            move |n| thirds(n, under_way.clone())
        };
        let (pipe, ear, _) = tracked(1..=9u32);
        let (items, report, took) = survive(pipe.map_async(calls, count())).await;
        assert_eq!((items, report.ledger.dead, took), (others.to_vec(), 3, LIMIT));
        assert_eq!(ear.list(), dead);
        let (items, report, took) = survive(Pipe::from_iter(1..=9).map_async(calls, count())).await;
        assert_eq!((items, report.ledger.dead, took), (others.to_vec(), 3, LIMIT));

        let (pipe, ear, _) = tracked(1..=9u32);
        let call = {
            let under_way = under_way.clone();
            async move |n| thirds(n, under_way.clone()).await
        };
        let (mut items, ..) = survive(pipe.map_async_by_key(calls, |n| *n, call)).await;
        items.sort_unstable(); // two keys may be of one group
        assert_eq!(items, others);
        assert_eq!(ear.list(), dead);

        let (pipe, ear, _) = tracked(1..=9u32);
        let under_way = under_way.clone();
        let call = async move |n: &u32| Ok::<_, BoxError>(thirds(*n, under_way.clone()).await);
        let pipe = pipe.try_map_async(calls, Retry::never(), call).reject();
        let (items, _, took) = survive(pipe).await;
        assert_eq!((items, took), (others.to_vec(), LIMIT));
        assert_eq!(ear.list(), dead);
    }
    assert_eq!(under_way.load(Ordering::Relaxed), 0, "they were dropped");
}

#[tokio::test(start_paused = true)]
async fn one_at_a_time_each_call_has_its_time_and_the_next_ones_go_on() {
    for calls in [ordered(1), unordered(1)] {
        let pipe = Pipe::from_iter(1..=9).map_async(calls, |n| thirds(n, Arc::default()));
        let (items, _, took) = survive(pipe).await;
        assert_eq!((items, took), (vec![1, 2, 4, 5, 7, 8], 6 * SECOND + 3 * LIMIT));
    }
}

#[tokio::test(start_paused = true)]
async fn the_time_of_each_call_runs_from_its_own_beginning() {
    let ends = Arc::new(std::sync::Mutex::new(Vec::new()));
    let (mut sender, pipe) = Pipe::channel(8);
    let seen = ends.clone();
    let began = Instant::now();
    let run = pipe
        .try_map_async(unordered(8), Retry::never(), async |n: &u64| {
            sleep(Duration::from_secs(*n)).await;
            Ok::<_, BoxError>(())
        })
        .for_each(move |result| seen.lock().unwrap().push((result.is_ok(), began.elapsed().as_secs())))
        .start();
    // From 0 to 5 late, from 1 to 4, from 2 to 7 late, from 3 to 6.
    for seconds in [9, 3, 9, 3] {
        sender.send(seconds).await.unwrap();
        sleep(SECOND).await;
    }
    drop(sender);
    run.join().await.unwrap();
    assert_eq!(*ends.lock().unwrap(), [(true, 4), (false, 5), (true, 6), (false, 7)]);
}

#[tokio::test(start_paused = true)]
async fn a_late_call_of_a_function_that_cannot_fail_fails_the_run_unless_told_otherwise() {
    let (pipe, ear, _) = tracked(1..=9u32);
    let pipe = pipe.map_async(ordered(2), |n| thirds(n, Arc::default())).named("call");
    let error = timeout(1000 * SECOND, pipe.collect().into_future()).await.unwrap().unwrap_err();
    let Ended::Failed(RunErrorKind::Item(failure)) = error.ended() else { panic!("{error:?}") };
    assert_eq!((&*failure.stage, &*failure.reason, failure.panicked), ("call", LATE, false));
    assert_eq!(error.to_string(), "an item failed: call: it took longer than 5s");
    assert!(error.report().ledger.balances(), "{:?}", error.report().ledger);
    assert_eq!(ear.list()[2], End::Abandoned, "it is given back");
}

#[tokio::test(start_paused = true)]
async fn a_flow_that_never_waits_finds_its_late_calls_too() {
    let stop = Arc::new(AtomicBool::new(false));
    let goes_on = {
        let stop = stop.clone();
        move |_: &u64| !stop.load(Ordering::Relaxed)
    };
    for calls in [unordered(8), Concurrency::unordered(8)] {
        stop.store(false, Ordering::Relaxed);
        let run = Pipe::from_iter(0..)
            .on_panic(PanicPolicy::Dead)
            .take_while(goes_on.clone())
            .map_async(calls, async |n| if n == 0 { pending().await } else { n })
            .for_each(drop)
            .start();
        tokio::task::yield_now().await;
        let before = run.report().ledger;
        advance(LIMIT).await;
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
        let ledger = run.report().ledger;
        assert!(ledger.completed > before.completed, "it is busy");
        assert_eq!(ledger.dead, u64::from(calls == unordered(8)), "{ledger:?}");
        drop(run);
    }
}

#[tokio::test(start_paused = true)]
async fn all_attempts_of_an_item_share_its_time_and_its_history_stays() {
    let retry = Retry::attempts(10).unwrap().first_delay(SECOND).timeout(2 * SECOND);
    let limit = Duration::from_millis(6_500);
    let calls = Concurrency::ordered(1).time_limit(limit);
    let (results, report, took) = survive(
        Pipe::from_iter(["a"]).try_map_async(calls, retry, async |_| pending::<Result<(), BoxError>>().await),
    )
    .await;
    let failed = results[0].as_ref().unwrap_err();
    assert_eq!(failed.error.downcast_ref(), Some(&TimedOut { limit }));
    // From 0 to 2, from 3 to 5; the next one would be at 7.
    assert_eq!((failed.input, &*failed.stage, failed.attempts), ("a", "try_map_async", 2));
    assert_eq!(failed.history().len(), 2);
    assert_eq!((took, report.stages[0].operators[1].failed), (limit, 1));
}

#[tokio::test(start_paused = true)]
async fn waiting_for_the_turn_of_a_key_takes_no_time() {
    async fn call(seconds: u64) -> u64 {
        if seconds == 0 {
            pending().await
        } else {
            sleep(Duration::from_secs(seconds)).await
        }
        seconds
    }
    for calls in [ordered(8), unordered(8)] {
        // From 0 to 4, from 4 to 8, from 8 to 13 late, from 13 to 17.
        let pipe = Pipe::from_iter([4, 4, 0, 4]).map_async_by_key(calls, |_| (), call);
        let (items, _, took) = survive(pipe).await;
        assert_eq!((items, took), (vec![4, 4, 4], 17 * SECOND));
        let pipe = Pipe::from_iter([4, 4, 0, 4])
            .try_map_async_by_key(
                calls,
                Retry::never(),
                |_| (),
                async |n: &u64| Ok::<_, BoxError>(call(*n).await),
            )
            .skip_errors();
        let (items, _, took) = survive(pipe).await;
        assert_eq!((items, took), (vec![4, 4, 4], 17 * SECOND));
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_what_is_looked_up_too_long_looks_up_in_a_time_of_his_own() {
    let calls = AtomicU32::new(0);
    let look_up = async move |_: &()| {
        let call = calls.fetch_add(1, Ordering::Relaxed);
        sleep(if call == 0 { 3600 * SECOND } else { 4 * SECOND }).await;
        Ok::<_, BoxError>(call)
    };
    let (results, _, took) =
        survive(Pipe::from_iter([1, 2, 3]).memoize(ordered(8), Memo::new(1), |_| (), look_up)).await;
    let failed = results[0].as_ref().unwrap_err();
    assert_eq!((failed.input, &*failed.stage), (1, "memoize"));
    assert_eq!(failed.error.downcast_ref(), Some(&TimedOut { limit: LIMIT }));
    let values: Vec<_> = results[1..].iter().map(|result| *result.as_ref().unwrap()).collect();
    assert_eq!((values, took), (vec![(2, 1), (3, 1)], LIMIT + 4 * SECOND));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_done_when_its_time_ends_is_not_late() {
    for calls in [ordered(3), unordered(3)] {
        let pipe = Pipe::from_iter(0..3).map_async(calls, async |n| {
            sleep(LIMIT).await;
            n
        });
        assert_eq!(survive(pipe).await.0, [0, 1, 2]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_could_have_gone_on_while_a_slow_reader_held_it_back_is_not_late() {
    for (calls, held_back) in [(ordered(4), [1, 2, 3]), (unordered(4), [1, 2, 3])] {
        // The first passes at once, and is then in hand of the second operator for an hour.
        let (pipe, ear, _) = tracked(0..5u64);
        let pipe = pipe
            .map_async(calls, async |n| {
                if n == 4 {
                    sleep(2 * SECOND).await;
                    pending::<()>().await;
                }
                // Woken at three moments, of which the slow reader lets none but the first be seen.
                for _ in 0..n {
                    sleep(SECOND).await;
                    sleep(SECOND).await;
                }
                n
            })
            .map_async(1, async |n| {
                sleep(if n == 0 { 3600 * SECOND } else { SECOND }).await;
                n
            });
        let run = pipe.on_panic(PanicPolicy::Dead).collect();
        let (items, report) =
            timeout(10_000 * SECOND, run.into_future()).await.expect("the run ends").unwrap();
        assert_eq!((items[1..].to_vec(), report.ledger.dead), (held_back.to_vec(), 1));
        assert_eq!(ear.list()[4], End::Dead(LATE.into()));
    }
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_could_have_gone_on_while_a_slow_reader_held_it_back_is_not_late() {
    for calls in [Concurrency::ordered(5), Concurrency::unordered(5)] {
        for by_key in [false, true] {
            let retry = Retry::attempts(2).unwrap().first_delay(SECOND).timeout(LIMIT);
            let began = Arc::new(AtomicU32::new(0));
            let count = began.clone();
            let call = async move |n: &u64| {
                count.fetch_add(1, Ordering::Relaxed);
                // All are under way when the first is done, and then in the reader's hand for an hour.
                sleep(Duration::from_millis(10)).await;
                if *n == 4 {
                    pending::<()>().await;
                }
                for _ in 0..*n {
                    sleep(3 * SECOND / 4).await;
                    sleep(3 * SECOND / 4).await;
                }
                Ok::<_, BoxError>(*n)
            };
            let pipe = Pipe::from_iter(0..5u64);
            let tried = if by_key {
                pipe.try_map_async_by_key(calls, retry, |n| *n, call).boxed()
            } else {
                pipe.try_map_async(calls, retry, call).boxed()
            };
            let slow = tried.map_async(1, async |result: Result<u64, millstream_flow::Failed<u64>>| {
                if matches!(result, Ok(0)) {
                    sleep(3600 * SECOND).await;
                }
                result
            });
            let (results, _) =
                timeout(10_000 * SECOND, slow.collect().into_future()).await.expect("the run ends").unwrap();
            let mut done: Vec<_> =
                results.iter().filter_map(|result| result.as_ref().ok().copied()).collect();
            done.sort_unstable();
            assert_eq!(done, [0, 1, 2, 3], "{calls:?}, by key {by_key}");
            // Who was not woken is late all the same, each time.
            let failed: Vec<_> = results.into_iter().filter_map(Result::err).collect();
            assert_eq!((failed.len(), failed[0].input, failed[0].attempts), (1, 4, 2));
            assert_eq!(failed[0].error.downcast_ref(), Some(&TimedOut { limit: LIMIT }));
            assert_eq!(began.load(Ordering::Relaxed), 6, "nothing else was tried again");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn each_attempt_has_its_whole_time_and_what_follows_at_once_too() {
    // Without a delay the next attempt begins in the moment when the one before is told that it is late.
    let retry =
        millstream_resilience::Retry::new(4).backoff(millstream_resilience::Backoff::fixed(Duration::ZERO));
    let calls = AtomicU32::new(0);
    let call = async move |_: &()| match calls.fetch_add(1, Ordering::Relaxed) {
        0 | 2 => pending::<Result<(), BoxError>>().await,
        1 => {
            sleep(4 * SECOND).await;
            Err("busy".into())
        }
        _ => {
            sleep(4 * SECOND).await;
            Ok(())
        }
    };
    let pipe = Pipe::from_iter([()]).try_map_async(1, Retry::from(retry).timeout(LIMIT), call);
    let (results, _, took) = survive(pipe).await;
    assert!(results[0].is_ok(), "{:?}", results[0].as_ref().map_err(|failed| failed.attempts));
    assert_eq!(took, LIMIT + 4 * SECOND + LIMIT + 4 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_late_as_its_next_attempt_begins_leaves_nothing_to_others() {
    let (limit, moment) = (3 * SECOND, Duration::from_millis(1));
    let retry = Retry::attempts(9).unwrap().first_delay(limit - moment).timeout(2 * SECOND);
    let call = async move |n: &u32| match n {
        0 => {
            sleep(moment).await;
            Err(BoxError::from("busy"))
        }
        n => {
            sleep(SECOND * *n).await;
            Ok(*n)
        }
    };
    let calls = Concurrency::unordered(4).time_limit(limit);
    let items = [0, 0, 1, 3, 1, 3, 1];
    let (results, _, _) = survive(Pipe::from_iter(items).try_map_async(calls, retry, call)).await;
    let failed: Vec<_> = results.iter().filter_map(|result| result.as_ref().err()).collect();
    assert!(failed.iter().all(|failed| failed.error.is::<TimedOut>()));
    assert_eq!((failed.len(), results.len()), (4, items.len()));
}

#[tokio::test(start_paused = true)]
async fn a_late_call_that_panics_as_it_is_dropped_costs_its_item_alone() {
    struct Thorny;
    impl Drop for Thorny {
        fn drop(&mut self) {
            panic!("a test panics");
        }
    }
    for calls in [ordered(4), unordered(4)] {
        let (pipe, ear, _) = tracked(1..=9u32);
        let pipe = pipe.map_async(calls, async |n: u32| {
            sleep(SECOND).await;
            if n.is_multiple_of(3) {
                let _thorny = Thorny;
                pending().await
            }
            n
        });
        let (mut items, ..) = survive(pipe).await;
        items.sort_unstable();
        assert_eq!(items, [1, 2, 4, 5, 7, 8]);
        assert_eq!(ear.list()[2], End::Dead("panicked: a test panics".into()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_limit_is_in_the_memory_bound_and_may_be_taken_back() {
    let bound = |calls: Concurrency| {
        Pipe::from_iter(0..3u32).map_async(calls, async |n| n).monitor().report().memory_bound_bytes
    };
    let (without, with) = (bound(Concurrency::ordered(100)), bound(ordered(100)));
    assert!(with >= without + 100 * 16, "{without}, {with}");
    assert_eq!(bound(ordered(100).time_limit(None)), without);
    let attempts = |retry: Retry| {
        let pipe = Pipe::from_iter(0..3u32);
        let pipe =
            pipe.try_map_async(Concurrency::ordered(100), retry, async |n: &u32| Ok::<_, BoxError>(*n));
        pipe.monitor().report().memory_bound_bytes
    };
    let (without, with) = (attempts(Retry::never()), attempts(Retry::never().timeout(LIMIT)));
    assert!(with >= without + 100 * 16, "{without}, {with}");
}

#[test]
#[should_panic(expected = "nothing can be done in no time")]
fn a_limit_of_no_time_is_refused() {
    let _ = Concurrency::ordered(1).time_limit(Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_a_slow_reader_holds_back_after_a_panic_is_not_late() {
    for calls in [ordered(4), unordered(4)] {
        let pipe = Pipe::from_iter([1, 3, 2u32])
            .map_async(calls, async |n| {
                for _ in 0..n {
                    tokio::task::yield_now().await;
                }
                n
            })
            .rate_limit(RateLimit::new(1, 10 * SECOND))
            .inspect(|n| assert_ne!(*n, 1, "the first is too much"));
        let (mut items, report, took) = survive(pipe).await;
        items.sort_unstable();
        assert_eq!((items, report.ledger.dead), (vec![2, 3], 1), "{report:?}");
        assert!(took > LIMIT, "{took:?}");
    }
}

/// Hangs at its second write, or as it closes.
#[derive(Debug)]
struct Stuck {
    writes: usize,
}

impl Sink for Stuck {
    type Item = u32;

    async fn write(&mut self, _: &mut Vec<u32>) -> Result<(), SinkError> {
        self.writes += 1;
        if self.writes == 2 { pending().await } else { Ok(()) }
    }

    async fn close(&mut self) -> Result<(), BoxError> {
        pending().await
    }

    fn chunk(&self) -> usize {
        3
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_that_never_returns_fails_the_run_in_its_time_and_gives_its_items_back() {
    for (items, ends) in [(6, 3), (3, 3)] {
        let (pipe, ear, _) = tracked(0..items);
        let began = Instant::now();
        let run = pipe.into_sink(Stuck { writes: 0 }.time_limit(LIMIT));
        let error = timeout(1000 * SECOND, run.into_future()).await.expect("the run ends").unwrap_err();
        assert_eq!(error.to_string(), "the sink failed: it took longer than 5s");
        let Ended::Failed(RunErrorKind::Sink(error)) = error.ended() else { panic!("{error:?}") };
        assert_eq!(error.downcast_ref(), Some(&TimedOut { limit: LIMIT }));
        assert_eq!(began.elapsed(), LIMIT);
        let completed = ear.list().iter().filter(|end| **end == End::Completed).count();
        assert_eq!((completed, ear.list().len()), (ends, items as usize));
    }
}

/// Stores, and hangs as it takes back; or hangs at once.
struct Abyss(bool);

impl Spill<u32> for Abyss {
    async fn push(&mut self, _: Vec<u32>) -> Result<(), BoxError> {
        if self.0 { Ok(()) } else { pending().await }
    }

    async fn pop(&mut self, _: usize) -> Result<Vec<u32>, BoxError> {
        pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn a_spill_that_never_returns_fails_the_run_in_its_time_and_gives_its_items_back() {
    for stores in [false, true] {
        let (pipe, ear, _) = tracked(0..600);
        let began = Instant::now();
        let run = pipe
            .buffer_spilling(1, 10_000, Abyss(stores).time_limit(LIMIT))
            .map_async(1, async |n| {
                sleep(Duration::from_millis(1)).await;
                n
            })
            .for_each(drop);
        let error = timeout(1000 * SECOND, run.into_future()).await.expect("the run ends").unwrap_err();
        let Ended::Failed(RunErrorKind::Stage(late)) = error.ended() else { panic!("{error:?}") };
        assert_eq!(late.downcast_ref(), Some(&TimedOut { limit: LIMIT }));
        assert!(began.elapsed() < LIMIT + SECOND, "{:?}", began.elapsed());
        let ledger = &error.report().ledger;
        assert!(ledger.received > 0 && ledger.balances(), "{ledger:?}");
        assert_eq!(ear.list().len() as u64, ledger.received);
        assert!(
            ear.list().iter().all(|end| matches!(end, End::Completed | End::Abandoned)),
            "{:?}",
            ear.list()
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_writes_in_time_is_given_back_as_it_was() {
    struct Lines(Vec<u32>);
    impl Sink for Lines {
        type Item = u32;
        async fn write(&mut self, items: &mut Vec<u32>) -> Result<(), SinkError> {
            sleep(4 * SECOND).await;
            self.0.append(items);
            Ok(())
        }
        fn chunk(&self) -> usize {
            2
        }
    }
    let (sink, _) = Pipe::from_iter(0..5).into_sink(Lines(vec![]).time_limit(LIMIT)).await.unwrap();
    assert_eq!(sink.into_inner().0, [0, 1, 2, 3, 4]);
}
