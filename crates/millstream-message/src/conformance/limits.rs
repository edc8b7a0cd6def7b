//! Time to live, length limits, priority, delay, purge.

use std::time::Duration;

use super::{Bench, claims, texts};
use crate::dead;
use crate::message::Message;
use crate::publish::{Address, Batch, PublishOutcome, Refusal};
use crate::topology::{Overflow, Queue};

claims![
    messages_expire_by_the_queues_ttl,
    messages_expire_by_their_own_ttl,
    a_full_queue_refuses,
    a_full_queue_of_bytes_refuses,
    a_full_queue_drops_its_head,
    higher_priority_goes_first,
    a_delayed_message_is_invisible_until_due needs delay,
    a_delayed_message_whose_queue_is_full_at_its_time_is_not_lost needs delay,
    purging_removes_what_is_ready,
    a_message_that_is_too_large_is_refused,
    a_dead_letter_does_not_circle_by_itself,
];

async fn reasons(bench: &Bench, queue: &str, count: usize) -> Vec<String> {
    let mut consumer = bench.consumer(queue).await;
    let letters = bench.take(&mut consumer, count).await;
    letters.iter().for_each(|letter| assert!(letter.ack()));
    let reason = |letter: &crate::Delivery| {
        letter.message.header(dead::REASON).and_then(|value| value.as_text().map(str::to_owned))
    };
    letters.iter().map(|letter| reason(letter).expect("a dead letter says why")).collect()
}

async fn messages_expire_by_the_queues_ttl(bench: &mut Bench) {
    let dead = bench.queue(Queue::durable).await;
    let ttl = Duration::from_millis(30);
    let queue = bench.queue(|name| Queue::durable(name).ttl(ttl).dead_letter("", &dead)).await;
    bench.publish(&queue, &["a", "b"]).await;
    assert_eq!(reasons(bench, &dead, 2).await, ["expired", "expired"]);
    bench.until(&queue, 0, 0, 0).await;
}

async fn messages_expire_by_their_own_ttl(bench: &mut Bench) {
    let dead = bench.queue(Queue::durable).await;
    let queue = bench.queue(|name| Queue::durable(name).dead_letter("", &dead)).await;
    let mortal = Message::new("mortal").with_ttl(Duration::from_millis(30));
    bench.send(&queue, [mortal, Message::new("immortal")]).await;
    assert_eq!(reasons(bench, &dead, 1).await, ["expired"]);
    bench.until(&queue, 1, 0, 0).await;
    assert_eq!(bench.drain(&queue).await, ["immortal"]);
}

async fn a_full_queue_refuses(bench: &mut Bench) {
    let queue = bench.queue(|name| Queue::durable(name).max_items(2)).await;
    let batch = Batch::to(&Address::queue(&queue), ["a", "b", "c"].map(Message::new));
    let outcomes = bench.broker().publish_batch(batch).await.expect("the broker takes it");
    assert_eq!(outcomes.confirmed_count(), 2);
    let PublishOutcome::Refused(Refusal::Full { queue: full, .. }) = outcomes.get(2) else {
        panic!("{outcomes:?}")
    };
    assert_eq!(full, queue);
    assert_eq!(bench.drain(&queue).await, ["a", "b"]);
    bench.publish(&queue, &["d"]).await;
    assert_eq!(bench.drain(&queue).await, ["d"], "there is room again");
}

async fn a_full_queue_of_bytes_refuses(bench: &mut Bench) {
    let queue = bench.queue(|name| Queue::durable(name).max_bytes(1000)).await;
    let batch = Batch::to(&Address::queue(&queue), [600, 600].map(|len| Message::new(vec![0; len])));
    let outcomes = bench.broker().publish_batch(batch).await.expect("the broker takes it");
    assert_eq!(outcomes.confirmed_count(), 1);
    assert!(matches!(outcomes.get(1), PublishOutcome::Refused(Refusal::Full { .. })));
}

async fn a_full_queue_drops_its_head(bench: &mut Bench) {
    let dead = bench.queue(Queue::durable).await;
    let make = |name| Queue::durable(name).max_items(2).overflow(Overflow::DropHead).dead_letter("", &dead);
    let queue = bench.queue(make).await;
    bench.publish(&queue, &["a", "b", "c", "d"]).await;
    assert_eq!(reasons(bench, &dead, 2).await, ["maxlen", "maxlen"]);
    assert_eq!(bench.drain(&queue).await, ["c", "d"]);

    let silent = bench.queue(|name| Queue::durable(name).max_items(1).overflow(Overflow::DropHead)).await;
    bench.publish(&silent, &["a", "b"]).await;
    assert_eq!(bench.drain(&silent).await, ["b"]);
}

