//! How far a source was read, kept from run to run: the offset of a stream's reader, and when what is reached is saved.

use millstream_flow::BoxError;
use millstream_message::{Broker, BrokerError, BrokerErrorKind};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, Notify};
use tokio::time::sleep;

/// The time between two saves: a process that is killed repeats what it settled since the last one.
const SAVE_EVERY: Duration = Duration::from_millis(200);

/// The offset that a reader of a stream wants next, kept by the stream's broker.
pub(crate) struct StreamOffset {
    broker: Arc<dyn Broker>,
    stream: String,
    reader: String,
    /// One call at a time, so that no older offset overtakes a newer one.
    stored: Mutex<Option<u64>>,
}

impl StreamOffset {
    /// The offset of `reader`, and where an earlier one stopped.
    ///
    /// # Errors
    ///
    /// If it cannot be looked up.
    pub(crate) async fn open(
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
    ///
    /// If it cannot be stored. The one before it stays.
    pub(crate) async fn store(&self, offset: u64) -> Result<(), BrokerError> {
        let mut stored = self.stored.lock().await;
        if stored.is_some_and(|stored| stored >= offset) {
            return Ok(());
        }
        self.broker.store_offset(&self.stream, &self.reader, offset).await?;
        *stored = Some(offset);
        Ok(())
    }

    /// Whether it is that of this reader of this stream.
    #[cfg(any(feature = "rabbitmq", test))]
    pub(crate) fn is_of(&self, stream: &str, reader: &str) -> bool {
        (self.stream.as_str(), self.reader.as_str()) == (stream, reader)
    }
}

/// Saves now and then what has `changed`, until dropped. Where a broker is out of reach it tries again.
///
/// # Errors
///
/// If it cannot be saved for another reason.
pub(crate) async fn keep_saving<F>(changed: &Notify, save: impl Fn() -> F) -> Result<(), BoxError>
where
    F: Future<Output = Result<(), BoxError>>,
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

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_embedded::{EmbeddedBroker, Settings};
    use millstream_message::StreamSpec;
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio::time::timeout;

    async fn broker() -> Arc<EmbeddedBroker> {
        let broker = Arc::new(EmbeddedBroker::memory(Settings::memory()).expect("a broker"));
        broker.declare_stream(StreamSpec::new("s")).await.expect("declared");
        broker
    }

    #[tokio::test]
    async fn an_offset_never_goes_back() {
        let broker = broker().await;
        broker.store_offset("s", "reader", 3).await.expect("stored");
        let (offset, stored) = StreamOffset::open(broker.clone(), "s", "reader").await.expect("opened");
        assert_eq!(stored, Some(3));
        for (store, expected) in [(2, 3), (7, 7), (5, 7)] {
            offset.store(store).await.expect("stored");
            let stored = broker.stored_offset("s", "reader").await.expect("looked up");
            assert_eq!(stored, Some(expected), "after {store}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_broker_out_of_reach_is_tried_again_and_another_trouble_is_told() {
        let (changed, tries) = (Notify::new(), AtomicU32::new(0));
        changed.notify_one();
        let save = || async {
            let kind = match tries.fetch_add(1, Ordering::Relaxed) {
                0..3 => BrokerErrorKind::Unavailable,
                3 => return Ok(()),
                _ => BrokerErrorKind::Storage,
            };
            Err(BrokerError::new(kind, "no").into())
        };
        let waits = timeout(Duration::from_secs(60), keep_saving(&changed, save)).await;
        assert!(waits.is_err(), "{waits:?}");
        assert_eq!(tries.load(Ordering::Relaxed), 4, "saved once, and then nothing has changed");
        changed.notify_one();
        let told = timeout(Duration::from_secs(60), keep_saving(&changed, save)).await.expect("told");
        assert_eq!(told.expect_err("told").to_string(), "no");
    }
}
