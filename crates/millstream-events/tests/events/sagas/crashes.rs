use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use millstream_events::{
    BeginError, Event, EventData, EventStore, Saga, SagaStatus, Sagas, SagasBuilder, Step, StepContext,
    StepError, Wait,
};
use millstream_flow::{Clock, Retry};
use millstream_message::Message;
use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::{Done, SECOND, World, no_luck, retry, started, store};
use crate::support::{Kind, everywhere};

#[derive(Serialize, Deserialize)]
struct Go {}

impl EventData for Go {
    const TYPES: &'static [&'static str] = &["go"];
}

fn wait() -> Wait<Done> {
    Wait::new("go", |state: Done, _: Go| Ok(state))
}

#[tokio::test]
async fn a_saga_goes_on_in_the_next_process() {
    everywhere(async |place| {
        if place.kind == Kind::Memory {
            return;
        }
        let world = World::default();
        let saga = || Saga::new("s").step(world.step("a")).wait(wait()).step(world.step("z"));
        let sagas = started(Sagas::builder(place.store().await).saga(saga())).await;
        sagas.begin("s", "1", &Done::default()).await.expect("begun");
        while sagas.view("s", "1").await.expect("known").status != SagaStatus::Waiting {
            tokio::task::yield_now().await;
        }
        drop(sagas);
        let place = place.restarted().await;
        let sagas = started(Sagas::builder(place.store().await).saga(saga())).await;
        assert_eq!(sagas.active(), [("s".to_owned(), "1".to_owned())]);
        let go = Event::of(&Go {}).expect("JSON").with_correlation_id("1");
        assert_eq!(sagas.tell(&go).await.expect("told"), 1);
        assert_eq!(sagas.ended("s", "1").await.expect("known").status, SagaStatus::Completed);
        assert_eq!(world.done(), ["a", "z"], "what was done is not done again");
        let next = started(Sagas::builder(place.store().await).saga(saga())).await;
        assert!(next.active().is_empty(), "it has ended");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn delays_and_times_of_waiting_outlast_the_process() {
    let (store, world, clock) = (store().await, World::default(), Clock::system());
    let sagas = || {
        let retried = Saga::new("retried").step(world.failing("a", 1, no_luck).retry(
            Retry::attempts(2).expect("it is not 0").first_delay(100 * SECOND).max_delay(100 * SECOND),
        ));
        let waits = Saga::new("waits").wait(wait().timeout(100 * SECOND));
        let late = Saga::new("late").timeout(100 * SECOND).wait(wait());
        started(Sagas::builder(store.clone()).clock(clock).saga(retried).saga(waits).saga(late))
    };
    let names = ["retried", "waits", "late"];
    let begun = Instant::now();
    let first = sagas().await;
    for name in names {
        first.begin(name, "1", &Done::default()).await.expect("begun");
    }
    sleep(60 * SECOND).await;
    assert!(first.shutdown(SECOND).await, "no step is under way");
    let second = sagas().await;
    for (name, status) in
        names.into_iter().zip([SagaStatus::Completed, SagaStatus::TimedOut, SagaStatus::TimedOut])
    {
        let view = second.ended(name, "1").await.expect("known");
        assert_eq!((view.status, begun.elapsed().as_secs()), (status, 100), "{name}");
    }
    assert_eq!(world.done(), ["a#1", "a#2"]);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_waits_for_what_is_under_way_and_begins_nothing() {
    let (store, world) = (store().await, World::default());
    let slow = || {
        let world = world.clone();
        Step::new("slow", move |state: Done, _| {
            let world = world.clone();
            async move {
                sleep(5 * SECOND).await;
                world.does("slow");
                Ok(state)
            }
        })
    };
    let sagas =
        started(Sagas::builder(store.clone()).saga(Saga::new("s").step(slow()).step(world.step("z")))).await;
    sagas.begin("s", "1", &Done::default()).await.expect("begun");
    sleep(SECOND).await;
    assert!(sagas.shutdown(10 * SECOND).await);
    assert_eq!(world.done(), ["slow"]);
    let view = sagas.view("s", "1").await.expect("known");
    assert_eq!((view.status, view.done), (SagaStatus::Running, vec!["slow".to_owned()]));
    assert!(matches!(sagas.begin("s", "2", &Done::default()).await, Err(BeginError::Invalid(_))));
    // One that does not end in time is given up.
    let sagas = started(Sagas::builder(store).saga(Saga::new("t").step(slow()))).await;
    sagas.begin("t", "1", &Done::default()).await.expect("begun");
    sleep(SECOND).await;
    assert!(!sagas.shutdown(SECOND).await);
}

#[tokio::test(start_paused = true)]
async fn of_two_processes_that_run_a_saga_one_stores_what_is_done() {
    let (store, world) = (store().await, World::default());
    let slow = || {
        let world = world.clone();
        Step::new("slow", move |mut state: Done, _| {
            let world = world.clone();
            async move {
                sleep(SECOND).await;
                world.does("slow");
                state.0.push("slow".to_owned());
                Ok(state)
            }
        })
    };
    let both = async || {
        started(Sagas::builder(store.clone()).saga(Saga::new("s").step(slow()).step(world.step("z")))).await
    };
    let (first, second) = (both().await, both().await);
    first.begin("s", "1", &Done::default()).await.expect("begun");
    let view = first.ended("s", "1").await.expect("known");
    assert_eq!(second.ended("s", "1").await.expect("known"), view);
    assert_eq!(view.state, serde_json::json!(["slow", "z"]));
    assert_eq!(first.statistics().steps + second.statistics().steps, 2);
    let slow = world.done().iter().filter(|done| *done == "slow").count();
    assert_eq!(slow, 2, "both have done it: it is at least once");
}

#[tokio::test(start_paused = true)]
async fn a_step_that_the_program_no_longer_has_cannot_be_undone() {
    let (store, world) = (store().await, World::default());
    let first = Saga::new("s").step(world.step("old")).wait(wait());
    let sagas = started(Sagas::builder(store.clone()).saga(first)).await;
    sagas.begin("s", "1", &Done::default()).await.expect("begun");
    sleep(SECOND).await;
    drop(sagas);
    let second = Saga::new("s").step(world.step("new")).wait(wait());
    let sagas = started(Sagas::builder(store).saga(second)).await;
    sleep(SECOND).await;
    assert_eq!(world.done(), ["old", "new"], "steps are found by their names");
    sagas.compensate("s", "1", "enough").await.expect("stored");
    let view = sagas.ended("s", "1").await.expect("known");
    assert_eq!((view.status, view.undone), (SagaStatus::Failed, vec!["new".to_owned()]));
    let reason = view.reason.expect("there is one");
    assert_eq!(reason, "enough; step `old` is to be undone, and the saga has none of that name");
}

#[tokio::test(start_paused = true)]
async fn a_saga_of_an_older_state_fails_and_harms_no_other() {
    let (store, world) = (store().await, World::default());
    let first = Saga::new("s").wait(Wait::new("go", |state: u32, _: Go| Ok(state)));
    let sagas = started(Sagas::builder(store.clone()).saga(first)).await;
    sagas.begin("s", "1", &7_u32).await.expect("begun");
    sleep(SECOND).await;
    drop(sagas);
    let sagas = started(Sagas::builder(store).saga(Saga::new("s").wait(wait()).step(world.step("z")))).await;
    sagas.begin("s", "2", &Done::default()).await.expect("begun");
    for id in ["1", "2"] {
        let go = Event::of(&Go {}).expect("JSON").with_correlation_id(id);
        assert_eq!(sagas.tell(&go).await.expect("told"), 1);
    }
    assert_eq!(sagas.ended("s", "1").await.expect("known").status, SagaStatus::Compensated);
    assert_eq!(sagas.ended("s", "2").await.expect("known").status, SagaStatus::Completed);
}

/// Steps of which some fail, each of which takes its time.
fn random(world: &World, store: &EventStore, fails_at: usize) -> SagasBuilder {
    let mut saga = Saga::new("s");
    for at in 0..4_usize {
        let (does, undoes) = (world.clone(), world.clone());
        saga = saga.step(
            Step::new(format!("{at}"), move |mut state: Done, context| {
                let does = does.clone();
                async move {
                    sleep(Duration::from_millis(70)).await;
                    does.does(&*context.step);
                    if at == fails_at {
                        return Err(no_luck());
                    }
                    state.0.push(context.step.to_string());
                    Ok(state)
                }
            })
            .retry(retry(2))
            .undo(move |mut state: Done, context| {
                let undoes = undoes.clone();
                async move {
                    sleep(Duration::from_millis(70)).await;
                    undoes.does(format!("-{}", context.step));
                    state.0.pop();
                    Ok(state)
                }
            }),
        );
    }
    Sagas::builder(store.clone()).saga(saga)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if std::env::var_os("MILLSTREAM_SOAK").is_some() { 3000 } else { 80 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Wherever processes end: each step is stored as done once and in order, what was done is undone in reverse, and the saga ends.
    #[test]
    fn whenever_processes_end_a_saga_comes_to_its_end(
        fails_at in 0..6_usize,
        lives in proptest::collection::vec(1..400_u64, 0..12),
    ) {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_all().start_paused(true).build().expect("a runtime");
        runtime.block_on(async {
            let (store, world) = (store().await, World::default());
            let first = random(&world, &store, fails_at).start().await.expect("started");
            first.begin("s", "1", &Done::default()).await.expect("begun");
            drop(first);
            for life in lives {
                let sagas = random(&world, &store, fails_at).start().await.expect("started");
                sleep(Duration::from_millis(life)).await;
                // As a process that is killed: what is under way goes on nowhere.
                sagas.shutdown(Duration::ZERO).await;
            }
            let sagas = random(&world, &store, fails_at).start().await.expect("started");
            let view = sagas.ended("s", "1").await.expect("known");
            let all: Vec<String> = (0..4).map(|at| at.to_string()).collect();
            if fails_at < 4 {
                assert_eq!(view.status, SagaStatus::Compensated);
                assert_eq!(view.done, all[..fails_at]);
                assert!(view.undone.iter().eq(all[..fails_at].iter().rev()));
                assert_eq!(view.state, serde_json::json!([]));
            } else {
                assert_eq!((view.status, &view.done), (SagaStatus::Completed, &all));
                assert_eq!(view.state, serde_json::json!(all));
            }
            // What was really done is what is stored, some of it more than once and never out of order.
            let mut really = world.done();
            really.dedup();
            let undone = view.undone.iter().map(|step| format!("-{step}"));
            let failed = (fails_at < 4).then(|| fails_at.to_string());
            let expected: Vec<String> = view.done.iter().cloned().chain(failed).chain(undone).collect();
            assert_eq!(really, expected);
        });
    }
}

#[tokio::test]
async fn an_event_told_twice_by_a_broker_that_repeats_is_heard_once() {
    let store = store().await;
    let saga = || Saga::new("s").wait(wait()).wait(Wait::new("again", |state: Done, _: Go| Ok(state)));
    let sagas = started(Sagas::builder(store.clone()).saga(saga())).await;
    sagas.begin("s", "1", &Done::default()).await.expect("begun");
    let go = Event::of(&Go {}).expect("JSON").with_correlation_id("1");
    assert_eq!(sagas.tell(&go).await.expect("told"), 1);
    drop(sagas);
    // Another process hears it again, and knows.
    let sagas = started(Sagas::builder(store).saga(saga())).await;
    assert_eq!(sagas.tell(&go).await.expect("told"), 0);
    let other =
        Event::new("go", Message::new("{}").with_content_type("application/json")).with_correlation_id("1");
    assert_eq!(sagas.tell(&other).await.expect("told"), 1);
    assert_eq!(sagas.ended("s", "1").await.expect("known").status, SagaStatus::Completed);
}

// On threads of its own: a driver that never waits would keep a single one to itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_saga_that_is_forgotten_while_a_step_is_under_way_is_left() {
    let (begun, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let gates = (begun.clone(), go_on.clone());
    let saga = Saga::new("s").step(Step::new("slow", move |state: Done, _| {
        let (begun, go_on) = gates.clone();
        async move {
            begun.notify_one();
            go_on.notified().await;
            Ok(state)
        }
    }));
    let sagas = started(Sagas::builder(store().await).saga(saga)).await;
    sagas.begin("s", "1", &Done::default()).await.expect("begun");
    begun.notified().await;
    sagas.abort("s", "1", "no").await.expect("stored");
    sagas.forget("s", "1").await.expect("it has ended");
    go_on.notify_one();
    assert!(sagas.shutdown(60 * SECOND).await, "its driver has left it");
    assert!(sagas.active().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_failure_counts_though_an_event_is_heard_meanwhile() {
    let store = store().await;
    let tries = Arc::new(AtomicU32::new(0));
    let t = tries.clone();
    let saga = Saga::<u32>::new("x")
        .step(Step::new("slow", move |_: u32, _| {
            let t = t.clone();
            async move {
                t.fetch_add(1, Ordering::SeqCst);
                sleep(SECOND).await;
                Err(StepError::permanent("never"))
            }
        }))
        .wait(Wait::new("w", |s: u32, _: Go| Ok(s)));
    let sagas = Sagas::builder(store.clone()).saga(saga).start().await.expect("done");
    sagas.begin("x", "1", &1_u32).await.expect("done");
    sleep(Duration::from_millis(200)).await;
    assert_eq!(
        sagas.tell(&Event::of(&Go {}).expect("done").with_correlation_id("1")).await.expect("done"),
        1
    );
    sagas.ended("x", "1").await.expect("done");
    assert_eq!(tries.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn what_does_not_end_in_time_is_given_up() {
    let store = store().await;
    let done = Arc::new(AtomicU32::new(0));
    let t = done.clone();
    let saga = Saga::<u32>::new("x").step(Step::new("slow", move |s: u32, _| {
        let t = t.clone();
        async move {
            sleep(SECOND * 60).await;
            t.fetch_add(1, Ordering::SeqCst);
            Ok(s)
        }
    }));
    let sagas = Sagas::builder(store.clone()).saga(saga).start().await.expect("done");
    sagas.begin("x", "1", &1_u32).await.expect("done");
    sleep(SECOND).await;
    assert!(!sagas.shutdown(SECOND).await);
    drop(sagas);
    sleep(SECOND * 100).await;
    assert_eq!(done.load(Ordering::SeqCst), 0, "it was given up");
}

#[tokio::test]
async fn a_step_that_emits_what_is_not_for_steps_has_failed() {
    let store = store().await;
    let saga = Saga::<u32>::new("x").step(Step::new("s", move |s: u32, c: StepContext| async move {
        c.emit(Event::new("saga.mine", Message::new("x")));
        Ok(s)
    }));
    let sagas = Sagas::builder(store.clone()).saga(saga).start().await.expect("done");
    sagas.begin("x", "1", &1_u32).await.expect("done");
    let view = sagas.ended("x", "1").await.expect("known");
    assert_eq!(view.status, SagaStatus::Compensated);
    assert!(view.reason.is_some_and(|reason| reason.contains("`saga.mine`, which is not for steps")));
}

#[tokio::test(start_paused = true)]
async fn a_saga_goes_on_though_nobody_waits_for_its_beginning() {
    let (store, world) = (store().await, World::default());
    let sagas = started(Sagas::builder(store.clone()).saga(Saga::new("s").step(world.step("a")))).await;
    let state = Done::default();
    let mut begin = Box::pin(sagas.begin("s", "1", &state));
    assert!(futures_util::poll!(begin.as_mut()).is_pending());
    // It is stored and heard of by then.
    sleep(SECOND).await;
    drop(begin);
    assert_eq!(store.version("saga/s/1"), Some(0), "it has begun, and waits for who begins it");
    assert_eq!(sagas.ended("s", "1").await.expect("known").status, SagaStatus::Completed);
    assert_eq!(world.done(), ["a"]);
}
