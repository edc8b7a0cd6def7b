//! Streams as queues, over the embedded broker.

use super::*;
use millstream_embedded::{EmbeddedBroker, Settings};
use millstream_message::{Delivery, Nack};

fn queues(streams: &Arc<EmbeddedBroker>) -> StreamedQueues {
    StreamedQueues::new(streams.clone())
}

async fn with(messages: &[&str]) -> (Arc<EmbeddedBroker>, StreamedQueues) {
    let streams = Arc::new(EmbeddedBroker::memory(Settings::memory()).expect("a broker"));
    let broker = queues(&streams);
    broker.declare_queue(Queue::durable("s")).await.expect("declared");
    publish(&broker, messages).await;
    (streams, broker)
}

async fn publish(broker: &StreamedQueues, messages: &[&str]) {
    let messages = messages.iter().map(|text| Message::new(text.to_string()));
    let outcomes = broker.publish_batch(Batch::to(&Address::queue("s"), messages)).await.expect("submitted");
    assert!(outcomes.all_confirmed(), "{outcomes:?}");
}

fn texts(deliveries: &[Delivery]) -> Vec<String> {
    deliveries.iter().map(|one| String::from_utf8_lossy(one.message.body()).into_owned()).collect()
}

fn group(name: &str) -> ConsumeOptions {
    ConsumeOptions::default().name(name).stop_when_empty()
}

#[tokio::test(start_paused = true)]
async fn a_consumer_goes_on_where_everything_before_was_settled() {
    let (streams, broker) = with(&["a", "b", "c", "d"]).await;
    let mut one = broker.consume("s", group("one")).await.expect("consumed");
    let taken = one.next_chunk(10).await.expect("a chunk");
    assert_eq!(texts(&taken), ["a", "b", "c", "d"]);
    assert!(taken[0].ack() && taken[2].ack(), "`b` is not settled, so `c` comes again");
    assert!(!taken[0].ack(), "a second time is stale");
    assert!(!taken[1].nack(&Nack::Requeue));
    assert_eq!(one.next_chunk(10).await.expect("the end").len(), 0);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(streams.stored_offset("s", "one").await.expect("an answer"), Some(1));
    let mut again = broker.consume("s", group("one")).await.expect("consumed");
    assert_eq!(texts(&again.next_chunk(10).await.expect("a chunk")), ["b", "c", "d"]);
}

#[tokio::test]
async fn what_was_settled_is_stored_when_the_broker_is_closed() {
    let directory = tempfile::tempdir().expect("a directory");
    let open = async || {
        Arc::new(EmbeddedBroker::open(directory.path(), Settings::default()).await.expect("it opens"))
    };
    let broker = queues(&open().await);
    broker.declare_queue(Queue::durable("s")).await.expect("declared");
    publish(&broker, &["a", "b"]).await;
    let mut one = broker.consume("s", group("one")).await.expect("consumed");
    one.next_chunk(1).await.expect("a chunk")[0].ack();
    drop(one);
    broker.close().await.expect("closed");
    let streams = open().await;
    assert_eq!(streams.stored_offset("s", "one").await.expect("an answer"), Some(1));
}

#[tokio::test(start_paused = true)]
async fn places_are_stored_by_the_way_and_belong_to_names() {
    let (streams, broker) = with(&["a", "b", "c"]).await;
    let mut one = broker.consume("s", group("one")).await.expect("consumed");
    let taken = one.next_chunk(2).await.expect("a chunk");
    one.acker().ack_many(taken.iter().map(|delivery| delivery.tag));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(streams.stored_offset("s", "one").await.expect("an answer"), Some(2));
    drop(one);

    let next = queues(&streams);
    let mut one = next.consume("s", group("one")).await.expect("consumed");
    assert_eq!(texts(&one.next_chunk(10).await.expect("a chunk")), ["c"]);
    let mut two = next.consume("s", group("two")).await.expect("consumed");
    assert_eq!(texts(&two.next_chunk(10).await.expect("a chunk")), ["a", "b", "c"]);
}

#[tokio::test(start_paused = true)]
async fn no_more_than_the_prefetch_is_in_hand() {
    let (_, broker) = with(&["a", "b", "c"]).await;
    let mut one = broker.consume("s", group("one").prefetch(2)).await.expect("consumed");
    let taken = one.next_chunk(10).await.expect("a chunk");
    assert_eq!(texts(&taken), ["a", "b"]);
    let more = tokio::time::timeout(Duration::from_secs(60), one.next_chunk(10)).await;
    assert!(more.is_err(), "it waits for a settlement");
    taken[0].ack();
    assert_eq!(texts(&one.next_chunk(10).await.expect("a chunk")), ["c"]);
    assert_eq!(one.acker().unsettled(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_is_appended_later_is_waited_for_unless_it_is_to_end() {
    let (_, broker) = with(&[]).await;
    let mut ends = broker.consume("s", group("ends")).await.expect("consumed");
    assert!(ends.next_chunk(1).await.expect("the end").is_empty(), "there is nothing");
    let mut waits = broker.consume("s", ConsumeOptions::default()).await.expect("consumed");
    let (next, ()) = tokio::join!(waits.next_chunk(1), async {
        tokio::time::sleep(Duration::from_secs(60)).await;
        publish(&broker, &["late"]).await;
    });
    assert_eq!(texts(&next.expect("a chunk")), ["late"]);
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_looked_at_counted_and_refuses_what_it_is_not() {
    let (_, broker) = with(&["a", "b", "c"]).await;
    let seen = broker.browse("s", 1, 10).await.expect("seen");
    assert_eq!(seen.iter().map(|one| one.message.body().to_vec()).collect::<Vec<_>>(), [b"b", b"c"]);
    assert_eq!(broker.stats("s").await.expect("stats").ready, 3);
    assert!(broker.queue("none").await.expect("an answer").is_none());
    let limited = broker.declare_queue(Queue::durable("s").ttl(Duration::from_secs(1))).await;
    assert_eq!(limited.expect_err("no stream has it").kind(), BrokerErrorKind::Unsupported);
    let lost = broker.publish(&Address::queue("none"), Message::new("x")).await.expect("submitted");
    assert!(matches!(lost, PublishOutcome::Unroutable(_)), "{lost:?}");
    assert!(broker.purge("s").await.is_err());
}
