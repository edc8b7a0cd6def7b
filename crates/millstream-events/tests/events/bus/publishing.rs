//! What becomes of what is published, and what travels with it.

use std::time::Duration;

use millstream_events::{BusError, EVENT_TYPE, Event, EventBus, EventContext, Published, Subscribe};
use millstream_message::{
    BrokerErrorKind, Exchange, ExchangeKind, Json, Message, Overflow, Queue, Refusal, TraceContext, Value,
};
use millstream_testing::{Node, Setup};
use tokio::time::Instant;

use crate::bus::{LONG, Later, Placed, SECOND, Seen, World, everywhere};

everywhere! {
    each_event_of_a_batch_has_its_outcome_in_order,
    a_full_queue_refuses_and_that_is_counted,
    what_is_said_of_an_event_arrives_and_so_does_what_it_causes,
    events_go_where_their_bus_says_and_priority_goes_first,
}

async fn each_event_of_a_batch_has_its_outcome_in_order(world: World) {
    let bus = world.process("shop").await;
    // Nobody has subscribed, so far not even the exchange is there.
    assert_eq!(
        bus.publish(Event::of(&Placed { order: 1, n: 0 }).unwrap()).await.unwrap(),
        Published::Unwanted
    );
    assert_eq!((bus.statistics().unroutable, bus.statistics().published), (1, 0));

    let seen = Seen::new();
    let add = seen.clone();
    let handler = async move |event: &Placed, _: &EventContext| add.note(event.n);
    let subscription = bus.subscribe(Subscribe::new(), handler).await.unwrap().start();
    let of = |n| Event::of(&Placed { order: 1, n }).unwrap();
    let wild = Event::new("orders.*", Message::new(""));
    let long = Event::new("x".repeat(256), Message::new(""));
    let unwanted = Event::of(&Later::Paid(1)).unwrap();
    let outcomes =
        bus.publish_all([of(1), unwanted, wild, of(2), Event::new("", Message::new("")), long, of(3)]).await;
    let told: Vec<_> = outcomes
        .iter()
        .map(|outcome| match outcome {
            Ok(Published::Stored) => "stored".to_owned(),
            Ok(Published::Unwanted) => "unwanted".to_owned(),
            Err(error @ BusError::EventType { .. }) => {
                error.to_string().split(": ").last().unwrap().to_owned()
            }
            Err(other) => panic!("{other}"),
        })
        .collect();
    let (wild, empty, long) = ("`*` and `#` are for patterns", "it is empty", "it is longer than 255 bytes");
    assert_eq!(told, ["stored", "unwanted", wild, "stored", empty, long, "stored"]);
    let counts = bus.clone().exchange("another").statistics();
    assert_eq!((counts.published, counts.unroutable, counts.refused, counts.unconfirmed), (3, 2, 3, 0));
    assert_eq!(seen.wait_for(3).await, [1, 2, 3]);
    assert!(bus.publish_all([]).await.is_empty());
    // Another exchange is declared on its own.
    let another = bus.clone().exchange(format!("{}.another", world.exchange));
    assert_eq!(another.publish(of(4)).await.unwrap(), Published::Unwanted);
    subscription.stop(LONG).await.unwrap();
}

async fn a_full_queue_refuses_and_that_is_counted(world: World) {
    let bus = world.process("shop").await;
    let handler = async |_: &Placed, _: &EventContext| std::future::pending().await;
    let limited = |queue: Queue| queue.max_items(1).overflow(Overflow::Reject);
    let options = Subscribe::new().prefetch(1).queue(limited);
    let subscription = bus.subscribe(options, handler).await.unwrap().start();
    let mut refused = 0;
    for n in 0..20 {
        match bus.event(&Placed { order: 1, n }).unwrap().publish().await {
            Ok(published) => assert_eq!(published, Published::Stored),
            Err(BusError::Refused(Refusal::Full { queue, .. })) if !queue.is_empty() => refused += 1,
            Err(other) => panic!("{other:?}"),
        }
    }
    assert!(
        refused >= 17,
        "one is in hand and one waits, or two where the limit is enforced late: {refused}"
    );
    assert_eq!((bus.statistics().refused, bus.statistics().published), (refused, 20 - refused));
    drop(subscription);
}

