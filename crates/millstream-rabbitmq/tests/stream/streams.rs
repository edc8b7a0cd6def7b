//! What streams can do.

use std::time::{Duration, SystemTime};

use millstream_message::{
    Broker, BrokerErrorKind, Exchange, ExchangeKind, Headers, Message, PublishOutcome, Queue, Refusal,
    StreamFrom, StreamSpec, Value,
};
use millstream_rabbitmq::stream::{
    ConsumerOptions, ProducerOptions, Routing, StreamBroker, StreamClient, StreamSettings,
};

use crate::support::{TURN, all, client, node, number, numbers, open, says, stream, take, url};

#[tokio::test]
async fn a_batch_is_confirmed_and_read_back_as_it_was() {
    let _turn = TURN.read().await;
    let client = client(&url("").await).await;
    let stream = stream(&client, "whole").await;
    let nested =
        Value::Map(Headers::from([("list".to_owned(), Value::List(vec![1_i64.into(), Value::Null]))]));
    let full = Message::new(vec![1; 5000])
        .with_header("text", "täxt")
        .with_header("int", -5_i64)
        .with_header("float", 1.5)
        .with_header("bool", true)
        .with_header("nested", nested)
        .with_header("bytes", bytes::Bytes::from_static(b"\0\xff"))
        .with_content_type("application/json")
        .with_content_encoding("gzip")
        .with_message_id("id")
        .with_correlation_id("correlation")
        .with_reply_to("queue")
        .with_timestamp(SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123))
        .with_ttl(Duration::from_secs(10_000_000))
        .with_delay(Duration::from_millis(5))
        .with_priority(200)
        .transient();
    let messages =
        [Message::new("plain"), full, Message::new(""), Message::new("x").with_ttl(Duration::from_secs(1))];
    let producer = client.producer(&stream, ProducerOptions::default()).await.expect("a producer");
    assert!(producer.send(&messages).await.expect("sent").await.all_confirmed());
    assert!(producer.send(&[]).await.expect("sent").await.is_empty());
    let entries =
        client.producer(&stream, ProducerOptions::default().entry_messages(3)).await.expect("a producer");
    assert!(entries.send(&messages).await.expect("sent").await.all_confirmed());
    let read = all(&client, &stream).await;
    let bodies: Vec<_> = read.iter().map(|item| item.message.clone()).collect();
    assert_eq!(bodies, [&messages[..], &messages[..]].concat());
    let offsets: Vec<_> = read.iter().map(|item| item.offset).collect();
    assert_eq!(offsets, (0..8).collect::<Vec<_>>());
    #[expect(clippy::disallowed_methods, reason = "the broker's clock is compared with this one")]
    let age = SystemTime::now().duration_since(read[0].time).expect("in the past");
    assert!(age < Duration::from_secs(60), "{age:?}");
    let mut middle = open(&client, &stream, StreamFrom::Offset(6)).await;
    assert_eq!(take(&mut middle, 1).await[0].offset, 6);
}

#[tokio::test]
async fn statistics_count_what_happened() {
    let _turn = TURN.read().await;
    let client = client(&url("").await).await;
    let stream = stream(&client, "counted").await;
    let begun = client.statistics();
    assert_eq!((begun.connections, begun.connects, begun.published, begun.consumers), (1, 1, 0, 0));
    let producer = client.producer(&stream, ProducerOptions::default()).await.expect("a producer");
    let messages: Vec<_> = (0..50).map(|_| Message::new(vec![0; 1000])).collect();
    assert!(producer.send(&messages).await.expect("sent").await.all_confirmed());
    let large = [Message::new(vec![0; 2 << 20])];
    assert!(!producer.send(&large).await.expect("taken").await.all_confirmed(), "larger than a frame");
    let mut reader = open(&client, &stream, StreamFrom::First).await;
    take(&mut reader, 50).await;
    let now = client.statistics();
    assert_eq!((now.published, now.settled, now.in_flight, now.consumers), (51, 51, 0, 1));
    assert_eq!((now.connections, now.connects, now.failed_connects), (3, 3, 0));
    assert!(now.bytes_out > 50_000 && now.bytes_in > 50_000, "{now:?}");
    assert!((1..60).contains(&now.writes), "what is sent together is written together: {now:?}");
    let latency = &now.confirm_latency;
    assert!(
        latency.count() == 1 && !latency.sum.is_zero(),
        "nothing of the other was to be confirmed: {now:?}"
    );
    drop((producer, reader));
    client.close().await;
    let end = client.statistics();
    assert_eq!((end.connections, end.consumers, end.connects), (0, 0, 3));
}

