//! What is shared between tasks, on several threads: no wake-up is lost, and every item is where it belongs.

use std::collections::BTreeMap;
use std::time::Duration;

use fastrand::Rng;
use millstream_flow::{Capacity, Concurrency, Flow, Lane, Memo, Overflow, Pipe};
use tokio::task::yield_now;
use tokio::time::timeout;

use crate::support::{tracked, yields};

/// Real time, for once: reaching it means that a wake-up was lost.
const HANGS: Duration = Duration::from_secs(300);

/// Some rounds, or what a soak takes time for.
fn rounds() -> u64 {
    if std::env::var_os("MILLSTREAM_SOAK").is_some() { 5_000 } else { 50 }
}

async fn slowly<F>(
    pipe: Pipe<F>,
    mut dice: Rng,
) -> Pipe<impl Flow<Item = F::Item, Token = F::Token> + Send + 'static>
where
    F: Flow<Item: Send> + Send + 'static,
{
    let speed = 1 + dice.u64(..4);
    pipe.map_async(Concurrency::ordered(1), move |item| {
        let turns = dice.u64(..speed);
        async move {
            yields(turns).await;
            item
        }
    })
    .boxed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switch_whose_routes_change_all_the_time_accounts_for_every_item() {
    for seed in 0..rounds() {
        let mut dice = Rng::with_seed(seed);
        let (pipe, ear, account) = tracked(0..500u64);
        let pipe = slowly(pipe, dice.clone()).await;
        let switch = pipe.switch(|n| n % 4).named("nowhere");
        let mut runs = Vec::new();
        let route = |key: u64, dice: &mut Rng| {
            let overflow = if dice.u64(..2) == 0 { Overflow::Wait } else { Overflow::DropOldest };
            let lane = switch.route(key, Lane::capacity(1 + dice.u64(..20) as usize).overflow(overflow));
            lane.for_each(move |n| assert_eq!(n % 4, key)).start()
        };
        for key in 0..3 {
            runs.push(route(key, &mut dice));
        }
        for _ in 0..dice.u64(..40) {
            yield_now().await;
            let key = dice.u64(..4);
            match dice.u64(..3) {
                0 => _ = switch.remove(&key),
                _ => runs.push(route(key, &mut dice)),
            }
        }
        // So that somebody is there to the end.
        runs.push(switch.default_route(1 + dice.u64(..5) as usize).for_each(drop).start());
        drop(switch);
        for run in runs {
            timeout(HANGS, run.join()).await.expect("a wake-up was lost").unwrap();
        }
        timeout(HANGS, ear.all_ended()).await.expect("an item was lost");
        assert_eq!((account.received(), account.abandoned()), (500, 0), "seed {seed}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lanes_that_shed_and_lanes_that_wait_each_get_what_is_theirs() {
    for seed in 0..rounds() {
        let mut dice = Rng::with_seed(seed);
        let lanes = [
            Lane::capacity(1 + dice.u64(..9) as usize),
            Lane::capacity(1 + dice.u64(..9) as usize).overflow(Overflow::DropOldest),
            Lane::capacity(1 + dice.u64(..9) as usize).overflow(Overflow::DropNewest),
        ];
        let (pipe, ear, account) = tracked(0..500u64);
        let mut ends = pipe.broadcast_to(&lanes).into_iter();
        let mut lane = |dice: &mut Rng| {
            let seed = Rng::with_seed(dice.u64(..u64::MAX));
            slowly(ends.next().unwrap(), seed)
        };
        let all = lane(&mut dice).await.collect().start();
        let newest = lane(&mut dice).await.collect().start();
        let first = lane(&mut dice).await.collect().start();
        let mut items = Vec::new();
        for run in [all, newest, first] {
            items.push(timeout(HANGS, run.join()).await.expect("a wake-up was lost").unwrap().0);
        }
        assert_eq!(items[0], (0..500).collect::<Vec<_>>());
        assert!(items[1].is_sorted() && items[1].last() == Some(&499), "seed {seed}");
        assert!(items[2].is_sorted() && items[2].first() == Some(&0), "seed {seed}");
        timeout(HANGS, ear.all_ended()).await.expect("an item was lost");
        assert_eq!((account.completed(), account.abandoned()), (500, 0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conflating_buffer_between_threads_loses_no_newest() {
    for seed in 0..rounds() {
        let mut dice = Rng::with_seed(seed);
        let keys = 1 + dice.u64(..8);
        let capacity = 1 + dice.u64(..8) as usize;
        let (pipe, ear, _) = tracked((0..1000u64).map(move |n| (n % keys, n)));
        let pipe = slowly(pipe, dice.clone()).await.conflate(capacity, |item: &(u64, u64)| item.0);
        let pipe = slowly(pipe, Rng::with_seed(!seed)).await;
        let (items, report) =
            timeout(HANGS, pipe.collect().start().join()).await.expect("a wake-up was lost").unwrap();
        let mut newest = BTreeMap::new();
        for (key, n) in items {
            assert!(newest.insert(key, n).is_none_or(|before| before < n));
        }
        let expected: BTreeMap<_, _> = (0..1000).map(|n| (n % keys, n)).collect();
        assert_eq!(newest, expected, "seed {seed}");
        timeout(HANGS, ear.all_ended()).await.expect("an item was lost");
        assert!(report.ledger.balances() && report.ledger.in_flight == 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inputs_that_come_from_other_threads_all_arrive() {
    for seed in 0..rounds() {
        let mut dice = Rng::with_seed(seed);
        let (inputs, pipe) = Pipe::inputs();
        let run = pipe.buffer(Capacity::items(3)).fold(0u64, |sum, n| *sum += n).start();
        let mut adding = Vec::new();
        for _ in 0..4 {
            let inputs = inputs.clone();
            let mut dice = Rng::with_seed(dice.u64(..u64::MAX));
            adding.push(tokio::spawn(async move {
                for _ in 0..10 {
                    yields(dice.u64(..3)).await;
                    inputs
                        .add(slowly(Pipe::from_iter(0..20u64), dice.clone()).await)
                        .expect("the flow has not ended");
                }
            }));
        }
        drop(inputs);
        for adding in adding {
            adding.await.unwrap();
        }
        let (sum, report) = timeout(HANGS, run.join()).await.expect("a wake-up was lost").unwrap();
        assert_eq!((sum, report.ledger.received), (40 * 190, 800), "seed {seed}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_memory_that_several_flows_share_looks_up_each_key_once() {
    for seed in 0..rounds() {
        let memo = Memo::new(100);
        let flow = |memo: Memo<u64, u64>| {
            let look_up = async |key: &u64| {
                yields(key % 3).await;
                Ok::<_, std::io::Error>(key * 2)
            };
            let pipe = Pipe::from_iter((0..300u64).map(move |n| (n + seed) % 50));
            pipe.memoize(Concurrency::unordered(16), memo, |n| *n, look_up).fail_fast().collect().start()
        };
        let runs = [flow(memo.clone()), flow(memo.clone()), flow(memo.clone())];
        for run in runs {
            let (pairs, _) = timeout(HANGS, run.join()).await.expect("a wake-up was lost").unwrap();
            assert!(pairs.len() == 300 && pairs.iter().all(|(n, double)| *double == 2 * n));
        }
        assert_eq!((memo.misses(), memo.hits()), (50, 850));
    }
}
