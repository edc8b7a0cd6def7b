//! How far a stream was read, kept for the next time, and when what is reached is saved.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, Notify};
use tokio::time::sleep;

use crate::broker::Broker;
use crate::error::{BrokerError, BrokerErrorKind};

/// The time between two saves: a process that is killed repeats what it settled since the last one.
const SAVE_EVERY: Duration = Duration::from_millis(200);

/// The offset that a reader of a stream wants next, kept by the stream's broker.
pub struct StreamOffset {
    broker: Arc<dyn Broker>,
    stream: String,
    reader: String,
    /// One call at a time, so that no older offset overtakes a newer one.
    stored: Mutex<Option<u64>>,
}

impl fmt::Debug for StreamOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let StreamOffset { stream, reader, .. } = self;
        f.debug_struct("StreamOffset").field("stream", stream).field("reader", reader).finish_non_exhaustive()
    }
}

impl StreamOffset {
    /// The offset of `reader`, and where an earlier one stopped.
    ///
    /// # Errors
    /// If it cannot be looked up.
    pub async fn open(
        broker: Arc<dyn Broker>,
        stream: &str,
        reader: &str,
    ) -> Result<(Self, Option<u64>), BrokerError> {
        let stored = broker.stored_offset(stream, reader).await?;
        let (stream, reader) = (stream.to_owned(), reader.to_owned());
        Ok((StreamOffset { broker, stream, reader, stored: Mutex::new(stored) }, stored))
    }

    /// Stores the offset durably. It never goes back: one that is not beyond what was stored costs nothing.
    ///
    /// # Errors
    /// If it cannot be stored. The one before it stays.
    pub async fn store(&self, offset: u64) -> Result<(), BrokerError> {
        let mut stored = self.stored.lock().await;
        if stored.is_some_and(|stored| stored >= offset) {
            return Ok(());
        }
        self.broker.store_offset(&self.stream, &self.reader, offset).await?;
        *stored = Some(offset);
        Ok(())
    }

    /// Whether it is that of this reader of this stream.
    pub(crate) fn is_of(&self, stream: &str, reader: &str) -> bool {
        (self.stream.as_str(), self.reader.as_str()) == (stream, reader)
    }
}

/// Saves what has `changed` at once, and then every 200 ms at most, until dropped. Where a broker is out of reach
/// ([`Unavailable`](BrokerErrorKind::Unavailable)) it tries again.
///
/// # Errors
/// If it cannot be saved for another reason.
pub async fn keep_saving<F>(
    changed: &Notify,
    save: impl Fn() -> F,
) -> Result<(), Box<dyn Error + Send + Sync>>
where
    F: Future<Output = Result<(), Box<dyn Error + Send + Sync>>>,
{
    loop {
        changed.notified().await;
        while let Err(error) = save().await {
            let kind = error.downcast_ref().map(BrokerError::kind);
            if kind != Some(BrokerErrorKind::Unavailable) {
                return Err(error);
            }
            sleep(SAVE_EVERY).await;
        }
        sleep(SAVE_EVERY).await;
    }
}
