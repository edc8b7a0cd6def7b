//! Which items pass, and several flows as one.

use std::time::Duration;

use futures_util::StreamExt;
use millstream_flow::{Dedupe, Pipe, Sample};
use tokio::time::{Instant, sleep};

use crate::support::{End, tracked};

#[tokio::test]
async fn take_while_asks_for_nothing_behind_the_first_item_that_fails() {
    let (pipe, ear, account) = tracked(0..100u32);
    let (items, report) = pipe.take_while(|n| *n < 3).named("small").collect().await.unwrap();
    assert_eq!((items, account.received()), (vec![0, 1, 2], 4));
    assert_eq!(report.ledger.dropped["small"], 1);
    assert_eq!(ear.list()[3], End::Dropped("small".into()));
}

#[tokio::test]
async fn skip_while_asks_no_more_once_an_item_has_passed() {
    let (items, report) = Pipe::from_iter([1, 2, 9, 1]).skip_while(|n| *n < 5).collect().await.unwrap();
    assert_eq!((items, report.ledger.dropped["skip_while"]), (vec![9, 1], 2));
}

#[tokio::test]
async fn one_in_n_is_the_first_of_each_n() {
    let (items, report) = Pipe::from_iter(0..10).sample(Sample::one_in(4)).collect().await.unwrap();
    assert_eq!((items, report.ledger.dropped["sample"]), (vec![0, 4, 8], 7));
}

#[tokio::test]
async fn a_rate_of_one_keeps_all_of_zero_none_and_others_their_share() {
    let count = async |rate| {
        let pipe = Pipe::from_iter(0..100_000).sample(Sample::rate_with_seed(rate, 7));
        pipe.collect().await.unwrap().0.len()
    };
    assert_eq!((count(0.0).await, count(1.0).await), (0, 100_000));
    // Five standard deviations.
    let share = count(0.3).await;
    assert!((29_275..=30_725).contains(&share), "{share}");
}

#[tokio::test]
async fn a_seed_chooses_the_same_items_again() {
    let chosen = async |seed| {
        let pipe = Pipe::from_iter(0..1000).sample(Sample::rate_with_seed(0.1, seed));
        pipe.collect().await.unwrap().0
    };
    assert_eq!(chosen(1).await, chosen(1).await);
    assert_ne!(chosen(1).await, chosen(2).await);
}

#[test]
fn rates_out_of_range_are_refused_where_they_are_built() {
    for rate in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
        assert!(std::panic::catch_unwind(|| Sample::rate(rate)).is_err(), "{rate}");
    }
    assert!(std::panic::catch_unwind(|| Sample::one_in(0)).is_err());
    assert!(std::panic::catch_unwind(|| Dedupe::keys(0)).is_err());
    assert!(std::panic::catch_unwind(|| Dedupe::keys(1).ttl(Duration::ZERO)).is_err());
}

#[tokio::test]
async fn sampling_by_key_keeps_or_drops_all_items_of_a_key_the_same_in_every_run() {
    let chosen = async || {
        let pipe = Pipe::from_iter((0..20_000u32).map(|n| n % 1000)).sample_by(0.1, |user| *user);
        let mut counts = std::collections::BTreeMap::<u32, u32>::new();
        for user in pipe.collect().await.unwrap().0 {
            *counts.entry(user).or_default() += 1;
        }
        counts
    };
    let counts = chosen().await;
    assert!(counts.values().all(|count| *count == 20), "whole users only");
    assert!((60..140).contains(&counts.len()), "{} of 1000 users", counts.len());
    assert_eq!(counts, chosen().await);
}

#[tokio::test(start_paused = true)]
async fn a_duplicate_is_one_within_the_keys_lifetime_which_it_does_not_extend() {
    let (mut sender, pipe) = Pipe::channel(8);
    let rule = Dedupe::keys(100).ttl(Duration::from_secs(10));
    let began = Instant::now();
    let run = pipe.dedupe(rule, |n: &u32| *n).map(move |n| (n, began.elapsed().as_secs())).collect().start();
    for _ in 0..6 {
        sender.send(1).await.unwrap();
        sleep(Duration::from_secs(4)).await;
    }
    drop(sender);
    assert_eq!(run.join().await.unwrap().0, [(1, 0), (1, 12)], "at 0, 4, 8, 12, 16 and 20 seconds");
}

#[tokio::test]
async fn dedupe_forgets_the_oldest_key_when_it_knows_as_many_as_it_may() {
    let items = [1, 2, 3, 1, 2, 2, 4, 1];
    let (passed, _) = Pipe::from_iter(items).dedupe(Dedupe::keys(2), |n| *n).collect().await.unwrap();
    assert_eq!(passed, [1, 2, 3, 1, 2, 4, 1]);
    let (passed, _) = Pipe::from_iter(items).dedupe(Dedupe::keys(9), |n| *n).collect().await.unwrap();
    assert_eq!(passed, [1, 2, 3, 4]);
}

