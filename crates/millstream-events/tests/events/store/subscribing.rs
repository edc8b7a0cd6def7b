use std::sync::Arc;
use std::time::Duration;

use millstream_events::{CatchUp, Event, EventStore, Expected, Filter, RecordedEvent};
use millstream_flow::Run;
use millstream_message::Message;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::yield_now;
use tokio::time::timeout;

use crate::support::{Kind, Place, event, everywhere, text, texts};

const SECOND: Duration = Duration::from_secs(1);

/// A run that hands over each event, and settles it when the other side has taken it.
async fn listen(subscribe: CatchUp) -> (Run<()>, mpsc::Receiver<RecordedEvent>) {
    let (seen, events) = mpsc::channel(1000);
    let flow = subscribe.open().await.expect("opened").flow();
    let run = flow
        .map_async(1, move |event| {
            let seen = seen.clone();
            async move { seen.send(event).await.expect("somebody listens") }
        })
        .for_each(drop)
        .start();
    (run, events)
}

async fn next(events: &mut mpsc::Receiver<RecordedEvent>, count: usize) -> Vec<String> {
    let mut texts = Vec::new();
    while texts.len() < count {
        texts.push(text(&events.recv().await.expect("it goes on").event));
    }
    texts
}

async fn append(store: &EventStore, texts: impl IntoIterator<Item = &str>) {
    for text in texts {
        store.append("s", Expected::Any, [event(text)]).await.expect("stored");
    }
}

#[tokio::test]
async fn a_subscription_hears_what_was_there_and_what_comes_and_goes_on_where_it_came() {
    everywhere(async |place| {
        let store = place.store().await;
        append(&store, ["a", "b"]).await;
        let (run, mut events) = listen(store.subscribe("one")).await;
        assert_eq!(next(&mut events, 2).await, ["a", "b"]);
        append(&store, ["c"]).await;
        assert_eq!(next(&mut events, 1).await, ["c"]);
        run.shutdown(SECOND).await.expect("ended");
        append(&store, ["d"]).await;
        store.saved().await;
        // By name, whoever opens it.
        let (store, other) = (place.store().await, store);
        let (run, mut events) = listen(store.subscribe("one")).await;
        append(&other, ["e"]).await;
        assert_eq!(next(&mut events, 2).await, ["d", "e"]);
        let (all, mut events) = listen(store.subscribe("two")).await;
        assert_eq!(next(&mut events, 5).await, ["a", "b", "c", "d", "e"]);
        run.shutdown(SECOND).await.expect("ended");
        all.shutdown(SECOND).await.expect("ended");
    })
    .await;
}

#[tokio::test]
async fn what_is_not_settled_comes_again() {
    everywhere(async |place| {
        let store = place.store().await;
        append(&store, ["a", "b", "c", "d"]).await;
        // Four at once: the first hangs, the others are done.
        let flow = store.subscribe("one").open().await.expect("opened").flow();
        let (done, mut others) = mpsc::channel(8);
        let run = flow
            .map_async(4, move |event| {
                let done = done.clone();
                async move {
                    if text(&event.event) == "b" {
                        std::future::pending::<()>().await;
                    }
                    done.send(()).await.expect("it is heard");
                }
            })
            .for_each(drop)
            .start();
        for _ in 0..3 {
            others.recv().await.expect("done");
        }
        drop(run);
        // The run's tasks let go of what they held, then the place is saved.
        while store.subscribe("one").open().await.is_err() {
            yield_now().await;
        }
        store.saved().await;
        let (run, mut events) = listen(store.subscribe("one")).await;
        assert_eq!(next(&mut events, 3).await, ["b", "c", "d"], "from the first that was not settled");
        run.shutdown(SECOND).await.expect("ended");
    })
    .await;
}

#[tokio::test]
async fn a_commit_comes_whole_again_if_one_of_its_events_was_not_settled() {
    let place = Place::of(Kind::Memory).await;
    let store = place.store().await;
    append(&store, ["before"]).await;
    store.append("s", Expected::Any, ["a", "b", "c"].map(event)).await.expect("stored");
    let taken = store.subscribe("one").open().await.expect("opened").flow().take(2);
    let ((), report) = taken.for_each(drop).await.expect("it ends");
    assert_eq!(report.ledger.completed, 2);
    store.saved().await;
    let (run, mut events) = listen(store.subscribe("one")).await;
    assert_eq!(next(&mut events, 3).await, ["a", "b", "c"]);
    run.shutdown(SECOND).await.expect("ended");
}

