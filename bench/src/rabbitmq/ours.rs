//! Millstream's own client, as a program uses it: through [`Broker`] alone.

use std::collections::VecDeque;

use bytes::Bytes;
use millstream_message::{Address, Batch, Broker, BrokerError, ConsumeOptions, Consumer, Message};
use millstream_rabbitmq::RabbitMq;

use super::work::{ACK_EVERY, Act, Meter, QUEUE, WINDOW, Work, body};
use crate::case::{Absent, Sample};

/// On which runtime.
#[derive(Debug, Clone, Copy)]
pub(super) enum Threads {
    One,
    Two,
}

impl Threads {
    pub(super) fn runtime(self) -> Result<tokio::runtime::Runtime, Absent> {
        use tokio::runtime::Builder;
        let mut builder = match self {
            Threads::One => Builder::new_current_thread(),
            Threads::Two => Builder::new_multi_thread(),
        };
        builder.worker_threads(2).enable_all().build().map_err(|error| format!("a runtime: {error}"))
    }
}

pub(super) fn run(work: Work, threads: Threads) -> Result<Sample, Absent> {
    let address = work.prepare()?;
    threads.runtime()?.block_on(async {
        // The work is a task like any other, and not the one that the runtime treats apart.
        let measuring = tokio::spawn(async move { measure(work, &address).await });
        measuring.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    })
}

async fn measure(work: Work, address: &str) -> Result<Sample, BrokerError> {
    let broker = RabbitMq::connect(address).await?;
    let (warm, count) = (work.warm(), work.count);
    let body = body(work.body);
    let sample = match work.act {
        Act::Publish { window } => {
            publish(&broker, &body, window, warm).await?;
            let meter = Meter::start();
            publish(&broker, &body, window, count).await?;
            meter.stop(count)
        }
        Act::SettleEach | Act::SettleMany => {
            let mut consumer = consumer(&broker).await?;
            take(&mut consumer, work.act, warm).await?;
            let meter = Meter::start();
            take(&mut consumer, work.act, count).await?;
            meter.stop(count)
        }
        Act::Both => {
            let broker = std::sync::Arc::new(broker);
            let mut consumer = consumer(&*broker).await?;
            let mut meter = None;
            for count in [warm, count] {
                meter = Some(Meter::start());
                let (publisher, body) = (broker.clone(), body.clone());
                let publishing =
                    tokio::spawn(async move { publish(&*publisher, &body, WINDOW, count).await });
                take(&mut consumer, work.act, count).await?;
                publishing.await.expect("the publisher does not panic")?;
            }
            let sample = meter.expect("it ran").stop(count);
            broker.close().await?;
            return Ok(sample);
        }
    };
    broker.close().await?;
    Ok(sample)
}

fn consumer(broker: &dyn Broker) -> impl Future<Output = Result<Consumer, BrokerError>> {
    broker.consume(QUEUE, ConsumeOptions::default().prefetch(WINDOW as usize))
}

/// Publishes `count` messages, each confirmed, awaiting the oldest confirm when the window is full.
async fn publish(broker: &dyn Broker, body: &Bytes, window: u64, count: u64) -> Result<(), BrokerError> {
    let to = Address::queue(QUEUE);
    if window == 1 {
        for _ in 0..count {
            let outcome = broker.publish(&to, Message::new(body.clone())).await?;
            assert!(outcome.is_confirmed(), "{outcome:?}");
        }
        return Ok(());
    }
    let mut unconfirmed = VecDeque::with_capacity(window as usize);
    for _ in 0..count {
        if unconfirmed.len() as u64 == window
            && let Some(confirm) = unconfirmed.pop_front()
        {
            assert_confirmed(confirm).await;
        }
        let batch = Batch::to(&to, [Message::new(body.clone())]);
        unconfirmed.push_back(broker.submit(batch).await?);
    }
    for confirm in unconfirmed {
        assert_confirmed(confirm).await;
    }
    Ok(())
}

async fn assert_confirmed(confirm: millstream_message::Confirm) {
    let outcomes = confirm.await;
    assert!(outcomes.all_confirmed(), "{outcomes:?}");
}

/// Takes `count` deliveries and settles them.
async fn take(consumer: &mut Consumer, act: Act, count: u64) -> Result<(), BrokerError> {
    let mut taken = 0;
    if act == Act::SettleMany {
        let acker = consumer.acker();
        while taken < count {
            let most = ACK_EVERY.min(count - taken) as usize;
            let chunk = consumer.next_chunk(most).await?;
            let (Some(first), Some(last)) = (chunk.first(), chunk.last()) else { break };
            acker.ack_range(first.tag..last.tag + 1);
            taken += chunk.len() as u64;
        }
    } else {
        while taken < count {
            let Some(delivery) = consumer.next().await else { break };
            delivery?.ack();
            taken += 1;
        }
    }
    assert_eq!(taken, count, "the consumer ended early");
    Ok(())
}
