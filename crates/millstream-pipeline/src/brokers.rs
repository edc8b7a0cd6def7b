//! The brokers of a process: each is opened once and shared by all pipelines that name it.

use millstream_embedded::{EmbeddedBroker, Settings};
use millstream_message::{Broker, BrokerError, BrokerErrorKind, BrokerUrl};
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::Mutex;

/// Opens brokers by their URL and keeps them open. Give one to all pipelines of a process, and
/// [`close`](Brokers::close) it after the last has ended.
#[derive(Default)]
pub struct Brokers {
    open: Mutex<HashMap<BrokerUrl, Arc<dyn Broker>>>,
    /// Stands in for every one, if given.
    instead: Option<Arc<dyn Broker>>,
}

impl Brokers {
    /// No broker is open yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Every URL is this broker: for tests, and for programs that have a broker already.
    pub fn of(broker: Arc<dyn Broker>) -> Self {
        Brokers { open: Mutex::default(), instead: Some(broker) }
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
        if let Some(broker) = open.get(url) {
            return Ok(broker.clone());
        }
        let broker = open_broker(url, crate::bound::BROKER_BYTES).await?;
        open.insert(url.clone(), broker.clone());
        Ok(broker)
    }

    /// Closes every broker that was opened here, so that acknowledgements are on the disk.
    ///
    /// # Errors
    ///
    /// The first that could not be closed; the others are closed all the same.
    pub async fn close(&self) -> Result<(), BrokerError> {
        let mut first = Ok(());
        for (_, broker) in self.open.lock().await.drain() {
            first = first.and(broker.close().await);
        }
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
        BrokerUrl::Memory => Ok(Arc::new(EmbeddedBroker::memory(Settings::memory())?)),
        BrokerUrl::Embedded(directory) => {
            let settings = Settings { memory_bytes, ..Settings::default() };
            Ok(Arc::new(EmbeddedBroker::open(directory, settings).await?))
        }
        #[cfg(feature = "rabbitmq")]
        BrokerUrl::Amqp(url) => Ok(Arc::new(millstream_rabbitmq::RabbitMq::connect(url).await?)),
        #[cfg(feature = "rabbitmq")]
        BrokerUrl::RabbitmqStream(url) => {
            Ok(Arc::new(millstream_rabbitmq::stream::StreamBroker::connect(url).await?))
        }
        other => Err(BrokerError::new(
            BrokerErrorKind::Unsupported,
            format!(
                "this program cannot open `{other}`; known are `memory:`, `embedded:PATH` and `amqp://HOST`"
            ),
        )),
    }
}

impl std::fmt::Debug for Brokers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Brokers").field("instead", &self.instead.is_some()).finish_non_exhaustive()
    }
}
