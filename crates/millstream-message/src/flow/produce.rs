//! Publishing values from a service: one, many, or a stream of them, each with what became of it.

use std::collections::VecDeque;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use millstream_resilience::{Class, Rate, RateLimiter, Retry};
use tokio::time::{Instant, sleep};

use crate::{
    Address, Batch, BoxFuture, Broker, BrokerError, BrokerErrorKind, Codec, CodecError, Confirm, Message,
    Outcomes, Properties, Publish, PublishOutcome, Refusal, Value,
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

/// How messages reach the broker.
#[derive(Clone)]
struct Way {
    broker: Arc<dyn Broker>,
    rate: Option<RateLimiter>,
    /// Whether what may be stored is published again, too.
    retry: Option<(Retry, bool)>,
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
    /// the broker could not store. (The policy is of `millstream_resilience`: feature `resilience` of `millstream`.) So nothing is there twice by this; it is there later than what was published meanwhile.
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

impl Way {
    /// Waits for the turn of so many messages. Whoever gives up leaves it to the next.
    async fn turn(&self, count: usize) {
        if let Some(rate) = &self.rate {
            rate.acquire(count as u64).await.expect("it was not said how long to wait at most");
        }
    }

    async fn submit(&self, publishes: Vec<Publish>) -> Result<Confirm, ProduceError> {
        self.turn(publishes.len()).await;
        self.broker.submit(Batch::from(publishes)).await.map_err(ProduceError::Broker)
    }

    async fn publish(&self, publishes: Vec<Publish>) -> Result<Outcomes, ProduceError> {
        let kept = self.kept(&publishes);
        let began = Instant::now();
        let outcomes = self.submit(publishes).await?.await;
        Ok(self.again(kept, outcomes, began).await)
    }

    /// What may have to be published again.
    fn kept(&self, publishes: &[Publish]) -> Vec<Publish> {
        if self.retry.is_some() { publishes.to_vec() } else { Vec::new() }
    }

    /// Publishes again what can be, until all is stored or the policy says no. What it leaves has its last outcome.
    async fn again(&self, publishes: Vec<Publish>, outcomes: Outcomes, began: Instant) -> Outcomes {
        let Some((retry, unconfirmed)) = &self.retry else { return outcomes };
        let class = |outcome: &PublishOutcome| class(outcome, *unconfirmed);
        let total = outcomes.len();
        let mut attempts = retry.attempts(Some(began));
        let (mut failed, mut left) = (outcomes.into_others(), Vec::new());
        loop {
            let (again, ended): (Vec<_>, Vec<_>) =
                failed.into_iter().partition(|(_, outcome)| class(outcome).is_retryable());
            left.extend(ended);
            let Some((_, first)) = again.first() else { break };
            let Ok(delay) = attempts.failed(retry, class(first)) else {
                left.extend(again);
                break;
            };
            sleep(delay).await;
            let batch = again.iter().map(|(at, _)| publishes[*at].clone()).collect();
            let Ok(confirm) = self.submit(batch).await else {
                // The broker was closed: what was known is all that is.
                left.extend(again);
                break;
            };
            let others = confirm.await.into_others();
            failed = others.into_iter().map(|(at, outcome)| (again[at].0, outcome)).collect();
        }
        if left.is_empty() {
            retry.succeeded();
        }
        left.sort_unstable_by_key(|(at, _)| *at);
        Outcomes::with_others(total, left)
    }
}

/// Whether to publish again can help.
fn class(outcome: &PublishOutcome, unconfirmed: bool) -> Class {
    match outcome {
        PublishOutcome::Unroutable(_) => Class::Transient,
        PublishOutcome::Refused(Refusal::Full { .. } | Refusal::NoExchange { .. }) => Class::Transient,
        PublishOutcome::Refused(Refusal::Broker(error)) => match error.kind() {
            BrokerErrorKind::Unavailable | BrokerErrorKind::Storage => Class::Transient,
            _ => Class::Permanent,
        },
        PublishOutcome::Unconfirmed(_) if unconfirmed => Class::Transient,
        _ => Class::Permanent,
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
            let Properties { persistent, ttl, delay, priority, ref headers, .. } = self.said;
            (own.persistent, own.ttl, own.delay, own.priority) = (persistent, ttl, delay, priority);
            // What the codec says of the body goes before.
            for (name, value) in headers {
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
        Sending {
            producer: self,
            in_flight,
            sent: 0,
            waiting: VecDeque::new(),
            again: None,
            others: Vec::new(),
        }
    }
}

impl<T, C> fmt::Debug for Producer<T, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer").field("to", &self.to).finish_non_exhaustive()
    }
}

/// Outcomes of messages that were not confirmed, of which no more are kept before somebody takes them.
const OTHERS_MAX: usize = 1000;

/// Values on their way: see [`Producer::sending`].
#[must_use = "what became of them is known only at the end"]
pub struct Sending<'a, T, C> {
    producer: &'a Producer<T, C>,
    in_flight: usize,
    sent: usize,
    waiting: VecDeque<Waiting>,
    again: Option<Again>,
    others: Vec<(usize, PublishOutcome)>,
}

/// One of whom it is not known what becomes of it.
struct Waiting {
    confirm: Confirm,
    /// It, if it may have to be published again.
    kept: Vec<Publish>,
    began: Instant,
}

