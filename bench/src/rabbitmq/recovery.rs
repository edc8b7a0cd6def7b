//! From the loss of every connection until a message published after it has come back to a consumer.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use millstream_message::{Address, Broker, BrokerError, ConsumeOptions, Message};
use millstream_rabbitmq::RabbitMq;
use rustix::net::sockopt::set_socket_linger;
use tokio::sync::mpsc::{Receiver, channel};

use super::ours::Threads;
use super::work::{Act, QUEUE, Work};
use crate::case::{Absent, Sample, Scale};
use crate::clock;

pub(super) const MS: &str = "ms";
/// How often connections are lost; what counts is the longest time.
const CUTS: u64 = 5;
const TIME_MAX: Duration = Duration::from_secs(20);

/// Stands between a client and the server, and can cut every connection.
struct Relay {
    address: String,
    sockets: Arc<Mutex<Vec<TcpStream>>>,
}

impl Relay {
    /// A relay to the server of `amqp://USER:PASSWORD@HOST:PORT/VHOST`.
    fn start(address: &str) -> io::Result<Relay> {
        let bad = || io::Error::new(io::ErrorKind::InvalidInput, "not amqp://USER:PASSWORD@HOST:PORT/VHOST");
        let (login, rest) = address.split_once('@').ok_or_else(bad)?;
        let (server, vhost) = rest.split_once('/').ok_or_else(bad)?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = format!("{login}@{}/{vhost}", listener.local_addr()?);
        let sockets = Arc::new(Mutex::new(Vec::new()));
        let (server, kept) = (server.to_owned(), sockets.clone());
        std::thread::spawn(move || -> io::Result<()> {
            loop {
                let (client, server) = (listener.accept()?.0, TcpStream::connect(&server)?);
                client.set_nodelay(true)?;
                server.set_nodelay(true)?;
                if let Ok(mut kept) = kept.lock() {
                    kept.extend([client.try_clone()?, server.try_clone()?]);
                }
                let (back, forth) = (client.try_clone()?, server.try_clone()?);
                std::thread::spawn(move || copy(client, server));
                std::thread::spawn(move || copy(forth, back));
            }
        });
        Ok(Relay { address, sockets })
    }

    /// Resets every connection, on both sides.
    fn cut(&self) {
        let sockets =
            self.sockets.lock().map(|mut sockets| std::mem::take(&mut *sockets)).unwrap_or_default();
        for socket in sockets {
            // The last one to let go of it sends a reset; the other threads let go of it at once.
            let _ = set_socket_linger(&socket, Some(Duration::ZERO));
            let _ = socket.shutdown(Shutdown::Read);
        }
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Read);
}

/// Waits for the message of this number; those before may come again.
async fn arrives(arrived: &mut Receiver<u64>, number: u64) -> Result<(), Absent> {
    let awaited = async { while arrived.recv().await.is_some_and(|found| found != number) {} };
    let waited = tokio::time::timeout(TIME_MAX, awaited).await;
    waited.map_err(|_| format!("nothing came back within {} s of a reset", TIME_MAX.as_secs()))
}

fn body(number: u64) -> Bytes {
    Bytes::copy_from_slice(&number.to_be_bytes())
}

fn number(body: &[u8]) -> u64 {
    body.try_into().map_or(u64::MAX, u64::from_be_bytes)
}

fn prepare() -> Result<Relay, Absent> {
    let address = Work::new(Act::Both, 1).prepare()?;
    Relay::start(&address).map_err(|error| format!("a relay: {error}"))
}

/// Publishes number after number, each of them after a cut but the first, and gives the longest time in milliseconds.
async fn longest<P: Future<Output = Result<(), Absent>>>(
    relay: &Relay,
    mut arrived: Receiver<u64>,
    publish: impl Fn(u64) -> P,
) -> Result<Sample, Absent> {
    let mut longest = Duration::ZERO;
    for number in 0..=CUTS {
        if number > 0 {
            relay.cut();
        }
        let began = clock::now();
        tokio::time::timeout(TIME_MAX, publish(number))
            .await
            .map_err(|_| format!("nothing was confirmed within {} s of a reset", TIME_MAX.as_secs()))??;
        arrives(&mut arrived, number).await?;
        if number > 0 {
            longest = longest.max(clock::now() - began);
        }
    }
    Ok(Sample::new().with(MS, longest.as_secs_f64() * 1e3))
}

