//! What single operators say of themselves: knobs, retries, overflow, exactness, order by key.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use millstream_flow::{Batch, Capacity, Concurrency, Overflow, Pipe, Retry, Sink, SinkError, Workers};
use tokio::task::yield_now;
use tokio::time::Instant;

#[tokio::test]
async fn take_asks_its_source_for_no_item_too_many() {
    let asked = Arc::new(AtomicUsize::new(0));
    let source = (0..100).inspect({
        let asked = asked.clone();
        move |_| {
            asked.fetch_add(1, Ordering::Relaxed);
        }
    });
    let (items, _) =
        Pipe::from_iter(source).map(|n| n).take(3).batch(Batch::count(10)).collect().await.unwrap();
    assert_eq!(items, [[0, 1, 2]]);
    assert_eq!(asked.load(Ordering::Relaxed), 3);
}

#[tokio::test(start_paused = true)]
async fn retries_wait_twice_as_long_each_time_and_keep_the_order() {
    let start = Instant::now();
    let mut calls = Vec::new();
    let times = Arc::new(Mutex::new(Vec::new()));
    let retry =
        Retry::attempts(4).unwrap().first_delay(Duration::from_secs(1)).max_delay(Duration::from_secs(3));
    let (items, _) = Pipe::from_iter(0..3)
        .try_map_retry(retry, {
            let times = times.clone();
            move |&n| {
                calls.push(n);
                if n == 1 {
                    times.lock().unwrap().push(start.elapsed().as_secs());
                    return Err("not yet");
                }
                Ok(n)
            }
        })
        .fallback(|failed| 10 * failed.attempts as i32)
        .collect()
        .await
        .unwrap();
    assert_eq!(items, [0, 40, 2]);
    assert_eq!(*times.lock().unwrap(), [0, 1, 3, 6], "delays of 1, 2 and (at most) 3 seconds");
}

/// Sends `sent` items at once into a shedding buffer of two, then reads what is left.
async fn shed(overflow: Overflow, sent: i32) -> (Vec<i32>, u64) {
    let (mut sender, pipe) = Pipe::channel(16);
    let mut pipe = pipe.buffer_with(Capacity::items(2), overflow).named("shed");
    let monitor = pipe.monitor();
    let mut read = Vec::new();
    sender.send(0).await.unwrap();
    read.extend(pipe.next().await); // the buffer's task runs from here on
    for n in 1..=sent {
        sender.send(n).await.unwrap();
    }
    drop(sender);
    while monitor.report().ledger.received < sent as u64 + 1 {
        yield_now().await;
    }
    while let Some(n) = pipe.next().await {
        read.push(n);
    }
    let ledger = monitor.report().ledger;
    assert!(ledger.balances(), "{ledger:?}");
    (read, ledger.dropped_total())
}

#[tokio::test]
async fn a_full_buffer_drops_the_oldest_or_the_newest_as_declared() {
    assert_eq!(shed(Overflow::DropOldest, 5).await, (vec![0, 4, 5], 3));
    assert_eq!(shed(Overflow::DropNewest, 5).await, (vec![0, 1, 2], 3));
}

#[tokio::test]
async fn a_full_waiting_buffer_holds_its_producer_at_its_capacity() {
    let made = Arc::new(AtomicUsize::new(0));
    let counter = made.clone();
    let mut pipe = Pipe::from_iter(0..1000)
        .inspect(move |_| {
            counter.fetch_add(1, Ordering::Relaxed);
        })
        .buffer_with(Capacity::items(8), Overflow::Wait);
    assert_eq!(pipe.next().await, Some(0));
    for _ in 0..100 {
        yield_now().await;
    }
    assert!(
        made.load(Ordering::Relaxed) <= 9,
        "{} items for 8 places and one taken",
        made.load(Ordering::Relaxed)
    );
}

#[tokio::test]
async fn a_fixed_knob_refuses_and_an_automatic_one_moves_the_capacity() {
    let fixed = Pipe::from_iter(0..10).buffer(4);
    assert!(fixed.monitor().knobs()[0].set(5).is_err());

    let made = Arc::new(AtomicUsize::new(0));
    let counter = made.clone();
    let mut pipe = Pipe::from_iter(0..10_000)
        .inspect(move |_| {
            counter.fetch_add(1, Ordering::Relaxed);
        })
        .buffer(Capacity::auto());
    let knob = pipe.monitor().knobs().remove(0);
    assert_eq!(knob.set(3), Ok(3));
    assert_eq!(pipe.next().await, Some(0));
    for _ in 0..100 {
        yield_now().await;
    }
    assert!(made.load(Ordering::Relaxed) <= 4);
}

