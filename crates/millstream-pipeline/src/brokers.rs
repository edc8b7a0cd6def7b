//! The brokers of a process: each is opened once and shared by all pipelines that name it.

use millstream_embedded::{EmbeddedBroker, Settings};
#[cfg(feature = "rabbitmq")]
use millstream_message::StreamedQueues;
use millstream_message::{Broker, BrokerError, BrokerErrorKind, BrokerUrl};
#[cfg(feature = "rabbitmq")]
use millstream_rabbitmq::stream::{StreamBroker, StreamClient};
#[cfg(feature = "rabbitmq")]
use millstream_rabbitmq::{RabbitMq, Statistics};
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::Mutex;

/// Opens brokers by their URL and keeps them open. Give one to all pipelines of a process, and
/// [`close`](Brokers::close) it after the last has ended.
pub struct Brokers {
    open: Mutex<Open>,
    /// What an embedded one keeps in memory.
    memory_bytes: u64,
    /// Stands in for every one, if given.
    instead: Option<Arc<dyn Broker>>,
    /// Those of `open` that are RabbitMQ. A lock of its own: another may be waited for while these are looked at.
    #[cfg(feature = "rabbitmq")]
    connected: std::sync::Mutex<Vec<(BrokerUrl, Connected)>>,
}

/// A RabbitMQ, by either protocol.
#[cfg(feature = "rabbitmq")]
enum Connected {
    Amqp(Arc<RabbitMq>),
    Streams(StreamClient),
}

#[cfg(feature = "rabbitmq")]
impl Connected {
    fn statistics(&self) -> Statistics {
        match self {
            Connected::Amqp(broker) => broker.statistics(),
            Connected::Streams(client) => client.statistics(),
        }
    }
}

#[derive(Default)]
struct Open {
    brokers: HashMap<BrokerUrl, Arc<dyn Broker>>,
    /// Those of them that are in this process, which know of damage.
    embedded: Vec<Arc<EmbeddedBroker>>,
}

impl Default for Brokers {
    fn default() -> Self {
        Self::new()
    }
}

impl Brokers {
    /// No broker is open yet. Each embedded one will keep as much in memory as the bound of a run says.
    pub fn new() -> Self {
        Self::holding(crate::bound::BROKER_BYTES)
    }

    /// No broker is open yet. Each embedded one will keep `memory_bytes` of messages in memory.
    pub fn holding(memory_bytes: u64) -> Self {
        Brokers {
            open: Mutex::default(),
            memory_bytes,
            instead: None,
            #[cfg(feature = "rabbitmq")]
            connected: Default::default(),
        }
    }

    /// Every URL is this broker: for tests, and for programs that have a broker already.
    pub fn of(broker: Arc<dyn Broker>) -> Self {
        Brokers { instead: Some(broker), ..Self::new() }
    }

    /// The broker behind a URL.
    ///
    /// # Errors
    ///
    /// If it cannot be opened: a directory locked by another process, damaged, or the disk; a server out of reach.
    pub async fn open(&self, url: &BrokerUrl) -> Result<Arc<dyn Broker>, BrokerError> {
        if let Some(broker) = &self.instead {
            return Ok(broker.clone());
        }
        let mut open = self.open.lock().await;
        if let Some(broker) = open.brokers.get(url) {
            return Ok(broker.clone());
        }
        let broker: Arc<dyn Broker> = match url {
            BrokerUrl::Memory | BrokerUrl::Embedded(_) => {
                let broker = Arc::new(open_embedded(url, self.memory_bytes).await?);
                open.embedded.push(broker.clone());
                broker
            }
            #[cfg(feature = "rabbitmq")]
            BrokerUrl::Amqp(address) => {
                let broker = Arc::new(RabbitMq::connect(address).await?);
                self.connected().push((url.clone(), Connected::Amqp(broker.clone())));
                broker
            }
            #[cfg(feature = "rabbitmq")]
            BrokerUrl::RabbitmqStream(address) => {
                let streams = StreamBroker::connect(address).await?;
                self.connected().push((url.clone(), Connected::Streams(streams.client().clone())));
                Arc::new(StreamedQueues::new(Arc::new(streams)))
            }
            _ => open_broker(url, self.memory_bytes).await?,
        };
        open.brokers.insert(url.clone(), broker.clone());
        Ok(broker)
    }

    /// What is known to be damaged in the brokers that were opened here, in sentences: see
    /// [`EmbeddedBroker::damage`].
    pub async fn damage(&self) -> Vec<String> {
        self.open.lock().await.embedded.iter().flat_map(|broker| broker.damage()).collect()
    }

    /// Figures of the connections to each RabbitMQ that is open here, by `amqp:` or `rabbitmq-stream:`, in the order of opening.
    #[cfg(feature = "rabbitmq")]
    pub fn statistics(&self) -> Vec<(BrokerUrl, Statistics)> {
        self.connected().iter().map(|(url, broker)| (url.clone(), broker.statistics())).collect()
    }

    #[cfg(feature = "rabbitmq")]
    fn connected(&self) -> std::sync::MutexGuard<'_, Vec<(BrokerUrl, Connected)>> {
        self.connected.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Closes every broker that was opened here, so that acknowledgements are on the disk.
    ///
    /// # Errors
    ///
    /// The first that could not be closed; the others are closed all the same.
    pub async fn close(&self) -> Result<(), BrokerError> {
        let mut first = Ok(());
        for (_, broker) in self.open.lock().await.brokers.drain() {
            first = first.and(broker.close().await);
        }
        #[cfg(feature = "rabbitmq")]
        self.connected().clear();
        first
    }
}

/// Opens the broker behind a URL; an embedded one keeps `memory_bytes` of messages in memory.
///
/// # Errors
///
/// As [`Brokers::open`].
pub async fn open_broker(url: &BrokerUrl, memory_bytes: u64) -> Result<Arc<dyn Broker>, BrokerError> {
    match url {
        BrokerUrl::Memory | BrokerUrl::Embedded(_) => Ok(Arc::new(open_embedded(url, memory_bytes).await?)),
        #[cfg(feature = "rabbitmq")]
        BrokerUrl::Amqp(url) => Ok(Arc::new(RabbitMq::connect(url).await?)),
        #[cfg(feature = "rabbitmq")]
        BrokerUrl::RabbitmqStream(url) => {
            Ok(Arc::new(StreamedQueues::new(Arc::new(StreamBroker::connect(url).await?))))
        }
        other => Err(unknown(other)),
    }
}

async fn open_embedded(url: &BrokerUrl, memory_bytes: u64) -> Result<EmbeddedBroker, BrokerError> {
    match url {
        BrokerUrl::Memory => EmbeddedBroker::memory(Settings::memory()),
        BrokerUrl::Embedded(directory) => {
            EmbeddedBroker::open(directory, Settings { memory_bytes, ..Settings::default() }).await
        }
        other => Err(unknown(other)),
    }
}

fn unknown(url: &BrokerUrl) -> BrokerError {
    let known = "known are `memory:`, `embedded:PATH`, `amqp://HOST` and `rabbitmq-stream://HOST`";
    BrokerError::new(BrokerErrorKind::Unsupported, format!("this program cannot open `{url}`; {known}"))
}

impl std::fmt::Debug for Brokers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Brokers").field("instead", &self.instead.is_some()).finish_non_exhaustive()
    }
}
