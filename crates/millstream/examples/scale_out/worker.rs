//! One process of the pipeline, of which as many run as there is work for.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use millstream::message::StreamFrom;
use millstream::prelude::*;
use millstream::queue;
use millstream::rabbitmq::stream::{ConsumerOptions, StreamClient, StreamSettings};

use super::account::Writer;

/// Queues, or partitions, that share the keys.
pub(crate) const PARTS: usize = 4;
/// What one piece of work takes.
const WORK: Duration = Duration::from_micros(300);
/// Deliveries that a worker may have in hand of one queue: so much comes again if it dies.
pub(crate) const PREFETCH: usize = 20;
/// The same of a partition of a stream, and after how many its offset is stored.
pub(crate) const CHUNK: usize = 20;

/// One queue for all workers; or for order by key one for each part of the keys, from which one worker at a time takes.
pub(crate) fn queues(name: &str, keyed: bool) -> Vec<Queue> {
    if keyed {
        (0..PARTS).map(|part| Queue::durable(format!("{name}.{part}")).single_active_consumer()).collect()
    } else {
        vec![Queue::durable(name)]
    }
}

/// Takes from queues until the process ends, from keyed ones only while no other worker does. A message is settled when its
/// work is in the account.
pub(crate) async fn on_queues(
    broker: Arc<dyn Broker>,
    queues: &[Queue],
    account: &Path,
    name: &str,
) -> Result<(), BoxError> {
    let mut runs = Vec::new();
    for queue in queues {
        let mut account = Writer::open(account, name)?;
        // Whoever takes from a queue says what kind of queue he takes it to be: if it is another kind, he hears of it.
        broker.declare_queue(queue.clone()).await?;
        let options = ConsumeOptions::default().prefetch(PREFETCH).name(name);
        let consumer = broker.consume(&queue.name, options).await?;
        let work = queue::messages(consumer)
            .map_async(1, async |message| {
                tokio::time::sleep(WORK).await;
                message
            })
            .try_map(move |message| account.done(message.body()))
            .fail_fast();
        runs.push(work.for_each(drop).start());
    }
    for run in runs {
        run.join().await?;
    }
    Ok(())
}

/// Takes its share of a super stream's partitions until the process ends.
pub(crate) async fn on_super_stream(
    url: &str,
    super_stream: &str,
    account: &Path,
    name: &str,
) -> Result<(), BoxError> {
    let mut account = Writer::open(account, name)?;
    let client = StreamClient::connect(StreamSettings::parse(url)?).await?;
    // All workers have one name here: it is the group's.
    let options = ConsumerOptions::default().name("workers").single_active().store_every(CHUNK as u64);
    let mut consumer = client.super_consumer(super_stream, StreamFrom::First, options).await?;
    loop {
        let (_, work) = consumer.next_chunk(CHUNK).await?;
        if work.is_empty() {
            return Ok(());
        }
        for item in work {
            tokio::time::sleep(WORK).await;
            account.done(item.message.body())?;
        }
    }
}
