//! The outbox: what an event store holds, published to a bus.

use std::sync::Arc;
use std::time::Duration;

use millstream_flow::{Batch, Clock, Failed, Run, chain};
use millstream_message::Refusal;
use tokio::time::sleep;

use crate::bus::{BusError, EventBus};
use crate::saga;
use crate::store::{EventStore, Filter, RecordedEvent, StoreError};

/// A header of each message that an outbox publishes: the event's [position](crate::Position), as `offset.index`. It grows but where
/// events come again; what came before is told by the event's id.
pub const EVENT_POSITION: &str = "millstream-event-position";

/// The first and the longest pause before a broker that does not take events is asked again.
const PAUSE: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// How long an event may wait for others to be published with it.
const GATHER: Duration = Duration::from_millis(1);

/// Publishes the events of a store to a bus, each at least once and in their order, whatever happens to the process or the broker.
///
/// What a program decides and what others hear of it cannot be stored by two systems at once: if the program stores first, others may
/// never hear of it, and if it publishes first, they may hear of what never was. So it stores alone, and the outbox publishes what is
/// stored; how far it has come is kept by the store's broker. (The pattern is known as *transactional outbox*: Richardson,
/// *Microservices Patterns*, 2018, chapter 3.)
///
/// ```
/// use millstream_events::{Event, EventBus, EventStore, Expected, Filter, Outbox, Subscribe};
/// use millstream_message::Message;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// # use std::time::Duration;
/// # let broker = millstream_embedded::open(&"memory:".parse()?).await?;
/// let store = EventStore::open(broker.clone(), "orders").await?;
/// let bus = EventBus::new(broker.clone(), "shop");
/// # let (heard, mut hears) = tokio::sync::mpsc::channel(8);
/// # let subscription = EventBus::new(broker, "billing")
/// #     .subscribe_all(&["order-placed"], Subscribe::new().name("all"), async move |event, context| {
/// #         heard.send((event.id.clone(), context.aggregate().cloned())).await?;
/// #         Ok(())
/// #     })
/// #     .await?
/// #     .start();
/// let outbox = Outbox::new(store.clone(), bus, "to the shop's bus")
///     .filter(Filter::all().types(["order-placed"]))
///     .start()
///     .await?;
///
/// // Stored here, and heard there.
/// let placed = Event::new("order-placed", Message::new("3 lamps"));
/// # let id = placed.id.clone();
/// store.append("order-7", Expected::NoStream, [placed]).await?;
/// # let (heard, aggregate) = hears.recv().await.unwrap();
/// # assert_eq!(heard, id);
/// # assert_eq!(aggregate.unwrap().id, "7");
/// outbox.shutdown(Duration::from_secs(5)).await?;
/// # Ok(())
/// # }
/// ```
///
/// # Delivery
/// At least once: an event is settled when the bus has stored it, or has nobody who wants it. After a lost confirm or a crash it is
/// published again, with the same [id](crate::Event::id); an [`Inbox`](crate::Inbox) passes over what was handled before. While the queue of
/// one subscriber is full and rejects, nothing behind the event is published, and on RabbitMQ, which has stored it for the others, those get it
/// again with each try.
///
/// # Ordering
/// That of the log. If the broker takes an event of a batch only later (a full queue that rejects, a lost confirm), those behind it in the
/// same batch may be heard of before it, and are published again behind it; [`batch(1)`](Outbox::batch) keeps to the order then, too.
///
/// # Backpressure
/// A queue that is full is waited for, and so is a broker that is gone, with pauses of up to five seconds. Nothing is lost meanwhile: it is
/// in the store.
///
/// What is deleted or truncated before the outbox came to it is not published.
///
/// # Errors
/// An event that no broker will ever take (too large, with a type that is no routing key) is dead in the run's ledger, told in the log,
/// and passed over. A store that cannot be read fails the run.
#[derive(Clone, Debug)]
#[must_use = "nothing is published before `start`"]
pub struct Outbox {
    store: EventStore,
    bus: EventBus,
    name: String,
    filter: Filter,
    batch: usize,
}

