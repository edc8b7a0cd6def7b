//! The event bus: events for whoever wants them, on a broker's exchanges and queues.

mod context;
mod draft;
mod envelope;
mod error;
mod inbox;
mod options;
mod subscribe;
mod subscription;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

use millstream_flow::Clock;
use millstream_message::{
    Address, Batch, Broker, BrokerError, Codec, Exchange, ExchangeKind, Publish, PublishOutcome, Refusal,
};
use serde::Serialize;

pub use self::context::EventContext;
pub use self::draft::EventDraft;
pub use self::envelope::{
    AGGREGATE_ID, AGGREGATE_TYPE, AGGREGATE_VERSION, AggregateFacts, CAUSATION_ID, EVENT_METADATA,
    EVENT_SOURCE, EVENT_TYPE, Envelope, EnvelopeError, EnvelopePart,
};
pub use self::error::BusError;
pub use self::inbox::Inbox;
pub use self::options::Subscribe;
pub use self::subscribe::TEMPORARY_IDLE;
pub use self::subscription::{
    HANDLED_BEFORE, Subscribing, Subscription, SubscriptionStatistics, Unsubscribed,
};
use crate::{Event, EventData};

/// The exchange of a bus that was not told otherwise.
const EXCHANGE: &str = "events";

/// The longest type of an event, in bytes: the longest routing key.
const TYPE_MAX: usize = 255;

type Naming = dyn Fn(&str, &str, &str) -> String + Send + Sync;

/// Publishes a service's events, and subscribes its handlers to its own and others'.
///
/// Events go to a durable topic exchange, under their type as the key. Each [subscription](EventBus::subscribe) has a queue of its
/// service's there, so that every service that wants an event gets it once, and the processes of one service share
/// the work. The payload is the plain body of the message; what is known of it besides travels in properties and headers, as
/// [`Envelope`] says. It works on every broker with queues: `memory:`, `embedded:` and `amqp:`.
///
/// A clone is the same bus; a clone that is told another exchange or source counts into the same
/// [statistics](EventBus::statistics).
///
/// ```
/// use millstream_events::{EventBus, EventData, Published};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct Placed { pieces: u32 }
///
/// impl EventData for Placed {
///     const TYPES: &'static [&'static str] = &["orders.placed"];
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let broker = millstream_embedded::open(&"memory:".parse()?).await?;
/// let bus = EventBus::new(broker, "shop").exchange("shop.events");
/// let placed = bus.event(&Placed { pieces: 3 })?;
/// let published = placed.correlation_id("order-7").metadata("user", "ann").aggregate("order", "7", 1).publish().await?;
/// assert_eq!(published, Published::Unwanted, "nobody has subscribed");
/// assert_eq!(bus.statistics().unroutable, 1);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct EventBus {
    broker: Arc<dyn Broker>,
    service: Arc<str>,
    source: Arc<str>,
    exchange: Arc<str>,
    naming: Arc<Naming>,
    /// The exchange was declared, and was not missing since.
    declared: Arc<AtomicBool>,
    shared: Arc<Shared>,
}

struct Shared {
    clock: Clock,
    published: AtomicU64,
    unroutable: AtomicU64,
    refused: AtomicU64,
    unconfirmed: AtomicU64,
}

/// What became of an event that was published and not refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Published {
    /// It is stored for every subscriber.
    Stored,
    /// Nobody has subscribed to it, so that it is nowhere. For an event that is no error.
    Unwanted,
}

/// What became of all events that a bus published.
///
/// Their sum is the number of events whose publishing was waited for to its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct BusStatistics {
    /// Events stored for their subscribers.
    pub published: u64,
    /// Events that nobody has subscribed to.
    pub unroutable: u64,
    /// Events that are not stored: because the broker has refused them or did not take them, or their type is none.
    pub refused: u64,
    /// Events of which it is not known whether they are stored.
    pub unconfirmed: u64,
}

impl EventBus {
    /// The bus of this service on this broker, on the exchange `events`. Nothing is declared before something is published or
    /// subscribed.
    ///
    /// # Panics
    /// If the name is empty.
    pub fn new(broker: Arc<dyn Broker>, service: impl Into<String>) -> EventBus {
        let service: Arc<str> = service.into().into();
        assert!(!service.is_empty(), "a service has a name: its queues are called by it");
        let count = || AtomicU64::new(0);
        let (published, unroutable, refused, unconfirmed) = (count(), count(), count(), count());
        EventBus {
            broker,
            source: service.clone(),
            service,
            exchange: EXCHANGE.into(),
            naming: Arc::new(|service, exchange, name| format!("{service}.{exchange}.{name}")),
            declared: Arc::default(),
            shared: Arc::new(Shared { clock: Clock::system(), published, unroutable, refused, unconfirmed }),
        }
    }

