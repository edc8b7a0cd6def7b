//! The test kit: what it promises to find, it finds.

use std::future::pending;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use millstream_flow::Pipe;
use millstream_flow::test::{End, Faults, Probe, Script, quiescence, virtual_time};
use tokio::time::Instant;

const SECOND: Duration = Duration::from_secs(1);

fn message(panicked: Box<dyn std::any::Any + Send>) -> String {
    match panicked.downcast::<String>() {
        Ok(text) => *text,
        Err(other) => other.downcast_ref::<&str>().map_or_else(String::new, |text| (*text).to_owned()),
    }
}

#[test]
fn a_test_whose_wake_up_was_lost_fails_instead_of_hanging() {
    let panicked = catch_unwind(|| virtual_time(pending::<()>())).unwrap_err();
    assert!(message(panicked).contains("a wake-up was lost"));
}

#[test]
fn a_task_that_is_left_behind_is_found_and_one_that_is_being_dropped_is_not() {
    let leaks = || virtual_time(async { drop(tokio::spawn(pending::<()>())) });
    assert!(message(catch_unwind(leaks).unwrap_err()).contains("tasks that are left"));
    virtual_time(async {
        drop(Script::new().items(0..3).stall().pipe().buffer(2).buffer(2).for_each(drop).start());
    });
}

#[test]
fn an_item_that_has_not_ended_and_one_that_ended_twice_are_found() {
    virtual_time(async {
        let (pipe, outcomes) = Script::new().items(0..2).stall().tracked();
        let run = pipe
            .filter(|n| *n == 0)
            .map(|n| n)
            .batch(millstream_flow::Batch::count(9))
            .for_each(drop)
            .start();
        quiescence().await;
        let panicked = catch_unwind(AssertUnwindSafe(|| outcomes.list())).unwrap_err();
        assert_eq!(message(panicked), "items that have not ended: [0]");
        drop(run);
        outcomes.all_ended().await;
        assert_eq!(outcomes.list(), [End::Abandoned, End::Dropped("filter".into())]);
    });
}

#[test]
fn a_script_gives_waits_stalls_and_fails_as_it_is_written() {
    virtual_time(async {
        let began = Instant::now();
        let script = Script::new().item('a').wait(3 * SECOND).items("bc".chars());
        let (times, _) =
            script.clone().pipe().map(move |item| (began.elapsed().as_secs(), item)).collect().await.unwrap();
        assert_eq!(times, [(0, 'a'), (3, 'b'), (3, 'c')]);
        let (pipe, outcomes) = script.fail("the disk is gone").item('d').tracked();
        let error = pipe.collect().await.unwrap_err();
        assert_eq!(error.to_string(), "the source failed: the disk is gone");
        assert_eq!(outcomes.issued(), 3);
    });
}

#[test]
fn a_probe_takes_what_it_asks_for_and_fails_when_it_is_told_to() {
    virtual_time(async {
        let (pipe, outcomes) = Script::new().items(0..10).tracked();
        let (mut probe, sink) = Probe::new();
        let run = pipe.into_sink(sink).start();
        probe.request(3);
        quiescence().await;
        assert_eq!(std::iter::from_fn(|| probe.try_next()).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(outcomes.ends().len(), 3);
        probe.fail("full");
        assert_eq!(run.join().await.unwrap_err().to_string(), "the sink failed: full");
        outcomes.all_ended().await;
        assert_eq!(outcomes.list().last(), Some(&End::Abandoned));
    });
}

#[test]
fn faults_are_the_same_for_the_same_seed_and_lose_nothing_by_themselves() {
    let run = |seed| {
        virtual_time(async move {
            let faults = Faults::new(seed).pending(0.5).delay(0.3, SECOND).error(0.2);
            let began = Instant::now();
            let stream = faults.around(futures_util::stream::iter(0..200));
            let (results, _) =
                Pipe::from_stream(stream).map(move |n| (n, faults.strike().is_ok())).collect().await.unwrap();
            assert_eq!(results.iter().map(|(n, _)| *n).collect::<Vec<_>>(), (0..200).collect::<Vec<_>>());
            (results, began.elapsed())
        })
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
    let (results, took) = run(3);
    assert!((100..190).contains(&results.iter().filter(|(_, ok)| *ok).count()));
    assert!(took > 5 * SECOND, "{took:?}");
}
