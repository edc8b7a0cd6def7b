//! How to read a stream.

use std::num::NonZeroU64;

/// How to read a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumerOptions {
    /// The name under which the broker keeps an offset for this reader. Needed to store offsets by the reader itself,
    /// and for a single active consumer.
    pub name: Option<String>,
    /// About how many bytes of chunks may be on their way or waiting here. At least one chunk is, and one more is
    /// being read. Default 2 MiB.
    pub bytes_max: usize,
    /// Whether only one consumer of this name is given messages at a time; when it goes, the next goes on from the
    /// stored offset. Of a super stream each part has its one, and the broker spreads them over the consumers that
    /// there are. RabbitMQ 3.11 and later.
    ///
    /// When the broker makes another one the active one, this one forgets what it has not handed out, and the other one
    /// begins only after this one was asked for more, and so is done with what it has handed out.
    pub single_active: bool,
    /// Stores the offset by itself, under the consumer's name: whenever so many messages more are done, when another
    /// one takes over, and by [`close`](super::StreamConsumer::close). What was handed out counts as done when more is asked
    /// for. So after a crash about so many come again, and the chunk that was in hand. Each time takes a record in
    /// the stream: some thousands are enough. `None`, the default, leaves it to
    /// [`store_offset`](super::StreamConsumer::store_offset).
    pub store_every: Option<NonZeroU64>,
    /// Whether to begin at the offset that is stored under the name, when there is one.
    pub resume: bool,
}

impl Default for ConsumerOptions {
    fn default() -> ConsumerOptions {
        ConsumerOptions {
            name: None,
            bytes_max: 2 << 20,
            single_active: false,
            store_every: None,
            resume: false,
        }
    }
}

impl ConsumerOptions {
    /// Names the reader.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> ConsumerOptions {
        self.name = Some(name.into());
        self
    }

    /// Lets about so many bytes be on their way.
    #[must_use]
    pub fn bytes_max(mut self, bytes: usize) -> ConsumerOptions {
        self.bytes_max = bytes;
        self
    }

    /// Begins at the offset that is stored under the name, when there is one.
    #[must_use]
    pub fn resume(mut self) -> ConsumerOptions {
        self.resume = true;
        self
    }

    /// Stores the offset by itself, whenever so many messages more are done. Zero is read as one.
    #[must_use]
    pub fn store_every(mut self, messages: u64) -> ConsumerOptions {
        self.store_every = Some(NonZeroU64::new(messages).unwrap_or(NonZeroU64::MIN));
        self
    }

    /// Makes this one of several consumers of its name, of which one at a time is given messages.
    #[must_use]
    pub fn single_active(mut self) -> ConsumerOptions {
        self.single_active = true;
        self
    }
}
