//! What the embedded broker promises beyond the conformance suite: settings, memory, disk, faults.

mod handles;
mod letters;
mod streams;
#[path = "../support/mod.rs"]
mod support;

use std::path::Path;
use std::time::Duration;

use millstream_embedded::log::{Disk, Fault, SimDisk};
use millstream_embedded::{EmbeddedBroker, Settings, verify};
use millstream_message::{
    Address, Batch, Binding, Broker, BrokerErrorKind, ConsumeOptions, Exchange, ExchangeKind, Message,
    PublishOutcome, Queue, Refusal,
};
use support::{ProcessDisk, on, small};

async fn send(broker: &EmbeddedBroker, queue: &str, count: u32, len: usize) {
    let messages = (0..count).map(|i| Message::new([&i.to_le_bytes()[..], &vec![7; len]].concat()));
    let outcomes = broker.publish_batch(Batch::to(&Address::queue(queue), messages)).await.expect("taken");
    assert!(outcomes.all_confirmed(), "{:?}", outcomes.others());
}

#[tokio::test(start_paused = true)]
async fn a_memory_broker_that_is_full_waits_for_its_consumers() {
    let settings = Settings { memory_bytes: 10_000, message_bytes_max: 10_000, ..Settings::memory() };
    let broker = EmbeddedBroker::memory(settings).expect("opens");
    broker.declare_queue(Queue::transient("q")).await.expect("declared");
    send(&broker, "q", 2, 6000).await;
    let third = send(&broker, "q", 1, 100);
    tokio::pin!(third);
    assert!(tokio::time::timeout(Duration::from_secs(60), &mut third).await.is_err(), "it waits");
    let mut consumer = broker.consume("q", ConsumeOptions::default()).await.expect("consumes");
    let chunk = consumer.next_chunk(1).await.expect("reads");
    assert!(chunk[0].ack());
    third.await;
}

/// A transient queue of a durable broker has its messages in memory alone, persistent ones too, and once grew without end.
#[tokio::test(start_paused = true)]
async fn a_transient_queue_that_fills_the_memory_holds_up_those_who_publish_to_it_and_nobody_else() {
    let disk = ProcessDisk::new(&SimDisk::new());
    let broker = on(&disk).await;
    broker.declare_queue(Queue::transient("t")).await.expect("declared");
    broker.declare_queue(Queue::durable("d")).await.expect("declared");
    broker.declare_exchange(Exchange::transient("all", ExchangeKind::Fanout)).await.expect("declared");
    for queue in ["t", "d"] {
        broker.bind(Binding::new("all", "", queue)).await.expect("bound");
    }
    let limit = small().memory_bytes;
    let waits = async |to: Address| {
        let batch = Batch::to(&to, vec![Message::new(vec![7; 2000]); 20]);
        tokio::time::timeout(Duration::from_secs(60), broker.publish_batch(batch)).await.is_err()
    };
    let mut batches = 0;
    while !waits(Address::queue("t")).await {
        batches += 1;
        assert!(batches < 1000, "{} bytes of {limit}", broker.memory_used());
    }
    assert!(broker.memory_used() < limit + 100_000, "{} bytes of {limit}", broker.memory_used());
    assert!(waits(Address::new("all", "")).await, "by an exchange, too");
    assert!(!waits(Address::queue("d")).await);
    let mut consumer = broker.consume("t", ConsumeOptions::default()).await.expect("consumes");
    for _ in 0..40 {
        assert!(consumer.next().await.expect("goes on").expect("reads").ack());
    }
    assert!(!waits(Address::queue("t")).await, "there is room again");
    while !waits(Address::queue("t")).await {}
    let batch = Batch::to(&Address::queue("t"), [Message::new("x")]);
    let (late, closed) = tokio::join!(broker.publish_batch(batch), broker.close());
    assert_eq!(late.expect_err("it is closed").kind(), BrokerErrorKind::Unavailable);
    closed.expect("closes");
}

#[tokio::test(start_paused = true)]
async fn a_queue_much_larger_than_memory_keeps_to_its_budget_and_its_order() {
    let disk = ProcessDisk::new(&SimDisk::new());
    let broker = on(&disk).await;
    broker.declare_queue(Queue::durable("q")).await.expect("declared");
    for _ in 0..50 {
        send(&broker, "q", 20, 2000).await;
    }
    assert!(broker.memory_used() <= small().memory_bytes, "{} bytes of 2 MB", broker.memory_used());
    let mut consumer =
        broker.consume("q", ConsumeOptions::default().stop_when_empty()).await.expect("consumes");
    let mut next = 0;
    while let Some(delivery) = consumer.next().await {
        let delivery = delivery.expect("reads");
        assert_eq!(delivery.message.body()[..4], (next % 20_u32).to_le_bytes());
        assert!(delivery.ack());
        next += 1;
    }
    assert_eq!(next, 1000);
    assert_eq!(broker.memory_used(), 0, "every byte came home");
}