/// Nothing is written for the loss: a publish and a consumer, as ever.
pub(super) fn ours(_: Scale) -> Result<Sample, Absent> {
    let relay = prepare()?;
    Threads::Two.runtime()?.block_on(async {
        let told = |error: BrokerError| error.to_string();
        let broker = RabbitMq::connect(&relay.address).await.map_err(told)?;
        let mut consumer = broker.consume(QUEUE, ConsumeOptions::default()).await.map_err(told)?;
        let (arrival, arrived) = channel(64);
        tokio::spawn(async move {
            while let Some(Ok(delivery)) = consumer.next().await {
                let _ = arrival.send(number(delivery.message.body())).await;
                delivery.ack();
            }
        });
        let (broker, to) = (&broker, &Address::queue(QUEUE));
        longest(&relay, arrived, |number| async move {
            let outcome = broker.publish(to, Message::new(body(number))).await.map_err(told)?;
            if outcome.is_confirmed() { Ok(()) } else { Err(format!("{outcome:?}")) }
        })
        .await
    })
}

/// How long a publish of lapin's and its recovery may take: after a reset one may wait for ever.
#[cfg(feature = "peers-rabbitmq")]
const TRY: Duration = Duration::from_secs(1);

/// As its example of automatic recovery has it: whoever meets an error waits, and does it again.
#[cfg(feature = "peers-rabbitmq")]
pub(super) fn lapin(_: Scale) -> Result<Sample, Absent> {
    use futures_util::StreamExt;
    use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions};
    use lapin::types::FieldTable;
    use lapin::{BasicProperties, Connection, ConnectionProperties, Error};

    let relay = prepare()?;
    Threads::Two.runtime()?.block_on(async {
        let told = |error: Error| error.to_string();
        let properties = ConnectionProperties::default().enable_auto_recover();
        let connection = Connection::connect(&relay.address, properties).await.map_err(told)?;
        let publisher = connection.create_channel().await.map_err(told)?;
        publisher.confirm_select(ConfirmSelectOptions::default()).await.map_err(told)?;
        let taker = connection.create_channel().await.map_err(told)?;
        let options = BasicConsumeOptions::default();
        let consuming = taker.basic_consume(QUEUE.into(), "bench".into(), options, FieldTable::default());
        let mut consumer = consuming.await.map_err(told)?;
        let (arrival, arrived) = channel(64);
        tokio::spawn(async move {
            while let Some(delivery) = consumer.next().await {
                match delivery {
                    Ok(delivery) => {
                        let _ = arrival.send(number(&delivery.data)).await;
                        let _ = delivery.ack(BasicAckOptions::default()).await;
                    }
                    Err(error) => {
                        if taker.wait_for_recovery(error).await.is_err() {
                            return;
                        }
                    }
                }
            }
        });
        let publisher = &publisher;
        longest(&relay, arrived, |number| async move {
            loop {
                let body = body(number);
                let options = BasicPublishOptions::default();
                let properties = BasicProperties::default();
                let confirmed = async {
                    let confirm = async {
                        publisher
                            .basic_publish("".into(), QUEUE.into(), options, &body, properties)
                            .await?
                            .await
                    };
                    match confirm.await {
                        Ok(_) => Ok(true),
                        Err(error) => publisher.wait_for_recovery(error).await.map(|()| false),
                    }
                };
                match tokio::time::timeout(TRY, confirmed).await {
                    Ok(Ok(true)) => return Ok(()),
                    Ok(Err(error)) => return Err(told(error)),
                    Ok(Ok(false)) | Err(_) => {}
                }
            }
        })
        .await
    })
}