    /// Publishes to this exchange, and subscribes to it unless [told otherwise](Subscribe::to).
    ///
    /// # Panics
    /// If the name is empty.
    #[must_use]
    pub fn exchange(mut self, name: impl Into<String>) -> EventBus {
        self.exchange = name.into().into();
        assert!(!self.exchange.is_empty(), "the exchange without a name has no topics");
        self.declared = Arc::default();
        self
    }

    /// What events say of where they come from, if not the service's name.
    #[must_use]
    pub fn source(mut self, source: impl Into<String>) -> EventBus {
        self.source = source.into().into();
        self
    }

    /// How the queues of subscriptions are called, by the names of the service, the exchange and the subscription; joined by
    /// dots otherwise. What gives two subscriptions one name has them share a queue.
    ///
    /// ```
    /// # use millstream_events::EventBus;
    /// # async fn example(broker: std::sync::Arc<dyn millstream_message::Broker>) {
    /// let bus = EventBus::new(broker, "shop").naming(|service, _, name| format!("{service}/{name}"));
    /// # }
    /// ```
    #[must_use]
    pub fn naming(mut self, name: impl Fn(&str, &str, &str) -> String + Send + Sync + 'static) -> EventBus {
        self.naming = Arc::new(name);
        self
    }

    /// The broker it is on.
    pub fn broker(&self) -> &Arc<dyn Broker> {
        &self.broker
    }

    /// The service's name.
    pub fn service(&self) -> &str {
        &self.service
    }

    /// An event of this value as JSON, of which more is to be said before it is published.
    ///
    /// # Errors
    /// `Codec`, if the value cannot be written.
    pub fn event<E: EventData>(&self, value: &E) -> Result<EventDraft, BusError> {
        Ok(self.draft(Event::of(value).map_err(BusError::Codec)?))
    }

    /// An event of this value as `codec` writes it, of which more is to be said before it is published.
    ///
    /// # Errors
    /// `Codec`, if the value cannot be written.
    pub fn event_with<E: EventData, C: Codec<E>>(
        &self,
        value: &E,
        codec: &C,
    ) -> Result<EventDraft, BusError> {
        let event = Event::encoded(value.event_type(), value, codec).map_err(BusError::Codec)?;
        Ok(self.draft(event))
    }

    /// This event, of which more is to be said before it is published.
    pub fn draft(&self, event: Event) -> EventDraft {
        EventDraft::new(self.clone(), event)
    }

    /// Publishes an event, and waits until it is stored for every subscriber.
    ///
    /// # Ordering
    /// Events that are published one after the other reach each subscriber in that order. Futures that are polled at once have none:
    /// [`publish_all`](EventBus::publish_all) has.
    ///
    /// # Backpressure
    /// Waits while the broker's bounded buffer is full.
    ///
    /// # Errors
    /// `EventType`: empty, longer than 255 bytes, or with a word `*` or `#`. `Refused` and `Unconfirmed` as they say. `Broker`, if the
    /// broker is closed or has no queues, or the exchange is there and is no durable topic exchange.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the event published or not, and counted nowhere.
    pub async fn publish(&self, event: Event) -> Result<Published, BusError> {
        self.draft(event).publish().await
    }

    /// Publishes events in their order, as one batch, and says of each, at its place, what became of it. One that is refused does not
    /// hold back the others.
    ///
    /// # Errors
    /// Of each as [`publish`](EventBus::publish). Order among them, backpressure and cancel safety are those of one.
    #[must_use = "each event has an outcome of its own"]
    pub async fn publish_all(
        &self,
        events: impl IntoIterator<Item = Event>,
    ) -> Vec<Result<Published, BusError>> {
        self.publish_drafts(events.into_iter().map(|event| self.draft(event)).collect()).await
    }

    async fn publish_draft(&self, draft: EventDraft) -> Result<Published, BusError> {
        let mut outcomes = self.publish_drafts(vec![draft]).await;
        outcomes.pop().expect("an event has an outcome")
    }

    pub(crate) async fn publish_drafts(&self, drafts: Vec<EventDraft>) -> Vec<Result<Published, BusError>> {
        let mut batch: Vec<Publish> = Vec::with_capacity(drafts.len());
        // The place in the batch, of those that are in it.
        let places: Vec<Result<usize, BusError>> = drafts
            .into_iter()
            .map(|draft| {
                batch.push(draft.into_publish_after(batch.last())?);
                Ok(batch.len() - 1)
            })
            .collect();
        let sent = match batch.is_empty() {
            true => None,
            false => Some(self.send(batch).await),
        };
        let outcome = |place: Result<usize, BusError>| match (place?, &sent) {
            (place, Some(Ok(outcomes))) => published(outcomes.get(place)),
            (_, Some(Err(error))) => Err(BusError::Broker(error.clone())),
            (_, None) => unreachable!("what has a place in the batch was sent"),
        };
        let outcomes: Vec<_> = places.into_iter().map(outcome).collect();
        outcomes.iter().for_each(|outcome| self.shared.count(outcome));
        outcomes
    }