async fn what_is_said_of_an_event_arrives_and_so_does_what_it_causes(world: World) {
    let (shop, bank, post) = (
        world.process("shop").await,
        world.process("bank").await.source("bank of the north"),
        world.process("post").await,
    );
    let (placed, paid) = (Seen::new(), Seen::new());
    let (add, answers) = (placed.clone(), bank.clone());
    let handler = async move |event: &Placed, context: &EventContext| {
        add.add(context.clone());
        let paid = answers.event(&Later::Paid(event.order))?.in_context(context);
        paid.publish().await?;
        Ok(())
    };
    let first = bank.subscribe(Subscribe::new(), handler).await.unwrap().start();
    let add = paid.clone();
    let handler = async move |_: &Later, context: &EventContext| add.note(context.clone());
    let second = post.subscribe(Subscribe::new().name("later"), handler).await.unwrap().start();

    let trace = TraceContext::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").unwrap();
    let before = std::time::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let draft =
        shop.event(&Placed { order: 7, n: 1 }).unwrap().correlation_id("request-1").causation_id("command-1");
    let draft =
        draft.metadata("user", "ann").aggregate("order", "7", 3).trace(&trace).header("tenant", "north");
    let id = draft.event().id.clone();
    assert_eq!(draft.header(EVENT_TYPE, "lie").publish().await.unwrap(), Published::Stored);

    let context = &placed.wait_for(1).await[0];
    assert_eq!((context.id(), context.event_type(), context.source()), (&*id, "orders.placed", "shop"));
    assert_eq!((context.correlation_id(), context.causation_id()), (Some("request-1"), Some("command-1")));
    assert_eq!((&*context.metadata()["user"], context.metadata().len()), ("ann", 1));
    let aggregate = context.aggregate().unwrap();
    assert_eq!((&*aggregate.kind, &*aggregate.id, aggregate.version), ("order", "7", 3));
    assert!(context.published().unwrap() > before);
    assert_eq!((context.attempt(), context.redeliveries()), (1, 0));
    assert_eq!(context.queue(), first.queue());
    assert_eq!((context.address().exchange(), context.address().key()), (&*world.exchange, "orders.placed"));
    assert_eq!(context.trace(), Some(trace.clone()));
    assert_eq!(context.message().header("tenant"), Some(&Value::from("north")));
    assert_eq!(context.event().decode::<Placed>().unwrap(), Placed { order: 7, n: 1 });

    let caused = &paid.wait_for(1).await[0];
    assert_eq!((caused.event_type(), caused.source()), ("orders.paid", "bank of the north"));
    assert_eq!((caused.correlation_id(), caused.causation_id()), (Some("request-1"), Some(&*id)));
    assert_eq!((caused.trace(), caused.aggregate(), caused.metadata().len()), (Some(trace), None, 0));
    first.stop(LONG).await.unwrap();
    second.stop(LONG).await.unwrap();
}

async fn events_go_where_their_bus_says_and_priority_goes_first(world: World) {
    let shop = world.process("shop").await;
    let public = shop.clone().exchange(format!("{}.public", world.exchange));
    let bank = world.process("bank").await;
    let seen = Seen::new();
    let add = seen.clone();
    let handler =
        async move |event: &Placed, context: &EventContext| add.note((event.n, context.source().to_owned()));
    let options = Subscribe::new().to(format!("{}.public", world.exchange)).prefetch(1);
    let ready = bank.subscribe(options.queue(|queue| queue.max_priority(5)), handler).await.unwrap();
    let of = |bus: &EventBus, n| bus.event(&Placed { order: 1, n }).unwrap();
    assert_eq!(of(&shop, 1).publish().await.unwrap(), Published::Unwanted, "that is another exchange");
    // The first may be in hand already.
    for (n, priority) in [(2, 5), (3, 0), (4, 4)] {
        let published = of(&public, n).priority(priority).source("shop, outside").publish();
        assert_eq!(published.await.unwrap(), Published::Stored);
    }
    let subscription = ready.start();
    assert_eq!(subscription.queue(), format!("bank.{}.public.orders.placed", world.exchange));
    assert_eq!(seen.wait_for(3).await, [2, 4, 3].map(|n| (n, "shop, outside".to_owned())));
    subscription.stop(LONG).await.unwrap();
}

