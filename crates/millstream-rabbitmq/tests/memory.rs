//! Publishing and consuming by both protocols at once, through connections that are cut again and again: this process is no
//! larger at the end than when it had run in. (A program of its own, so that it is this alone that is measured.)
//! `MILLSTREAM_SOAK=1` goes on for minutes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use millstream_message::{Address, Batch, Broker, ConsumeOptions, Message, Queue, StreamFrom};
use millstream_rabbitmq::RabbitMq;
use millstream_rabbitmq::stream::{ConsumerOptions, ProducerOptions, StreamClient, StreamSettings};
use millstream_testing::{Node, Proxy, Setup};
use tokio::time::{Instant, sleep, timeout};

const BODY: usize = 1024;
const BATCH: u64 = 100;
/// How long between one cut and the next.
const CUT: Duration = Duration::from_millis(350);
/// What may come on top of it: allocators keep some of what was free.
const GROWTH_KIB: u64 = 4 << 10;

/// How large this process is, in KiB.
fn size() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

fn batch() -> Vec<Message> {
    (0..BATCH)
        .map(|number| Message::new(vec![number as u8; BODY]).with_header("number", number as i64))
        .collect()
}

#[derive(Default)]
struct Counts {
    over: AtomicBool,
    published: [AtomicU64; 2],
    consumed: [AtomicU64; 2],
}

impl Counts {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }
}

fn add(count: &AtomicU64, more: u64) {
    count.fetch_add(more, Ordering::Relaxed);
}

async fn by_amqp(broker: Arc<RabbitMq>, counts: Arc<Counts>) {
    let publishing = async {
        while !counts.is_over() {
            let outcomes =
                broker.publish_batch(Batch::to(&Address::queue("memory"), batch())).await.expect("taken");
            add(&counts.published[0], outcomes.confirmed_count() as u64);
        }
    };
    let consuming = async {
        let mut consumer =
            broker.consume("memory", ConsumeOptions::default().prefetch(500)).await.expect("consumed");
        while !counts.is_over() {
            let Ok(Some(delivery)) = timeout(CUT, consumer.next()).await else { continue };
            delivery.expect("read").ack();
            add(&counts.consumed[0], 1);
        }
    };
    tokio::join!(publishing, consuming);
}

async fn by_streams(client: StreamClient, counts: Arc<Counts>) {
    let publishing = async {
        let options = ProducerOptions::default().name("memory");
        let producer = client.producer("memory-stream", options).await.expect("a producer");
        let mut confirms = VecDeque::new();
        while !counts.is_over() {
            confirms.push_back(producer.send(&batch()).await.expect("sent"));
            if confirms.len() > 10 {
                let outcomes = confirms.pop_front().expect("some").await;
                add(&counts.published[1], outcomes.confirmed_count() as u64);
            }
        }
    };
    let consuming = async {
        let options = ConsumerOptions::default().name("memory").store_every(5000);
        let mut consumer =
            client.consumer("memory-stream", StreamFrom::First, options).await.expect("subscribed");
        while !counts.is_over() {
            let Ok(items) = timeout(CUT, consumer.next_chunk(500)).await else { continue };
            add(&counts.consumed[1], items.expect("read").len() as u64);
        }
    };
    tokio::join!(publishing, consuming);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_grows_however_often_connections_are_lost() {
    let soak = std::env::var_os("MILLSTREAM_SOAK").is_some();
    let time = Duration::from_secs(if soak { 600 } else { 24 });
    let node = Node::start(Setup::default().plugin("rabbitmq_stream")).await.expect("it starts");
    let (amqp, streams) = (Proxy::to(node.port).await, Proxy::to(node.stream_port).await);
    let url = format!("{}?reconnect_min=5&reconnect_max=20", amqp.url());
    let broker = Arc::new(RabbitMq::connect(&url).await.expect("connected"));
    broker.declare_queue(Queue::durable("memory")).await.expect("declared");
    let url = format!("rabbitmq-stream://guest:guest@127.0.0.1:{}/?hosts_only=true", streams.port);
    let client = StreamClient::connect(StreamSettings::parse(&url).expect("a URL")).await.expect("connected");
    let limits = [("max-length-bytes", "100000000"), ("stream-max-segment-size-bytes", "20000000")];
    client.create_stream("memory-stream", &limits).await.expect("made");

    let counts = Arc::new(Counts::default());
    let tasks = [
        tokio::spawn(by_amqp(broker.clone(), counts.clone())),
        tokio::spawn(by_streams(client.clone(), counts.clone())),
    ];
    let begun = Instant::now();
    let (mut sizes, mut cuts) = (Vec::new(), 0_u32);
    while begun.elapsed() < time {
        sleep(CUT).await;
        sizes.push(size());
        amqp.cut();
        streams.cut();
        cuts += 1;
        assert!(tasks.iter().all(|task| !task.is_finished()), "all go on");
    }
    counts.over.store(true, Ordering::Relaxed);
    for task in tasks {
        timeout(Duration::from_secs(60), task).await.expect("it ends").expect("it goes on to its end");
    }
    let [published, consumed] = [&counts.published, &counts.consumed]
        .map(|counts| counts.each_ref().map(|count| count.load(Ordering::Relaxed)));
    let most = |sizes: &[u64]| sizes.iter().copied().max().expect("some");
    let third = sizes.len() / 3;
    let (early, late) = (most(&sizes[..third]), most(&sizes[sizes.len() - third..]));
    eprintln!(
        "{cuts} cuts; published {published:?}, consumed {consumed:?} by AMQP and by streams; {early} KiB at most in the \
         first third, {late} in the last"
    );
    for count in published.iter().chain(&consumed) {
        assert!(*count > u64::from(cuts) * 50, "work was done between the cuts");
    }
    assert!(late <= early + GROWTH_KIB, "it grew by {} KiB", late - early);
    broker.close().await.expect("closed");
    client.close().await;
}
