//! Requests and their replies over queues.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use millstream_flow::{BoxError, Concurrency, Flow, Pipe, Retry, Token, chain};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;
use tracing::Instrument;

use super::{messages, span};
use crate::{
    Address, Broker, BrokerError, ConsumeOptions, Consumer, Message, Publish, PublishOutcome, Queue, Refusal,
    Value,
};

/// A header of a reply that is an error: why there is no other.
pub const ERROR: &str = "millstream-error";

/// Requests that may be under way at once, unless said otherwise.
const UNDER_WAY: usize = 10_000;

/// Why a request has no reply.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// Nobody takes requests there.
    #[error("nobody takes requests at {to}: {reason}")]
    Unroutable {
        /// Where it was sent.
        to: Address,
        /// What the broker says.
        reason: String,
    },
    /// The broker did not take it.
    #[error("the request was refused")]
    Refused(#[source] Refusal),
    /// It is not known whether the broker has taken it; a reply may come and finds nobody.
    #[error("the request was not confirmed")]
    Unconfirmed(#[source] BrokerError),
    /// No reply came in time. The request may be done all the same.
    #[error("no reply within {limit:?}")]
    Timeout {
        /// How long it was waited for.
        limit: Duration,
    },
    /// Whoever took the request says that it failed.
    #[error("the request failed: {reason}")]
    Failed {
        /// Why, in its words.
        reason: String,
    },
    /// The broker is closed, or the queue for replies is gone.
    #[error("no replies are received any more")]
    Closed,
}

/// Sends requests and receives their replies: without a queue where the broker can do that (RabbitMQ's direct reply-to), elsewhere
/// through a queue of its own that goes with it. Replies that are on their way when a connection is lost do not come.
///
/// ```
/// use millstream_message::flow::{Requester, respond};
/// use millstream_message::{Address, Broker, ConsumeOptions, Message, Queue};
/// # use std::sync::Arc;
/// # async fn example(broker: Arc<dyn Broker>) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// broker.declare_queue(Queue::durable("square")).await?;
/// let requests = broker.consume("square", ConsumeOptions::default()).await?;
/// let square = async |request: Message| {
///     let n: u64 = std::str::from_utf8(request.body())?.parse()?;
///     Ok(Message::new((n * n).to_string()))
/// };
/// let _serving = respond(broker.clone(), requests, 8, square).for_each(drop).start();
///
/// let requester = Requester::open(broker.clone()).await?;
/// let to = Address::queue("square");
/// let reply = requester.request(&to, Message::new("12"), std::time::Duration::from_secs(5)).await?;
/// assert_eq!(reply.body(), "144");
/// # Ok(())
/// # }
/// ```
pub struct Requester {
    broker: Arc<dyn Broker>,
    replies: String,
    /// What correlation ids begin with.
    prefix: String,
    waiting: Arc<Mutex<Waiting>>,
    room: Semaphore,
    /// Ends the task that receives, when this is dropped.
    _open: oneshot::Sender<Infallible>,
}

#[derive(Default)]
struct Waiting {
    next: u64,
    callers: HashMap<u64, oneshot::Sender<Message>>,
    closed: bool,
}

fn lock(waiting: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Forgets a caller that does not wait any more.
struct Caller<'a> {
    waiting: &'a Mutex<Waiting>,
    id: u64,
}

impl Drop for Caller<'_> {
    fn drop(&mut self) {
        lock(self.waiting).callers.remove(&self.id);
    }
}