#[tokio::test]
async fn the_memory_of_dedupe_is_in_the_runs_bound() {
    let bound = |keys| {
        let pipe = Pipe::from_iter(0..10u64).dedupe(Dedupe::keys(keys), |n| *n);
        pipe.monitor().report().memory_bound_bytes
    };
    assert!(bound(1000) >= bound(1) + 999 * 16);
}

#[tokio::test]
async fn distinct_until_changed_compares_with_the_item_before() {
    let (passed, report) =
        Pipe::from_iter([1, 1, 2, 2, 1]).distinct_until_changed(|n| *n).collect().await.unwrap();
    assert_eq!((passed, report.ledger.dropped["distinct_until_changed"]), (vec![1, 2, 1], 2));
}

#[tokio::test]
async fn concat_asks_the_second_flow_for_nothing_before_the_first_has_ended() {
    let (first, _, _) = tracked(0..300u32);
    let (second, _, account) = tracked(1000..1003u32);
    let seen = account.clone();
    let first = first.inspect(move |_| assert_eq!(seen.received(), 0));
    let (items, report) = first.concat(second).collect().await.unwrap();
    assert_eq!(items, (0..300).chain(1000..1003).collect::<Vec<_>>());
    assert_eq!((report.ledger.received, report.ledger.completed), (303, 303), "one ledger for both");
    let (all, _) =
        Pipe::concat_all((0..3u32).map(|n| Pipe::from_iter(10 * n..10 * n + 2))).collect().await.unwrap();
    assert_eq!(all, [0, 1, 10, 11, 20, 21]);
}

#[tokio::test(start_paused = true)]
async fn a_zip_goes_on_past_what_either_side_drops() {
    let odd = || Pipe::from_iter(0..10u32).filter(|n| n % 2 == 1);
    for pairs in [
        odd().zip(Pipe::from_iter(0..3)).collect().into_future(),
        Pipe::from_iter(0..3).zip(odd()).map(|(n, odd)| (odd, n)).collect().into_future(),
    ] {
        let pairs = tokio::time::timeout(Duration::from_secs(1), pairs).await.expect("it does not hang");
        assert_eq!(pairs.unwrap().0, [(1, 0), (3, 1), (5, 2)]);
    }
}

#[tokio::test]
async fn zip_pairs_in_order_ends_with_the_shorter_and_drops_what_has_no_partner() {
    let (numbers, ear, account) = tracked(0..10u32);
    let (letters, heard, _) = tracked(["a", "b", "c"]);
    let (pairs, report) = numbers.zip(letters).collect().await.unwrap();
    assert_eq!(pairs, [(0, "a"), (1, "b"), (2, "c")]);
    assert_eq!(account.received(), 4, "one item was held when the letters ended");
    assert_eq!(ear.list()[3], End::Dropped("zip".into()));
    assert_eq!(heard.list(), vec![End::Completed; 3]);
    assert_eq!((report.ledger.completed, report.ledger.dropped["zip"], report.ledger.in_flight), (6, 1, 0));

    let (pairs, report) = Pipe::from_iter(0..2).zip(Pipe::from_iter(0..9)).collect().await.unwrap();
    assert_eq!(pairs, [(0, 0), (1, 1)]);
    assert!(report.ledger.balances() && report.ledger.in_flight == 0, "{:?}", report.ledger);
}

#[tokio::test(start_paused = true)]
async fn the_faster_flow_of_a_zip_waits_for_the_other() {
    let (fast, _, account) = tracked(0..100u32);
    let every_second = tokio::time::interval(Duration::from_secs(1));
    let (slow, _, _) =
        crate::support::tracked_stream(tokio_stream::wrappers::IntervalStream::new(every_second));
    let mut pairs = Box::pin(fast.zip(slow).for_each(drop).start().join());
    assert!(tokio::time::timeout(Duration::from_millis(3500), &mut pairs).await.is_err());
    assert_eq!(account.received(), 5, "four ticks, and the one that waits for the fifth");
}

#[tokio::test]
async fn flatten_takes_collections_apart_and_scan_carries_a_state_along() {
    let (items, report) = Pipe::from_iter([vec![1, 2], vec![], vec![3]]).flatten().collect().await.unwrap();
    assert_eq!((items, report.ledger.dropped["flatten"]), (vec![1, 2, 3], 1));
    let differences = Pipe::from_iter([5, 7, 4]).scan(0, |last, n| n - std::mem::replace(last, n));
    assert_eq!(differences.collect().await.unwrap().0, [5, 2, -3]);
}

#[tokio::test(start_paused = true)]
async fn a_zip_ends_with_either_side_while_the_other_is_silent() {
    let silent =
        || Pipe::from_stream(futures_util::stream::iter(0..2u32).chain(futures_util::stream::pending()));
    let soon = Duration::from_secs(1);
    let ended = async |run| tokio::time::timeout(soon, run).await.expect("it ends");
    let (pairs, _) = ended(silent().zip(Pipe::from_iter(0..2u32)).collect().into_future()).await.unwrap();
    assert_eq!(pairs, [(0, 0), (1, 1)]);
    let (pairs, _) = ended(Pipe::from_iter(0..2u32).zip(silent()).collect().into_future()).await.unwrap();
    assert_eq!(pairs, [(0, 0), (1, 1)]);
}
