use millstream_events::{
    Event, EventData, Filter, SAGA_STREAMS, Saga, SagaChange, SagaError, SagaStatus, Sagas, Step, StepError,
    Upcasters, Wait,
};
use millstream_message::{Json, Message};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use super::{Done, SECOND, World, started, store};
use crate::support::everywhere;

#[derive(Serialize, Deserialize)]
struct Paid {
    by: String,
}

impl EventData for Paid {
    const TYPES: &'static [&'static str] = &["paid"];
}

fn paid(correlation: &str, by: &str) -> Event {
    Event::of(&Paid { by: by.to_owned() }).expect("JSON").with_correlation_id(correlation)
}

fn wait() -> Wait<Done> {
    Wait::new("payment", |mut state: Done, paid: Paid| {
        if paid.by == "nobody" {
            return Err(StepError::permanent("nobody has paid"));
        }
        state.0.push(format!("paid by {}", paid.by));
        Ok(state)
    })
}

#[tokio::test]
async fn a_saga_waits_for_the_event_of_its_own_correlation() {
    everywhere(async |place| {
        let world = World::default();
        let saga = Saga::new("s").step(world.step("a")).wait(wait()).step(world.step("z"));
        let sagas = started(Sagas::builder(place.store().await).saga(saga)).await;
        sagas.begin_correlated("s", "1", "order 1", &Done::default()).await.expect("begun");
        sagas.begin("s", "2", &Done::default()).await.expect("begun");
        assert_eq!(sagas.tell(&paid("order 9", "ann")).await.expect("told"), 0);
        let other = Event::new("something-else", Message::new("")).with_correlation_id("order 1");
        assert_eq!(sagas.tell(&other).await.expect("told"), 0, "no step waits for that");
        let event = paid("order 1", "bob");
        assert_eq!(sagas.tell(&event).await.expect("told"), 1);
        assert_eq!(sagas.tell(&event).await.expect("told"), 0, "it was told of this one");
        let view = sagas.ended("s", "1").await.expect("known");
        assert_eq!(view.state, serde_json::json!(["a", "paid by bob", "z"]));
        assert_eq!(sagas.active(), [("s".to_owned(), "2".to_owned())]);
        assert_eq!(sagas.tell(&paid("2", "eve")).await.expect("told"), 1);
        let view = sagas.ended("s", "2").await.expect("known");
        assert_eq!(view.state, serde_json::json!(["a", "paid by eve", "z"]));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_event_that_comes_early_is_kept_until_it_is_waited_for() {
    let slow = Step::new("slow", |state: Done, _| async {
        sleep(10 * SECOND).await;
        Ok(state)
    });
    let sagas = started(Sagas::builder(store().await).saga(Saga::new("s").step(slow).wait(wait()))).await;
    sagas.begin("s", "1", &Done::default()).await.expect("begun");
    sleep(SECOND).await;
    assert_eq!(sagas.tell(&paid("1", "ann")).await.expect("told"), 1);
    assert_eq!(sagas.view("s", "1").await.expect("known").done, [""; 0]);
    let view = sagas.ended("s", "1").await.expect("known");
    assert_eq!(
        (view.status, view.done),
        (SagaStatus::Completed, vec!["slow".to_owned(), "payment".to_owned()])
    );
    assert_eq!(view.state, serde_json::json!(["paid by ann"]));
}

#[tokio::test(start_paused = true)]
async fn an_event_that_does_not_come_in_time_undoes_the_saga_or_lets_it_go_on() {
    let world = World::default();
    let undone = Saga::new("undone").step(world.step("a")).wait(wait().timeout(60 * SECOND));
    let on = Saga::new("on").wait(wait().or_go_on_after(60 * SECOND)).step(world.step("z"));
    let sagas = started(Sagas::builder(store().await).saga(undone).saga(on)).await;
    let begun = Instant::now();
    sagas.begin("undone", "1", &Done::default()).await.expect("begun");
    sagas.begin("on", "1", &Done::default()).await.expect("begun");
    sleep(SECOND).await;
    let view = sagas.view("on", "1").await.expect("known");
    assert_eq!((view.status, view.step.as_deref()), (SagaStatus::Waiting, Some("payment")));
    let view = sagas.ended("undone", "1").await.expect("known");
    assert_eq!((view.status, begun.elapsed().as_secs()), (SagaStatus::TimedOut, 60));
    assert_eq!(view.reason.as_deref(), Some("what step `payment` waits for did not come"));
    let view = sagas.ended("on", "1").await.expect("known");
    assert_eq!((view.status, view.done.len()), (SagaStatus::Completed, 2));
}

#[tokio::test(start_paused = true)]
async fn an_event_that_a_saga_cannot_take_undoes_it() {
    let world = World::default();
    let saga = Saga::new("s").step(world.step("a")).wait(wait());
    let sagas = started(Sagas::builder(store().await).saga(saga)).await;
    for (id, event, why) in [
        ("1", paid("1", "nobody"), "nobody has paid"),
        (
            "2",
            Event::new("paid", Message::new("?")).with_correlation_id("2"),
            "its body is not that of `paid`",
        ),
    ] {
        sagas.begin("s", id, &Done::default()).await.expect("begun");
        assert_eq!(sagas.tell(&event).await.expect("told"), 1);
        let view = sagas.ended("s", id).await.expect("known");
        assert_eq!((view.status, view.undone), (SagaStatus::Compensated, vec!["a".to_owned()]));
        let reason = view.reason.expect("there is one");
        assert!(reason.starts_with("step `payment` failed for good") && reason.contains(why), "{reason}");
    }
}

#[tokio::test(start_paused = true)]
async fn events_that_no_step_takes_are_kept_up_to_a_number() {
    let slow = Step::new("slow", |_: Done, _| std::future::pending());
    let sagas = started(Sagas::builder(store().await).saga(Saga::new("s").step(slow).wait(wait()))).await;
    sagas.begin("s", "1", &Done::default()).await.expect("begun");
    for _ in 0..64 {
        assert_eq!(sagas.tell(&paid("1", "ann")).await.expect("told"), 1);
    }
    let error = sagas.tell(&paid("1", "ann")).await.expect_err("no more");
    assert!(matches!(error, SagaError::Full { heard: 64, .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn what_a_step_emits_is_stored_with_it_and_nothing_of_what_fails() {
    let saga = Saga::new("s").step(Step::new("a", |state: Done, step| async move {
        step.emit(Event::new("asked", Message::new(step.attempt.to_string())));
        if step.attempt == 1 { Err("no luck".into()) } else { Ok(state) }
    }));
    let store = store().await;
    let sagas = started(Sagas::builder(store.clone()).saga(saga)).await;
    sagas.begin_correlated("s", "1", "order 1", &Done::default()).await.expect("begun");
    sagas.ended("s", "1").await.expect("known");
    let all = store.read_all().collect().await.expect("read");
    let types: Vec<&str> = all.iter().map(|event| event.event.event_type.as_str()).collect();
    assert_eq!(types, ["saga.begun", "saga.step-failed", "saga.step-done", "asked", "saga.ended"]);
    assert_eq!(all[2].position.offset, all[3].position.offset, "both or neither");
    assert_eq!(all[3].event.correlation_id.as_deref(), Some("order 1"));
    assert_eq!(all[3].event.data.body(), "2");
}

#[tokio::test(start_paused = true)]
async fn every_change_is_heard_by_who_subscribes() {
    let world = World::default();
    let saga = Saga::new("s").step(world.step("a")).wait(wait());
    let store = store().await;
    let sagas = started(Sagas::builder(store.clone()).saga(saga)).await;
    sagas.begin("s", "1", &Done::default()).await.expect("begun");
    sleep(SECOND).await;
    let event = paid("1", "nobody");
    sagas.tell(&event).await.expect("told");
    sagas.ended("s", "1").await.expect("known");
    let filter = Filter::all().streams(SAGA_STREAMS);
    let heard = store.subscribe("log").filter(filter).open().await.expect("opened").flow().take(8);
    let (changes, _) =
        heard.map(|event| SagaChange::of(&event).expect("a change")).collect().await.expect("read");
    let words: Vec<&str> = changes
        .iter()
        .map(|change| match change {
            SagaChange::Begun { .. } => "begun",
            SagaChange::StepDone { step, .. } => {
                assert_eq!(step, "a");
                "done"
            }
            SagaChange::Waiting { .. } => "waiting",
            SagaChange::Heard { id, event_type } => {
                assert_eq!((id, event_type.as_str()), (&event.id, "paid"));
                "heard"
            }
            SagaChange::StepFailed { again: None, .. } => "failed",
            SagaChange::Compensating { .. } => "compensating",
            SagaChange::Undone { .. } => "undone",
            SagaChange::Ended { .. } => "ended",
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(words, ["begun", "done", "waiting", "heard", "failed", "compensating", "undone", "ended"]);
}

#[tokio::test(start_paused = true)]
async fn a_saga_waits_for_events_of_older_forms_too() {
    let upcasters = Upcasters::new()
        .add("bezahlt", "paid.v0", Ok)
        .add("paid.v0", "paid", |old| Ok(serde_json::json!({ "by": old["name"] })));
    let wait = Wait::upcast("payment", upcasters, |mut state: Done, paid: Paid| {
        state.0.push(paid.by);
        Ok(state)
    });
    let sagas = started(Sagas::builder(store().await).saga(Saga::new("s").wait(wait))).await;
    sagas.begin("s", "1", &Done::default()).await.expect("begun");
    let old = Event::encoded("bezahlt", &serde_json::json!({ "name": "ann" }), &Json).expect("JSON");
    assert_eq!(sagas.tell(&old.with_correlation_id("1")).await.expect("told"), 1);
    assert_eq!(sagas.ended("s", "1").await.expect("known").state, serde_json::json!(["ann"]));
}
