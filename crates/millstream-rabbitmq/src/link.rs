//! One connection that stays: a task owns its socket, connects again when it is lost, and has everything restored.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use hashbrown::HashMap;
use millstream_message::{BoxFuture, BrokerError, BrokerErrorKind};
use millstream_resilience::Backoff;
use parking_lot::{Mutex, MutexGuard};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::{Instant, Sleep, sleep, timeout};

use crate::confirms::Entry;
use crate::consumer::ConsumerCore;
use crate::options::Options;
use crate::proto::{Closed, Connection, Event, Method, ProtocolError, Server, Settings};
use crate::publisher::{Outbox, Window};
use crate::socket::Socket;
use crate::told::Told;

/// How a connection is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConnectionState {
    /// The first try is under way.
    Connecting,
    /// It is there, and everything is restored.
    Connected,
    /// It is there, and the broker reads nothing: it is short of memory or disk. What is published waits.
    Blocked {
        /// What the broker says.
        reason: String,
    },
    /// It was lost, for this reason; the tries since then.
    Reconnecting {
        /// How many tries have failed.
        attempts: u32,
        /// Why the last one did, or why the connection was lost.
        error: String,
    },
    /// It was closed by us.
    Closed,
}

/// What a link does when it is there again, before anybody else may use it.
pub(crate) trait Restore: Send + Sync + 'static {
    fn restore<'a>(&'a self, link: &'a Arc<Link>) -> BoxFuture<'a, Result<(), CallError>>;

    /// Opens again what the server closed while the connection stayed.
    fn repair<'a>(&'a self, link: &'a Arc<Link>) -> BoxFuture<'a, Result<(), CallError>>;
}

/// Why a method has no answer.
#[derive(Clone, Debug)]
pub(crate) enum CallError {
    /// The server closed the channel instead.
    Refused(Closed),
    /// The connection was lost meanwhile, or the channel was closed for another reason.
    Lost,
    /// There are as many channels as may be.
    NoChannel(u16),
}

/// A channel of one life of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Channel {
    pub(crate) number: u16,
    life: u64,
}

/// Who a channel belongs to.
pub(crate) enum Role {
    Control,
    Publisher,
    Consumer(Arc<ConsumerCore>),
}

struct Use {
    role: Role,
    waiting: VecDeque<Waiter>,
}

/// Who waits for a method's answer.
enum Waiter {
    Call(oneshot::Sender<Result<Method, CallError>>),
    /// A consumer is cancelled.
    Cancel,
}

/// What the socket's task and everybody else share.
pub(crate) struct State {
    pub(crate) connection: Option<Connection>,
    life: u64,
    channels: HashMap<u16, Use>,
    /// The channel on which this link publishes, and what is on its way.
    pub(crate) outbox: Outbox,
    pub(crate) publisher: Option<u16>,
    closing: bool,
    opened: bool,
    blocked: bool,
    /// Why the life ended, if the server said so.
    end: Option<String>,
}

/// Figures of a connection since it was first made.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) connects: AtomicU64,
    pub(crate) failed_connects: AtomicU64,
    pub(crate) bytes_in: AtomicU64,
    pub(crate) bytes_out: AtomicU64,
    pub(crate) writes: AtomicU64,
}

pub(crate) struct Link {
    pub(crate) options: Arc<Options>,
    name: String,
    state: Mutex<State>,
    /// What may be published and not confirmed.
    pub(crate) window: Arc<Window>,
    /// The task that owns the socket.
    waker: AtomicWaker,
    /// It has been woken and has not looked since.
    woken: AtomicBool,
    /// Consumers with something to tell the broker.
    talkers: Mutex<Vec<Arc<ConsumerCore>>>,
    /// Channels that the server closed under a consumer that wants to go on.
    broken: Mutex<Vec<Arc<ConsumerCore>>>,
    /// Notified when something was closed that is to be opened again.
    repair: Notify,
    status: watch::Sender<ConnectionState>,
    pub(crate) server: Mutex<Option<Server>>,
    pub(crate) counters: Counters,
    epoch: Instant,
}

