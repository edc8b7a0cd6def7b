//! What the embedded broker promises beyond the conformance suite: settings, memory, disk, faults.

mod support;

use std::path::Path;
use std::time::Duration;

use millstream_embedded::log::{Disk, Fault, SimDisk};
use millstream_embedded::{EmbeddedBroker, Settings, open, verify};
use millstream_message::{
    Address, Batch, Binding, Broker, BrokerErrorKind, ConsumeOptions, Exchange, ExchangeKind, Message, Nack,
    Overflow, PublishOutcome, Queue, Refusal, StreamFrom, StreamSpec, stream_extent,
};
use support::{ProcessDisk, on, small};

async fn send(broker: &EmbeddedBroker, queue: &str, count: u32, len: usize) {
    let messages = (0..count).map(|i| Message::new([&i.to_le_bytes()[..], &vec![7; len]].concat()));
    let outcomes = broker.publish_batch(Batch::to(&Address::queue(queue), messages)).await.expect("taken");
    assert!(outcomes.all_confirmed(), "{:?}", outcomes.others());
}

#[tokio::test]
async fn a_directory_is_opened_by_one_at_a_time_and_the_error_names_the_holder() {
    let directory = tempfile::tempdir().expect("a directory");
    let first = EmbeddedBroker::open(directory.path(), Settings::default()).await.expect("opens");
    let error = EmbeddedBroker::open(directory.path(), Settings::default()).await.err().expect("it is taken");
    assert_eq!(error.kind(), BrokerErrorKind::InUse);
    assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
    drop(first);
    let again = EmbeddedBroker::open(directory.path(), Settings::default()).await.expect("it is free again");
    again.close().await.expect("closes");
    again.close().await.expect("twice is fine");
    assert_eq!(again.queues().await.expect_err("closed").kind(), BrokerErrorKind::Unavailable);
}

#[tokio::test]
async fn a_directory_is_free_after_dropping_the_broker_though_an_acker_lives_on() {
    let directory = tempfile::tempdir().expect("a directory");
    let broker = EmbeddedBroker::open(directory.path(), Settings::default()).await.expect("opens");
    broker.declare_queue(Queue::durable("q")).await.expect("declared");
    send(&broker, "q", 3, 10).await;
    let mut consumer = broker.consume("q", ConsumeOptions::default()).await.expect("consumes");
    let chunk = consumer.next_chunk(1).await.expect("reads");
    drop(broker);
    let again = EmbeddedBroker::open(directory.path(), Settings::default()).await.expect("it is free");
    assert_eq!(again.stats("q").await.expect("stats").ready, 3);
    assert!(consumer.next_chunk(1).await.expect("ends").is_empty());
    drop((chunk, consumer));
}

