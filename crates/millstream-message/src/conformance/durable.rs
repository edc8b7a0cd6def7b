//! What survives a restart.

use std::time::Duration;

use bytes::Bytes;

use super::{Bench, claims, text};
use crate::consume::ConsumeOptions;
use crate::message::Message;
use crate::publish::{Address, Batch, Publish, PublishOutcome, Refusal};
use crate::topology::{Binding, Exchange, ExchangeKind, Queue};

claims![
    persistent_messages_survive_a_restart needs durable,
    transient_things_do_not_survive_a_restart needs durable,
    settlements_survive_a_restart needs durable,
    topology_survives_a_restart needs durable,
    priority_and_order_survive_a_restart needs durable,
    a_delay_survives_a_restart needs durable delay,
    a_position_is_stored_with_its_batch_or_not_at_all needs positions atomic_batches,
    a_position_is_stored_after_its_batch_and_not_without_it needs positions,
    positions_survive_a_restart needs durable positions,
];

async fn persistent_messages_survive_a_restart(bench: &mut Bench) {
    let queue = bench.queue(Queue::durable).await;
    let message = Message::new("kept").with_header("h", 1_i64).with_message_id("id");
    bench.send(&queue, [message.clone()]).await;
    bench.restart().await;
    let mut consumer = bench.consumer(&queue).await;
    let delivery = bench.take(&mut consumer, 1).await.remove(0);
    assert_eq!(delivery.message, message);
    assert_eq!(delivery.address, Address::queue(&queue));
}

async fn transient_things_do_not_survive_a_restart(bench: &mut Bench) {
    let (durable, transient) = (bench.queue(Queue::durable).await, bench.queue(Queue::transient).await);
    let exclusive = bench.queue(Queue::exclusive).await;
    bench.send(&durable, [Message::new("gone").transient(), Message::new("kept")]).await;
    bench.publish(&transient, &["x"]).await;
    bench.restart().await;
    assert_eq!(bench.drain(&durable).await, ["kept"]);
    assert_eq!(bench.broker().queue(&transient).await.expect("looked up"), None);
    assert_eq!(bench.broker().queue(&exclusive).await.expect("looked up"), None);
}

async fn settlements_survive_a_restart(bench: &mut Bench) {
    let queue = bench.queue(Queue::durable).await;
    bench.publish(&queue, &["a", "b", "c", "d"]).await;
    let mut consumer = bench.consume(&queue, ConsumeOptions::default().prefetch(3)).await;
    let taken = bench.take(&mut consumer, 3).await;
    assert!(taken[1].ack());
    drop((consumer, taken));
    bench.until(&queue, 3, 0, 0).await;
    bench.restart().await;
    let mut consumer = bench.consumer(&queue).await;
    let again = bench.take(&mut consumer, 3).await;
    assert_eq!(again.iter().map(text).collect::<Vec<_>>(), ["a", "c", "d"]);
}

async fn topology_survives_a_restart(bench: &mut Bench) {
    let exchange = bench.name("exchange");
    let declared = Exchange::durable(&exchange, ExchangeKind::Topic);
    bench.broker().declare_exchange(declared.clone()).await.expect("declared");
    let queue = bench.queue(|name| Queue::durable(name).max_items(7)).await;
    for key in ["a.*", "b.*"] {
        bench.broker().bind(Binding::new(&exchange, key, &queue)).await.expect("bound");
    }
    bench.broker().unbind(Binding::new(&exchange, "b.*", &queue)).await.expect("unbound");
    let gone = bench.queue(Queue::durable).await;
    bench.broker().delete_queue(&gone).await.expect("deleted");
    bench.restart().await;
    bench.broker().declare_exchange(declared).await.expect("it is as it was");
    bench.broker().declare_queue(Queue::durable(&queue).max_items(7)).await.expect("it is as it was");
    let outcome = bench.broker().publish(&Address::new(&exchange, "a.x"), Message::new("x")).await;
    assert!(outcome.expect("the broker takes it").is_confirmed());
    let outcome = bench.broker().publish(&Address::new(&exchange, "b.x"), Message::new("x")).await;
    assert!(matches!(outcome.expect("the broker takes it"), PublishOutcome::Unroutable(_)));
    assert_eq!(bench.broker().queue(&gone).await.expect("looked up"), None);
}

async fn priority_and_order_survive_a_restart(bench: &mut Bench) {
    let queue = bench.queue(|name| Queue::durable(name).max_priority(3)).await;
    let of = |body: &'static str, priority| Message::new(body).with_priority(priority);
    bench.send(&queue, [of("c", 0), of("a", 3), of("d", 0), of("b", 3)]).await;
    bench.restart().await;
    assert_eq!(bench.drain(&queue).await, ["a", "b", "c", "d"]);
}

