//! A panic of a user's function costs its own item and nothing else: no other item, no wake-up, no task, no line
//! of the ledger.

use std::time::Duration;

use futures_util::StreamExt;
use millstream_flow::{
    BoxError, Capacity, Ended, Flow, Overflow, PanicPolicy, Pipe, Report, RunError, RunErrorKind, Sink,
    SinkError,
};
use tokio::time::timeout;

use crate::support::{End, tracked, yields};

const SOON: Duration = Duration::from_secs(60);

/// Runs an untracked pipe to its end, past any panic. The ledger must be exact.
async fn survive<F: Flow<Token = (), Item: Send> + Send + 'static>(pipe: Pipe<F>) -> (Vec<F::Item>, Report) {
    let run = async { pipe.on_panic(PanicPolicy::Dead).collect().await.unwrap() };
    let (items, report) = timeout(SOON, run).await.expect("the run ends");
    assert!(report.ledger.balances(), "{:?}", report.ledger);
    assert_eq!(report.ledger.in_flight, 0, "{:?}", report.ledger);
    assert_eq!(report.ledger.completed, items.len() as u64);
    (items, report)
}

/// How a run under the default policy fails.
async fn fails<F: Flow<Item: Send> + Send + 'static>(pipe: Pipe<F>) -> RunError
where
    F::Item: std::fmt::Debug,
{
    timeout(SOON, async { pipe.collect().await.unwrap_err() }).await.expect("the run ends")
}

fn odd(n: &u32) -> u32 {
    assert!(n % 2 == 1, "a test panics at {n}");
    *n
}

#[tokio::test(start_paused = true)]
async fn a_panic_fails_the_run_by_default_and_names_the_stage() {
    let error = fails(Pipe::from_iter(1..10u32).map(|n| odd(&n)).named("odd numbers")).await;
    let Ended::Failed(RunErrorKind::Item(failure)) = error.ended() else { panic!("{error:?}") };
    assert!(failure.panicked);
    assert_eq!(&*failure.stage, "iter → odd numbers → collect");
    assert_eq!(failure.reason, "panicked: a test panics at 2");
    assert_eq!(error.report().stages[0].panics, 1);
}

#[tokio::test(start_paused = true)]
async fn a_panic_that_fails_the_run_gives_the_item_back() {
    let (pipe, ear, _) = tracked(1..4u32);
    fails(pipe.map(|n| odd(&n))).await;
    assert_eq!(ear.list(), [End::Completed, End::Abandoned]);
}