#[tokio::test]
async fn what_was_given_up_is_settled_and_its_time_does_not_count() {
    let _turn = TURN.read().await;
    let proxy = crate::support::proxy().await;
    let client = client(&crate::support::around(&proxy, "patience=1")).await;
    let stream = stream(&client, "given-up").await;
    let producer = client.producer(&stream, ProducerOptions::default()).await.expect("a producer");
    proxy.freeze(true);
    let confirm = producer.send(&[Message::new("x")]).await.expect("taken");
    proxy.refuse(true);
    proxy.cut();
    let outcomes = confirm.await;
    assert!(matches!(outcomes.get(0), PublishOutcome::Unconfirmed(_)), "{outcomes:?}");
    let now = client.statistics();
    assert_eq!((now.published, now.settled, now.in_flight, now.confirm_latency.count()), (1, 1, 0, 0));
    assert!(now.failed_connects > 0 && now.connections == 0, "{now:?}");
}

#[tokio::test]
async fn a_message_that_is_too_large_is_refused_and_the_others_are_not() {
    let _turn = TURN.read().await;
    let client = client(&url("frame_max=100000").await).await;
    let stream = stream(&client, "large").await;
    let producer = client.producer(&stream, ProducerOptions::default()).await.expect("a producer");
    let mut messages = vec![Message::new(vec![0; 40_000]); 7];
    messages[3] = Message::new(vec![0; 100_000]);
    let outcomes = producer.send(&messages).await.expect("sent").await;
    assert_eq!((outcomes.len(), outcomes.confirmed_count()), (7, 6));
    let refused = matches!(outcomes.get(3), PublishOutcome::Refused(Refusal::TooLarge { .. }));
    assert!(refused, "{:?}", outcomes.get(3));
    assert_eq!(all(&client, &stream).await.len(), 6);
}

#[tokio::test]
async fn a_named_producer_goes_on_where_its_predecessor_was() {
    let _turn = TURN.read().await;
    let client = client(&url("").await).await;
    let stream = stream(&client, "dedup").await;
    let options = || ProducerOptions::default().name("importer");
    let lines = |range: std::ops::RangeInclusive<u64>| -> Vec<(u64, Message)> {
        range.map(|line| (10 * line, Message::new(line.to_string()))).collect()
    };
    let first = client.producer(&stream, options()).await.expect("a producer");
    assert_eq!(first.last_id(), 0);
    assert!(first.send_with_ids(&lines(1..=50)).await.expect("sent").await.all_confirmed());
    let low = first.send_with_ids(&lines(50..=50)).await.expect_err("not above");
    assert_eq!(low.kind(), BrokerErrorKind::Invalid);
    first.close().await;
    // A second run of the same import: it is told how far the first came.
    let second = client.producer(&stream, options()).await.expect("a producer");
    assert_eq!(second.last_id(), 500);
    assert!(second.send_with_ids(&lines(51..=60)).await.expect("sent").await.all_confirmed());
    second.close().await;
    let numbers: Vec<u64> = all(&client, &stream).await.iter().map(number).collect();
    assert_eq!(numbers, (1..=60).collect::<Vec<_>>());
}

#[tokio::test]
async fn offsets_are_kept_by_name_as_other_clients_keep_them() {
    let _turn = TURN.read().await;
    let client = client(&url("").await).await;
    let stream = stream(&client, "kept").await;
    let producer = client.producer(&stream, ProducerOptions::default()).await.expect("a producer");
    assert!(producer.send(&numbers(0..10)).await.expect("sent").await.all_confirmed());
    let options = || ConsumerOptions::default().name("reader").resume();
    let consumer = client.consumer(&stream, StreamFrom::First, options()).await.expect("subscribed");
    assert_eq!(consumer.stored_offset().await.expect("asked"), None);
    for next in [0, 4] {
        consumer.store_offset(next).await.expect("stored");
        assert_eq!(consumer.stored_offset().await.expect("asked"), Some(next));
    }
    let mut reader =
        client.consumer(&stream, StreamFrom::First, options()).await.expect("subscribed").into_reader();
    assert_eq!(number(&take(&mut reader, 1).await[0]), 4);
    let nameless =
        client.consumer(&stream, StreamFrom::First, ConsumerOptions::default()).await.expect("subscribed");
    assert_eq!(nameless.store_offset(1).await.expect_err("no name").kind(), BrokerErrorKind::Invalid);
    let missing = client.store_offset("missing", "reader", 1).await.expect_err("no stream");
    assert_eq!(missing.kind(), BrokerErrorKind::NotFound);
}

