//! How handlers are called, and what becomes of what they fail for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use millstream_events::{Event, EventContext, HANDLED_BEFORE, Inbox, Published, Subscribe};
use millstream_flow::{BoxError, Concurrency, Retry};
use millstream_message::dead::{DETAIL, STAGE};
use millstream_message::flow::{ATTEMPTS, FAILURES, Failure};
use millstream_message::{Address, Binding, Json, Message, Value};
use tokio::time::{sleep, timeout};

use crate::bus::{LONG, Later, Placed, SECOND, Seen, World, everywhere, settled, until};

everywhere! {
    what_fails_is_tried_again_and_its_letter_tells_of_it,
    events_are_handled_in_the_order_in_which_they_were_published,
    events_of_one_key_are_handled_in_turn,
    an_inbox_skips_what_was_handled,
}

fn retry(attempts: u32) -> Retry {
    Retry::attempts(attempts).expect("some").first_delay(SECOND / 20).max_delay(SECOND / 20)
}

fn text(letter: &Message, header: &str) -> String {
    letter.header(header).and_then(Value::as_text).unwrap_or("").to_owned()
}

async fn what_fails_is_tried_again_and_its_letter_tells_of_it(world: World) {
    let bus = world.process("shop").await;
    let calls = Seen::new();
    let add = calls.clone();
    let handler = async move |event: &Placed, context: &EventContext| {
        add.add((event.n, context.attempt(), context.id().to_owned()));
        assert_eq!(context.address().key(), "orders.placed", "where it was published to at first");
        match event.n {
            1 if context.attempt() < 3 => Err(BoxError::from("not yet").into()),
            2 => Err(BoxError::from(format!("attempt {}", context.attempt())).into()),
            3 => Err(Failure::permanent("no attempt will help")),
            4 => panic!("bad luck"),
            5 => std::future::pending().await,
            6 if context.redeliveries() == 0 => Err(Failure::give_back("not here")),
            _ => Ok(()),
        }
    };
    let options = Subscribe::new().concurrency(Concurrency::unordered(8)).retry(retry(3).timeout(SECOND / 2));
    let subscription = bus.subscribe(options, handler).await.unwrap().start();
    let events: Vec<Event> = (0..7).map(|n| Event::of(&Placed { order: 1, n }).unwrap()).collect();
    for outcome in bus.publish_all(events.clone()).await {
        assert_eq!(outcome.unwrap(), Published::Stored);
    }
    // What is no event, another's body, and another type by a binding that was left behind.
    let queue = subscription.queue().to_owned();
    let to = Address::new(&world.exchange, "orders.placed");
    assert!(world.broker.publish(&to, Message::new("foreign")).await.unwrap().is_confirmed());
    let garbage = Event::new("orders.placed", Message::new("garbage").with_content_type("application/json"));
    assert_eq!(bus.publish(garbage).await.unwrap(), Published::Stored);
    world.broker.bind(Binding::new(&world.exchange, "orders.paid", &queue)).await.unwrap();
    assert_eq!(bus.publish(Event::of(&Later::Paid(1)).unwrap()).await.unwrap(), Published::Stored);

    let letters = world.letters(&queue, 7).await;
    until(async || subscription.statistics().handled == 3).await;
    let body = |n| format!(r#"{{"order":1,"n":{n}}}"#);
    let never = &letters[&body(2)];
    assert_eq!((text(never, DETAIL).as_str(), text(never, STAGE).as_str()), ("attempt 3", "handler"));
    assert_eq!(never.header(ATTEMPTS), Some(&Value::Int(2)));
    assert_eq!(never.header(FAILURES).and_then(Value::as_list).map(<[Value]>::len), Some(2));
    assert_eq!(text(&letters[&body(3)], DETAIL), "no attempt will help");
    assert_eq!(letters[&body(3)].header(ATTEMPTS), None, "there was one attempt");
    assert!(text(&letters[&body(4)], DETAIL).contains("bad luck"));
    assert!(text(&letters[&body(5)], DETAIL).contains("500ms"));
    for (body, said) in [
        ("foreign", vec!["no message id"]),
        ("garbage", vec!["not valid JSON", "Placed"]),
        (r#"{"Paid":1}"#, vec!["`orders.placed`", "`orders.paid`"]),
    ] {
        let detail = text(&letters[body], DETAIL);
        assert!(said.iter().all(|said| detail.contains(said)), "{detail}");
        assert_eq!(text(&letters[body], STAGE), "decode");
    }

    // Each delivery was one call, and an event keeps its name.
    let mut attempts = BTreeMap::<u32, Vec<u32>>::new();
    for (n, attempt, id) in calls.all() {
        assert_eq!(id, events[n as usize].id);
        attempts.entry(n).or_default().push(attempt);
    }
    let three = vec![1, 2, 3];
    let expected = [vec![1], three.clone(), three.clone(), vec![1], three.clone(), three, vec![1, 1]];
    assert_eq!(attempts.into_values().collect::<Vec<_>>(), expected);
    let statistics = subscription.statistics();
    assert_eq!((statistics.handled, statistics.dead, statistics.in_flight), (3, 7, 0), "{statistics:?}");
    assert_eq!((statistics.tried_again, statistics.given_back, statistics.skipped), (8, 1, 0));
    assert_eq!(statistics.received, 19);
    assert!(subscription.stop(LONG).await.unwrap().ledger.balances());
}

async fn events_are_handled_in_the_order_in_which_they_were_published(world: World) {
    let (bus, other) = (world.process("shop").await, world.process("bank").await);
    let seen = Seen::new();
    let add = seen.clone();
    let handler = async move |event: &Placed, _: &EventContext| {
        if event.n.is_multiple_of(50) {
            sleep(Duration::from_millis(1)).await;
        }
        add.note(event.n)
    };
    let subscription = other.subscribe(Subscribe::new(), handler).await.unwrap().start();
    let of = |n| Event::of(&Placed { order: 1, n }).unwrap();
    for outcome in bus.publish_all((0..400).map(of)).await {
        assert_eq!(outcome.unwrap(), Published::Stored);
    }
    for n in 400..420 {
        assert_eq!(bus.publish(of(n)).await.unwrap(), Published::Stored);
    }
    assert_eq!(seen.wait_for(420).await, (0..420).collect::<Vec<_>>());
    subscription.stop(LONG).await.unwrap();
}

async fn events_of_one_key_are_handled_in_turn(world: World) {
    let bus = world.process("shop").await;
    let seen = Seen::new();
    let most = Arc::new((AtomicUsize::new(0), AtomicUsize::new(0)));
    let (add, busy) = (seen.clone(), most.clone());
    let handler = async move |event: &Placed, _: &EventContext| {
        let now = busy.0.fetch_add(1, Ordering::SeqCst) + 1;
        busy.1.fetch_max(now, Ordering::SeqCst);
        sleep(Duration::from_millis(1)).await;
        busy.0.fetch_sub(1, Ordering::SeqCst);
        add.note(*event)
    };
    let options = Subscribe::new().concurrency(Concurrency::unordered(16));
    let key = |context: &EventContext| context.aggregate().map(|order| order.id.clone());
    let subscription = bus.subscribe_by_key(options, key, handler).await.unwrap().start();
    for n in 0..150 {
        let placed = bus.event(&Placed { order: n % 3, n }).unwrap();
        let placed = placed.aggregate("order", (n % 3).to_string(), u64::from(n / 3));
        assert_eq!(placed.publish().await.unwrap(), Published::Stored);
    }
    let seen = seen.wait_for(150).await;
    for order in 0..3 {
        assert!(seen.iter().filter(|event| event.order == order).is_sorted_by_key(|event| event.n));
    }
    subscription.stop(LONG).await.unwrap();
}

async fn an_inbox_skips_what_was_handled(world: World) {
    let bus = world.process("shop").await;
    let (inbox, seen) = (Inbox::new(100, LONG), Seen::new());
    let add = seen.clone();
    let handler = async move |event: &Placed, context: &EventContext| {
        add.add((event.n, context.attempt()));
        if event.n == 2 && context.attempt() == 1 {
            return Err(BoxError::from("what has failed is not handled").into());
        }
        Ok(())
    };
    let options = Subscribe::new().inbox(inbox.clone()).retry(retry(2));
    let subscription = bus.subscribe(options, handler).await.unwrap().start();
    for n in [1, 1, 2, 1] {
        let placed = bus.event(&Placed { order: 1, n }).unwrap().id(format!("event-{n}"));
        assert_eq!(placed.publish().await.unwrap(), Published::Stored);
    }
    settled(&subscription, 5).await;
    assert_eq!(seen.all(), [(1, 1), (2, 1), (2, 2)]);
    assert_eq!((inbox.len(), inbox.skipped()), (2, 2));
    let statistics = subscription.statistics();
    assert_eq!((statistics.handled, statistics.skipped, statistics.tried_again), (2, 2, 1));
    let report = subscription.stop(LONG).await.unwrap();
    assert_eq!(report.ledger.dropped[HANDLED_BEFORE], 2);
    assert_eq!(
        world.broker.stats(&world.queue("shop", "orders.placed")).await.unwrap().total(),
        0,
        "all settled"
    );
}

#[tokio::test(start_paused = true)]
async fn so_many_calls_run_at_once_as_was_said() {
    for (calls, prefetch, running) in [(1, 100, 1), (4, 100, 4), (8, 3, 3)] {
        let world = World::in_memory().await;
        let bus = world.process("shop").await;
        let seen = Seen::new();
        let add = seen.clone();
        let handler = async move |event: &Placed, _: &EventContext| {
            add.add(event.n);
            std::future::pending().await
        };
        let options = Subscribe::new().concurrency(Concurrency::unordered(calls)).prefetch(prefetch);
        let subscription = bus.subscribe(options, handler).await.unwrap().start();
        for n in 0..20 {
            _ = bus.event(&Placed { order: 1, n }).unwrap().publish().await.unwrap();
        }
        sleep(SECOND).await;
        assert_eq!(seen.all().len(), running, "{calls} calls of {prefetch}");
        let unsettled = world.broker.stats(subscription.queue()).await.unwrap().unacked;
        assert_eq!(unsettled, prefetch.min(20) as u64);
    }
}

#[tokio::test]
async fn a_body_is_read_by_the_subscriptions_codec() {
    let world = World::in_memory().await;
    let bus = world.process("shop").await;
    let seen = Seen::new();
    let add = seen.clone();
    let handler = async move |event: &Placed, _: &EventContext| add.note(event.n);
    let options = Subscribe::new().codec(Json.max_bytes(18));
    let subscription = bus.subscribe(options, handler).await.unwrap().start();
    for n in [1, 100] {
        _ = bus.event(&Placed { order: 1, n }).unwrap().publish().await.unwrap();
    }
    let letters = world.letters(subscription.queue(), 1).await;
    assert!(text(letters.values().next().unwrap(), DETAIL).contains("at most 18"), "{letters:?}");
    assert_eq!(seen.all(), [1]);
}

/// One that fails while its double waits leaves it to that.
#[tokio::test(start_paused = true)]
async fn doubles_that_come_at_once_are_handled_once() {
    let world = World::in_memory().await;
    let bus = world.process("shop").await;
    let seen = Seen::new();
    let add = seen.clone();
    let handler = async move |event: &Placed, _: &EventContext| {
        sleep(SECOND).await;
        add.add(event.n);
        if event.n == 0 { Err(Failure::permanent("bad")) } else { Ok(()) }
    };
    let options = Subscribe::new().inbox(Inbox::new(9, LONG)).concurrency(Concurrency::unordered(8));
    let subscription = bus.subscribe(options, handler).await.unwrap().start();
    for n in 0..4 {
        _ = bus.event(&Placed { order: 1, n }).unwrap().id("one").publish().await.unwrap();
    }
    settled(&subscription, 4).await;
    let seen = timeout(LONG, seen.wait_for(2)).await.unwrap();
    assert!(seen.len() == 2 && seen[0] == 0, "the one that failed, and one other: {seen:?}");
    assert_eq!(subscription.statistics().skipped, 2);
}