    async fn send(&self, batch: Vec<Publish>) -> Result<millstream_message::Outcomes, BrokerError> {
        if !self.broker.features().queues {
            return Err(error::no_queues(self.broker.url()));
        }
        if !self.declared.load(Ordering::Acquire) {
            self.broker.declare_exchange(Exchange::durable(&*self.exchange, ExchangeKind::Topic)).await?;
            self.declared.store(true, Ordering::Release);
        }
        let outcomes = self.broker.publish_batch(Batch::from(batch)).await?;
        let missing =
            |outcome: &PublishOutcome| matches!(outcome, PublishOutcome::Refused(Refusal::NoExchange { .. }));
        if outcomes.others().iter().any(|(_, outcome)| missing(outcome)) {
            // Somebody has deleted it: it is declared again for the next ones.
            self.declared.store(false, Ordering::Release);
        }
        Ok(outcomes)
    }

    /// What became of the events that this bus and its clones published.
    pub fn statistics(&self) -> BusStatistics {
        let Shared { published, unroutable, refused, unconfirmed, .. } = &*self.shared;
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        BusStatistics {
            published: read(published),
            unroutable: read(unroutable),
            refused: read(refused),
            unconfirmed: read(unconfirmed),
        }
    }

    fn exchange_used(&self) -> &str {
        &self.exchange
    }

    fn source_used(&self) -> &str {
        &self.source
    }

    fn queue_name(&self, exchange: &str, name: &str) -> String {
        (self.naming)(&self.service, exchange, name)
    }

    fn now(&self) -> SystemTime {
        envelope::to_the_millisecond(self.shared.clock.now())
    }

    fn address_of(&self, event_type: &str) -> Result<Address, BusError> {
        let words = || event_type.split('.');
        let reason = match event_type.len() {
            0 => "it is empty",
            len if len > TYPE_MAX => "it is longer than 255 bytes",
            _ if words().any(|word| matches!(word, "*" | "#")) => "`*` and `#` are for patterns",
            _ => return Ok(Address::new(&*self.exchange, event_type)),
        };
        Err(BusError::EventType { event_type: shortened(event_type), reason })
    }
}

impl Shared {
    fn count(&self, outcome: &Result<Published, BusError>) {
        let count = match outcome {
            Ok(Published::Stored) => &self.published,
            Ok(Published::Unwanted) => &self.unroutable,
            Err(BusError::Unconfirmed(_)) => &self.unconfirmed,
            Err(_) => &self.refused,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

fn published(outcome: PublishOutcome) -> Result<Published, BusError> {
    match outcome {
        PublishOutcome::Confirmed => Ok(Published::Stored),
        PublishOutcome::Unroutable(_) => Ok(Published::Unwanted),
        PublishOutcome::Refused(refusal) => Err(BusError::Refused(refusal)),
        PublishOutcome::Unconfirmed(error) => Err(BusError::Unconfirmed(error)),
    }
}

/// As much of a type as is shown.
fn shortened(text: &str) -> String {
    let mut end = TYPE_MAX.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

impl fmt::Debug for EventBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventBus")
            .field("broker", &self.broker.url().to_string())
            .field("service", &self.service)
            .field("exchange", &self.exchange)
            .field("statistics", &self.statistics())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_message::{BrokerErrorKind, Message, Returned};

    /// What a broker says of an event is counted as that and as nothing else.
    #[tokio::test]
    async fn every_outcome_has_its_count() {
        let broker = millstream_embedded::open(&"memory:".parse().expect("a URL")).await.expect("opened");
        let bus = EventBus::new(broker, "shop");
        let lost = || BrokerError::new(BrokerErrorKind::Unavailable, "the connection was lost");
        let publish = Publish { to: Address::queue("q"), message: Message::new("") };
        let returned = Returned { publish, reason: String::new() };
        let cases = [
            (PublishOutcome::Confirmed, [1, 0, 0, 0]),
            (PublishOutcome::Unroutable(Box::new(returned)), [1, 1, 0, 0]),
            (PublishOutcome::Refused(Refusal::Broker(lost())), [1, 1, 1, 0]),
            (PublishOutcome::Unconfirmed(lost()), [1, 1, 1, 1]),
        ];
        for (outcome, counts) in cases {
            bus.shared.count(&published(outcome));
            let BusStatistics { published, unroutable, refused, unconfirmed } = bus.statistics();
            assert_eq!([published, unroutable, refused, unconfirmed], counts);
        }
    }

    #[test]
    fn a_long_type_is_cut_where_a_character_ends() {
        assert_eq!(shortened(&"é".repeat(200)), "é".repeat(127));
    }
}