async fn higher_priority_goes_first(bench: &mut Bench) {
    let queue = bench.queue(|name| Queue::durable(name).max_priority(5)).await;
    let of = |body: &'static str, priority| Message::new(body).with_priority(priority);
    bench.send(&queue, [of("low", 0), of("high", 5), of("middle", 2), of("above", 200), of("low2", 0)]).await;
    let mut consumer = bench.consumer(&queue).await;
    let got = texts(&bench.take(&mut consumer, 5).await);
    assert_eq!(got, ["high", "above", "middle", "low", "low2"]);
}

async fn a_delayed_message_is_invisible_until_due(bench: &mut Bench) {
    let late = |delay| Message::new("late").with_delay(delay);
    // Of the one that is looked at the time does not come, however long it takes to store it.
    let far = bench.queue(Queue::durable).await;
    bench.send(&far, [late(Duration::from_secs(3600)), Message::new("now")]).await;
    let stats = bench.broker().stats(&far).await.expect("the queue is there");
    assert_eq!((stats.ready, stats.delayed), (1, 1));
    let known = bench.broker().features().queue_bytes;
    assert_eq!((stats.ready_bytes > 0, stats.delayed_bytes > 0), (known, known), "{stats:?}");
    let mut consumer = bench.consumer(&far).await;
    assert_eq!(texts(&bench.take(&mut consumer, 1).await), ["now"]);
    assert!(bench.is_idle(&mut consumer).await);

    let near = bench.queue(Queue::durable).await;
    bench.send(&near, [late(Duration::from_millis(100))]).await;
    assert_eq!(texts(&bench.take(&mut bench.consumer(&near).await, 1).await), ["late"]);
}

async fn a_delayed_message_whose_queue_is_full_at_its_time_is_not_lost(bench: &mut Bench) {
    let queue = bench.queue(|name| Queue::durable(name).max_items(3).overflow(Overflow::Reject)).await;
    bench.send(&queue, [Message::new("late").with_delay(Duration::from_millis(100))]).await;
    let mut taken = 1;
    loop {
        let early = bench.broker().publish(&Address::queue(&queue), Message::new("early")).await;
        match early.expect("an answer") {
            PublishOutcome::Confirmed => taken += 1,
            refused => break assert!(matches!(refused, PublishOutcome::Refused(_)), "{refused:?}"),
        }
        assert!(taken < 10, "a queue of three refuses the tenth");
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut consumer = bench.consumer(&queue).await;
    let mut got = Vec::new();
    for _ in 0..taken {
        let delivery = bench.take(&mut consumer, 1).await.remove(0);
        assert!(delivery.ack());
        got.extend(texts(&[delivery]));
    }
    assert!(got.contains(&"late".to_owned()), "{got:?}");
}

async fn purging_removes_what_is_ready(bench: &mut Bench) {
    let queue = bench.queue(Queue::durable).await;
    bench.publish(&queue, &["a", "b", "c"]).await;
    let mut consumer = bench.consume(&queue, crate::ConsumeOptions::default().prefetch(1)).await;
    let first = bench.take(&mut consumer, 1).await.remove(0);
    assert_eq!(bench.broker().purge(&queue).await.expect("purged"), 2);
    bench.until(&queue, 0, 1, 0).await;
    assert!(first.ack());
    bench.until(&queue, 0, 0, 0).await;
}

async fn a_message_that_is_too_large_is_refused(bench: &mut Bench) {
    let max = bench.broker().features().max_message_bytes;
    let queue = bench.queue(Queue::durable).await;
    let len = usize::try_from(max).expect("a limit that fits into memory") + 1;
    let outcome = bench.broker().publish(&Address::queue(&queue), Message::new(vec![0; len])).await;
    let outcome = outcome.expect("the broker answers");
    let PublishOutcome::Refused(Refusal::TooLarge { len: told, max: limit }) = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!((told, limit), (len as u64, max));
    bench.publish(&queue, &["small"]).await;
    assert_eq!(bench.drain(&queue).await, ["small"], "the broker goes on");
}

async fn a_dead_letter_does_not_circle_by_itself(bench: &mut Bench) {
    let name = bench.name("queue");
    let queue = Queue::durable(&name).ttl(Duration::from_millis(20)).dead_letter("", &name);
    bench.broker().declare_queue(queue).await.expect("declared");
    bench.publish(&name, &["x"]).await;
    // It expires into its own queue once, and would for ever.
    bench.until(&name, 0, 0, 0).await;
}
