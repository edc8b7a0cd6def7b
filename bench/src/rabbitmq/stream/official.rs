//! rabbitmq-stream-client, RabbitMQ's own in Rust. A batch is sent at once, confirms come by a callback, which counts them.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use rabbitmq_stream_client::types::{Message, OffsetSpecification};
use rabbitmq_stream_client::{Environment, NoDedup, Producer};
use tokio::sync::Semaphore;

use super::{Act, BATCH, BODY, Place, WINDOW, Work, body};
use crate::case::{Absent, Sample};
use crate::rabbitmq::ours::Threads;
use crate::rabbitmq::work::Meter;

/// The longest it is waited for: it may wait for a confirm for ever.
const LONG: Duration = Duration::from_secs(60);

type Failure = Box<dyn std::error::Error + Send + Sync>;

pub(super) fn run(work: Work) -> Result<Sample, Absent> {
    if work.act == Act::PublishEntries {
        return Err("it makes no entries of several messages".to_owned());
    }
    let place = work.prepare()?;
    Threads::Two.runtime()?.block_on(async {
        let measuring = tokio::spawn(async move { measure(work, &place).await });
        let ended = tokio::time::timeout(LONG, measuring).await;
        let ended = ended.map_err(|_| format!("it is not done in {} s", LONG.as_secs()))?;
        ended.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    })
}

async fn measure(work: Work, place: &Place) -> Result<Sample, Failure> {
    let host = place.url.split('@').nth(1).and_then(|rest| rest.split('/').next());
    let (host, port) = host.and_then(|host| host.split_once(':')).ok_or("no HOST:PORT in the URL")?;
    let environment = Environment::builder().host(host).port(port.parse()?).build().await;
    let environment = environment.map_err(|error| format!("{error}; it needs RabbitMQ 3.11"))?;
    if work.act == Act::Consume {
        let builder = environment.consumer().offset(OffsetSpecification::First);
        let mut consumer = builder.build(&place.stream).await?;
        let mut meter = Meter::start();
        for (count, begins) in [(work.warm(), true), (work.count, false)] {
            for _ in 0..count {
                let delivery = consumer.next().await.ok_or("the consumer ended")??;
                assert_eq!(delivery.message().data().map(<[u8]>::len), Some(BODY));
            }
            if begins {
                meter = Meter::start();
            }
        }
        return Ok(meter.stop(work.count));
    }
    let producer = environment.producer().batch_size(BATCH as usize).build(&place.stream).await?;
    publish(&producer, work.warm()).await?;
    let meter = Meter::start();
    publish(&producer, work.count).await?;
    Ok(meter.stop(work.count))
}

async fn publish(producer: &Producer<NoDedup>, count: u64) -> Result<(), Failure> {
    let body = body(BODY);
    let room = Arc::new(Semaphore::new((WINDOW * BATCH) as usize));
    for _ in 0..count / BATCH {
        room.acquire_many(BATCH as u32).await?.forget();
        let batch = (0..BATCH).map(|_| Message::builder().body(body.to_vec()).build()).collect();
        let room = room.clone();
        let confirmed = move |_| {
            room.add_permits(1);
            std::future::ready(())
        };
        producer.batch_send(batch, confirmed).await?;
    }
    room.acquire_many((WINDOW * BATCH) as u32).await?.forget();
    Ok(())
}
