//! Several consumers of one name, of which one at a time is given messages. RabbitMQ has them from 3.11 on: with an older
//! one these tests look at the refusal and its remedy, say what they leave out, and fail in `cargo xtask soak`. What they rest on
//! is tested without a broker, beside the consumer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use millstream_message::{BrokerErrorKind, Message, StreamFrom};
use millstream_rabbitmq::stream::{
    ConsumerOptions, Partitions, ProducerOptions, Routing, StreamClient, StreamConsumer, SuperConsumer,
};
use millstream_testing::left_out;
use tokio::time::timeout;

use crate::support::{TURN, around, client, number, numbers, proxy, stream, url};

const LONG: Duration = Duration::from_secs(60);

fn group() -> ConsumerOptions {
    ConsumerOptions::default().name("group").single_active().store_every(10)
}

/// Whether the broker has what came with this version.
async fn has(client: &StreamClient, major: u32, minor: u32) -> bool {
    let version = client.server_version().await.expect("asked");
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().expect("a number"));
    (numbers.next(), numbers.next()) >= (Some(major), Some(minor))
}

/// What a broker without single active consumers answers.
async fn refuses_groups(client: &StreamClient, stream: &str) {
    let error = client.consumer(stream, StreamFrom::First, group()).await.expect_err("3.10 has none");
    assert_eq!(error.kind(), BrokerErrorKind::Unsupported);
    assert!(error.to_string().contains("3.11"), "{error}");
}

/// What a broker answers that makes no super streams by the protocol.
async fn refuses_super_streams(client: &StreamClient, partitions: &Partitions, remedy: &str) {
    let error = client.create_super_stream("regions", partitions, &[]).await.expect_err("before 3.13");
    assert_eq!(error.kind(), BrokerErrorKind::Unsupported);
    assert!(error.to_string().contains(remedy), "{error}");
}

async fn join(client: &StreamClient, stream: &str) -> StreamConsumer {
    client.consumer(stream, StreamFrom::First, group()).await.expect("subscribed")
}

async fn take(consumer: &mut StreamConsumer, count: usize) -> Vec<u64> {
    let mut taken = Vec::new();
    while taken.len() < count {
        let chunk = timeout(LONG, consumer.next_chunk(count - taken.len())).await.expect("in time");
        taken.extend(chunk.expect("read").iter().map(number));
    }
    taken
}

#[tokio::test]
async fn a_single_active_consumer_is_refused_where_the_broker_has_none() {
    let _turn = TURN.read().await;
    let client = client(&url("").await).await;
    let stream = stream(&client, "single").await;
    if !has(&client, 3, 11).await {
        refuses_groups(&client, &stream).await;
    }
    for nameless in [ConsumerOptions::default().single_active(), ConsumerOptions::default().store_every(5)] {
        let error = client.consumer(&stream, StreamFrom::First, nameless).await.expect_err("no name");
        assert_eq!(error.kind(), BrokerErrorKind::Invalid);
    }
}

#[tokio::test]
async fn when_the_active_consumer_dies_the_next_goes_on_from_the_stored_offset() {
    let _turn = TURN.read().await;
    let proxy = proxy().await;
    let (first, second) = (client(&around(&proxy, "")).await, client(&url("").await).await);
    let stream = stream(&second, "next-active").await;
    if !has(&second, 3, 11).await {
        refuses_groups(&second, &stream).await;
        return left_out("when the active consumer dies the next goes on", "3.11");
    }
    let producer = second.producer(&stream, ProducerOptions::default()).await.expect("a producer");
    assert!(producer.send(&numbers(0..100)).await.expect("sent").await.all_confirmed());
    let mut one = join(&first, &stream).await;
    let taken = [take(&mut one, 20).await, take(&mut one, 20).await, take(&mut one, 20).await].concat();
    assert_eq!(taken, (0..60).collect::<Vec<_>>());
    assert!(one.is_active());
    let (mut two, mut three) = (join(&second, &stream).await, join(&second, &stream).await);
    assert!(!two.is_active() && !three.is_active(), "one is active, and it is the first");
    let early = timeout(Duration::from_millis(300), two.next_chunk(1)).await;
    assert!(early.is_err(), "it is given nothing");

    // What it has in hand was not done: it comes again.
    let kept = second.stored_offset(&stream, "group").await.expect("asked");
    let kept = kept.expect("it is stored every ten");
    assert!((31..60).contains(&kept), "{kept} of 60");
    proxy.refuse(true);
    proxy.cut();
    assert_eq!(take(&mut two, 100 - kept as usize).await, (kept..100).collect::<Vec<_>>());
    assert!(two.is_active() && !three.is_active());
    // An orderly end loses nothing and repeats nothing.
    two.close().await.expect("closed");
    assert!(producer.send(&numbers(100..120)).await.expect("sent").await.all_confirmed());
    assert_eq!(take(&mut three, 20).await, (100..120).collect::<Vec<_>>());
    // The first one comes back as the last in the row, and what it had is void.
    proxy.refuse(false);
    let back = timeout(Duration::from_secs(2), one.next_chunk(1)).await;
    assert!(back.is_err(), "it is not the active one: {back:?}");
    three.close().await.expect("closed");
    assert!(producer.send(&numbers(120..130)).await.expect("sent").await.all_confirmed());
    assert_eq!(take(&mut one, 10).await, (120..130).collect::<Vec<_>>());
}

/// What was processed, in order: kept outside those who process.
type Account = Arc<Mutex<Vec<(usize, u64)>>>;

fn lock(account: &Account) -> std::sync::MutexGuard<'_, Vec<(usize, u64)>> {
    account.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Processes what comes until it is told to stop.
