use millstream_events::{Event, EventStore, EventStoreOptions, Expected, Filter, Position};
use millstream_message::Message;
use proptest::prelude::*;

use crate::support::{Kind, Place, event, everywhere, texts};

#[tokio::test]
async fn a_stream_is_read_from_anywhere_in_both_directions() {
    everywhere(async |place| {
        let store = place.store().await;
        // Commits of one, two and three events, between those of others.
        let mut text = 0..;
        for commit in 0..60_usize {
            let events: Vec<Event> =
                text.by_ref().take(commit % 3 + 1).map(|text: usize| event(text.to_string())).collect();
            store.append("s", Expected::Any, events).await.expect("stored");
            store.append("other", Expected::Any, [event("-")]).await.expect("stored");
        }
        let all: Vec<String> = (0..120).map(|text| text.to_string()).collect();
        // From memory, and from the log.
        let uncached = EventStoreOptions::default().cache_bytes(0);
        let uncached =
            EventStore::open_with(place.broker.clone(), &place.log, uncached).await.expect("opened");
        for store in [&store, &uncached] {
            let read = async |from: Option<u64>, backward: bool, limit: u64| {
                let mut read = store.read("s").limit(limit);
                read = from.map_or(read.clone(), |from| read.from(from));
                let read = if backward { read.backward() } else { read };
                texts(&read.collect().await.expect("read"))
            };
            assert_eq!(read(None, false, u64::MAX).await, all);
            assert_eq!(read(Some(50), false, u64::MAX).await, all[50..]);
            assert_eq!(read(Some(50), false, 3).await, all[50..53]);
            assert_eq!(read(Some(120), false, 3).await, [""; 0]);
            let backward: Vec<String> = all.iter().rev().cloned().collect();
            assert_eq!(read(None, true, u64::MAX).await, backward);
            assert_eq!(read(Some(50), true, u64::MAX).await, backward[69..]);
            assert_eq!(read(Some(500), true, 2).await, ["119", "118"]);
            assert_eq!(read(Some(0), true, 2).await, ["0"]);
            assert_eq!(read(None, false, 0).await, [""; 0]);
        }
        assert!(store.read("nothing").collect().await.expect("read").is_empty());
    })
    .await;
}

#[tokio::test]
async fn all_events_are_read_in_one_order_with_what_is_wanted() {
    everywhere(async |place| {
        let store = place.store().await;
        for number in 0..40 {
            let (stream, event_type) = (["a-1", "a-2", "b-1"][number % 3], ["x", "y"][number % 2]);
            let event = Event::new(event_type, Message::new(number.to_string()));
            store
                .append(stream, Expected::Any, [event.clone(), event.with_id("second")])
                .await
                .expect("stored");
        }
        let all = store.read_all().collect().await.expect("read");
        assert_eq!(all.len(), 80);
        assert!(all.is_sorted_by_key(|event| event.position));
        let from = all[31].position;
        assert_eq!(store.read_all().from(from).collect().await.expect("read"), all[31..]);
        assert_eq!(store.read_all().from(from).limit(3).collect().await.expect("read"), all[31..34]);
        let some = store.read_all().filter(Filter::all().streams("a-").types(["y"])).collect().await;
        let expected: Vec<_> = all
            .iter()
            .filter(|event| event.stream.starts_with("a-") && event.event.event_type == "y")
            .cloned()
            .collect();
        assert_eq!(some.expect("read"), expected);
        assert_eq!(store.streams("a-"), ["a-1".into(), "a-2".into()]);
        assert_eq!(Position { offset: 7, index: 1 }.to_string(), "7.1");
    })
    .await;
}

#[tokio::test]
async fn what_others_put_into_the_log_is_passed_over() {
    everywhere(async |place| {
        let store = place.store().await;
        store.append("s", Expected::Any, [event("a")]).await.expect("stored");
        place.broker.append(&place.log, vec![Message::new("something else")]).await.expect("appended");
        store.append("s", Expected::Version(0), [event("b")]).await.expect("stored");
        for store in [store, place.store().await] {
            assert_eq!(texts(&store.read("s").collect().await.expect("read")), ["a", "b"]);
            assert_eq!(texts(&store.read_all().collect().await.expect("read")), ["a", "b"]);
            assert_eq!(store.statistics().await.expect("told").foreign, 1);
        }
    })
    .await;
}

#[tokio::test]
async fn a_flow_of_events_ends_with_what_is_there() {
    let place = Place::of(Kind::Memory).await;
    let store = place.store().await;
    let events: Vec<Event> = (0..1000).map(|number| event(number.to_string())).collect();
    store.append("s", Expected::Any, events).await.expect("stored");
    let count = |count: &mut u64, _| *count += 1;
    let (counted, report) = store.read("s").flow().fold(0, count).await.expect("it ends well");
    assert_eq!((counted, report.ledger.completed), (1000, 1000));
    let (counted, _) = store.read_all().flow().fold(0, count).await.expect("it ends well");
    assert_eq!(counted, 1000);
}

