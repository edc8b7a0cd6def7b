use std::collections::BTreeSet;

use futures_util::future::join_all;
use millstream_events::{AppendError, Event, EventData, Expected};
use millstream_message::{CodecError, Message};
use serde::{Deserialize, Serialize};

use crate::support::{event, everywhere, texts};

fn conflict(error: &AppendError) -> Option<u64> {
    match error {
        AppendError::Conflict(conflict) => conflict.actual,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn what_is_appended_is_read_with_all_that_was_said() {
    everywhere(async |place| {
        let store = place.store().await;
        let first = Event::new("order-placed", Message::new("{}").with_content_type("application/json"))
            .with_correlation_id("request 9")
            .with_metadata("user", "ann");
        let second =
            Event::new("order-paid", Message::new(vec![0_u8, 10, 255]).with_content_encoding("zstd"))
                .caused_by(&first);
        let appended = store
            .append("order-7", Expected::NoStream, [first.clone(), second.clone()])
            .await
            .expect("stored");
        assert_eq!((appended.first_version, appended.last_version, appended.repeated), (0, 1, false));
        assert_eq!(store.version("order-7"), Some(1));
        let events = store.read("order-7").collect().await.expect("read");
        assert_eq!(events.iter().map(|event| &event.event).collect::<Vec<_>>(), [&first, &second]);
        assert_eq!(events.iter().map(|event| event.version).collect::<Vec<_>>(), [0, 1]);
        assert!(events.iter().all(|event| &*event.stream == "order-7"));
        assert!(events[0].position < events[1].position);
        assert!(events[0].recorded_at.elapsed().is_ok_and(|age| age.as_secs() < 300));
    })
    .await;
}

#[tokio::test]
async fn an_append_counts_only_if_its_stream_is_as_expected() {
    everywhere(async |place| {
        // One that has seen the log, and one that lags behind whatever it says.
        let (store, other) = (place.store().await, place.store().await);
        let try_as = async |expected| store.append("s", expected, [event("x")]).await;
        assert_eq!(conflict(&try_as(Expected::Exists).await.expect_err("nothing there")), None);
        assert_eq!(conflict(&try_as(Expected::Version(0)).await.expect_err("nothing there")), None);
        assert_eq!(try_as(Expected::NoStream).await.expect("first").last_version, 0);
        assert_eq!(conflict(&try_as(Expected::NoStream).await.expect_err("it is there")), Some(0));
        assert_eq!(conflict(&try_as(Expected::Version(1)).await.expect_err("not yet")), Some(0));
        assert_eq!(try_as(Expected::Version(0)).await.expect("as expected").last_version, 1);
        assert_eq!(try_as(Expected::Exists).await.expect("there").last_version, 2);
        assert_eq!(try_as(Expected::Any).await.expect("whatever").last_version, 3);
        other.refresh().await.expect("up to date");
        let late = other.append("s", Expected::Version(1), [event("late")]).await.expect_err("3 by now");
        assert_eq!(conflict(&late), Some(3));
        assert_eq!(late.to_string(), "stream `s` has version 3, and version 1 was expected");
        assert_eq!(store.read("s").collect().await.expect("read").len(), 4, "nothing of what was refused");
    })
    .await;
}

#[tokio::test]
async fn of_many_that_have_read_the_same_exactly_one_goes_on() {
    everywhere(async |place| {
        let stores = [place.store().await, place.store().await, place.store().await];
        stores[0].append("s", Expected::NoStream, [event("start")]).await.expect("stored");
        for round in 0..10_u64 {
            let appends = (0..12).map(|writer: usize| {
                let store = &stores[writer % 3];
                async move {
                    store.append("s", Expected::Version(round), [event(format!("{round} by {writer}"))]).await
                }
            });
            let won = join_all(appends).await.into_iter().filter(Result::is_ok).count();
            assert_eq!(won, 1, "round {round}");
        }
        for store in &stores {
            store.refresh().await.expect("up to date");
            assert_eq!(store.version("s"), Some(10));
        }
        let read = [
            stores[0].read("s").collect().await.expect("read"),
            stores[1].read("s").collect().await.expect("read"),
        ];
        assert_eq!(read[0], read[1], "all see the same");
    })
    .await;
}

#[tokio::test]
async fn writers_that_decide_again_lose_nothing_and_double_nothing() {
    everywhere(async |place| {
        let stores = [place.store().await, place.store().await];
        let writers = (0..6_usize).map(|writer| {
            let store = stores[writer % 2].clone();
            async move {
                for number in 0..20 {
                    loop {
                        let expected = Expected::after(store.version("s"));
                        match store.append("s", expected, [event(format!("{writer}.{number}"))]).await {
                            Ok(_) => break,
                            Err(AppendError::Conflict(_)) => {}
                            Err(other) => panic!("{other}"),
                        }
                    }
                }
            }
        });
        join_all(writers).await;
        stores[0].refresh().await.expect("up to date");
        let events = stores[0].read("s").collect().await.expect("read");
        assert!(events.iter().map(|event| event.version).eq(0..120), "no holes");
        let all: BTreeSet<String> = texts(&events).into_iter().collect();
        assert_eq!(all.len(), 120);
    })
    .await;
}

#[tokio::test]
async fn a_commit_of_the_same_name_counts_once() {
    everywhere(async |place| {
        let (store, other) = (place.store().await, place.store().await);
        let first = store.append_as("command 1", "s", Expected::Any, [event("a"), event("b")]).await;
        let first = first.expect("stored");
        store.append("s", Expected::Any, [event("c")]).await.expect("stored");
        for store in [&store, &other] {
            let again =
                store.append_as("command 1", "s", Expected::Version(9), [event("a"), event("b")]).await;
            let again = again.expect("known");
            assert_eq!(
                (again.first_version, again.last_version, again.repeated),
                (first.first_version, first.last_version, true)
            );
        }
        assert_eq!(texts(&store.read("s").collect().await.expect("read")), ["a", "b", "c"]);
    })
    .await;
}

#[tokio::test]
async fn deleted_streams_and_truncated_events_are_read_no_more() {
    everywhere(async |place| {
        let store = place.store().await;
        for text in ["a", "b", "c", "d"] {
            store.append("s", Expected::Any, [event(text)]).await.expect("stored");
        }
        store.append("t", Expected::Any, [event("t")]).await.expect("stored");
        store.truncate("s", 2).await.expect("there");
        assert_eq!(texts(&store.read("s").collect().await.expect("read")), ["c", "d"]);
        assert_eq!(texts(&store.read_all().collect().await.expect("read")), ["c", "d", "t"]);
        let early = store.delete("s", Expected::Version(2)).await.expect_err("3 by now");
        assert_eq!(conflict(&early), Some(3));
        store.delete("s", Expected::Version(3)).await.expect("as expected");
        assert_eq!((store.version("s"), store.streams("")), (None, vec!["t".into()]));
        assert!(store.read("s").collect().await.expect("read").is_empty());
        let again = store.append("s", Expected::NoStream, [event("e")]).await.expect("begins again");
        assert_eq!(again.first_version, 4, "no version is used twice");
        store.delete_forever("s", Expected::Any).await.expect("there");
        let never = store.append("s", Expected::Any, [event("f")]).await.expect_err("gone");
        assert!(matches!(never, AppendError::Gone { .. }), "{never}");
        assert_eq!(texts(&store.read_all().collect().await.expect("read")), ["t"]);
        // Who opens it later sees the same.
        let later = place.store().await;
        assert_eq!(later.streams(""), store.streams(""));
        assert!(matches!(
            later.append("s", Expected::Any, [event("g")]).await.expect_err("gone"),
            AppendError::Gone { .. }
        ));
        assert_eq!(conflict(&store.truncate("never", 1).await.expect_err("not there")), None);
    })
    .await;
}

#[tokio::test]
async fn the_last_snapshot_is_found() {
    everywhere(async |place| {
        let store = place.store().await;
        store.append("s", Expected::Any, [event("a"), event("b"), event("c")]).await.expect("stored");
        assert_eq!(store.snapshot("s").await.expect("read"), None);
        let state = Message::new("after b").with_content_type("text/plain");
        store.save_snapshot("s", 1, state.clone()).await.expect("stored");
        assert_eq!(store.snapshot("s").await.expect("read"), Some((1, state)));
        store.save_snapshot("s", 2, Message::new("after c")).await.expect("stored");
        store.save_snapshot("s", 0, Message::new("after a")).await.expect("stored");
        let later = place.store().await;
        assert_eq!(later.snapshot("s").await.expect("read"), Some((2, Message::new("after c"))));
        let ahead = store.save_snapshot("s", 3, Message::new("?")).await.expect_err("not there");
        assert_eq!(conflict(&ahead), Some(2));
        store.delete("s", Expected::Any).await.expect("there");
        assert_eq!(store.snapshot("s").await.expect("read"), None, "it goes with its stream");
        let statistics = store.statistics().await.expect("told");
        assert_eq!((statistics.snapshots, statistics.events, statistics.streams), (3, 3, 0));
    })
    .await;
}

#[tokio::test]
async fn the_statistics_say_what_the_log_holds() {
    everywhere(async |place| {
        let store = place.store().await;
        store.append("s", Expected::NoStream, [event("a"), event("b")]).await.expect("stored");
        store.append("t", Expected::NoStream, [event("c")]).await.expect("stored");
        store.append("s", Expected::Exists, [event("d")]).await.expect("stored");
        store.append("new", Expected::Exists, [event("e")]).await.expect_err("not there");
        store.delete("t", Expected::Any).await.expect("there");
        store.save_snapshot("s", 1, Message::new("b")).await.expect("stored");
        store.refresh().await.expect("up to date");
        let now = store.statistics().await.expect("told");
        assert_eq!((now.streams, now.commits, now.events, now.snapshots), (1, 5, 4, 1));
        assert_eq!((now.conflicts, now.foreign, now.gaps), (1, 0, 0));
        assert_eq!(now.bytes > 0, place.broker.features().stream_bytes);
        assert!(now.next_offset >= 6);
    })
    .await;
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_before_anything_is_stored() {
    everywhere(async |place| {
        let store = place.store().await;
        let refused = async |stream: &str, events: Vec<Event>| {
            store.append(stream, Expected::Any, events).await.expect_err("refused").to_string()
        };
        assert_eq!(refused("s", vec![]).await, "there is no event to append to stream `s`");
        assert_eq!(refused("", vec![event("a")]).await, "a stream's name has 1 to 255 bytes, and `` has 0");
        let long = "n".repeat(256);
        assert!(refused(&long, vec![event("a")]).await.ends_with("has 256"));
        let nameless = Event::new("", Message::new(""));
        assert_eq!(refused("s", vec![event("a"), nameless]).await, "event 1 for stream `s` has no type");
        assert_eq!(store.statistics().await.expect("told").next_offset, 0, "nothing was stored");
    })
    .await;
}

#[tokio::test]
async fn what_the_broker_cannot_take_in_one_message_is_refused_whole() {
    let place = crate::support::Place::of(crate::support::Kind::Memory).await;
    let store = place.store().await;
    let max = place.broker.features().max_message_bytes;
    let half = || event("x".repeat(usize::try_from(max / 2).expect("it fits")));
    let error = store.append("s", Expected::Any, [half(), half()]).await.expect_err("too large");
    let AppendError::TooLarge { len, max: said } = error else { panic!("{error}") };
    assert!(len > max && said == max);
    store.append("s", Expected::NoStream, [half()]).await.expect("one alone fits");
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Counted {
    by: u32,
}

impl EventData for Counted {
    const TYPES: &'static [&'static str] = &["counted"];
}

#[tokio::test]
async fn values_are_written_and_read_by_their_type() {
    let place = crate::support::Place::of(crate::support::Kind::Memory).await;
    let store = place.store().await;
    store.append_values("s", Expected::Any, &[Counted { by: 1 }, Counted { by: 2 }]).await.expect("stored");
    let events = store.read("s").collect().await.expect("read");
    assert_eq!(events[1].event.event_type, "counted");
    assert_eq!(events[1].event.decode::<Counted>().expect("that type"), Counted { by: 2 });
    store.append("s", Expected::Any, [event("no JSON")]).await.expect("stored");
    let other = &store.read("s").from(2).collect().await.expect("read")[0];
    assert!(matches!(other.event.decode::<Counted>(), Err(CodecError::ContentType { .. })));
}

#[tokio::test]
async fn of_two_appends_of_one_name_at_once_one_is_a_repetition() {
    let place = crate::support::Place::of(crate::support::Kind::Memory).await;
    let store = place.store().await;
    let (one, two) = tokio::join!(
        store.append_as("c", "s", Expected::Any, [event("1")]),
        store.append_as("c", "s", Expected::Any, [event("2")])
    );
    assert_eq!(texts(&store.read("s").collect().await.expect("done")).len(), 1);
    let (one, two) = (one.expect("done"), two.expect("done"));
    assert!(one.repeated != two.repeated, "{one:?} {two:?}");
}

#[tokio::test]
async fn what_is_said_of_an_append_is_said_of_that_one() {
    let place = crate::support::Place::of(crate::support::Kind::Memory).await;
    let store = place.store().await;
    let (one, two) = tokio::join!(
        store.append_as("c", "s", Expected::Exists, [event("1")]),
        store.append_as("c", "s", Expected::NoStream, [event("2")])
    );
    let there = store.read("s").collect().await.expect("done").len();
    assert!(one.is_err() && two.is_ok() && there == 1, "{one:?} {two:?}, and there are {there}");
}

#[tokio::test]
async fn a_commit_of_the_same_name_in_another_stream_is_another() {
    let place = crate::support::Place::of(crate::support::Kind::Memory).await;
    let store = place.store().await;
    store.append_as("m1", "a", Expected::Any, [event("1")]).await.expect("done");
    let two = store.append_as("m1", "b", Expected::Any, [event("2")]).await;
    assert_eq!(store.version("b"), Some(0), "{two:?}");
}
