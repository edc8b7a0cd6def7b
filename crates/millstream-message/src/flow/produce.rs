//! Publishing values from a service: one, many, or a stream of them, each with what became of it.

use std::collections::VecDeque;
use std::fmt;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::{
    Address, Batch, Broker, BrokerError, Codec, CodecError, Confirm, Message, Outcomes, Properties, Publish,
    PublishOutcome, Value,
};

/// Why nothing is known of a message: it was not handed to the broker.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProduceError {
    /// The codec cannot write the value.
    #[error("value {index} cannot be written")]
    Codec {
        /// Which of those that were given, from 0.
        index: usize,
        /// Why.
        #[source]
        error: CodecError,
    },
    /// The broker is closed.
    #[error("the broker does not take it")]
    Broker(#[source] BrokerError),
}

/// Publishes values of one type to one address, from any number of tasks. For flows there is
/// [`Publisher`](super::Publisher).
///
/// What is said of every message is said once, here; what one message says of itself wins. Every message asks to come back when
/// no queue wants it ([`Unroutable`](PublishOutcome::Unroutable)), and the outcome says where it is now.
///
/// ```
/// use std::time::Duration;
/// use millstream_message::flow::Producer;
/// use millstream_message::{Address, Broker, Json};
/// # use std::sync::Arc;
/// # async fn example(broker: Arc<dyn Broker>) -> Result<(), Box<dyn std::error::Error>> {
/// let orders: Producer<serde_json::Value> = Producer::new(broker, Address::queue("orders"), Json)
///     .ttl(Duration::from_secs(3600))
///     .header("tenant", "north")
///     .rate_limit(1000, Duration::from_secs(1));
/// assert!(orders.publish(&serde_json::json!({ "id": 7 })).await?.is_confirmed());
///
/// // One that says more of itself.
/// let urgent = orders.message(&serde_json::json!({ "id": 8 }))?.with_priority(9).with_correlation_id("8");
/// assert!(orders.publish_message(urgent).await?.is_confirmed());
///
/// // Many, without waiting for each.
/// let mut sending = orders.sending(1000);
/// for id in 9..10_000 {
///     sending.send(&serde_json::json!({ "id": id })).await?;
/// }
/// assert!(sending.finish().await.all_confirmed());
/// # Ok(())
/// # }
/// ```
pub struct Producer<T, C = crate::Json> {
    broker: Arc<dyn Broker>,
    to: Address,
    codec: C,
    said: Properties,
    pace: Option<Pace>,
    values: PhantomData<fn(&T)>,
}

/// A rate: the next message goes at this time.
struct Pace {
    each: Duration,
    next: Mutex<Instant>,
}

impl<T, C> Producer<T, C> {
    /// Publishes to `to`, as `codec` writes values.
    pub fn new(broker: Arc<dyn Broker>, to: Address, codec: C) -> Producer<T, C> {
        Producer { broker, to, codec, said: Properties::default(), pace: None, values: PhantomData }
    }

    /// A restart of the broker may forget the messages. They are persistent otherwise.
    #[must_use]
    pub fn transient(mut self) -> Self {
        self.said.persistent = false;
        self
    }

    /// How long each may wait in a queue.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.said.ttl = Some(ttl);
        self
    }

    /// How long each stays invisible after it was stored.
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Self {
        self.said.delay = Some(delay);
        self
    }

    /// The priority of each.
    #[must_use]
    pub fn priority(mut self, priority: u8) -> Self {
        self.said.priority = priority;
        self
    }

    /// A header of each.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.said.headers.insert(name.into(), value.into());
        self
    }

    /// No more than so many messages in each `period`, evenly spread, whoever publishes them through this producer. More wait.
    ///
    /// # Panics
    /// If `count` or `period` is zero.
    #[must_use]
    pub fn rate_limit(mut self, count: u32, period: Duration) -> Self {
        assert!(count > 0 && !period.is_zero(), "a rate of nothing would never let anything pass");
        self.pace = Some(Pace { each: period / count, next: Mutex::new(Instant::now()) });
        self
    }

    /// Waits for the turn of so many messages. Whoever gives up has used it.
    async fn turn(&self, count: usize) {
        let Some(pace) = &self.pace else { return };
        let turn = {
            let mut next = pace.next.lock().unwrap_or_else(PoisonError::into_inner);
            let turn = (*next).max(Instant::now());
            *next = turn + pace.each * u32::try_from(count).unwrap_or(u32::MAX);
            turn
        };
        sleep_until(turn).await;
    }

    /// The message with what is said of every message, unless it says otherwise itself.
    fn with_said(&self, mut message: Message) -> Message {
        if self.said == Properties::default() {
            return message;
        }
        let own = message.properties_mut();
        own.persistent &= self.said.persistent;
        own.ttl = own.ttl.or(self.said.ttl);
        own.delay = own.delay.or(self.said.delay);
        if own.priority == 0 {
            own.priority = self.said.priority;
        }
        for (name, value) in &self.said.headers {
            own.headers.entry(name.clone()).or_insert_with(|| value.clone());
        }
        message
    }

    /// Publishes a message, such as one from [`message`](Producer::message), and waits until it is known what became of it.
    ///
    /// # Errors
    /// If the broker is closed.
    ///
    /// # Cancel safety
    /// A message that was handed over is stored or not, and nobody is told.
    pub async fn publish_message(&self, message: Message) -> Result<PublishOutcome, ProduceError> {
        Ok(self.submit(message).await?.await.get(0))
    }

    async fn submit(&self, message: Message) -> Result<Confirm, ProduceError> {
        self.turn(1).await;
        let publish = Publish { to: self.to.clone(), message: self.with_said(message) };
        self.broker.submit(Batch::from(vec![publish])).await.map_err(ProduceError::Broker)
    }
}

