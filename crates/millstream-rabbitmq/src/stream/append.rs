//! Appending with the offset as an answer.
//!
//! The protocol's confirm says that a message is stored, not where. So the first message of each append carries a mark,
//! and a consumer at the end of the stream, which lives as long as appends come, finds it there. That is exact whoever
//! else writes; it costs reading what is written.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use millstream_message::{BrokerError, BrokerErrorKind, Message, PublishOutcome, Refusal, StreamFrom};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::amqp::{Mark, size_hint};
use super::client::StreamClient;
use super::consumer::{ConsumerOptions, StreamConsumer};
use super::link::lost;
use super::producer::{Producer, ProducerOptions};

/// How long the consumer stays when nothing is appended.
const IDLE: Duration = Duration::from_secs(10);

/// Appends to one stream.
pub(crate) struct Appender {
    client: StreamClient,
    producer: Producer,
    /// Marks begin with it, so that those of other processes are not taken for ours.
    origin: u64,
    tail: tokio::sync::Mutex<Option<Arc<Tail>>>,
}

/// Who waits for which mark.
struct Tail {
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    by_mark: HashMap<Mark, oneshot::Sender<u64>>,
    /// Why nothing is found any more.
    over: Option<BrokerError>,
}

impl Appender {
    pub(crate) async fn open(client: StreamClient, stream: &str) -> Result<Appender, BrokerError> {
        let producer = client.producer(stream, ProducerOptions::default()).await?;
        Ok(Appender { client, producer, origin: fastrand::u64(..), tail: tokio::sync::Mutex::default() })
    }

    pub(crate) async fn append(&self, messages: &[Message]) -> Result<u64, BrokerError> {
        let max = self.producer.message_bytes_max();
        if let Some(large) = messages.iter().map(size_hint).find(|size| *size > max) {
            let text = format!(
                "a message of {large} bytes is too large: at most {max} are taken; nothing was appended"
            );
            return Err(BrokerError::new(BrokerErrorKind::Invalid, text));
        }
        let (tail, mark, offset) = self.expect().await?;
        let outcome = self.confirmed(messages, mark).await;
        if outcome.is_err() {
            tail.waiting.lock().by_mark.remove(&mark);
            outcome?;
        }
        match timeout(self.client.settings().patience, offset).await {
            Ok(Ok(offset)) => Ok(offset),
            Ok(Err(_)) => {
                Err(tail.waiting.lock().over.clone().unwrap_or_else(|| lost("the broker is closed")))
            }
            Err(_) => {
                tail.waiting.lock().by_mark.remove(&mark);
                Err(lost("the messages are stored, but could not be read back to learn their offset"))
            }
        }
    }

    async fn confirmed(&self, messages: &[Message], mark: Mark) -> Result<(), BrokerError> {
        let outcomes = self.producer.send_marked(messages, mark).await?.await;
        match outcomes.into_others().into_iter().next() {
            None => Ok(()),
            Some((
                _,
                PublishOutcome::Unconfirmed(error) | PublishOutcome::Refused(Refusal::Broker(error)),
            )) => Err(error),
            Some((place, outcome)) => {
                let text = format!("message {place} was not appended: {outcome:?}; others may be");
                Err(BrokerError::new(BrokerErrorKind::Invalid, text))
            }
        }
    }

    /// A mark, and where its offset will be told. Somebody looks for it from before the message is sent.
    async fn expect(&self) -> Result<(Arc<Tail>, Mark, oneshot::Receiver<u64>), BrokerError> {
        let mut slot = self.tail.lock().await;
        if let Some(tail) = &*slot
            && let Some((mark, offset)) = tail.expect(self.origin)
        {
            return Ok((tail.clone(), mark, offset));
        }
        let consumer = self
            .client
            .consumer(self.producer.stream(), StreamFrom::Next, ConsumerOptions::default())
            .await?;
        let tail = Arc::new(Tail { waiting: Mutex::default() });
        let (mark, offset) = tail.expect(self.origin).ok_or_else(|| lost("the broker is closed"))?;
        self.client.inner.spawn(tail.clone().read(consumer));
        *slot = Some(tail.clone());
        Ok((tail, mark, offset))
    }
}

impl Tail {
    /// `None` when it has ended.
    fn expect(&self, origin: u64) -> Option<(Mark, oneshot::Receiver<u64>)> {
        let mut waiting = self.waiting.lock();
        if waiting.over.is_some() {
            return None;
        }
        let mut mark = [0; 16];
        mark[..8].copy_from_slice(&origin.to_be_bytes());
        // Tails of one appender come one after the other: their marks must differ, too.
        mark[8..].copy_from_slice(&fastrand::u64(..).to_be_bytes());
        let (sender, offset) = oneshot::channel();
        waiting.by_mark.insert(mark, sender);
        Some((mark, offset))
    }

    /// Finds marks until nobody has waited for one for a while.
    async fn read(self: Arc<Tail>, mut consumer: StreamConsumer) {
        loop {
            let read = poll_fn(|cx| {
                consumer.poll_each(cx, 1000, |offset, _, _, mark| {
                    if let Some(mark) = mark
                        && let Some(found) = self.waiting.lock().by_mark.remove(&mark)
                    {
                        // Whoever asked may not wait any more.
                        let _ = found.send(offset);
                    }
                })
            });
            let (idle, error) = match timeout(IDLE, read).await {
                Ok(Ok(count)) if count > 0 => continue,
                Ok(Ok(_)) => (false, lost("the broker is closed")),
                // A consumer that has failed says so for ever.
                Ok(Err(error)) => (false, error),
                Err(_) => (true, lost("nothing was appended for a while")),
            };
            let mut waiting = self.waiting.lock();
            // Who has gone does not wait: his message was found, or never sent.
            waiting.by_mark.retain(|_, offset| !offset.is_closed());
            if idle && !waiting.by_mark.is_empty() {
                continue;
            }
            waiting.over = Some(error);
            waiting.by_mark.clear();
            return;
        }
    }
}
