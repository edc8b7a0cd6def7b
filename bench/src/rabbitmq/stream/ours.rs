//! Millstream's own client, as a program uses it.

use std::collections::VecDeque;
use std::future::poll_fn;

use bytes::Bytes;
use millstream_message::{BrokerError, Message, StreamFrom, StreamSource};
use millstream_rabbitmq::stream::{ConsumerOptions, Producer, ProducerOptions, StreamClient, StreamSettings};

use super::{Act, BATCH, BODY, Place, WINDOW, Work, body};
use crate::case::{Absent, Sample};
use crate::rabbitmq::ours::Threads;
use crate::rabbitmq::work::Meter;

/// Messages that are asked for at once.
const CHUNK: usize = 1000;

pub(super) fn run(work: Work, threads: Threads) -> Result<Sample, Absent> {
    let place = work.prepare()?;
    threads.runtime()?.block_on(async {
        // The work is a task like any other, and not the one that the runtime treats apart.
        let measuring = tokio::spawn(async move { measure(work, &place).await });
        measuring.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    })
}

async fn measure(work: Work, place: &Place) -> Result<Sample, BrokerError> {
    let client = StreamClient::connect(StreamSettings::parse(&place.url)?).await?;
    let sample = if work.act == Act::Consume {
        let options = ConsumerOptions::default();
        let mut consumer = client.consumer(&place.stream, StreamFrom::First, options).await?;
        let mut items = Vec::with_capacity(CHUNK);
        let mut meter = Meter::start();
        for (count, begins) in [(work.warm(), true), (work.count, false)] {
            let mut taken = 0;
            while taken < count {
                let max = CHUNK.min((count - taken) as usize);
                taken += poll_fn(|cx| consumer.poll_chunk(cx, max, &mut items)).await? as u64;
                assert!(items.drain(..).all(|item| item.message.body().len() == BODY));
            }
            if begins {
                meter = Meter::start();
            }
        }
        meter.stop(work.count)
    } else {
        let options = ProducerOptions {
            entry_messages: if work.act == Act::PublishEntries { BATCH as u16 } else { 1 }
                .try_into()
                .expect("above 0"),
            in_flight_bytes_max: usize::MAX,
            ..ProducerOptions::default()
        };
        let producer = client.producer(&place.stream, options).await?;
        let body = body(BODY);
        publish(&producer, &body, work.warm()).await?;
        let meter = Meter::start();
        publish(&producer, &body, work.count).await?;
        meter.stop(work.count)
    };
    client.close().await;
    Ok(sample)
}

/// Publishes in batches, awaiting the oldest confirm when the window is full.
async fn publish(producer: &Producer, body: &Bytes, count: u64) -> Result<(), BrokerError> {
    let mut unconfirmed = VecDeque::with_capacity(WINDOW as usize);
    for _ in 0..count / BATCH {
        if unconfirmed.len() as u64 == WINDOW
            && let Some(confirm) = unconfirmed.pop_front()
        {
            let confirm: millstream_message::Confirm = confirm;
            assert!(confirm.await.all_confirmed());
        }
        let batch: Vec<Message> = (0..BATCH).map(|_| Message::new(body.clone())).collect();
        unconfirmed.push_back(producer.send(&batch).await?);
    }
    for confirm in unconfirmed {
        assert!(confirm.await.all_confirmed());
    }
    Ok(())
}