impl Requester {
    /// Receives replies in a task until it is dropped, through a queue for them if the broker needs one.
    ///
    /// # Errors
    /// The broker's.
    pub async fn open(broker: Arc<dyn Broker>) -> Result<Requester, BrokerError> {
        let mut own = None;
        let (replies, prefix, consumer) = match broker.direct_replies().await? {
            Some(direct) => (direct.reply_to, direct.correlation_prefix, direct.consumer),
            None => {
                let random = || RandomState::new().build_hasher().finish();
                let replies = format!("millstream.replies.{:016x}{:016x}", random(), random());
                broker.declare_queue(Queue::exclusive(&replies)).await?;
                let consumer = broker.consume(&replies, ConsumeOptions::default().name("replies")).await?;
                // Not kept open by the task below, which may not run before somebody opens it again.
                own = Some((Arc::downgrade(&broker), replies.clone()));
                (replies, String::new(), consumer)
            }
        };
        let waiting = Arc::new(Mutex::new(Waiting::default()));
        let (open, dropped) = oneshot::channel();
        let receiving = receive(consumer, prefix.clone(), waiting.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = receiving => {}
                _ = dropped => {}
            }
            // Whoever answers late finds nobody, instead of a queue that nobody reads.
            if let Some((broker, queue)) = own
                && let Some(broker) = broker.upgrade()
            {
                let _ = broker.delete_queue(&queue).await;
            }
        });
        Ok(Requester { broker, replies, prefix, waiting, room: Semaphore::new(UNDER_WAY), _open: open })
    }

    /// Lets so many requests be under way at once; more wait. 10,000 unless said otherwise.
    ///
    /// # Panics
    /// If `requests` is 0.
    #[must_use]
    pub fn under_way(mut self, requests: usize) -> Requester {
        assert!(requests > 0, "no request would ever be sent");
        self.room = Semaphore::new(requests);
        self
    }

    /// Sends a request and waits for its reply. A request that has no time to live of its own gets `limit`: what
    /// nobody waits for any more is not worked on.
    ///
    /// # Errors
    /// See [`RequestError`].
    ///
    /// # Cancel safety
    /// A request that was sent may be worked on all the same; its reply is dropped.
    pub async fn request(
        &self,
        to: &Address,
        message: Message,
        limit: Duration,
    ) -> Result<Message, RequestError> {
        match timeout(limit, self.call(to, message, limit)).await {
            Ok(reply) => reply,
            Err(_) => Err(RequestError::Timeout { limit }),
        }
    }

    async fn call(&self, to: &Address, message: Message, limit: Duration) -> Result<Message, RequestError> {
        let _room = self.room.acquire().await.map_err(|_| RequestError::Closed)?;
        let (reply, answered) = oneshot::channel();
        let id = {
            let mut waiting = lock(&self.waiting);
            if waiting.closed {
                return Err(RequestError::Closed);
            }
            waiting.next += 1;
            let id = waiting.next;
            waiting.callers.insert(id, reply);
            id
        };
        let _caller = Caller { waiting: &self.waiting, id };
        let mut message =
            message.with_reply_to(&self.replies).with_correlation_id(format!("{}{id}", self.prefix));
        if message.properties().ttl.is_none() {
            message = message.with_ttl(limit);
        }
        match self.broker.publish(to, message).await.map_err(RequestError::Unconfirmed)? {
            PublishOutcome::Confirmed => {}
            PublishOutcome::Unroutable(returned) => {
                return Err(RequestError::Unroutable { to: to.clone(), reason: returned.reason });
            }
            PublishOutcome::Refused(refusal) => return Err(RequestError::Refused(refusal)),
            PublishOutcome::Unconfirmed(error) => return Err(RequestError::Unconfirmed(error)),
        }
        let reply = answered.await.map_err(|_| RequestError::Closed)?;
        match reply.header(ERROR) {
            None => Ok(reply),
            Some(reason) => {
                let reason = reason.as_text().map_or_else(|| format!("{reason:?}"), str::to_owned);
                Err(RequestError::Failed { reason })
            }
        }
    }

    /// How many requests wait for their reply.
    pub fn waiting(&self) -> usize {
        lock(&self.waiting).callers.len()
    }
}

impl fmt::Debug for Requester {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Requester").field("replies", &self.replies).field("waiting", &self.waiting()).finish()
    }
}

/// Gives replies to their callers. One that nobody waits for is dropped.
async fn receive(mut consumer: Consumer, prefix: String, waiting: Arc<Mutex<Waiting>>) {
    while let Some(Ok(delivery)) = consumer.next().await {
        delivery.ack();
        let id = delivery.message.properties().correlation_id.as_deref();
        let id = id.and_then(|id| id.strip_prefix(&*prefix)?.parse().ok());
        let caller = id.and_then(|id: u64| lock(&waiting).callers.remove(&id));
        if let Some(caller) = caller {
            let _ = caller.send(delivery.message);
        }
    }
    let mut waiting = lock(&waiting);
    waiting.closed = true;
    waiting.callers.clear();
}

/// Answers the requests of a queue: a flow of nothing that calls `handle` for each, up to `concurrency` at once; replies go out as soon as
/// they are there, whatever the order of requests. What `handle` fails with, by an error, a panic or the time limit of `concurrency`, is the reply's [`ERROR`].
///
/// A reply belongs to the [trace](crate::TraceContext) of its request, unless it says otherwise. Each call has a `tracing` span `request` of the
/// target `millstream_message::respond`, with the request's correlation and `trace_id`.
///
/// A request is acknowledged when its reply is stored, or nobody waits for one any more: a request that was in hand when the
/// process died is answered by another.
///
/// # Errors
/// A broker that fails, fails the run.
pub fn respond<H>(
    broker: Arc<dyn Broker>,
    requests: Consumer,
    concurrency: impl Into<Concurrency>,
    handle: H,
) -> Pipe<impl Flow<Item = (), Token = Token>>
where
    H: AsyncFn(Message) -> Result<Message, BoxError> + 'static,
{
    // Those who ask do not know of each other: a slow answer holds no other up.
    let concurrency = concurrency.into().in_any_order();
    messages(requests)
        .try_map_async(concurrency, Retry::never(), async move |request: &Message| {
            let reply = handle(request.clone()).instrument(span::request(request)).await?;
            Ok::<_, BoxError>(addressed(request, reply))
        })
        .named("respond")
        .map(|answered| match answered {
            Ok(reply) => reply,
            Err(failed) => {
                let reason = Value::Text(chain(&*failed.error));
                addressed(&failed.input, Message::new("").with_header(ERROR, reason))
            }
        })
        .try_map_async(concurrency.time_limit(None), Retry::never(), async move |reply: &Option<Publish>| {
            let Some(Publish { to, message }) = reply else { return Ok(()) };
            match broker.publish(to, message.clone()).await? {
                // Whoever asked is gone, or has no room.
                PublishOutcome::Confirmed | PublishOutcome::Unroutable(_) | PublishOutcome::Refused(_) => {
                    Ok(())
                }
                PublishOutcome::Unconfirmed(error) => Err(error),
            }
        })
        .named("reply")
        .fail_fast()
}

/// A reply on its way to who asked, if anybody waits for it.
fn addressed(request: &Message, reply: Message) -> Option<Publish> {
    let properties = request.properties();
    let to = Address::queue(properties.reply_to.as_deref()?);
    let mut message = reply.transient().with_trace_of(request);
    message.properties_mut().correlation_id = properties.correlation_id.clone();
    Some(Publish { to, message })
}
