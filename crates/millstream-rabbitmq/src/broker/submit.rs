//! Publishing: what is looked at before a batch is handed to its link, and the wait for room in the window.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use millstream_message::{
    Address, Batch, BoxFuture, BrokerError, BrokerErrorKind, Confirm, Message, Outcomes, Publish,
    PublishOutcome, Refusal, Returned,
};
use tokio::time::timeout;

use super::Inner;
use super::asking::Looked;
use crate::confirms::Entry;
use crate::delays::Waiting;
use crate::headers;
use crate::link::{Link, closed_error};
use crate::proto::properties;
use crate::publisher::Window;
use crate::refusals;
use crate::replies::{self, REPLY_TO};

/// A batch that is submitted: at once, as nearly all are, or after waiting for whatever it needs.
pub(super) struct Submit<'a> {
    inner: &'a Inner,
    step: Step<'a>,
}

enum Step<'a> {
    Fresh(Batch),
    /// It is done, and others are to have their turn.
    Done(Option<Confirm>),
    Waiting(BoxFuture<'a, Result<Confirm, BrokerError>>),
}

impl Future for Submit<'_> {
    type Output = Result<Confirm, BrokerError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Submit { inner, step } = self.get_mut();
        if let Step::Fresh(batch) = step {
            match inner.submit_at_once(std::mem::take(batch)) {
                Ok(Ok((confirm, true))) => {
                    *step = Step::Done(Some(confirm));
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Ok(done) => return Poll::Ready(done.map(|(confirm, _)| confirm)),
                Err(batch) => *step = Step::Waiting(Box::pin(inner.submit(batch))),
            }
        }
        match step {
            Step::Waiting(waiting) => waiting.as_mut().poll(cx),
            Step::Done(confirm) => Poll::Ready(Ok(confirm.take().expect("a submit is awaited once"))),
            Step::Fresh(_) => unreachable!("it was taken just now"),
        }
    }
}

impl<'a> Submit<'a> {
    pub(super) fn new(inner: &'a Inner, batch: Batch) -> Submit<'a> {
        Submit { inner, step: Step::Fresh(batch) }
    }
}

impl Inner {
    /// Looks at what is to be published: which messages cannot be, and where those go that wait.
    async fn prepare(&self, publishes: &mut [Publish]) -> Result<Vec<(usize, PublishOutcome)>, BrokerError> {
        let mut refusals = Vec::new();
        let mut checked: Option<Address> = None;
        for (at, publish) in publishes.iter_mut().enumerate() {
            if let Some(outcome) = self.check(publish, &mut checked).await? {
                refusals.push((at, outcome));
            }
        }
        Ok(refusals)
    }

    /// Why a message cannot be published, wherever to.
    fn wrong(&self, message: &Message) -> Option<Refusal> {
        let (len, max) = (message.body().len() as u64, self.max_message_bytes);
        if len > max {
            return Some(Refusal::TooLarge { len, max });
        }
        if message.is_plain() {
            return None;
        }
        if message.properties().ttl.is_some_and(|ttl| ttl.as_millis() > u32::MAX.into()) {
            return Some(invalid(
                "a time to live is at most 49 days, which is what RabbitMQ can count".to_owned(),
            ));
        }
        let mut said = message.size() - message.body().len();
        // Whatever takes no more in all than one name may.
        if said <= 255 {
            return None;
        }
        if let Some(name) = properties::too_long(message) {
            return Some(invalid(format!("{name} has more than AMQP's 255 bytes")));
        }
        let mut frame_max = self.main.server.lock().as_ref().map_or(4096, |server| server.frame_max as usize);
        if replies::are_asked_for(message) {
            // The address that is put in when it is sent.
            said += SHORT_MAX;
            frame_max -= SHORT_MAX;
        }
        if said > frame_max / 2 && !properties::fits(message, frame_max) {
            return Some(invalid(format!(
                "what is said about the message takes more than a frame of {frame_max} bytes"
            )));
        }
        None
    }

    async fn check(
        &self,
        publish: &mut Publish,
        checked: &mut Option<Address>,
    ) -> Result<Option<PublishOutcome>, BrokerError> {
        if let Some(refusal) = self.wrong(&publish.message) {
            return Ok(Some(PublishOutcome::Refused(refusal)));
        }
        let invalid = |text: String| Some(PublishOutcome::Refused(invalid(text)));
        if replies::are_asked_for(&publish.message) {
            let Some(replying) = self.replying.get() else {
                let text =
                    format!("`{REPLY_TO}` is for who receives replies: ask for `direct_replies` first");
                return Ok(invalid(text));
            };
            replying.up().await?;
            let addressed = timeout(self.options.operation_timeout, self.hub.known.replies.addressed());
            addressed.await.map_err(|_| {
                let text = "no replies are received at the moment, for their channel is closed; try again";
                BrokerError::new(BrokerErrorKind::Unavailable, text)
            })?;
        }
        if !checked.as_ref().is_some_and(|checked| checked.same(&publish.to)) {
            let (exchange, key) = (publish.to.exchange(), publish.to.key());
            if exchange.len() > 255 || key.len() > 255 {
                return Ok(invalid(format!("{}: a name has more than AMQP's 255 bytes", publish.to)));
            }
            if !self.has_exchange(exchange).await? {
                let refusal = Refusal::NoExchange { exchange: exchange.to_owned() };
                return Ok(Some(PublishOutcome::Refused(refusal)));
            }
            *checked = Some(publish.to.clone());
        }
        let Some(delay) = publish.message.properties().delay.filter(|delay| !delay.is_zero()) else {
            return Ok(None);
        };
        if publish.message.properties().ttl.is_some() {
            return Ok(invalid(
                "a message with a delay cannot have a time to live, too: RabbitMQ forgets it".to_owned(),
            ));
        }
        let Waiting { queue, declare, delay } = match self.delays.queue(delay, &publish.to) {
            Ok(waiting) => waiting,
            Err(text) => return Ok(invalid(text)),
        };
        // What is given back comes from its queue, and was counted when it left it.
        let to_queue = publish.to.exchange().is_empty() && !headers::is_given_back(&publish.message);
        if let Some(declare) = declare {
            // Whether any queue wants it is known when it is due, which nobody waits for: so it is looked at before, now and then.
            if to_queue && self.is_missing(publish.to.key()).await {
                let reason = refusals::unroutable(&publish.to, "NO_ROUTE");
                let returned = Returned { publish: publish.clone(), reason };
                return Ok(Some(PublishOutcome::Unroutable(Box::new(returned))));
            }
            self.asked(|| "a queue for messages with a delay".to_owned(), &declare).await?;
            self.hub.known.waiting.add(&queue, &publish.to);
        }
        if to_queue {
            self.hub.delay(publish.to.key(), delay);
        }
        publish.to = Address::queue(queue);
        Ok(None)
    }

