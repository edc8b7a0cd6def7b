//! Deliveries and what becomes of them.

use std::time::Duration;

use super::{Bench, claims, text, texts, within};
use crate::consume::{ConsumeOptions, Nack, StopWhen};
use crate::dead;
use crate::error::BrokerErrorKind;
use crate::message::Message;
use crate::topology::Queue;
use crate::value::Value;

claims![
    an_acked_message_is_gone,
    ranges_and_lists_are_acked_in_one_step,
    requeued_messages_come_back_at_their_place,
    what_nobody_can_settle_any_more_comes_back,
    released_messages_come_back_and_late_acks_are_stale needs exact_settlement,
    the_first_settlement_wins needs exact_settlement,
    settling_works_from_another_thread,
    a_rejected_message_becomes_a_dead_letter,
    a_dead_letter_that_is_rejected_again_keeps_its_history,
    a_discarded_message_leaves_no_trace,
    prefetch_bounds_what_is_unsettled,
    prefetch_in_bytes_bounds_what_is_unsettled needs prefetch_bytes,
    prefetch_can_be_changed_while_messages_are_unsettled,
    an_exclusive_consumer_stays_alone,
    two_consumers_share_a_queue,
    a_stopped_consumer_ends_and_can_still_settle,
    a_consumer_can_end_when_the_queue_is_empty,
    a_message_requeued_with_a_delay_comes_back_later needs delay,
    a_lease_ends_and_its_late_ack_changes_nothing needs lease exact_settlement,
    a_message_given_back_too_often_dies needs delivery_limit,
    browsing_takes_nothing needs browse,
    a_look_is_no_delivery needs browse uncounted_browse,
];

async fn an_acked_message_is_gone(bench: &mut Bench) {
    let queue = bench.queue(Queue::durable).await;
    bench.publish(&queue, &["a", "b"]).await;
    let mut consumer = bench.consumer(&queue).await;
    let deliveries = bench.take(&mut consumer, 2).await;
    assert_eq!(deliveries[0].redeliveries, 0);
    bench.until(&queue, 0, 2, 0).await;
    assert!(deliveries.iter().all(|delivery| delivery.ack()));
    bench.until(&queue, 0, 0, 0).await;
}

async fn ranges_and_lists_are_acked_in_one_step(bench: &mut Bench) {
    let queue = bench.queue(Queue::durable).await;
    bench.publish(&queue, &["a", "b", "c", "d", "e", "f"]).await;
    let mut consumer = bench.consumer(&queue).await;
    let tags: Vec<_> = bench.take(&mut consumer, 6).await.iter().map(|delivery| delivery.tag).collect();
    assert!(tags.is_sorted());
    let acker = consumer.acker();
    assert_eq!(acker.ack_range(tags[0]..tags[2] + 1).applied, 3);
    assert_eq!(acker.ack_many([tags[5], tags[3]]).applied, 2);
    bench.until(&queue, 0, 1, 0).await;
    assert_eq!(acker.unsettled(), 1);
}

async fn requeued_messages_come_back_at_their_place(bench: &mut Bench) {
    let queue = bench.queue(Queue::durable).await;
    bench.publish(&queue, &["a", "b", "c", "d"]).await;
    let mut consumer = bench.consume(&queue, ConsumeOptions::default().prefetch(3)).await;
    let taken = bench.take(&mut consumer, 3).await;
    assert!(taken[2].nack(&Nack::Requeue) && taken[0].nack(&Nack::Requeue));
    assert!(taken[1].ack());
    // To this consumer a broker that pushes may deliver the last one before those that were given back.
    drop((taken, consumer));
    bench.until(&queue, 3, 0, 0).await;
    let mut consumer = bench.consumer(&queue).await;
    let again = bench.take(&mut consumer, 3).await;
    assert_eq!(texts(&again), ["a", "c", "d"]);
    assert!(again[0].redeliveries >= 1 && again[1].redeliveries >= 1);
}

