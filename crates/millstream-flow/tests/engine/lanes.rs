//! One flow to several, and buffers that do not wait.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::time::Duration;

use fastrand::Rng;
use futures_util::StreamExt;
use millstream_flow::{Capacity, Ended, Flow, Lane, Overflow, Overflowed, Pipe, RunErrorKind};
use tokio::task::yield_now;
use tokio::time::sleep;

use crate::support::{End, tracked, yields};

/// What comes out of each lane.
async fn all<F: Flow<Item: Send> + Send + 'static>(lanes: Vec<Pipe<F>>) -> Vec<Vec<F::Item>> {
    let runs: Vec<_> = lanes.into_iter().map(|lane| lane.collect().start()).collect();
    let mut all = Vec::new();
    for run in runs {
        all.push(run.join().await.unwrap().0);
    }
    all
}

#[tokio::test]
async fn a_lane_that_sheds_holds_nobody_back_though_nobody_reads_it() {
    let (pipe, ear, _) = tracked(0..5000u32);
    let lanes = [Lane::capacity(8), Lane::capacity(4).overflow(Overflow::DropOldest)];
    let mut lanes = pipe.broadcast_to(&lanes).into_iter();
    let (all, newest) = (lanes.next().unwrap(), lanes.next().unwrap().named("screen"));
    let (all, _) = all.collect().await.unwrap();
    assert_eq!(all, (0..5000).collect::<Vec<_>>());
    // The last are in both lanes, and one lane ends while the other's task has still to shed for them.
    yields(100).await;
    let (newest, report) = newest.collect().await.unwrap();
    assert_eq!(newest, [4996, 4997, 4998, 4999]);
    assert_eq!(report.ledger.completed, 5000, "an item that one lane shed was completed by the other");
    assert_eq!(ear.list(), vec![End::Completed; 5000]);
}

#[tokio::test]
async fn a_lane_that_waits_sets_the_pace_of_all() {
    let (pipe, _, account) = tracked(0..1000u32);
    let mut lanes = pipe.broadcast_to(&[Lane::capacity(4), Lane::capacity(4)]).into_iter();
    let (one, _other) = (lanes.next().unwrap().for_each(drop).start(), lanes.next());
    for _ in 0..100 {
        yield_now().await;
    }
    assert_eq!(account.received(), 4);
    drop(one);
}

#[tokio::test]
async fn a_custom_partition_sends_where_it_says_and_a_lane_that_is_not_there_is_a_panic() {
    let lanes = Pipe::from_iter(0..9).partition_by(3, 16, |n| n / 3);
    let lanes = all(lanes).await;
    assert_eq!(lanes, [[0, 1, 2], [3, 4, 5], [6, 7, 8]]);
    let mut lanes = Pipe::from_iter(0..9).partition_by(2, 16, |n| n / 3).into_iter();
    let (one, other) = (lanes.next().unwrap(), lanes.next().unwrap());
    let error = one.merge(other).for_each(drop).await.unwrap_err();
    assert!(error.to_string().contains("there is no lane 2: they are numbered from 0 to 1"), "{error}");
}

#[tokio::test]
async fn a_split_keeps_the_order_on_either_side() {
    let (even, odd) = Pipe::from_iter(0..1000u64).split(7, |n| n % 2 == 0);
    let odd = odd.collect().start();
    assert!(even.collect().await.unwrap().0.into_iter().eq((0..1000).step_by(2)));
    assert!(odd.join().await.unwrap().0.into_iter().eq((1..1000).step_by(2)));
}

#[tokio::test]
async fn round_robin_deals_out_equally_and_in_order() {
    let lanes = Pipe::from_iter(0..8).round_robin(3, 16);
    let lanes = all(lanes).await;
    assert_eq!(lanes, [vec![0, 3, 6], vec![1, 4, 7], vec![2, 5]]);
}