#[tokio::test]
async fn super_streams_are_written_by_key_and_read_as_one() {
    let _turn = TURN.read().await;
    let client = client(&url("").await).await;
    for parts in [["hashed", "--partitions", "3"], ["keyed", "--routing-keys", "amer,emea,apac"]] {
        let words = [&["add_super_stream"], &parts[..]].concat();
        node().await.tell("rabbitmq-streams", &words).await;
    }
    assert_eq!(client.partitions("hashed").await.expect("asked"), ["hashed-0", "hashed-1", "hashed-2"]);
    let missing = client.partitions("missing").await.expect_err("there is none");
    assert_eq!(missing.kind(), BrokerErrorKind::NotFound);

    let producer =
        client.super_producer("hashed", Routing::Hash, ProducerOptions::default()).await.expect("made");
    let keyed: Vec<_> = (0..300).map(|i| (format!("key-{}", i % 20), Message::new(i.to_string()))).collect();
    assert!(producer.send(&keyed).await.expect("sent").await.all_confirmed());
    let options = ConsumerOptions::default().name("reader");
    let mut consumer = client.super_consumer("hashed", StreamFrom::First, options).await.expect("subscribed");
    let mut by_key = vec![Vec::new(); 20];
    let mut places = vec![std::collections::BTreeSet::new(); 20];
    for _ in 0..300 {
        let (partition, items) = consumer.next_chunk(1).await.expect("read");
        let number = number(&items[0]);
        by_key[number as usize % 20].push(number);
        places[number as usize % 20].insert(partition);
    }
    for (key, numbers) in by_key.iter().enumerate() {
        assert_eq!(*numbers, (0..15).map(|i| i * 20 + key as u64).collect::<Vec<_>>());
        assert_eq!(places[key].len(), 1);
    }
    let used: std::collections::BTreeSet<_> = places.iter().flatten().collect();
    assert_eq!(used.len(), 3, "all partitions are used");

    let producer =
        client.super_producer("keyed", Routing::Key, ProducerOptions::default()).await.expect("made");
    let messages = [("emea", Message::new("1")), ("nowhere", Message::new("2")), ("apac", Message::new("3"))];
    let outcomes = producer.send(&messages).await.expect("sent").await;
    assert!(matches!(outcomes.get(1), PublishOutcome::Unroutable(_)), "{:?}", outcomes.get(1));
    assert_eq!(outcomes.confirmed_count(), 2);
    assert_eq!(number(&all(&client, "keyed-emea").await[0]), 1);
    assert_eq!(number(&all(&client, "keyed-apac").await[0]), 3);
}

#[tokio::test]
async fn appends_of_many_at_once_know_their_offsets() {
    let _turn = TURN.read().await;
    let broker = std::sync::Arc::new(StreamBroker::connect(&url("").await).await.expect("connects"));
    let stream = stream(broker.client(), "appends").await;
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..8_u64 {
        let (broker, stream) = (broker.clone(), stream.clone());
        tasks.spawn(async move {
            let mut known = Vec::new();
            for turn in 0..10 {
                let first = 1000 * writer + 10 * turn;
                let offset = broker.append(&stream, numbers(first..first + 10)).await.expect("appended");
                known.push((offset, first));
            }
            known
        });
    }
    let known: Vec<_> = tasks.join_all().await.into_iter().flatten().collect();
    let read = all(broker.client(), &stream).await;
    assert_eq!(read.len(), 800);
    for (offset, first) in known {
        let found = read.iter().find(|item| item.offset == offset).expect("it is there");
        assert_eq!(number(found), first);
        assert!(found.message.is_plain(), "the mark is not seen");
    }
    let empty = broker.append(&stream, Vec::new()).await.expect("nothing");
    assert_eq!(empty, 800);
}