#[tokio::test(start_paused = true)]
async fn disk_comes_back_when_everything_is_acked() {
    let disk = ProcessDisk::new(&SimDisk::new());
    let broker = on(&disk).await;
    broker.declare_queue(Queue::durable("q")).await.expect("declared");
    let mut consumer = broker.consume("q", ConsumeOptions::default()).await.expect("consumes");
    for _ in 0..100 {
        send(&broker, "q", 20, 2000).await;
        let mut left = 20;
        while left > 0 {
            let chunk = consumer.next_chunk(left).await.expect("reads");
            left -= chunk.len();
            assert!(chunk.iter().all(|delivery| delivery.ack()));
        }
    }
    // Quiet for long enough to be tidied up.
    tokio::time::sleep(Duration::from_secs(60)).await;
    let bytes = broker.log_stats().expect("a log").disk_bytes;
    assert!(bytes <= 3 * small().segment_bytes, "{bytes} bytes of disk after all was acked");
}

#[tokio::test(start_paused = true)]
async fn a_few_old_messages_do_not_hold_the_disk() {
    let disk = ProcessDisk::new(&SimDisk::new());
    let broker = on(&disk).await;
    broker.declare_queue(Queue::durable("slow")).await.expect("declared");
    broker.declare_queue(Queue::durable("busy")).await.expect("declared");
    send(&broker, "slow", 5, 1000).await;
    for _ in 0..400 {
        send(&broker, "busy", 20, 1000).await;
        broker.purge("busy").await.expect("purges");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    let bytes = broker.log_stats().expect("a log").disk_bytes;
    assert!(bytes <= 9 * small().segment_bytes, "{bytes} bytes of disk for five messages, after 8 MB");
    drop(broker);
    let broker = on(&disk).await;
    let mut consumer = broker.consume("slow", ConsumeOptions::default()).await.expect("consumes");
    let chunk = consumer.next_chunk(5).await.expect("reads");
    let numbers: Vec<_> = chunk.iter().map(|delivery| delivery.message.body()[0]).collect();
    assert_eq!(numbers, [0, 1, 2, 3, 4], "they were copied forward whole and in order");
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_refuses_and_the_broker_goes_on_when_there_is_room() {
    let sim = SimDisk::new();
    let disk = ProcessDisk::new(&sim);
    let broker = on(&disk).await;
    broker.declare_queue(Queue::durable("q")).await.expect("declared");
    send(&broker, "q", 1, 10).await;
    sim.set_capacity(1);
    let mut confirmed = 1;
    let refused = loop {
        let message = Message::new(vec![1; 10_000]);
        match broker.publish(&Address::queue("q"), message).await.expect("the broker answers") {
            PublishOutcome::Confirmed => confirmed += 1,
            other => break other,
        }
    };
    let text = match &refused {
        PublishOutcome::Refused(Refusal::Broker(error)) | PublishOutcome::Unconfirmed(error) => {
            error.to_string()
        }
        other => panic!("{other:?}"),
    };
    assert!(text.contains("disk is full") && text.contains("make room"), "{text}");
    assert_eq!(broker.stats("q").await.expect("stats").ready, confirmed, "what was confirmed is served");
    sim.set_capacity(0);
    send(&broker, "q", 1, 10).await;
    assert_eq!(broker.stats("q").await.expect("stats").ready, confirmed + 1);
}

#[tokio::test(start_paused = true)]
async fn a_failed_sync_loses_nothing_that_was_confirmed() {
    let sim = SimDisk::new();
    let disk = ProcessDisk::new(&sim);
    let broker = on(&disk).await;
    broker.declare_queue(Queue::durable("q")).await.expect("declared");
    sim.inject(Fault::Sync, 1);
    send(&broker, "q", 5, 100).await;
    disk.die();
    drop(broker);
    sim.crash(3);
    let broker = on(&ProcessDisk::new(&sim)).await;
    assert_eq!(broker.stats("q").await.expect("stats").ready, 5);
}

#[tokio::test(start_paused = true)]
async fn verify_counts_the_messages_whose_files_are_gone() {
    let sim = SimDisk::new();
    let broker = on(&ProcessDisk::new(&sim)).await;
    broker.declare_queue(Queue::durable("q")).await.expect("declared");
    for _ in 0..10 {
        send(&broker, "q", 40, 1000).await;
    }
    let mut consumer = broker.consume("q", ConsumeOptions::default().prefetch(5)).await.expect("consumes");
    let mut settled = 0;
    while settled < 5 {
        settled += consumer.next_chunk(5).await.expect("reads").into_iter().filter(|one| one.ack()).count();
    }
    drop(consumer);
    broker.close().await.expect("closes");
    let files = || {
        let mut files = sim.list(Path::new("/sim")).expect("listed");
        files.retain(|name| name.ends_with(".log"));
        files.sort();
        files
    };
    let found = verify(Path::new("/sim"), &sim).expect("verified");
    assert!(found.is_sound() && found.log.segments > 1 && found.log.clean, "{found:?}");
    sim.remove(&Path::new("/sim").join(&files()[0])).expect("removed");
    let found = verify(Path::new("/sim"), &sim).expect("verified");
    let first = found.missing_messages;
    assert!(!found.is_sound() && (1..395).contains(&first), "{found:?}");
    for file in files() {
        sim.remove(&Path::new("/sim").join(file)).expect("removed");
    }
    let found = verify(Path::new("/sim"), &sim).expect("verified");
    assert_eq!(
        (found.missing_messages, found.is_sound()),
        (395, false),
        "all that was not settled: {found:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn redeliveries_are_counted_over_a_crash() {
    let sim = SimDisk::new();
    let mut disk = ProcessDisk::new(&sim);
    let mut broker = on(&disk).await;
    let poison = Queue::durable("q").delivery_limit(2).dead_letter("", "dead");
    broker.declare_queue(Queue::durable("dead")).await.expect("declared");
    broker.declare_queue(poison).await.expect("declared");
    send(&broker, "q", 1, 10).await;
    // A message that kills its consumer, again and again.
    for crash in 0..3 {
        let mut consumer = broker.consume("q", ConsumeOptions::default()).await.expect("consumes");
        let delivery = consumer.next().await.expect("goes on").expect("reads");
        assert_eq!(delivery.redeliveries, crash);
        tokio::time::sleep(Duration::from_millis(20)).await;
        disk.die();
        drop((delivery, consumer, broker));
        sim.crash(u64::from(crash));
        disk = ProcessDisk::new(&sim);
        broker = on(&disk).await;
    }
    let mut consumer = broker.consume("q", ConsumeOptions::default()).await.expect("consumes");
    let fourth = tokio::time::timeout(Duration::from_secs(1), consumer.next()).await;
    assert!(fourth.is_err(), "it is not delivered a fourth time");
    let mut consumer = broker.consume("dead", ConsumeOptions::default()).await.expect("consumes");
    let letter = consumer.next().await.expect("goes on").expect("reads");
    assert_eq!(letter.message.header("millstream-dead-reason"), Some(&"delivery_limit".into()));
}

#[tokio::test(start_paused = true)]
async fn a_damaged_message_is_counted_and_the_others_go_on() {
    let sim = SimDisk::new();
    let disk = ProcessDisk::new(&sim);
    let broker = on(&disk).await;
    broker.declare_queue(Queue::durable("q")).await.expect("declared");
    send(&broker, "q", 5, 4000).await;
    broker.close().await.expect("closes");
    drop(broker);
    let (segment, _) =
        sim.files().into_iter().find(|(path, _)| path.extension().is_some_and(|e| e == "log")).expect("one");
    let third = |bytes: &mut Vec<u8>| {
        let at = bytes.windows(5).position(|window| window == [2, 0, 0, 0, 7]).expect("the third body");
        bytes[at + 1000] ^= 1;
    };
    sim.tamper(&segment, third).expect("the segment is there");
    let broker = on(&ProcessDisk::new(&sim)).await;
    let mut consumer =
        broker.consume("q", ConsumeOptions::default().stop_when_empty()).await.expect("consumes");
    let mut got = Vec::new();
    while let Some(delivery) = consumer.next().await {
        got.push(delivery.expect("reads").message.body()[0]);
    }
    assert_eq!(got, [0, 1, 3, 4]);
    assert_eq!(broker.damaged_messages(), 1);
}

/// Order by key outlives a run that ends: what it had in hand goes before what comes later.
#[tokio::test(start_paused = true)]
async fn a_queue_with_one_active_consumer_is_not_handed_on_while_anything_of_it_is_in_hand() {
    let broker = EmbeddedBroker::memory(Settings::memory()).expect("opens");
    broker.declare_queue(Queue::durable("q").single_active_consumer()).await.expect("declared");
    send(&broker, "q", 6, 0).await;
    let options = || ConsumeOptions::default().prefetch(2);
    let mut first = broker.consume("q", options()).await.expect("consumes");
    let mut second = broker.consume("q", options()).await.expect("consumes");
    let held = first.next_chunk(2).await.expect("reads");
    // It takes nothing more, and two of its messages are in somebody's hands.
    drop(first);
    let idle = tokio::time::timeout(Duration::from_millis(50), second.next_chunk(2)).await;
    assert!(idle.is_err(), "{idle:?}");
    // One is done, the other comes back: now it is the second's turn, in the old order.
    assert!(held[0].ack());
    drop(held);
    let number = |delivery: &millstream_message::Delivery| delivery.message.body()[0];
    let next = tokio::time::timeout(Duration::from_secs(20), second.next_chunk(2)).await;
    let next = next.expect("it is woken").expect("reads");
    assert_eq!(next.iter().map(number).collect::<Vec<_>>(), [1, 2]);
    // And where everything is settled, the next one is woken as well.
    let mut third = broker.consume("q", options()).await.expect("consumes");
    drop(second);
    let waiting = tokio::spawn(async move { third.next_chunk(1).await });
    tokio::task::yield_now().await;
    assert!(next.iter().all(|delivery| delivery.ack()));
    let woken = tokio::time::timeout(Duration::from_secs(20), waiting).await.expect("it is woken");
    assert_eq!(number(&woken.expect("no panic").expect("reads")[0]), 3);
    drop(next);
}