#[tokio::test]
async fn routes_come_and_go_while_the_flow_runs() {
    let (mut sender, pipe) = Pipe::channel(4);
    let switch = pipe.switch(|word: &&str| word.chars().next()).named("by letter");
    let a = switch.route(Some('a'), 10).collect().start();
    let monitor = a.monitor();
    let settle = async || {
        for _ in 0..20 {
            yield_now().await;
        }
    };
    sender.send("ant").await.unwrap();
    sender.send("bee").await.unwrap();
    settle().await;
    assert_eq!(monitor.report().ledger.dropped["by letter"], 1, "nobody was there for the bee");

    let b = switch.route(Some('b'), 10).collect().start();
    sender.send("boar").await.unwrap();
    settle().await;
    assert!(switch.has_route(&Some('a')) && switch.remove(&Some('a')) && !switch.remove(&Some('a')));
    let (words, _) = a.join().await.unwrap();
    assert_eq!(words, ["ant"], "a route that was taken away ends after what is in it");

    let rest = switch.default_route(10).collect().start();
    sender.send("asp").await.unwrap();
    settle().await;
    let b_again = switch.route(Some('b'), 10).collect().start();
    assert_eq!(b.join().await.unwrap().0, ["boar"], "a new route of a key ends the old one");
    sender.send("bat").await.unwrap();
    settle().await;
    let mut keys = switch.keys();
    keys.sort();
    assert_eq!(keys, [Some('b')]);
    drop(switch);
    sender.send("cat").await.unwrap();
    drop(sender);
    assert_eq!(b_again.join().await.unwrap().0, ["bat"]);
    assert_eq!(rest.join().await.unwrap().0, ["asp", "cat"]);
    let ledger = monitor.report().ledger;
    assert!(ledger.balances() && ledger.in_flight == 0, "{ledger:?}");
}

#[tokio::test]
async fn a_route_of_a_flow_that_has_ended_ends_at_once() {
    let switch = Pipe::from_iter(0..3).switch(|n| *n % 2);
    let even = switch.route(0, 10);
    assert_eq!(even.collect().await.unwrap().0, [0, 2]);
    assert_eq!(switch.route(1, 10).collect().await.unwrap().0, [0; 0]);
}

#[tokio::test]
async fn a_switch_without_handle_and_routes_takes_nothing_more_from_its_source() {
    let (pipe, ear, account) = tracked(0..100u32);
    let switch = pipe.switch(|_| ());
    let run = switch.route((), 4).for_each(drop).start();
    switch.remove(&());
    drop(switch);
    run.join().await.unwrap();
    ear.all_ended().await;
    assert!(account.received() <= 8 && account.dropped().is_empty(), "{account:?}");
}

