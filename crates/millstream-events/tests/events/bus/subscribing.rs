//! Who gets which event.

use millstream_events::{BusError, Event, EventContext, Published, Subscribe, TEMPORARY_IDLE};
use millstream_message::{BrokerErrorKind, Message, Queue};

use crate::bus::{LONG, Later, Placed, Seen, World, everywhere, until};

everywhere! {
    every_service_gets_an_event_and_its_processes_share_it,
    several_handlers_are_several_subscriptions,
    patterns_choose_types_and_bodies_come_as_they_are,
    a_temporary_subscription_goes_with_its_listener,
    the_queue_of_a_temporary_subscription_goes_by_itself,
}

async fn every_service_gets_an_event_and_its_processes_share_it(world: World) {
    let shop = world.process("shop").await;
    let mut running = Vec::new();
    let (bank, post) = (Seen::new(), Seen::new());
    for (service, process, seen) in [("bank", 1, &bank), ("bank", 2, &bank), ("post", 1, &post)] {
        let (bus, add) = (world.process(service).await, seen.clone());
        let handler = async move |event: &Placed, _: &EventContext| {
            tokio::task::yield_now().await;
            add.note((event.n, process))
        };
        running.push(bus.subscribe(Subscribe::new().prefetch(4), handler).await.unwrap().start());
    }
    assert_eq!(running[0].queue(), world.queue("bank", "orders.placed"));
    let events = (0..200).map(|n| Event::of(&Placed { order: 1, n }).unwrap());
    for outcome in shop.publish_all(events).await {
        assert_eq!(outcome.unwrap(), Published::Stored);
    }
    for seen in [bank.wait_for(200).await, post.wait_for(200).await] {
        let mut numbers: Vec<_> = seen.iter().map(|(n, _)| *n).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (0..200).collect::<Vec<_>>(), "each once");
    }
    for process in [1, 2] {
        assert!(bank.all().iter().any(|(_, by)| *by == process), "both work");
    }
    let mut handled = 0;
    for subscription in running {
        handled += subscription.stop(LONG).await.unwrap().ledger.completed;
    }
    assert_eq!(handled, 400);
}

async fn several_handlers_are_several_subscriptions(world: World) {
    let bus =
        world.process("shop").await.naming(|service, exchange, name| format!("{exchange}/{service}/{name}"));
    let seen = Seen::new();
    let mut running = Vec::new();
    for name in ["mail", "stock"] {
        let add = seen.clone();
        let handler = async move |event: &Later, context: &EventContext| {
            add.note((name, event.clone(), context.event_type().to_owned()))
        };
        let subscription = bus.subscribe(Subscribe::new().name(name), handler).await.unwrap().start();
        assert_eq!(subscription.queue(), format!("{}/shop/{name}", world.exchange));
        assert_eq!(subscription.dead_letter_queue(), Some(&*format!("{}/shop/{name}.dead", world.exchange)));
        running.push(subscription);
    }
    for event in [Later::Paid(1), Later::Sent(1)] {
        assert_eq!(bus.event(&event).unwrap().publish().await.unwrap(), Published::Stored);
    }
    let mut seen = seen.wait_for(4).await;
    seen.sort_by_key(|(name, _, kind)| (*name, kind.clone()));
    let of = |name| {
        [(name, Later::Paid(1), "orders.paid".to_owned()), (name, Later::Sent(1), "orders.sent".to_owned())]
    };
    assert_eq!(seen, [of("mail"), of("stock")].concat());
    for subscription in running {
        subscription.stop(LONG).await.unwrap();
    }
}

async fn patterns_choose_types_and_bodies_come_as_they_are(world: World) {
    let bus = world.process("audit").await;
    let seen = Seen::new();
    let add = seen.clone();
    let handler = async move |event: &Event, context: &EventContext| {
        assert_eq!(context.event(), event);
        add.note(event.clone())
    };
    let options = Subscribe::new().name("all");
    let subscription = bus.subscribe_all(&["orders.*", "bills.#"], options, handler).await.unwrap().start();
    let types = ["orders.placed", "orders.placed.late", "bills", "bills.a.b", "other"];
    let events = types.map(|kind| Event::new(kind, Message::new(vec![0, 255]).with_content_type("image/x")));
    let mut stored = Vec::new();
    for (outcome, event) in bus.publish_all(events.clone()).await.into_iter().zip(events) {
        if outcome.unwrap() == Published::Stored {
            stored.push(event);
        }
    }
    assert_eq!(
        stored.iter().map(|event| &*event.event_type).collect::<Vec<_>>(),
        [types[0], types[2], types[3]]
    );
    assert_eq!(seen.wait_for(3).await, stored);
    subscription.stop(LONG).await.unwrap();
}