async fn a_delay_survives_a_restart(bench: &mut Bench) {
    let queue = bench.queue(Queue::durable).await;
    let of = |body: &'static str, delay| Message::new(body).with_delay(Duration::from_millis(delay));
    bench.send(&queue, [of("far", 3_600_000), of("near", 300)]).await;
    bench.restart().await;
    let mut consumer = bench.consumer(&queue).await;
    assert_eq!(text(&bench.take(&mut consumer, 1).await[0]), "near");
    let delayed = u64::from(bench.broker().features().delayed_stats);
    bench.until(&queue, 0, 1, delayed).await;
    assert!(bench.is_idle(&mut consumer).await, "the other's time has not come");
}

async fn a_position_is_stored_with_its_batch_or_not_at_all(bench: &mut Bench) {
    let queue = bench.queue(|name| Queue::durable(name).max_items(2)).await;
    let (name, to) = (bench.name("position"), Address::queue(&queue));
    let broker = bench.broker();
    assert_eq!(broker.position(&name).await.expect("looked up"), None);
    let good = Batch::to(&to, [Message::new("a")]).with_position(&name, "1");
    assert!(broker.publish_batch(good).await.expect("taken").all_confirmed());
    assert_eq!(broker.position(&name).await.expect("looked up"), Some(Bytes::from("1")));

    let too_many = Batch::to(&to, ["b", "c"].map(Message::new)).with_position(&name, "2");
    let outcomes = broker.publish_batch(too_many).await.expect("taken");
    assert_eq!(outcomes.confirmed_count(), 0, "all or nothing");
    assert!(matches!(outcomes.get(0), PublishOutcome::Refused(Refusal::Atomic { index: 1 })));
    assert!(matches!(outcomes.get(1), PublishOutcome::Refused(Refusal::Full { .. })));
    assert_eq!(broker.position(&name).await.expect("looked up"), Some(Bytes::from("1")));
    let missing = Publish { to: Address::queue(bench.name("missing")), message: Message::new("d") };
    let unroutable = Batch::from(vec![missing]).with_position(&name, "3");
    assert_eq!(broker.publish_batch(unroutable).await.expect("taken").confirmed_count(), 0);
    assert_eq!(broker.position(&name).await.expect("looked up"), Some(Bytes::from("1")));
    assert_eq!(bench.drain(&queue).await, ["a"]);

    bench.broker().store_position(&name, None).await.expect("forgotten");
    assert_eq!(bench.broker().position(&name).await.expect("looked up"), None);
}

async fn a_position_is_stored_after_its_batch_and_not_without_it(bench: &mut Bench) {
    let queue = bench.queue(|name| Queue::durable(name).max_items(2)).await;
    let (name, to) = (bench.name("position"), Address::queue(&queue));
    let broker = bench.broker();
    assert_eq!(broker.position(&name).await.expect("looked up"), None);
    for position in ["1", "2"] {
        let good = Batch::to(&to, [Message::new("a")]).with_position(&name, position);
        assert!(broker.publish_batch(good).await.expect("taken").all_confirmed());
        assert_eq!(broker.position(&name).await.expect("looked up"), Some(Bytes::from(position)));
    }
    let too_many = Batch::to(&to, ["b", "c"].map(Message::new)).with_position(&name, "3");
    assert!(!broker.publish_batch(too_many).await.expect("taken").all_confirmed());
    assert_eq!(broker.position(&name).await.expect("looked up"), Some(Bytes::from("2")));
    let alone = Batch::default().with_position(&name, "4");
    assert!(broker.publish_batch(alone).await.expect("taken").others().is_empty());
    assert_eq!(broker.position(&name).await.expect("looked up"), Some(Bytes::from("4")));
    broker.store_position(&name, None).await.expect("forgotten");
    assert_eq!(broker.position(&name).await.expect("looked up"), None);
}

async fn positions_survive_a_restart(bench: &mut Bench) {
    let queue = bench.queue(Queue::durable).await;
    let (with, alone, gone) = (bench.name("with"), bench.name("alone"), bench.name("gone"));
    let batch = Batch::to(&Address::queue(&queue), [Message::new("a")]).with_position(&with, "1");
    assert!(bench.broker().publish_batch(batch).await.expect("taken").all_confirmed());
    bench.broker().store_position(&alone, Some(Bytes::from("2"))).await.expect("stored");
    bench.broker().store_position(&gone, Some(Bytes::from("3"))).await.expect("stored");
    bench.broker().store_position(&gone, None).await.expect("forgotten");
    bench.restart().await;
    for (name, value) in [(with, Some("1")), (alone, Some("2")), (gone, None)] {
        let expected = value.map(|value| Bytes::from_static(value.as_bytes()));
        assert_eq!(bench.broker().position(&name).await.expect("looked up"), expected);
    }
    assert_eq!(bench.drain(&queue).await, ["a"]);
}