#[tokio::test]
async fn a_report_tells_where_each_knob_stands_under_a_name_of_its_own() {
    let pipe =
        Pipe::from_iter(0..10).batch(Batch::auto()).unbatch().batch(Batch::auto()).batch(Batch::count(2));
    pipe.monitor().knobs()[0].set(4).unwrap();
    let (_, report) = pipe.collect().await.unwrap();
    let told: Vec<_> = report.knobs.iter().map(|knob| (&*knob.name, knob.value, knob.fixed)).collect();
    let count = |name: &str| *told.iter().find(|knob| knob.0 == name).unwrap_or_else(|| panic!("{told:?}"));
    assert_eq!(count("batch count"), ("batch count", 4, false));
    assert_eq!(count("batch count 2"), ("batch count 2", 500, false));
    assert_eq!(count("batch count 3"), ("batch count 3", 2, true));
    let first = &report.knobs[0];
    assert!(first.min == 1 && first.max >= 500, "{first:?}");
}

#[tokio::test]
async fn the_knob_of_a_batch_sets_its_count() {
    let pipe = Pipe::from_iter(0..10).batch(Batch::auto());
    pipe.monitor().knobs()[0].set(4).unwrap();
    let (batches, _) = pipe.map(|batch| batch.len()).collect().await.unwrap();
    assert_eq!(batches, [4, 4, 2]);
}

#[tokio::test(start_paused = true)]
async fn an_automatic_number_of_calls_becomes_by_their_time_what_makes_a_thousand_a_second() {
    for (milliseconds, calls) in [(3, 16), (100, 100), (2000, 256)] {
        let time = Duration::from_millis(milliseconds);
        let pipe = Pipe::from_iter(0..2000).map_async(Concurrency::auto(), move |_| tokio::time::sleep(time));
        let monitor = pipe.monitor();
        assert_eq!(monitor.knobs()[0].value(), 16);
        pipe.for_each(drop).await.unwrap();
        assert_eq!(monitor.knobs()[0].value(), calls, "{milliseconds} ms a call");
    }
    // Sixteen are enough, or whoever moved the knob knows better.
    let few =
        Pipe::from_iter(0..10).map_async(Concurrency::auto(), |_| tokio::time::sleep(Duration::from_secs(1)));
    let monitor = few.monitor();
    few.for_each(drop).await.unwrap();
    assert_eq!(monitor.knobs()[0].value(), 16);
    let moved = Pipe::from_iter(0..2000)
        .map_async(Concurrency::auto(), |_| tokio::time::sleep(Duration::from_secs(1)));
    let monitor = moved.monitor();
    monitor.knobs()[0].set(20).unwrap();
    moved.for_each(drop).await.unwrap();
    assert_eq!(monitor.knobs()[0].value(), 20);
}

#[test]
fn an_automatic_batch_begins_with_a_count_that_suits_its_items() {
    let first = |knobs: Vec<millstream_flow::Knob>| knobs[0].value();
    assert_eq!(first(Pipe::from_iter([0u8]).batch(Batch::auto()).monitor().knobs()), 500);
    assert_eq!(first(Pipe::from_iter([[0u8; 160]]).batch(Batch::auto()).monitor().knobs()), 102);
    assert_eq!(first(Pipe::from_iter([[0u8; 8000]]).batch(Batch::auto()).monitor().knobs()), 10);
}

#[tokio::test]
async fn any_number_of_calls_may_be_in_flight() {
    for limit in [1, 2, 63, 64, 65, 128, 1024] {
        for calls in [Concurrency::ordered(limit), Concurrency::unordered(limit)] {
            let pipe = Pipe::from_iter(0..3000).map_async(calls, async |n| {
                yield_now().await;
                n
            });
            let (mut items, _) = pipe.collect().await.unwrap();
            items.sort_unstable();
            assert!(items.into_iter().eq(0..3000), "{calls:?}");
        }
    }
}