async fn a_temporary_subscription_goes_with_its_listener(world: World) {
    let bus = world.process("shop").await;
    let of = |n| Event::of(&Placed { order: 1, n }).unwrap();
    let (one, other) = (Seen::new(), Seen::new());
    let mut running = Vec::new();
    for seen in [&one, &other] {
        let add = seen.clone();
        let handler = async move |event: &Event, _: &EventContext| {
            add.add(event.id.clone());
            Err(millstream_message::flow::Failure::permanent("there are no dead letters"))
        };
        let options = Subscribe::new().temporary();
        running.push(bus.subscribe_all(&["orders.#"], options, handler).await.unwrap().start());
    }
    let event = of(1);
    assert_eq!(bus.publish(event.clone()).await.unwrap(), Published::Stored);
    assert_eq!([one.wait_for(1).await, other.wait_for(1).await], [[event.id.clone()], [event.id]]);
    for subscription in running {
        let queue = subscription.queue().to_owned();
        assert!(queue.starts_with(&world.queue("shop", "temporary.")), "{queue}");
        assert_eq!(subscription.dead_letter_queue(), None);
        assert!(world.broker.queue(&queue).await.unwrap().is_some());
        assert_eq!(subscription.stop(LONG).await.unwrap().ledger.dead, 1);
        assert!(world.broker.queue(&queue).await.unwrap().is_none(), "it went");
    }
    assert_eq!(bus.publish(of(2)).await.unwrap(), Published::Unwanted);
}

async fn the_queue_of_a_temporary_subscription_goes_by_itself(world: World) {
    let bus = world.process("shop").await;
    let handler = async |_: &Placed, _: &EventContext| Ok(());
    let queue = async |name: &str| bus.broker().queue(name).await.unwrap();

    let subscription = bus.subscribe(Subscribe::new().temporary(), handler).await.unwrap().start();
    let name = subscription.queue().to_owned();
    let declared = queue(&name).await.expect("it is there");
    // For a process that dies: a broker that goes with it forgets the queue, another one waits a while.
    let outlives = bus.broker().features().queue_expiry;
    assert_eq!((declared.exclusive, declared.expires), (!outlives, outlives.then_some(TEMPORARY_IDLE)));
    drop(subscription);
    until(async || queue(&name).await.is_none()).await;

    // Also of one that never began.
    let ready = bus.subscribe(Subscribe::new().temporary().name("mine"), handler).await.unwrap();
    drop(ready);
    let placed = async || bus.event(&Placed { order: 1, n: 1 }).unwrap().publish().await.unwrap();
    until(async || placed().await == Published::Unwanted).await;
}

#[tokio::test]
async fn what_makes_no_subscription_is_refused() {
    let world = World::in_memory().await;
    let bus = world.process("shop").await;
    let handler = async |_: &Later, _: &EventContext| Ok(());
    let error = bus.subscribe(Subscribe::new(), handler).await.unwrap_err();
    assert!(matches!(error, BusError::Unnamed(_)));
    assert!(error.to_string().contains("`orders.paid`, `orders.sent`"), "{error}");
    let all = async |_: &Event, _: &EventContext| Ok(());
    let error = bus.subscribe_all(&["#"], Subscribe::new(), all).await.unwrap_err();
    assert!(matches!(error, BusError::Unnamed(_)));
    let error = bus.subscribe_all(&[], Subscribe::new().name("x"), all).await.unwrap_err();
    assert!(matches!(error, BusError::EventType { .. }));
    let error = bus.subscribe_all(&[""], Subscribe::new().name("x"), all).await.unwrap_err();
    assert!(matches!(error, BusError::EventType { .. }));

    world.broker.declare_queue(Queue::durable(world.queue("shop", "x"))).await.unwrap();
    let error = bus.subscribe_all(&["#"], Subscribe::new().name("x"), all).await.unwrap_err();
    let BusError::Broker(error) = error else { panic!("{error:?}") };
    assert_eq!(error.kind(), BrokerErrorKind::Mismatch);
    // A name is not to be changed, all else is.
    let options = Subscribe::new().name("y").queue(|_| Queue::durable("other").max_items(7));
    let ready = bus.subscribe_all(&["#"], options, all).await.unwrap();
    drop(ready);
    let queue = world.broker.queue(&world.queue("shop", "y")).await.unwrap().expect("declared");
    assert_eq!(queue.max_items.map(u64::from), Some(7));
}