async fn what_nobody_can_settle_any_more_comes_back(bench: &mut Bench) {
    let queue = bench.queue(Queue::durable).await;
    bench.publish(&queue, &["a", "b", "c"]).await;
    let mut consumer = bench.consumer(&queue).await;
    // All of them: what is on its way and nobody has taken goes back at once.
    let taken = bench.take(&mut consumer, 3).await;
    drop(consumer);
    bench.until(&queue, 0, 3, 0).await;
    assert!(taken[0].ack(), "a delivery can be settled after its consumer is gone");
    drop(taken);
    bench.until(&queue, 2, 0, 0).await;
    assert_eq!(bench.drain(&queue).await, ["b", "c"]);
}

async fn released_messages_come_back_and_late_acks_are_stale(bench: &mut Bench) {
    let queue = bench.queue(Queue::durable).await;
    bench.publish(&queue, &["a", "b"]).await;
    let mut consumer = bench.consumer(&queue).await;
    let taken = bench.take(&mut consumer, 2).await;
    consumer.acker().release();
    let again = bench.take(&mut consumer, 2).await;
    assert_eq!(texts(&again), ["a", "b"]);
    assert!(again.iter().all(|delivery| delivery.redeliveries == 1));
    assert!(!taken[0].ack() && !taken[1].nack(&Nack::Discard), "their tags are stale");
    bench.until(&queue, 0, 2, 0).await;
    assert!(again[0].ack() && again[1].ack());
    bench.until(&queue, 0, 0, 0).await;
}

async fn the_first_settlement_wins(bench: &mut Bench) {
    let queue = bench.queue(Queue::durable).await;
    bench.publish(&queue, &["a"]).await;
    let mut consumer = bench.consumer(&queue).await;
    let delivery = bench.take(&mut consumer, 1).await.remove(0);
    let acker = consumer.acker();
    assert_eq!(acker.ack(delivery.tag).applied, 1);
    assert!(!delivery.ack() && !delivery.nack(&Nack::Requeue));
    let report = acker.ack_range(0..u64::MAX);
    assert_eq!((report.applied, report.stale), (0, u64::MAX));
    bench.until(&queue, 0, 0, 0).await;
}

async fn settling_works_from_another_thread(bench: &mut Bench) {
    let queue = bench.queue(Queue::durable).await;
    bench.publish(&queue, &["a", "b"]).await;
    let mut consumer = bench.consume(&queue, ConsumeOptions::default().prefetch(1)).await;
    let first = bench.take(&mut consumer, 1).await.remove(0);
    let acker = consumer.acker();
    let tag = first.tag;
    std::thread::spawn(move || acker.ack(tag)).join().expect("acking does not panic");
    assert_eq!(text(&bench.take(&mut consumer, 1).await[0]), "b", "the ack made room for the next");
}

/// A queue with a dead-letter queue behind it.
async fn with_dead_letters(bench: &Bench, make: impl FnOnce(Queue) -> Queue) -> (String, String) {
    let dead = bench.queue(Queue::durable).await;
    let queue = bench.queue(|name| make(Queue::durable(name).dead_letter("", &dead))).await;
    (queue, dead)
}

async fn a_rejected_message_becomes_a_dead_letter(bench: &mut Bench) {
    let (queue, dead_queue) = with_dead_letters(bench, |queue| queue).await;
    bench.send(&queue, [Message::new("bad").with_header("mine", 1_i64)]).await;
    let mut consumer = bench.consumer(&queue).await;
    let delivery = bench.take(&mut consumer, 1).await.remove(0);
    let how = Nack::DeadLetter { reason: "no such flight".to_owned(), stage: Some("parse".to_owned()) };
    assert!(delivery.nack(&how));
    bench.until(&queue, 0, 0, 0).await;

    let mut consumer = bench.consumer(&dead_queue).await;
    let letter = bench.take(&mut consumer, 1).await.remove(0);
    let header = |name: &str| letter.message.header(name).cloned();
    assert_eq!(text(&letter), "bad");
    assert_eq!(header("mine"), Some(Value::Int(1)));
    assert_eq!(header(dead::REASON), Some("rejected".into()));
    assert_eq!(header(dead::DETAIL), Some("no such flight".into()));
    assert_eq!(header(dead::STAGE), Some("parse".into()));
    assert_eq!(header(dead::QUEUE), Some(queue.as_str().into()));
    assert_eq!(header(dead::KEY), Some(queue.as_str().into()));
    assert_eq!(header(dead::COUNT), Some(Value::Int(1)));
    assert!(header(dead::TIME).and_then(|time| time.as_int()).is_some_and(|time| time > 0));
}

