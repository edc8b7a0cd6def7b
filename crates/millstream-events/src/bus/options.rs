//! How to subscribe.

use std::fmt;

use millstream_flow::{Concurrency, Retry};
use millstream_message::{ConsumeOptions, Json, Queue};

use super::inbox::Inbox;

type Change = Box<dyn FnOnce(Queue) -> Queue + Send>;

/// How to subscribe: from which exchange, by which queue, and how the handler is called.
///
/// ```
/// use std::time::Duration;
/// use millstream_events::Subscribe;
/// use millstream_flow::{Concurrency, Retry};
///
/// let options = Subscribe::new()
///     .name("invoices")
///     .to("billing.public") // another service's events
///     .concurrency(Concurrency::unordered(16))
///     .retry(Retry::attempts(5).unwrap().first_delay(Duration::from_secs(1)))
///     .prefetch(64)
///     .queue(|queue| queue.max_items(100_000).max_priority(9));
/// ```
#[must_use = "options do nothing until something is subscribed by them"]
pub struct Subscribe<C = Json> {
    pub(super) codec: C,
    pub(super) name: Option<String>,
    pub(super) exchange: Option<String>,
    pub(super) concurrency: Concurrency,
    pub(super) retry: Retry,
    pub(super) consumer: ConsumeOptions,
    pub(super) queue: Option<Change>,
    pub(super) temporary: bool,
    pub(super) inbox: Option<Inbox>,
}

impl Subscribe {
    /// Events of the bus's exchange with bodies of JSON, handled one after the other, each tried once, unless said otherwise.
    pub fn new() -> Subscribe {
        Subscribe {
            codec: Json,
            name: None,
            exchange: None,
            concurrency: Concurrency::ordered(1),
            retry: Retry::never(),
            consumer: ConsumeOptions::default(),
            queue: None,
            temporary: false,
            inbox: None,
        }
    }
}

impl Default for Subscribe {
    fn default() -> Subscribe {
        Subscribe::new()
    }
}

impl<C> Subscribe<C> {
    /// Names the subscription, and by that its queue: `SERVICE.EXCHANGE.NAME`. Subscriptions of one service by the same name have
    /// the same queue and compete for its events; to have two handlers for one event, give each a name. Without one it
    /// is the event's type; a subscription to several types needs one.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Subscribes to the events of this exchange instead of the bus's own: what another service publishes for others.
    pub fn to(mut self, exchange: impl Into<String>) -> Self {
        self.exchange = Some(exchange.into());
        self
    }

    /// Reads bodies by this codec instead of as JSON.
    pub fn codec<D>(self, codec: D) -> Subscribe<D> {
        let Subscribe { codec: _, name, exchange, concurrency, retry, consumer, queue, temporary, inbox } =
            self;
        Subscribe { codec, name, exchange, concurrency, retry, consumer, queue, temporary, inbox }
    }

    /// How many calls of the handler run at once, whether what is done is settled in order, and how long one may take. More than
    /// one at once is no order, but [by key](crate::EventBus::subscribe_by_key).
    pub fn concurrency(mut self, concurrency: impl Into<Concurrency>) -> Self {
        self.concurrency = concurrency.into();
        self
    }

    /// How often and after which delays an event is tried again, for which errors, and how long one attempt may take; as
    /// [`Work::retry`](millstream_message::flow::Work::retry). Nobody waits meanwhile, and what is tried again loses its place.
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// How many events may be in hand at once, handled or waiting for that. Not less than the concurrency.
    pub fn prefetch(mut self, events: usize) -> Self {
        self.consumer = self.consumer.prefetch(events);
        self
    }

    /// All that can be said of the consumer: priority, exclusiveness, lease, prefetch. Replaces what [`prefetch`](Self::prefetch)
    /// said.
    pub fn consumer(mut self, options: ConsumeOptions) -> Self {
        self.consumer = options;
        self
    }

    /// Changes how the queue is declared: limits, priorities, time to live, a delivery limit. It is durable, with dead letters,
    /// otherwise. A queue that is there already has to be declared as it is.
    pub fn queue(mut self, change: impl FnOnce(Queue) -> Queue + Send + 'static) -> Self {
        self.queue = Some(Box::new(change));
        self
    }

    /// Listens only while it lives: by a queue of its own, which nobody shares, begins empty, and goes with the subscription; when the
    /// process dies, a [minute](crate::TEMPORARY_IDLE) later. A connection that is lost for less loses no event. There are no
    /// dead letters: what is not handled in its last attempt is gone, and counted.
    pub fn temporary(mut self) -> Self {
        self.temporary = true;
        self
    }

    /// Skips what this inbox knows as handled.
    pub fn inbox(mut self, inbox: Inbox) -> Self {
        self.inbox = Some(inbox);
        self
    }
}

impl<C> fmt::Debug for Subscribe<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscribe")
            .field("name", &self.name)
            .field("exchange", &self.exchange)
            .field("concurrency", &self.concurrency)
            .field("temporary", &self.temporary)
            .field("inbox", &self.inbox.is_some())
            .finish_non_exhaustive()
    }
}
