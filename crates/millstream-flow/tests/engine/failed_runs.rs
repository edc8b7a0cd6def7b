//! A run that fails: what is under way is given back, and nothing partial is handed on.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{iter, pending};
use millstream_flow::{Batch, Count, Ended, Flow, Pipe, RunErrorKind, Token, Window};
use tokio::time::timeout;

use crate::support::{Ear, End, tracked};

const HOUR: Duration = Duration::from_secs(3600);

/// Two items that are well and one that fails the run.
fn two_and_a_bad_one() -> (Pipe<impl Flow<Item = u64, Token = Token> + Send + 'static>, Ear) {
    let (pipe, ear, _) = tracked([1u64, 2, 3]);
    let pipe = pipe.try_map(|n| if *n == 3 { Err("bad") } else { Ok(*n) }).fail_fast();
    (pipe, ear)
}

#[tokio::test(start_paused = true)]
async fn windows_that_are_open_when_the_run_fails_are_not_handed_on_and_their_items_are_given_back() {
    let windows = [
        Window::count(10),
        Window::tumbling(HOUR),
        Window::sliding(HOUR, HOUR / 2),
        Window::session(HOUR),
        Window::sliding_count(10, 10),
    ];
    for window in windows {
        let (pipe, ear) = two_and_a_bad_one();
        let (told, mut windows) = tokio::sync::mpsc::channel(8);
        let run = pipe.window(window, |_| (), Count).for_each(move |window| told.try_send(window).unwrap());
        let error = run.await.unwrap_err();
        assert!(matches!(error.ended(), Ended::Failed(RunErrorKind::Item(_))), "{error}");
        assert!(windows.recv().await.is_none(), "{window:?}");
        ear.all_ended().await;
        assert_eq!(ear.list(), vec![End::Abandoned; 3], "{window:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_is_open_when_the_run_fails_is_not_handed_on() {
    for rule in [Batch::count(10), Batch::count(10).age(HOUR)] {
        let (pipe, ear) = two_and_a_bad_one();
        let (told, mut batches) = tokio::sync::mpsc::channel(8);
        let run = pipe.batch(rule).for_each(move |batch| told.try_send(batch).unwrap());
        run.await.unwrap_err();
        assert!(batches.recv().await.is_none());
        ear.all_ended().await;
        assert_eq!(ear.list(), vec![End::Abandoned; 3]);
    }
    let (pipe, ear) = two_and_a_bad_one();
    let rule = Batch::count(10).bytes(100, |_: &u64| 8);
    pipe.batch(rule).buffer(4).for_each(|_| panic!("a part of a batch")).await.unwrap_err();
    ear.all_ended().await;
    assert_eq!(ear.list(), vec![End::Abandoned; 3]);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_fails_ends_a_parallel_whose_source_is_silent() {
    let stream = iter([1u32]).chain(pending());
    let mut pipe = Pipe::from_stream(stream).parallel(2, |n| assert!(n > 1, "a test panics"));
    let next = timeout(HOUR, pipe.next()).await.expect("it ends though nothing comes");
    assert!(next.is_none());
}
