//! A queue worked on by a typed handler, whose failures are tried again later or become dead letters.

mod failure;

use std::error::Error;
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use millstream_flow::{BoxError, Concurrency, Failed, Flow, Pipe, Retry, Token, chain};
use tracing::Instrument;

pub use self::failure::Failure;
use self::failure::{Then, Verdict};
use super::{Deliveries, is_unwanted, span};
use crate::dead::shortened;
use crate::value::Headers;
use crate::{Address, Broker, Codec, Consumer, Delivery, Message, Nack, PublishOutcome, Refusal, Value};

/// How many attempts at a message have failed: an integer.
pub const ATTEMPTS: &str = "millstream-attempts";
/// How the last of them ended, the newest first: a list of maps with `attempt`, `stage`, `reason` and `time` (in
/// milliseconds since 1970).
pub const FAILURES: &str = "millstream-failures";
/// Where a message that is tried again was published to at first.
pub const FIRST_EXCHANGE: &str = "millstream-first-exchange";
/// Under which key a message that is tried again was published at first.
pub const FIRST_KEY: &str = "millstream-first-key";

/// How many failures travel with a message; older ones are forgotten.
pub const FAILURES_MAX: usize = 16;

/// A value from a queue, and what is known of its message.
#[derive(Debug)]
pub struct Job<T> {
    /// The value.
    pub value: T,
    /// The message it was read from.
    pub message: Message,
    /// Where the message was published to at first.
    pub address: Address,
    /// The how-manieth attempt this is, from 1, as its headers count them. One during which a process died is not in it, but
    /// in `redeliveries`.
    pub attempt: u32,
    /// How often this message was given back unsettled: by consumers that died, or by [`Failure::give_back`]. As exact as the
    /// broker counts.
    pub redeliveries: u32,
    delivery: Delivery,
}

impl<T> Job<T> {
    fn read<C: Codec<T>>(codec: &C, delivery: &Delivery) -> Result<Job<T>, crate::CodecError> {
        let message = delivery.message.clone();
        let value = codec.decode(&message)?;
        let failed = message.header(ATTEMPTS).and_then(Value::as_int).unwrap_or(0);
        let text = |name| message.header(name).and_then(Value::as_text);
        let address = match (text(FIRST_EXCHANGE), text(FIRST_KEY)) {
            (Some(exchange), Some(key)) => Address::new(exchange, key),
            _ => delivery.address.clone(),
        };
        Ok(Job {
            value,
            address,
            attempt: u32::try_from(failed).unwrap_or(0).saturating_add(1),
            redeliveries: delivery.redeliveries,
            delivery: delivery.clone(),
            message,
        })
    }

    /// The queue it came from.
    pub fn queue(&self) -> &str {
        self.delivery.queue()
    }

    /// The message for its next attempt.
    fn again(&self, failed: &Failed<()>, delay: Duration) -> Message {
        let mut message = self.message.clone();
        let properties = message.properties_mut();
        // It was handed out in time: it does not expire while it waits for its next attempt.
        properties.ttl = None;
        properties.delay = (!delay.is_zero()).then_some(delay);
        let headers = &mut properties.headers;
        headers.insert(ATTEMPTS.to_owned(), Value::Int(self.attempt.into()));
        headers.insert(FIRST_EXCHANGE.to_owned(), self.address.exchange().into());
        headers.insert(FIRST_KEY.to_owned(), self.address.key().into());
        let mut failures = match headers.remove(FAILURES) {
            Some(Value::List(failures)) => failures,
            _ => Vec::new(),
        };
        let time = failed.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
        let failure = Headers::from([
            ("attempt".to_owned(), Value::Int(self.attempt.into())),
            ("stage".to_owned(), (&*failed.stage).into()),
            ("reason".to_owned(), shortened(&chain(&*failed.error)).into()),
            ("time".to_owned(), Value::Int(i64::try_from(time).unwrap_or(i64::MAX))),
        ]);
        failures.insert(0, Value::Map(failure));
        failures.truncate(FAILURES_MAX);
        headers.insert(FAILURES.to_owned(), Value::List(failures));
        message
    }
}

