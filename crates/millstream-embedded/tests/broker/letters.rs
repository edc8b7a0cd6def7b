//! Messages that leave their queue for another: dead letters that wait for room, and what limits drive out.

use std::time::Duration;

use millstream_embedded::log::SimDisk;
use millstream_embedded::{EmbeddedBroker, Settings};
use millstream_message::{
    Address, Binding, Broker, ConsumeOptions, Exchange, ExchangeKind, Message, Nack, Overflow,
    PublishOutcome, Queue,
};

use crate::send;
use crate::support::{ProcessDisk, on};

#[tokio::test(start_paused = true)]
async fn a_message_may_go_to_a_full_queue_and_its_dead_letter_waits_for_room() {
    let broker = EmbeddedBroker::memory(Settings::memory()).expect("opens");
    broker.declare_queue(Queue::transient("dead").max_items(1)).await.expect("declared");
    broker.declare_queue(Queue::transient("q").dead_letter("", "dead")).await.expect("declared");
    send(&broker, "q", 2, 10).await;
    let mut consumer = broker.consume("q", ConsumeOptions::default()).await.expect("consumes");
    for delivery in consumer.next_chunk(2).await.expect("reads") {
        assert!(delivery.nack(&Nack::dead_letter("no")));
    }
    tokio::time::sleep(Duration::from_secs(10)).await;
    let (dead, q) = (broker.stats("dead").await.expect("stats"), broker.stats("q").await.expect("stats"));
    assert_eq!((dead.ready, q.unacked), (1, 1), "the second keeps waiting where it died");
    let mut letters = broker.consume("dead", ConsumeOptions::default()).await.expect("consumes");
    for _ in 0..2 {
        assert!(letters.next().await.expect("goes on").expect("reads").ack());
    }
    assert_eq!(broker.stats("q").await.expect("stats").total(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_letter_that_must_wait_holds_up_no_other_and_repeats_none() {
    let broker = EmbeddedBroker::memory(Settings::memory()).expect("opens");
    for name in ["in", "dead"] {
        broker.declare_exchange(Exchange::transient(name, ExchangeKind::Direct)).await.expect("declared");
    }
    broker.declare_queue(Queue::transient("a").max_items(1)).await.expect("declared");
    broker.declare_queue(Queue::transient("b")).await.expect("declared");
    let mut q = Queue::transient("q");
    q.dead_letter_exchange = Some("dead".to_owned());
    broker.declare_queue(q).await.expect("declared");
    for key in ["a", "b"] {
        broker.bind(Binding::new("in", key, "q")).await.expect("bound");
        broker.bind(Binding::new("dead", key, key)).await.expect("bound");
    }
    let mut consumer = broker.consume("q", ConsumeOptions::default()).await.expect("consumes");
    for key in ["a", "a", "b", "a", "b"] {
        let stored = broker.publish(&Address::new("in", key), Message::new(key)).await.expect("published");
        assert!(stored.is_confirmed());
        let delivery = consumer.next().await.expect("one").expect("no error");
        assert!(delivery.nack(&Nack::dead_letter("no")));
    }
    tokio::time::sleep(Duration::from_secs(30)).await;
    let stats = async |queue: &str| broker.stats(queue).await.expect("stats");
    assert_eq!((stats("a").await.ready, stats("b").await.ready, stats("q").await.unacked), (1, 2, 2));
    for left in [1, 0, 0] {
        broker.purge("a").await.expect("purged");
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!((stats("b").await.ready, stats("q").await.unacked), (2, left));
    }
}

#[tokio::test(start_paused = true)]
async fn dropping_heads_never_outruns_the_dead_letters() {
    let broker = EmbeddedBroker::memory(Settings::memory()).expect("opens");
    broker.declare_queue(Queue::transient("dead")).await.expect("declared");
    let limited = Queue::transient("q").max_items(10).overflow(Overflow::DropHead).dead_letter("", "dead");
    broker.declare_queue(limited).await.expect("declared");
    for _ in 0..100 {
        send(&broker, "q", 300, 4).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(broker.stats("q").await.expect("stats").ready, 10);
    assert_eq!(broker.stats("dead").await.expect("stats").ready, 30_000 - 10);
}

/// A queue of one message whose heads go to `dead`, which holds two; and from there to `grave`.
async fn declare_chain(broker: &EmbeddedBroker) {
    let dead = Queue::durable("dead").max_items(2).overflow(Overflow::DropHead).dead_letter("", "grave");
    let q = Queue::durable("q").max_items(1).overflow(Overflow::DropHead).dead_letter("", "dead");
    for queue in [Queue::durable("grave"), dead, q] {
        broker.declare_queue(queue).await.expect("declared");
    }
}

async fn numbers(broker: &EmbeddedBroker, queue: &str) -> Vec<u8> {
    let found = broker.browse(queue, 0, 100).await.expect("browses");
    found.iter().map(|found| found.message.body()[0]).collect()
}

#[tokio::test]
async fn what_a_limit_drives_out_has_left_when_the_broker_is_closed() {
    for _ in 0..20 {
        let directory = tempfile::tempdir().expect("a directory");
        let open = async || EmbeddedBroker::open(directory.path(), Settings::default()).await.expect("opens");
        let broker = open().await;
        declare_chain(&broker).await;
        broker.close().await.expect("closes");
        for number in 0..6 {
            // As a command does that publishes one message and ends.
            let broker = open().await;
            let message = Message::new(vec![number]);
            let outcome = broker.publish(&Address::queue("q"), message).await.expect("taken");
            assert!(matches!(outcome, PublishOutcome::Confirmed), "{outcome:?}");
            broker.close().await.expect("closes");
        }
        let broker = open().await;
        assert_eq!(numbers(&broker, "q").await, [5]);
        assert_eq!(numbers(&broker, "dead").await, [3, 4]);
        assert_eq!(numbers(&broker, "grave").await, [0, 1, 2], "each once, in order");
        broker.close().await.expect("closes");
    }
}

#[tokio::test(start_paused = true)]
async fn a_limit_holds_as_soon_as_a_directory_is_opened_after_a_crash() {
    let sim = SimDisk::new();
    let disk = ProcessDisk::new(&sim);
    let broker = on(&disk).await;
    declare_chain(&broker).await;
    send(&broker, "q", 1, 10).await;
    send(&broker, "q", 1, 10).await;
    disk.die();
    drop(broker);
    sim.crash(1);
    let broker = on(&ProcessDisk::new(&sim)).await;
    assert_eq!(broker.stats("q").await.expect("stats").ready, 1);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(broker.stats("q").await.expect("stats").total(), 1);
    let letters = broker.stats("dead").await.expect("stats").ready;
    assert!(
        (1..=2).contains(&letters),
        "nothing is lost; the letter may have left before the crash too: {letters}"
    );
}
