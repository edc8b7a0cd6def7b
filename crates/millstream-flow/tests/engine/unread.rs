//! Lanes that nobody reads any more: those that fail the run, and those that were taken away.

use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use millstream_flow::test::{End, Outcomes, Script, quiescence};
use millstream_flow::{Ended, Pipe, RunError, RunErrorKind, Unread};
use tokio::time::{Instant, sleep, timeout};

const LONG: Duration = Duration::from_secs(60);

/// Less than the lanes have to go one after the other.
const SOON: Duration = Duration::from_millis(50);

fn completed(outcomes: &Outcomes) -> usize {
    outcomes.ends().values().filter(|end| **end == End::Completed).count()
}

/// The operator whose lane nobody read.
fn unread(error: &RunError) -> String {
    let Ended::Failed(RunErrorKind::Stage(stage)) = error.ended() else { panic!("{error:?}") };
    stage.downcast_ref::<Unread>().expect("it says so").operator().to_owned()
}

#[tokio::test(start_paused = true)]
async fn a_lane_that_nobody_reads_fails_the_run_instead_of_giving_its_items_back_for_ever() {
    for switched in [false, true] {
        let (pipe, outcomes) = Script::new().items(0..100_u32).stall().tracked();
        let (even, odd) = if switched {
            let switch = pipe.switch(|n| n % 2);
            let (even, odd) = (switch.route(0, 4), switch.route(1, 4));
            (even.boxed(), odd.boxed())
        } else {
            let (even, odd) = pipe.split(4, |n| n % 2 == 0);
            (even.boxed(), odd.boxed())
        };
        drop(even);
        let ended = timeout(LONG, odd.for_each(drop).start().join()).await;
        let error = ended.expect("it does not go on").expect_err("nobody reads the even ones");
        assert_eq!(unread(&error), if switched { "switch" } else { "split" });
        assert!(outcomes.issued() <= 8, "a few are in the lanes: {}", outcomes.issued());
    }
}

#[tokio::test(start_paused = true)]
async fn lanes_that_go_one_after_the_other_are_no_failure() {
    let (pipe, _outcomes) = Script::new().items(0..100_u32).stall().tracked();
    let (even, odd) = pipe.split(4, |n| n % 2 == 0);
    drop(even);
    let (first, _) = odd.take(1).collect().start().join().await.expect("it has what it asked for");
    assert_eq!(first, [1]);
}

#[tokio::test(start_paused = true)]
async fn a_route_that_is_removed_or_replaced_soon_after_its_reader_went_fails_nothing() {
    for replaced in [false, true] {
        let (pipe, outcomes) = Script::new().items(0..100_u32).stall().tracked();
        let switch = pipe.switch(|n| n % 2);
        let (even, odd) = (switch.route(0, 4), switch.route(1, 4));
        let run = odd.for_each(drop).start();
        drop(even);
        sleep(SOON).await;
        let given_back = outcomes.issued() as usize - completed(&outcomes);
        assert!((1..=8).contains(&given_back), "{given_back} were for the lane");
        let other = replaced.then(|| switch.route(0, 4).for_each(drop).start());
        assert!(replaced || switch.remove(&0));
        assert!(timeout(LONG, pin!(run.join())).await.is_err(), "it goes on");
        assert_eq!(outcomes.issued(), 100, "replaced: {replaced}");
        let done = if replaced { 100 - given_back } else { 50 };
        assert_eq!(completed(&outcomes), done, "replaced: {replaced}");
        drop(other);
    }
}

#[tokio::test(start_paused = true)]
async fn another_route_that_comes_or_goes_does_not_excuse_one_that_nobody_reads() {
    let (pipe, _outcomes) = Script::new().items(0..100_u32).stall().tracked();
    let switch = pipe.switch(|n| n % 2);
    let (even, odd) = (switch.route(0, 4), switch.route(1, 4));
    let mut joined = pin!(odd.for_each(drop).start().join());
    drop(even);
    let began = Instant::now();
    let ended = loop {
        let other = switch.route(7, 4).for_each(drop).start();
        if let Ok(ended) = timeout(SOON, &mut joined).await {
            break ended;
        }
        assert!(began.elapsed() < LONG, "it goes on for ever");
        assert!(switch.remove(&7));
        drop(other);
    };
    assert_eq!(unread(&ended.unwrap_err()), "switch");
    assert!(began.elapsed() <= 3 * SOON, "{:?}", began.elapsed());
}