/// A body that tells when nobody has it any more.
struct Body(#[expect(dead_code, reason = "its count is what is looked at")] std::sync::Arc<()>);

impl AsRef<[u8]> for Body {
    fn as_ref(&self) -> &[u8] {
        &[7; 1000]
    }
}

#[tokio::test]
async fn what_was_submitted_to_a_broker_that_is_dropped_is_told_of_and_kept_by_nobody() {
    let directory = tempfile::tempdir().expect("a directory");
    let broker = EmbeddedBroker::open(directory.path(), Settings::default()).await.expect("opens");
    broker.declare_queue(Queue::durable("q")).await.expect("declared");
    let kept = std::sync::Arc::new(());
    let mut confirms = Vec::new();
    for _ in 0..200 {
        let message = Message::new(bytes::Bytes::from_owner(Body(kept.clone())));
        let batch = Batch::to(&Address::queue("q"), [message]);
        confirms.push(broker.submit(batch).await.expect("taken"));
    }
    drop(broker);
    let mut confirmed = 0;
    for confirm in confirms {
        let told = tokio::time::timeout(Duration::from_secs(30), confirm).await.expect("it is told");
        confirmed += u64::from(told.all_confirmed());
    }
    for _ in 0..100 {
        tokio::task::yield_now().await; // the broker's tasks end
    }
    assert_eq!(std::sync::Arc::strong_count(&kept), 1, "a message is kept");
    let again = EmbeddedBroker::open(directory.path(), Settings::default()).await.expect("opens again");
    assert!(again.stats("q").await.expect("stats").ready >= confirmed);
}

#[tokio::test]
async fn settings_that_contradict_each_other_are_refused_with_their_numbers() {
    let settings = Settings { memory_bytes: 10, message_bytes_max: 20, ..Settings::default() };
    let text = EmbeddedBroker::memory(settings).err().expect("refused").to_string();
    assert!(text.contains("10") && text.contains("20"), "{text}");
    let directory = tempfile::tempdir().expect("a directory");
    let settings = Settings { segment_bytes: 1 << 20, ..Settings::default() };
    let error = EmbeddedBroker::open(directory.path(), settings).await.err().expect("refused");
    assert!(error.to_string().contains("message_bytes_max"), "{error}");
    let amqp = "amqp://host".parse().expect("parses");
    assert_eq!(open(&amqp).await.err().expect("not here").kind(), BrokerErrorKind::Unsupported);
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

#[tokio::test(start_paused = true)]
async fn a_stream_forgets_what_is_older_than_its_age_and_nothing_younger() {
    let on_disk = on(&ProcessDisk::new(&SimDisk::new())).await;
    let in_memory = EmbeddedBroker::memory(Settings::memory()).expect("opens");
    for (broker, by_segments) in [(&in_memory, false), (&on_disk, true)] {
        let hour = StreamSpec::new("s").max_age(Duration::from_secs(3600));
        broker.declare_stream(hour).await.expect("declared");
        let append = async |count: usize| {
            for _ in 0..count {
                broker.append("s", vec![Message::new(vec![7; 4096])]).await.expect("appended");
            }
        };
        // 1.6 MB, hence several segments of 256 KiB.
        append(400).await;
        tokio::time::sleep(Duration::from_secs(1800)).await;
        append(400).await;
        assert_eq!(broker.stream_stats("s").await.expect("stats").first, 0, "nothing is an hour old");
        tokio::time::sleep(Duration::from_secs(1860)).await;
        append(1).await;
        let stats = broker.stream_stats("s").await.expect("stats");
        assert_eq!(stats.next, 801);
        if by_segments {
            assert!((200..=400).contains(&stats.first), "whole segments, and no younger message: {stats:?}");
        } else {
            assert_eq!(stats.first, 400);
        }
        let mut reader = broker.read("s", StreamFrom::First).await.expect("reads");
        let first = reader.next_chunk(1).await.expect("reads");
        assert_eq!(first[0].offset, stats.first);
    }
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

/// Readers pass over what is damaged in a stream, and somebody must hear of it: it counts once, whoever reads and how often.
#[tokio::test(start_paused = true)]
async fn damage_in_a_stream_is_counted_by_place_and_told_and_the_rest_is_read() {
    for closes in [true, false] {
        let sim = SimDisk::new();
        let broker = on(&ProcessDisk::new(&sim)).await;
        for name in ["s", "sound"] {
            broker.declare_stream(StreamSpec::new(name)).await.expect("declared");
            for body in 1..=6u8 {
                broker.append(name, vec![Message::new(vec![body; 4000])]).await.expect("appended");
            }
        }
        if closes {
            // A checkpoint covers the records: the next opening does not read them.
            broker.close().await.expect("closes");
        }
        drop(broker);
        let (segment, _) = sim
            .files()
            .into_iter()
            .filter(|(path, _)| path.extension().is_some_and(|e| e == "log"))
            .find(|(path, _)| path.to_string_lossy().contains("streams"))
            .expect("the first stream's");
        let flip = |bytes: &mut Vec<u8>| {
            for body in [2, 5] {
                let at = bytes.windows(9).position(|window| window == [body; 9]).expect("the body");
                bytes[at + 1000] ^= 1;
            }
        };
        sim.tamper(&segment, flip).expect("the segment is there");
        let broker = on(&ProcessDisk::new(&sim)).await;
        for _ in 0..3 {
            let held = stream_extent(&broker, "s", StreamFrom::First).await.expect("known");
            let mut reader = broker.read("s", StreamFrom::First).await.expect("readable").until(held);
            let mut got = Vec::new();
            loop {
                let chunk = reader.next_chunk(100).await.expect("reads");
                if chunk.is_empty() {
                    break;
                }
                got.extend(chunk.iter().map(|item| (item.offset, item.message.body()[0])));
            }
            assert_eq!(got, [(0, 1), (2, 3), (3, 4), (5, 6)], "closed: {closes}");
        }
        assert_eq!(broker.damaged_streams(), [("s".to_owned(), 2)].into(), "closed: {closes}");
        let told = broker.damage();
        assert!(
            matches!(&told[..], [one] if one.contains("the stream `s` of ") && one.contains("damaged in 2 places")),
            "{told:?}"
        );
    }
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

/// An append that the disk refuses has taken its offsets: whoever reads everything there is must not wait for them.
#[tokio::test(start_paused = true)]
async fn a_stream_is_drained_though_its_last_append_was_refused() {
    let sim = SimDisk::new();
    let broker = on(&ProcessDisk::new(&sim)).await;
    broker.declare_stream(StreamSpec::new("s")).await.expect("declared");
    let messages = |count: usize| (0..count).map(|_| Message::new(vec![7; 4000])).collect::<Vec<_>>();
    broker.append("s", messages(3)).await.expect("appended");
    sim.set_capacity(sim.used_bytes());
    let mut taken = 0;
    // What was reserved before is still there.
    while broker.append("s", messages(1)).await.is_ok() {
        taken += 1;
        assert!(taken < 1000, "the disk is full at last");
    }
    let drained = async |broker: &EmbeddedBroker| {
        let held = stream_extent(broker, "s", StreamFrom::First).await.expect("known");
        let mut reader = broker.read("s", StreamFrom::First).await.expect("readable").until(held.clone());
        let mut count = 0;
        loop {
            let chunk = tokio::time::timeout(Duration::from_secs(60), reader.next_chunk(100)).await;
            match chunk.expect("it ends").expect("reads").len() {
                0 => break (count, held.end),
                some => count += some as u64,
            }
        }
    };
    let (count, end) = drained(&broker).await;
    assert!((3..end).contains(&count), "{count} of {end}");
    // The next life of the broker knows of the offsets, too.
    sim.set_capacity(u64::MAX);
    let _ = broker.close().await;
    drop(broker);
    let broker = on(&ProcessDisk::new(&sim)).await;
    assert_eq!(drained(&broker).await.0, count);
    broker.append("s", messages(2)).await.expect("appended");
    assert_eq!(drained(&broker).await.0, count + 2);
}

/// What is appended may become durable between a reader's look at the log and its look at how far that is durable: whoever waits
/// then waits for an append that has been.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_reader_that_waits_at_the_end_of_a_stream_hears_of_every_append() {
    let appends = if std::env::var_os("MILLSTREAM_SOAK").is_some() { 50_000 } else { 8000 };
    let directory = tempfile::tempdir().expect("a directory");
    let url = format!("embedded:{}", directory.path().display()).parse().expect("a URL");
    let broker = open(&url).await.expect("opened");
    broker.declare_stream(StreamSpec::new("s")).await.expect("declared");
    let (heard, mut each) = tokio::sync::mpsc::channel(8);
    let readers: Vec<_> = (0..3)
        .map(|_| {
            let (broker, heard) = (broker.clone(), heard.clone());
            tokio::spawn(async move {
                let mut reader = broker.read("s", StreamFrom::First).await.expect("read");
                loop {
                    for item in reader.next_chunk(8).await.expect("a chunk") {
                        if heard.send(item.offset).await.is_err() {
                            return;
                        }
                    }
                }
            })
        })
        .collect();
    for offset in 0..appends {
        assert_eq!(broker.append("s", vec![Message::new("x")]).await.expect("stored"), offset);
        for _ in 0..3 {
            let next = tokio::time::timeout(Duration::from_secs(60), each.recv()).await;
            assert_eq!(next.unwrap_or_else(|_| panic!("append {offset} is not heard of")), Some(offset));
        }
    }
    drop(each);
    readers.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn a_reader_that_begins_while_the_first_append_is_under_way_reads_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let url = format!("embedded:{}", directory.path().display()).parse().expect("a URL");
    let broker = open(&url).await.expect("opened");
    broker.declare_stream(StreamSpec::new("s")).await.expect("declared");
    let mut append = broker.append("s", vec![Message::new("x")]);
    let polled = std::future::poll_fn(|cx| std::task::Poll::Ready(append.as_mut().poll(cx))).await;
    assert!(polled.is_pending(), "it is accepted, and not on the disk");
    let mut reader = broker.read("s", StreamFrom::First).await.expect("read");
    append.await.expect("stored");
    let chunk = tokio::time::timeout(Duration::from_secs(60), reader.next_chunk(8)).await;
    assert_eq!(chunk.expect("it comes").expect("a chunk")[0].offset, 0);
}
