//! Subscribing: declares what is needed and leads events to a handler.

use std::hash::Hash;
use std::time::Duration;

use millstream_flow::{Concurrency, Flow, Pipe, Retry, Token};
use millstream_message::flow::{Failure, Job, Work};
use millstream_message::{Binding, BrokerError, Codec, CodecError, Consumer, Exchange, ExchangeKind, Queue};

use super::context::{EventContext, Reading, Received, no_event};
use super::envelope::EnvelopeError;
use super::error::no_queues;
use super::inbox::Inbox;
use super::options::Subscribe;
use super::subscription::{HANDLED_BEFORE, Place, Subscribing, Temporary};
use super::{BusError, EventBus, TYPE_MAX, shortened};
use crate::event::new_id;
use crate::{Event, EventData};

/// How long the queue of a [temporary](Subscribe::temporary) subscription stays when its process has died, on brokers that outlive it.
pub const TEMPORARY_IDLE: Duration = Duration::from_secs(60);

/// What is needed to work on a subscription's queue.
struct Opened<C> {
    codec: C,
    rules: (Concurrency, Retry),
    consumer: Consumer,
    place: Place,
    inbox: Option<Inbox>,
}

impl EventBus {
    /// Subscribes a handler to the events of a type, all [`TYPES`](EventData::TYPES) of it. It begins when it is
    /// [started](Subscribing::start); its queue collects events from now on.
    ///
    /// The queue is the service's: another service gets each event, too, and several processes of this one share them. Declared are,
    /// if they are not there, the exchange, the queue, its bindings, and a queue for its dead letters, of the queue's name and
    /// `.dead`. A type that has lost one of its `TYPES` leaves that binding behind: what still comes by it is a dead letter.
    ///
    /// The handler is called once for each delivery. An event is acknowledged when it has returned; by a
    /// [`Failure`] it is tried again, dead, or given back, as [`Work`] says, and so it is by a panic or when it
    /// takes too long. What is no event, or cannot be read, is a dead letter, with the reason in
    /// [`DETAIL`](millstream_message::dead::DETAIL).
    ///
    /// # Ordering
    /// Events of one publisher come in the order in which they were published, and are handled in it, as long as the
    /// [concurrency](Subscribe::concurrency) is one and one process has the queue. What is tried again, or given back by a
    /// consumer that died, has lost its place.
    ///
    /// # Backpressure
    /// The [prefetch](Subscribe::prefetch) bounds what is in hand. What is not, waits in the queue, which grows unless
    /// it is [limited](Subscribe::queue).
    ///
    /// # Errors
    /// `Broker`, if the broker has no queues (`Unsupported`), something is there and otherwise declared (`Mismatch`), or it cannot be
    /// reached; `Unnamed`, for several types without a [name](Subscribe::name); `EventType`, for a type that is none.
    ///
    /// # Cancel safety
    /// Dropping the future leaves some of it declared; to subscribe again goes on from there.
    ///
    /// ```
    /// use millstream_events::{Event, EventBus, EventContext, EventData, Subscribe};
    /// use serde::{Deserialize, Serialize};
    /// use std::time::Duration;
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
    /// let bus = EventBus::new(broker, "warehouse");
    /// let (seen, mut pieces) = tokio::sync::mpsc::channel(8);
    /// let handler = async move |event: &Placed, context: &EventContext| {
    ///     assert_eq!((context.event_type(), context.attempt()), ("orders.placed", 1));
    ///     Ok(seen.send(event.pieces).await?) // an error is tried again
    /// };
    /// let subscription = bus.subscribe(Subscribe::new(), handler).await?.start();
    /// assert_eq!(subscription.queue(), "warehouse.events.orders.placed");
    ///
    /// bus.publish(Event::of(&Placed { pieces: 3 })?).await?;
    /// assert_eq!(pieces.recv().await, Some(3));
    /// subscription.stop(Duration::from_secs(5)).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn subscribe<E, C, H>(
        &self,
        options: Subscribe<C>,
        handler: H,
    ) -> Result<Subscribing<impl Flow<Item = (), Token = Token> + use<E, C, H>>, BusError>
    where
        E: EventData,
        C: Codec<E> + 'static,
        H: AsyncFn(&E, &EventContext) -> Result<(), Failure> + 'static,
    {
        let Opened { codec, rules, consumer, place, inbox } = self.open(E::TYPES, options).await?;
        let (broker, queue) = (place.broker.clone(), place.queue.clone());
        let work = work(rules, reading(codec));
        let done = work.start(broker, consumer, async move |job: &Job<Received<E>>| {
            once(inbox.as_ref(), EventContext::of(job, &queue), async |context| {
                handler(&job.value.value, context).await
            })
            .await
        });
        Ok(Subscribing { pipe: without_skipped(done), place })
    }

    /// As [`subscribe`](EventBus::subscribe), with events of one key one after the other, in the order of the queue, and those of
    /// different keys at once, as many as the [concurrency](Subscribe::concurrency) says.
    ///
    /// # Ordering
    /// Within a key that of the queue, while one process has it; what is tried again loses its place. Backpressure, errors
    /// and cancel safety are those of `subscribe`.
    pub async fn subscribe_by_key<E, C, Q, K, H>(
        &self,
        options: Subscribe<C>,
        key: K,
        handler: H,
    ) -> Result<Subscribing<impl Flow<Item = (), Token = Token> + use<E, C, Q, K, H>>, BusError>
    where
        K: Fn(&EventContext) -> Q + 'static,
        E: EventData,
        C: Codec<E> + 'static,
        Q: Hash,
        H: AsyncFn(&E, &EventContext) -> Result<(), Failure> + 'static,
    {
        let Opened { codec, rules, consumer, place, inbox } = self.open(E::TYPES, options).await?;
        let (broker, queue) = (place.broker.clone(), place.queue.clone());
        let work = work(rules, reading(codec));
        let of_key = queue.clone();
        let key = move |job: &Job<Received<E>>| key(&EventContext::of(job, &of_key));
        let done = work.start_by_key(broker, consumer, key, async move |job: &Job<Received<E>>| {
            once(inbox.as_ref(), EventContext::of(job, &queue), async |context| {
                handler(&job.value.value, context).await
            })
            .await
        });
        Ok(Subscribing { pipe: without_skipped(done), place })
    }

    /// Subscribes a handler to events of all types that match one of these patterns, with their bodies as they came: `orders.*` for
    /// one more word, `orders.#` for any number, `#` for every event. Several patterns, or one with a wildcard, need a
    /// [name](Subscribe::name). All else is as [`subscribe`](EventBus::subscribe) says; the codec is not asked.
    ///
    /// # Errors
    /// As there.
    pub async fn subscribe_all<C, H>(
        &self,
        patterns: &[&str],
        options: Subscribe<C>,
        handler: H,
    ) -> Result<Subscribing<impl Flow<Item = (), Token = Token> + use<C, H>>, BusError>
    where
        H: AsyncFn(&Event, &EventContext) -> Result<(), Failure> + 'static,
    {
        let Opened { rules, consumer, place, inbox, .. } = self.open(patterns, options).await?;
        let (broker, queue) = (place.broker.clone(), place.queue.clone());
        let work = work(rules, Reading(|_: &Event| Ok(())));
        let done = work.start(broker, consumer, async move |job: &Job<Received<()>>| {
            once(inbox.as_ref(), EventContext::of(job, &queue), async |context| {
                handler(context.event(), context).await
            })
            .await
        });
        Ok(Subscribing { pipe: without_skipped(done), place })
    }

    /// Declares the exchange, the queues and the bindings, and begins to consume.
    async fn open<C>(&self, types: &[&str], options: Subscribe<C>) -> Result<Opened<C>, BusError> {
        let Subscribe {
            codec,
            name,
            exchange,
            concurrency,
            retry,
            consumer,
            queue: change,
            temporary,
            inbox,
        } = options;
        let broker = self.broker().clone();
        if !broker.features().queues {
            return Err(BusError::Broker(no_queues(broker.url())));
        }
        if types.is_empty() {
            return Err(BusError::EventType { event_type: String::new(), reason: "there is not one" });
        }
        for &pattern in types {
            let reason = match pattern.len() {
                0 => "it is empty",
                len if len > TYPE_MAX => "it is longer than 255 bytes",
                _ => continue,
            };
            return Err(BusError::EventType { event_type: shortened(pattern), reason });
        }
        let name = match (name, types) {
            (Some(name), _) => name,
            (None, [one]) if !has_wildcards(one) => (*one).to_owned(),
            (None, _) if temporary => "temporary".to_owned(),
            (None, types) => return Err(BusError::Unnamed(format!("`{}`", types.join("`, `")))),
        };
        let exchange = exchange.as_deref().unwrap_or(self.exchange_used());
        let queue = self.queue_name(exchange, &name);
        let (queue, dead) = match temporary {
            true => (format!("{queue}.{}", new_id()), None),
            false => (queue.clone(), Some(format!("{queue}.dead"))),
        };
        let mut declared = Queue::durable(&queue);
        declared = match &dead {
            Some(dead) => declared.dead_letter("", dead),
            None if broker.features().queue_expiry => declared.expires(TEMPORARY_IDLE),
            None => Queue::exclusive(&queue),
        };
        let temporary = temporary.then(|| Temporary::new(broker.clone(), queue.clone()));
        if let Some(change) = change {
            declared = change(declared);
            declared.name.clone_from(&queue);
        }

        let declaring = async {
            broker.declare_exchange(Exchange::durable(exchange, ExchangeKind::Topic)).await?;
            if let Some(dead) = &dead {
                broker.declare_queue(Queue::durable(dead)).await?;
            }
            broker.declare_queue(declared).await?;
            for pattern in types {
                broker.bind(Binding::new(exchange, *pattern, &queue)).await?;
            }
            broker.consume(&queue, consumer).await
        };
        let consumer: Result<Consumer, BrokerError> = declaring.await;
        let consumer = consumer.map_err(BusError::Broker)?;
        let place = Place { broker, queue: queue.into(), dead, acker: consumer.acker(), temporary };
        Ok(Opened { codec, rules: (concurrency, retry), consumer, place, inbox })
    }
}