async fn a_dead_letter_that_is_rejected_again_keeps_its_history(bench: &mut Bench) {
    let last = bench.queue(Queue::durable).await;
    let middle = bench.queue(|name| Queue::durable(name).dead_letter("", &last)).await;
    let first = bench.queue(|name| Queue::durable(name).dead_letter("", &middle)).await;
    bench.publish(&first, &["x"]).await;
    for (queue, reason) in [(&first, "one"), (&middle, "two")] {
        let mut consumer = bench.consumer(queue).await;
        assert!(bench.take(&mut consumer, 1).await[0].nack(&Nack::dead_letter(reason)));
    }
    let mut consumer = bench.consumer(&last).await;
    let letter = bench.take(&mut consumer, 1).await.remove(0);
    let history = letter.message.header(dead::HISTORY).and_then(Value::as_list).expect("a history");
    let queues: Vec<_> =
        history.iter().map(|entry| entry.as_map().expect("a map")["queue"].clone()).collect();
    assert_eq!(queues, [middle.as_str().into(), first.as_str().into()]);
    assert_eq!(letter.message.header(dead::DETAIL), Some(&"one".into()), "the first death explains");
}

async fn a_discarded_message_leaves_no_trace(bench: &mut Bench) {
    let (queue, dead) = with_dead_letters(bench, |queue| queue).await;
    bench.publish(&queue, &["x"]).await;
    let mut consumer = bench.consumer(&queue).await;
    assert!(bench.take(&mut consumer, 1).await[0].nack(&Nack::Discard));
    bench.until(&queue, 0, 0, 0).await;
    bench.until(&dead, 0, 0, 0).await;
}

async fn prefetch_bounds_what_is_unsettled(bench: &mut Bench) {
    let queue = bench.queue(Queue::durable).await;
    bench.publish(&queue, &["a", "b", "c", "d"]).await;
    let mut consumer = bench.consume(&queue, ConsumeOptions::default().prefetch(3)).await;
    let taken = bench.take(&mut consumer, 3).await;
    assert!(bench.is_idle(&mut consumer).await);
    bench.until(&queue, 1, 3, 0).await;
    assert!(taken[1].ack());
    assert_eq!(text(&bench.take(&mut consumer, 1).await[0]), "d");
}

async fn prefetch_in_bytes_bounds_what_is_unsettled(bench: &mut Bench) {
    let queue = bench.queue(Queue::durable).await;
    bench.send(&queue, [300, 300, 300, 5000, 1].map(|len| Message::new(vec![b'x'; len]))).await;
    let mut consumer = bench.consume(&queue, ConsumeOptions::default().prefetch_bytes(700)).await;
    let taken = bench.take(&mut consumer, 2).await;
    assert!(bench.is_idle(&mut consumer).await, "a third would be 900 bytes");
    assert!(taken[0].ack() && taken[1].ack());
    let third = bench.take(&mut consumer, 1).await.remove(0);
    assert!(bench.is_idle(&mut consumer).await);
    assert!(third.ack());
    let large = bench.take(&mut consumer, 1).await.remove(0);
    assert_eq!(large.message.body().len(), 5000, "one that is larger than the prefetch goes alone");
    assert!(bench.is_idle(&mut consumer).await);
    assert!(large.ack());
    assert_eq!(bench.take(&mut consumer, 1).await[0].message.body().len(), 1);
}