/// How the messages of a queue are worked on by a handler.
///
/// A message is acknowledged when the handler has returned its result *and* what follows in the flow is done with that.
/// What becomes of one for which the handler fails, or panics, or takes too long:
///
/// - It is **tried again** after a delay, as often as [`retry`](Self::retry) says: a copy with the history of its attempts in the
///   headers [`ATTEMPTS`] and [`FAILURES`] is published to the same queue, and when that is confirmed the message is
///   acknowledged. Nobody waits meanwhile, on any broker, and another process may make the next attempt. In the ledger it is
///   dropped by the name `tried again later`. A process that dies between the two leaves the message there twice. A queue
///   that is full keeps the message itself for the delay, without this attempt in its history.
/// - It becomes a **dead letter** when no attempt is left, or its [`Failure::permanent`] says so, or it cannot be read, or the
///   queue does not take it back: rejected to the queue's dead-letter exchange, with the reason of the last attempt
///   ([`dead`](crate::dead)) and the history of those before.
/// - It is **given back** when the handler says so by [`Failure::give_back`].
///
/// Each call has a `tracing` span `attempt` of the target `millstream_message::work`, with the queue, the attempt and the `trace_id` of
/// the message's [trace](crate::TraceContext), which the message keeps when it is tried again and when it dies.
///
/// A message that kills its process each time is no failure that anybody sees: declare the queue with a
/// [`delivery_limit`](crate::Queue::delivery_limit), or look at [`Job::redeliveries`].
///
/// ```
/// use millstream_flow::{Concurrency, Retry};
/// use millstream_message::flow::{Failure, Job, Work};
/// use millstream_message::{Broker, ConsumeOptions, Json, Queue};
/// use std::sync::Arc;
/// use std::time::Duration;
/// # #[derive(serde::Serialize, serde::Deserialize)]
/// # struct Order { id: u64, pieces: u32 }
/// # async fn charge(_: &Order) -> Result<u32, std::io::Error> { Ok(1) }
///
/// # async fn example(broker: Arc<dyn Broker>) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// broker.declare_queue(Queue::durable("orders").dead_letter("", "orders.dead")).await?;
/// let consumer = broker.consume("orders", ConsumeOptions::default().prefetch(64)).await?;
/// let run = Work::new(Json)
///     .concurrency(Concurrency::unordered(32))
///     .retry(Retry::attempts(5).unwrap().first_delay(Duration::from_secs(1)).timeout(Duration::from_secs(10)))
///     .start(broker, consumer, async |job: &Job<Order>| {
///         if job.value.pieces == 0 {
///             return Err(Failure::permanent("an order of nothing"));
///         }
///         Ok(charge(&job.value).await?) // tried again
///     })
///     .for_each(drop)
///     .start();
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Work<C> {
    codec: C,
    concurrency: Concurrency,
    retry: Retry,
}

impl<C> Work<C> {
    /// Messages read by `codec`, one after the other, each tried once, unless said otherwise.
    pub fn new(codec: C) -> Self {
        Work { codec, concurrency: Concurrency::ordered(1), retry: Retry::never() }
    }

    /// How many calls of the handler run at once, whether their results keep the order of the queue, and how long one may
    /// take, as [`Retry::timeout`] does. The consumer's prefetch must not be less than their number.
    #[must_use]
    pub fn concurrency(mut self, concurrency: impl Into<Concurrency>) -> Self {
        self.concurrency = concurrency.into();
        self
    }

    /// How often and after which delays a message is tried again, for which errors, and how long one attempt may take. What is
    /// tried again comes behind what is in the queue by then. Delays are the rule's without what it leaves to chance, since RabbitMQ has
    /// a queue for each different one; its limit for all attempts together and its budget are not known across processes.
    #[must_use]
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// The results of `handler` as a flow.
    ///
    /// # Ordering
    /// As [`concurrency`](Self::concurrency) says; what is tried again loses its place.
    ///
    /// # Backpressure
    /// The consumer's prefetch bounds what is under way.
    ///
    /// # Errors
    /// A broker that fails, fails the run; also one whose disk is full, or that does not say whether it has stored what is to
    /// be tried again: the message is delivered again.
    pub fn start<T, U, H>(
        self,
        broker: Arc<dyn Broker>,
        consumer: Consumer,
        handler: H,
    ) -> Pipe<impl Flow<Item = U, Token = Token>>
    where
        C: Codec<T>,
        T: Send + Sync + 'static,
        U: Send + Sync + 'static,
        H: AsyncFn(&Job<T>) -> Result<U, Failure> + 'static,
    {
        let Work { codec, concurrency, retry } = self;
        let once = once(&retry);
        let jobs = jobs(codec, consumer);
        let done = jobs.try_map_async(concurrency, once, async move |job| {
            handler(job).instrument(span::attempt(job)).await.map_err(Verdict)
        });
        settled(broker, retry, concurrency, done.named("handler"))
    }

    /// As [`start`](Self::start), with calls for jobs of one key one after the other, in the order of the queue.
    ///
    /// # Ordering
    /// Within a key that of the queue, but for what is tried again, which loses its place.
    pub fn start_by_key<T, U, Q, H>(
        self,
        broker: Arc<dyn Broker>,
        consumer: Consumer,
        key: impl FnMut(&Job<T>) -> Q,
        handler: H,
    ) -> Pipe<impl Flow<Item = U, Token = Token>>
    where
        C: Codec<T>,
        T: Send + Sync + 'static,
        U: Send + Sync + 'static,
        Q: Hash,
        H: AsyncFn(&Job<T>) -> Result<U, Failure> + 'static,
    {
        let Work { codec, concurrency, retry } = self;
        let once = once(&retry);
        let handle =
            async move |job: &Job<T>| handler(job).instrument(span::attempt(job)).await.map_err(Verdict);
        let done = jobs(codec, consumer).try_map_async_by_key(concurrency, once, key, handle);
        settled(broker, retry, concurrency, done.named("handler"))
    }
}

