//! A connection's socket: what comes is handed out, what there is to say is written, all at once.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::{CLOSE_MAX, CallError, ConnectionState, Link, Role, State, Use, Waiter};
use crate::proto::{Closed, Event, Method, ProtocolError};
use crate::socket::Socket;

/// How a life ended.
pub(super) enum End {
    Io(io::Error),
    Protocol(ProtocolError),
    /// The server closed it.
    Closed(Closed),
    /// We did.
    Asked,
}

/// The socket and what is on its way through it.
pub(super) struct Io {
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
    /// When it ends though the other side does not answer.
    close_by: Option<Duration>,
}

/// Bytes that are read at once.
const READ: usize = 64 << 10;
/// Bytes to be written from which on publishers let the socket's task run: what is written while it is in the processor's cache
/// costs half.
pub(super) const WRITE: usize = 64 << 10;
/// A buffer that had to be larger than this is given back.
const KEEP: usize = 1 << 20;

impl Io {
    pub(super) fn new(link: Arc<Link>, socket: Socket) -> Io {
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
            close_by: None,
        }
    }

    pub(super) async fn run(mut self) -> End {
        poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        self.link.waker.register(cx.waker());
        self.link.woken.store(false, Ordering::Release);
        loop {
            let mut busy = false;
            match if self.is_held_up(cx) { Poll::Pending } else { self.poll_read(cx) } {
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

    /// Whether nothing is to be read now, for who waits for replies holds as many as may be.
    fn is_held_up(&mut self, cx: &Context<'_>) -> bool {
        let link = &self.link;
        if !link.receives_replies || !link.known.replies.poll_full(cx) {
            return false;
        }
        let now = link.now();
        let mut state = link.state();
        let State { connection: Some(connection), replying: true, closing: false, .. } = &mut *state else {
            return false;
        };
        connection.not_listening(now);
        true
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
        let (mut status, mut left) = (None, Vec::new());
        {
            let mut state = link.state.lock();
            let State { connection, channels, outbox, publisher, replying, opened, blocked, .. } =
                &mut *state;
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
                    match channels.get(&channel).map(|used| &used.role) {
                        Some(Role::Consumer(consumer)) => {
                            wakers.extend(consumer.deliver(redelivered, exchange, key, content));
                        }
                        Some(Role::Replies) => {
                            wakers.extend(link.known.replies.deliver(content.into_message()));
                        }
                        Some(Role::Control | Role::Publisher) | None => {}
                    }
                }
                Event::Returned { channel, reason, exchange, key, content }
                    if *publisher == Some(channel) =>
                {
                    outbox.returned(exchange, key, &content.body, reason);
                }
                Event::Returned { channel, content, .. } => {
                    let Some(used) = channels.get_mut(&channel) else { return };
                    match used.waiting.pop_front() {
                        Some(Waiter::Address(caller)) => {
                            let address = content.into_message().properties().reply_to.clone();
                            let _ = caller.send(address.ok_or(CallError::Lost));
                        }
                        Some(other) => used.waiting.push_front(other),
                        None => {}
                    }
                }
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
                        Some(Waiter::Consume) => {
                            if let Role::Consumer(consumer) = &used.role {
                                consumer.asked();
                            }
                        }
                        Some(Waiter::Nobody | Waiter::Address(_)) | None => {}
                    }
                }
                Event::Cancelled { channel, .. } => {
                    let Some(used) = channels.get_mut(&channel) else { return };
                    let Role::Consumer(consumer) = &used.role else { return };
                    let (goes_on, woken) = consumer.gone();
                    wakers.extend(woken);
                    if goes_on {
                        tracing::warn!(
                            queue = consumer.queue(),
                            "RabbitMQ ended a consumer; asking it again"
                        );
                        link.mend(consumer.clone());
                        // Nothing of it is this consumer's any more.
                        used.role = Role::Control;
                        left.push(channel);
                    }
                }
                Event::ChannelClosed(channel, closed) => {
                    let Some(Use { role, waiting, .. }) = channels.remove(&channel) else { return };
                    // The first one is what the server did not like, or at least the one that is told.
                    let mut why = CallError::Refused(closed.clone());
                    for waiter in waiting {
                        if let Waiter::Call(_) | Waiter::Address(_) = waiter {
                            waiter.fail(std::mem::replace(&mut why, CallError::Lost));
                        }
                    }
                    match role {
                        Role::Consumer(consumer) => {
                            let (goes_on, woken) = consumer.closed(Some(&closed));
                            wakers.extend(woken);
                            if goes_on {
                                let (queue, error) = (consumer.queue(), &closed.text);
                                match consumer.refusals() {
                                    1 => tracing::warn!(queue, %error, "a consumer's channel was closed"),
                                    _ => {
                                        tracing::debug!(queue, %error, "a consumer's channel was closed again")
                                    }
                                }
                                link.mend(consumer);
                            }
                        }
                        Role::Publisher => {
                            *publisher = None;
                            outbox.channel_closed(&closed);
                            link.repair.notify_one();
                        }
                        Role::Replies => {
                            *replying = false;
                            link.known.replies.not_received();
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
            left.into_iter().for_each(|channel| connection.close_channel(channel));
            outbox.resolve(now);
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
            if state.closing {
                let by = *self.close_by.get_or_insert(now + CLOSE_MAX);
                if by <= now {
                    return Err(End::Asked);
                }
            }
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
            let Some(next) = [beat, deadline, self.close_by].into_iter().flatten().min() else {
                return Ok(());
            };
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
