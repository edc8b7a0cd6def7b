//! amqprs. A publish is handed to a task that writes; confirms come by a callback, which counts them.

use std::sync::Arc;

use amqprs::callbacks::ChannelCallback;
use amqprs::channel::{
    BasicAckArguments, BasicConsumeArguments, BasicPublishArguments, BasicQosArguments, Channel,
    ConfirmSelectArguments, ConsumerMessage,
};
use amqprs::connection::{Connection, OpenConnectionArguments};
use amqprs::error::Error;
use amqprs::{Ack, BasicProperties, Cancel, CloseChannel, DELIVERY_MODE_PERSISTENT, Nack, Return};
use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::UnboundedReceiver;

use super::ours::Threads;
use super::raw::Confirmed;
use super::work::{ACK_EVERY, Act, Meter, QUEUE, WINDOW, Work, body};
use crate::case::{Absent, Sample};

type Result<T> = std::result::Result<T, Error>;

pub(super) fn run(work: Work) -> std::result::Result<Sample, Absent> {
    let address = work.prepare()?;
    Threads::Two.runtime()?.block_on(async {
        let measuring = tokio::spawn(async move { measure(work, &address).await });
        measuring.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    })
}

/// Opens the window as confirms come.
struct Confirms {
    confirmed: Confirmed,
    room: Arc<Semaphore>,
}

#[async_trait]
impl ChannelCallback for Confirms {
    async fn close(&mut self, _: &Channel, _: CloseChannel) -> Result<()> {
        Ok(())
    }
    async fn cancel(&mut self, _: &Channel, _: Cancel) -> Result<()> {
        Ok(())
    }
    async fn flow(&mut self, _: &Channel, active: bool) -> Result<bool> {
        Ok(active)
    }
    async fn publish_ack(&mut self, _: &Channel, ack: Ack) {
        let before = self.confirmed.count();
        self.confirmed.add(ack.delivery_tag(), ack.mutiple());
        self.room.add_permits((self.confirmed.count() - before) as usize);
    }
    async fn publish_nack(&mut self, _: &Channel, _: Nack) {}
    async fn publish_return(&mut self, _: &Channel, _: Return, _: BasicProperties, _: Vec<u8>) {}
}

#[derive(Clone)]
struct Publisher {
    channel: Channel,
    room: Arc<Semaphore>,
    window: u64,
    body: Bytes,
}

impl Publisher {
    async fn publish(&self, count: u64) -> Result<()> {
        let properties = BasicProperties::default().with_delivery_mode(DELIVERY_MODE_PERSISTENT).finish();
        let to = BasicPublishArguments::new("", QUEUE);
        for _ in 0..count {
            self.room.acquire().await.expect("it stays open").forget();
            self.channel.basic_publish(properties.clone(), self.body.to_vec(), to.clone()).await?;
        }
        let _all = self.room.acquire_many(self.window as u32).await.expect("it stays open");
        Ok(())
    }
}

async fn measure(work: Work, address: &str) -> Result<Sample> {
    let (host, port) = place(address).ok_or_else(|| Error::UriError(address.to_owned()))?;
    let arguments = OpenConnectionArguments::new(&host, port, "guest", "guest");
    let (outgoing, incoming) = (Connection::open(&arguments).await?, Connection::open(&arguments).await?);
    let (warm, count) = (work.warm(), work.count);
    let window = if let Act::Publish { window } = work.act { window } else { WINDOW };
    let publisher = Publisher {
        channel: outgoing.open_channel(None).await?,
        room: Arc::new(Semaphore::new(window as usize)),
        window,
        body: body(work.body),
    };
    let confirms = Confirms { confirmed: Confirmed::default(), room: publisher.room.clone() };
    publisher.channel.register_callback(confirms).await?;
    publisher.channel.confirm_select(ConfirmSelectArguments::default()).await?;
    let taker = incoming.open_channel(None).await?;
    if let Act::Publish { .. } = work.act {
        publisher.publish(warm).await?;
        let meter = Meter::start();
        publisher.publish(count).await?;
        return Ok(meter.stop(count));
    }
    taker.basic_qos(BasicQosArguments::new(0, WINDOW as u16, false)).await?;
    let (_, mut deliveries) = taker.basic_consume_rx(BasicConsumeArguments::new(QUEUE, "bench")).await?;
    let mut meter = None;
    for count in [warm, count] {
        meter = Some(Meter::start());
        if work.act == Act::Both {
            let publisher = publisher.clone();
            let publishing = tokio::spawn(async move { publisher.publish(count).await });
            take(&taker, &mut deliveries, work.act, count).await?;
            publishing.await.expect("the publisher does not panic")?;
        } else {
            take(&taker, &mut deliveries, work.act, count).await?;
        }
    }
    Ok(meter.expect("it ran").stop(count))
}

async fn take(
    channel: &Channel,
    deliveries: &mut UnboundedReceiver<ConsumerMessage>,
    act: Act,
    count: u64,
) -> Result<()> {
    for taken in 1..=count {
        let Some(ConsumerMessage { deliver: Some(deliver), .. }) = deliveries.recv().await else {
            return Err(Error::ChannelUseError("the consumer ended".to_owned()));
        };
        let many = act == Act::SettleMany;
        if !many || taken % ACK_EVERY == 0 || taken == count {
            channel.basic_ack(BasicAckArguments::new(deliver.delivery_tag(), many)).await?;
        }
    }
    Ok(())
}

/// Host and port of `amqp://guest:guest@HOST:PORT/…`.
fn place(address: &str) -> Option<(String, u16)> {
    let (_, rest) = address.split_once('@')?;
    let (host, port) = rest.split('/').next()?.rsplit_once(':')?;
    Some((host.to_owned(), port.parse().ok()?))
}
