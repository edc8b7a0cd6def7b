//! One connection that stays: a task owns its socket, connects again when it is lost, and has everything restored.

mod endings;
mod io;
mod life;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use hashbrown::HashMap;
use millstream_message::{BoxFuture, BrokerError, BrokerErrorKind, Message};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::{Instant, timeout};

use self::io::WRITE;
use crate::confirms::Entry;
use crate::consumer::ConsumerCore;
use crate::hub::Known;
use crate::options::Options;
use crate::proto::{Closed, Connection, Method, Server};
use crate::publisher::{Outbox, Window};
use crate::replies;
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
    Replies,
    Consumer(Arc<ConsumerCore>),
}

impl Waiter {
    /// There will be no answer.
    fn fail(self, why: CallError) {
        match self {
            Waiter::Call(caller) => _ = caller.send(Err(why)),
            Waiter::Address(caller) => _ = caller.send(Err(why)),
            Waiter::Cancel | Waiter::Consume | Waiter::Nobody => {}
        }
    }
}

struct Use {
    role: Role,
    waiting: VecDeque<Waiter>,
}

/// Who waits for a method's answer.
pub(crate) enum Waiter {
    Call(oneshot::Sender<Result<Method, CallError>>),
    /// A message that no queue wants comes back, and says where replies are to go.
    Address(oneshot::Sender<Result<String, CallError>>),
    /// A consumer is cancelled.
    Cancel,
    /// A consumer was asked for on a channel that has one.
    Consume,
    /// An answer comes, and nobody needs it.
    Nobody,
}

/// What the socket's task and everybody else share.
pub(crate) struct State {
    pub(crate) connection: Option<Connection>,
    life: u64,
    channels: HashMap<u16, Use>,
    /// The channel on which this link publishes, and what is on its way.
    pub(crate) outbox: Outbox,
    pub(crate) publisher: Option<u16>,
    /// The channel on which replies come is there.
    replying: bool,
    closing: bool,
    opened: bool,
    blocked: bool,
    /// Why the life ended, if the server said so.
    end: Option<String>,
}

/// What comes when a method is answered.
type Answer = oneshot::Receiver<Result<Method, CallError>>;

impl State {
    /// Writes a method whose answer somebody waits for.
    fn send_call(&mut self, channel: Channel, method: &Method) -> Result<Answer, CallError> {
        let (caller, answer) = oneshot::channel();
        let State { connection: Some(connection), channels, life, .. } = self else {
            return Err(CallError::Lost);
        };
        let used =
            channels.get_mut(&channel.number).filter(|_| *life == channel.life).ok_or(CallError::Lost)?;
        used.waiting.push_back(Waiter::Call(caller));
        connection.send(channel.number, method);
        Ok(answer)
    }
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
    known: Arc<Known>,
    /// It is the one on which replies come.
    receives_replies: bool,
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
    pub(crate) fn new(options: Arc<Options>, name: String, known: Arc<Known>) -> Arc<Link> {
        Link::with(options, name, known, false)
    }

    /// One on which replies come, and nothing else is done.
    pub(crate) fn for_replies(options: Arc<Options>, name: String, known: Arc<Known>) -> Arc<Link> {
        Link::with(options, name, known, true)
    }

    fn with(options: Arc<Options>, name: String, known: Arc<Known>, receives_replies: bool) -> Arc<Link> {
        let window = Arc::new(Window::new(&options));
        let outbox = Outbox::new(window.clone(), known.clone());
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
                replying: false,
                closing: false,
                opened: false,
                blocked: false,
                end: None,
            }),
            waker: AtomicWaker::new(),
            woken: AtomicBool::new(false),
            talkers: Mutex::new(Vec::new()),
            known,
            receives_replies,
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

    pub(crate) fn closed_error(&self) -> BrokerError {
        closed_error()
    }

    /// Asks the task to end the connection in good order.
    pub(crate) fn close(&self) {
        self.state().closing = true;
        self.wake();
    }

    /// Whether nothing is read from it, for who waits for replies holds as many as may be.
    pub(crate) fn is_held_up(&self) -> bool {
        self.receives_replies && self.known.replies.is_full()
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

    fn send_call(&self, channel: Channel, method: &Method) -> Result<Answer, CallError> {
        self.state().send_call(channel, method)
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

    /// Has replies come on a channel, and learns their address: see [`replies`](crate::replies).
    pub(crate) async fn reply_on(&self, channel: Channel) -> Result<(), CallError> {
        self.call(channel, &replies::consume()).await?;
        let answer = {
            let (caller, answer) = oneshot::channel();
            let mut state = self.state();
            let State { connection: Some(connection), channels, life, .. } = &mut *state else {
                return Err(CallError::Lost);
            };
            let used =
                channels.get_mut(&channel.number).filter(|_| *life == channel.life).ok_or(CallError::Lost)?;
            used.waiting.push_back(Waiter::Address(caller));
            let nowhere = format!("millstream.nowhere.{:032x}", fastrand::u128(..));
            let asking = Message::new("").with_reply_to(replies::REPLY_TO);
            connection.publish(channel.number, "", &nowhere, &asking);
            answer
        };
        self.wake();
        let address = answer.await.unwrap_or(Err(CallError::Lost))?;
        let mut state = self.state();
        if state.life == channel.life {
            state.replying = true;
            self.known.replies.set_address(Some(address));
        }
        Ok(())
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
            if let Some((channel, waiters)) = consumer.talk(connection)
                && let Some(used) = channels.get_mut(&channel)
            {
                used.waiting.extend(waiters);
            }
        }
    }
}

pub(crate) fn closed_error() -> BrokerError {
    BrokerError::new(BrokerErrorKind::Unavailable, "the broker handle is closed")
}