#[tokio::test]
async fn a_broker_without_streams_is_refused_with_what_to_use() {
    use millstream_message::BrokerUrl;
    let BrokerUrl::Amqp(url) = crate::support::node().await.url().parse().expect("a URL") else { panic!() };
    let broker = millstream_rabbitmq::RabbitMq::connect(&url).await.expect("connected");
    let error = EventStore::open(std::sync::Arc::new(broker), "log").await.expect_err("no streams");
    let cause = std::error::Error::source(&error).expect("a cause").to_string();
    assert!(cause.contains("rabbitmq-stream://"), "{cause}");
}

/// What a test does to a store.
#[derive(Clone, Debug)]
enum Act {
    Append { stream: u8, expected: u8, events: u8 },
    Truncate { stream: u8, before: u8 },
    Delete { stream: u8 },
    Reopen,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => (0..3_u8, 0..8_u8, 1..4_u8).prop_map(|(stream, expected, events)| Act::Append { stream, expected, events }),
        1 => (0..3_u8, 0..12_u8).prop_map(|(stream, before)| Act::Truncate { stream, before }),
        1 => (0..3_u8).prop_map(|stream| Act::Delete { stream }),
        1 => Just(Act::Reopen),
    ]
}

/// A stream as vectors know it.
#[derive(Clone, Default)]
struct Model {
    events: Vec<String>,
    first: usize,
    /// Of the first since it was deleted.
    begun: usize,
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if std::env::var_os("MILLSTREAM_SOAK").is_some() { 2000 } else { 60 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Whatever is done: the store holds what vectors would, forward and backward, with a cache and without.
    #[test]
    fn a_store_is_what_vectors_would_be(acts in proptest::collection::vec(act(), 1..60), cache in 0..3_usize) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let place = Place::of(Kind::Memory).await;
            let options = EventStoreOptions::default().cache_bytes([0, 2000, 1 << 20][cache]);
            let open = async || {
                EventStore::open_with(place.broker.clone(), &place.log, options.clone()).await.expect("opened")
            };
            let mut store = open().await;
            let mut models = vec![Model::default(); 3];
            let mut texts_of = 0..;
            for act in acts {
                match act {
                    Act::Append { stream, expected, events } => {
                        let model = &mut models[usize::from(stream)];
                        let version = (model.events.len() > model.begun).then(|| model.events.len() as u64 - 1);
                        let expected = match expected {
                            0 => Expected::Any,
                            1 => Expected::NoStream,
                            2 => Expected::Exists,
                            3..6 => Expected::after(version),
                            other => Expected::Version(other.into()),
                        };
                        let holds = match expected {
                            Expected::Any => true,
                            Expected::NoStream => version.is_none(),
                            Expected::Exists => version.is_some(),
                            Expected::Version(expected) => version == Some(expected),
                        };
                        let new: Vec<String> = texts_of
                            .by_ref()
                            .take(events.into())
                            .map(|text: usize| text.to_string())
                            .collect();
                        let stored = store.append(&format!("s{stream}"), expected, new.iter().map(event)).await;
                        assert_eq!(stored.is_ok(), holds, "{stored:?}");
                        if holds {
                            model.events.extend(new);
                        }
                    }
                    Act::Truncate { stream, before } => {
                        let model = &mut models[usize::from(stream)];
                        let done = store.truncate(&format!("s{stream}"), before.into()).await;
                        assert_eq!(done.is_ok(), !model.events.is_empty());
                        model.first = model.first.max(usize::from(before).min(model.events.len()));
                    }
                    Act::Delete { stream } => {
                        let model = &mut models[usize::from(stream)];
                        let done = store.delete(&format!("s{stream}"), Expected::Any).await;
                        assert_eq!(done.is_ok(), !model.events.is_empty());
                        (model.first, model.begun) = (model.events.len(), model.events.len());
                    }
                    Act::Reopen => store = open().await,
                }
            }
            for (number, model) in models.iter().enumerate() {
                let stream = format!("s{number}");
                let wanted = &model.events[model.first..];
                assert_eq!(texts(&store.read(&stream).collect().await.expect("read")), wanted);
                let mut backward = texts(&store.read(&stream).backward().collect().await.expect("read"));
                backward.reverse();
                assert_eq!(backward, wanted);
                let all = store.read_all().filter(Filter::all().streams(&stream)).collect().await;
                assert_eq!(texts(&all.expect("read")), wanted);
            }
        });
    }
}

#[tokio::test]
async fn reading_backward_needs_no_entry_of_the_cache_twice() {
    let place = Place::of(Kind::Memory).await;
    let writer = place.store().await;
    for number in 0..400 {
        writer.append("s", Expected::Any, [event(number.to_string())]).await.expect("done");
    }
    for bytes in (1000..200_000).step_by(5000) {
        let options = EventStoreOptions::default().cache_bytes(bytes);
        let store = EventStore::open_with(place.broker.clone(), &place.log, options).await.expect("opened");
        let events = store.read("s").backward().collect().await.expect("read");
        assert!(events.iter().map(|event| event.version).eq((0..400).rev()), "with a cache of {bytes} bytes");
    }
}