#[tokio::test]
async fn a_switch_whose_last_reader_is_gone_waits_for_the_next() {
    let switch = Pipe::from_iter(0..100).switch(|_| ());
    let mut first = switch.route((), 1);
    assert_eq!(first.next().await, Some(0));
    drop(first);
    for _ in 0..20 {
        yield_now().await;
    }
    let second = switch.route((), 16);
    let (rest, report) = second.collect().await.unwrap();
    let missing = report.ledger.in_flight;
    assert!(missing <= 2, "what was in the first route when it was dropped: {missing}");
    assert_eq!(rest, (1 + missing as i32..100).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_buffer_thins_out_from_half_full_until_a_quarter_is_left() {
    let (mut sender, pipe) = Pipe::channel(64);
    let mut pipe =
        pipe.buffer_with(Capacity::items(8), Overflow::Sample(NonZeroUsize::new(3).unwrap())).named("thin");
    let monitor = pipe.monitor();
    sender.send(0).await.unwrap();
    assert_eq!(pipe.next().await, Some(0));
    for n in 1..=16 {
        sender.send(n).await.unwrap();
    }
    let came = async |count| {
        while monitor.report().ledger.received < count {
            yield_now().await;
        }
        yield_now().await;
    };
    came(17).await;
    for n in [1, 2, 3, 4, 5, 8] {
        // 1 to 4 fill half; then one in three: 5, 8, 11, 14.
        assert_eq!(pipe.next().await, Some(n));
    }
    // Two are left, a quarter: all are let in again.
    for n in 17..=18 {
        sender.send(n).await.unwrap();
    }
    drop(sender);
    assert_eq!(pipe.collect().await.unwrap().0, [11, 14, 17, 18]);
    let ledger = monitor.report().ledger;
    assert_eq!(ledger.dropped["thin"], 8);
    assert!(ledger.balances() && ledger.in_flight == 0, "{ledger:?}");
}

#[tokio::test]
async fn a_full_buffer_that_is_to_fail_fails_the_run_and_gives_everything_back() {
    let (pipe, ear, _) = tracked(0..100u32);
    let slow = pipe.buffer_with(Capacity::items(3), Overflow::Fail).named("strict");
    let run = slow.map_async(1, async |_| sleep(Duration::from_secs(3600)).await).for_each(drop);
    let error = run.await.unwrap_err();
    let Ended::Failed(RunErrorKind::Stage(cause)) = error.ended() else { panic!("{error:?}") };
    let overflowed = cause.downcast_ref::<Overflowed>().unwrap();
    assert_eq!((&*overflowed.stage, overflowed.items), ("strict", 3));
    ear.all_ended().await;
    assert!(ear.ends().values().all(|end| *end == End::Abandoned));
}

/// A spill in memory, which notes the most it held, takes its time, and fails when it is told to.
struct Heap {
    items: std::collections::VecDeque<u64>,
    most: std::sync::Arc<std::sync::atomic::AtomicUsize>,
    dice: Rng,
    fails_at: Option<u64>,
}

impl Heap {
    fn new(seed: u64) -> Self {
        Heap {
            items: Default::default(),
            most: Default::default(),
            dice: Rng::with_seed(seed),
            fails_at: None,
        }
    }

    async fn trouble(&mut self, item: Option<u64>) -> Result<(), millstream_flow::BoxError> {
        yields(self.dice.u64(..3)).await;
        if item.is_some() && item >= self.fails_at && self.fails_at.is_some() {
            return Err("the disk is full".into());
        }
        Ok(())
    }
}

impl millstream_flow::Spill<u64> for Heap {
    async fn push(&mut self, items: Vec<u64>) -> Result<(), millstream_flow::BoxError> {
        self.trouble(items.last().copied()).await?;
        self.items.extend(items);
        self.most.fetch_max(self.items.len(), std::sync::atomic::Ordering::Relaxed);
        Ok(())
    }

    async fn pop(&mut self, max: usize) -> Result<Vec<u64>, millstream_flow::BoxError> {
        self.trouble(None).await?;
        let count = max.min(self.items.len()).min(1 + self.dice.u64(..max as u64) as usize);
        Ok(self.items.drain(..count).collect())
    }
}

#[tokio::test]
async fn a_spilling_buffer_keeps_all_items_in_order_whatever_the_reader_does() {
    for seed in 0..300 {
        let mut dice = Rng::with_seed(seed);
        let (count, capacity, spilled) =
            (dice.u64(..2000), 1 + dice.u64(..20) as usize, 1 + dice.u64(..600) as usize);
        let (pipe, ear, account) = crate::support::tracked_stream(crate::support::fitful(0..count, seed));
        let spill = Heap::new(seed);
        let most = spill.most.clone();
        let speed = 1 + dice.u64(..4);
        let pipe = pipe.buffer_spilling(capacity, spilled, spill).map_async(1, move |n| {
            let turns = dice.u64(..speed);
            async move {
                yields(turns).await;
                n
            }
        });
        let run = pipe.collect().start();
        let (items, report) = tokio::time::timeout(Duration::from_secs(300), run.join())
            .await
            .expect("a wake-up was lost")
            .unwrap();
        assert_eq!(items, (0..count).collect::<Vec<_>>(), "seed {seed}");
        assert!(most.load(std::sync::atomic::Ordering::Relaxed) <= spilled);
        assert_eq!((account.received(), report.ledger.completed), (count, count));
        assert_eq!(ear.list().len() as u64, count);
    }
}

#[tokio::test(start_paused = true)]
async fn a_spilling_buffer_takes_what_memory_and_spill_hold_and_then_its_producer_waits() {
    let (pipe, ear, account) = tracked(0..10_000u64);
    let spill = Heap::new(1);
    let most = spill.most.clone();
    let slow =
        pipe.buffer_spilling(10, 1000, spill).map_async(1, async |_| sleep(Duration::from_secs(1)).await);
    let run = slow.for_each(drop).start();
    sleep(Duration::from_millis(500)).await;
    assert_eq!(most.load(std::sync::atomic::Ordering::Relaxed), 1000);
    // One in the call, ten in memory, a thousand in the spill, and a chunk in hand.
    assert!((1011..=1011 + 256).contains(&account.received()), "{}", account.received());
    drop(run);
    ear.all_ended().await;
    assert!(ear.list().iter().all(|end| *end == End::Abandoned), "spilled items are given back too");
}

#[test]
fn a_spilling_buffer_that_is_full_waits_for_its_reader_while_its_source_is_silent() {
    use millstream_flow::test::{Script, virtual_time};
    virtual_time(async {
        const SECOND: Duration = Duration::from_secs(1);
        let (pipe, outcomes) = Script::new().items(0..10u64).wait(60 * SECOND).items(10..20).tracked();
        let (items, report) = pipe
            .buffer_spilling(2, 3, Heap::new(1))
            .map_async(1, async |n| {
                sleep(SECOND).await;
                n
            })
            .collect()
            .await
            .unwrap();
        assert_eq!(items, (0..20).collect::<Vec<_>>());
        assert_eq!((report.elapsed(), outcomes.list().len()), (70 * SECOND, 20));
    });
}

#[tokio::test]
async fn a_spill_that_fails_fails_the_run_and_everything_is_given_back() {
    let (pipe, ear, _) = tracked(0..10_000u64);
    let spill = Heap { fails_at: Some(500), ..Heap::new(1) };
    let slow =
        pipe.buffer_spilling(4, 100_000, spill).map_async(1, async |_| std::future::pending::<()>().await);
    let error = slow.for_each(drop).await.unwrap_err();
    assert_eq!(error.to_string(), "a stage failed: the disk is full");
    ear.all_ended().await;
    assert!(ear.list().iter().all(|end| *end == End::Abandoned));
}

#[tokio::test]
async fn a_slow_reader_of_a_conflating_buffer_sees_the_newest_of_each_key_once() {
    let mut dice = Rng::with_seed(5);
    for _ in 0..200 {
        let (mut sender, pipe) = Pipe::channel(4);
        let mut pipe =
            pipe.conflate(1 + dice.u64(..6) as usize, |(key, _): &(u64, u64)| *key).named("newest");
        let monitor = pipe.monitor();
        let mut sent = BTreeMap::new();
        let (count, mut numbers) = (dice.u64(..60), dice.clone());
        let plan: Vec<_> = (0..count).map(|n| (numbers.u64(..5), n)).collect();
        sent.extend(plan.iter().copied());
        let sending = tokio::spawn(async move {
            for item in plan {
                sender.send(item).await.unwrap();
            }
        });
        let mut seen = BTreeMap::new();
        while let Some((key, n)) = pipe.next().await {
            assert!(seen.insert(key, n).is_none_or(|before| before < n), "never an older one");
            yields(dice.u64(..30)).await;
        }
        sending.await.unwrap();
        assert_eq!(seen, sent, "the newest of each key comes through");
        let ledger = monitor.report().ledger;
        assert!(ledger.balances() && ledger.in_flight == 0 && ledger.received == count, "{ledger:?}");
    }
}

#[tokio::test]
async fn a_conflating_buffer_makes_its_producer_wait_for_a_key_that_has_no_room() {
    let (pipe, ear, _) = tracked([1, 1, 2, 2, 3, 3].into_iter());
    let mut keys = Box::pin(
        pipe.conflate(2, |n| *n)
            .map_async(1, async |n| {
                sleep(Duration::from_secs(1)).await;
                n
            })
            .collect()
            .start()
            .join(),
    );
    let _ = futures_util::poll!(&mut keys);
    let (keys, report) = keys.await.unwrap();
    assert_eq!(keys, [1, 2, 3], "nothing but older states is left out");
    assert_eq!(report.ledger.dropped["conflate"], 3);
    ear.all_ended().await;
    assert_eq!(ear.list().iter().filter(|end| **end == End::Completed).count(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_flow_that_has_ended_is_not_driven_again_by_a_conflating_buffer_that_is_full() {
    // An unfold panics when it is polled behind its end.
    let numbers = futures_util::stream::unfold(0u64, async |n| (n < 10).then_some((n, n + 1)));
    let slow = async |n| {
        sleep(Duration::from_secs(1)).await;
        n
    };
    let (items, _) =
        Pipe::from_stream(numbers).conflate(2, |n| *n).map_async(1, slow).collect().await.unwrap();
    assert_eq!(items, (0..10).collect::<Vec<_>>());
}