#[tokio::test]
async fn a_subscription_hears_only_what_it_wants() {
    everywhere(async |place| {
        let store = place.store().await;
        let (run, mut events) =
            listen(store.subscribe("one").filter(Filter::all().streams("order-").types(["paid"]))).await;
        for (stream, event_type) in
            [("order-1", "placed"), ("order-1", "paid"), ("bill-1", "paid"), ("order-2", "paid")]
        {
            let event = Event::new(event_type, Message::new(stream));
            store.append(stream, Expected::Any, [event]).await.expect("stored");
        }
        assert_eq!(next(&mut events, 2).await, ["order-1", "order-2"]);
        run.shutdown(SECOND).await.expect("ended");
    })
    .await;
}

#[tokio::test]
async fn one_that_wants_new_events_only_goes_on_from_where_it_began() {
    everywhere(async |place| {
        let store = place.store().await;
        append(&store, ["old"]).await;
        drop(store.subscribe("one").new_only().open().await.expect("opened"));
        store.saved().await;
        append(&store, ["new"]).await;
        let (run, mut events) = listen(store.subscribe("one").new_only()).await;
        assert_eq!(next(&mut events, 1).await, ["new"], "it had begun before this was appended");
        run.shutdown(SECOND).await.expect("ended");
    })
    .await;
}

#[tokio::test]
async fn a_name_is_of_one_subscription_at_a_time() {
    let place = Place::of(Kind::Memory).await;
    let store = place.store().await;
    let first = store.subscribe("one").open().await.expect("opened");
    let error = store.subscribe("one").open().await.expect_err("it is open");
    let cause = std::error::Error::source(&error).expect("a cause").to_string();
    assert!(cause.contains("a subscription `one` is open already"), "{cause}");
    drop(first);
    store.subscribe("one").open().await.expect("it is free");
    let error = store.subscribe("").open().await.expect_err("no name");
    assert!(error.to_string().contains("needs a name"), "{error}");
}

#[tokio::test]
async fn a_subscription_of_entries_that_do_not_count_hears_nothing_of_them() {
    everywhere(async |place| {
        let (store, behind) = (place.store().await, place.store().await);
        append(&store, ["a"]).await;
        // It does not know yet that there is one: the log decides.
        for text in ["x", "y"] {
            let _ = behind.append("s", Expected::NoStream, [event(text)]).await.expect_err("too late");
        }
        append(&store, ["b"]).await;
        let (run, mut events) = listen(store.subscribe("one")).await;
        assert_eq!(next(&mut events, 2).await, ["a", "b"]);
        run.shutdown(SECOND).await.expect("ended");
        assert_eq!(texts(&store.read_all().collect().await.expect("read")), ["a", "b"]);
    })
    .await;
}

#[tokio::test]
async fn a_subscription_keeps_its_store() {
    let place = Place::of(Kind::Memory).await;
    let (store, other) = (place.store().await, place.store().await);
    let (run, mut events) = listen(store.subscribe("one")).await;
    drop(store);
    append(&other, ["a"]).await;
    assert_eq!(timeout(60 * SECOND, next(&mut events, 1)).await.expect("it hears"), ["a"]);
    run.shutdown(SECOND).await.expect("ended");
}

#[tokio::test]
async fn a_place_that_cannot_be_saved_ends_with_its_broker() {
    let place = Place::of(Kind::Memory).await;
    let store = place.store().await;
    let (run, mut events) = listen(store.subscribe("one")).await;
    append(&store, ["a"]).await;
    next(&mut events, 1).await;
    // The next place waits for its turn then.
    while place.broker.stored_offset(&place.log, "one").await.expect("known") != Some(1) {
        yield_now().await;
    }
    append(&store, ["b"]).await;
    next(&mut events, 1).await;
    place.broker.close().await.expect("closed");
    // The log has ended for the run, too.
    let _ = run.shutdown(SECOND).await;
    timeout(60 * SECOND, store.saved()).await.expect("it ends");
}