#[tokio::test]
async fn the_knob_of_map_async_limits_the_calls_in_flight() {
    for (setting, limit) in
        [(None, 3), (Some(Concurrency::ordered(5)), 5), (Some(Concurrency::unordered(2)), 2)]
    {
        let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let seen = most.clone();
        let pipe = Pipe::from_iter(0..100).map_async(setting.unwrap_or_default(), move |n: i32| {
            let (running, most) = (running.clone(), most.clone());
            async move {
                most.fetch_max(running.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
                for _ in 0..n % 7 {
                    yield_now().await;
                }
                running.fetch_sub(1, Ordering::Relaxed);
                n
            }
        });
        if setting.is_none() {
            pipe.monitor().knobs()[0].set(limit).unwrap();
        }
        let (mut items, _) = pipe.collect().await.unwrap();
        assert_eq!(seen.load(Ordering::Relaxed), limit);
        if setting != Some(Concurrency::unordered(2)) {
            assert!(items.is_sorted(), "ordered results keep their items' order");
        }
        items.sort_unstable();
        assert_eq!(items, (0..100).collect::<Vec<_>>());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parallel_keeps_the_order_unless_told_otherwise_and_loses_nothing() {
    for workers in [Workers::ordered(2), Workers::unordered(2), Workers::auto()] {
        let (mut items, report) =
            Pipe::from_iter(0..20_000u64).parallel(workers, |n| n * 2).collect().await.unwrap();
        if workers != Workers::unordered(2) {
            assert!(items.is_sorted());
        }
        items.sort_unstable();
        assert!(items.iter().copied().eq((0..20_000).map(|n| n * 2)));
        assert_eq!((report.ledger.completed, report.ledger.in_flight), (20_000, 0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lanes_keep_the_order_of_each_key() {
    let (items, _) = Pipe::from_iter(0..10_000u32)
        .per_key(4, 16, |n| n % 13, |lane| lane.map(|n| n))
        .collect()
        .await
        .unwrap();
    let mut last: HashMap<u32, u32> = HashMap::new();
    for n in &items {
        if let Some(before) = last.insert(n % 13, *n) {
            assert!(before < *n, "{n} came after {before}");
        }
    }
    assert_eq!(items.len(), 10_000);
}

#[tokio::test]
async fn a_subscriber_that_is_dropped_is_left_out_and_the_other_gets_everything() {
    let mut lanes = Pipe::from_iter(0..1000).broadcast(2, 4);
    let (mut gone, stays) = (lanes.remove(0), lanes.remove(0));
    let (items, _) = tokio::join!(stays.collect(), async move {
        assert_eq!(gone.next().await, Some(0));
        drop(gone);
    })
    .0
    .unwrap();
    assert_eq!(items, (0..1000).collect::<Vec<_>>());
}

#[tokio::test]
async fn merging_gives_each_input_its_turn() {
    let (items, _) = Pipe::from_iter(std::iter::repeat_n('a', 5000))
        .merge(Pipe::from_iter(std::iter::repeat_n('b', 5000)))
        .take(2000)
        .collect()
        .await
        .unwrap();
    let a = items.iter().filter(|&&letter| letter == 'a').count();
    assert!((700..=1300).contains(&a), "{a} of 2000 from the first input");
}

#[tokio::test(start_paused = true)]
async fn calls_of_one_key_are_one_after_the_other_and_those_of_others_at_once() {
    let running = Arc::new(Mutex::new(HashMap::<u64, usize>::new()));
    let most = Arc::new(AtomicUsize::new(0));
    let began = Instant::now();
    let (results, _) = Pipe::from_iter(0..60u64)
        .map_async_by_key(Concurrency::unordered(64), |n| n % 6, {
            let (running, most) = (running.clone(), most.clone());
            async move |n| {
                let now = {
                    let mut running = running.lock().unwrap();
                    *running.entry(n % 6).or_default() += 1;
                    assert_eq!(running[&(n % 6)], 1, "one at a time");
                    running.values().sum()
                };
                most.fetch_max(now, Ordering::Relaxed);
                // Later items of a key are faster, and must wait all the same.
                tokio::time::sleep(Duration::from_millis(100 - n)).await;
                *running.lock().unwrap().get_mut(&(n % 6)).unwrap() -= 1;
                n
            }
        })
        .collect()
        .await
        .unwrap();
    for key in 0..6 {
        let of_key: Vec<_> = results.iter().copied().filter(|n| n % 6 == key).collect();
        assert!(of_key.is_sorted() && of_key.len() == 10, "{of_key:?}");
    }
    assert!(most.load(Ordering::Relaxed) >= 4, "keys run at once, unless chance has put them in one group");
    assert!(began.elapsed() < Duration::from_millis(10 * 100 * 3));
}

#[tokio::test(start_paused = true)]
async fn tried_calls_of_one_key_wait_for_each_other_and_for_each_others_retries() {
    let began = Instant::now();
    let tried = Mutex::new(HashMap::<u64, u32>::new());
    let retry = Retry::attempts(2).unwrap().first_delay(Duration::from_secs(1));
    let (results, report) = Pipe::from_iter(0..20u64)
        .try_map_async_by_key(
            Concurrency::unordered(32),
            retry,
            |n| n % 2,
            async move |n: &u64| {
                let attempt = *tried.lock().unwrap().entry(*n).and_modify(|times| *times += 1).or_insert(1);
                match (n, attempt) {
                    (0, 1) => Err("once more"),
                    (4, _) => Err("never"),
                    _ => Ok((*n, began.elapsed().as_secs())),
                }
            },
        )
        .reject()
        .collect()
        .await
        .unwrap();
    let of = |rest| results.iter().copied().filter(|(n, _)| n % 2 == rest).collect::<Vec<_>>();
    assert!(of(1).iter().map(|(n, _)| *n).eq((1..20).step_by(2)));
    assert!(of(0).iter().map(|(n, _)| *n).eq((0..20).step_by(2).filter(|n| *n != 4)));
    // A second for the retry of 0, and one for that of 4.
    assert!(of(0)[0].1 == 1 && of(0)[1].1 == 1 && of(0)[2].1 == 2, "{results:?}");
    assert_eq!(report.ledger.dead, 1);
}

#[tokio::test]
async fn a_function_that_blocks_is_reported_by_its_stage() {
    #[expect(clippy::disallowed_methods, reason = "a function that blocks is what this is about")]
    let blocks = |n: u64| std::thread::sleep(Duration::from_millis(n));
    // One is counted. A few more do not tell against it: a thread that the machine stops for so long stalls, too.
    let items = || Pipe::from_iter([0; 50].into_iter().chain([130]).chain([0; 50]));
    let one = |stalls| (1..20).contains(&stalls);
    let (_, report) = items().map(blocks).named("call").collect().await.unwrap();
    assert!(one(report.stages[0].stalls), "{report:?}");
    assert_eq!(report.stages[0].working_seconds, 0.0);
    assert!(report.stages[0].name.contains("call"));
    let parallel = items().parallel(1, blocks);
    let (_, report) = parallel.collect().await.unwrap();
    assert!(one(report.stages[1].stalls), "{report:?}");
    struct Blocks<F>(F);
    impl<F: FnMut(u64) + Send + 'static> Sink for Blocks<F> {
        type Item = u64;
        async fn write(&mut self, items: &mut Vec<u64>) -> Result<(), SinkError> {
            items.drain(..).for_each(&mut self.0);
            Ok(())
        }
    }
    let (_, report) = items().into_sink(Blocks(blocks)).await.unwrap();
    assert!(one(report.stages[0].stalls), "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_that_does_not_return_can_be_seen_from_outside() {
    let (release, released) = std::sync::mpsc::channel::<()>();
    let pipe = Pipe::from_iter([1]).map(move |_| released.recv().is_ok()).named("stuck");
    let run = pipe.collect().start();
    loop {
        let report = run.report();
        if report.stages[0].working_seconds > 0.0 {
            assert!(report.stages[0].name.contains("stuck"));
            break;
        }
        yield_now().await;
    }
    release.send(()).unwrap();
    assert_eq!(run.join().await.unwrap().0, [true]);

    let (release, released) = std::sync::mpsc::channel::<()>();
    let released = Mutex::new(released);
    // One of the workers is stuck, while the other goes on.
    let pipe = Pipe::from_iter(0..100).parallel(2, move |n| n > 0 || released.lock().unwrap().recv().is_ok());
    let run = pipe.collect().start();
    while run.report().stages[1].working_seconds < 0.01 {
        yield_now().await;
    }
    release.send(()).unwrap();
    assert_eq!(run.join().await.unwrap().0, vec![true; 100]);
}

#[tokio::test]
async fn a_worker_takes_one_item_as_long_as_nobody_knows_what_items_cost() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = calls.clone();
    let mut pipe = Pipe::from_iter(0..8).parallel(1, move |n| {
        counter.fetch_add(1, Ordering::Relaxed);
        n
    });
    assert_eq!(pipe.next().await, Some(0));
    let made = calls.load(Ordering::Relaxed);
    assert!(made <= 3, "the first result waits for no others, and {made} calls were made");
}

#[tokio::test(start_paused = true)]
async fn a_hop_that_is_idle_says_that_nothing_waits_in_it() {
    let (mut sender, pipe) = Pipe::channel(8);
    let run = pipe.buffer(10).for_each(drop).start();
    for n in 0..5 {
        sender.send(n).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let hop = &run.report().hops[0];
    assert_eq!((hop.items, hop.len), (5, 0));
    let (mut sender, pipe) = Pipe::channel(8);
    let stuck = pipe.buffer(10).map_async(1, async |_| std::future::pending::<()>().await);
    let run = stuck.for_each(drop).start();
    for n in 0..5 {
        sender.send(n).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(run.report().hops[0].len >= 4, "one is in the call");
}
