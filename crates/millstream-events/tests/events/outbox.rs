//! The outbox: what a store holds, published to a bus.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use millstream_events::{
    EVENT_POSITION, Event, EventBus, EventStore, Expected, Filter, Inbox, Outbox, Saga, Sagas, Step,
    StoreError, Subscribe, Subscription,
};
use millstream_message::{Broker, BrokerUrl, Message, Overflow};
use millstream_rabbitmq::RabbitMq;
use millstream_testing::unique;
use tokio::time::{sleep, timeout};

use crate::support::{Kind, Place, embedded, event, node, text};

const SECOND: Duration = Duration::from_secs(1);

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(120);

/// The texts of events that a service has heard of.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<String>>>);

impl Heard {
    async fn listen(&self, bus: EventBus, options: Subscribe) -> Subscription {
        let heard = self.clone();
        let subscribing = bus
            .subscribe_all(&["#"], options, async move |event, _| {
                heard.0.lock().expect("no panic").push(text(event));
                Ok(())
            })
            .await
            .expect("subscribed");
        subscribing.start()
    }

    async fn until(&self, count: usize) -> Vec<String> {
        let all = async {
            loop {
                let heard = self.0.lock().expect("no panic").clone();
                if heard.len() >= count {
                    return heard;
                }
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(LONG, all).await.expect("all are heard of")
    }
}

async fn append(store: &EventStore, texts: impl IntoIterator<Item = u32>) {
    for text in texts {
        store.append("order-7", Expected::Any, [event(text.to_string())]).await.expect("stored");
    }
}

fn numbers(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

async fn ended(run: millstream_flow::Run<()>) {
    run.shutdown(LONG).await.expect("it ends well");
}

#[tokio::test]
async fn everything_stored_is_heard_of_once_and_in_order_also_after_a_pause() {
    for (kind, rabbitmq) in [(Kind::Memory, false), (Kind::Embedded, false), (Kind::RabbitMq, true)] {
        let place = Place::of(kind).await;
        // Streams and queues of one broker, or of RabbitMQ by both of its protocols.
        let queues: Arc<dyn Broker> = match rabbitmq {
            false => place.broker.clone(),
            true => {
                let BrokerUrl::Amqp(url) = node().await.url().parse().expect("a URL") else { panic!() };
                Arc::new(RabbitMq::connect(&url).await.expect("connected"))
            }
        };
        let bus = EventBus::new(queues, "shop").exchange(unique("exchange"));
        let heard = Heard::default();
        let listener = heard.listen(bus.clone(), Subscribe::new().name("all")).await;
        let store = place.store().await;
        append(&store, 0..50).await;
        let outbox = || Outbox::new(store.clone(), bus.clone(), "out").batch(7);
        let run = outbox().start().await.expect("started");
        assert!(matches!(outbox().start().await, Err(StoreError::Broker { .. })), "it runs already");
        append(&store, 50..60).await;
        assert_eq!(heard.until(60).await, numbers(0..60));
        ended(run).await;
        append(&store, 60..70).await;
        store.saved().await;
        let run = outbox().start().await.expect("started");
        assert_eq!(heard.until(70).await, numbers(0..70), "none twice");
        ended(run).await;
        assert_eq!(bus.statistics().published, 70);
        listener.stop(LONG).await.expect("it ends well");
    }
}

#[tokio::test]
async fn who_hears_of_an_event_knows_where_it_is_from() {
    let place = Place::of(Kind::Memory).await;
    let (store, bus) = (place.store().await, EventBus::new(place.broker.clone(), "shop"));
    let (seen, mut contexts) = tokio::sync::mpsc::channel(8);
    let listener = EventBus::new(place.broker.clone(), "billing")
        .subscribe_all(&["#"], Subscribe::new().name("all"), async move |event, context| {
            let position = context.message().header(EVENT_POSITION).and_then(|value| value.as_text());
            let facts = context.aggregate().cloned().expect("there are some");
            seen.send((event.clone(), facts, position.map(str::to_owned))).await?;
            Ok(())
        })
        .await
        .expect("subscribed")
        .start();
    let run = Outbox::new(store.clone(), bus, "out").start().await.expect("started");
    let first = Event::new("placed", Message::new("{}").with_content_type("application/json"))
        .with_correlation_id("request 9")
        .with_metadata("user", "ann");
    let second = Event::new("paid", Message::new("")).caused_by(&first);
    store.append("order-7-b", Expected::Any, [first.clone(), second.clone()]).await.expect("stored");
    for (version, event) in [first, second].into_iter().enumerate() {
        let (heard, facts, position) = contexts.recv().await.expect("it is heard of");
        assert_eq!(heard, event);
        assert_eq!((&*facts.kind, &*facts.id, facts.version), ("order", "7-b", version as u64));
        assert_eq!(position, Some(format!("0.{version}")));
    }
    ended(run).await;
    listener.stop(LONG).await.expect("it ends well");
}

#[tokio::test]
async fn only_what_is_wanted_is_published_and_what_nobody_wants_is_no_error() {
    let place = Place::of(Kind::Memory).await;
    let (store, bus) = (place.store().await, EventBus::new(place.broker.clone(), "shop"));
    for event_type in ["a", "b", "a"] {
        store.append("s", Expected::Any, [Event::new(event_type, Message::new(""))]).await.expect("stored");
    }
    let outbox = Outbox::new(store, bus.clone(), "out").filter(Filter::all().types(["a"]));
    let run = outbox.start().await.expect("started");
    let unroutable = async {
        while bus.statistics().unroutable < 2 {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(LONG, unroutable).await.expect("both are published");
    ended(run).await;
    assert_eq!(bus.statistics().unroutable, 2);
}

#[tokio::test]
async fn a_queue_that_is_full_is_waited_for_and_the_order_holds() {
    let place = Place::of(Kind::Memory).await;
    let (store, bus) = (place.store().await, EventBus::new(place.broker.clone(), "shop"));
    let heard = Heard::default();
    let small =
        Subscribe::new().name("all").queue(|queue| queue.max_items(5).overflow(Overflow::Reject)).prefetch(1);
    let listener = heard.listen(bus.clone(), small).await;
    listener.pause();
    append(&store, 0..40).await;
    let run = Outbox::new(store, bus.clone(), "out").batch(1).start().await.expect("started");
    let full = async {
        while bus.statistics().refused == 0 {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(LONG, full).await.expect("the queue is full");
    listener.resume();
    let mut all = heard.until(40).await;
    all.dedup();
    assert_eq!(all, numbers(0..40));
    ended(run).await;
    listener.stop(LONG).await.expect("it ends well");
}

#[tokio::test]
async fn what_no_broker_will_ever_take_is_dead_and_holds_nothing_up() {
    let place = Place::of(Kind::Memory).await;
    let (store, bus) = (place.store().await, EventBus::new(place.broker.clone(), "shop"));
    let heard = Heard::default();
    let listener = heard.listen(bus.clone(), Subscribe::new().name("all")).await;
    append(&store, 0..1).await;
    store.append("s", Expected::Any, [Event::new("no.#.key", Message::new("x"))]).await.expect("stored");
    append(&store, 1..2).await;
    let run = Outbox::new(store, bus, "out").start().await.expect("started");
    assert_eq!(heard.until(2).await, numbers(0..2));
    let report = run.shutdown(LONG).await.expect("it ends well").1;
    assert_eq!((report.ledger.completed, report.ledger.dead), (2, 1));
    listener.stop(LONG).await.expect("it ends well");
}

#[tokio::test]
async fn an_exchange_that_somebody_deletes_is_declared_again() {
    let place = Place::of(Kind::Memory).await;
    let (store, bus) = (place.store().await, EventBus::new(place.broker.clone(), "shop"));
    let run = Outbox::new(store.clone(), bus.clone(), "out").start().await.expect("started");
    append(&store, 0..1).await;
    let unroutable = async |count| {
        while bus.statistics().unroutable < count {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(LONG, unroutable(1)).await.expect("it is published");
    place.broker.delete_exchange("events").await.expect("deleted");
    append(&store, 1..2).await;
    timeout(LONG, unroutable(2)).await.expect("it is published");
    ended(run).await;
}

#[tokio::test]
async fn a_crash_repeats_events_and_an_inbox_passes_over_them() {
    let place = Place::of(Kind::Embedded).await;
    let bus = EventBus::new(place.broker.clone(), "shop");
    let heard = Heard::default();
    let inbox = Inbox::new(10_000, Duration::from_secs(3600));
    let listener = heard.listen(bus.clone(), Subscribe::new().name("all").inbox(inbox.clone())).await;
    let store = place.store().await;
    append(&store, 0..200).await;
    for _ in 0..20 {
        let run = Outbox::new(store.clone(), bus.clone(), "out").batch(3).start().await.expect("started");
        sleep(Duration::from_millis(2)).await;
        // As a process that is killed: what is under way is not heard of again.
        drop(run);
        while store.subscribe("out").open().await.is_err() {
            sleep(Duration::from_millis(1)).await;
        }
    }
    let run = Outbox::new(store.clone(), bus.clone(), "out").start().await.expect("started");
    assert_eq!(heard.until(200).await, numbers(0..200), "each once, in order");
    ended(run).await;
    listener.stop(LONG).await.expect("it ends well");
    assert_eq!(heard.until(200).await.len(), 200);
}

#[tokio::test]
async fn what_a_saga_emits_is_heard_of() {
    let broker = embedded("memory:").await;
    let store = EventStore::open(broker.clone(), "log").await.expect("opened");
    let bus = EventBus::new(broker, "shop");
    let heard = Heard::default();
    let listener = heard.listen(bus.clone(), Subscribe::new().name("all")).await;
    let saga = Saga::new("s").step(Step::new("ask", |state: u32, step| async move {
        step.emit(Event::new("asked", Message::new("please")));
        Ok(state)
    }));
    let sagas = Sagas::builder(store.clone()).saga(saga).start().await.expect("started");
    let outbox = Outbox::new(store, bus, "out").filter(Filter::all().types(["asked"]));
    let run = outbox.start().await.expect("started");
    sagas.begin("s", "1", &7_u32).await.expect("begun");
    assert_eq!(heard.until(1).await, ["please"]);
    ended(run).await;
    assert!(sagas.shutdown(SECOND).await);
    listener.stop(LONG).await.expect("it ends well");
}

#[tokio::test]
async fn what_is_behind_an_event_that_is_not_taken_is_not_published_again_and_again() {
    let place = Place::of(Kind::Memory).await;
    let (store, bus) = (place.store().await, EventBus::new(place.broker.clone(), "shop"));
    let small = Subscribe::new().name("a").queue(|queue| queue.max_items(1).overflow(Overflow::Reject));
    let handler = async |_: &Event, _: &millstream_events::EventContext| Ok(());
    // Its queue takes one event, and nobody reads it.
    let full = EventBus::new(place.broker.clone(), "slow").subscribe_all(&["a"], small, handler).await;
    let heard = Heard::default();
    let listener = heard.listen(bus.clone(), Subscribe::new().name("all")).await;
    for number in 0..100_u32 {
        let event = Event::new(if number % 2 == 0 { "a" } else { "b" }, Message::new(number.to_string()));
        store.append("s", Expected::Any, [event]).await.expect("stored");
    }
    let run = Outbox::new(store, bus.clone(), "out").start().await.expect("started");
    let tried = async {
        while bus.statistics().refused < 53 {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(LONG, tried).await.expect("it is tried again");
    let all = heard.until(50).await;
    let of = |number: &str| all.iter().filter(|text| *text == number).count();
    assert_eq!((of("1"), of("99")), (1, 1), "{all:?}");
    drop((run, full));
    listener.stop(LONG).await.expect("it ends well");
}
