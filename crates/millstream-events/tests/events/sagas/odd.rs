//! What is odd: told too late, stopped in between, done twice, changed meanwhile, panicking where nobody thinks of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use millstream_events::{
    Event, EventData, EventStore, Expected, Saga, SagaError, SagaStatus, Sagas, Step, StepError, Wait,
};
use millstream_flow::Retry;
use millstream_message::Message;
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};

use super::{Done, SECOND, World, no_luck, retry, started, store};
use crate::support::{Kind, Place};

#[derive(Serialize, Deserialize)]
struct Go {}
impl EventData for Go {
    const TYPES: &'static [&'static str] = &["go"];
}
#[derive(Serialize, Deserialize)]
struct Other {}
impl EventData for Other {
    const TYPES: &'static [&'static str] = &["other"];
}
fn go(c: &str) -> Event {
    Event::of(&Go {}).expect("it works").with_correlation_id(c)
}
fn other(c: &str) -> Event {
    Event::of(&Other {}).expect("it works").with_correlation_id(c)
}
fn wait() -> Wait<Done> {
    Wait::new("go", |state: Done, _: Go| Ok(state))
}

#[tokio::test(start_paused = true)]
async fn a_saga_that_is_stopped_while_it_waits_for_its_turn_begins_nothing() {
    let world = World::default();
    let slow = Saga::new("slow").step(Step::new("busy", async |state: Done, _| {
        sleep(30 * SECOND).await;
        Ok(state)
    }));
    let sagas = started(
        Sagas::builder(store().await).concurrency(1).saga(slow).saga(Saga::new("s").step(world.step("a"))),
    )
    .await;
    sagas.begin("slow", "1", &Done::default()).await.expect("begun");
    sleep(SECOND).await;
    sagas.begin("s", "1", &Done::default()).await.expect("begun");
    sleep(SECOND).await;
    sagas.abort("s", "1", "no").await.expect("stored");
    assert_eq!(sagas.view("s", "1").await.expect("known").status, SagaStatus::Aborted);
    assert!(world.done().is_empty());
    sleep(60 * SECOND).await;
    assert_eq!(world.done(), [""; 0], "an aborted saga has begun a step");
}

