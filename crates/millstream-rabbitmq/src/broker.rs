//! RabbitMQ as a [`Broker`].

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use millstream_message::dead::{self, DeadReason, Death};
use millstream_message::{
    Address, Batch, Binding, BoxFuture, Broker, BrokerError, BrokerErrorKind, BrokerUrl, Browsed, Confirm,
    ConsumeOptions, Consumer, Exchange, Features, Message, Outcomes, Publish, PublishOutcome, Queue,
    QueueStats, Refusal, StreamFrom, StreamReader, StreamSpec, StreamStats,
};
use tokio::sync::{Mutex, OnceCell, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::confirms::Entry;
use crate::consumer::ConsumerCore;
use crate::delays::Delays;
use crate::fields::cut;
use crate::headers;
use crate::hub::{Errand, Hub, Way};
use crate::link::{CallError, Channel, ConnectionState, Link, Role, closed_error};
use crate::options::Options;
use crate::positions;
use crate::proto::{Closed, Method, properties};
use crate::publisher::Window;
use crate::restore::{self, Consuming, Publishing};
use crate::topology;

/// A RabbitMQ broker, or a cluster of them, behind an `amqp://` or `amqps://` URL.
///
/// One connection declares and consumes, and another one publishes, so that a broker that blocks publishers does not hold back
/// consumers. Both are made anew when they are lost, with everything that was declared through this handle, its consumers with
/// their prefetch, and what was not confirmed.
///
/// # Delivery
/// At least once. What was published and not confirmed when a connection is lost is published again, so it may be stored
/// twice; a [message id](Message::with_message_id) lets consumers tell. What was delivered and not settled is delivered again.
pub struct RabbitMq(Arc<Inner>);

struct Inner {
    url: BrokerUrl,
    options: Arc<Options>,
    hub: Arc<Hub>,
    /// Declares, and consumes.
    main: Arc<Link>,
    /// Further connections for consumers.
    others: Vec<OnceCell<Arc<Link>>>,
    publishing: OnceCell<Arc<Link>>,
    /// The channel on which things are declared, one after the other.
    control: Mutex<Option<Channel>>,
    delays: Delays,
    /// Positions to be stored when their batches are.
    positions: Mutex<mpsc::Sender<PositionJob>>,
    consumers_made: AtomicUsize,
    published: AtomicU64,
    max_message_bytes: u64,
}

/// Figures of a broker handle since it was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Statistics {
    /// Connections that are there now.
    pub connections: u64,
    /// How often a connection was made.
    pub connects: u64,
    /// Tries that failed.
    pub failed_connects: u64,
    /// Bytes read and written.
    pub bytes_in: u64,
    /// Bytes written.
    pub bytes_out: u64,
    /// System calls that wrote.
    pub writes: u64,
    /// Messages handed over to be published.
    pub published: u64,
    /// Messages whose outcome is known.
    pub settled: u64,
    /// Messages published and not confirmed.
    pub in_flight: u64,
    /// Consumers.
    pub consumers: u64,
}

impl RabbitMq {
    /// Connects.
    ///
    /// # Errors
    /// `Invalid` if the URL makes no sense, or the broker knows neither user nor vhost; `Unavailable` if no host answers.
    pub async fn connect(url: &str) -> Result<RabbitMq, BrokerError> {
        let options = Arc::new(Options::parse(url)?);
        let url = url
            .parse()
            .map_err(|error| BrokerError::with_source(BrokerErrorKind::Invalid, "no broker URL", error))?;
        let hub = Hub::new();
        let main = Link::new(options.clone(), options.name.clone());
        let restore = Consuming { hub: hub.clone(), declares: true, after: None };
        main.start(Arc::new(restore)).await?;
        let most = max_message_bytes(&options, &main);
        let others = (1..options.connections).map(|_| OnceCell::new()).collect();
        let (jobs, row) = mpsc::channel(POSITIONS);
        let inner = Arc::new(Inner {
            url,
            options,
            hub,
            main,
            others,
            publishing: OnceCell::new(),
            control: Mutex::new(None),
            delays: Delays::default(),
            positions: Mutex::new(jobs),
            consumers_made: AtomicUsize::new(0),
            published: AtomicU64::new(0),
            max_message_bytes: most,
        });
        tokio::spawn(run_errands(inner.clone()));
        tokio::spawn(store_positions(Arc::downgrade(&inner), row));
        Ok(RabbitMq(inner))
    }

