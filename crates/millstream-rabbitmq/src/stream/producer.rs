//! Publishing to one stream: batches, confirms, deduplication, and what happens when the connection is lost.

mod attach;
mod frame;
mod window;

use std::fmt;
use std::num::NonZeroU16;
use std::sync::Arc;

use millstream_message::{BrokerError, BrokerErrorKind, Confirm, Message};

use self::attach::{attach, supervise};
use self::frame::{FRAME_HEAD, Numbered};
pub(crate) use self::window::Shared;
use super::amqp::Mark;
use super::chunk::BATCH_HEADER;
use super::client::Inner;

/// How to publish to a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProducerOptions {
    /// The name under which the broker remembers the highest publishing id it has stored, so that what is published
    /// again is stored once: over reconnections, and over restarts of the process when it publishes with its own ids.
    /// One producer at a time may use a name on a stream. A stream remembers the last 255 names. `None`, the default,
    /// is at least once: what was in flight when a connection was lost may be there twice.
    pub name: Option<String>,
    /// How many messages may be unconfirmed. Default 10,000.
    pub in_flight_max: usize,
    /// How many bytes of frames may be unconfirmed; they are kept to be sent again. One batch that is larger goes
    /// alone. What is in flight together may become one chunk, which readers hold in memory as a whole: more than the
    /// default, 1 MiB, made nothing faster where it was measured, and readers larger.
    pub in_flight_bytes_max: usize,
    /// Messages that share one entry, one publishing id and one confirm. More than one makes small messages cheaper
    /// for the broker; only clients of the stream protocol can read them. Default 1.
    pub entry_messages: NonZeroU16,
}

impl Default for ProducerOptions {
    fn default() -> ProducerOptions {
        ProducerOptions {
            name: None,
            in_flight_max: 10_000,
            in_flight_bytes_max: 1 << 20,
            entry_messages: NonZeroU16::MIN,
        }
    }
}

impl ProducerOptions {
    /// Names the producer: what is published again is stored once.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> ProducerOptions {
        self.name = Some(name.into());
        self
    }

    /// Lets so many messages be unconfirmed. Zero is read as one.
    #[must_use]
    pub fn in_flight(mut self, messages: usize) -> ProducerOptions {
        self.in_flight_max = messages.max(1);
        self
    }

    /// Puts so many messages into one entry. Zero is read as one.
    #[must_use]
    pub fn entry_messages(mut self, messages: u16) -> ProducerOptions {
        self.entry_messages = NonZeroU16::new(messages).unwrap_or(NonZeroU16::MIN);
        self
    }
}

/// Publishes to one stream. Made by [`StreamClient::producer`](crate::stream::StreamClient::producer).
///
/// When the connection is lost the producer connects again by itself, to whichever node then leads the stream, and
/// sends what was not confirmed again, in order. Dropping it lets what is in flight be confirmed.
///
/// # Ordering
/// Messages are stored in the order of the calls of [`send`](Producer::send).
pub struct Producer {
    shared: Arc<Shared>,
}

impl Producer {
    /// Connects, declares the publisher, and learns how far it came.
    pub(crate) async fn open(
        client: Arc<Inner>,
        stream: &str,
        options: ProducerOptions,
    ) -> Result<Producer, BrokerError> {
        if let Some(name) = &options.name {
            super::client::check_name("producer", name)?;
        }
        let shared = Arc::new(Shared::new(stream, options, client.counters.clone()));
        let mut patience = client.patience();
        let last = loop {
            match attach(&client, &shared, true).await {
                Ok(last) => break last,
                Err(error) => patience.after(error).await?,
            }
        };
        shared.state.lock().next_id = last.saturating_add(1);
        client.spawn(supervise(client.clone(), shared.clone()));
        Ok(Producer { shared })
    }

    /// The stream.
    pub fn stream(&self) -> &str {
        &self.shared.stream
    }

    /// The highest publishing id given so far, by this producer or, under its name, by one before it; 0 when there
    /// was none. A producer that publishes, say, lines of a file with their numbers as ids goes on behind it.
    pub fn last_id(&self) -> u64 {
        self.shared.state.lock().next_id - 1
    }

    /// The largest message that fits into a frame, in bytes, about.
    pub fn message_bytes_max(&self) -> usize {
        self.shared.state.lock().frame_max.saturating_sub(FRAME_HEAD + BATCH_HEADER + 8 + 4 + 8)
    }

    /// Publishes a batch. Returns as soon as it has its place in the order and is on its way; the [`Confirm`]
    /// resolves when the broker has stored all of it, or said what it has not.
    ///
    /// A message that is too large for a frame is refused, and the others are published.
    ///
    /// # Backpressure
    /// Waits while the window (`in_flight_max`, `in_flight_bytes_max`) is full.
    ///
    /// # Cancel safety
    /// Dropped while it waits, nothing is published.
    ///
    /// # Errors
    /// `NotFound` once the stream was deleted. `Unavailable` when the broker has been out of reach for longer than
    /// [`patience`](crate::stream::StreamSettings::patience), or the producer is closed.
    pub async fn send(&self, messages: &[Message]) -> Result<Confirm, BrokerError> {
        self.shared.send(Numbered::Next(messages), None).await
    }

    /// The same with publishing ids of the caller's, which only grow. What the broker has already stored under the
    /// producer's name is confirmed and not stored again.
    ///
    /// # Errors
    /// `Invalid` when an id is not above the ones before it, or entries hold several messages.
    pub async fn send_with_ids(&self, messages: &[(u64, Message)]) -> Result<Confirm, BrokerError> {
        if self.shared.options.entry_messages.get() > 1 {
            let text =
                "an entry of several messages has one publishing id: give ids, or set `entry_messages`";
            return Err(BrokerError::new(BrokerErrorKind::Invalid, text));
        }
        self.shared.send(Numbered::Given(messages), None).await
    }

    /// The same as [`send`](Producer::send), with a mark on the first message.
    pub(crate) async fn send_marked(&self, messages: &[Message], mark: Mark) -> Result<Confirm, BrokerError> {
        self.shared.send(Numbered::Next(messages), Some(mark)).await
    }

    /// Waits until nothing is in flight and ends. What was sent is then confirmed, or its confirm said otherwise.
    pub async fn close(self) {
        self.shared.close();
        loop {
            let room = self.shared.room.notified();
            if self.shared.state.lock().frames.is_empty() {
                return;
            }
            room.await;
        }
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl fmt::Debug for Producer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer").field("stream", &self.shared.stream).finish_non_exhaustive()
    }
}
