//! The brokers of a process: each directory is opened once and shared by all pipelines that name it.

use millstream_embedded::{EmbeddedBroker, Settings};
use millstream_message::{Broker, BrokerError};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::Mutex;

/// Opens brokers by their directory and keeps them open. Give one to all pipelines of a process, and
/// [`close`](Brokers::close) it after the last has ended.
#[derive(Default)]
pub struct Brokers {
    open: Mutex<HashMap<PathBuf, Arc<dyn Broker>>>,
    /// Stands in for every directory, if given.
    instead: Option<Arc<dyn Broker>>,
}

impl Brokers {
    /// No broker is open yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Every directory is this broker: for tests, and for programs that have a broker already.
    pub fn of(broker: Arc<dyn Broker>) -> Self {
        Brokers { open: Mutex::default(), instead: Some(broker) }
    }

    /// The broker in `directory`.
    ///
    /// # Errors
    ///
    /// If it cannot be opened: locked by another process, damaged, or the disk.
    pub async fn open(&self, directory: &Path) -> Result<Arc<dyn Broker>, BrokerError> {
        if let Some(broker) = &self.instead {
            return Ok(broker.clone());
        }
        let mut open = self.open.lock().await;
        if let Some(broker) = open.get(directory) {
            return Ok(broker.clone());
        }
        let settings = Settings { memory_bytes: crate::bound::BROKER_BYTES, ..Settings::default() };
        let broker: Arc<dyn Broker> = Arc::new(EmbeddedBroker::open(directory, settings).await?);
        open.insert(directory.to_owned(), broker.clone());
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

impl std::fmt::Debug for Brokers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Brokers").field("instead", &self.instead.is_some()).finish_non_exhaustive()
    }
}
