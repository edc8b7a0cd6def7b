use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use millstream_events::{BeginError, Saga, SagaError, SagaStatus, Sagas, Step, StepError};
use tokio::time::{Instant, sleep};

use super::{Done, SECOND, World, no_luck, retry, started, store};
use crate::support::everywhere;

#[tokio::test]
async fn steps_are_done_in_order_and_what_they_make_is_kept() {
    everywhere(async |place| {
        let world = World::default();
        let saga = Saga::new("s").step(world.step("a")).step(world.step("b")).step(world.step("c"));
        let sagas = started(Sagas::builder(place.store().await).saga(saga)).await;
        sagas.begin("s", "1", &Done::default()).await.expect("begun");
        let view = sagas.ended("s", "1").await.expect("known");
        assert_eq!((view.status, view.step, view.reason), (SagaStatus::Completed, None, None));
        assert_eq!(view.done, ["a", "b", "c"]);
        assert_eq!(view.state, serde_json::json!(["a", "b", "c"]));
        assert_eq!(world.done(), ["a", "b", "c"]);
        let statistics = sagas.statistics();
        assert_eq!((statistics.begun, statistics.steps, statistics.completed), (1, 3, 1));
        assert!(sagas.active().is_empty());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_step_that_fails_is_tried_again_after_its_delays() {
    let world = World::default();
    let saga = Saga::new("s").step(world.failing("a", 3, no_luck).retry(retry(4)));
    let sagas = started(Sagas::builder(store().await).saga(saga)).await;
    let begun = Instant::now();
    sagas.begin("s", "1", &Done::default()).await.expect("begun");
    sleep(2 * SECOND).await;
    let view = sagas.view("s", "1").await.expect("known");
    assert_eq!((view.status, view.step.as_deref(), view.failures), (SagaStatus::Running, Some("a"), 2));
    assert_eq!(sagas.ended("s", "1").await.expect("known").status, SagaStatus::Completed);
    assert_eq!(begun.elapsed().as_secs(), 7, "one second, two, and four");
    assert_eq!(world.done(), ["a#1", "a#2", "a#3", "a#4"]);
    assert_eq!(sagas.statistics().failures, 3);
}

#[tokio::test(start_paused = true)]
async fn if_a_step_fails_for_good_what_was_done_is_undone_the_last_one_first() {
    let world = World::default();
    let saga = Saga::new("s")
        .step(world.step("a"))
        .step(Step::new("leaves nothing", |state, _| async { Ok(state) }))
        .step(world.step("b"))
        .step(world.failing("c", 9, no_luck).retry(retry(2)))
        .step(world.step("d"));
    let sagas = started(Sagas::builder(store().await).saga(saga)).await;
    sagas.begin("s", "1", &Done::default()).await.expect("begun");
    let view = sagas.ended("s", "1").await.expect("known");
    assert_eq!(view.status, SagaStatus::Compensated);
    assert_eq!(view.reason.as_deref(), Some("step `c` failed for good: no luck"));
    assert_eq!(
        (view.done, view.undone),
        (
            vec!["a".to_owned(), "leaves nothing".to_owned(), "b".to_owned()],
            vec!["b".to_owned(), "a".to_owned()]
        )
    );
    assert_eq!(world.done(), ["a", "b", "c#1", "c#2", "-b", "-a"]);
    assert_eq!((sagas.statistics().compensated, sagas.statistics().undone), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn what_no_attempt_will_ever_do_is_tried_once() {
    let world = World::default();
    let never = || StepError::permanent("it is forbidden");
    let saga = Saga::new("s").step(world.failing("a", 9, never).retry(retry(5)));
    let sagas = started(Sagas::builder(store().await).saga(saga)).await;
    sagas.begin("s", "1", &Done::default()).await.expect("begun");
    assert_eq!(sagas.ended("s", "1").await.expect("known").status, SagaStatus::Compensated);
    assert_eq!(world.done(), ["a#1"]);
}

#[tokio::test(start_paused = true)]
async fn a_step_that_panics_or_hangs_has_failed() {
    let panics = Saga::new("panics")
        .step(Step::new("a", |_: Done, _| async { panic!("of all things") }).retry(retry(1)));
    let hangs = Saga::new("hangs")
        .step(Step::new("a", |_: Done, _| std::future::pending()).retry(retry(2).timeout(10 * SECOND)));
    let sagas = started(Sagas::builder(store().await).saga(panics).saga(hangs)).await;
    let begun = Instant::now();
    for (saga, why) in [("panics", "of all things"), ("hangs", "it took longer than 10s")] {
        sagas.begin(saga, "1", &Done::default()).await.expect("begun");
        let view = sagas.ended(saga, "1").await.expect("known");
        assert_eq!(view.status, SagaStatus::Compensated);
        assert!(view.reason.as_ref().is_some_and(|reason| reason.contains(why)), "{view:?}");
    }
    assert_eq!(begun.elapsed().as_secs(), 21, "ten seconds twice, and one between");
}

#[tokio::test(start_paused = true)]
async fn undoing_is_tried_again_too_and_what_cannot_be_undone_is_left_to_people() {
    let world = World::default();
    let undo = |fails: u32| {
        let world = world.clone();
        move |state: Done, context: millstream_events::StepContext| {
            let world = world.clone();
            async move {
                world.does(format!("-{}#{}", context.step, context.attempt));
                if context.attempt <= fails { Err(no_luck()) } else { Ok(state) }
            }
        }
    };
    let fails = || world.failing("c", 9, no_luck).retry(retry(1));
    let twice = Saga::new("twice").step(world.step("a").undo(undo(1)).undo_retry(retry(3))).step(fails());
    let never = Saga::new("never")
        .step(world.step("a"))
        .step(world.step("b").undo(undo(9)).undo_retry(retry(2)))
        .step(fails());
    let sagas = started(Sagas::builder(store().await).saga(twice).saga(never)).await;
    sagas.begin("twice", "1", &Done::default()).await.expect("begun");
    assert_eq!(sagas.ended("twice", "1").await.expect("known").status, SagaStatus::Compensated);
    sagas.begin("never", "1", &Done::default()).await.expect("begun");
    let view = sagas.ended("never", "1").await.expect("known");
    assert_eq!(view.status, SagaStatus::Failed);
    assert_eq!(
        view.reason.as_deref(),
        Some("step `c` failed for good: no luck; step `b` cannot be undone: no luck")
    );
    assert_eq!(world.done(), ["a", "c#1", "-a#1", "-a#2", "a", "b", "c#1", "-b#1", "-b#2"]);
    assert_eq!(sagas.statistics().failed, 1);
}

#[tokio::test(start_paused = true)]
async fn a_saga_that_takes_too_long_is_undone() {
    let world = World::default();
    let saga = Saga::new("s")
        .timeout(10 * SECOND)
        .step(world.step("a"))
        .step(world.failing("b", 99, no_luck).retry(retry(99)));
    let sagas = started(Sagas::builder(store().await).saga(saga)).await;
    let begun = Instant::now();
    sagas.begin("s", "1", &Done::default()).await.expect("begun");
    let view = sagas.ended("s", "1").await.expect("known");
    assert_eq!((view.status, begun.elapsed().as_secs()), (SagaStatus::TimedOut, 10));
    assert_eq!(view.reason.as_deref(), Some("it was not done in time, at step `b`"));
    assert!(view.deadline.is_some());
    assert_eq!(world.done().last().map(String::as_str), Some("-a"));
    assert_eq!(sagas.statistics().timed_out, 1);
}

#[tokio::test(start_paused = true)]
async fn a_step_whose_turn_comes_too_late_is_not_begun() {
    let world = World::default();
    let slow = Saga::new("slow").step(Step::new("busy", async |state: Done, _| {
        sleep(30 * SECOND).await;
        Ok(state)
    }));
    let late = Saga::new("late").timeout(10 * SECOND).step(world.step("a"));
    let sagas = started(Sagas::builder(store().await).concurrency(1).saga(slow).saga(late)).await;
    sagas.begin("slow", "1", &Done::default()).await.expect("begun");
    sleep(SECOND).await;
    sagas.begin("late", "1", &Done::default()).await.expect("begun");
    assert_eq!(sagas.ended("late", "1").await.expect("known").status, SagaStatus::TimedOut);
    assert!(world.done().is_empty(), "{:?}", world.done());
}

#[tokio::test(start_paused = true)]
async fn a_saga_is_undone_or_stopped_when_somebody_asks_for_it() {
    let world = World::default();
    let slow = || {
        let world = world.clone();
        Step::new("slow", move |state: Done, _| {
            let world = world.clone();
            async move {
                sleep(10 * SECOND).await;
                world.does("slow");
                Ok(state)
            }
        })
        .undo({
            let world = World::default();
            move |state, _| {
                world.does("-slow");
                async { Ok(state) }
            }
        })
    };
    let saga = |name| Saga::new(name).step(world.step("a")).step(slow()).step(world.step("z"));
    let sagas = started(Sagas::builder(store().await).saga(saga("undone")).saga(saga("stopped"))).await;
    for name in ["undone", "stopped"] {
        sagas.begin(name, "1", &Done::default()).await.expect("begun");
        sleep(SECOND).await;
    }
    sagas.compensate("undone", "1", "the customer has left").await.expect("stored");
    sagas.compensate("undone", "1", "again").await.expect("it is so already");
    assert_eq!(sagas.view("undone", "1").await.expect("known").status, SagaStatus::Compensating);
    sagas.abort("stopped", "1", "by hand").await.expect("stored");
    let view = sagas.ended("undone", "1").await.expect("known");
    assert_eq!(
        (view.status, view.reason.as_deref()),
        (SagaStatus::Compensated, Some("the customer has left"))
    );
    assert_eq!(view.undone, ["slow", "a"], "what was under way is finished, and undone");
    let view = sagas.ended("stopped", "1").await.expect("known");
    assert_eq!((view.status, view.reason.as_deref()), (SagaStatus::Aborted, Some("by hand")));
    assert_eq!(view.done, ["a"]);
    assert!(view.undone.is_empty());
    assert!(matches!(sagas.abort("stopped", "1", "again").await, Err(SagaError::Ended { .. })));
    assert!(matches!(sagas.compensate("undone", "1", "again").await, Err(SagaError::Ended { .. })));
    assert!(matches!(sagas.abort("stopped", "2", "who?").await, Err(SagaError::Unknown { .. })));
    assert_eq!(sagas.statistics().aborted, 1);
}

#[tokio::test(start_paused = true)]
async fn what_has_ended_can_be_forgotten_and_begun_again() {
    let world = World::default();
    let saga = Saga::new("s").step(Step::new("slow", |state: Done, _| async {
        sleep(SECOND).await;
        Ok(state)
    }));
    let sagas = started(Sagas::builder(store().await).saga(saga)).await;
    drop(world);
    sagas.begin("s", "1", &Done::default()).await.expect("begun");
    assert!(matches!(sagas.begin("s", "1", &Done::default()).await, Err(BeginError::Begun { .. })));
    assert!(matches!(sagas.forget("s", "1").await, Err(SagaError::Active { .. })));
    sagas.ended("s", "1").await.expect("known");
    assert!(matches!(sagas.begin("s", "1", &Done::default()).await, Err(BeginError::Begun { .. })));
    sagas.forget("s", "1").await.expect("it has ended");
    assert!(matches!(sagas.view("s", "1").await, Err(SagaError::Unknown { .. })));
    sagas.begin("s", "1", &Done::default()).await.expect("begun again");
    assert_eq!(sagas.ended("s", "1").await.expect("known").status, SagaStatus::Completed);
}

#[tokio::test(start_paused = true)]
async fn no_more_steps_are_under_way_and_no_more_sagas_active_than_may_be() {
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counted = (now.clone(), most.clone());
    let saga = Saga::new("s").step(Step::new("slow", move |state: Done, _| {
        let (now, most) = counted.clone();
        async move {
            most.fetch_max(now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
            sleep(SECOND).await;
            now.fetch_sub(1, Ordering::Relaxed);
            Ok(state)
        }
    }));
    let sagas = started(Sagas::builder(store().await).saga(saga).concurrency(3).active_max(8)).await;
    for id in 0..8 {
        sagas.begin("s", &id.to_string(), &Done::default()).await.expect("begun");
    }
    let error = sagas.begin("s", "8", &Done::default()).await.expect_err("too many");
    assert!(matches!(error, BeginError::TooMany { active: 8 }), "{error}");
    for id in 0..8 {
        sagas.ended("s", &id.to_string()).await.expect("known");
    }
    assert_eq!(most.load(Ordering::Relaxed), 3);
    sagas.begin("s", "8", &Done::default()).await.expect("there is room again");
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_with_all_that_is_wrong() {
    let step = || Step::new("a", |state: Done, _| async { Ok(state) });
    let builder = Sagas::builder(store().await)
        .saga(Saga::<Done>::new("empty"))
        .saga(Saga::new("a/b").step(step()))
        .saga(Saga::new("twins").step(step()).step(step()))
        .saga(Saga::new("s").step(step()))
        .saga(Saga::new("s").step(step()));
    let error = builder.start().await.expect_err("not sound").to_string();
    for problem in [
        "saga `empty` has no steps",
        "`a/b`: a saga's name has 1 to 100 bytes, and no `/`",
        "saga `twins` has two steps `a`",
        "there are two sagas `s`",
    ] {
        assert!(error.contains(problem), "{error}");
    }
    let sagas = started(Sagas::builder(store().await).saga(Saga::new("s").step(step()))).await;
    let error = sagas.begin("t", "1", &Done::default()).await.expect_err("not there").to_string();
    assert_eq!(error, "there is no saga `t`, but `s`");
    let error = sagas.begin("s", "1", &7_u32).await.expect_err("another type").to_string();
    assert_eq!(error, "the state of saga `s` is not a `u32`");
}

#[tokio::test(start_paused = true)]
async fn a_saga_is_undone_when_its_time_is_over_whatever_step_is_under_way() {
    let slow = |name: &'static str, time: std::time::Duration| {
        Step::new(name, move |state: Done, _| async move {
            sleep(time).await;
            Ok(state)
        })
    };
    let world = World::default();
    let hour = 3600 * SECOND;
    let saga = |name| Saga::new(name).timeout(3 * SECOND).step(world.step("a"));
    let sagas = Sagas::builder(store().await)
        .saga(saga("last").step(slow("slow", hour)))
        .saga(saga("middle").step(slow("slow", hour)).step(world.step("z")))
        .saga(saga("in time").step(slow("slow", 2 * SECOND)));
    let sagas = started(sagas).await;
    for (name, status, seconds) in [
        ("last", SagaStatus::TimedOut, 3),
        ("middle", SagaStatus::TimedOut, 3),
        ("in time", SagaStatus::Completed, 2),
    ] {
        let begun = Instant::now();
        sagas.begin(name, "1", &Done::default()).await.expect("begun");
        let view = sagas.ended(name, "1").await.expect("known");
        assert_eq!((view.status, begun.elapsed().as_secs()), (status, seconds), "{name}: {view:?}");
        if status == SagaStatus::TimedOut {
            assert_eq!(view.reason.as_deref(), Some("it was not done in time, at step `slow`"));
            assert_eq!(world.done().last().map(String::as_str), Some("-a"));
        }
    }
}
