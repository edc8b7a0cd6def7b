//! What waits in queues keeps to the memory and the disk that it may use: delayed, given back, or dead.

mod support;

use std::time::Duration;

use millstream_embedded::EmbeddedBroker;
use millstream_embedded::log::SimDisk;
use millstream_message::{Address, Batch, Broker, ConsumeOptions, Message, Nack, Queue};
use support::{ProcessDisk, on, small};

const HOUR: Duration = Duration::from_secs(3600);

/// Publishes `count` messages of 2 KB that begin with their numbers.
async fn send(broker: &EmbeddedBroker, queue: &str, from: u32, count: u32, delay: Option<Duration>) {
    let message = |number: u32| {
        let message = Message::new([&number.to_le_bytes()[..], &[7; 2000]].concat());
        match delay {
            Some(delay) => message.with_delay(delay),
            None => message,
        }
    };
    let messages = (from..from + count).map(message);
    let outcomes = broker.publish_batch(Batch::to(&Address::queue(queue), messages)).await.expect("taken");
    assert!(outcomes.all_confirmed(), "{:?}", outcomes.others());
}

/// Takes all that is ready off the queue.
async fn numbers(broker: &EmbeddedBroker, queue: &str) -> Vec<u32> {
    let options = ConsumeOptions::default().stop_when_empty();
    let mut consumer = broker.consume(queue, options).await.expect("consumes");
    let mut numbers = Vec::new();
    while let Some(delivery) = consumer.next().await {
        let delivery = delivery.expect("reads");
        let body = delivery.message.body();
        numbers.push(u32::from_le_bytes(body[..4].try_into().expect("a number")));
        assert!(delivery.ack());
    }
    numbers
}

#[tokio::test(start_paused = true)]
async fn delayed_messages_are_kept_in_the_log_alone_when_memory_is_full_and_come_in_their_order() {
    let broker = on(&ProcessDisk::new(&SimDisk::new())).await;
    broker.declare_queue(Queue::durable("later")).await.expect("declared");
    for batch in 0..50 {
        send(&broker, "later", batch * 20, 20, Some(HOUR)).await;
    }
    // One by one, too, and with another delay.
    for number in 0..100 {
        send(&broker, "later", 2000 + number, 1, Some(2 * HOUR)).await;
    }
    assert!(broker.memory_used() <= small().memory_bytes, "{} bytes of 2.2 MB", broker.memory_used());
    let came = numbers(&broker, "later").await;
    assert!(came.into_iter().eq((0..1000).chain(2000..2100)), "all of them, as they were due");
    assert_eq!(broker.memory_used(), 0, "every byte came home");
}

#[tokio::test(start_paused = true)]
async fn what_is_given_back_for_later_does_not_stay_in_memory() {
    let broker = on(&ProcessDisk::new(&SimDisk::new())).await;
    broker.declare_queue(Queue::durable("q")).await.expect("declared");
    let mut consumer = broker.consume("q", ConsumeOptions::default()).await.expect("consumes");
    for batch in 0..20 {
        send(&broker, "q", batch * 20, 20, None).await;
        let mut left = 20;
        while left > 0 {
            let chunk = consumer.next_chunk(left).await.expect("reads");
            left -= chunk.len();
            assert!(chunk.iter().all(|delivery| delivery.nack(&Nack::RequeueAfter(HOUR))));
        }
    }
    assert!(broker.memory_used() <= small().memory_bytes, "{} bytes of 800 KB", broker.memory_used());
}