/// How far the only subscription has come, and how far it is behind.
async fn lag(store: &EventStore) -> (u64, u64) {
    let subscriptions = store.statistics().await.expect("told").subscriptions;
    let [one] = &subscriptions[..] else { panic!("{subscriptions:?}") };
    (one.offset, one.behind)
}

async fn until_behind(store: &EventStore, behind: u64) -> u64 {
    loop {
        let now = lag(store).await;
        if now.1 == behind {
            return now.0;
        }
        yield_now().await;
    }
}

#[tokio::test]
async fn how_far_subscriptions_are_behind_is_told_until_they_have_nothing_left_to_do() {
    everywhere(async |place| {
        let store = place.store().await;
        append(&store, ["a", "b"]).await;
        assert_eq!(store.statistics().await.expect("told").subscriptions, []);
        let opened = store.subscribe("one").open().await.expect("opened");
        assert_eq!(lag(&store).await, (0, 2), "it has not begun");
        // The second event hangs until it is let go.
        let (release, held) = oneshot::channel::<()>();
        let mut held = Some(held);
        let run = opened
            .flow()
            .map_async(1, move |event| {
                let held = if text(&event.event) == "b" { held.take() } else { None };
                async move {
                    if let Some(held) = held {
                        let _ = held.await;
                    }
                }
            })
            .for_each(drop)
            .start();
        assert_eq!(until_behind(&store, 1).await, 1);
        // Another process appends, of which this store has not heard.
        append(&place.store().await, ["c"]).await;
        // RabbitMQ puts the places of subscriptions into their stream, as entries that are nobody's.
        let behind = lag(&store).await.1;
        assert!(behind == 2 || place.kind == Kind::RabbitMq && behind > 2, "{behind}");
        release.send(()).expect("it waits");
        assert!(until_behind(&store, 0).await >= 3);
        run.shutdown(SECOND).await.expect("ended");
        store.saved().await;
        assert_eq!(store.statistics().await.expect("told").subscriptions, []);
    })
    .await;
}

#[tokio::test]
async fn what_is_passed_over_is_behind_a_subscription_and_is_not_read_again_for_ever() {
    let place = Place::of(Kind::Memory).await;
    let store = place.store().await;
    let wanted = |store: &EventStore| store.subscribe("one").filter(Filter::all().types(["wanted"]));
    let (run, _events) = listen(wanted(&store)).await;
    append(&store, ["a"; 10]).await;
    assert_eq!(until_behind(&store, 0).await, 0, "all is seen to; so little is not worth to be kept");
    append(&store, ["a"; 1200]).await;
    let kept = until_behind(&store, 0).await;
    assert!((1000..=1210).contains(&kept), "{kept}");
    run.shutdown(SECOND).await.expect("ended");
    store.saved().await;
    let opened = wanted(&store).open().await.expect("opened");
    assert_eq!(opened.offset(), kept);
}

/// One that is held up does not have what is passed over behind it, nor count each of it.
#[tokio::test]
async fn what_is_passed_over_counts_when_what_is_before_it_is_settled() {
    let place = Place::of(Kind::Memory).await;
    let store = place.store().await;
    let filter = Filter::all().types(["wanted"]);
    let opened = store.subscribe("one").filter(filter).open().await.expect("opened");
    let gate = Arc::new(Semaphore::new(0));
    let held = gate.clone();
    let run = opened
        .flow()
        .map_async(2, move |_| {
            let held = held.clone();
            async move { held.acquire().await.expect("it is not closed").forget() }
        })
        .for_each(drop)
        .start();
    store.append("s", Expected::Any, [Event::new("wanted", Message::new("x"))]).await.expect("stored");
    append(&store, ["a"; 3000]).await;
    assert_eq!(until_behind(&store, 3001).await, 0);
    gate.add_permits(1);
    assert!(until_behind(&store, 0).await >= 2000);
    run.shutdown(SECOND).await.expect("ended");
}