impl Link {
    pub(crate) fn new(options: Arc<Options>, name: String) -> Arc<Link> {
        let window = Arc::new(Window::new(&options));
        let outbox = Outbox::new(window.clone());
        Arc::new(Link {
            window,
            options,
            name,
            state: Mutex::new(State {
                connection: None,
                life: 0,
                channels: HashMap::new(),
                outbox,
                publisher: None,
                closing: false,
                opened: false,
                blocked: false,
                end: None,
            }),
            waker: AtomicWaker::new(),
            woken: AtomicBool::new(false),
            talkers: Mutex::new(Vec::new()),
            broken: Mutex::new(Vec::new()),
            repair: Notify::new(),
            status: watch::channel(ConnectionState::Connecting).0,
            server: Mutex::new(None),
            counters: Counters::default(),
            epoch: Instant::now(),
        })
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// The time that the protocol goes by.
    pub(crate) fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    pub(crate) fn status(&self) -> watch::Receiver<ConnectionState> {
        self.status.subscribe()
    }

    /// Has the socket's task look at the output and at what consumers have to say.
    pub(crate) fn wake(&self) {
        if !self.woken.swap(true, Ordering::AcqRel) {
            self.waker.wake();
        }
    }

    /// A consumer has something to tell the broker.
    pub(crate) fn has_words(&self, consumer: Arc<ConsumerCore>) {
        self.talkers.lock().push(consumer);
        self.wake();
    }

    /// Connects, and keeps connected in a task of its own.
    ///
    /// # Errors
    /// If no host takes the first connection.
    pub(crate) async fn start(self: &Arc<Link>, restore: Arc<dyn Restore>) -> Result<(), BrokerError> {
        let (told, first) = oneshot::channel();
        tokio::spawn(self.clone().supervise(restore, told));
        first.await.unwrap_or_else(|_| Err(self.closed_error()))
    }

    async fn supervise(
        self: Arc<Link>,
        restore: Arc<dyn Restore>,
        told: oneshot::Sender<Result<(), BrokerError>>,
    ) {
        let mut told = Some(told);
        let mut attempts = 0_u32;
        // Any time up to the longest: many clients that lost one broker do not come back as one.
        let (first, max) = (self.options.reconnect_min, self.options.reconnect_max);
        let mut delays = Backoff::exponential(first).max(max).full_jitter().delays();
        let mut host =
            if self.options.hosts.len() > 1 { fastrand::usize(..self.options.hosts.len()) } else { 0 };
        loop {
            let mut was_up = false;
            let end = self.live(host, &*restore, &mut was_up, &mut told).await;
            self.end_of_life();
            if self.state().closing {
                break;
            }
            if was_up {
                attempts = 0;
                delays.reset();
            } else {
                attempts += 1;
                self.counters.failed_connects.fetch_add(1, Ordering::Relaxed);
            }
            if let Some(first) = told.take() {
                if (attempts as usize) < self.options.hosts.len() {
                    told = Some(first);
                } else {
                    let _ = first.send(Err(end));
                    break;
                }
            }
            host = (host + 1) % self.options.hosts.len();
            let error = describe(&end);
            tracing::warn!(connection = %self.name, attempts, %error, "the connection to RabbitMQ is away");
            self.status.send_replace(ConnectionState::Reconnecting { attempts, error });
            let mut delay = pin!(sleep(delays.next_delay()));
            let closed = poll_fn(|cx| {
                self.waker.register(cx.waker());
                self.woken.store(false, Ordering::Release);
                self.expire();
                if self.state().closing { Poll::Ready(true) } else { delay.as_mut().poll(cx).map(|()| false) }
            });
            if closed.await {
                break;
            }
        }
        let error = self.closed_error();
        {
            let mut state = self.state();
            state.closing = true;
            state.outbox.fail(&error);
        }
        restore_is_over(&self);
        self.status.send_replace(ConnectionState::Closed);
    }

    /// One life: from connecting to the loss.
    async fn live(
        self: &Arc<Link>,
        host: usize,
        restore: &dyn Restore,
        was_up: &mut bool,
        told: &mut Option<oneshot::Sender<Result<(), BrokerError>>>,
    ) -> BrokerError {
        let (host, port) = &self.options.hosts[host];
        let place = format!("{host}:{port}");
        let connecting =
            timeout(self.options.connection_timeout, Socket::connect(&self.options, host, *port));
        let socket = match connecting.await {
            Ok(Ok(socket)) => socket,
            Ok(Err(error)) => return unreachable_host(&place, error),
            Err(_) => {
                let error = io::Error::new(io::ErrorKind::TimedOut, "no answer within `connection_timeout`");
                return unreachable_host(&place, error);
            }
        };
        let settings = Settings {
            login: self.options.login.clone(),
            vhost: self.options.vhost.clone(),
            name: self.name.clone(),
            frame_max: self.options.frame_max,
            channel_max: self.options.channel_max,
            heartbeat: self.options.heartbeat,
            body_max: self.options.max_message_bytes.unwrap_or(BODY_MAX),
        };
        {
            let mut state = self.state();
            state.life += 1;
            state.connection = Some(Connection::new(settings, self.now()));
            state.opened = false;
            state.end = None;
        }
        let mut io = pin!(Io::new(self.clone(), socket).run());
        // The handshake.
        let handshake = poll_fn(|cx| match io.as_mut().poll(cx) {
            Poll::Ready(end) => Poll::Ready(Err(end)),
            Poll::Pending if self.state().opened => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        });
        match timeout(self.options.connection_timeout, handshake).await {
            Ok(Ok(())) => {}
            Ok(Err(end)) => return self.refused(&place, end),
            Err(_) => {
                let error =
                    io::Error::new(io::ErrorKind::TimedOut, "no handshake within `connection_timeout`");
                return unreachable_host(&place, error);
            }
        }
        self.counters.connects.fetch_add(1, Ordering::Relaxed);
        let mut upkeep = pin!(self.upkeep(restore, was_up, told));
        poll_fn(|cx| {
            // Upkeep first: what it writes is sent by the socket's turn.
            if let Poll::Ready(Err(error)) = upkeep.as_mut().poll(cx) {
                let text = format!("{place}: what was declared could not be restored: {error:?}");
                return Poll::Ready(BrokerError::new(BrokerErrorKind::Unavailable, text));
            }
            io.as_mut().poll(cx).map(|end| self.refused(&place, end))
        })
        .await
    }

    /// Restores everything, and then what breaks. Its end is the life's.
    async fn upkeep(
        self: &Arc<Link>,
        restore: &dyn Restore,
        was_up: &mut bool,
        told: &mut Option<oneshot::Sender<Result<(), BrokerError>>>,
    ) -> Result<Infallible, CallError> {
        restore.restore(self).await?;
        *was_up = true;
        self.set_up();
        if let Some(first) = told.take() {
            let _ = first.send(Ok(()));
        }
        loop {
            self.repair.notified().await;
            restore.repair(self).await?;
        }
    }

    fn set_up(&self) {
        let blocked = self.state().blocked;
        if !blocked {
            self.status.send_replace(ConnectionState::Connected);
        }
    }

    /// Everything that waited for this life's answers gets none.
    fn end_of_life(&self) {
        let channels = {
            let mut state = self.state();
            state.connection = None;
            state.publisher = None;
            state.opened = false;
            state.blocked = false;
            std::mem::take(&mut state.channels)
        };
        for (_, Use { role, waiting }) in channels {
            for waiter in waiting {
                if let Waiter::Call(caller) = waiter {
                    let _ = caller.send(Err(CallError::Lost));
                }
            }
            if let Role::Consumer(consumer) = role {
                consumer.lost();
            }
        }
    }

    /// The error of a handshake, or of a life, that ended in this way.
    fn refused(&self, place: &str, end: End) -> BrokerError {
        let said = self.state().end.take();
        let user = match &self.options.login {
            crate::proto::Login::Plain(user, _) | crate::proto::Login::Amqplain(user, _) => user.as_str(),
            crate::proto::Login::External => "the certificate's",
        };
        match end {
            End::Closed(Closed { code: 403, text, .. }) => BrokerError::new(
                BrokerErrorKind::Invalid,
                format!(
                    "{place} does not let `{user}` in: {text}; give the right name and password in the URL, or let the user in \
                     with `rabbitmqctl set_permissions`"
                ),
            ),
            End::Closed(Closed { code: 530, text, .. }) => BrokerError::new(
                BrokerErrorKind::Invalid,
                format!(
                    "{place}: vhost `{}`: {text}; the URL's path is the vhost (`/` is written `%2f`), `rabbitmqctl add_vhost` \
                     makes one",
                    self.options.vhost
                ),
            ),
            End::Closed(Closed { code, text, .. }) => BrokerError::new(
                BrokerErrorKind::Unavailable,
                format!("{place} closed the connection: {text} ({code})"),
            ),
            End::Protocol(error) => {
                let kind =
                    if error.code == 403 { BrokerErrorKind::Invalid } else { BrokerErrorKind::Unavailable };
                BrokerError::with_source(kind, format!("{place}: {error}"), error)
            }
            End::Io(error) => {
                let text = match said {
                    Some(said) => format!("{place}: {said}"),
                    None => format!("{place}: the connection was lost: {error}"),
                };
                BrokerError::with_source(BrokerErrorKind::Unavailable, text, error)
            }
            End::Asked => self.closed_error(),
        }
    }

    pub(crate) fn closed_error(&self) -> BrokerError {
        closed_error()
    }

    /// Asks the task to end the connection in good order.
    pub(crate) fn close(&self) {
        self.state().closing = true;
        self.wake();
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.state().closing
    }

    /// Waits until the connection is there, for as long as operations may.
    ///
    /// # Errors
    /// If it is not by then, or the handle is closed.
    pub(crate) async fn up(&self) -> Result<(), BrokerError> {
        let mut status = self.status();
        let is_up = |state: &ConnectionState| {
            matches!(
                state,
                ConnectionState::Connected | ConnectionState::Blocked { .. } | ConnectionState::Closed
            )
        };
        let waited = timeout(self.options.operation_timeout, status.wait_for(is_up)).await;
        match waited {
            Ok(Ok(state)) if *state != ConnectionState::Closed => Ok(()),
            Ok(_) => Err(self.closed_error()),
            Err(_) => {
                let why = match &*self.status.borrow() {
                    ConnectionState::Reconnecting { error, .. } => error.clone(),
                    _ => "it is not connected".to_owned(),
                };
                let within = self.options.operation_timeout;
                Err(BrokerError::new(
                    BrokerErrorKind::Unavailable,
                    format!("no connection within {within:?}: {why}"),
                ))
            }
        }
    }

    /// Opens a channel for this role.
    pub(crate) async fn open_channel(&self, role: Role) -> Result<Channel, CallError> {
        let (caller, answer) = oneshot::channel();
        let channel = {
            let mut state = self.state();
            let life = state.life;
            let connection = state.connection.as_mut().ok_or(CallError::Lost)?;
            let most = connection.server().channel_max;
            let number = connection.open_channel().ok_or(CallError::NoChannel(most))?;
            let waiting = VecDeque::from([Waiter::Call(caller)]);
            state.channels.insert(number, Use { role, waiting });
            Channel { number, life }
        };
        self.wake();
        answer.await.unwrap_or(Err(CallError::Lost))?;
        Ok(channel)
    }

    /// Sends a method and waits for its answer.
    ///
    /// # Cancel safety
    /// A method that was sent takes effect whether anybody waits for its answer or not.
    pub(crate) async fn call(&self, channel: Channel, method: &Method) -> Result<Method, CallError> {
        let answer = self.send_call(channel, method)?;
        self.wake();
        answer.await.unwrap_or(Err(CallError::Lost))
    }

    fn send_call(
        &self,
        channel: Channel,
        method: &Method,
    ) -> Result<oneshot::Receiver<Result<Method, CallError>>, CallError> {
        let (caller, answer) = oneshot::channel();
        let mut state = self.state();
        let State { connection: Some(connection), channels, life, .. } = &mut *state else {
            return Err(CallError::Lost);
        };
        let used =
            channels.get_mut(&channel.number).filter(|_| *life == channel.life).ok_or(CallError::Lost)?;
        used.waiting.push_back(Waiter::Call(caller));
        connection.send(channel.number, method);
        Ok(answer)
    }

    /// Has a channel closed; nobody waits for it.
    pub(crate) fn close_channel(&self, channel: Channel) {
        let mut state = self.state();
        if state.life == channel.life
            && let Some(connection) = &mut state.connection
        {
            connection.close_channel(channel.number);
            drop(state);
            self.wake();
        }
    }

    /// Makes this channel the one that everything is published on, and sends what was not confirmed.
    pub(crate) fn publish_on(&self, channel: Channel) {
        let mut state = self.state();
        let State { connection: Some(connection), life, outbox, publisher, .. } = &mut *state else { return };
        if *life == channel.life {
            *publisher = Some(channel.number);
            outbox.restart(connection, channel.number);
        }
        drop(state);
        self.wake();
    }

    /// Takes a batch to publish. What will become of it, and whether so much waits to be written that the publisher should let
    /// it be written; `None` if the link is closed.
    pub(crate) fn push(&self, entry: Entry) -> Option<(Told, bool)> {
        let mut state = self.state();
        let State { connection, outbox, publisher, closing, .. } = &mut *state;
        if *closing {
            return None;
        }
        let to = connection.as_mut().zip(*publisher);
        let told = outbox.push(entry, to);
        let crowded = connection.as_ref().is_some_and(|connection| connection.output().len() >= WRITE);
        drop(state);
        self.wake();
        Some((told, crowded))
    }

    /// A consumer is to be given another channel.
    pub(crate) fn mend(&self, consumer: Arc<ConsumerCore>) {
        self.broken.lock().push(consumer);
        self.repair.notify_one();
    }

    /// Whether a channel is of this life of the connection.
    pub(crate) fn is_current(&self, channel: Channel) -> bool {
        let state = self.state();
        state.life == channel.life && state.channels.contains_key(&channel.number)
    }

    /// Consumers whose channels the server closed, to be opened again.
    pub(crate) fn take_broken(&self) -> Vec<Arc<ConsumerCore>> {
        std::mem::take(&mut self.broken.lock())
    }

    /// Gives up publishes that have waited for too long.
    fn expire(&self) {
        let now = self.now();
        self.state().outbox.expire(now);
    }

    /// Has consumers say what they have to say.
    fn talk(&self) {
        if self.talkers.lock().is_empty() {
            return;
        }
        let mut state = self.state();
        let State { connection: Some(connection), channels, .. } = &mut *state else { return };
        let talkers = std::mem::take(&mut *self.talkers.lock());
        for consumer in talkers {
            // The order of locks is: this link's state, then a consumer's.
            if let Some(used) = consumer.talk(connection).and_then(|channel| channels.get_mut(&channel)) {
                used.waiting.push_back(Waiter::Cancel);
            }
        }
    }
}

pub(crate) fn closed_error() -> BrokerError {
    BrokerError::new(BrokerErrorKind::Unavailable, "the broker handle is closed")
}

/// The largest body that is taken from a broker that has not said its version yet.
const BODY_MAX: u64 = 512 << 20;

fn unreachable_host(place: &str, error: io::Error) -> BrokerError {
    let text = format!(
        "{place} cannot be reached: {error}; is RabbitMQ running there, and are host and port of the URL right?"
    );
    BrokerError::with_source(BrokerErrorKind::Unavailable, text, error)
}

fn describe(error: &BrokerError) -> String {
    error.to_string()
}

/// Nothing comes any more: whoever waits is told.
fn restore_is_over(link: &Link) {
    for consumer in link.take_broken() {
        consumer.lost();
    }
    for consumer in std::mem::take(&mut *link.talkers.lock()) {
        consumer.lost();
    }
}

/// How a life ended.
enum End {
    Io(io::Error),
    Protocol(ProtocolError),
    /// The server closed it.
    Closed(Closed),
    /// We did.
    Asked,
}

/// The socket and what is on its way through it.
struct Io {
    link: Arc<Link>,
    socket: Socket,
    input: Vec<u8>,
    /// Where what is not taken yet begins and ends.
    begin: usize,
    end: usize,
    output: Vec<u8>,
    written: usize,
    timer: Pin<Box<Sleep>>,
    wakers: Vec<Waker>,
    close_sent: bool,
}

/// Bytes that are read at once.
const READ: usize = 64 << 10;
/// Bytes to be written from which on publishers let the socket's task run: what is written while it is in the processor's cache
/// costs half.
const WRITE: usize = 64 << 10;
/// A buffer that had to be larger than this is given back.
const KEEP: usize = 1 << 20;

impl Io {
    fn new(link: Arc<Link>, socket: Socket) -> Io {
        Io {
            link,
            socket,
            input: vec![0; READ],
            begin: 0,
            end: 0,
            output: Vec::new(),
            written: 0,
            timer: Box::pin(sleep(Duration::ZERO)),
            wakers: Vec::new(),
            close_sent: false,
        }
    }

