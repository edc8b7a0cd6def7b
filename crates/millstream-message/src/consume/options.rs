//! How to consume.

use std::num::NonZeroUsize;
use std::time::Duration;

use crate::stream::StreamFrom;

/// How to consume.
#[derive(Clone, Debug, PartialEq)]
pub struct ConsumeOptions {
    /// How many deliveries may be unsettled at once. Default 1,000.
    pub prefetch_items: NonZeroUsize,
    /// How many a flow may let be unsettled at once that tunes this by itself; at least [`prefetch_items`](Self::prefetch_items).
    /// `None`: the number above is fixed. Default 65,535.
    pub prefetch_most: Option<NonZeroUsize>,
    /// How many bytes ([`Message::size`](crate::Message::size)) may be unsettled at once. One message larger than this is still delivered,
    /// alone. Default 16 MiB.
    pub prefetch_bytes: NonZeroUsize,
    /// Whether this must be the queue's only consumer. Consuming fails when there is another; while this one lives,
    /// others fail.
    pub exclusive: bool,
    /// A name for errors, stats and logs.
    pub name: String,
    /// How long a delivery may stay unsettled before it goes back to the queue and its tag becomes stale. `None`, the
    /// default, lets it stay for as long as the consumer lives.
    pub lease: Option<Duration>,
    /// Among several consumers of a queue, those with the highest number receive first, and others only what these have no
    /// prefetch left for. Default 0. Brokers without [`Features::consumer_priority`](crate::Features) refuse any other.
    pub priority: i32,
    /// Where to begin in a queue of kind [`Stream`](crate::QueueKind::Stream), where it is required; other queues have no such place.
    /// A stream keeps what is settled, in whatever way. What is given back is handed out again by the same consumer, before what follows,
    /// and has its place in the prefetch until it is settled.
    pub from: Option<StreamFrom>,
    /// Whether to end once nothing is ready or delayed. What is unsettled does not count: it may come back, and
    /// whoever drains a queue looks at its stats afterwards.
    pub stop_when_empty: bool,
}

impl Default for ConsumeOptions {
    fn default() -> ConsumeOptions {
        ConsumeOptions {
            prefetch_items: NonZeroUsize::new(1000).expect("1000 is not zero"),
            prefetch_most: NonZeroUsize::new(65_535),
            prefetch_bytes: NonZeroUsize::new(16 << 20).expect("16 MiB is not zero"),
            exclusive: false,
            name: String::new(),
            lease: None,
            priority: 0,
            from: None,
            stop_when_empty: false,
        }
    }
}

impl ConsumeOptions {
    /// Fixes the prefetch in items. Zero is read as one: a consumer that may receive nothing is no consumer.
    #[must_use]
    pub fn prefetch(mut self, items: usize) -> ConsumeOptions {
        self.prefetch_items = at_least_one(items);
        self.prefetch_most = None;
        self
    }

    /// Begins with this prefetch in items, and lets a flow move it, up to `most`. Zero is read as one, and `most` as at least
    /// `items`.
    #[must_use]
    pub fn prefetch_auto(mut self, items: usize, most: usize) -> ConsumeOptions {
        self.prefetch_items = at_least_one(items);
        self.prefetch_most = Some(at_least_one(most.max(items)));
        self
    }

    /// Sets the prefetch in bytes. Zero is read as one, which means one message at a time.
    #[must_use]
    pub fn prefetch_bytes(mut self, bytes: usize) -> ConsumeOptions {
        self.prefetch_bytes = at_least_one(bytes);
        self
    }

    /// Makes this the queue's only consumer.
    #[must_use]
    pub fn exclusive(mut self) -> ConsumeOptions {
        self.exclusive = true;
        self
    }

    /// Names the consumer.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> ConsumeOptions {
        self.name = name.into();
        self
    }

    /// Limits how long a delivery may stay unsettled.
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> ConsumeOptions {
        self.lease = Some(lease);
        self
    }

    /// Goes before consumers with a lower number.
    #[must_use]
    pub fn priority(mut self, priority: i32) -> ConsumeOptions {
        self.priority = priority;
        self
    }

    /// Begins there, in a queue that is a stream.
    #[must_use]
    pub fn from(mut self, from: StreamFrom) -> ConsumeOptions {
        self.from = Some(from);
        self
    }

    /// Ends once nothing is ready or delayed.
    #[must_use]
    pub fn stop_when_empty(mut self) -> ConsumeOptions {
        self.stop_when_empty = true;
        self
    }
}

fn at_least_one(number: usize) -> NonZeroUsize {
    NonZeroUsize::new(number).unwrap_or(NonZeroUsize::MIN)
}
