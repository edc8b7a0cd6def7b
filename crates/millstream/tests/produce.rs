//! Publishing from a service, in memory and on RabbitMQ.

use std::sync::Arc;
use std::time::Duration;

use millstream::message::{Broker, Delivery, PublishOutcome, Refusal, Value};
use millstream::prelude::*;
use millstream::queue::{ProduceError, Producer};
use millstream::resilience::{Backoff, Retry};
use millstream_testing::{shared, unique};
use serde::Serialize;
use tokio::time::{Instant, sleep};

#[derive(Serialize, serde::Deserialize, Debug, PartialEq)]
struct Order {
    id: u32,
}

async fn taken(broker: &Arc<dyn Broker>, queue: &str, count: usize) -> Vec<Delivery> {
    let mut consumer = broker.consume(queue, ConsumeOptions::default()).await.expect("consumed");
    let mut all = Vec::new();
    while all.len() < count {
        all.push(consumer.next().await.expect("it goes on").expect("read"));
    }
    all.iter().for_each(|delivery| assert!(delivery.ack()));
    all
}

async fn values_are_published(url: &str) {
    let broker = millstream::open(url).await.expect("opened");
    let queue = unique("orders");
    broker.declare_queue(Queue::durable(&queue).max_priority(9)).await.expect("declared");
    let orders: Producer<Order> = Producer::new(broker.clone(), Address::queue(&queue), Json)
        .ttl(Duration::from_secs(60))
        .priority(2)
        .header("tenant", "north");
    assert!(orders.publish(&Order { id: 1 }).await.expect("taken").is_confirmed());
    let own = orders.message(&Order { id: 2 }).expect("written");
    let own = own.with_priority(7).with_correlation_id("c").with_header("tenant", "south");
    assert!(orders.publish_message(own).await.expect("taken").is_confirmed());
    let deliveries = taken(&broker, &queue, 2).await;
    for (delivery, id, priority, tenant) in [(&deliveries[0], 2, 7, "south"), (&deliveries[1], 1, 2, "north")]
    {
        let properties = delivery.message.properties();
        assert_eq!(Codec::<Order>::decode(&Json, &delivery.message).expect("read"), Order { id });
        assert_eq!((properties.priority, properties.ttl), (priority, Some(Duration::from_secs(60))));
        assert_eq!(delivery.message.header("tenant"), Some(&Value::from(tenant)));
        assert!(properties.persistent);
    }
    assert_eq!(deliveries[0].message.properties().correlation_id.as_deref(), Some("c"));

    let all = [3, 4, 5].map(|id| Order { id });
    assert!(orders.publish_all(&all).await.expect("taken").all_confirmed());
    let mut sending = orders.sending(10);
    for id in 6..500 {
        sending.send(&Order { id }).await.expect("taken");
    }
    let outcomes = sending.finish().await;
    assert_eq!((outcomes.len(), outcomes.all_confirmed()), (494, true));
    let ids = taken(&broker, &queue, 497).await.into_iter().map(|delivery| {
        let order: Order = Json.decode(&delivery.message).expect("read");
        order.id
    });
    assert_eq!(ids.collect::<Vec<_>>(), (3..500).collect::<Vec<_>>(), "in order");

    // The outcome says where a message is, and which one it is about.
    let full = unique("full");
    broker.declare_queue(Queue::durable(&full).max_items(2)).await.expect("declared");
    let words: Producer<String> = Producer::new(broker.clone(), Address::queue(&full), Json).transient();
    let mut sending = words.sending(1);
    for word in ["a", "b", "c", "d"] {
        sending.send(&word.to_owned()).await.expect("taken");
    }
    let outcomes = sending.finish().await;
    assert_eq!((outcomes.len(), outcomes.confirmed_count()), (4, 2));
    for at in [2, 3] {
        assert!(matches!(outcomes.get(at), PublishOutcome::Refused(Refusal::Full { .. })), "{at}");
    }
    assert!(taken(&broker, &full, 2).await.iter().all(|one| !one.message.properties().persistent));
    let nowhere: Producer<Order> = Producer::new(broker.clone(), Address::queue(unique("nowhere")), Json);
    let back = nowhere.publish(&Order { id: 9 }).await.expect("taken");
    assert!(
        matches!(&back, PublishOutcome::Unroutable(returned) if returned.publish.message.body() == "{\"id\":9}")
    );

    broker.close().await.expect("closed");
    let closed = orders.publish(&Order { id: 1 }).await;
    assert!(!matches!(closed, Ok(PublishOutcome::Confirmed)), "{closed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_are_published_in_memory() {
    values_are_published("memory:").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_are_published_on_rabbitmq() {
    values_are_published(&shared().await.url()).await;
}

#[tokio::test(start_paused = true)]
async fn a_rate_spreads_messages_evenly_whoever_publishes_them() {
    let broker = millstream::open("memory:").await.expect("opened");
    broker.declare_queue(Queue::durable("q")).await.expect("declared");
    let orders: Producer<u32> =
        Producer::new(broker, Address::queue("q"), Json).rate_limit(10, Duration::from_secs(1));
    let began = Instant::now();
    let one = async {
        for n in 0..10 {
            assert!(orders.publish(&n).await.expect("taken").is_confirmed());
        }
    };
    tokio::join!(one, async {
        for n in 0..5 {
            assert!(orders.publish(&n).await.expect("taken").is_confirmed());
        }
    });
    assert!(orders.publish_all(&[1, 2, 3]).await.expect("taken").all_confirmed());
    assert_eq!(began.elapsed().as_millis() / 100, 15, "fifteen went before these three, which went together");
    orders.publish(&1).await.expect("taken").is_confirmed().then_some(()).expect("stored");
    assert_eq!(began.elapsed().as_millis() / 100, 18);
}

#[tokio::test]
async fn a_value_that_cannot_be_written_is_named_and_none_is_published() {
    use std::collections::HashMap;
    let broker = millstream::open("memory:").await.expect("opened");
    broker.declare_queue(Queue::durable("q")).await.expect("declared");
    // JSON has text for names alone.
    let values: Producer<HashMap<Vec<u8>, u8>> = Producer::new(broker.clone(), Address::queue("q"), Json);
    let bad = HashMap::from([(vec![1], 1)]);
    let error = values.publish_all(&[HashMap::new(), bad]).await.expect_err("it cannot be written");
    assert!(matches!(error, ProduceError::Codec { index: 1, .. }), "{error:?}");
    assert_eq!(broker.stats("q").await.expect("there").ready, 0);
}

async fn memory() -> Arc<dyn Broker> {
    millstream::open("memory:").await.expect("opened")
}

/// Another attempt every 100 ms.
fn attempts(most: u32) -> Retry {
    Retry::new(most).backoff(Backoff::fixed(Duration::from_millis(100)))
}

#[tokio::test]
async fn what_is_said_of_one_message_wins() {
    let broker = memory().await;
    broker.declare_queue(Queue::durable("q").max_priority(9)).await.expect("declared");
    let orders: Producer<u32> =
        Producer::new(broker.clone(), Address::queue("q"), Json).transient().priority(5).header("a", 1_i64);
    let mut own = orders.message(&1).expect("written").with_priority(0).with_header("a", 2_i64);
    own.properties_mut().persistent = true;
    assert!(orders.publish_message(own).await.expect("taken").is_confirmed());
    let one = &taken(&broker, "q", 1).await[0].message;
    assert_eq!((one.properties().priority, one.properties().persistent), (0, true));
    assert_eq!(one.header("a"), Some(&Value::Int(2)));
}

#[tokio::test(start_paused = true)]
async fn what_no_queue_wants_yet_is_published_again_and_stored_once() {
    let broker = memory().await;
    let to = Address::queue("late");
    let orders: Producer<u32> = Producer::new(broker.clone(), to, Json).retry(attempts(4));
    let began = Instant::now();
    let mut sending = orders.sending(10);
    let (one, many, sent, ()) = tokio::join!(
        orders.publish(&1),
        orders.publish_all(&[2, 3]),
        async {
            for id in 4..8 {
                sending.send(&id).await.expect("taken");
            }
            sending.finish().await
        },
        async {
            sleep(Duration::from_millis(250)).await;
            broker.declare_queue(Queue::durable("late")).await.expect("declared");
        }
    );
    assert!(one.expect("taken").is_confirmed() && many.expect("taken").all_confirmed());
    assert!(sent.all_confirmed() && sent.len() == 4);
    assert_eq!(began.elapsed().as_millis() / 100, 3, "four attempts of each, the first at once");
    let mut ids: Vec<u32> =
        taken(&broker, "late", 7).await.iter().map(|one| Json.decode(&one.message).expect("read")).collect();
    ids.sort_unstable();
    assert_eq!(ids, (1..8).collect::<Vec<_>>());
    assert_eq!(broker.stats("late").await.expect("there").total(), 0);
}

#[tokio::test(start_paused = true)]
async fn of_a_batch_only_what_was_refused_is_published_again_until_the_policy_says_no() {
    let broker = memory().await;
    broker.declare_queue(Queue::durable("small").max_items(2)).await.expect("declared");
    let words: Producer<u32> =
        Producer::new(broker.clone(), Address::queue("small"), Json).retry(attempts(3));
    let began = Instant::now();
    let outcomes = words.publish_all(&[0, 1, 2, 3]).await.expect("taken");
    assert_eq!((outcomes.len(), outcomes.confirmed_count()), (4, 2));
    for at in [2, 3] {
        assert!(matches!(outcomes.get(at), PublishOutcome::Refused(Refusal::Full { .. })), "{outcomes:?}");
    }
    assert_eq!(began.elapsed().as_millis() / 100, 2);
    assert_eq!(broker.stats("small").await.expect("there").total(), 2, "the others are there once");
}

#[tokio::test]
async fn outcomes_that_nobody_takes_are_bounded_and_none_is_lost() {
    let broker = memory().await;
    let nowhere: Producer<usize> = Producer::new(broker, Address::queue("nowhere"), Json);
    let mut sending = nowhere.sending(7);
    let (mut sent, mut known) = (0, Vec::new());
    while sent < 3000 {
        match sending.send(&sent).await {
            Ok(()) => sent += 1,
            Err(ProduceError::Untaken { kept }) => {
                assert!((1000..1007).contains(&kept), "{kept}");
                known.extend(sending.take_others().into_iter().map(|(at, _)| at));
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(known.len() >= 2000, "{}", known.len());
    let rest = sending.finish().await;
    known.extend(rest.others().iter().map(|(at, _)| *at));
    assert_eq!(known, (0..3000).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_rate_of_next_to_nothing_does_not_overflow() {
    let broker = memory().await;
    broker.declare_queue(Queue::durable("q")).await.expect("declared");
    let rarely: Producer<u32> =
        Producer::new(broker, Address::queue("q"), Json).rate_limit(1, Duration::from_secs(u64::MAX / 2));
    assert!(rarely.publish_all(&[1, 2, 3]).await.expect("taken").all_confirmed());
    assert!(tokio::time::timeout(Duration::from_secs(24 * 3600), rarely.publish(&4)).await.is_err());
}