    async fn run(mut self) -> End {
        poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        self.link.waker.register(cx.waker());
        self.link.woken.store(false, Ordering::Release);
        loop {
            let mut busy = false;
            match self.poll_read(cx) {
                Poll::Ready(Ok(())) => busy = true,
                Poll::Ready(Err(end)) => {
                    // Words to the other side about why; whether they arrive does not matter.
                    let _ = self.poll_write(cx);
                    return Poll::Ready(end);
                }
                Poll::Pending => {}
            }
            self.link.talk();
            match self.poll_write(cx) {
                Poll::Ready(Ok(true)) => busy = true,
                Poll::Ready(Ok(false)) | Poll::Pending => {}
                Poll::Ready(Err(error)) => return Poll::Ready(End::Io(error)),
            }
            if let Err(end) = self.poll_timer(cx) {
                let _ = self.poll_write(cx);
                return Poll::Ready(end);
            }
            if !busy {
                return Poll::Pending;
            }
        }
    }

    /// Reads once, and handles what came.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        if self.end == self.input.len() {
            self.make_room();
        }
        let mut buf = ReadBuf::new(&mut self.input[self.end..]);
        match Pin::new(&mut self.socket).poll_read(cx, &mut buf) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Err(error)) => return Poll::Ready(Err(End::Io(error))),
            Poll::Ready(Ok(())) => {}
        }
        let read = buf.filled().len();
        if read == 0 {
            let closed = io::Error::new(io::ErrorKind::UnexpectedEof, "the other side closed it");
            return Poll::Ready(Err(if self.close_sent { End::Asked } else { End::Io(closed) }));
        }
        self.link.counters.bytes_in.fetch_add(read as u64, Ordering::Relaxed);
        self.end += read;
        Poll::Ready(self.take_input())
    }

    /// Moves what is left to the front, or makes the buffer larger if one frame fills it.
    fn make_room(&mut self) {
        if self.begin > 0 {
            self.input.copy_within(self.begin..self.end, 0);
            (self.begin, self.end) = (0, self.end - self.begin);
        }
        if self.end == self.input.len() {
            self.input.resize(2 * self.input.len(), 0);
        }
    }

    fn take_input(&mut self) -> Result<(), End> {
        let Io { link, input, begin, end, wakers, .. } = self;
        let now = link.now();
        let mut ended = None;
        let mut status = None;
        {
            let mut state = link.state.lock();
            let State { connection, channels, outbox, publisher, opened, blocked, .. } = &mut *state;
            let Some(connection) = connection else { return Ok(()) };
            let mut on = |event: Event<'_>| match event {
                Event::Ack { channel, tag, multiple } if *publisher == Some(channel) => {
                    outbox.ack(tag, multiple)
                }
                Event::Nack { channel, tag, multiple } if *publisher == Some(channel) => {
                    outbox.nack(tag, multiple)
                }
                Event::Ack { .. } | Event::Nack { .. } => {}
                Event::Deliver { channel, redelivered, exchange, key, content, .. } => {
                    if let Some(Use { role: Role::Consumer(consumer), .. }) = channels.get(&channel) {
                        wakers.extend(consumer.deliver(redelivered, exchange, key, content));
                    }
                }
                Event::Returned { channel, reason, exchange, key, content }
                    if *publisher == Some(channel) =>
                {
                    outbox.returned(exchange, key, &content.body, reason);
                }
                Event::Returned { .. } => {}
                Event::Reply(channel, Method::ChannelCloseOk {}) => {
                    if let Some(used) = channels.remove(&channel)
                        && let Role::Consumer(consumer) = used.role
                    {
                        wakers.extend(consumer.closed(None).1);
                    }
                }
                Event::Reply(channel, method) => {
                    let Some(used) = channels.get_mut(&channel) else { return };
                    match used.waiting.pop_front() {
                        Some(Waiter::Call(caller)) => _ = caller.send(Ok(method)),
                        Some(Waiter::Cancel) => {
                            if let Role::Consumer(consumer) = &used.role {
                                consumer.cancelled();
                            }
                        }
                        None => {}
                    }
                }
                Event::Cancelled { channel, .. } => {
                    if let Some(Use { role: Role::Consumer(consumer), .. }) = channels.get(&channel) {
                        wakers.extend(consumer.gone());
                    }
                }
                Event::ChannelClosed(channel, closed) => {
                    let Some(Use { role, waiting }) = channels.remove(&channel) else { return };
                    let mut first = true;
                    for waiter in waiting {
                        if let Waiter::Call(caller) = waiter {
                            // The first one is what the server did not like, or at least the one that is told.
                            let why =
                                if first { CallError::Refused(closed.clone()) } else { CallError::Lost };
                            first = false;
                            let _ = caller.send(Err(why));
                        }
                    }
                    match role {
                        Role::Consumer(consumer) => {
                            let (goes_on, woken) = consumer.closed(Some(&closed));
                            wakers.extend(woken);
                            if goes_on {
                                tracing::warn!(queue = consumer.queue(), error = %closed.text, "a consumer's channel was closed");
                                link.mend(consumer);
                            }
                        }
                        Role::Publisher => {
                            *publisher = None;
                            outbox.channel_closed(&closed);
                            link.repair.notify_one();
                        }
                        Role::Control => {}
                    }
                }
                Event::Opened(server) => {
                    *opened = true;
                    *link.server.lock() = Some(server);
                }
                Event::Blocked(reason) => {
                    *blocked = true;
                    tracing::warn!(connection = %link.name, reason, "RabbitMQ blocks publishers");
                    status = Some(ConnectionState::Blocked { reason });
                }
                Event::Unblocked => {
                    *blocked = false;
                    status = Some(ConnectionState::Connected);
                }
                Event::Closed(closed) => ended = Some(End::Closed(closed)),
                Event::CloseOk => ended = Some(End::Asked),
            };
            let received = connection.receive(&input[*begin..*end], now, &mut on);
            match received {
                Ok(used) => *begin += used,
                Err(error) => ended = Some(End::Protocol(error)),
            }
            outbox.resolve();
        }
        if *begin == *end {
            (*begin, *end) = (0, 0);
            if input.len() > KEEP {
                *input = vec![0; READ];
            }
        }
        wakers.drain(..).for_each(Waker::wake);
        if let Some(status) = status {
            link.status.send_replace(status);
        }
        ended.map_or(Ok(()), Err)
    }

    /// Writes what there is. True if something was written.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut wrote = false;
        loop {
            if self.written == self.output.len() {
                self.output.clear();
                if self.output.capacity() > KEEP {
                    self.output = Vec::new();
                }
                self.written = 0;
                let now = self.link.now();
                let ends = self.link.state().closing && !self.close_sent;
                if ends {
                    // What was acked before somebody closed is said before.
                    self.link.talk();
                }
                let mut state = self.link.state.lock();
                let Some(connection) = &mut state.connection else { return Poll::Ready(Ok(wrote)) };
                if ends {
                    connection.close();
                    self.close_sent = true;
                }
                if connection.output().is_empty() {
                    drop(state);
                    return match Pin::new(&mut self.socket).poll_flush(cx) {
                        Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                        _ => Poll::Ready(Ok(wrote)),
                    };
                }
                connection.swap_output(&mut self.output, now);
            }
            match Pin::new(&mut self.socket).poll_write(cx, &self.output[self.written..]) {
                Poll::Ready(Ok(0)) => {
                    return Poll::Ready(Err(io::Error::new(
                        io::ErrorKind::WriteZero,
                        "nothing more can be written",
                    )));
                }
                Poll::Ready(Ok(count)) => {
                    self.link.counters.bytes_out.fetch_add(count as u64, Ordering::Relaxed);
                    self.link.counters.writes.fetch_add(1, Ordering::Relaxed);
                    self.written += count;
                    wrote = true;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return if wrote { Poll::Ready(Ok(true)) } else { Poll::Pending },
            }
        }
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        loop {
            let now = self.link.now();
            let mut state = self.link.state.lock();
            state.outbox.expire(now);
            let deadline = state.outbox.deadline();
            let Some(connection) = &mut state.connection else { return Ok(()) };
            let beat = connection.tick(now).map_err(End::Protocol)?;
            let has_output = !connection.output().is_empty() && self.written == self.output.len();
            drop(state);
            if has_output {
                // A heartbeat is due.
                if let Poll::Ready(Err(error)) = self.poll_write(cx) {
                    return Err(End::Io(error));
                }
            }
            let Some(next) = [beat, deadline].into_iter().flatten().min() else { return Ok(()) };
            let at = self.link.epoch + next;
            if self.timer.deadline() != at {
                self.timer.as_mut().reset(at);
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return Ok(());
            }
        }
    }
}