/// Something to be done in the middle of a quantum, by the source.
type Act = Arc<Mutex<Option<Box<dyn FnOnce() + Send>>>>;

#[tokio::test(start_paused = true)]
async fn a_route_that_is_removed_before_its_reader_goes_fails_nothing_whatever_the_stage_does_meanwhile() {
    // How far the stage gets before it looks up depends on the machine: where it stands then is tried often.
    for at in (10..90).cycle().take(400) {
        let (pipe, outcomes) = Script::new().items(0..100_u32).stall().tracked();
        let act = Act::default();
        let acting = act.clone();
        let pipe = pipe.inspect(move |n| {
            if *n == at {
                (acting.lock().unwrap().take().expect("it comes once"))();
            }
        });
        let switch = pipe.switch(|n| n % 2);
        let (even, odd) = (switch.route(0, 64), switch.route(1, 4).for_each(drop).start());
        *act.lock().unwrap() = Some(Box::new(move || {
            assert!(switch.remove(&0));
            drop(even);
            std::mem::forget(switch); // its handle would tell that nothing changes any more
        }));
        assert!(timeout(LONG, pin!(odd.join())).await.is_err(), "removed at {at}");
        assert_eq!(outcomes.issued(), 100, "removed at {at}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_that_ended_with_items_for_a_lane_that_nobody_reads_is_not_driven_again() {
    for read in [false, true] {
        let (pipe, _outcomes) = Script::new().items(0..4_u32).tracked();
        let source = Arc::new(());
        let held = source.clone();
        let pipe = pipe.inspect(move |_| _ = &held);
        let switch = pipe.switch(|n| n % 2);
        let (even, odd) = (switch.route(0, 8), switch.route(1, 8));
        drop(even);
        if read {
            let ended = timeout(LONG, odd.for_each(drop).start().join()).await.expect("it ends");
            assert_eq!(unread(&ended.unwrap_err()), "switch");
        } else {
            let reading = odd.for_each(drop).start();
            quiescence().await;
            assert_eq!(Arc::strong_count(&source), 2, "it waits whether the other goes, too");
            drop(reading);
            sleep(3 * SOON).await;
            let none = timeout(LONG, switch.route(1, 8).collect().start().join()).await.expect("it ends");
            assert_eq!(none.unwrap().0, [0; 0]);
        }
        assert_eq!(Arc::strong_count(&source), 1, "nothing comes of it any more");
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_that_ended_ends_well_once_the_lane_that_nobody_read_is_removed() {
    let (pipe, _outcomes) = Script::new().items(0..4_u32).tracked();
    let switch = pipe.switch(|n| n % 2);
    let (even, odd) = (switch.route(0, 8), switch.route(1, 8));
    drop(even);
    let run = odd.collect().start();
    sleep(SOON).await;
    assert!(switch.remove(&0));
    assert_eq!(timeout(LONG, run.join()).await.expect("it ends").unwrap().0, [1, 3]);
}

#[tokio::test(start_paused = true)]
async fn items_for_a_lane_that_nobody_reads_are_dropped_by_name_if_no_source_hears_of_them() {
    let (even, odd) = Pipe::from_iter(0..100_u32).split(4, |n| n % 2 == 0);
    drop(even);
    let (items, report) = odd.collect().await.expect("it goes on");
    assert_eq!((items.len(), report.ledger.dropped["split"], report.ledger.in_flight), (50, 50, 0));
    let switch = Pipe::from_iter(0..100_u32).switch(|n| n % 2);
    let (even, odd) = (switch.route(0, 4), switch.route(1, 4));
    drop(even);
    drop(switch);
    let (items, report) = odd.collect().await.expect("it goes on");
    assert_eq!((items.len(), report.ledger.dropped["switch"], report.ledger.in_flight), (50, 50, 0));
}