#[tokio::test(start_paused = true)]
async fn messages_that_are_delayed_or_cannot_leave_do_not_hold_the_disk() {
    let disk = ProcessDisk::new(&SimDisk::new());
    let broker = on(&disk).await;
    broker.declare_queue(Queue::durable("later")).await.expect("declared");
    broker.declare_queue(Queue::durable("full").max_items(1)).await.expect("declared");
    broker.declare_queue(Queue::durable("dying").dead_letter("", "full")).await.expect("declared");
    broker.declare_queue(Queue::durable("busy")).await.expect("declared");
    send(&broker, "full", 99, 1, None).await;
    send(&broker, "later", 0, 5, Some(HOUR)).await;
    send(&broker, "dying", 10, 3, None).await;
    let mut consumer = broker.consume("dying", ConsumeOptions::default()).await.expect("consumes");
    for delivery in consumer.next_chunk(3).await.expect("reads") {
        assert!(delivery.nack(&Nack::dead_letter("no")));
    }
    rush(&broker).await;
    let bytes = broker.log_stats().expect("a log").disk_bytes;
    assert!(bytes <= 9 * small().segment_bytes, "{bytes} bytes of disk for nine messages, after 8 MB");
    drop((consumer, broker));
    let broker = on(&disk).await;
    assert_eq!(broker.stats("later").await.expect("stats").delayed, 5, "they are due when they were");
    tokio::time::sleep(HOUR).await;
    assert_eq!(
        numbers(&broker, "later").await,
        [0, 1, 2, 3, 4],
        "they were copied forward whole and in order"
    );
    let dying = broker.stats("dying").await.expect("stats");
    assert_eq!(dying.total(), 3, "{dying:?}");
}

/// Appends 8 MB of log and more, all of it acked, so that what is older must be copied forward or holds the disk.
async fn rush(broker: &EmbeddedBroker) {
    for _ in 0..400 {
        send(broker, "busy", 0, 10, None).await;
        broker.purge("busy").await.expect("purges");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
}

/// Flips a bit in the body of each of these messages.
fn damage(disk: &SimDisk, numbers: &[u32]) {
    for (path, _) in disk.files().iter().filter(|(path, _)| path.extension().is_some_and(|e| e == "log")) {
        disk.tamper(path, |bytes| {
            for number in numbers {
                let begin = [&number.to_le_bytes()[..], &[7; 8]].concat();
                if let Some(at) = bytes.windows(12).position(|window| window == begin) {
                    bytes[at + 1000] ^= 1;
                }
            }
        });
    }
}

/// The first one once left 255 runs of one message at the queue's front, and the second was not looked for behind them,
/// for ever.
#[tokio::test(start_paused = true)]
async fn damaged_messages_far_apart_neither_stop_the_upkeep_nor_hold_the_disk() {
    for delay in [None, Some(HOUR)] {
        let disk = SimDisk::new();
        let broker = on(&ProcessDisk::new(&disk)).await;
        broker.declare_queue(Queue::durable("slow")).await.expect("declared");
        broker.declare_queue(Queue::durable("busy")).await.expect("declared");
        for batch in 0..30 {
            send(&broker, "slow", 1000 + batch * 20, 20, delay).await;
        }
        broker.close().await.expect("closes");
        drop(broker);
        damage(&disk, &[1010, 1500]);
        let broker = on(&ProcessDisk::new(&disk)).await;
        rush(&broker).await;
        assert_eq!(broker.damaged_messages(), 2);
        let bytes = broker.log_stats().expect("a log").disk_bytes;
        // Of 600 live messages of 2 KB, and four times as much before any is copied.
        assert!(bytes <= 7 << 20, "{bytes} bytes of disk, after 10 MB");
        tokio::time::sleep(delay.unwrap_or_default()).await;
        let intact = (1000..1600).filter(|number| ![1010, 1500].contains(number));
        assert!(numbers(&broker, "slow").await.into_iter().eq(intact), "all the others, in order");
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_may_be_larger_than_a_message_by_what_it_died_of() {
    let broker = on(&ProcessDisk::new(&SimDisk::new())).await;
    broker.declare_queue(Queue::durable("dead")).await.expect("declared");
    broker.declare_queue(Queue::durable("q").dead_letter("", "dead")).await.expect("declared");
    let whole = Message::new(vec![1; (16 << 10) - 8]);
    assert!(broker.publish(&Address::queue("q"), whole).await.expect("answers").is_confirmed());
    let mut consumer = broker.consume("q", ConsumeOptions::default()).await.expect("consumes");
    assert!(consumer.next().await.expect("comes").expect("reads").nack(&Nack::dead_letter("a long reason")));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(broker.stats("dead").await.expect("stats").ready, 1);
    assert_eq!(broker.stats("q").await.expect("stats").total(), 0);
}
