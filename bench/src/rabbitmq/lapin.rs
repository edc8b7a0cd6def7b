//! lapin.

use std::collections::VecDeque;

use futures_util::{StreamExt, TryStreamExt, stream};
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, Consumer, Error};

use super::ours::Threads;
use super::work::{ACK_EVERY, Act, Meter, QUEUE, WINDOW, Work, body};
use crate::case::{Absent, Sample};

/// How it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// One publish or ack awaited after the other, as its examples have it.
    OneByOne,
    /// Many futures at once, which spares it most of the waking of its task.
    ManyAtOnce,
}

const PERSISTENT: u8 = 2;

pub(super) fn run(work: Work, form: Form) -> Result<Sample, Absent> {
    let address = work.prepare()?;
    Threads::Two.runtime()?.block_on(async {
        let measuring = tokio::spawn(async move { measure(work, form, &address).await });
        measuring.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    })
}

async fn measure(work: Work, form: Form, address: &str) -> Result<Sample, Error> {
    let connect = || async {
        let connection = Connection::connect(address, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        Ok::<_, Error>((connection, channel))
    };
    let (_outgoing, publisher) = connect().await?;
    publisher.confirm_select(ConfirmSelectOptions::default()).await?;
    let (_incoming, taker) = connect().await?;
    let body = body(work.body);
    let (warm, count) = (work.warm(), work.count);
    match work.act {
        Act::Publish { window } => {
            publish(&publisher, &body, window, warm, form).await?;
            let meter = Meter::start();
            publish(&publisher, &body, window, count, form).await?;
            Ok(meter.stop(count))
        }
        Act::SettleEach | Act::SettleMany => {
            let mut consumer = consumer(&taker).await?;
            take(&mut consumer, work.act, warm, form).await?;
            let meter = Meter::start();
            take(&mut consumer, work.act, count, form).await?;
            Ok(meter.stop(count))
        }
        Act::Both => {
            let mut consumer = consumer(&taker).await?;
            let mut meter = None;
            for count in [warm, count] {
                meter = Some(Meter::start());
                let (publisher, body) = (publisher.clone(), body.clone());
                let publishing =
                    tokio::spawn(async move { publish(&publisher, &body, WINDOW, count, form).await });
                take(&mut consumer, work.act, count, form).await?;
                publishing.await.expect("the publisher does not panic")?;
            }
            Ok(meter.expect("it ran").stop(count))
        }
    }
}

async fn consumer(channel: &Channel) -> Result<Consumer, Error> {
    channel.basic_qos(WINDOW as u16, BasicQosOptions::default()).await?;
    let options = BasicConsumeOptions::default();
    channel.basic_consume(QUEUE.into(), "bench".into(), options, FieldTable::default()).await
}

async fn publish(channel: &Channel, body: &[u8], window: u64, count: u64, form: Form) -> Result<(), Error> {
    let properties = BasicProperties::default().with_delivery_mode(PERSISTENT);
    let one = || {
        let options = BasicPublishOptions::default();
        channel.basic_publish("".into(), QUEUE.into(), options, body, properties.clone())
    };
    if form == Form::ManyAtOnce {
        let all = stream::iter(0..count).map(|_| async { one().await?.await });
        return all.buffer_unordered(window as usize).try_for_each(|_| async { Ok(()) }).await;
    }
    let mut unconfirmed = VecDeque::new();
    for _ in 0..count {
        unconfirmed.push_back(one().await?);
        if unconfirmed.len() as u64 >= window
            && let Some(confirm) = unconfirmed.pop_front()
        {
            assert!(confirm.await?.is_ack(), "it is confirmed");
        }
    }
    for confirm in unconfirmed {
        assert!(confirm.await?.is_ack(), "it is confirmed");
    }
    Ok(())
}

async fn take(consumer: &mut Consumer, act: Act, count: u64, form: Form) -> Result<(), Error> {
    if act == Act::SettleMany {
        for taken in 1..=count {
            let Some(delivery) = consumer.next().await else { break };
            let delivery = delivery?;
            if taken % ACK_EVERY == 0 || taken == count {
                delivery.ack(BasicAckOptions { multiple: true }).await?;
            }
        }
        return Ok(());
    }
    let settled = consumer
        .take(count as usize)
        .map(|delivery| async { delivery?.ack(BasicAckOptions::default()).await });
    let at_once = if form == Form::ManyAtOnce { WINDOW as usize } else { 1 };
    settled.buffer_unordered(at_once).try_for_each(|_| async { Ok(()) }).await
}
