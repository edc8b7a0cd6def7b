//! One connection that stays: a task owns its socket, connects again when it is lost, and has everything restored.

mod channels;
mod endings;
mod io;
mod life;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use hashbrown::HashMap;
use millstream_message::{BoxFuture, BrokerError, BrokerErrorKind};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::{Instant, timeout};

use crate::consumer::ConsumerCore;
use crate::hub::Known;
use crate::options::Options;
use crate::proto::{Closed, Connection, Method, Server};
use crate::publisher::{Outbox, Window};

/// A connection that was asked to end does so within this, whether the broker answers or not.
pub(crate) const CLOSE_MAX: Duration = Duration::from_secs(4);

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
    /// No other channel of the link has it, ever. Numbers are given out again.
    pub(crate) serial: u64,
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
    serial: u64,
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
    /// How many channels were opened.
    serial: u64,
    channels: HashMap<u16, Use>,
    /// The channel on which this link publishes, and what is on its way.
    pub(crate) outbox: Outbox,
    pub(crate) publisher: Option<u16>,
    /// The channel on which replies come is there.
    pub(crate) replying: bool,
    closing: bool,
    opened: bool,
    blocked: bool,
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
        let outbox = Outbox::new(window.clone(), known.clone(), options.confirm_timeout);
        Arc::new(Link {
            window,
            options,
            name,
            state: Mutex::new(State {
                connection: None,
                serial: 0,
                channels: HashMap::new(),
                outbox,
                publisher: None,
                replying: false,
                closing: false,
                opened: false,
                blocked: false,
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
    /// # Cancel safety
    /// Dropped before it is done, it leaves no connection behind.
    ///
    /// # Errors
    /// If no host takes the first connection.
    pub(crate) async fn start(self: &Arc<Link>, restore: Arc<dyn Restore>) -> Result<(), BrokerError> {
        self.start_within(restore, None).await
    }

    /// The same for a further link of a handle that was connected: one that is lost at the moment is waited for, as long as operations
    /// may.
    pub(crate) async fn join(self: &Arc<Link>, restore: Arc<dyn Restore>) -> Result<(), BrokerError> {
        self.start_within(restore, Some(Instant::now() + self.options.operation_timeout)).await
    }

    async fn start_within(
        self: &Arc<Link>,
        restore: Arc<dyn Restore>,
        until: Option<Instant>,
    ) -> Result<(), BrokerError> {
        /// Closes a link that nobody waits for any more, and nobody has.
        struct Unclaimed<'a>(Option<&'a Link>);

        impl Drop for Unclaimed<'_> {
            fn drop(&mut self) {
                if let Some(link) = self.0 {
                    link.close();
                }
            }
        }

        let (told, first) = oneshot::channel();
        let mut unclaimed = Unclaimed(Some(self));
        tokio::spawn(self.clone().supervise(restore, told, until));
        let started = first.await.unwrap_or_else(|_| Err(self.closed_error()));
        unclaimed.0 = None;
        started
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

    /// A consumer is to be given another channel. It may be said more than once.
    pub(crate) fn mend(&self, consumer: Arc<ConsumerCore>) {
        let mut broken = self.broken.lock();
        if !broken.iter().any(|other| Arc::ptr_eq(other, &consumer)) {
            broken.push(consumer);
        }
        drop(broken);
        self.repair_again();
    }

    /// Has what broke repaired.
    pub(crate) fn repair_again(&self) {
        self.repair.notify_one();
    }

    /// Whether a channel is still open.
    pub(crate) fn is_current(&self, channel: Channel) -> bool {
        self.state().has(channel)
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

#[cfg(test)]
mod tests;
