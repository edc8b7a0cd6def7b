//! How a subscription ends, and what is lost by that: nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use millstream_events::{BusError, Event, EventContext, Published, Subscribe};
use millstream_flow::Concurrency;
use millstream_message::ConsumeOptions;
use millstream_message::flow::Failure;
use tokio::time::{sleep, timeout};

use crate::bus::{LONG, Placed, SECOND, Seen, World, everywhere, settled, until};

everywhere! {
    a_stop_finishes_what_is_in_hand_and_leaves_the_rest,
    a_subscription_that_is_dropped_gives_back_what_it_had,
    what_is_unsubscribed_comes_no_more,
}

fn events(count: u32) -> Vec<Event> {
    (0..count).map(|n| Event::of(&Placed { order: 1, n }).unwrap()).collect()
}

async fn a_stop_finishes_what_is_in_hand_and_leaves_the_rest(world: World) {
    let bus = world.process("shop").await;
    let (begun, done) = (Seen::new(), Seen::new());
    let mut left = 300;
    let handler = async |_: &Placed, _: &EventContext| Ok(());
    drop(bus.subscribe(Subscribe::new(), handler).await.unwrap()); // its queue collects
    for outcome in bus.publish_all(events(300)).await {
        assert_eq!(outcome.unwrap(), Published::Stored);
    }
    while left > 0 {
        let (begin, end) = (begun.clone(), done.clone());
        let handler = async move |event: &Placed, context: &EventContext| {
            begin.add(event.n);
            sleep(Duration::from_millis(1)).await;
            end.add((event.n, context.attempt()));
            Ok(())
        };
        let options = Subscribe::new().concurrency(Concurrency::unordered(8)).prefetch(20);
        let before = done.all().len();
        let subscription = bus.subscribe(options, handler).await.unwrap().start();
        done.wait_for((before + 60).min(300)).await;
        let ledger = subscription.stop(LONG).await.unwrap().ledger;
        assert_eq!((ledger.in_flight, ledger.dead, ledger.dropped_total()), (0, 0, 0));
        assert_eq!(begun.all().len(), done.all().len(), "what had begun was finished");
        left = 300 - done.all().len();
        let queue = world.queue("shop", "orders.placed");
        until(async || world.broker.stats(&queue).await.unwrap().total() == left as u64).await;
    }
    let numbers: BTreeSet<_> = done.all().into_iter().collect();
    assert_eq!((numbers.len(), done.all().len()), (300, 300), "all of them, each once");
}