#[tokio::test(start_paused = true)]
async fn a_panic_anywhere_in_a_stage_costs_one_item() {
    let source = || Pipe::from_iter(1..=9u32);
    let dead = |report: &Report| (report.ledger.received, report.ledger.dead);
    let (items, report) = survive(source().map(|n| odd(&n))).await;
    assert_eq!((items, dead(&report)), (vec![1, 3, 5, 7, 9], (9, 4)));
    let (items, report) = survive(source().inspect(|n| assert!(odd(n) > 0))).await;
    assert_eq!((items.len(), dead(&report)), (5, (9, 4)));
    let (items, report) = survive(source().filter(|n| odd(n) > 0)).await;
    assert_eq!((items.len(), dead(&report)), (5, (9, 4)));
    let (items, report) = survive(source().filter_map(|n| Some(odd(&n)))).await;
    assert_eq!((items.len(), dead(&report)), (5, (9, 4)));
    let (items, report) = survive(source().flat_map(|n| vec![odd(&n); 2])).await;
    assert_eq!((items.len(), dead(&report)), (10, (9, 4)));
    let (items, report) = survive(source().parallel(2, |n| odd(&n))).await;
    assert_eq!((items, dead(&report)), (vec![1, 3, 5, 7, 9], (9, 4)));
    let (items, report) = survive(source().map_async(3, async |n| odd(&n))).await;
    assert_eq!((items, dead(&report)), (vec![1, 3, 5, 7, 9], (9, 4)));
    let measured = Capacity::items(4).bytes(100, |n: &u32| odd(n) as usize);
    let (items, report) = survive(source().buffer_measured(measured)).await;
    assert_eq!((items, dead(&report)), (vec![1, 3, 5, 7, 9], (9, 4)));
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_a_route_costs_one_item_and_the_ledger_balances() {
    let lanes = Pipe::from_iter(1..=9u32).partition(2, 4, odd);
    let (items, report) = survive(Pipe::merge_all(lanes)).await;
    assert_eq!((items.len(), report.ledger.dead), (5, 4));
}

#[derive(Debug)]
struct CloneOnce(u32);

impl Clone for CloneOnce {
    fn clone(&self) -> Self {
        CloneOnce(odd(&self.0))
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_a_clone_costs_one_item_and_the_ledger_balances() {
    let lanes = Pipe::from_iter((1..=9).map(CloneOnce)).broadcast(3, 4);
    let (items, report) = survive(Pipe::merge_all(lanes)).await;
    assert_eq!((items.len(), report.ledger.dead), (15, 4));
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_an_iterator_is_an_item_that_died() {
    let (items, report) = survive(Pipe::from_iter((1..=9u32).map(|n| odd(&n)))).await;
    assert_eq!((items.len(), report.ledger.received, report.ledger.dead), (5, 9, 4));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_panicked_is_not_polled_again() {
    let stream = Box::pin(futures_util::stream::unfold(1u32, async |n| Some((odd(&n), n + 1))));
    let error = fails(Pipe::from_stream(stream).on_panic(PanicPolicy::Dead)).await;
    assert!(matches!(error.ended(), Ended::Failed(RunErrorKind::Source(_))), "{error}");
    assert!(error.report().ledger.balances());

    let (pipe, ear, _) = crate::support::tracked_stream(futures_util::stream::iter(1..9u32).map(|n| odd(&n)));
    let error = fails(pipe.on_panic(PanicPolicy::Dead)).await;
    assert!(matches!(error.ended(), Ended::Failed(RunErrorKind::Source(_))), "{error}");
    assert_eq!(ear.list(), [End::Completed]);
}

#[tokio::test(start_paused = true)]
async fn a_panic_among_async_calls_leaves_the_others_awake() {
    for unordered in [false, true] {
        let calls = match unordered {
            false => millstream_flow::Concurrency::ordered(9),
            true => millstream_flow::Concurrency::unordered(9),
        };
        let source = Pipe::from_iter(1..=9u32).map_async(calls, async |n| {
            yields(1).await;
            odd(&n)
        });
        let (items, report) = survive(source).await;
        assert_eq!((items, report.ledger.dead), (vec![1, 3, 5, 7, 9], 4));
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_a_dead_letter_destination_fails_the_run_and_gives_the_item_back() {
    for late in [false, true] {
        let (pipe, ear, _) = tracked(1..4u32);
        let pipe =
            pipe.on_panic(PanicPolicy::Dead).try_map(|n| if n % 2 == 0 { Err("even") } else { Ok(*n) });
        let pipe = pipe.dead_letter(move |_| {
            assert!(late, "a test panics at once");
            async move {
                yields(1).await;
                panic!("a test panics later")
            }
        });
        let error = fails(pipe).await;
        assert!(matches!(error.ended(), Ended::Failed(RunErrorKind::Sink(_))), "{error}");
        assert_eq!(ear.list(), [End::Completed, End::Abandoned]);
    }
}

struct Panics(bool);

impl Sink for Panics {
    type Item = u32;
    async fn write(&mut self, _: &mut Vec<u32>) -> Result<(), SinkError> {
        assert!(!self.0, "a test panics in write");
        Ok(())
    }
    async fn close(&mut self) -> Result<(), BoxError> {
        panic!("a test panics in close")
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_a_sink_fails_the_run_as_the_sinks_error() {
    for in_write in [true, false] {
        let (pipe, ear, _) = tracked(1..4u32);
        let Err(error) = pipe.into_sink(Panics(in_write)).await else { panic!("the run fails") };
        let Ended::Failed(RunErrorKind::Sink(cause)) = error.ended() else { panic!("{error:?}") };
        assert!(cause.to_string().contains("a test panics in"), "{cause}");
        let end = if in_write { End::Abandoned } else { End::Completed };
        assert_eq!(ear.list(), vec![end; 3]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_a_shedding_buffers_measure_never_ends_the_run_as_if_all_were_well() {
    for overflow in [Overflow::DropOldest, Overflow::DropNewest] {
        let (pipe, ear, _) = tracked(1..4u32);
        let measured = Capacity::items(4).bytes(100, |n: &u32| odd(n) as usize);
        let error = fails(pipe.on_panic(PanicPolicy::Dead).buffer_with(measured, overflow)).await;
        assert!(error.to_string().contains("a test panics at 2"), "{error}");
        ear.list();
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_behind_which_something_panics_is_dead_as_a_whole() {
    let (pipe, ear, _) = tracked(1..=6u32);
    let pipe = pipe.on_panic(PanicPolicy::Dead).batch(millstream_flow::Batch::count(2));
    let sums = pipe.map(|batch| assert!(batch[0] != 3, "a test panics"));
    sums.for_each(drop).await.unwrap();
    let dead = End::Dead("panicked: a test panics".into());
    let done = End::Completed;
    assert_eq!(ear.list(), [done.clone(), done.clone(), dead.clone(), dead, done.clone(), done]);
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_a_worker_ends_a_stream_that_is_polled_by_hand() {
    let mut pipe = Pipe::from_iter(1..u32::MAX).parallel(2, |n| assert!(n < 100, "a test panics"));
    let ends = async { while pipe.next().await.is_some() {} };
    timeout(SOON, ends).await.expect("the stream ends");
}

#[tokio::test(start_paused = true)]
async fn a_token_taken_apart_dies_with_any_of_its_parts() {
    let (pipe, ear, _) = tracked([1, 2, 3u32]);
    let parts = pipe.on_panic(PanicPolicy::Dead).flat_map(|n| [n * 10, n * 10 + 1]);
    let (out, _) = parts
        .map(|n| {
            assert!(n != 20, "a test panics");
            n
        })
        .collect()
        .await
        .unwrap();
    assert_eq!(out, [10, 11, 21, 30, 31]);
    assert_eq!(ear.list()[1], End::Dead("panicked: a test panics".into()));
}