fn work<D>((concurrency, retry): (Concurrency, Retry), codec: D) -> Work<D> {
    Work::new(codec).concurrency(concurrency).retry(retry)
}

/// Reads the values of events of the types that `E` has.
fn reading<E: EventData, C: Codec<E>>(codec: C) -> Reading<impl Fn(&Event) -> Result<E, CodecError>> {
    Reading(move |event: &Event| {
        if E::TYPES.contains(&event.event_type.as_str()) {
            return codec.decode(&event.data);
        }
        let (declared, wanted) = (shortened(&event.event_type), format!("`{}`", E::TYPES.join("`, `")));
        Err(no_event::<E>(EnvelopeError::Type { declared, wanted }))
    })
}

/// Handles an event unless it was; says whether it did.
async fn once(
    inbox: Option<&Inbox>,
    context: EventContext,
    handle: impl AsyncFnOnce(&EventContext) -> Result<(), Failure>,
) -> Result<bool, Failure> {
    let Some(inbox) = inbox else { return handle(&context).await.map(|()| true) };
    let Some(claim) = inbox.claim(context.queue_shared(), context.id()).await else { return Ok(false) };
    handle(&context).await?;
    claim.handled();
    Ok(true)
}

fn without_skipped<F>(done: Pipe<F>) -> Pipe<impl Flow<Item = (), Token = Token>>
where
    F: Flow<Item = bool, Token = Token>,
{
    done.filter(|handled| *handled).named(HANDLED_BEFORE).map(drop)
}

fn has_wildcards(pattern: &str) -> bool {
    pattern.split('.').any(|word| matches!(word, "*" | "#"))
}
