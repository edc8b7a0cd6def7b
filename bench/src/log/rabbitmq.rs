//! RabbitMQ as a peer: the same life of a message through a broker that is a server.

use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Connection, ConnectionProperties};

use super::queue::{BATCH, Bodies, MESSAGES, runtime};
use crate::case::{Absent, Sample};
use crate::clock;

/// Says where the server is; without it, the usual port of this machine.
const ADDRESS: &str = "MILLSTREAM_BENCH_AMQP";
const ADDRESS_DEFAULT: &str = "amqp://guest:guest@127.0.0.1:5672/%2f";
const QUEUE: &str = "millstream-bench";
/// lapin's marker of a persistent message.
const PERSISTENT: u8 = 2;

/// Publishes `count` messages, durable and confirmed, up to 1,000 unconfirmed, and consumes and acks them.
pub(crate) fn measure(count: u64) -> Result<Sample, Absent> {
    let address = std::env::var(ADDRESS).unwrap_or_else(|_| ADDRESS_DEFAULT.to_owned());
    runtime()?.block_on(async {
        let connection = Connection::connect(&address, ConnectionProperties::default()).await.map_err(|error| {
            format!("no RabbitMQ answers ({error}); start one, or name one in {ADDRESS} (amqp://USER:PASSWORD@HOST/%2f)")
        })?;
        life(&connection, count).await.map_err(|error| format!("RabbitMQ: {error}"))
    })
}

async fn life(connection: &Connection, count: u64) -> Result<Sample, lapin::Error> {
    let publishing = connection.create_channel().await?;
    let consuming = connection.create_channel().await?;
    publishing.confirm_select(ConfirmSelectOptions::default()).await?;
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    publishing.queue_declare(QUEUE.into(), durable, FieldTable::default()).await?;
    consuming.basic_qos(1_000, BasicQosOptions::default()).await?;
    let mut consumer = consuming
        .basic_consume(QUEUE.into(), "bench".into(), BasicConsumeOptions::default(), FieldTable::default())
        .await?;
    let began = clock::now();
    let consume = async {
        let mut acked = 0;
        while acked < count {
            let Some(delivery) = consumer.next().await else { break };
            let Delivery { acker, .. } = delivery?;
            acker.ack(BasicAckOptions::default()).await?;
            acked += 1;
        }
        Ok::<_, lapin::Error>(())
    };
    let publish = async {
        let bodies = Bodies::new();
        let mut unconfirmed = std::collections::VecDeque::new();
        for index in 0..count {
            let properties = BasicProperties::default().with_delivery_mode(PERSISTENT);
            let options = BasicPublishOptions::default();
            let confirm = publishing
                .basic_publish("".into(), QUEUE.into(), options, &bodies.get(index), properties)
                .await?;
            unconfirmed.push_back(confirm);
            if unconfirmed.len() as u64 >= 2 * BATCH
                && let Some(confirm) = unconfirmed.pop_front()
            {
                confirm.await?;
            }
        }
        for confirm in unconfirmed {
            confirm.await?;
        }
        Ok::<_, lapin::Error>(())
    };
    futures_util::future::try_join(publish, consume).await?;
    let seconds = (clock::now() - began).as_secs_f64();
    publishing.queue_delete(QUEUE.into(), QueueDeleteOptions::default()).await?;
    Ok(Sample::new().with(MESSAGES, count as f64 / seconds))
}