    /// Whether a URL makes sense, without connecting.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(url: &str) -> Result<(), BrokerError> {
        Options::parse(url).map(drop)
    }

    /// How the connection is that declares and consumes; a new value at each change.
    pub fn state(&self) -> watch::Receiver<ConnectionState> {
        self.0.main.status()
    }

    /// How the connection is that publishes, once something was published.
    pub fn publishing_state(&self) -> Option<watch::Receiver<ConnectionState>> {
        self.0.publishing.get().map(|link| link.status())
    }

    /// What the broker says it is, such as `RabbitMQ 3.10.8`.
    pub fn server(&self) -> String {
        let server = self.0.main.server.lock();
        server.as_ref().map_or_else(String::new, |server| format!("{} {}", server.product, server.version))
    }

    /// The largest frame that was agreed with the broker, in bytes.
    pub fn frame_max(&self) -> u32 {
        self.0.main.server.lock().as_ref().map_or(0, |server| server.frame_max)
    }

    /// Figures since it was opened.
    pub fn statistics(&self) -> Statistics {
        let inner = &self.0;
        let mut figures =
            Statistics { published: inner.published.load(Ordering::Relaxed), ..Statistics::default() };
        for link in inner.links() {
            let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            figures.connections += u64::from(link.state().connection.is_some());
            figures.connects += count(&link.counters.connects);
            figures.failed_connects += count(&link.counters.failed_connects);
            figures.bytes_in += count(&link.counters.bytes_in);
            figures.bytes_out += count(&link.counters.bytes_out);
            figures.writes += count(&link.counters.writes);
            let state = link.state();
            figures.settled += link.window.confirmed.load(Ordering::Relaxed);
            figures.in_flight += state.outbox.in_flight();
        }
        figures.consumers =
            inner.hub.consumers().iter().filter(|consumer| !consumer.has_ended()).count() as u64;
        figures
    }
}

impl Drop for RabbitMq {
    fn drop(&mut self) {
        // Nobody waits: what is written goes out, what is confirmed meanwhile is told.
        self.0.links().for_each(|link| link.close());
        self.0.hub.any_errands.notify_one();
    }
}

impl std::fmt::Debug for RabbitMq {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RabbitMq").field("url", &self.0.url.to_string()).finish_non_exhaustive()
    }
}

/// RabbitMQ's default limit of a message's size, which it does not tell: 128 MiB, and 16 MiB from version 4 on.
fn max_message_bytes(options: &Options, link: &Link) -> u64 {
    let server = link.server.lock();
    let major = server.as_ref().and_then(|server| server.version.split('.').next()?.parse::<u32>().ok());
    options.max_message_bytes.unwrap_or(if major.is_some_and(|major| major >= 4) {
        16 << 20
    } else {
        128 << 20
    })
}

fn unsupported(what: &str) -> BrokerError {
    BrokerError::new(BrokerErrorKind::Unsupported, format!("RabbitMQ by AMQP has no {what}"))
}

fn no_streams() -> BrokerError {
    BrokerError::new(
        BrokerErrorKind::Unsupported,
        "streams are reached by RabbitMQ's stream protocol: open the broker as `rabbitmq-stream://…`",
    )
}

/// What a refused method means to whoever asked for it.
fn refused(what: &str, closed: &Closed) -> BrokerError {
    let text = &closed.text;
    match closed.code {
        404 => BrokerError::new(BrokerErrorKind::NotFound, format!("{what}: {text}; declare it first")),
        405 => BrokerError::new(
            BrokerErrorKind::InUse,
            format!("{what}: {text}; it belongs to another connection until that one closes"),
        ),
        403 if text.contains("exclusive") => BrokerError::new(
            BrokerErrorKind::InUse,
            format!(
                "{what}: {text}; wait until the other consumer has ended, or consume without `exclusive`"
            ),
        ),
        403 => BrokerError::new(
            BrokerErrorKind::Invalid,
            format!("{what}: {text}; `rabbitmqctl set_permissions` gives the user the right to"),
        ),
        406 => topology::mismatch(what, closed),
        code => BrokerError::new(BrokerErrorKind::Invalid, format!("{what}: {text} ({code})")),
    }
}