async fn a_subscription_that_is_dropped_gives_back_what_it_had(world: World) {
    let bus = world.process("shop").await;
    let (begun, done) = (Seen::new(), Seen::new());
    let add = begun.clone();
    let hangs = async move |event: &Placed, _: &EventContext| {
        add.add(event.n);
        std::future::pending().await
    };
    let options = || Subscribe::new().concurrency(Concurrency::unordered(4));
    let subscription = bus.subscribe(options(), hangs.clone()).await.unwrap().start();
    _ = bus.publish_all(events(10)).await;
    begun.wait_for(4).await;
    drop(subscription);
    // The next is stopped before its handler is done, and says so.
    let subscription = bus.subscribe(options(), hangs).await.unwrap().start();
    begun.wait_for(8).await;
    let error = subscription.stop(SECOND / 20).await.unwrap_err();
    assert!(matches!(error, BusError::Run(_)));
    assert!(error.report().expect("an account").ledger.in_flight >= 4);

    let add = done.clone();
    let handler = async move |event: &Placed, context: &EventContext| {
        add.note((event.n, context.attempt(), context.redeliveries() > 0))
    };
    let subscription = bus.subscribe(Subscribe::new(), handler).await.unwrap().start();
    let mut came = done.wait_for(10).await;
    came.sort_unstable();
    assert_eq!(came.iter().map(|(n, ..)| *n).collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
    assert!(came.iter().all(|(_, attempt, _)| *attempt == 1), "that is no attempt, as far as is known");
    assert!(came.iter().any(|(.., redelivered)| *redelivered), "{came:?}");
    subscription.stop(LONG).await.unwrap();
}

async fn what_is_unsubscribed_comes_no_more(world: World) {
    let bus = world.process("shop").await;
    let seen = Seen::new();
    let subscribe = async || {
        let add = seen.clone();
        let handler = async move |event: &Placed, _: &EventContext| {
            add.add(event.n);
            if event.n == 7 { Err(Failure::permanent("bad")) } else { Ok(()) }
        };
        bus.subscribe(Subscribe::new(), handler).await.unwrap().start()
    };
    let publish = async |n| bus.event(&Placed { order: 1, n }).unwrap().publish().await.unwrap();
    let queue = world.queue("shop", "orders.placed");
    let exists = async |name: &str| world.broker.queue(name).await.unwrap().is_some();

    let subscription = subscribe().await;
    assert_eq!(publish(1).await, Published::Stored);
    settled(&subscription, 1).await;
    let ended = subscription.unsubscribe(LONG).await.unwrap();
    assert_eq!((ended.report.ledger.completed, ended.deleted, ended.dead_letters), (1, 0, 0));
    assert!(!exists(&queue).await && !exists(&format!("{queue}.dead")).await);
    assert_eq!(publish(2).await, Published::Unwanted);

    // Dead letters are kept.
    let subscription = subscribe().await;
    assert_eq!(publish(7).await, Published::Stored);
    settled(&subscription, 1).await;
    let dead = subscription.dead_letter_queue().expect("it has one").to_owned();
    until(async || world.broker.stats(&dead).await.unwrap().total() == 1).await;
    let ended = subscription.unsubscribe(LONG).await.unwrap();
    assert_eq!((ended.report.ledger.dead, ended.dead_letters), (1, 1));
    assert!(!exists(&queue).await && exists(&dead).await);
    assert_eq!(seen.all(), [1, 7]);
    assert_eq!(world.letters(&queue, 1).await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_waits_when_it_is_unsubscribed_goes_with_the_queue() {
    let world = World::in_memory().await;
    let bus = world.process("shop").await;
    let hangs = async |_: &Placed, _: &EventContext| std::future::pending().await;
    let subscription = bus.subscribe(Subscribe::new().prefetch(2), hangs).await.unwrap().start();
    _ = bus.publish_all(events(10)).await;
    sleep(SECOND).await;
    let error = subscription.unsubscribe(SECOND).await.unwrap_err();
    assert!(error.report().is_some(), "{error:?}");
    assert!(world.broker.queue(&world.queue("shop", "orders.placed")).await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_pause_begins_nothing_and_ends() {
    let world = World::in_memory().await;
    let bus = world.process("shop").await;
    let seen = Seen::new();
    let add = seen.clone();
    let handler = async move |event: &Placed, _: &EventContext| add.note(event.n);
    let subscription = bus.subscribe(Subscribe::new(), handler).await.unwrap().start();
    subscription.pause();
    _ = bus.publish_all(events(5)).await;
    sleep(10 * SECOND).await;
    assert_eq!(seen.all(), [0; 0]);
    assert_eq!(world.broker.stats(subscription.queue()).await.unwrap().ready, 5);
    subscription.resume();
    assert_eq!(seen.wait_for(5).await, [0, 1, 2, 3, 4]);
    subscription.pause();
    let report = timeout(LONG, subscription.stop(LONG)).await.expect("a pause is no obstacle").unwrap();
    assert_eq!(report.ledger.completed, 5);
}

#[tokio::test]
async fn a_subscription_ends_when_its_queue_or_its_broker_does() {
    let world = World::in_memory().await;
    let bus = world.process("shop").await;
    let handler = async |_: &Placed, _: &EventContext| Ok(());
    let subscription = bus.subscribe(Subscribe::new(), handler).await.unwrap().start();
    let queue = subscription.queue().to_owned();
    let ending = tokio::spawn(subscription.join());
    world.broker.delete_queue(&queue).await.unwrap();
    let error = timeout(LONG, ending).await.expect("in time").unwrap().unwrap_err();
    assert!(matches!(error, BusError::Run(_)), "{error:?}");

    let options = Subscribe::new().consumer(ConsumeOptions::default().exclusive());
    let subscription = bus.subscribe(options, handler).await.unwrap().start();
    let second = bus.subscribe(Subscribe::new(), handler).await.map(drop);
    assert!(matches!(second, Err(BusError::Broker(_))), "the options of the consumer count");
    let ending = tokio::spawn(subscription.join());
    world.broker.close().await.unwrap();
    timeout(LONG, ending).await.expect("in time").unwrap().expect("that is no failure");
}