/// The rule within one attempt.
fn once(retry: &Retry) -> Retry {
    match retry.limit() {
        Some(limit) => Retry::never().timeout(limit),
        None => Retry::never(),
    }
}

fn jobs<T, C>(codec: C, consumer: Consumer) -> Pipe<impl Flow<Item = Job<T>, Token = Token>>
where
    C: Codec<T>,
    T: Send + Sync + 'static,
{
    let deliveries = Deliveries::new(consumer);
    let (account, prefetch) = (deliveries.account(), deliveries.prefetch());
    Pipe::from_tracked(account, deliveries)
        .named("queue")
        .knob(prefetch)
        .try_map(move |delivery| Job::read(&codec, delivery))
        .named("decode")
        .reject()
}

/// What has become of a delivery.
enum End<U> {
    Done(U),
    Later,
    GivenBack,
    Dead(Failed<()>),
    Lost(Failed<()>),
}

/// Does with failed jobs what is to be done with them, and passes the others' results.
fn settled<T, U, F>(
    broker: Arc<dyn Broker>,
    retry: Retry,
    concurrency: Concurrency,
    done: Pipe<F>,
) -> Pipe<impl Flow<Item = U, Token = Token>>
where
    T: Send + Sync + 'static,
    U: Send + Sync + 'static,
    F: Flow<Item = Result<U, Failed<Job<T>>>, Token = Token>,
{
    let shared = Arc::new((broker, retry));
    // The limit is the handler's: a message that is neither done nor put back is not to be lost.
    done.map_async(concurrency.time_limit(None), move |done| {
        let shared = shared.clone();
        async move {
            match done {
                Ok(result) => End::Done(result),
                Err(failed) => decide(&*shared.0, &shared.1, failed).await,
            }
        }
    })
    .named("try again")
    .map(|end| match end {
        End::Lost(failed) => Err(failed),
        end => Ok(end),
    })
    .fail_fast()
    .map(|end| match end {
        End::Dead(failed) => Err(failed),
        end => Ok(end),
    })
    .reject()
    .filter(|end| !matches!(end, End::GivenBack))
    .named("given back")
    .filter_map(|end| if let End::Done(result) = end { Some(result) } else { None })
    .named("tried again later")
}

async fn decide<T, U>(broker: &dyn Broker, retry: &Retry, failed: Failed<Job<T>>) -> End<U> {
    let Failed { input: job, error, stage, at, .. } = failed;
    let (error, then) = match error.downcast::<Verdict>() {
        Ok(verdict) => (verdict.0.error, verdict.0.then),
        Err(error) => (error, Then::ByRule),
    };
    let by_rule = retry.next_delay(job.attempt, &*error);
    let failed = Failed::new((), error, stage, at);
    let delay = match (then, by_rule) {
        (Then::GiveBack, _) => {
            // This settles it; what the token does then comes too late to change anything.
            job.delivery.nack(&Nack::Requeue);
            return End::GivenBack;
        }
        (Then::Dead, _) | (_, None) => return End::Dead(failed),
        (Then::ByRule, Some(delay)) | (Then::After(delay), Some(_)) => delay,
    };
    let again = job.again(&failed, delay);
    let refused: BoxError = match broker.publish(&Address::queue(job.queue()), again).await {
        Ok(PublishOutcome::Confirmed) => return End::Later,
        Ok(PublishOutcome::Refused(Refusal::Full { .. })) => {
            // To wait for room could be to wait for this message, which takes some. It keeps its place instead, and this
            // attempt is not remembered.
            job.delivery.nack(&Nack::RequeueAfter(delay));
            return End::Later;
        }
        Ok(PublishOutcome::Refused(Refusal::Broker(error))) if !is_unwanted(&error) => {
            return End::Lost(Failed::new((), error, "try again", at));
        }
        Ok(PublishOutcome::Refused(refusal)) => refusal.into(),
        Ok(PublishOutcome::Unroutable(returned)) => returned.reason.into(),
        Ok(PublishOutcome::Unconfirmed(error)) | Err(error) => {
            return End::Lost(Failed::new((), error, "try again", at));
        }
    };
    End::Dead(Failed::new((), NotTakenBack { refused, failed: failed.error }, failed.stage, at))
}

/// A job that was to be tried again, for which the queue has no place.
#[derive(Debug)]
struct NotTakenBack {
    refused: BoxError,
    failed: BoxError,
}

impl fmt::Display for NotTakenBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; it was to be tried again, but {}", chain(&*self.failed), chain(&*self.refused))
    }
}

impl Error for NotTakenBack {}