async fn process(mut consumer: SuperConsumer, account: Account, stop: Arc<tokio::sync::Notify>) {
    loop {
        let chunk = tokio::select! {
            chunk = consumer.next_chunk(7) => chunk.expect("read"),
            () = stop.notified() => break,
        };
        for item in &chunk.1 {
            lock(&account).push((chunk.0, number(item)));
            tokio::task::yield_now().await;
        }
    }
    consumer.close().await.expect("closed");
}

async fn accounted(account: &Account, total: u64) {
    let missing = || {
        let seen: BTreeSet<u64> = lock(account).iter().map(|(_, number)| *number).collect();
        (0..total).filter(|number| !seen.contains(number)).collect::<Vec<_>>()
    };
    let all = async {
        while !missing().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(timeout(LONG, all).await.is_ok(), "{:?} are missing", missing());
}

#[tokio::test]
async fn a_super_stream_is_shared_and_order_by_key_outlives_members_that_come_and_go() {
    const KEYS: u64 = 30;
    let _turn = TURN.read().await;
    let proxy = proxy().await;
    let (through, direct) = (client(&around(&proxy, "")).await, client(&url("").await).await);
    if !has(&direct, 3, 13).await {
        refuses_super_streams(&direct, &Partitions::Count(3), "add_super_stream regions --partitions 3")
            .await;
        return left_out("order by key outlives members that come and go", "3.13");
    }
    direct.delete_super_stream("shared").await.expect("deleted");
    direct.create_super_stream("shared", &Partitions::Count(3), &[]).await.expect("made");
    let producer =
        direct.super_producer("shared", Routing::Hash, ProducerOptions::default()).await.expect("made");
    let publish = async |range: std::ops::Range<u64>| {
        for batch in (range.start..range.end).step_by(50) {
            let messages: Vec<_> = (batch..batch + 50)
                .map(|number| (format!("key-{}", number % KEYS), Message::new(number.to_string())))
                .collect();
            assert!(producer.send(&messages).await.expect("sent").await.all_confirmed());
        }
    };
    let account = Account::default();
    let member = async |client: &StreamClient| {
        let consumer = client.super_consumer("shared", StreamFrom::First, group()).await.expect("subscribed");
        let stop = Arc::new(tokio::sync::Notify::new());
        (tokio::spawn(process(consumer, account.clone(), stop.clone())), stop)
    };

    // Members that come, and one that goes in good order: each message is processed once.
    let (one, stop_one) = member(&direct).await;
    publish(0..1000).await;
    let (two, _) = member(&through).await;
    publish(1000..2000).await;
    let (three, stop_three) = member(&direct).await;
    publish(2000..3000).await;
    accounted(&account, 3000).await;
    stop_one.notify_one();
    one.await.expect("it ends");
    publish(3000..4000).await;
    accounted(&account, 4000).await;
    assert_eq!(lock(&account).len(), 4000, "nothing came twice");

    // One that is gone without a word, in the midst of it.
    let dying = async {
        while lock(&account).len() < 4200 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        proxy.refuse(true);
        two.abort();
        proxy.cut();
    };
    tokio::join!(publish(4000..6000), dying);
    accounted(&account, 6000).await;
    stop_three.notify_one();
    three.await.expect("it ends");

    // Once each has been seen for the first time, what came before it of its key was seen before.
    let mut last = BTreeMap::new();
    let mut again = 0;
    for (_, number) in lock(&account).iter() {
        let last = last.entry(number % KEYS).or_insert(None);
        match *last {
            Some(before) if *number <= before => again += 1,
            _ => {
                assert_eq!(
                    *number,
                    last.map_or(number % KEYS, |before| before + KEYS),
                    "key {}",
                    number % KEYS
                );
                *last = Some(*number);
            }
        }
    }
    // What was in hand, what was not stored, and what had been said and was still on its way: a part of what the dead
    // one had done, and far from all of it.
    assert!(again < 600, "{again} came twice");
    eprintln!("{again} of 6000 came twice");
    direct.delete_super_stream("shared").await.expect("deleted");
}

#[tokio::test]
async fn super_streams_are_made_by_the_protocol_where_the_broker_can() {
    let _turn = TURN.read().await;
    let client = client(&url("").await).await;
    let by_key = Partitions::Keys(vec!["amer".to_owned(), "emea".to_owned()]);
    if !has(&client, 3, 13).await {
        let remedy = "add_super_stream regions --routing-keys amer,emea";
        refuses_super_streams(&client, &by_key, remedy).await;
        return left_out("super streams are made by the protocol", "3.13");
    }
    client.delete_super_stream("regions").await.expect("deleted");
    for _ in 0..2 {
        client.create_super_stream("regions", &by_key, &[("max-age", "1h")]).await.expect("made");
    }
    assert_eq!(client.partitions("regions").await.expect("asked"), ["regions-amer", "regions-emea"]);
    let producer =
        client.super_producer("regions", Routing::Key, ProducerOptions::default()).await.expect("made");
    let sent = producer.send(&[("emea", Message::new("1"))]).await.expect("sent").await;
    assert!(sent.all_confirmed());
    assert_eq!(client.stats("regions-emea").await.expect("asked").next, 1);
    let other = client.create_super_stream("regions", &Partitions::Count(2), &[]).await.expect_err("differs");
    assert_eq!(other.kind(), BrokerErrorKind::Mismatch);
    let none =
        client.create_super_stream("none", &Partitions::Count(0), &[]).await.expect_err("no partitions");
    assert_eq!(none.kind(), BrokerErrorKind::Invalid);
    client.delete_super_stream("regions").await.expect("deleted");
    client.delete_super_stream("regions").await.expect("deleted twice");
    assert_eq!(client.partitions("regions").await.expect_err("gone").kind(), BrokerErrorKind::NotFound);
}