#[tokio::test(start_paused = true)]
async fn what_is_told_after_the_shutdown_is_refused_and_not_lost() {
    let store = store().await;
    let saga = || Saga::new("s").wait(wait());
    let sagas = started(Sagas::builder(store.clone()).saga(saga())).await;
    sagas.begin("s", "1", &Done::default()).await.expect("begun");
    sleep(SECOND).await;
    assert!(sagas.shutdown(SECOND).await);
    let told = sagas.tell(&go("1")).await;
    assert!(matches!(told, Err(SagaError::Stopped)), "{told:?}");
    // Who tells it again reaches the next process.
    let again = started(Sagas::builder(store).saga(saga())).await;
    assert_eq!(again.tell(&go("1")).await.expect("stored"), 1);
    assert_eq!(again.ended("s", "1").await.expect("known").status, SagaStatus::Completed);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_an_end_is_told_that_the_store_has_failed() {
    let place = Place::of(Kind::Memory).await;
    let sagas = started(Sagas::builder(place.store().await).saga(Saga::new("s").wait(wait()))).await;
    sagas.begin("s", "1", &Done::default()).await.expect("begun");
    let s = sagas.clone();
    let waits = tokio::spawn(async move { s.ended("s", "1").await });
    sleep(SECOND).await;
    place.broker.close().await.expect("it works");
    let ended = timeout(3600 * SECOND, waits).await.expect("it does not wait for ever");
    assert!(matches!(ended.expect("no panic"), Err(SagaError::Store(_))));
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_an_end_is_told_of_the_shutdown() {
    let sagas = started(Sagas::builder(store().await).saga(Saga::new("s").wait(wait()))).await;
    sagas.begin("s", "1", &Done::default()).await.expect("begun");
    let s = sagas.clone();
    let waits = tokio::spawn(async move { s.ended("s", "1").await });
    sleep(SECOND).await;
    assert!(sagas.shutdown(SECOND).await);
    let ended = timeout(3600 * SECOND, waits).await.expect("it does not wait for ever");
    assert!(matches!(ended.expect("no panic"), Err(SagaError::Stopped)));
}

#[tokio::test(start_paused = true)]
async fn what_fails_to_be_undone_twice_is_no_failure_of_the_next_step() {
    let (store, world) = (store().await, World::default());
    let undone = Arc::new(AtomicU32::new(0));
    let build = || {
        let undone = undone.clone();
        let b = world.step("b").undo(move |state: Done, _| {
            let undone = undone.clone();
            async move {
                sleep(SECOND).await;
                // The second is told that there is nothing to undo any more.
                match undone.fetch_add(1, Ordering::SeqCst) {
                    0 => Ok(Done(state.0[..1].to_vec())),
                    _ => {
                        sleep(SECOND).await;
                        Err(StepError::permanent("b is cancelled already"))
                    }
                }
            }
        });
        let a = world.step("a").undo(|_: Done, _| async {
            sleep(10 * SECOND).await;
            Ok(Done::default())
        });
        Saga::new("s").step(a).step(b).step(world.failing("c", 9, no_luck).retry(retry(1)))
    };
    let first = started(Sagas::builder(store.clone()).saga(build())).await;
    let _second = started(Sagas::builder(store.clone()).saga(build())).await;
    first.begin("s", "1", &Done::default()).await.expect("begun");
    let view = first.ended("s", "1").await.expect("known");
    assert_eq!(view.status, SagaStatus::Compensated);
}

#[tokio::test(start_paused = true)]
async fn what_is_undone_by_two_processes_is_stored_once() {
    let (store, world) = (store().await, World::default());
    let calls = Arc::new(AtomicU32::new(0));
    let build = || {
        let calls = calls.clone();
        let step = |name: &'static str| {
            let calls = calls.clone();
            Step::new(name, move |mut s: Done, _| async move {
                s.0.push(name.to_owned());
                Ok(s)
            })
            .undo(move |mut s: Done, _| {
                let n = calls.fetch_add(1, Ordering::SeqCst);
                async move {
                    sleep(SECOND * (1 + 2 * n)).await;
                    s.0.retain(|x| x != name);
                    Ok(s)
                }
            })
        };
        Saga::new("s").step(step("a")).step(step("b")).step(world.failing("c", 9, no_luck).retry(retry(1)))
    };
    let first = started(Sagas::builder(store.clone()).saga(build())).await;
    let _second = started(Sagas::builder(store.clone()).saga(build())).await;
    first.begin("s", "1", &Done::default()).await.expect("begun");
    let view = first.ended("s", "1").await.expect("known");
    assert_eq!(view.undone, ["b", "a"], "a step is stored as undone once");
}

#[tokio::test(start_paused = true)]
async fn sagas_that_are_started_again_at_once_undo_each_step_once() {
    let place = Place::of(Kind::Memory).await;
    let world = World::default();
    let build = || {
        Saga::new("s")
            .step(world.step("a"))
            .step(world.step("b"))
            .step(world.failing("c", 9, no_luck).retry(retry(1)))
    };
    let mut bad = 0;
    for id in 0..50 {
        let id = id.to_string();
        let first = started(Sagas::builder(place.store().await).saga(build())).await;
        first.begin("s", &id, &Done::default()).await.expect("begun");
        for _ in 0..id.parse::<u32>().expect("it works") {
            tokio::task::yield_now().await;
        }
        drop(first);
        let second = started(Sagas::builder(place.store().await).saga(build())).await;
        let view = second.ended("s", &id).await.expect("known");
        if view.undone != ["b", "a"] {
            bad += 1;
        }
    }
    assert_eq!(bad, 0);
}

#[tokio::test(start_paused = true)]
async fn a_step_that_was_under_way_when_all_was_to_be_undone_is_undone_after_a_crash() {
    let (store, world) = (store().await, World::default());
    let build = || {
        let (w, u) = (world.clone(), world.clone());
        Saga::new("s").step(
            Step::new("pay", move |s: Done, _| {
                let w = w.clone();
                async move {
                    w.does("pay");
                    sleep(10 * SECOND).await; // the answer is on its way
                    Ok(s)
                }
            })
            .undo(move |s: Done, _| {
                let u = u.clone();
                async move {
                    u.does("-pay");
                    Ok(s)
                }
            }),
        )
    };
    let first = started(Sagas::builder(store.clone()).saga(build())).await;
    first.begin("s", "1", &Done::default()).await.expect("begun");
    sleep(SECOND).await;
    first.compensate("s", "1", "the customer has left").await.expect("stored");
    first.shutdown(Duration::ZERO).await;
    drop(first);
    let second = started(Sagas::builder(store).saga(build())).await;
    let view = second.ended("s", "1").await.expect("known");
    assert_eq!((view.status, view.undone), (SagaStatus::Compensated, vec!["pay".to_owned()]));
    assert_eq!(
        world.done(),
        ["pay", "pay", "-pay"],
        "it is done again, since nobody knows of it, and undone"
    );
}

#[tokio::test(start_paused = true)]
async fn a_step_that_fails_when_all_is_to_be_undone_already_is_not_tried_again() {
    let (store, world) = (store().await, World::default());
    let build = || {
        let does = world.clone();
        let slow = Step::new("slow", move |_: Done, _| {
            let does = does.clone();
            async move {
                does.does("slow");
                sleep(10 * SECOND).await;
                Err(no_luck())
            }
        });
        Saga::new("s").step(world.step("a")).step(world.step("b")).step(slow.retry(retry(5)))
    };
    let sagas = started(Sagas::builder(store.clone()).saga(build())).await;
    sagas.begin("s", "1", &Done::default()).await.expect("begun");
    sleep(SECOND).await;
    sagas.compensate("s", "1", "the customer has left").await.expect("stored");
    let view = sagas.ended("s", "1").await.expect("known");
    assert_eq!((view.status, view.undone), (SagaStatus::Compensated, vec!["b".to_owned(), "a".to_owned()]));
    assert_eq!(world.done(), ["a", "b", "slow", "-b", "-a"]);
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_is_new_in_the_program_has_not_waited_yet() {
    let (store, clock) = (store().await, millstream_flow::Clock::system());
    let first = started(
        Sagas::builder(store.clone()).clock(clock).saga(Saga::new("s").wait(wait().timeout(100 * SECOND))),
    )
    .await;
    first.begin("s", "1", &Done::default()).await.expect("begun");
    sleep(SECOND).await;
    first.shutdown(SECOND).await;
    // The new version waits for an approval before, as long as that takes.
    let approval = Wait::new("approval", |s: Done, _: Other| Ok(s));
    let saga = Saga::new("s").wait(approval).wait(wait().timeout(100 * SECOND));
    let second = started(Sagas::builder(store).clock(clock).saga(saga)).await;
    let ended = timeout(1000 * SECOND, second.ended("s", "1")).await;
    assert!(ended.is_err(), "a step that waits for ever has timed out: {ended:?}");
}

#[tokio::test(start_paused = true)]
async fn a_step_that_is_new_in_the_program_has_not_failed_yet() {
    let (store, world, clock) = (store().await, World::default(), millstream_flow::Clock::system());
    let first = started(
        Sagas::builder(store.clone())
            .clock(clock)
            .saga(Saga::new("s").step(world.failing("old", 9, no_luck).retry(retry(9)))),
    )
    .await;
    first.begin("s", "1", &Done::default()).await.expect("begun");
    sleep(5 * SECOND).await;
    first.shutdown(SECOND).await;
    // May fail twice.
    let once = Arc::new(AtomicU32::new(0));
    let o = once.clone();
    let new = Step::new("new", move |s: Done, _| {
        let o = o.clone();
        async move { if o.fetch_add(1, Ordering::SeqCst) == 0 { Err(no_luck()) } else { Ok(s) } }
    })
    .retry(retry(3));
    let saga = Saga::new("s").step(new).step(world.step("old"));
    let second = started(Sagas::builder(store).clock(clock).saga(saga)).await;
    let view = second.ended("s", "1").await.expect("known");
    assert_eq!(view.status, SagaStatus::Completed, "{:?}", view.reason);
}

#[tokio::test(start_paused = true)]
async fn events_of_a_later_step_do_not_shut_out_the_one_that_is_waited_for() {
    let saga = Saga::new("s").wait(wait()).wait(Wait::new("other", |s: Done, _: Other| Ok(s)));
    let sagas = started(Sagas::builder(store().await).saga(saga)).await;
    sagas.begin("s", "1", &Done::default()).await.expect("begun");
    sleep(SECOND).await;
    for _ in 0..64 {
        sagas.tell(&other("1")).await.expect("stored");
    }
    assert!(matches!(sagas.tell(&other("1")).await, Err(SagaError::Full { heard: 64, .. })));
    // It is what the saga waits for now.
    assert_eq!(sagas.tell(&go("1")).await.expect("taken"), 1);
    assert_eq!(sagas.ended("s", "1").await.expect("known").status, SagaStatus::Completed);
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_what_says_whether_to_try_again_is_a_failure() {
    let world = World::default();
    let rule = Retry::attempts(3).expect("it works").only_if(|_| panic!("of all things"));
    let saga = Saga::new("s").step(world.step("a")).step(world.failing("b", 9, no_luck).retry(rule));
    let sagas = started(Sagas::builder(store().await).saga(saga)).await;
    sagas.begin("s", "1", &Done::default()).await.expect("begun");
    let ended = timeout(3600 * SECOND, sagas.ended("s", "1")).await.expect("it is driven on").expect("known");
    assert_eq!(ended.status, SagaStatus::Compensated);
    assert!(ended.reason.expect("one").contains("panic"));
}

#[tokio::test(start_paused = true)]
async fn one_that_is_full_keeps_the_event_from_no_other() {
    let hangs = || Step::new("hangs", |_: Done, _| std::future::pending());
    let store = store().await;
    let mut builder = Sagas::builder(store.clone());
    for n in 0..8 {
        builder = builder.saga(Saga::new(format!("s{n}")).step(hangs()).wait(wait()));
    }
    let sagas = started(builder).await;
    sagas.begin_correlated("s0", "full", "c", &Done::default()).await.expect("begun");
    sleep(SECOND).await;
    for _ in 0..64 {
        sagas.tell(&go("c")).await.expect("stored");
    }
    for n in 1..8 {
        sagas.begin_correlated(&format!("s{n}"), "1", "c", &Done::default()).await.expect("begun");
    }
    sleep(SECOND).await;
    let event = go("c");
    for _ in 0..20 {
        sagas.tell(&event).await.expect_err("refused");
    }
    sleep(SECOND).await;
    let told = (1..8).filter(|n| store.version(&format!("saga/s{n}/1")) == Some(1)).count();
    assert_eq!(told, 7, "the others have heard of it");
}

#[tokio::test(start_paused = true)]
async fn a_state_that_could_not_be_read_again_is_refused() {
    let saga = Saga::<serde_json::Value>::new("s")
        .step(Step::new("a", |s: serde_json::Value, _| async move { Ok(serde_json::json!([s])) }));
    let sagas = started(Sagas::builder(store().await).saga(saga)).await;
    let mut deep = serde_json::json!(1);
    for _ in 0..140 {
        deep = serde_json::json!([deep]);
    }
    let begun = sagas.begin("s", "1", &deep).await;
    sleep(SECOND).await;
    assert!(begun.expect_err("refused").to_string().contains("100 levels"));
    // Nor may a step make one.
    let mut shallow = serde_json::json!(1);
    for _ in 0..100 {
        shallow = serde_json::json!([shallow]);
    }
    sagas.begin("s", "2", &shallow).await.expect("begun");
    let ended = sagas.ended("s", "2").await.expect("known");
    assert_eq!((ended.status, ended.state), (SagaStatus::Compensated, shallow));
    assert!(ended.reason.expect("one").contains("100 levels"));
}

#[tokio::test(start_paused = true)]
async fn what_is_done_at_a_shutdown_is_stored_while_there_is_time() {
    use millstream_message::{BrokerError, BrokerErrorKind};
    use std::sync::atomic::AtomicBool;
    let down = Arc::new(AtomicBool::new(false));
    let d = down.clone();
    let broker = crate::store::grouped::Picky::open(move |_| match d.load(Ordering::SeqCst) {
        true => Err(BrokerError::new(BrokerErrorKind::Unavailable, "gone for a moment")),
        false => Ok(()),
    })
    .await;
    let store = EventStore::open(broker, "log").await.expect("it works");
    let world = World::default();
    let build = || {
        let w = world.clone();
        Saga::new("s").step(Step::new("pay", move |s: Done, _| {
            let w = w.clone();
            async move {
                sleep(5 * SECOND).await;
                w.does("pay");
                Ok(s)
            }
        }))
    };
    let first = started(Sagas::builder(store.clone()).saga(build())).await;
    first.begin("s", "1", &Done::default()).await.expect("begun");
    sleep(SECOND).await;
    down.store(true, Ordering::SeqCst);
    let d = down.clone();
    tokio::spawn(async move {
        sleep(5 * SECOND).await;
        d.store(false, Ordering::SeqCst);
    });
    assert!(first.shutdown(60 * SECOND).await);
    drop(first);
    let second = started(Sagas::builder(store).saga(build())).await;
    second.ended("s", "1").await.expect("known");
    assert_eq!(world.done(), ["pay"], "there was time to store it");
}

#[tokio::test(start_paused = true)]
async fn a_saga_that_is_stopped_while_it_waits_to_undo_undoes_nothing() {
    let world = World::default();
    let slow = Saga::new("slow").step(Step::new("busy", async |state: Done, _| {
        sleep(30 * SECOND).await;
        Ok(state)
    }));
    let s = Saga::new("s").step(world.step("a")).wait(wait());
    let sagas = started(Sagas::builder(store().await).concurrency(1).saga(slow).saga(s)).await;
    sagas.begin("s", "1", &Done::default()).await.expect("begun");
    sleep(SECOND).await;
    sagas.begin("slow", "1", &Done::default()).await.expect("begun");
    sleep(SECOND).await;
    sagas.compensate("s", "1", "x").await.expect("stored");
    sleep(SECOND).await;
    sagas.abort("s", "1", "no").await.expect("stored");
    sleep(60 * SECOND).await;
    assert_eq!(world.done(), ["a"], "what was stopped is undone");
}

#[tokio::test(start_paused = true)]
async fn one_that_was_stopped_has_ended_though_its_step_hangs() {
    let s = Saga::new("s").step(Step::new("hangs", |_: Done, _| std::future::pending()));
    let sagas = started(Sagas::builder(store().await).saga(s)).await;
    sagas.begin("s", "1", &Done::default()).await.expect("begun");
    sleep(SECOND).await;
    sagas.abort("s", "1", "no").await.expect("stored");
    let ended = timeout(3600 * SECOND, sagas.ended("s", "1")).await.expect("it does not wait for ever");
    assert_eq!(ended.expect("known").status, SagaStatus::Aborted);
}

#[tokio::test(start_paused = true)]
async fn a_saga_that_cannot_be_read_keeps_its_place_and_is_told_of_no_event_in_vain() {
    let store = store().await;
    let sagas = started(Sagas::builder(store.clone()).saga(Saga::new("s").wait(wait()))).await;
    sagas.begin("s", "1", &Done::default()).await.expect("begun");
    let torn = Event::new("saga.step-done", Message::new("no JSON"));
    store.append("saga/s/1", Expected::Any, [torn]).await.expect("stored");
    sleep(SECOND).await;
    assert_eq!(sagas.active(), [("s".to_owned(), "1".to_owned())]);
    assert!(matches!(sagas.tell(&go("1")).await, Err(SagaError::Change { version: 1, .. })));
    assert!(matches!(sagas.ended("s", "1").await, Err(SagaError::Change { .. })));
}

#[tokio::test(start_paused = true)]
async fn what_the_process_before_has_appended_late_is_not_charged_to_another_step() {
    let (store, world) = (store().await, World::default());
    let calls = Arc::new(AtomicU32::new(0));
    let build = || {
        let calls = calls.clone();
        let a = Step::new("a", |_: Done, _| async { Ok(Done(vec!["a".into()])) })
            .undo(|_: Done, _| async { Ok(Done::default()) });
        let b = Step::new("b", |_: Done, _| async { Ok(Done(vec!["a".into(), "b".into()])) }).undo(
            move |_: Done, _| {
                let calls = calls.clone();
                async move {
                    sleep(SECOND).await;
                    match calls.fetch_add(1, Ordering::SeqCst) {
                        0 => Err(StepError::permanent("b is cancelled already")),
                        _ => Ok(Done(vec!["a".into()])),
                    }
                }
            },
        );
        Saga::new("s").step(a).step(b).step(world.failing("c", 9, no_luck).retry(retry(1)))
    };
    let sagas = started(Sagas::builder(store.clone()).saga(build())).await;
    sagas.begin("s", "1", &Done::default()).await.expect("begun");
    sleep(Duration::from_millis(500)).await; // `b` is being undone again, as after a crash
    let version = store.version("saga/s/1").expect("it works");
    // What the process before had sent comes in now.
    let body = serde_json::json!({ "saga.undone": { "step": "b", "state": ["a"] } });
    let late =
        Event::new("saga.undone", Message::new(body.to_string()).with_content_type("application/json"));
    store.append("saga/s/1", Expected::Version(version), [late]).await.expect("stored");
    let view = sagas.ended("s", "1").await.expect("known");
    assert_eq!((view.status, view.undone), (SagaStatus::Compensated, vec!["b".to_owned(), "a".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_the_states_reading_is_a_failure() {
    #[derive(Serialize)]
    struct Bad(u32);
    impl<'de> Deserialize<'de> for Bad {
        fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
            panic!("a date from before 1970")
        }
    }
    let s = Saga::new("s").step(Step::new("a", |s: Bad, _| async { Ok(s) }));
    let sagas = started(Sagas::builder(store().await).saga(s)).await;
    sagas.begin("s", "1", &Bad(1)).await.expect("begun");
    let ended = timeout(3600 * SECOND, sagas.ended("s", "1")).await.expect("it is driven on").expect("known");
    assert_eq!(ended.status, SagaStatus::Compensated);
    assert!(ended.reason.expect("one").contains("a date from before 1970"));
}