    /// Whether it is known that a queue is not there.
    async fn is_missing(&self, queue: &str) -> bool {
        queue.is_empty() || matches!(self.look_at(queue).await, Ok(Looked::Missing))
    }

    pub(super) async fn submit(&self, batch: Batch) -> Result<Confirm, BrokerError> {
        let Batch { mut publishes, position } = batch;
        if let Some((name, value)) = position {
            return self.submit_with_position(publishes, name, value).await;
        }
        if publishes.is_empty() {
            return Ok(Confirm::known(Outcomes::confirmed(0)));
        }
        let link = self.publisher().await?;
        let refused = self.prepare(&mut publishes).await?;
        let (items, bytes) = room(&publishes, &link.window);
        let closed = |_| link.closed_error();
        // Whoever gives up while waiting for the second leaves the first behind.
        let first = link.window.items.acquire_many(items).await.map_err(closed)?;
        let second = link.window.bytes.acquire_many(bytes).await.map_err(closed)?;
        first.forget();
        second.forget();
        let (confirm, crowded) = self.push(link, publishes, refused, (items, bytes))?;
        if crowded {
            tokio::task::yield_now().await;
        }
        Ok(confirm)
    }

    /// Takes a batch of which nothing must be asked and for which there is room. Gives back any other.
    fn submit_at_once(&self, batch: Batch) -> Result<Result<(Confirm, bool), BrokerError>, Batch> {
        let Some(link) = self.publishing.get() else { return Err(batch) };
        if batch.position.is_some() || batch.publishes.is_empty() {
            return Err(batch);
        }
        let mut checked: Option<&Address> = None;
        for Publish { to, message } in &batch.publishes {
            let unanswerable = || replies::are_asked_for(message) && !self.hub.known.replies.have_address();
            if is_delayed(message) || self.wrong(message).is_some() || unanswerable() {
                return Err(batch);
            }
            if checked.is_some_and(|checked| checked.same(to)) {
                continue;
            }
            let known = to.exchange().is_empty() || self.hub.known.exchanges.lock().contains(to.exchange());
            if !known || to.key().len() > 255 {
                return Err(batch);
            }
            checked = Some(to);
        }
        let (items, bytes) = room(&batch.publishes, &link.window);
        let Ok(first) = link.window.items.try_acquire_many(items) else { return Err(batch) };
        let Ok(second) = link.window.bytes.try_acquire_many(bytes) else { return Err(batch) };
        first.forget();
        second.forget();
        Ok(self.push(link, batch.publishes, Vec::new(), (items, bytes)))
    }

    /// Publishes what there is room for, and says whether it is time to let it be written.
    fn push(
        &self,
        link: &Arc<Link>,
        publishes: Vec<Publish>,
        refused: Vec<(usize, PublishOutcome)>,
        room: (u32, u32),
    ) -> Result<(Confirm, bool), BrokerError> {
        self.published.fetch_add(publishes.len() as u64, Ordering::Relaxed);
        let entry = Entry::new(publishes, refused, room);
        let (told, crowded) = link.push(entry).ok_or_else(closed_error)?;
        Ok((Confirm::pending(told), crowded))
    }
}

fn invalid(text: String) -> Refusal {
    Refusal::Broker(BrokerError::new(BrokerErrorKind::Invalid, text))
}

/// The most bytes of a short text of AMQP.
const SHORT_MAX: usize = 255;

fn is_delayed(message: &Message) -> bool {
    !message.is_plain() && message.properties().delay.is_some_and(|delay| !delay.is_zero())
}

/// What a message takes in the window besides its own size.
const OVERHEAD: usize = 128;

/// What a batch takes of the window: items, bytes. One that is larger than the window takes all of it.
fn room(publishes: &[Publish], window: &Window) -> (u32, u32) {
    let bytes: usize = publishes.iter().map(|publish| publish.message.size() + OVERHEAD).sum();
    let most = |number: usize, max: u32| u32::try_from(number).unwrap_or(u32::MAX).min(max);
    (most(publishes.len(), window.items_max), most(bytes, window.bytes_max))
}