impl<T, C: Codec<T>> Producer<T, C> {
    /// The message of a value, to say more of it before it is [published](Producer::publish_message).
    ///
    /// # Errors
    /// If the codec cannot write it.
    pub fn message(&self, value: &T) -> Result<Message, ProduceError> {
        self.numbered(0, value)
    }

    fn numbered(&self, index: usize, value: &T) -> Result<Message, ProduceError> {
        self.codec.encode(value).map_err(|error| ProduceError::Codec { index, error })
    }

    /// Publishes a value, and waits until it is known what became of it.
    ///
    /// # Errors
    /// If the codec cannot write it, or the broker is closed.
    ///
    /// # Cancel safety
    /// As [`publish_message`](Producer::publish_message).
    pub async fn publish(&self, value: &T) -> Result<PublishOutcome, ProduceError> {
        self.publish_message(self.message(value)?).await
    }

    /// Publishes values together, and says of each what became of it.
    ///
    /// # Errors
    /// If the codec cannot write one of them: then none was published. If the broker is closed.
    pub async fn publish_all<'a>(
        &self,
        values: impl IntoIterator<Item = &'a T>,
    ) -> Result<Outcomes, ProduceError>
    where
        T: 'a,
    {
        let messages = values.into_iter().enumerate().map(|(index, value)| {
            Ok(Publish { to: self.to.clone(), message: self.with_said(self.numbered(index, value)?) })
        });
        let publishes = messages.collect::<Result<Vec<_>, ProduceError>>()?;
        self.turn(publishes.len()).await;
        self.broker.publish_batch(Batch::from(publishes)).await.map_err(ProduceError::Broker)
    }

    /// Publishes values one after the other, up to `in_flight` of them before the outcome of the first is known.
    ///
    /// # Panics
    /// If `in_flight` is 0.
    pub fn sending(&self, in_flight: usize) -> Sending<'_, T, C> {
        assert!(in_flight > 0, "nothing would ever be sent");
        Sending { producer: self, in_flight, sent: 0, waiting: VecDeque::new(), others: Vec::new() }
    }
}

impl<T, C> fmt::Debug for Producer<T, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer").field("to", &self.to).finish_non_exhaustive()
    }
}

/// Values on their way: see [`Producer::sending`].
#[must_use = "what became of them is known only at the end"]
pub struct Sending<'a, T, C> {
    producer: &'a Producer<T, C>,
    in_flight: usize,
    sent: usize,
    waiting: VecDeque<Confirm>,
    others: Vec<(usize, PublishOutcome)>,
}

impl<T, C: Codec<T>> Sending<'_, T, C> {
    /// Sends a value. Waits while there are as many on their way as may be.
    ///
    /// # Errors
    /// As [`Producer::publish`]; those that were sent before are on their way all the same.
    ///
    /// # Cancel safety
    /// The value was sent or not; nothing else is lost.
    pub async fn send(&mut self, value: &T) -> Result<(), ProduceError> {
        let message = self.producer.numbered(self.sent, value)?;
        while self.waiting.len() >= self.in_flight {
            self.settle_first().await;
        }
        self.waiting.push_back(self.producer.submit(message).await?);
        self.sent += 1;
        Ok(())
    }

    async fn settle_first(&mut self) {
        let index = self.sent - self.waiting.len();
        let Some(first) = self.waiting.front_mut() else { return };
        let outcome = first.await;
        self.waiting.pop_front();
        self.others.extend(outcome.into_others().into_iter().map(|(_, outcome)| (index, outcome)));
    }

    /// What became of those that were not confirmed, of which it is known by now, by their place among all that were sent.
    /// It is forgotten here.
    pub fn take_others(&mut self) -> Vec<(usize, PublishOutcome)> {
        std::mem::take(&mut self.others)
    }

    /// Waits until it is known what became of all of them. Those that were [taken](Sending::take_others) count as confirmed.
    pub async fn finish(mut self) -> Outcomes {
        while !self.waiting.is_empty() {
            self.settle_first().await;
        }
        Outcomes::with_others(self.sent, self.others)
    }
}

impl<T, C> fmt::Debug for Sending<'_, T, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sending").field("sent", &self.sent).field("waiting", &self.waiting.len()).finish()
    }
}
