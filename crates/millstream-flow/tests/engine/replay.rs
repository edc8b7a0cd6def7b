//! Late subscribers: what they see, what they miss, and whom the flow waits for.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fastrand::Rng;
use millstream_flow::{Pipe, Replay};
use tokio::task::yield_now;
use tokio::time::{sleep, timeout};

use crate::support::{fitful, tracked, yields};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn who_comes_late_sees_the_newest_and_then_what_comes() {
    let replay = Replay::new(5);
    let (mut sender, pipe) = Pipe::channel(100);
    let run = pipe.replay(&replay).collect().start();
    for n in 0..20 {
        sender.send(n).await.unwrap();
    }
    sleep(SECOND).await;
    let late = replay.subscribe().collect().start();
    for n in 20..24 {
        sender.send(n).await.unwrap();
        sleep(SECOND).await;
    }
    drop(sender);
    let (seen, report) = late.join().await.unwrap();
    assert_eq!(seen, (15..24).collect::<Vec<_>>());
    assert_eq!(report.ledger.dropped_total(), 0);
    assert_eq!(run.join().await.unwrap().0, (0..24).collect::<Vec<_>>(), "the flow itself goes on");
    // When all is over, what is remembered still is.
    assert_eq!(replay.subscribe().collect().await.unwrap().0, (19..24).collect::<Vec<_>>());
}

#[tokio::test]
async fn nobody_waits_for_a_subscriber_and_what_it_misses_is_in_its_ledger() {
    let replay = Replay::new(10);
    let (first, late) = (replay.subscribe(), replay.subscribe().named("slow screen"));
    drop(first);
    Pipe::from_iter(0..1000).replay(&replay).for_each(drop).await.unwrap();
    let (seen, report) = late.collect().await.unwrap();
    assert_eq!(seen, (990..1000).collect::<Vec<_>>());
    assert_eq!((report.ledger.received, report.ledger.completed), (1000, 10));
    assert_eq!(report.ledger.dropped["slow screen"], 990);
    assert!(report.ledger.balances());
}

#[tokio::test(start_paused = true)]
async fn the_flow_waits_for_who_subscribed_to_all_and_goes_on_when_it_is_gone() {
    let replay = Replay::new(10);
    let complete = replay.subscribe_complete();
    let passed = Arc::new(AtomicUsize::new(0));
    let counter = passed.clone();
    let count = move |_| _ = counter.fetch_add(1, Ordering::Relaxed);
    let run = Pipe::from_iter(0..1000).replay(&replay).for_each(count).start();
    sleep(SECOND).await;
    assert_eq!(passed.load(Ordering::Relaxed), 10, "as many as are remembered, and no further");
    let (first, _) = complete.take(100).collect().await.unwrap();
    assert_eq!(first, (0..100).collect::<Vec<_>>());
    timeout(SECOND, run.join()).await.expect("the flow goes on").unwrap();
    assert_eq!(passed.load(Ordering::Relaxed), 1000);
}

#[tokio::test]
async fn what_is_remembered_is_bounded_in_bytes_and_one_larger_item_is_kept() {
    let replay = Replay::new(1000).bytes(10, |text: &&str| text.len());
    Pipe::from_iter(["aaaa", "bbbb", "cc", "dddd"]).replay(&replay).for_each(drop).await.unwrap();
    assert_eq!(replay.subscribe().collect().await.unwrap().0, ["bbbb", "cc", "dddd"]);
    Pipe::from_iter(["e", "longer than ten"]).replay(&replay).for_each(drop).await.unwrap();
    assert_eq!(replay.subscribe().collect().await.unwrap().0, ["longer than ten"]);
}

