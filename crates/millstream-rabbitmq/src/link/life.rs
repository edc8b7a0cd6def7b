//! The lives of a connection: one follows the other until the link is closed.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io::{Error, ErrorKind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;

use millstream_message::{BrokerError, BrokerErrorKind};
use millstream_resilience::Backoff;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};

use super::endings::{closed_early, unreachable_host};
use super::io::{End, Io};
use super::{CallError, ConnectionState, Link, Restore, Role, Use};
use crate::proto::{Connection, Settings};
use crate::socket::Socket;

/// The largest body that is taken: RabbitMQ's own limit. `max_message_bytes` bounds what is published.
const BODY_MAX: u64 = 512 << 20;

impl Link {
    pub(super) async fn supervise(
        self: Arc<Link>,
        restore: Arc<dyn Restore>,
        told: oneshot::Sender<Result<(), BrokerError>>,
        until: Option<Instant>,
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
                // What is wrong with a name or a vhost stays wrong.
                let waits = until.is_some_and(|until| Instant::now() < until)
                    && end.kind() == BrokerErrorKind::Unavailable;
                if waits || (attempts as usize) < self.options.hosts.len() {
                    told = Some(first);
                } else {
                    let _ = first.send(Err(end));
                    break;
                }
            }
            host = (host + 1) % self.options.hosts.len();
            let error = end.to_string();
            tracing::warn!(connection = %self.name, attempts, %error, "the connection to RabbitMQ is away");
            self.status.send_replace(ConnectionState::Reconnecting { attempts, error });
            if self.unless_closed(sleep(delays.next_delay())).await.is_none() {
                break;
            }
        }
        let error = self.closed_error();
        {
            let now = self.now();
            let mut state = self.state();
            state.closing = true;
            state.outbox.fail(&error, now);
        }
        self.end_consumers();
        self.status.send_replace(ConnectionState::Closed);
    }

    /// Waits for something while there is no connection; `None` if the link is closed before.
    async fn unless_closed<T>(&self, something: impl Future<Output = T>) -> Option<T> {
        let mut something = pin!(something);
        poll_fn(|cx| {
            self.waker.register(cx.waker());
            self.woken.store(false, Ordering::Release);
            self.expire();
            if self.state().closing { Poll::Ready(None) } else { something.as_mut().poll(cx).map(Some) }
        })
        .await
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
        let socket = match self.unless_closed(connecting).await {
            None => return self.closed_error(),
            Some(Ok(Ok(socket))) => socket,
            Some(Ok(Err(error))) => return unreachable_host(&place, error),
            Some(Err(_)) => {
                let error = Error::new(ErrorKind::TimedOut, "no answer within `connection_timeout`");
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
            body_max: self.options.max_message_bytes.unwrap_or(0).max(BODY_MAX),
        };
        {
            let mut state = self.state();
            state.connection = Some(Connection::new(settings, self.now()));
            state.opened = false;
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
            // A reset, where it has left our first bytes unread.
            Ok(Err(End::Io(error)))
                if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) =>
            {
                return closed_early(&place, error);
            }
            Ok(Err(end)) => return self.refused(&place, end),
            Err(_) => {
                let error = Error::new(ErrorKind::TimedOut, "no handshake within `connection_timeout`");
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

    /// No life follows: consumers that waited for one are told.
    fn end_consumers(&self) {
        let talkers = std::mem::take(&mut *self.talkers.lock());
        if self.receives_replies {
            self.known.replies.end();
        }
        for consumer in self.take_broken().into_iter().chain(talkers) {
            consumer.lost();
        }
    }

    /// Everything that waited for this life's answers gets none.
    fn end_of_life(&self) {
        let channels = {
            let mut state = self.state();
            state.connection = None;
            state.publisher = None;
            if std::mem::take(&mut state.replying) {
                self.known.replies.not_received();
            }
            state.opened = false;
            state.blocked = false;
            std::mem::take(&mut state.channels)
        };
        for (_, Use { role, waiting, .. }) in channels {
            for waiter in waiting {
                waiter.fail(CallError::Lost);
            }
            if let Role::Consumer(consumer) = role {
                consumer.lost();
            }
        }
    }
}
