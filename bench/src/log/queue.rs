//! The broker: from publish to ack in one process.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use millstream_embedded::open;
use millstream_message::{Address, Batch, Broker, ConsumeOptions, Message, Queue};
use tokio::runtime::{Builder, Runtime};

use super::disk::{RECORD, directory, noise};
use super::with_peers;
use crate::case::{Absent, Bound, Case, Sample};
use crate::clock;

pub(crate) const MESSAGES: &str = "messages/s";
pub(crate) const QUEUE: &str = "bench";
/// Messages of one publish, and how many of those may be on their way.
pub(crate) const BATCH: u64 = 500;
const WINDOW: usize = 4;

pub(crate) fn cases() -> Vec<Case> {
    let durable = Case::new("publish, consume, ack; durable, one process").ours("ours", |scale| {
        let directory = directory()?;
        measure(&format!("embedded:{}", directory.path().join("broker").display()), scale.of(400_000))
    });
    let durable = with_peers!(durable, "RabbitMQ", |scale| super::rabbitmq::measure(scale.of(50_000)));
    let memory = Case::new("publish, consume, ack; memory:")
        .peer("tokio::broadcast", |scale| broadcast(scale.of(1_000_000)))
        .ours("ours", |scale| measure("memory:", scale.of(2_000_000)));
    vec![
        durable.goal_on(MESSAGES, Bound::AtLeast(400_000.0), "").goal_on(
            MESSAGES,
            Bound::RateOf(5.0, "RabbitMQ"),
            "",
        ),
        memory.goal_on(MESSAGES, Bound::AtLeast(3_000_000.0), ""),
    ]
}

pub(crate) fn runtime() -> Result<Runtime, Absent> {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.map_err(|error| format!("a runtime: {error}"))
}

pub(crate) async fn broker(url: &str) -> Result<Arc<dyn Broker>, Absent> {
    let url = url.parse().map_err(|error| format!("{url}: {error}"))?;
    let broker = open(&url).await.map_err(|error| error.to_string())?;
    broker.declare_queue(Queue::durable(QUEUE)).await.map_err(|error| error.to_string())?;
    Ok(broker)
}

/// Bodies of 1 KB that do not compress, without a copy each.
pub(crate) struct Bodies(Bytes);

impl Bodies {
    pub(crate) fn new() -> Self {
        Bodies(noise(1 << 20).into())
    }

    pub(crate) fn get(&self, index: u64) -> Bytes {
        let at = (index as usize % (self.0.len() / RECORD)) * RECORD;
        self.0.slice(at..at + RECORD)
    }
}

/// Publishes `count` messages in batches, each confirmed, a few batches ahead.
pub(crate) async fn publish(broker: &dyn Broker, count: u64) -> Result<(), Absent> {
    let (to, bodies) = (Address::queue(QUEUE), Bodies::new());
    let mut window = VecDeque::new();
    let mut published = 0;
    while published < count {
        let size = BATCH.min(count - published);
        let batch = Batch::to(&to, (0..size).map(|at| Message::new(bodies.get(published + at))));
        published += size;
        window.push_back(broker.submit(batch).await.map_err(|error| error.to_string())?);
        if window.len() >= WINDOW
            && let Some(confirm) = window.pop_front()
            && !confirm.await.all_confirmed()
        {
            return Err("a message was not confirmed".to_owned());
        }
    }
    for confirm in window {
        if !confirm.await.all_confirmed() {
            return Err("a message was not confirmed".to_owned());
        }
    }
    Ok(())
}

/// Consumes and acks `count` messages.
pub(crate) async fn consume(broker: &dyn Broker, count: u64) -> Result<(), Absent> {
    let options = ConsumeOptions::default().prefetch(5_000);
    let mut consumer = broker.consume(QUEUE, options).await.map_err(|error| error.to_string())?;
    let acker = consumer.acker();
    let mut acked = 0;
    while acked < count {
        let most = usize::try_from((count - acked).min(BATCH)).unwrap_or(1);
        let chunk = consumer.next_chunk(most).await.map_err(|error| error.to_string())?;
        let (Some(first), Some(last)) = (chunk.first(), chunk.last()) else {
            return Err(format!("the consumer ended after {acked} of {count} messages"));
        };
        acker.ack_range(first.tag..last.tag + 1);
        acked += chunk.len() as u64;
    }
    Ok(())
}

fn measure(url: &str, count: u64) -> Result<Sample, Absent> {
    runtime()?.block_on(async {
        let broker = broker(url).await?;
        let began = clock::now();
        let publisher = broker.clone();
        let publishing = tokio::spawn(async move { publish(&*publisher, count).await });
        let consuming = broker.clone();
        let consuming = tokio::spawn(async move { consume(&*consuming, count).await });
        publishing.await.map_err(|error| error.to_string())??;
        consuming.await.map_err(|error| error.to_string())??;
        // Closing makes the last acks durable: they belong to the work.
        broker.close().await.map_err(|error| error.to_string())?;
        let seconds = (clock::now() - began).as_secs_f64();
        Ok(Sample::new().with(MESSAGES, count as f64 / seconds))
    })
}

/// The usual way of handing messages round in one process. It has no acks and drops what is not read in time.
fn broadcast(count: u64) -> Result<Sample, Absent> {
    use tokio::sync::broadcast::error::RecvError;
    runtime()?.block_on(async {
        let (tx, mut rx) = tokio::sync::broadcast::channel(5_000);
        let (seen, mut word) = tokio::sync::mpsc::channel(8);
        let began = clock::now();
        let reader = tokio::spawn(async move {
            let mut read = 0u64;
            loop {
                match rx.recv().await {
                    Ok(body) => {
                        let body: Bytes = body;
                        read += u64::from(body.len() == RECORD);
                        if read.is_multiple_of(2_500) {
                            let _ = seen.send(()).await;
                        }
                    }
                    Err(RecvError::Lagged(lost)) => return Err(format!("{lost} messages were overwritten")),
                    Err(RecvError::Closed) => return Ok(read),
                }
            }
        });
        let bodies = Bodies::new();
        for index in 0..count {
            let _ = tx.send(bodies.get(index));
            // It has no backpressure: word from the reader keeps the sender within its ring.
            if (index + 1) % 2_500 == 0 {
                let _ = word.recv().await;
            }
        }
        drop(tx);
        let read = reader.await.map_err(|error| error.to_string())??;
        let seconds = (clock::now() - began).as_secs_f64();
        Ok(Sample::new().with(MESSAGES, read as f64 / seconds))
    })
}