#[tokio::test(start_paused = true)]
async fn a_reader_of_all_keeps_the_flow_within_the_bytes() {
    let replay = Replay::new(1000).bytes(10, |text: &&str| text.len());
    let complete = replay.subscribe_complete();
    let _run = Pipe::from_iter(["aaaa"; 50]).replay(&replay).for_each(drop).start();
    sleep(SECOND).await;
    assert_eq!(replay.len(), 3, "the third went over the limit");
    assert_eq!(complete.collect().await.unwrap().0.len(), 50);
}

#[tokio::test(start_paused = true)]
async fn items_are_forgotten_at_their_age() {
    let replay = Replay::new(1000).age(10 * SECOND);
    let (mut sender, pipe) = Pipe::channel(100);
    let _run = pipe.replay(&replay).for_each(drop).start();
    for n in 0..5 {
        sender.send(n).await.unwrap();
        sleep(4 * SECOND).await;
    }
    // It is second 20; they came at 0, 4, 8, 12 and 16.
    let (some, _) = replay.subscribe().take(2).collect().await.unwrap();
    assert_eq!(some, [3, 4]);
    sleep(8 * SECOND).await;
    assert!(replay.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_flow_that_is_dropped_ends_its_subscribers_and_a_stopped_one_ends_by_itself() {
    let replay = Replay::new(10);
    let (mut sender, pipe) = Pipe::channel(100);
    let run = pipe.replay(&replay).for_each(drop).start();
    sender.send(1).await.unwrap();
    let stopped = replay.subscribe().collect().start();
    let follows = replay.subscribe().collect().start();
    sleep(SECOND).await;
    timeout(SECOND, stopped.shutdown(SECOND)).await.unwrap().unwrap();
    drop(run);
    let (seen, _) = timeout(SECOND, follows.join()).await.expect("no flow is recorded any more").unwrap();
    assert_eq!(seen, [1]);
}

#[tokio::test]
async fn tokens_are_not_touched_by_it() {
    let replay = Replay::new(10);
    let (pipe, ear, _) = tracked(0..50);
    let report = pipe.replay(&replay).filter(|n| n % 2 == 0).for_each(drop).await.unwrap().1;
    assert_eq!((report.ledger.completed, report.ledger.dropped["filter"]), (25, 25));
    assert_eq!(ear.list().len(), 50);
}

#[tokio::test(start_paused = true)]
async fn every_subscriber_sees_a_gapless_end_whatever_their_pace() {
    for seed in 0..200 {
        let mut dice = Rng::with_seed(seed);
        let (count, memory) = (dice.u64(1..500), 1 + dice.usize(..20));
        let replay = Replay::new(memory);
        let runs: Vec<_> = (0..4)
            .map(|reader| {
                let pipe = if reader % 2 == 0 { replay.subscribe() } else { replay.subscribe_complete() };
                let (mut dice, pace) = (dice.fork(), dice.u64(1..4));
                pipe.map_async(1, move |n| {
                    let turns = dice.u64(..pace);
                    async move {
                        yields(turns).await;
                        n
                    }
                })
                .collect()
                .start()
            })
            .collect();
        let source = Pipe::from_stream(fitful(0..count, seed)).replay(&replay);
        source.for_each(drop).await.unwrap();
        yield_now().await;
        for (reader, run) in runs.into_iter().enumerate() {
            let (seen, report) = timeout(SECOND, run.join()).await.expect("a wake-up was lost").unwrap();
            assert!(seen.is_sorted_by(|a, b| a < b), "seed {seed}: in order, none twice");
            assert_eq!(seen.len() as u64 + report.ledger.dropped_total(), count, "seed {seed}");
            assert_eq!(seen.last(), Some(&(count - 1)));
            assert!(reader % 2 == 0 || seen.len() as u64 == count, "seed {seed}: it was to miss nothing");
        }
    }
}

#[test]
fn a_replay_of_nothing_is_refused() {
    for nothing in
        [|| Replay::<u8>::new(0), || Replay::new(1).age(Duration::ZERO), || Replay::new(1).bytes(0, |_| 1)]
    {
        assert!(std::panic::catch_unwind(nothing).is_err());
    }
}
