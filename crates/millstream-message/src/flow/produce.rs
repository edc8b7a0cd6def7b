//! Publishing values from a service: one, many, or a stream of them, each with what became of it.

mod sending;
mod way;

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use millstream_resilience::{Rate, RateLimiter, Retry};

pub use self::sending::Sending;
use self::way::Way;
use crate::{
    Address, Broker, BrokerError, Codec, CodecError, Message, Outcomes, Properties, Publish, PublishOutcome,
    Value,
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
    /// So many outcomes of messages that were not confirmed are kept that no more can be: [take](Sending::take_others) them, and
    /// send again.
    #[error("{kept} messages were not confirmed, and nobody has taken their outcomes: `take_others` does")]
    Untaken {
        /// How many.
        kept: usize,
    },
}

/// Publishes values of one type to one address, from any number of tasks. For flows there is
/// [`Publisher`](super::Publisher).
///
/// What is said of every message is said once, here; what is said of one [message](Producer::message) afterwards wins. Every
/// message asks to come back when no queue wants it ([`Unroutable`](PublishOutcome::Unroutable)), and the outcome says where it is now.
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
    way: Arc<Way>,
    to: Address,
    codec: C,
    said: Properties,
    values: PhantomData<fn(&T)>,
}

impl<T, C> Producer<T, C> {
    /// Publishes to `to`, as `codec` writes values.
    pub fn new(broker: Arc<dyn Broker>, to: Address, codec: C) -> Producer<T, C> {
        let way = Arc::new(Way { broker, rate: None, retry: None });
        Producer { way, to, codec, said: Properties::default(), values: PhantomData }
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

    /// No more than so many messages in each `period`, evenly spread, whoever publishes them through this producer. More wait; those
    /// that are published together go together, and the next ones wait for longer.
    ///
    /// # Panics
    /// If `count` or `period` is zero.
    #[must_use]
    pub fn rate_limit(mut self, count: u32, period: Duration) -> Self {
        Arc::make_mut(&mut self.way).rate = Some(RateLimiter::new(Rate::new(count.into(), period)));
        self
    }

    /// Publishes again what is known not to be stored, if that can help: what no queue wanted, what a full queue refused, and what
    /// the broker could not store. The policy is of `millstream_resilience` (feature `resilience` of `millstream`).
    ///
    /// Nothing is there twice by this, but later than what was published meanwhile. One case is otherwise: RabbitMQ refuses what
    /// one of several queues behind an exchange has no room for, and the others have stored it; they get it again.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// use millstream_message::flow::Producer;
    /// use millstream_message::{Address, Broker, Json};
    /// use millstream_resilience::Retry;
    /// # fn example(broker: Arc<dyn Broker>) {
    /// let orders: Producer<u64> = Producer::new(broker, Address::queue("orders"), Json).retry(Retry::new(5));
    /// # }
    /// ```
    #[must_use]
    pub fn retry(mut self, retry: Retry) -> Self {
        Arc::make_mut(&mut self.way).retry = Some((retry, false));
        self
    }

    /// As [`retry`](Producer::retry), and publishes again what may be stored and was not confirmed: it may be there twice then.
    /// A [message id](Message::with_message_id) lets consumers tell.
    #[must_use]
    pub fn retry_unconfirmed(mut self, retry: Retry) -> Self {
        Arc::make_mut(&mut self.way).retry = Some((retry, true));
        self
    }

    /// Publishes a message as it is, such as one from [`message`](Producer::message), and waits until it is known what became of it.
    ///
    /// # Errors
    /// If the broker is closed.
    ///
    /// # Cancel safety
    /// A message that was handed over is stored or not, and nobody is told.
    pub async fn publish_message(&self, message: Message) -> Result<PublishOutcome, ProduceError> {
        Ok(self.way.publish(vec![self.addressed(message)]).await?.get(0))
    }

    fn addressed(&self, message: Message) -> Publish {
        Publish { to: self.to.clone(), message }
    }
}

impl<T, C: Codec<T>> Producer<T, C> {
    /// The message of a value, with what is said of every message, to say more of it before it is
    /// [published](Producer::publish_message).
    ///
    /// # Errors
    /// If the codec cannot write it.
    pub fn message(&self, value: &T) -> Result<Message, ProduceError> {
        self.numbered(0, value)
    }

    fn numbered(&self, index: usize, value: &T) -> Result<Message, ProduceError> {
        let mut message = self.codec.encode(value).map_err(|error| ProduceError::Codec { index, error })?;
        if self.said != Properties::default() {
            let own = message.properties_mut();
            // What the codec says goes before.
            own.persistent &= self.said.persistent;
            own.ttl = own.ttl.or(self.said.ttl);
            own.delay = own.delay.or(self.said.delay);
            if own.priority == 0 {
                own.priority = self.said.priority;
            }
            for (name, value) in &self.said.headers {
                own.headers.entry(name.clone()).or_insert_with(|| value.clone());
            }
        }
        Ok(message)
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
        let messages = values.into_iter().enumerate();
        let publishes = messages.map(|(index, value)| Ok(self.addressed(self.numbered(index, value)?)));
        self.way.publish(publishes.collect::<Result<Vec<_>, ProduceError>>()?).await
    }

    /// Publishes values one after the other, up to `in_flight` of them before the outcome of the first is known.
    ///
    /// # Panics
    /// If `in_flight` is 0.
    pub fn sending(&self, in_flight: usize) -> Sending<'_, T, C> {
        assert!(in_flight > 0, "nothing would ever be sent");
        Sending::new(self, in_flight)
    }
}

impl<T, C> fmt::Debug for Producer<T, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer").field("to", &self.to).finish_non_exhaustive()
    }
}