impl Outbox {
    /// From this store to this bus. What it has published is remembered under `name`: one of another name publishes everything.
    pub fn new(store: EventStore, bus: EventBus, name: impl Into<String>) -> Self {
        Outbox { store, bus, name: name.into(), filter: Filter::all(), batch: 256 }
    }

    /// Publishes only these. Say which, where sagas use the store: their own events are of nobody else's concern.
    pub fn filter(mut self, filter: Filter) -> Self {
        self.filter = filter;
        self
    }

    /// How many events are published at once, at most. Default 256.
    ///
    /// # Panics
    /// If it is 0.
    pub fn batch(mut self, events: usize) -> Self {
        assert!(events > 0, "nothing would ever be published");
        self.batch = events;
        self
    }

    /// Publishes what was not published yet, and then whatever is appended, until the run is shut down.
    ///
    /// # Errors
    /// If an outbox of this name runs by this handle of the store, or the store cannot be read.
    pub async fn start(self) -> Result<Run<()>, StoreError> {
        let Outbox { store, bus, name, filter, batch } = self;
        let events = store.subscribe(name).filter(filter).open().await?.flow();
        let shared = Arc::new((bus, Clock::system()));
        let published = events.batch(Batch::count(batch).age(GATHER)).map_async(1, move |events| {
            let shared = shared.clone();
            async move { publish(&shared.0, &shared.1, events).await }
        });
        Ok(published.named("outbox").unbatch().reject().for_each(drop).start())
    }
}

/// Publishes events in their order, however long that takes; those that never will be are failures.
async fn publish(
    bus: &EventBus,
    clock: &Clock,
    events: Vec<RecordedEvent>,
) -> Vec<Result<(), Failed<RecordedEvent>>> {
    let mut results = Vec::with_capacity(events.len());
    let mut left = events.as_slice();
    let mut pause = PAUSE;
    // One that was not taken is tried alone: those behind it were, maybe, and would be again and again.
    let mut alone = false;
    while !left.is_empty() {
        let now = if alone { &left[..1] } else { left };
        let outcomes = bus.publish_drafts(now.iter().map(|event| draft(bus, event)).collect()).await;
        // Those before the first that is to be published again are done; it and all behind it come again, so that the order holds.
        let done = outcomes.iter().position(|outcome| outcome.as_ref().is_err_and(may_help_to_wait));
        let count = done.unwrap_or(now.len());
        alone = done.is_some();
        for (event, outcome) in now.iter().zip(outcomes).take(count + 1) {
            match outcome {
                Ok(_) => results.push(Ok(())),
                Err(error) if may_help_to_wait(&error) => {
                    let error = chain(&error);
                    tracing::warn!(error, position = %event.position, "an outbox waits for its broker");
                    break;
                }
                Err(error) => {
                    let (id, position) = (&event.event.id, event.position);
                    tracing::error!(error = chain(&error), id, %position, "an event will never be published");
                    results.push(Err(Failed::new(event.clone(), error, "outbox", clock.now())));
                }
            }
        }
        left = &left[count..];
        if alone {
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        } else {
            pause = PAUSE;
        }
    }
    results
}

fn draft(bus: &EventBus, event: &RecordedEvent) -> crate::bus::EventDraft {
    // `order-7` is what aggregates call theirs, `saga/NAME/7` sagas; of another name all of it is the id.
    let named = saga::names(&event.stream).or_else(|| event.stream.split_once('-'));
    let (kind, id) = named.unwrap_or(("", &event.stream));
    let draft = bus.draft(event.event.clone()).aggregate(kind, id, event.version);
    draft.header(EVENT_POSITION, event.position.to_string())
}

/// Whether the event may be taken later.
fn may_help_to_wait(error: &BusError) -> bool {
    use millstream_message::BrokerErrorKind::{Invalid, Unsupported};
    match error {
        BusError::Unconfirmed(_) | BusError::Refused(Refusal::Full { .. }) => true,
        BusError::Refused(Refusal::NoExchange { .. }) => true,
        BusError::Broker(error) | BusError::Refused(Refusal::Broker(error)) => {
            !matches!(error.kind(), Invalid | Unsupported)
        }
        _ => false,
    }
}
