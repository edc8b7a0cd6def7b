use std::path::Path;

use millstream_events::{AppendError, EventStore, EventStoreOptions, Expected, StoreError};
use millstream_message::Message;

use crate::support::{Kind, Place, event, everywhere, texts};

#[tokio::test]
async fn a_store_that_is_opened_again_holds_all_that_was_appended() {
    everywhere(async |place| {
        if place.kind == Kind::Memory {
            return;
        }
        let store = place.store().await;
        for number in 0..50 {
            store.append("s", Expected::Any, [event(number.to_string())]).await.expect("stored");
        }
        let before = store.read("s").collect().await.expect("read");
        drop(store);
        let place = place.restarted().await;
        let store = place.store().await;
        assert_eq!(store.read("s").collect().await.expect("read"), before);
        store.append("s", Expected::Version(49), [event("on")]).await.expect("it goes on");
    })
    .await;
}

#[tokio::test]
async fn a_closed_broker_is_told_and_stores_nothing() {
    let place = Place::of(Kind::Embedded).await;
    let store = place.store().await;
    store.append("s", Expected::Any, [event("a")]).await.expect("stored");
    place.broker.close().await.expect("closed");
    let error = store.append("s", Expected::Any, [event("b")]).await.expect_err("closed");
    assert!(
        matches!(error, AppendError::Unknown { .. } | AppendError::Unreadable(_) | AppendError::Refused(_)),
        "{error:?}"
    );
    drop(store);
    let store = place.restarted().await.store().await;
    assert_eq!(texts(&store.read("s").collect().await.expect("read")), ["a"]);
}

/// Flips a bit of every place in the directory's files where these bytes stand.
pub(super) fn damage(directory: &Path, bytes: &[u8]) -> usize {
    let mut damaged = 0;
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            damaged += damage(&path, bytes);
            continue;
        }
        let mut content = std::fs::read(&path).expect("a file");
        let places: Vec<usize> = content
            .windows(bytes.len())
            .enumerate()
            .filter(|(_, part)| *part == bytes)
            .map(|(at, _)| at)
            .collect();
        places.iter().for_each(|at| content[*at] ^= 1);
        if !places.is_empty() {
            std::fs::write(&path, content).expect("written");
        }
        damaged += places.len();
    }
    damaged
}

#[tokio::test]
async fn a_log_that_has_lost_entries_is_not_opened_unless_that_is_accepted() {
    let place = Place::of(Kind::Embedded).await;
    let store = place.store().await;
    for number in 0..30 {
        let expected = Expected::after(store.version("s"));
        store.append("s", expected, [event(format!("number {number}."))]).await.expect("stored");
    }
    drop(store);
    let place = place
        .restarted_after(|directory| {
            assert!(damage(directory, b"number 7.") > 0);
        })
        .await;
    let error = EventStore::open(place.broker.clone(), &place.log).await.expect_err("not whole");
    assert!(matches!(error, StoreError::Gap { from: 7, to: 7, .. }), "{error}");
    let options = EventStoreOptions::default().accept_gaps();
    let store = EventStore::open_with(place.broker.clone(), &place.log, options).await.expect("opened");
    let events = store.read("s").collect().await.expect("read");
    let versions: Vec<u64> = events.iter().map(|event| event.version).collect();
    assert_eq!(versions, (0..7).chain(8..30).collect::<Vec<_>>(), "nothing takes the place of what is lost");
    assert_eq!(texts(&events)[7], "number 8.");
    assert_eq!(store.statistics().await.expect("told").gaps, 1);
    store.append("s", Expected::Version(29), [event("on")]).await.expect("it goes on");
    assert_eq!(store.read("s").backward().limit(25).collect().await.expect("read").len(), 25);
}

#[tokio::test]
async fn an_entry_that_cannot_be_read_is_named() {
    let place = Place::of(Kind::Memory).await;
    let store = place.store().await;
    store.append("s", Expected::Any, [event("a")]).await.expect("stored");
    let ours =
        |body: &str| Message::new(body.to_owned()).with_content_type("application/vnd.millstream.commit");
    place.broker.append(&place.log, vec![ours("{\"v\":9}\n")]).await.expect("appended");
    let error = EventStore::open(place.broker.clone(), &place.log).await.expect_err("of the future");
    assert!(error.to_string().starts_with("entry 1 of the event log"), "{error}");
    let cause = std::error::Error::source(&error).expect("a cause").to_string();
    assert_eq!(cause, "it is written in form 9, and this program reads 1: use a newer one");
    // Who has it open is told, too, and nothing is said to be appended that nobody can judge.
    let error = store.append("s", Expected::Any, [event("b")]).await.expect_err("not judged");
    assert!(matches!(error, AppendError::Unseen { .. }), "{error:?}");
    assert!(matches!(store.read("s").collect().await, Err(StoreError::Entry { offset: 1, .. })));
}

#[tokio::test]
async fn who_stops_waiting_for_an_append_leaves_a_store_that_works() {
    everywhere(async |place| {
        let store = place.store().await;
        for number in 0..20 {
            let mut append = Box::pin(store.append("s", Expected::Any, [event(number.to_string())]));
            let polled = futures_util::poll!(append.as_mut());
            assert!(polled.is_pending(), "nothing is stored at once");
            drop(append);
        }
        store.append("s", Expected::Any, [event("last")]).await.expect("stored");
        let events = texts(&store.read("s").collect().await.expect("read"));
        assert_eq!(events.last().map(String::as_str), Some("last"));
        let numbers: Vec<u32> =
            events[..events.len() - 1].iter().map(|text| text.parse().expect("one")).collect();
        assert!(numbers.is_sorted_by(|one, other| one < other), "each once at most, in order: {numbers:?}");
    })
    .await;
}

#[tokio::test]
async fn versions_that_nobody_can_have_read_are_refused_behind_a_gap_too() {
    let place = Place::of(Kind::Embedded).await;
    let store = place.store().await;
    store.append("s", Expected::Any, [event("number 1.")]).await.expect("done");
    store.append("s", Expected::Any, [event("number 2.")]).await.expect("done");
    drop(store);
    let place = place
        .restarted_after(|directory| {
            assert!(damage(directory, b"number 1.") > 0);
        })
        .await;
    let options = EventStoreOptions::default().accept_gaps();
    let store = EventStore::open_with(place.broker.clone(), &place.log, options).await.expect("done");
    let error = store
        .append("s", Expected::Version(u64::MAX - 1), [event("x"), event("y")])
        .await
        .expect_err("nobody's");
    assert!(matches!(error, AppendError::Conflict(_)), "{error}");
    store.append("s", Expected::Any, [event("x")]).await.expect("it goes on");
}

#[tokio::test]
async fn reading_ends_where_the_last_entries_are_lost() {
    let place = Place::of(Kind::Embedded).await;
    let store = place.store().await;
    for number in 0..10 {
        store.append("s", Expected::Any, [event(format!("number {number}."))]).await.expect("done");
    }
    drop(store);
    let place = place
        .restarted_after(|directory| {
            assert!(damage(directory, b"number 9.") > 0);
        })
        .await;
    let options = EventStoreOptions::default().accept_gaps();
    let store = EventStore::open_with(place.broker.clone(), &place.log, options).await.expect("done");
    let all = store.read_all().collect().await.expect("read");
    assert_eq!(all.len(), 9);
}