#[tokio::test]
async fn what_is_said_of_the_message_is_on_it() {
    let world = World::in_memory().await;
    let bus = world.process("shop").await;
    let draft = || bus.event(&Placed { order: 1, n: 2 }).unwrap();
    let said = draft().id("x").ttl(SECOND).delay(2 * SECOND).priority(3).transient().into_publish().unwrap();
    assert_eq!((said.to.exchange(), said.to.key()), (&*world.exchange, "orders.placed"));
    let properties = said.message.properties();
    assert_eq!((properties.message_id.as_deref(), properties.ttl), (Some("x"), Some(SECOND)));
    assert_eq!((properties.delay, properties.priority, properties.persistent), (Some(2 * SECOND), 3, false));
    assert_eq!(
        (said.message.content_type(), &**said.message.body()),
        (Some("application/json"), &br#"{"order":1,"n":2}"#[..])
    );
    let plain = draft().into_publish().unwrap();
    assert!(plain.message.properties().persistent && plain.message.properties().ttl.is_none());
    let cause = Event::new("a", Message::new("")).with_id("1");
    let caused = draft().caused_by(&cause);
    assert_eq!(caused.event().causation_id.as_deref(), Some("1"));
    assert!(matches!(
        bus.event_with(&Placed { order: 1, n: 2 }, &Json.max_bytes(3)),
        Err(BusError::Codec(_))
    ));
}

#[tokio::test(start_paused = true)]
async fn a_delayed_event_comes_when_it_is_due() {
    let world = World::in_memory().await;
    let bus = world.process("shop").await;
    let seen = Seen::new();
    let add = seen.clone();
    let handler =
        async move |_: &Placed, context: &EventContext| add.note((Instant::now(), context.published()));
    let _subscription = bus.subscribe(Subscribe::new(), handler).await.unwrap().start();
    let began = Instant::now();
    _ = bus.event(&Placed { order: 1, n: 1 }).unwrap().publish().await.unwrap();
    _ = bus.event(&Placed { order: 1, n: 2 }).unwrap().delay(10 * SECOND).publish().await.unwrap();
    let came = seen.wait_for(2).await;
    assert_eq!([(came[0].0 - began).as_secs(), (came[1].0 - began).as_secs()], [0, 10]);
    // The clock is that of the tests.
    _ = bus.event(&Placed { order: 1, n: 3 }).unwrap().publish().await.unwrap();
    let last = seen.wait_for(3).await[2].1.unwrap();
    assert!((10..11).contains(&last.duration_since(came[0].1.unwrap()).unwrap().as_secs()));
}

#[tokio::test]
async fn a_broker_that_is_closed_or_has_something_else_there_refuses() {
    let world = World::in_memory().await;
    world.broker.declare_exchange(Exchange::durable(&world.exchange, ExchangeKind::Direct)).await.unwrap();
    let bus = world.process("shop").await;
    let of = |n| Event::of(&Placed { order: 1, n }).unwrap();
    let kind = |outcome: Result<Published, BusError>| match outcome {
        Err(BusError::Broker(error)) => error.kind(),
        other => panic!("{other:?}"),
    };
    assert_eq!(kind(bus.publish(of(1)).await), BrokerErrorKind::Mismatch);
    // It is asked again each time until it agrees.
    world.broker.delete_exchange(&world.exchange).await.unwrap();
    assert_eq!(bus.publish(of(2)).await.unwrap(), Published::Unwanted);
    world.broker.close().await.unwrap();
    let kinds: Vec<_> = bus.publish_all([of(3), of(4)]).await.into_iter().map(kind).collect();
    assert_eq!(kinds, [BrokerErrorKind::Unavailable; 2]);
    assert_eq!((bus.statistics().refused, bus.statistics().unroutable), (3, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_of_streams_alone_is_refused_by_name() {
    let node = Node::start(Setup::default().plugin("rabbitmq_stream")).await.expect("it starts");
    let url = node.stream_url("");
    let broker = millstream_rabbitmq::stream::StreamBroker::connect(&url).await.expect("connected");
    let bus = EventBus::new(std::sync::Arc::new(broker), "shop");
    let published = bus.publish(Event::of(&Placed { order: 1, n: 1 }).unwrap()).await.map(|_| ());
    let handler = async |_: &Placed, _: &EventContext| Ok(());
    let subscribed = bus.subscribe(Subscribe::new(), handler).await.map(|_| ());
    for refused in [published, subscribed] {
        let Err(BusError::Broker(error)) = refused else { panic!("{refused:?}") };
        assert_eq!(error.kind(), BrokerErrorKind::Unsupported);
        assert!(error.to_string().contains("rabbitmq-stream:"), "{error}");
    }
    assert_eq!(bus.statistics().refused, 1);
}