#[tokio::test]
async fn what_goes_wrong_says_what_to_do() {
    let _turn = TURN.read().await;
    let port = node().await.stream_port;
    let complaint = async |url: String| {
        let error = StreamClient::connect(StreamSettings::parse(&url).expect("a URL")).await.expect_err(&url);
        (error.kind(), error.to_string())
    };
    let (kind, text) = complaint(format!("rabbitmq-stream://guest:wrong@127.0.0.1:{port}")).await;
    assert!(kind == BrokerErrorKind::Invalid && text.contains("the password"), "{text}");
    let (kind, text) = complaint(format!("rabbitmq-stream://127.0.0.1:{port}/nowhere")).await;
    assert!(kind == BrokerErrorKind::Invalid && text.contains("`nowhere`"), "{text}");
    let (kind, text) = complaint("rabbitmq-stream://127.0.0.1:1".to_owned()).await;
    assert!(kind == BrokerErrorKind::Unavailable && text.contains("rabbitmq_stream"), "{text}");
    let amqp = says(b"AMQP\0\0\x09\x01").await;
    let (_, text) = complaint(format!("rabbitmq-stream://{amqp}")).await;
    assert!(text.contains("5552"), "{text}");
    let silent = says(b"").await;
    let (_, text) = complaint(format!("rabbitmq-stream://{silent}")).await;
    assert!(text.contains("closed the connection"), "{text}");

    let broker = StreamBroker::connect(&url("").await).await.expect("connects");
    for error in [
        broker.client().producer("missing", ProducerOptions::default()).await.expect_err("missing"),
        broker.read("missing", StreamFrom::First).await.expect_err("missing"),
        broker.stream_stats("missing").await.expect_err("missing"),
        broker.append("missing", numbers(0..1)).await.expect_err("missing"),
        broker.store_offset("missing", "r", 1).await.expect_err("missing"),
        broker.stored_offset("missing", "r").await.expect_err("missing"),
    ] {
        assert_eq!(error.kind(), BrokerErrorKind::NotFound, "{error}");
        assert!(error.to_string().contains("`missing`"), "{error}");
    }
    let name = broker.declare_stream(StreamSpec::new("")).await.expect_err("no name");
    assert_eq!(name.kind(), BrokerErrorKind::Invalid);
    let aged = StreamSpec::new("aged").max_age(Duration::from_secs(3600));
    broker.declare_stream(aged.clone()).await.expect("declared");
    broker.declare_stream(aged).await.expect("declared again");
    let other = broker.declare_stream(StreamSpec::new("aged").max_age(Duration::from_secs(60))).await;
    let other = other.expect_err("differs");
    assert!(
        other.kind() == BrokerErrorKind::Mismatch && other.to_string().contains("max-age=60s"),
        "{other}"
    );
    for error in [
        broker.declare_queue(Queue::durable("q")).await.expect_err("no queues"),
        broker
            .declare_exchange(Exchange::durable("e", ExchangeKind::Fanout))
            .await
            .expect_err("no exchanges"),
    ] {
        assert!(
            error.kind() == BrokerErrorKind::Unsupported && error.to_string().contains("amqp://"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn another_host_is_tried_when_one_is_gone() {
    let _turn = TURN.read().await;
    let port = node().await.stream_port;
    let client = client(&format!("rabbitmq-stream://127.0.0.1:1,127.0.0.1:{port}")).await;
    let stream = stream(&client, "hosts").await;
    assert_eq!(client.stats(&stream).await.expect("asked").next, 0);
    let version = node().await.tell("rabbitmqctl", &["version"]).await;
    assert_eq!(client.server_version().await.expect("asked"), version.trim());
}

#[tokio::test]
async fn a_client_that_is_closed_says_so() {
    let _turn = TURN.read().await;
    let client = client(&url("").await).await;
    let stream = stream(&client, "closing").await;
    let mut reader = open(&client, &stream, StreamFrom::First).await;
    client.close().await;
    let error = client.stats(&stream).await.expect_err("closed");
    assert!(error.to_string().contains("closed"), "{error}");
    let end = tokio::time::timeout(Duration::from_secs(60), reader.next_chunk(1)).await.expect("ends");
    assert!(end.expect("an end").is_empty());
}

#[tokio::test]
async fn a_node_that_says_a_wrong_name_is_reached_by_the_url() {
    let _alone = TURN.write().await;
    let say = async |host: &'static str| {
        let set = format!("application:set_env(rabbitmq_stream, advertised_host, <<\"{host}\">>).");
        node().await.tell("rabbitmqctl", &["eval", &set]).await;
    };
    say("nowhere.invalid").await;
    let client = client(&url("").await).await;
    let stream = stream(&client, "nowhere").await;
    let producer = client.producer(&stream, ProducerOptions::default()).await.expect("a producer");
    assert!(producer.send(&numbers(0..3)).await.expect("sent").await.all_confirmed());
    assert_eq!(all(&client, &stream).await.len(), 3);
    say("127.0.0.1").await;
}
