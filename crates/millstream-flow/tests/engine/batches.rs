//! Batches: by count, bytes and age; their tokens, and taking them apart again.

use std::time::Duration;

use futures_util::StreamExt;
use millstream_flow::{Batch, Pipe};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tokio_stream::wrappers::ReceiverStream;

use crate::support::{End, tracked};

const AGE: Duration = Duration::from_millis(50);

#[tokio::test(start_paused = true)]
async fn a_batch_is_complete_at_its_count_and_the_last_one_is_what_is_left() {
    let (batches, _) = Pipe::from_iter(0..7).batch(Batch::count(3)).collect().await.unwrap();
    assert_eq!(batches, [vec![0, 1, 2], vec![3, 4, 5], vec![6]]);
    let (batches, _) = Pipe::from_iter(0..6).batch(Batch::count(3)).collect().await.unwrap();
    assert_eq!(batches, [vec![0, 1, 2], vec![3, 4, 5]], "no empty batch at the end");
    let (batches, _) = Pipe::from_iter(0..0).batch(Batch::count(3)).collect().await.unwrap();
    assert!(batches.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_batch_never_exceeds_its_bytes_but_by_a_single_item() {
    let items = [4, 4, 4, 20, 1, 9, 10, 0, 1];
    let rule = Batch::count(100).bytes(10, |n: &usize| *n);
    let (batches, _) = Pipe::from_iter(items).batch(rule).collect().await.unwrap();
    assert_eq!(batches, [vec![4, 4], vec![4], vec![20], vec![1, 9], vec![10], vec![0, 1]]);
}

#[tokio::test(start_paused = true)]
async fn an_idle_partial_batch_is_complete_at_its_age() {
    let (feed, fed) = mpsc::channel(8);
    let mut batches = Pipe::from_stream(ReceiverStream::new(fed)).batch(Batch::count(100).age(AGE));
    let began = Instant::now();
    feed.send(1).await.unwrap();
    feed.send(2).await.unwrap();
    assert_eq!(batches.next().await, Some(vec![1, 2]));
    assert_eq!(began.elapsed(), AGE);
    // And the next one has an age of its own.
    sleep(Duration::from_secs(1)).await;
    feed.send(3).await.unwrap();
    let began = Instant::now();
    assert_eq!(batches.next().await, Some(vec![3]));
    assert_eq!(began.elapsed(), AGE);
}

#[tokio::test(start_paused = true)]
async fn the_age_is_the_oldest_items_although_others_follow() {
    let (feed, fed) = mpsc::channel(8);
    let run = Pipe::from_stream(ReceiverStream::new(fed)).batch(Batch::count(100).age(AGE)).collect().start();
    for n in 0..10 {
        feed.send(n).await.unwrap();
        sleep(Duration::from_millis(20)).await;
    }
    drop(feed);
    let (batches, _) = run.join().await.unwrap();
    assert_eq!(batches, [vec![0, 1, 2], vec![3, 4, 5], vec![6, 7, 8], vec![9]]);
}

#[tokio::test(start_paused = true)]
async fn an_age_passes_behind_an_endless_filter_too() {
    // The source never waits, so time is moved by hand while the run has its turns.
    let mut first = true;
    let busy = Pipe::from_iter(0..u64::MAX).filter(move |_| std::mem::take(&mut first));
    let (tell, mut told) = mpsc::channel(1);
    let batches = busy.batch(Batch::count(100).age(AGE));
    let run = batches.for_each(move |batch| tell.try_send(batch).expect("there is one")).start();
    tokio::task::yield_now().await;
    tokio::time::advance(AGE - Duration::from_millis(2)).await;
    tokio::task::yield_now().await;
    assert!(told.try_recv().is_err(), "not before its age");
    tokio::time::advance(Duration::from_millis(4)).await;
    assert_eq!(told.recv().await, Some(vec![0]));
    drop(run);
}

#[tokio::test(start_paused = true)]
async fn no_timer_is_left_armed_by_a_batch_that_was_completed_by_count() {
    let (feed, fed) = mpsc::channel(8);
    let mut batches = Pipe::from_stream(ReceiverStream::new(fed)).batch(Batch::count(2).age(AGE));
    feed.send(1).await.unwrap();
    let waited = tokio::time::timeout(AGE / 2, batches.next()).await;
    assert!(waited.is_err(), "half of its age is not its age");
    feed.send(2).await.unwrap();
    assert_eq!(batches.next().await, Some(vec![1, 2]));
    feed.send(3).await.unwrap();
    let began = Instant::now();
    assert_eq!(batches.next().await, Some(vec![3]));
    assert_eq!(began.elapsed(), AGE, "a whole age, counted from its own first item");
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_flow_completes_a_batch_before_its_age() {
    let began = Instant::now();
    let (batches, _) = Pipe::from_iter(0..3).batch(Batch::count(9).age(AGE)).collect().await.unwrap();
    assert_eq!((batches, began.elapsed()), (vec![vec![0, 1, 2]], Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn confirming_a_batch_confirms_its_items_and_dropping_it_drops_them() {
    let (pipe, ear, _) = tracked(0..5u32);
    let pipe = pipe.batch(Batch::count(2)).filter(|batch| batch[0] != 2).named("not two");
    pipe.for_each(drop).await.unwrap();
    let (done, dropped) = (End::Completed, End::Dropped("not two".into()));
    assert_eq!(ear.list(), [done.clone(), done.clone(), dropped.clone(), dropped, done]);
}

#[tokio::test(start_paused = true)]
async fn unbatch_gives_each_item_its_own_token_back() {
    let (pipe, ear, _) = tracked(0..6u32);
    let pipe = pipe.batch(Batch::count(3)).unbatch().filter(|n| n % 2 == 0).named("even");
    let (items, _) = pipe.collect().await.unwrap();
    assert_eq!(items, [0, 2, 4]);
    let odd = End::Dropped("even".into());
    let even = End::Completed;
    assert_eq!(ear.list(), [even.clone(), odd.clone(), even.clone(), odd.clone(), even, odd]);
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_changed_its_number_of_items_shares_its_tokens() {
    let (pipe, ear, _) = tracked(0..3u32);
    let longer =
        pipe.batch(Batch::count(3)).map(|batch| batch.iter().flat_map(|n| [*n, *n]).collect::<Vec<_>>());
    let mut seen = 0;
    let parts = longer.unbatch().filter(move |_| {
        seen += 1;
        seen != 4
    });
    let (items, _) = parts.collect().await.unwrap();
    assert_eq!(items, [0, 0, 1, 2, 2]);
    assert_eq!(ear.list(), vec![End::Completed; 3], "one of six parts was dropped, the others completed");
}

#[tokio::test(start_paused = true)]
async fn an_emptied_batch_is_dropped_by_the_name_of_what_takes_it_apart() {
    let (pipe, ear, _) = tracked(0..3u32);
    let empty = pipe.batch(Batch::count(2)).map(|_| Vec::<u32>::new()).unbatch().named("empty");
    empty.for_each(drop).await.unwrap();
    assert_eq!(ear.list(), vec![End::Dropped("empty".into()); 3]);
}

#[tokio::test(start_paused = true)]
async fn a_batch_of_items_that_came_out_of_order_confirms_each_once() {
    let (pipe, ear, _) = tracked(0..300u64);
    let shuffled = pipe.map_async(millstream_flow::Concurrency::unordered(16), async |n| {
        sleep(Duration::from_millis(n * 7 % 13)).await;
        n
    });
    let (sum, report) = shuffled.batch(Batch::count(7)).unbatch().fold(0, |sum, n| *sum += n).await.unwrap();
    assert_eq!((sum, report.ledger.completed), (299 * 150, 300));
    assert_eq!(ear.list(), vec![End::Completed; 300]);
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_has_reached_its_bytes_does_not_wait_for_another_item() {
    for sizes in [&[20][..], &[4, 6], &[10]] {
        let (feed, fed) = mpsc::channel(8);
        let rule = Batch::count(100).bytes(10, |n: &usize| *n);
        let mut batches = Pipe::from_stream(ReceiverStream::new(fed)).batch(rule);
        for size in sizes {
            feed.send(*size).await.unwrap();
        }
        let next = tokio::time::timeout(Duration::from_secs(1), batches.next());
        assert_eq!(next.await.expect("it is complete"), Some(sizes.to_vec()));
    }
}

#[tokio::test]
async fn what_completes_a_batch_are_knobs_frozen_where_a_number_was_given() {
    let said = |rule: Batch<fn(&u64) -> usize>| {
        format!("{:?}", Pipe::from_iter([1u64]).batch(rule).monitor().knobs())
    };
    let size: fn(&u64) -> usize = |_| 8;
    assert_eq!(
        said(Batch::count(100).bytes(1000, size).age(Duration::from_micros(1500))),
        "[batch count = 100 in 1..=100 (fixed), batch bytes = 1000 in 1..=1000 (fixed), batch age ms = 2 in 1..=2 (fixed)]"
    );
    assert_eq!(
        said(Batch::auto().bytes_auto(1000, 4000, size).age_auto(AGE, Duration::from_secs(1))),
        "[batch count = 500 in 1..=65536, batch bytes = 1000 in 1..=4000, batch age ms = 50 in 1..=1000]"
    );
    // The most is no less than the first.
    assert_eq!(
        said(Batch::count(1).bytes_auto(9, 3, size).age_auto(AGE, Duration::ZERO)),
        "[batch count = 1 in 1..=1 (fixed), batch bytes = 9 in 1..=9, batch age ms = 50 in 1..=50]"
    );
    let unlimited = Pipe::from_iter([1u64]).batch(Batch::count(7)).monitor().knobs();
    assert_eq!(format!("{unlimited:?}"), "[batch count = 7 in 1..=7 (fixed)]");
}

#[tokio::test]
async fn the_memory_bound_of_a_batch_counts_the_most_that_its_knobs_take() {
    let bound = |rule: Batch<fn(&u64) -> usize>| {
        Pipe::from_iter([1u64]).batch(rule).monitor().report().memory_bound_bytes
    };
    let size: fn(&u64) -> usize = |_| 8;
    assert_eq!(bound(Batch::count(10).bytes(100, size)), 180);
    assert_eq!(bound(Batch::count(10).bytes_auto(100, 5000, size)), 5080);
}

#[tokio::test(start_paused = true)]
async fn the_bytes_of_a_running_flows_batches_can_be_moved() {
    let (feed, fed) = mpsc::channel(8);
    let rule = Batch::count(100).bytes_auto(10, 100, |n: &usize| *n);
    let mut batches = Pipe::from_stream(ReceiverStream::new(fed)).batch(rule);
    let bytes = batches.monitor().knobs().remove(1);
    let send = async |items: &[usize]| {
        for n in items {
            feed.send(*n).await.unwrap();
        }
    };
    send(&[5, 5]).await;
    assert_eq!(batches.next().await, Some(vec![5, 5]));
    assert_eq!(bytes.set(1000), Ok(100));
    send(&[50, 30, 21]).await;
    assert_eq!(batches.next().await, Some(vec![50, 30]), "more, but not one item too many");
    // What is held is more than the new number.
    assert_eq!(bytes.set(20), Ok(20));
    assert_eq!(batches.next().await, Some(vec![21]));
    send(&[20]).await;
    assert_eq!(batches.next().await, Some(vec![20]));
}

#[tokio::test(start_paused = true)]
async fn the_age_of_a_running_flows_batches_can_be_moved() {
    let (feed, fed) = mpsc::channel(8);
    let rule = Batch::count(100).age_auto(AGE, Duration::from_secs(10));
    let mut batches = Pipe::from_stream(ReceiverStream::new(fed)).batch(rule);
    let age = batches.monitor().knobs().remove(1);
    for (milliseconds, gone) in
        [(50, AGE), (20, Duration::from_millis(20)), (99_000, Duration::from_secs(10))]
    {
        age.set(milliseconds).unwrap();
        let began = Instant::now();
        feed.send(milliseconds).await.unwrap();
        assert_eq!(batches.next().await, Some(vec![milliseconds]));
        assert_eq!(began.elapsed(), gone);
    }
    // While a batch waits: a longer age holds for it too, a shorter one as soon as another item comes.
    for (to, another, gone) in [(400, false, 400), (30, true, 40)] {
        age.set(100).unwrap();
        let began = Instant::now();
        feed.send(1).await.unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(10), batches.next()).await.is_err());
        age.set(to).unwrap();
        sleep(Duration::from_millis(30)).await;
        if another {
            feed.send(2).await.unwrap();
        }
        let expected = if another { vec![1, 2] } else { vec![1] };
        assert_eq!((batches.next().await, began.elapsed()), (Some(expected), Duration::from_millis(gone)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_fixed_age_holds_as_it_was_given() {
    let (feed, fed) = mpsc::channel(8);
    let mut batches = Pipe::from_stream(ReceiverStream::new(fed)).batch(Batch::count(9).age(Duration::ZERO));
    let began = Instant::now();
    feed.send(1).await.unwrap();
    assert_eq!((batches.next().await, began.elapsed()), (Some(vec![1]), Duration::ZERO));
}
