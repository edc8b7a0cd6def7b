//! How many messages a second go through a stream, and what they cost this process: messages of 1 KB published in
//! batches of 100, the same in entries of 100, and read back.
//!
//! ```text
//! cargo run --release -p millstream-rabbitmq --example stream_throughput -- rabbitmq-stream://guest:guest@localhost 2000000
//! ```
#![expect(clippy::print_stdout, reason = "this is a program")]

use std::collections::VecDeque;
use std::future::poll_fn;

use millstream_message::{Message, StreamFrom, StreamSource};
use millstream_rabbitmq::stream::{ConsumerOptions, ProducerOptions, StreamClient, StreamSettings};
use tokio::time::Instant;

const STREAM: &str = "stream-throughput";
const BODY: usize = 1024;
const BATCH: usize = 100;
/// Batches whose confirms are waited for at once.
const WINDOW: usize = 100;

/// What this process has used: user and system time, in microseconds, and the most memory, in KiB.
fn used() -> (f64, u64) {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux");
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks: f64 = [11, 12].map(|at| fields[at].parse::<f64>().expect("a number")).iter().sum();
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    (ticks * 10_000.0, peak.trim().trim_end_matches(" kB").parse().expect("a number"))
}

fn tell(what: &str, messages: usize, begun: Instant, before: f64) {
    let (cpu, peak) = used();
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{what:<32} {:>9.0} messages/s   {:>6.3} µs of CPU a message   peak {:.1} MiB",
        messages as f64 / seconds,
        (cpu - before) / messages as f64,
        peak as f64 / 1024.0
    );
}

async fn publish(client: &StreamClient, what: &str, total: usize, options: ProducerOptions) {
    let producer = client.producer(STREAM, options).await.expect("a producer");
    let batch = vec![Message::new(vec![7; BODY]); BATCH];
    let (begun, before) = (Instant::now(), used().0);
    let mut confirms = VecDeque::new();
    for _ in 0..total / BATCH {
        confirms.push_back(producer.send(&batch).await.expect("sent"));
        if confirms.len() >= WINDOW {
            let oldest = confirms.pop_front().expect("there are some");
            assert!(oldest.await.all_confirmed());
        }
    }
    for confirm in confirms {
        assert!(confirm.await.all_confirmed());
    }
    tell(what, total, begun, before);
}

async fn read(client: &StreamClient, what: &str, total: usize, options: ConsumerOptions) {
    let mut consumer = client.consumer(STREAM, StreamFrom::First, options).await.expect("subscribed");
    let (begun, before) = (Instant::now(), used().0);
    let (mut count, mut items) = (0, Vec::new());
    while count < total {
        count += poll_fn(|cx| consumer.poll_chunk(cx, 1000, &mut items)).await.expect("read");
        assert!(items.drain(..).all(|item| item.message.body().len() == BODY));
    }
    tell(what, total, begun, before);
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let Some(url) = arguments.next() else {
        println!("give the URL of a broker that has streams, and a number of messages");
        return;
    };
    let total = arguments.next().map_or(1_000_000, |total| total.parse().expect("a number of messages"));
    let only = arguments.next().unwrap_or_default();
    let mut options = ProducerOptions::default();
    if let Some(bytes) = arguments.next() {
        options.in_flight_bytes_max = bytes.parse().expect("bytes in flight");
    }
    let mut reading = ConsumerOptions::default();
    if let Some(bytes) = arguments.next() {
        reading = reading.bytes_max(bytes.parse().expect("bytes on their way"));
    }
    let client = StreamClient::connect(StreamSettings::parse(&url).expect("a URL")).await.expect("connected");
    if only != "read" {
        client.delete_stream(STREAM).await.expect("deleted");
        client.create_stream(STREAM, &[]).await.expect("made");
        publish(&client, "publish, batches of 100", total, options.clone()).await;
    }
    if only != "publish" {
        read(&client, "read", total, reading.clone()).await;
    }
    if only.is_empty() || only == "all" {
        client.delete_stream(STREAM).await.expect("deleted");
        client.create_stream(STREAM, &[]).await.expect("made");
        let options = options.entry_messages(100);
        publish(&client, "publish, entries of 100", total, options).await;
        read(&client, "read entries of 100", total, reading).await;
        client.delete_stream(STREAM).await.expect("deleted");
    }
}