async fn prefetch_can_be_changed_while_messages_are_unsettled(bench: &mut Bench) {
    let queue = bench.queue(Queue::durable).await;
    bench.publish(&queue, &["a", "b", "c", "d", "e", "f"]).await;
    let mut consumer = bench.consume(&queue, ConsumeOptions::default().prefetch_auto(2, 8)).await;
    let acker = consumer.acker();
    let mut taken = bench.take(&mut consumer, 2).await;
    assert!(bench.is_idle(&mut consumer).await);
    acker.set_prefetch(4);
    let told = acker.prefetch().map(|prefetch| (prefetch.items.get(), prefetch.most.map(|most| most.get())));
    assert_eq!(told, Some((4, Some(8))));
    taken.extend(bench.take(&mut consumer, 2).await);
    assert!(bench.is_idle(&mut consumer).await, "four are unsettled");
    acker.set_prefetch(0);
    assert!(taken[..3].iter().all(|delivery| delivery.ack()));
    assert!(bench.is_idle(&mut consumer).await, "none is read as one, and one is unsettled");
    assert!(taken[3].ack());
    taken.extend(bench.take(&mut consumer, 1).await);
    assert!(bench.is_idle(&mut consumer).await);
    acker.set_prefetch(100);
    taken.extend(bench.take(&mut consumer, 1).await);
    assert_eq!(texts(&taken), ["a", "b", "c", "d", "e", "f"]);
    assert!(taken[4].ack() && taken[5].ack());
    bench.until(&queue, 0, 0, 0).await;
}

async fn an_exclusive_consumer_stays_alone(bench: &mut Bench) {
    let queue = bench.queue(Queue::durable).await;
    let broker = bench.broker();
    let alone =
        broker.consume(&queue, ConsumeOptions::default().exclusive().name("alone")).await.expect("alone");
    let second = broker.consume(&queue, ConsumeOptions::default()).await.expect_err("taken");
    assert_eq!(second.kind(), BrokerErrorKind::InUse);
    drop(alone);
    let shared = bench.consumer(&queue).await;
    let third = broker.consume(&queue, ConsumeOptions::default().exclusive()).await;
    assert_eq!(third.expect_err("not alone").kind(), BrokerErrorKind::InUse);
    drop(shared);
}

async fn two_consumers_share_a_queue(bench: &mut Bench) {
    let queue = bench.queue(Queue::durable).await;
    let options = ConsumeOptions::default().prefetch(2);
    let (mut one, mut two) =
        (bench.consume(&queue, options.clone()).await, bench.consume(&queue, options).await);
    bench.publish(&queue, &["a", "b", "c", "d"]).await;
    let mut got = texts(&bench.take(&mut one, 2).await);
    got.extend(texts(&bench.take(&mut two, 2).await));
    got.sort();
    assert_eq!(got, ["a", "b", "c", "d"], "each message goes to one of them");
}

async fn a_stopped_consumer_ends_and_can_still_settle(bench: &mut Bench) {
    let queue = bench.queue(Queue::durable).await;
    bench.publish(&queue, &["a", "b"]).await;
    let mut consumer = bench.consume(&queue, ConsumeOptions::default().prefetch(1)).await;
    let first = bench.take(&mut consumer, 1).await.remove(0);
    consumer.acker().stop(StopWhen::Now);
    assert!(within(bench.claim, consumer.next()).await.is_none());
    assert!(first.ack());
    bench.until(&queue, 1, 0, 0).await;
}

async fn a_consumer_can_end_when_the_queue_is_empty(bench: &mut Bench) {
    let queue = bench.queue(Queue::durable).await;
    bench.publish(&queue, &["a", "b"]).await;
    let mut consumer = bench.consumer(&queue).await;
    bench.take(&mut consumer, 1).await;
    consumer.acker().stop(StopWhen::Empty);
    assert_eq!(text(&bench.take(&mut consumer, 1).await[0]), "b");
    assert!(within(bench.claim, consumer.next()).await.is_none());
    assert!(bench.drain(&bench.queue(Queue::durable).await).await.is_empty());
}

