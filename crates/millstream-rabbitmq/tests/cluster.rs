//! A cluster of three nodes that loses one after the other: what was confirmed arrives, without help.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use millstream_message::{
    Address, Batch, Broker, BrokerErrorKind, BrokerUrl, Confirm, ConsumeOptions, Consumer, Delivery, Message,
    Nack, PublishOutcome, Queue, QueueKind, StreamFrom, StreamSpec,
};
use millstream_rabbitmq::RabbitMq;
use millstream_rabbitmq::stream::StreamBroker;
use millstream_testing::{Node, Setup};
use tokio::sync::{Mutex, MutexGuard, OnceCell, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

const SECOND: Duration = Duration::from_secs(1);
/// For what surely comes.
const LONG: Duration = Duration::from_secs(120);

/// The nodes, and the turn of who stops some of them; he starts them again.
async fn cluster() -> (&'static [Node], MutexGuard<'static, ()>) {
    static NODES: OnceCell<Vec<Node>> = OnceCell::const_new();
    static TURN: Mutex<()> = Mutex::const_new(());
    let turn = TURN.lock().await;
    let setup = Setup::default().plugin("rabbitmq_stream");
    let nodes = NODES.get_or_init(async || Node::cluster(3, setup).await.expect("they start")).await;
    (nodes, turn)
}

/// A URL with all nodes.
fn url(scheme: &str, nodes: &[Node], port: impl Fn(&Node) -> u16) -> String {
    let hosts: Vec<String> = nodes.iter().map(|node| format!("127.0.0.1:{}", port(node))).collect();
    format!("{scheme}://guest:guest@{}/", hosts.join(","))
}

/// Publishes numbers, ten at a time, until it is told to stop; each must be confirmed. How many there were.
fn publish(broker: Arc<RabbitMq>, queue: &str, mut stop: watch::Receiver<bool>) -> JoinHandle<u32> {
    let to = Address::queue(queue);
    tokio::spawn(async move {
        let (mut window, mut count) = (VecDeque::<Confirm>::new(), 0);
        while !*stop.borrow_and_update() {
            let numbers = (count..count + 10).map(|n: u32| Message::new(n.to_be_bytes().to_vec()));
            window.push_back(broker.submit(Batch::to(&to, numbers)).await.expect("taken"));
            count += 10;
            if window.len() > 20 {
                confirmed(window.pop_front().expect("it is full")).await;
            }
            sleep(Duration::from_millis(1)).await;
        }
        for confirm in window {
            confirmed(confirm).await;
        }
        count
    })
}

async fn confirmed(confirm: Confirm) {
    let outcomes = confirm.await;
    assert!(outcomes.all_confirmed(), "{:?}", outcomes.others());
}

/// Consumes and acks until all numbers up to the one that is told have come. How often each has.
fn consume(
    broker: Arc<RabbitMq>,
    queue: &str,
    mut total: watch::Receiver<Option<u32>>,
) -> JoinHandle<BTreeMap<u32, u32>> {
    let queue = queue.to_owned();
    tokio::spawn(async move {
        let options = ConsumeOptions::default().prefetch(100);
        let mut consumer = broker.consume(&queue, options).await.expect("consumed");
        let mut seen = BTreeMap::new();
        loop {
            if total.borrow().is_some_and(|total| seen.len() >= total as usize) {
                return seen;
            }
            let delivery = tokio::select! {
                delivery = consumer.next() => delivery.expect("it goes on").expect("it can be read"),
                _ = total.changed() => continue,
            };
            let number = u32::from_be_bytes(delivery.message.body()[..].try_into().expect("four bytes"));
            *seen.entry(number).or_insert(0) += 1;
            delivery.ack();
        }
    })
}

/// Appends numbers to a stream, ten at a time, until it is told to stop; then something empty. How many there were.
fn append(
    broker: Arc<StreamBroker>,
    stream: &'static str,
    mut stop: watch::Receiver<bool>,
) -> JoinHandle<u64> {
    tokio::spawn(async move {
        let mut count = 0_u64;
        while !*stop.borrow_and_update() {
            let numbers = (count..count + 10).map(|n| Message::new(n.to_be_bytes().to_vec())).collect();
            broker.append(stream, numbers).await.expect("stored");
            count += 10;
        }
        broker.append(stream, vec![Message::new("")]).await.expect("stored");
        count
    })
}

/// Reads numbers up to something empty. How often each was there.
async fn read(broker: &StreamBroker, stream: &str) -> JoinHandle<BTreeMap<u64, u32>> {
    let mut reader = broker.read(stream, StreamFrom::First).await.expect("read");
    tokio::spawn(async move {
        let mut seen = BTreeMap::new();
        loop {
            for item in reader.next_chunk(1000).await.expect("it can be read") {
                let body = item.message.body();
                if body.is_empty() {
                    return seen;
                }
                *seen.entry(u64::from_be_bytes(body[..].try_into().expect("eight bytes"))).or_insert(0) += 1;
            }
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_are_killed_one_after_the_other_and_a_quorum_queue_and_a_stream_lose_nothing() {
    let (nodes, _turn) = cluster().await;
    let broker = RabbitMq::connect(&url("amqp", nodes, |node| node.port)).await.expect("connected");
    let broker = Arc::new(broker);
    broker.declare_queue(Queue::durable("quorum").kind(QueueKind::Quorum)).await.expect("declared");
    let (stop, stopped) = watch::channel(false);
    let (tell, told) = watch::channel(None);
    let publishing = publish(broker.clone(), "quorum", stopped.clone());
    let consuming = consume(broker.clone(), "quorum", told);

    let streams = url("rabbitmq-stream", nodes, |node| node.stream_port).parse();
    let Ok(BrokerUrl::RabbitmqStream(url)) = streams else { panic!("{streams:?}") };
    let streams = Arc::new(StreamBroker::connect(&url).await.expect("connected"));
    streams.declare_stream(StreamSpec::new("stream")).await.expect("declared");
    let appending = append(streams.clone(), "stream", stopped);
    let reading = read(&streams, "stream").await;

    for node in nodes {
        sleep(SECOND).await;
        node.kill();
        sleep(SECOND).await;
        node.run().await.expect("it starts again");
    }
    sleep(SECOND).await;
    stop.send(true).expect("it publishes");
    let count = timeout(LONG, publishing).await.expect("all are confirmed").expect("no panic");
    tell.send(Some(count)).expect("it consumes");
    let seen = timeout(LONG, consuming).await.expect("all arrive").expect("no panic");
    assert_eq!(seen.len(), count as usize);
    let appended = timeout(LONG, appending).await.expect("all are stored").expect("no panic");
    let read = timeout(LONG, reading).await.expect("all arrive").expect("no panic");
    assert_eq!(read.len(), appended as usize);
    assert!(broker.statistics().connects >= 4, "{:?}", broker.statistics());

    assert_eq!(broker.delete_queue("quorum").await.expect("deleted"), 0);
    broker.close().await.expect("closed");
    streams.delete_stream("stream").await.expect("deleted");
    streams.close().await.expect("closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_on_a_node_that_is_away_is_waited_for() {
    let (nodes, _turn) = cluster().await;
    // Queues are on the node by which they were declared. All else is done by another one, and by none but that: of several hosts
    // each connection takes one at random.
    let home = RabbitMq::connect(&nodes[2].url()).await.expect("connected");
    for queue in ["classic", "letters"] {
        home.declare_queue(Queue::durable(queue)).await.expect("declared");
    }
    home.close().await.expect("closed");
    let broker = RabbitMq::connect(&nodes[0].url()).await.expect("connected");
    broker.declare_queue(Queue::durable("work").dead_letter("", "letters")).await.expect("declared");
    let (to, work) = (Address::queue("classic"), Address::queue("work"));
    let batch = Batch::to(&to, (0..100).map(|n| Message::new(n.to_string())));
    assert!(broker.publish_batch(batch).await.expect("taken").all_confirmed());
    assert!(broker.publish(&work, Message::new("x")).await.expect("taken").is_confirmed());
    let mut consumer =
        broker.consume("classic", ConsumeOptions::default().prefetch(10)).await.expect("consumed");
    let first = next(&mut consumer).await;
    let mut worker = broker.consume("work", ConsumeOptions::default()).await.expect("consumed");
    let dies = next(&mut worker).await;

    nodes[2].kill();
    // It takes a moment until the others notice.
    let away = async |queue| broker.stats(queue).await.map_err(|error| error.kind());
    let noticed = async {
        for queue in ["classic", "letters"] {
            while away(queue).await != Err(BrokerErrorKind::Unavailable) {}
        }
    };
    timeout(LONG, noticed).await.expect("they do");
    let error = broker.declare_queue(Queue::durable("classic")).await.expect_err("nobody can").to_string();
    assert!(error.contains("down") && error.contains("quorum"), "{error}");
    let outcome = timeout(LONG, broker.publish(&to, Message::new("away"))).await.expect("it ends");
    let Ok(PublishOutcome::Unroutable(returned)) = outcome else { panic!("{outcome:?}") };
    assert!(returned.reason.contains("its node is down"), "{returned:?}");
    assert!(dies.nack(&Nack::dead_letter("no good")));
    // What is handed out now came before.
    let nothing = async {
        while let Some(delivery) = consumer.next().await {
            delivery.expect("it does not end").nack(&Nack::Requeue);
        }
    };
    timeout(2 * SECOND, nothing).await.expect_err("it does not end");
    assert!(!first.ack(), "it comes again");

    nodes[2].run().await.expect("it starts again");
    let mut seen = BTreeSet::new();
    while seen.len() < 100 {
        let delivery = next(&mut consumer).await;
        seen.insert(String::from_utf8(delivery.message.body().to_vec()).expect("text"));
        delivery.ack();
    }
    assert!(!seen.contains("away"));
    assert!(broker.publish(&to, Message::new("after")).await.expect("taken").is_confirmed());
    let after = next(&mut consumer).await;
    assert_eq!(&after.message.body()[..], b"after");
    let arrived = async { while away("letters").await.map(|stats| stats.ready) != Ok(1) {} };
    timeout(LONG, arrived).await.expect("the letter has waited");

    drop((consumer, worker, first, dies, after));
    for queue in ["classic", "letters", "work"] {
        broker.delete_queue(queue).await.expect("deleted");
    }
    broker.close().await.expect("closed");
}

async fn next(consumer: &mut Consumer) -> Delivery {
    timeout(LONG, consumer.next()).await.expect("delivered").expect("it goes on").expect("it can be read")
}