fn failed(what: &str, error: CallError) -> BrokerError {
    match error {
        CallError::Refused(closed) => refused(what, &closed),
        CallError::Lost => BrokerError::new(
            BrokerErrorKind::Unavailable,
            format!("{what}: the connection was lost; try again"),
        ),
        CallError::NoChannel(most) => BrokerError::new(
            BrokerErrorKind::Unavailable,
            format!(
                "{what}: all {most} channels of the connection are in use; raise `channel_max`, or set `connections`"
            ),
        ),
    }
}

impl Inner {
    fn links(&self) -> impl Iterator<Item = &Arc<Link>> {
        let others = self.others.iter().filter_map(OnceCell::get);
        std::iter::once(&self.main).chain(self.publishing.get()).chain(others)
    }

    /// The link that publishes, connected when it is first needed.
    async fn publisher(&self) -> Result<&Arc<Link>, BrokerError> {
        let connect = async {
            if self.main.is_closing() {
                return Err(self.main.closed_error());
            }
            let link = Link::new(self.options.clone(), format!("{} (publishing)", self.options.name));
            link.start(Arc::new(Publishing { declaring: Arc::downgrade(&self.main) })).await?;
            Ok(link)
        };
        self.publishing.get_or_try_init(|| connect).await
    }

    /// The link for a new consumer: they take turns.
    async fn consuming(&self) -> Result<&Arc<Link>, BrokerError> {
        let turn = self.consumers_made.fetch_add(1, Ordering::Relaxed) % (self.others.len() + 1);
        let Some(other) = turn.checked_sub(1).and_then(|at| self.others.get(at)) else {
            return Ok(&self.main);
        };
        let connect = async {
            let link = Link::new(self.options.clone(), format!("{} ({})", self.options.name, turn + 1));
            let after = Some(self.main.clone());
            link.start(Arc::new(Consuming { hub: self.hub.clone(), declares: false, after })).await?;
            Ok(link)
        };
        other.get_or_try_init(|| connect).await
    }

    /// Has a method answered on the control channel, over losses of the connection.
    async fn control(&self, method: &Method) -> Result<Method, CallError> {
        let until = Instant::now() + self.options.operation_timeout;
        loop {
            if self.main.up().await.is_err() {
                return Err(CallError::Lost);
            }
            let mut control = self.control.lock().await;
            let answer = async {
                let channel = match *control {
                    Some(channel) if self.main.is_current(channel) => channel,
                    _ => self.main.open_channel(Role::Control).await?,
                };
                *control = Some(channel);
                self.main.call(channel, method).await
            };
            let answer = timeout_at(until, answer).await.unwrap_or(Err(CallError::Lost));
            match answer {
                Err(CallError::Lost) if Instant::now() < until && !self.main.is_closing() => *control = None,
                Err(error) => {
                    *control = None;
                    return Err(error);
                }
                answer => return answer,
            }
        }
    }

    async fn asked(&self, what: impl FnOnce() -> String, method: &Method) -> Result<Method, BrokerError> {
        self.control(method).await.map_err(|error| failed(&what(), error))
    }

    /// Whether a queue is there; how many messages are ready in it, and its consumers.
    async fn check_queue(&self, name: &str) -> Result<Option<(u64, u64)>, BrokerError> {
        topology::check_name("queue", name)?;
        match self.control(&topology::check_queue(name)).await {
            Ok(Method::QueueDeclareOk { messages, consumers, .. }) => {
                Ok(Some((messages.into(), consumers.into())))
            }
            Err(CallError::Refused(Closed { code: 404, .. })) => Ok(None),
            Ok(_) => Ok(None),
            Err(error) => Err(failed(&format!("queue `{name}`"), error)),
        }
    }

    /// Whether messages can be published to an exchange.
    async fn has_exchange(&self, name: &str) -> Result<bool, BrokerError> {
        if name.is_empty() || self.hub.exchanges.lock().contains(name) {
            return Ok(true);
        }
        match self.control(&topology::check_exchange(name)).await {
            Ok(_) => {
                self.hub.exchanges.lock().insert(name.to_owned());
                Ok(true)
            }
            Err(CallError::Refused(Closed { code: 404, .. })) => Ok(false),
            Err(error) => Err(failed(&format!("exchange `{name}`"), error)),
        }
    }

    /// Looks at what is to be published: which messages cannot be, and where those go that wait.
    async fn prepare(&self, publishes: &mut [Publish]) -> Result<Vec<(usize, PublishOutcome)>, BrokerError> {
        let mut refusals = Vec::new();
        let mut checked: Option<Address> = None;
        for (at, publish) in publishes.iter_mut().enumerate() {
            let refusal = self.check(publish, &mut checked).await?;
            if let Some(refusal) = refusal {
                refusals.push((at, PublishOutcome::Refused(refusal)));
            }
        }
        Ok(refusals)
    }

