//! How a broker is opened, by whom, and what becomes of what is under way when its handle is dropped.

use std::time::Duration;

use millstream_embedded::{EmbeddedBroker, Settings, open};
use millstream_message::{Address, Batch, Broker, BrokerErrorKind, ConsumeOptions, Message, Queue};

use crate::send;

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
