//! Streams used as queues, over this broker's.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use millstream_embedded::{EmbeddedBroker, Settings};
use millstream_message::conformance::{self, Backend};
use millstream_message::{
    Address, Batch, BoxFuture, Broker, BrokerError, BrokerErrorKind, ConsumeOptions, Delivery, Message, Nack,
    PublishOutcome, Queue, StopWhen, StreamOffset, StreamSpec, StreamedQueues, keep_saving,
};
use tokio::sync::Notify;
use tokio::time::timeout;

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
    assert_eq!(one.next_chunk(10).await.expect("the end").len(), 0);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(streams.stored_offset("s", "one").await.expect("an answer"), Some(1));
    drop((one, taken));
    let mut again = broker.consume("s", group("one")).await.expect("consumed");
    assert_eq!(texts(&again.next_chunk(10).await.expect("a chunk")), ["b", "c", "d"]);
}

#[tokio::test(start_paused = true)]
async fn a_name_is_of_one_consumer_at_a_time_and_its_successor_knows_its_place() {
    let (_, broker) = with(&["a", "b", "c"]).await;
    let in_use = async |options: ConsumeOptions| {
        let refused = broker.consume("s", options).await.expect_err("in use");
        assert_eq!(refused.kind(), BrokerErrorKind::InUse, "{refused}");
    };
    let mut first = broker.consume("s", ConsumeOptions::default()).await.expect("consumed");
    in_use(ConsumeOptions::default()).await;
    in_use(group("millstream")).await;
    in_use(group("alone").exclusive()).await;
    let taken = first.next_chunk(1).await.expect("a chunk");
    drop(first);
    in_use(ConsumeOptions::default()).await;
    assert!(taken[0].ack(), "who holds a delivery can settle it");
    drop(taken);
    // At once: what was settled is stored now and then.
    let mut alone = broker.consume("s", ConsumeOptions::default().exclusive()).await.expect("consumed");
    assert_eq!(texts(&alone.next_chunk(10).await.expect("a chunk")), ["b", "c"]);
    in_use(group("other")).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_given_back_comes_again_and_stops_nothing() {
    let (_, broker) = with(&["a", "b", "c", "d"]).await;
    let options = ConsumeOptions::default().name("one").prefetch(2).stop_when_empty();
    let mut one = broker.consume("s", options).await.expect("consumed");
    let mut next = async || {
        let chunk = timeout(Duration::from_secs(100), one.next_chunk(10)).await;
        chunk.expect("it goes on").expect("a chunk")
    };
    let taken = next().await;
    assert!(taken[0].nack(&Nack::Requeue) && taken[1].ack());
    let again = next().await;
    assert_eq!((texts(&again), again[0].redeliveries), (vec!["a".to_owned()], 1));
    assert!(!taken[0].ack(), "its old tag is stale");
    let begin = tokio::time::Instant::now();
    assert!(again[0].nack(&Nack::RequeueAfter(Duration::from_secs(60))));
    let later = next().await;
    assert_eq!((texts(&later), later[0].redeliveries), (vec!["a".to_owned()], 2), "two are in hand");
    assert_eq!(begin.elapsed().as_secs(), 60);
    assert!(later[0].ack());
    let rest = next().await;
    assert_eq!(texts(&rest), ["c", "d"]);
    rest[0].acker.release();
    let rest = next().await;
    assert_eq!(texts(&rest), ["c", "d"], "all that was released");
    let settled = rest[0].acker.ack_range(0..u64::MAX);
    assert_eq!((settled.applied, settled.stale), (2, u64::MAX - 2));
    assert!(next().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn places_are_forgotten_with_their_consumers_and_with_their_stream() {
    let (streams, broker) = with(&["a", "b"]).await;
    // Each place has the broker of its stream; so have the test and what makes queues of it.
    let kept = || Arc::strong_count(&streams) - 2;
    for number in 0..50 {
        let mut one = broker.consume("s", group(&format!("n{number}"))).await.expect("consumed");
        one.next_chunk(1).await.expect("a chunk")[0].ack();
        drop(one);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(kept() <= 1, "{}", kept());
    let mut one = broker.consume("s", group("last")).await.expect("consumed");
    let taken = one.next_chunk(2).await.expect("a chunk");
    broker.delete_stream("s").await.expect("deleted");
    taken[0].ack();
    tokio::time::sleep(Duration::from_secs(1)).await;
    drop((one, taken));
    broker.declare_queue(Queue::durable("s")).await.expect("declared");
    drop(broker.consume("s", group("new")).await.expect("consumed"));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(kept(), 1, "only the new one");
}

#[tokio::test(start_paused = true)]
async fn the_place_in_a_stream_that_was_deleted_does_not_fail_the_close() {
    let (_, broker) = with(&["a"]).await;
    let mut one = broker.consume("s", group("one")).await.expect("consumed");
    let taken = one.next_chunk(1).await.expect("a chunk");
    broker.delete_stream("s").await.expect("deleted");
    taken[0].ack();
    broker.close().await.expect("closed");
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
    let more = timeout(Duration::from_secs(60), one.next_chunk(10)).await;
    assert!(more.is_err(), "it waits for a settlement");
    taken[0].ack();
    assert_eq!(texts(&one.next_chunk(10).await.expect("a chunk")), ["c"]);
    assert_eq!(one.acker().unsettled(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_prefetch_in_bytes_holds_within_a_chunk() {
    let large = "x".repeat(100);
    let (_, broker) = with(&[large.as_str(); 5]).await;
    let size = Message::new(large.clone()).size();
    let options = group("one").prefetch_bytes(2 * size + 1);
    let mut one = broker.consume("s", options).await.expect("consumed");
    let taken = one.next_chunk(256).await.expect("a chunk");
    assert_eq!(taken.len(), 2);
    taken[0].ack();
    assert_eq!(one.next_chunk(256).await.expect("a chunk").len(), 1);
    let mut alone = broker.consume("s", group("two").prefetch_bytes(1)).await.expect("consumed");
    assert_eq!(alone.next_chunk(256).await.expect("a chunk").len(), 1, "larger than all that may be in hand");
}

#[tokio::test(start_paused = true)]
async fn what_is_appended_later_is_waited_for_unless_it_is_to_end() {
    let (_, broker) = with(&[]).await;
    let begin = tokio::time::Instant::now();
    let mut ends = broker.consume("s", group("ends")).await.expect("consumed");
    assert!(ends.next_chunk(1).await.expect("the end").is_empty(), "there is nothing");
    assert_eq!(begin.elapsed(), Duration::ZERO, "it is not waited for what is not there");
    let mut waits = broker.consume("s", ConsumeOptions::default()).await.expect("consumed");
    let (next, ()) = tokio::join!(waits.next_chunk(1), async {
        tokio::time::sleep(Duration::from_secs(60)).await;
        publish(&broker, &["late"]).await;
    });
    assert_eq!(texts(&next.expect("a chunk")), ["late"]);
    waits.acker().stop(StopWhen::Empty);
    let begin = tokio::time::Instant::now();
    assert!(waits.next_chunk(1).await.expect("the end").is_empty());
    assert_eq!(begin.elapsed(), Duration::from_secs(1), "nothing came for so long");
}

#[tokio::test]
async fn what_is_said_of_the_features_holds() {
    struct OnDisk(tempfile::TempDir);
    impl Backend for OnDisk {
        fn open(&self) -> BoxFuture<'_, Arc<dyn Broker>> {
            Box::pin(async {
                let settings =
                    Settings { message_bytes_max: 1 << 20, segment_bytes: 4 << 20, ..Settings::memory() };
                let streams = EmbeddedBroker::open(self.0.path(), settings).await.expect("it opens");
                Arc::new(StreamedQueues::new(Arc::new(streams))) as Arc<dyn Broker>
            })
        }
        fn restart(&self, broker: Arc<dyn Broker>) -> BoxFuture<'_, Arc<dyn Broker>> {
            Box::pin(async move {
                broker.close().await.expect("it closes");
                drop(broker);
                self.open().await
            })
        }
    }
    let report = conformance::run(&OnDisk(tempfile::tempdir().expect("a directory"))).await;
    assert_eq!(report.passed.len(), 6, "all of streams: {report:?}");
    assert!(report.skipped.iter().all(|(_, feature)| *feature == "queues"), "{report:?}");
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
    for options in [group("one").priority(1), group("one").lease(Duration::from_secs(1))] {
        let refused = broker.consume("s", options).await.expect_err("no stream has it");
        assert_eq!(refused.kind(), BrokerErrorKind::Unsupported);
    }
}

async fn with_stream() -> Arc<EmbeddedBroker> {
    let broker = Arc::new(EmbeddedBroker::memory(Settings::memory()).expect("a broker"));
    broker.declare_stream(StreamSpec::new("s")).await.expect("declared");
    broker
}

#[tokio::test]
async fn an_offset_never_goes_back() {
    let broker = with_stream().await;
    broker.store_offset("s", "reader", 3).await.expect("stored");
    let (offset, stored) = StreamOffset::open(broker.clone(), "s", "reader").await.expect("opened");
    assert_eq!(stored, Some(3));
    for (store, expected) in [(2, 3), (7, 7), (5, 7)] {
        offset.store(store).await.expect("stored");
        let stored = broker.stored_offset("s", "reader").await.expect("looked up");
        assert_eq!(stored, Some(expected), "after {store}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_broker_out_of_reach_is_tried_again_and_another_trouble_is_told() {
    let (changed, tries) = (Notify::new(), AtomicU32::new(0));
    changed.notify_one();
    let save = || async {
        let kind = match tries.fetch_add(1, Ordering::Relaxed) {
            0..3 => BrokerErrorKind::Unavailable,
            3 => return Ok(()),
            _ => BrokerErrorKind::Storage,
        };
        Err(BrokerError::new(kind, "no").into())
    };
    let waits = timeout(Duration::from_secs(60), keep_saving(&changed, save)).await;
    assert!(waits.is_err(), "{waits:?}");
    assert_eq!(tries.load(Ordering::Relaxed), 4, "saved once, and then nothing has changed");
    changed.notify_one();
    let told = timeout(Duration::from_secs(60), keep_saving(&changed, save)).await.expect("told");
    assert_eq!(told.expect_err("told").to_string(), "no");
}