/// Those that were on their way when the first of them turned out not to be stored: what is not is published again together.
struct Again {
    /// Which of all that were sent the first is.
    from: usize,
    publishes: Vec<Publish>,
    others: Vec<(usize, PublishOutcome)>,
    began: Instant,
    under_way: Option<BoxFuture<'static, Outcomes>>,
}

impl<T, C: Codec<T>> Sending<'_, T, C> {
    /// Sends a value. Waits while there are as many on their way as may be, and while some of them are
    /// [published again](Producer::retry).
    ///
    /// # Errors
    /// As [`Producer::publish`], and [`Untaken`](ProduceError::Untaken) when the outcomes of a thousand messages that were not
    /// confirmed are kept; those that were sent before are on their way all the same.
    ///
    /// # Cancel safety
    /// The value was sent or not; nothing else is lost.
    pub async fn send(&mut self, value: &T) -> Result<(), ProduceError> {
        let message = self.producer.numbered(self.sent, value)?;
        while self.waiting.len() >= self.in_flight || self.again.is_some() {
            self.settle_first().await;
        }
        if self.others.len() >= OTHERS_MAX {
            return Err(ProduceError::Untaken { kept: self.others.len() });
        }
        let publish = vec![self.producer.addressed(message)];
        let (kept, began) = (self.producer.way.kept(&publish), Instant::now());
        let confirm = self.producer.way.submit(publish).await?;
        self.waiting.push_back(Waiting { confirm, kept, began });
        self.sent += 1;
        Ok(())
    }

    /// Waits for the outcome of the first, or of all if some are to be published again.
    async fn settle_first(&mut self) {
        if self.again.is_none() {
            let index = self.sent - self.waiting.len();
            let Some((outcomes, first)) = self.first().await else { return };
            if first.kept.is_empty() || outcomes.all_confirmed() {
                self.others.extend(outcomes.into_others().into_iter().map(|(_, outcome)| (index, outcome)));
                return;
            }
            let Waiting { kept, began, .. } = first;
            let others = outcomes.into_others();
            self.again = Some(Again { from: index, publishes: kept, others, began, under_way: None });
        }
        while let Some((outcomes, next)) = self.first().await {
            let Some(again) = &mut self.again else { return };
            let at = again.publishes.len();
            again.others.extend(outcomes.into_others().into_iter().map(|(_, outcome)| (at, outcome)));
            again.publishes.extend(next.kept);
        }
        let Some(again) = &mut self.again else { return };
        let under_way = again.under_way.get_or_insert_with(|| {
            let (way, began) = (self.producer.way.clone(), again.began);
            let publishes = std::mem::take(&mut again.publishes);
            let outcomes = Outcomes::with_others(publishes.len(), std::mem::take(&mut again.others));
            Box::pin(async move { way.again(publishes, outcomes, began).await })
        });
        let outcomes = under_way.await;
        let from = again.from;
        self.again = None;
        self.others.extend(outcomes.into_others().into_iter().map(|(at, outcome)| (from + at, outcome)));
    }

    /// Waits for the outcome of the first, and takes it out.
    async fn first(&mut self) -> Option<(Outcomes, Waiting)> {
        let outcomes = (&mut self.waiting.front_mut()?.confirm).await;
        Some((outcomes, self.waiting.pop_front()?))
    }

    /// What became of those that were not confirmed, of which it is known by now, by their place among all that were sent.
    /// It is forgotten here.
    pub fn take_others(&mut self) -> Vec<(usize, PublishOutcome)> {
        std::mem::take(&mut self.others)
    }

    /// Waits until it is known what became of all of them. Those that were [taken](Sending::take_others) count as confirmed.
    pub async fn finish(mut self) -> Outcomes {
        while !self.waiting.is_empty() || self.again.is_some() {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Returned;

    #[test]
    fn only_what_is_not_stored_is_published_again_unless_twice_is_fine() {
        let error = |kind| BrokerError::new(kind, "x");
        let publish = Publish { to: Address::queue("q"), message: Message::new("x") };
        let full = Refusal::Full { queue: "q".into(), limit: "max_items 1".into() };
        let again =
            |outcome: &PublishOutcome| [false, true].map(|twice| class(outcome, twice).is_retryable());
        let returned = Returned { publish, reason: "no queue".into() };
        for outcome in [
            PublishOutcome::Unroutable(Box::new(returned)),
            PublishOutcome::Refused(full),
            PublishOutcome::Refused(Refusal::NoExchange { exchange: "e".into() }),
            PublishOutcome::Refused(Refusal::Broker(error(BrokerErrorKind::Unavailable))),
        ] {
            assert_eq!(again(&outcome), [true, true], "{outcome:?}");
        }
        let unconfirmed = PublishOutcome::Unconfirmed(error(BrokerErrorKind::Unavailable));
        assert_eq!(again(&unconfirmed), [false, true]);
        for outcome in [
            PublishOutcome::Confirmed,
            PublishOutcome::Refused(Refusal::TooLarge { len: 2, max: 1 }),
            PublishOutcome::Refused(Refusal::Broker(error(BrokerErrorKind::Invalid))),
        ] {
            assert_eq!(again(&outcome), [false, false], "{outcome:?}");
        }
    }
}