async fn a_message_requeued_with_a_delay_comes_back_later(bench: &mut Bench) {
    // Of the one that is looked at the time does not come, however long that takes.
    let far = bench.queue(Queue::durable).await;
    bench.publish(&far, &["far"]).await;
    let delivery = bench.take(&mut bench.consumer(&far).await, 1).await.remove(0);
    assert!(delivery.nack(&Nack::RequeueAfter(Duration::from_secs(3600))));
    let stats = bench.broker().stats(&far).await.expect("the queue is there");
    assert_eq!((stats.ready, stats.delayed), (0, 1));

    let queue = bench.queue(Queue::durable).await;
    // One that could expire, too, though not before this.
    bench.send(&queue, [Message::new("a").with_ttl(Duration::from_secs(3600))]).await;
    let mut consumer = bench.consumer(&queue).await;
    let first = bench.take(&mut consumer, 1).await.remove(0);
    assert!(first.nack(&Nack::RequeueAfter(Duration::from_millis(100))));
    let again = bench.take(&mut consumer, 1).await.remove(0);
    assert_eq!((text(&again).as_str(), again.redeliveries), ("a", 1));
}

async fn a_lease_ends_and_its_late_ack_changes_nothing(bench: &mut Bench) {
    let queue = bench.queue(Queue::durable).await;
    bench.publish(&queue, &["a"]).await;
    let lease = ConsumeOptions::default().lease(Duration::from_millis(60));
    let mut leased = bench.consume(&queue, lease).await;
    let first = bench.take(&mut leased, 1).await.remove(0);
    // One without a lease gets it next, and may take its time: the first takes no more.
    leased.acker().stop(StopWhen::Now);
    let mut consumer = bench.consumer(&queue).await;
    let again = bench.take(&mut consumer, 1).await.remove(0);
    assert_eq!((text(&again).as_str(), again.redeliveries), ("a", 1));
    assert!(!first.ack(), "its lease has ended");
    assert!(again.ack());
    bench.until(&queue, 0, 0, 0).await;
}

async fn a_message_given_back_too_often_dies(bench: &mut Bench) {
    let (queue, dead_queue) = with_dead_letters(bench, |queue| queue.delivery_limit(2)).await;
    bench.publish(&queue, &["poison"]).await;
    let mut consumer = bench.consumer(&queue).await;
    for redeliveries in 0..3 {
        let delivery = bench.take(&mut consumer, 1).await.remove(0);
        assert_eq!(delivery.redeliveries, redeliveries);
        assert!(delivery.nack(&Nack::Requeue));
    }
    let mut dead_consumer = bench.consumer(&dead_queue).await;
    let letter = bench.take(&mut dead_consumer, 1).await.remove(0);
    assert_eq!(letter.message.header(dead::REASON), Some(&"delivery_limit".into()));
    bench.until(&queue, 0, 0, 0).await;
}

async fn browsing_takes_nothing(bench: &mut Bench) {
    let queue = bench.queue(Queue::durable).await;
    bench.publish(&queue, &["a", "b", "c"]).await;
    let seen = bench.broker().browse(&queue, 1, 5).await.expect("browsed");
    let bodies: Vec<_> = seen.iter().map(|seen| seen.message.body().clone()).collect();
    assert_eq!(bodies, ["b", "c"]);
    assert_eq!(bench.broker().browse(&queue, 0, 1).await.expect("browsed").len(), 1);
    bench.until(&queue, 3, 0, 0).await;
    assert_eq!(bench.drain(&queue).await, ["a", "b", "c"]);
}

async fn a_look_is_no_delivery(bench: &mut Bench) {
    let queue = bench.queue(|name| Queue::durable(name).delivery_limit(1)).await;
    bench.publish(&queue, &["a"]).await;
    for _ in 0..3 {
        let seen = bench.broker().browse(&queue, 0, 1).await.expect("browsed");
        assert_eq!(seen[0].deliveries, 0);
    }
    assert_eq!(bench.take(&mut bench.consumer(&queue).await, 1).await[0].redeliveries, 0);
}