    async fn check(
        &self,
        publish: &mut Publish,
        checked: &mut Option<Address>,
    ) -> Result<Option<Refusal>, BrokerError> {
        let (len, max) = (publish.message.body().len() as u64, self.max_message_bytes);
        if len > max {
            return Ok(Some(Refusal::TooLarge { len, max }));
        }
        let invalid = |text: String| Some(Refusal::Broker(BrokerError::new(BrokerErrorKind::Invalid, text)));
        if !publish.message.is_plain() {
            if let Some(name) = properties::too_long(&publish.message) {
                return Ok(invalid(format!("{name} has more than AMQP's 255 bytes")));
            }
            let frame_max = self.main.server.lock().as_ref().map_or(4096, |server| server.frame_max as usize);
            let said = publish.message.size() - publish.message.body().len();
            if said > frame_max / 2 && !properties::fits(&publish.message, frame_max) {
                return Ok(invalid(format!(
                    "what is said about the message takes more than a frame of {frame_max} bytes"
                )));
            }
        }
        if !checked.as_ref().is_some_and(|checked| checked.same(&publish.to)) {
            let (exchange, key) = (publish.to.exchange(), publish.to.key());
            if exchange.len() > 255 || key.len() > 255 {
                return Ok(invalid(format!("{}: a name has more than AMQP's 255 bytes", publish.to)));
            }
            if !self.has_exchange(exchange).await? {
                return Ok(Some(Refusal::NoExchange { exchange: exchange.to_owned() }));
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
        match self.delays.queue(delay, &publish.to) {
            Err(text) => Ok(invalid(text)),
            Ok((queue, declare)) => {
                if let Some(declare) = declare {
                    self.asked(|| "a queue for messages with a delay".to_owned(), &declare).await?;
                    self.delays.declared(&queue);
                }
                // What is given back was counted when it left its queue.
                if publish.to.exchange().is_empty() && !headers::is_given_back(&publish.message) {
                    self.hub.delay(publish.to.key(), delay);
                }
                publish.to = Address::queue(queue);
                Ok(None)
            }
        }
    }

    async fn submit(&self, batch: Batch) -> Result<Confirm, BrokerError> {
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
            if !message.is_plain() || message.body().len() as u64 > self.max_message_bytes {
                return Err(batch);
            }
            if checked.is_some_and(|checked| checked.same(to)) {
                continue;
            }
            let known = to.exchange().is_empty() || self.hub.exchanges.lock().contains(to.exchange());
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
        let deadline = self.options.confirm_timeout.map(|after| link.now() + after);
        self.published.fetch_add(publishes.len() as u64, Ordering::Relaxed);
        let entry = Entry::new(publishes, refused, room, deadline);
        let (told, crowded) = link.push(entry).ok_or_else(closed_error)?;
        Ok((Confirm::pending(told), crowded))
    }

    /// Publishes a batch, and when all of it is confirmed its position. Positions are stored in the order of their batches.
    async fn submit_with_position(
        &self,
        publishes: Vec<Publish>,
        name: String,
        value: Bytes,
    ) -> Result<Confirm, BrokerError> {
        let queue = self.position_queue(&name).await?;
        // Held until the job is in the row, so that no other batch comes between.
        let jobs = self.positions.lock().await;
        let total = publishes.len();
        let batch = Box::pin(self.submit(Batch::from(publishes))).await?;
        let (done, told) = oneshot::channel();
        let job = PositionJob { batch, queue, value, done };
        jobs.send(job).await.map_err(|_| self.main.closed_error())?;
        drop(jobs);
        let error = self.main.closed_error();
        Ok(Confirm::pending(async move {
            told.await.unwrap_or_else(|_| Outcomes::all(total.max(1), &PublishOutcome::Unconfirmed(error)))
        }))
    }

    /// The queue that holds a position: a durable one with room for one message, the newest.
    async fn position_queue(&self, name: &str) -> Result<Address, BrokerError> {
        let queue = positions::queue(name);
        let address = Address::queue(&queue.name);
        if !self.hub.positions.lock().contains(&queue.name) {
            self.asked(|| format!("position `{name}`"), &topology::declare_queue(&queue)).await?;
            self.hub.positions.lock().insert(queue.name);
        }
        Ok(address)
    }

    async fn consume(&self, queue: &str, options: ConsumeOptions) -> Result<Consumer, BrokerError> {
        topology::check_name("queue", queue)?;
        if options.lease.is_some() {
            return Err(unsupported("leases: leave `lease` out, and set the broker's `consumer_timeout`"));
        }
        let link = self.consuming().await?.clone();
        let what = || format!("queue `{queue}`");
        let until = Instant::now() + self.options.operation_timeout;
        let cancelling = timeout_at(until, self.hub.none_cancelling(queue)).await;
        if cancelling.is_err() {
            let text = format!("queue `{queue}`: another consumer of this handle is still being cancelled");
            return Err(BrokerError::new(BrokerErrorKind::Unavailable, text));
        }
        let number = self.hub.next_consumer();
        let name = match options.name.as_str() {
            "" => format!("millstream-{}-{number}", std::process::id()),
            // The name is the consumer's tag, which is unique on its channel; a number makes it so in lists, too.
            name => format!("{}-{number}", cut(name, 200)),
        };
        loop {
            link.up().await?;
            let core = ConsumerCore::new(
                queue.to_owned(),
                name.clone(),
                options.clone(),
                link.clone(),
                self.hub.clone(),
            );
            match restore::open(&link, &core).await {
                Ok(()) => {
                    self.hub.add_consumer(&core);
                    tokio::spawn(watch_for_the_end(core.clone()));
                    return Ok(core.consumer());
                }
                Err(CallError::Lost) if Instant::now() < until && !link.is_closing() => {}
                Err(error) => return Err(failed(&what(), error)),
            }
        }
    }

    async fn close(&self) -> Result<(), BrokerError> {
        // Publishing first: what was accepted is confirmed before the connection goes.
        let drained = async {
            let waits = |jobs: &mpsc::Sender<PositionJob>| jobs.capacity() < jobs.max_capacity();
            while waits(&*self.positions.lock().await)
                || self.links().any(|link| link.state().outbox.in_flight() > 0)
            {
                if self.links().all(|link| link.is_closing()) {
                    return;
                }
                sleep(Duration::from_millis(1)).await;
            }
        };
        let _ = timeout(self.options.operation_timeout, drained).await;
        for consumer in self.hub.consumers() {
            consumer.stop_for_good();
        }
        self.links().for_each(|link| link.close());
        self.hub.any_errands.notify_one();
        for link in self.links() {
            let mut status = link.status();
            let ended = status.wait_for(|state| *state == ConnectionState::Closed);
            let _ = timeout(Duration::from_secs(5), ended).await;
        }
        for consumer in self.hub.consumers() {
            consumer.lost();
        }
        Ok(())
    }
}

/// A position that waits for its batch.
struct PositionJob {
    batch: Confirm,
    queue: Address,
    value: Bytes,
    done: oneshot::Sender<Outcomes>,
}

/// Positions that may wait; more wait to be handed over.
const POSITIONS: usize = 1024;

/// Stores positions whose batches are stored, one after the other.
async fn store_positions(inner: Weak<Inner>, mut row: mpsc::Receiver<PositionJob>) {
    while let Some(PositionJob { batch, queue, value, done }) = row.recv().await {
        let mut outcomes = batch.await;
        if outcomes.all_confirmed() {
            let stored = match inner.upgrade() {
                None => return,
                Some(inner) => inner.submit(Batch::to(&queue, [Message::new(value)])).await,
            };
            let stored = match stored {
                Ok(confirm) => confirm.await.others().first().map(|(_, outcome)| outcome.clone()),
                Err(error) => Some(PublishOutcome::Unconfirmed(error)),
            };
            if let Some(problem) = stored {
                outcomes = Outcomes::with_others(outcomes.len().max(1), vec![(0, problem)]);
            }
        }
        let _ = done.send(outcomes);
    }
}

/// What a message takes in the window besides its own size.
const OVERHEAD: usize = 128;

/// What a batch takes of the window: items, bytes. One that is larger than the window takes all of it.
fn room(publishes: &[Publish], window: &Window) -> (u32, u32) {
    let bytes: usize = publishes.iter().map(|publish| publish.message.size() + OVERHEAD).sum();
    let most = |number: usize, max: u32| u32::try_from(number).unwrap_or(u32::MAX).min(max);
    (most(publishes.len(), window.items_max), most(bytes, window.bytes_max))
}

/// A batch that is submitted: at once, as nearly all are, or after waiting for whatever it needs.
struct Submit<'a> {
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

/// Ends a consumer when its queue is empty, if that is asked for.
async fn watch_for_the_end(consumer: Arc<ConsumerCore>) {
    loop {
        consumer.drained.notified().await;
        let mut wait = Duration::from_millis(2);
        loop {
            if consumer.has_ended() {
                return;
            }
            let Some(delivered) = consumer.asks_for_the_end() else { break };
            match empty(&consumer).await {
                Ok(true) => consumer.ran_dry(delivered),
                Ok(false) | Err(_) => {
                    sleep(wait).await;
                    wait = (2 * wait).min(Duration::from_millis(100));
                }
            }
        }
    }
}

/// Whether nothing is ready in a consumer's queue, nor on its way.
async fn empty(consumer: &Arc<ConsumerCore>) -> Result<bool, CallError> {
    if consumer.delayed() > 0 {
        return Ok(false);
    }
    let channel = consumer.channel().ok_or(CallError::Lost)?;
    // Twice: deliveries that the queue has handed to the channel come before the second answer, not before the first.
    for _ in 0..2 {
        let answer = consumer.link().call(channel, &topology::check_queue(consumer.queue())).await?;
        if !matches!(answer, Method::QueueDeclareOk { messages: 0, .. }) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Brings deliveries elsewhere and then has them acked, as long as the handle is open.
async fn run_errands(inner: Arc<Inner>) {
    let hub = inner.hub.clone();
    loop {
        let errands: Vec<Errand> = hub.take_errands().into();
        if errands.is_empty() {
            if inner.main.is_closing() {
                return;
            }
            hub.any_errands.notified().await;
            continue;
        }
        let publishes = errands.iter().map(publish_of).collect::<Vec<_>>();
        let outcomes = match inner.submit(Batch::from(publishes)).await {
            Ok(confirm) => confirm.await,
            Err(error) => Outcomes::all(errands.len(), &PublishOutcome::Unconfirmed(error)),
        };
        let mut again = Vec::new();
        for (at, errand) in errands.into_iter().enumerate() {
            let outcome = if at < outcomes.len() { outcomes.get(at) } else { continue };
            match outcome {
                PublishOutcome::Confirmed => errand.consumer.unpark(errand.tag, true),
                // A dead letter that no queue wants is dropped, as the broker does it.
                PublishOutcome::Unroutable(_) | PublishOutcome::Refused(Refusal::NoExchange { .. }) => {
                    errand.consumer.unpark(errand.tag, false);
                }
                PublishOutcome::Refused(_) | PublishOutcome::Unconfirmed(_) => again.push(errand),
            }
        }
        if !again.is_empty() {
            if inner.main.is_closing() {
                return;
            }
            // The dead letters' queue is full, or the broker away: nothing is lost, it holds back the consumer.
            sleep(Duration::from_millis(250)).await;
            hub.send(again);
        }
    }
}

fn publish_of(errand: &Errand) -> Publish {
    let Errand { consumer, message, address, redeliveries, way, .. } = errand;
    match way {
        Way::Later(delay) => {
            let message = headers::given_back(message.clone(), address, *redeliveries).with_delay(*delay);
            Publish { to: Address::queue(consumer.queue()), message }
        }
        Way::DeadLetter { to: (exchange, key), reason, stage } => {
            #[expect(clippy::disallowed_methods, reason = "a death's time is told to people")]
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let death = Death {
                reason: DeadReason::Rejected,
                detail: Some(reason),
                stage: stage.as_deref(),
                queue: consumer.queue(),
                address,
                time: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            };
            let key = key.clone().unwrap_or_else(|| address.key().to_owned());
            Publish {
                to: Address::new(exchange.clone(), key),
                message: dead::letter(message.clone(), &death),
            }
        }
    }
}

impl Broker for RabbitMq {
    fn url(&self) -> &BrokerUrl {
        &self.0.url
    }

    fn features(&self) -> Features {
        let mut features = Features::all(self.0.max_message_bytes);
        features.lease = false;
        features.prefetch_bytes = false;
        features.streams = false;
        features.atomic_batches = false;
        features.list = false;
        features.delayed_stats = false;
        features
    }

    fn declare_exchange(&self, exchange: Exchange) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(async move {
            topology::check_name("exchange", &exchange.name)?;
            if exchange.name.is_empty() {
                return Err(BrokerError::new(
                    BrokerErrorKind::Invalid,
                    "the default exchange is always there",
                ));
            }
            let what = || format!("exchange `{}`", exchange.name);
            self.0.asked(what, &topology::declare_exchange(&exchange)).await?;
            self.0.hub.exchanges.lock().insert(exchange.name.clone());
            self.0.hub.topology.lock().exchanges.insert(exchange.name.clone(), exchange);
            Ok(())
        })
    }

    fn delete_exchange<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), BrokerError>> {
        Box::pin(async move {
            topology::check_name("exchange", name)?;
            self.0.hub.topology.lock().forget_exchange(name);
            self.0.hub.exchanges.lock().remove(name);
            let delete =
                Method::ExchangeDelete { reserved_1: 0, exchange: name.to_owned(), flags: [false; 2] };
            self.0.asked(|| format!("exchange `{name}`"), &delete).await?;
            Ok(())
        })
    }

    fn declare_queue(&self, queue: Queue) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(async move {
            topology::check_declared(&queue)?;
            self.0.asked(|| format!("queue `{}`", queue.name), &topology::declare_queue(&queue)).await?;
            self.0.hub.topology.lock().queues.insert(queue.name.clone(), queue);
            Ok(())
        })
    }

    fn delete_queue<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<u64, BrokerError>> {
        Box::pin(async move {
            topology::check_name("queue", name)?;
            self.0.hub.topology.lock().forget_queue(name);
            let delete = Method::QueueDelete { reserved_1: 0, queue: name.to_owned(), flags: [false; 3] };
            match self.0.asked(|| format!("queue `{name}`"), &delete).await? {
                Method::QueueDeleteOk { messages } => Ok(messages.into()),
                _ => Ok(0),
            }
        })
    }

    fn bind(&self, binding: Binding) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(async move {
            check_binding(&binding)?;
            let what = || format!("binding of queue `{}` to exchange `{}`", binding.queue, binding.exchange);
            self.0.asked(what, &topology::bind(&binding)).await?;
            let mut topology = self.0.hub.topology.lock();
            if !topology.bindings.contains(&binding) {
                topology.bindings.push(binding);
            }
            Ok(())
        })
    }

