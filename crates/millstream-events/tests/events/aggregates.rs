//! Aggregates, their snapshots and old forms.

use futures_util::future::join_all;
use millstream_events::{
    Aggregate, Aggregates, AppendError, Event, EventData, ExecuteError, Expected, LoadError, Upcasters,
};
use millstream_message::{Json, Message};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::runtime::Handle;
use tokio::task::block_in_place;

use crate::support::{Kind, Place, event, everywhere};

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Counter {
    total: u64,
    applied: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Added {
    by: u64,
}

impl EventData for Added {
    const TYPES: &'static [&'static str] = &["added"];
}

impl Aggregate for Counter {
    const NAME: &'static str = "counter";
    type Event = Added;

    fn apply(&mut self, event: &Added) {
        self.total += event.by;
        self.applied += 1;
    }
}

fn add(by: u64) -> impl Fn(&Counter) -> Result<Vec<Added>, String> {
    move |_| Ok(vec![Added { by }])
}

#[tokio::test]
async fn decisions_of_many_are_made_one_after_the_other() {
    everywhere(async |place| {
        let counters = [
            Aggregates::<Counter>::new(place.store().await).attempts(1000),
            Aggregates::<Counter>::new(place.store().await).attempts(1000).snapshot_every(7),
        ];
        let decided = (0..40_usize).map(|number| {
            // Never more than 30 together, whoever decides.
            let decide = |counter: &Counter| match counter.total < 30 {
                true => Ok(vec![Added { by: 1 }]),
                false => Err("full"),
            };
            counters[number % 2].execute("one", decide)
        });
        let decided = join_all(decided).await;
        let refused = decided.iter().filter(|one| matches!(one, Err(ExecuteError::Refused("full")))).count();
        assert_eq!((decided.iter().filter(|one| one.is_ok()).count(), refused), (30, 10));
        let loaded = Aggregates::<Counter>::new(place.store().await).load("one").await.expect("loaded");
        assert_eq!((loaded.state.total, loaded.version), (30, Some(29)));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_overtaken_too_often_is_told() {
    let place = Place::of(Kind::Memory).await;
    let store = place.store().await;
    let counters = Aggregates::<Counter>::new(store.clone()).attempts(3);
    let mut decided = 0;
    let overtaken = counters.execute("one", |_| {
        decided += 1;
        // Somebody is faster each time.
        let faster = store.append_values("counter-one", Expected::Any, &[Added { by: 1 }]);
        block_in_place(|| Handle::current().block_on(faster)).expect("stored");
        Ok::<_, String>(vec![Added { by: 100 }])
    });
    let error = overtaken.await.expect_err("overtaken");
    assert!(matches!(error, ExecuteError::Append(AppendError::Conflict(_))), "{error}");
    assert_eq!(decided, 3);
}

#[tokio::test]
async fn a_command_that_comes_again_changes_nothing() {
    everywhere(async |place| {
        let counters = Aggregates::<Counter>::new(place.store().await);
        let cause = event("why").with_correlation_id("request 1");
        let execute =
            async |by| counters.on("one").caused_by(&cause).metadata("user", "ann").execute(add(by)).await;
        assert_eq!(execute(5).await.expect("executed").appended, 1);
        let again = execute(7).await.expect("known");
        assert_eq!((again.appended, again.state.total, again.version), (0, 5, Some(0)));
        let other = counters.on("two").caused_by(&cause).execute(add(1)).await.expect("executed");
        assert_eq!(other.appended, 1, "a command may be for several aggregates");
        let stored = counters.load("one").await.expect("loaded");
        assert_eq!(stored.state.total, 5);
        let events = place.store().await.read("counter-one").collect().await.expect("read");
        let event = &events[0].event;
        assert_eq!(event.causation_id.as_ref(), Some(&cause.id));
        assert_eq!(event.correlation_id.as_deref(), Some("request 1"));
        assert_eq!(event.metadata["user"], "ann");
    })
    .await;
}

#[tokio::test]
async fn a_snapshot_saves_reading_what_is_before_it() {
    everywhere(async |place| {
        let store = place.store().await;
        let counters = Aggregates::<Counter>::new(store.clone()).snapshot_every(10);
        for _ in 0..25 {
            counters.execute("one", add(2)).await.expect("executed");
        }
        let (version, _) = store.snapshot("counter-one").await.expect("read").expect("taken");
        assert_eq!(version, 19);
        // What is before the snapshot is not asked for.
        store.truncate("counter-one", 20).await.expect("there");
        let loaded = counters.load("one").await.expect("loaded");
        assert_eq!((loaded.state.total, loaded.state.applied, loaded.version), (50, 25, Some(24)));
        // A state of what is left would be a wrong one: without the snapshot, and with one of another form, there is none.
        let without = Aggregates::<Counter>::new(store.clone());
        let other = Aggregates::<Newer>::new(store).snapshot_every(10);
        let errors = [without.load("one").await.err(), other.load("one").await.err()];
        for error in errors {
            let Some(LoadError::Truncated { stream, first: 20 }) = error else { panic!("{error:?}") };
            assert_eq!(stream, "counter-one");
        }
    })
    .await;
}

/// The same aggregate with another state.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Newer {
    #[serde(default)]
    applied: u64,
}

impl Aggregate for Newer {
    const NAME: &'static str = "counter";
    const STATE_VERSION: u32 = 1;
    type Event = Added;

    fn apply(&mut self, _: &Added) {
        self.applied += 10;
    }
}

#[tokio::test]
async fn a_snapshot_of_another_form_is_not_used() {
    let place = Place::of(Kind::Memory).await;
    let store = place.store().await;
    let older = Aggregates::<Counter>::new(store.clone()).snapshot_every(2);
    for _ in 0..4 {
        older.execute("one", add(1)).await.expect("executed");
    }
    let newer = Aggregates::<Newer>::new(store.clone()).snapshot_every(2);
    assert_eq!(newer.load("one").await.expect("loaded").state.applied, 40);
    store.save_snapshot("counter-one", 3, Message::new("no JSON")).await.expect("stored");
    assert_eq!(newer.load("one").await.expect("loaded").state.applied, 40);
}

#[tokio::test]
async fn events_of_older_forms_are_read_and_what_cannot_be_is_named() {
    let place = Place::of(Kind::Memory).await;
    let store = place.store().await;
    let old = Event::encoded("added.v0", &json!({ "amount": 3 }), &Json).expect("JSON");
    store.append("counter-one", Expected::Any, [old]).await.expect("stored");
    let counters = Aggregates::<Counter>::new(store.clone());
    let error = counters.load("one").await.expect_err("not of today");
    assert_eq!(error.to_string(), "event 0 of `counter-one`");
    assert!(matches!(error, LoadError::Event { version: 0, .. }));
    let counters = counters
        .upcasters(Upcasters::new().add("added.v0", "added", |old| Ok(json!({ "by": old["amount"] }))));
    assert_eq!(counters.execute("one", add(1)).await.expect("executed").state.total, 4);
}

#[tokio::test]
async fn a_decision_for_nothing_appends_nothing() {
    let place = Place::of(Kind::Memory).await;
    let counters = Aggregates::<Counter>::new(place.store().await);
    let executed = counters.execute("one", |_| Ok::<_, String>(Vec::new())).await.expect("executed");
    assert_eq!((executed.appended, executed.version), (0, None));
}

#[tokio::test]
async fn an_aggregate_goes_on_from_a_snapshot_of_which_all_events_are_truncated() {
    let place = Place::of(Kind::Memory).await;
    let store = place.store().await;
    let counts = Aggregates::<Counter>::new(store.clone()).snapshot_every(2);
    counts.execute("7", add(1)).await.expect("done");
    counts.execute("7", add(1)).await.expect("done");
    let (version, _) = store.snapshot("counter-7").await.expect("done").expect("one");
    store.truncate("counter-7", version + 1).await.expect("done");
    let done = counts.execute("7", add(1)).await;
    assert_eq!(done.expect("it goes on").state.total, 3);
}