    fn unbind(&self, binding: Binding) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(async move {
            check_binding(&binding)?;
            self.0.hub.topology.lock().bindings.retain(|known| *known != binding);
            match self.0.control(&topology::unbind(&binding)).await {
                // Without its queue or exchange there is no binding.
                Ok(_) | Err(CallError::Refused(Closed { code: 404, .. })) => Ok(()),
                Err(error) => Err(failed(&format!("binding of queue `{}`", binding.queue), error)),
            }
        })
    }

    fn purge<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, Result<u64, BrokerError>> {
        Box::pin(async move {
            topology::check_name("queue", queue)?;
            let purge = Method::QueuePurge { reserved_1: 0, queue: queue.to_owned(), nowait: [false] };
            match self.0.asked(|| format!("queue `{queue}`"), &purge).await? {
                Method::QueuePurgeOk { messages } => Ok(messages.into()),
                _ => Ok(0),
            }
        })
    }

    fn submit(&self, batch: Batch) -> BoxFuture<'_, Result<Confirm, BrokerError>> {
        Box::pin(Submit { inner: &self.0, step: Step::Fresh(batch) })
    }

    fn consume<'a>(
        &'a self,
        queue: &'a str,
        options: ConsumeOptions,
    ) -> BoxFuture<'a, Result<Consumer, BrokerError>> {
        Box::pin(self.0.consume(queue, options))
    }

    /// Takes them and gives them back, for RabbitMQ has no other way: they count as delivered once more.
    fn browse<'a>(
        &'a self,
        queue: &'a str,
        skip: u64,
        max: usize,
    ) -> BoxFuture<'a, Result<Vec<Browsed>, BrokerError>> {
        Box::pin(async move {
            let skip = usize::try_from(skip).unwrap_or(usize::MAX);
            let most = skip.saturating_add(max).min(usize::from(u16::MAX));
            let options = ConsumeOptions::default().prefetch(most).stop_when_empty().name("browse");
            let mut consumer = self.0.consume(queue, options).await?;
            let mut seen = Vec::new();
            while seen.len() < most {
                let chunk = consumer.next_chunk(most - seen.len()).await?;
                if chunk.is_empty() {
                    break;
                }
                seen.extend(chunk);
            }
            let browsed = seen.into_iter().skip(skip).map(|delivery| Browsed {
                deliveries: delivery.redeliveries,
                message: delivery.message,
                address: delivery.address,
            });
            Ok(browsed.collect())
        })
    }

    /// `ready` and `consumers` are the broker's. `unacked` and `delayed` are those of this handle, and bytes are not known:
    /// AMQP does not tell them.
    fn stats<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, Result<QueueStats, BrokerError>> {
        Box::pin(async move {
            let Some((ready, consumers)) = self.0.check_queue(queue).await? else {
                let text = format!("there is no queue `{queue}`; declare it first");
                return Err(BrokerError::new(BrokerErrorKind::NotFound, text));
            };
            let of_it = self.0.hub.consumers();
            let unacked =
                of_it.iter().filter(|consumer| consumer.queue() == queue).map(|consumer| consumer.unacked());
            Ok(QueueStats {
                name: queue.to_owned(),
                ready,
                unacked: unacked.sum(),
                delayed: self.0.hub.delayed(queue),
                consumers,
                ..QueueStats::default()
            })
        })
    }

    /// As it was declared through this handle; of a queue that somebody else has declared only the name is known.
    fn queue<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Queue>, BrokerError>> {
        Box::pin(async move {
            let known = |name: &str| self.0.hub.topology.lock().queues.get(name).cloned();
            let there = self.0.check_queue(name).await?.is_some();
            Ok(there.then(|| known(name).unwrap_or_else(|| Queue::durable(name))))
        })
    }

    fn queues(&self) -> BoxFuture<'_, Result<Vec<String>, BrokerError>> {
        Box::pin(async { Err(unsupported("list of queues; `rabbitmqctl list_queues` shows it")) })
    }

    /// Positions are kept in queues of their own, which begin with `millstream.position.`.
    fn position<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Bytes>, BrokerError>> {
        Box::pin(async move {
            let queue = positions::queue(name).name;
            if self.0.check_queue(&queue).await?.is_none() {
                return Ok(None);
            }
            let stored = self.browse(&queue, 0, 1).await?;
            Ok(stored.into_iter().next().map(|stored| stored.message.into_body()))
        })
    }

    fn store_position<'a>(
        &'a self,
        name: &'a str,
        value: Option<Bytes>,
    ) -> BoxFuture<'a, Result<(), BrokerError>> {
        Box::pin(async move {
            let Some(value) = value else {
                let queue = positions::queue(name).name;
                self.0.hub.positions.lock().remove(&queue);
                self.delete_queue(&queue).await?;
                return Ok(());
            };
            let stored = self.0.submit_with_position(Vec::new(), name.to_owned(), value).await?.await;
            match stored.into_others().into_iter().next() {
                None => Ok(()),
                Some((_, PublishOutcome::Unconfirmed(error))) => Err(error),
                Some((_, outcome)) => Err(BrokerError::new(
                    BrokerErrorKind::Unavailable,
                    format!("position `{name}` was not stored: {outcome:?}"),
                )),
            }
        })
    }

    fn declare_stream(&self, _: StreamSpec) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(async { Err(no_streams()) })
    }

    fn delete_stream<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), BrokerError>> {
        Box::pin(async { Err(no_streams()) })
    }

    fn append<'a>(&'a self, _: &'a str, _: Vec<Message>) -> BoxFuture<'a, Result<u64, BrokerError>> {
        Box::pin(async { Err(no_streams()) })
    }

    fn read<'a>(&'a self, _: &'a str, _: StreamFrom) -> BoxFuture<'a, Result<StreamReader, BrokerError>> {
        Box::pin(async { Err(no_streams()) })
    }

    fn stream_stats<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<StreamStats, BrokerError>> {
        Box::pin(async { Err(no_streams()) })
    }

    fn store_offset<'a>(&'a self, _: &'a str, _: &'a str, _: u64) -> BoxFuture<'a, Result<(), BrokerError>> {
        Box::pin(async { Err(no_streams()) })
    }

    fn stored_offset<'a>(
        &'a self,
        _: &'a str,
        _: &'a str,
    ) -> BoxFuture<'a, Result<Option<u64>, BrokerError>> {
        Box::pin(async { Err(no_streams()) })
    }

    fn close(&self) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(self.0.close())
    }
}

fn check_binding(binding: &Binding) -> Result<(), BrokerError> {
    topology::check_name("exchange", &binding.exchange)?;
    topology::check_name("queue", &binding.queue)?;
    topology::check_name("key", &binding.key)
}
