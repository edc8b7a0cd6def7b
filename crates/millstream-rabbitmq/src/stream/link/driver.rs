//! The socket of a link, and what goes through it.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes, BytesMut};
use hashbrown::HashMap;
use millstream_message::{BrokerError, BrokerErrorKind};
use tokio::io::{AsyncReadExt, AsyncWrite};
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep};

use super::super::command::Response;
use super::super::counters::{Counters, Present, add};
use super::super::session::{Event, Session};
use super::{Out, Shared, Subscriber, lost};
use crate::socket::Socket;

/// Frames below this size are copied together, larger ones are written from where they are.
const SMALL: usize = 1024;
/// Parts of one write.
const PARTS: usize = 64;
/// Room for a read when nothing is known of what comes.
const READ: usize = 16 << 10;
/// Room made at once for a frame that is only announced.
const READ_AHEAD_MAX: usize = 4 << 20;
/// Reads in a row before writes are looked at again.
const READS: usize = 16;

/// The socket and what goes through it.
pub(super) struct Driver {
    socket: Socket,
    pub(super) session: Session,
    /// The other side has ended the connection, or it broke.
    pub(super) is_cut: bool,
    shared: Arc<Shared>,
    counters: Arc<Counters>,
    input: BytesMut,
    /// Bytes that the next frame needs in all, when it is known.
    wanted: usize,
    /// About how large chunks are here.
    usual: usize,
    writing: VecDeque<Bytes>,
    answers: HashMap<u32, oneshot::Sender<Response>>,
    heartbeat: Option<Pin<Box<Sleep>>>,
}

impl Driver {
    pub(super) fn new(
        socket: Socket,
        session: Session,
        shared: Arc<Shared>,
        counters: Arc<Counters>,
    ) -> Driver {
        Driver {
            socket,
            session,
            is_cut: false,
            shared,
            counters,
            input: BytesMut::new(),
            wanted: 0,
            usual: READ,
            writing: VecDeque::new(),
            answers: HashMap::new(),
            heartbeat: None,
        }
    }

    /// Until the connection ends, which counts as long; then tells everybody.
    pub(super) async fn run(mut self, present: Present) {
        let error = poll_fn(|cx| self.poll(cx)).await;
        drop(present);
        tracing::debug!(%error, "a stream connection ends");
        let queue = {
            let mut outbox = self.shared.outbox.lock();
            outbox.lost = Some(error.clone());
            std::mem::take(&mut outbox.queue)
        };
        drop(queue);
        drop(std::mem::take(&mut self.answers));
        let ends = std::mem::take(&mut *self.shared.ends.lock());
        for publisher in ends.publishers.into_values().filter_map(|publisher| publisher.upgrade()) {
            publisher.detached(&error);
        }
        for subscriber in ends.subscriptions.into_values() {
            if let Subscriber::Consumer(consumer) = subscriber {
                consumer.upgrade().inspect(|consumer| consumer.detached(&error));
            }
        }
    }

    /// Ready when the connection is over, with the reason.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<BrokerError> {
        match self.try_poll(cx) {
            Ok(()) => Poll::Pending,
            Err(error) => Poll::Ready(error),
        }
    }

    fn try_poll(&mut self, cx: &mut Context<'_>) -> Result<(), BrokerError> {
        loop {
            self.take_outbox(cx);
            let all_written = self.write(cx)?;
            let more = self.read(cx)?;
            self.tick(cx)?;
            self.flush();
            // What could not be written before waits for the socket.
            let more_to_write = all_written && !self.writing.is_empty();
            if !more && !more_to_write {
                return Ok(());
            }
        }
    }

    fn take_outbox(&mut self, cx: &mut Context<'_>) {
        let (queue, closing) = {
            let mut outbox = self.shared.outbox.lock();
            if !outbox.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                outbox.waker = Some(cx.waker().clone());
            }
            if !self.session.is_ready() {
                return;
            }
            (std::mem::take(&mut outbox.queue), outbox.closing)
        };
        for out in queue {
            match out {
                Out::Frame(frame) if frame.len() < SMALL => self.session.out.extend_from_slice(&frame),
                Out::Frame(frame) => {
                    self.flush();
                    self.writing.push_back(frame);
                }
                Out::Request(request, answer) => {
                    let correlation = self.session.request(request);
                    self.answers.insert(correlation, answer);
                }
                Out::Activate(correlation, from) => self.session.activate(correlation, from),
            }
        }
        if closing {
            self.session.close();
        }
        self.flush();
    }

    /// What the session has to say goes behind what is being written.
    fn flush(&mut self) {
        if !self.session.out.is_empty() {
            self.writing.push_back(std::mem::take(&mut self.session.out).into());
        }
    }

    /// Writes all that is pending, if the socket takes it. Whether it took all.
    fn write(&mut self, cx: &mut Context<'_>) -> Result<bool, BrokerError> {
        let mut wrote = false;
        while !self.writing.is_empty() {
            let mut parts = [IoSlice::new(&[]); PARTS];
            for (part, frame) in parts.iter_mut().zip(&self.writing) {
                *part = IoSlice::new(frame);
            }
            let count = self.writing.len().min(PARTS);
            match Pin::new(&mut self.socket).poll_write_vectored(cx, &parts[..count]) {
                Poll::Ready(Ok(len)) => {
                    wrote = true;
                    add(&self.counters.writes, 1);
                    add(&self.counters.bytes_out, len as u64);
                    self.written(len);
                }
                Poll::Ready(Err(error)) => return Err(self.broken(error)),
                Poll::Pending => break,
            }
        }
        if wrote {
            self.session.sent(Instant::now().into_std());
        }
        // TLS keeps some of what it took, until the socket takes it.
        if let Poll::Ready(Err(error)) = Pin::new(&mut self.socket).poll_flush(cx) {
            return Err(self.broken(error));
        }
        Ok(self.writing.is_empty())
    }

    fn broken(&mut self, error: io::Error) -> BrokerError {
        self.is_cut = true;
        BrokerError::with_source(BrokerErrorKind::Unavailable, "the connection broke", error)
    }

    fn written(&mut self, mut len: usize) {
        while let Some(front) = self.writing.front_mut() {
            if len < front.len() {
                front.advance(len);
                return;
            }
            len -= front.len();
            self.writing.pop_front();
        }
    }

    /// Reads what is there. Whether there may be more.
    fn read(&mut self, cx: &mut Context<'_>) -> Result<bool, BrokerError> {
        for _ in 0..READS {
            self.make_room();
            match pin!(self.socket.read_buf(&mut self.input)).poll(cx) {
                Poll::Ready(Ok(0)) => {
                    self.is_cut = true;
                    return Err(lost("the broker closed the connection"));
                }
                Poll::Ready(Ok(len)) => {
                    add(&self.counters.bytes_in, len as u64);
                    self.receive()?;
                }
                Poll::Ready(Err(error)) => return Err(self.broken(error)),
                Poll::Pending => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Room for the rest of the frame at hand, if it is known, but never much more than has come of it: a length is
    /// easily claimed.
    fn make_room(&mut self) {
        let have = self.input.len();
        let room = match self.wanted.checked_sub(have) {
            Some(rest) if self.wanted > 0 => rest.min(READ_AHEAD_MAX.max(have)),
            _ => self.usual,
        };
        if self.input.capacity() - have < room.min(READ) || self.input.capacity() == have {
            self.input.reserve(room);
        }
    }

    fn receive(&mut self) -> Result<(), BrokerError> {
        let Driver { session, shared, input, answers, usual, .. } = self;
        let mut over = None;
        let mut on = |_: &mut Session, event: Event<'_>| match event {
            Event::Opened => {}
            Event::Response(correlation, response) => {
                if let Some(answer) = answers.remove(&correlation) {
                    // Whoever asked may not wait any more.
                    let _ = answer.send(response);
                }
            }
            Event::Confirm { publisher, ids } => {
                let publisher = shared.ends.lock().publishers.get(&publisher).and_then(Weak::upgrade);
                publisher.inspect(|publisher| publisher.confirmed(ids));
            }
            Event::PublishError { publisher: number, errors } => {
                let publisher = shared.ends.lock().publishers.get(&number).and_then(Weak::upgrade);
                if publisher.is_some_and(|publisher| publisher.refused(&errors)) {
                    shared.ends.lock().publishers.remove(&number);
                }
            }
            Event::Deliver { subscription, chunk } => {
                *usual = (chunk.len() + 64).clamp(READ, READ_AHEAD_MAX);
                let subscriber = shared.ends.lock().subscriptions.get(&subscription).cloned();
                match subscriber {
                    Some(Subscriber::Consumer(consumer)) => {
                        consumer.upgrade().inspect(|consumer| consumer.push(chunk));
                    }
                    Some(Subscriber::Probe(probe)) => *probe.lock() = Some(chunk),
                    None => {}
                }
            }
            Event::MetadataUpdate { stream } => shared.moved(&stream),
            Event::ConsumerUpdate { correlation, subscription, active } => {
                let subscriber = shared.ends.lock().subscriptions.get(&subscription).cloned();
                if let Some(Subscriber::Consumer(consumer)) = subscriber {
                    consumer.upgrade().inspect(|consumer| consumer.elected(correlation, active));
                }
            }
            Event::Closed(error) => over = Some(error),
            Event::CloseOk => over = Some(lost("the connection was closed")),
        };
        self.wanted = session.receive(input, Instant::now().into_std(), &mut on)?;
        match over {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Lets time pass for the heartbeat.
    fn tick(&mut self, cx: &mut Context<'_>) -> Result<(), BrokerError> {
        loop {
            if let Some(sleep) = &mut self.heartbeat
                && sleep.as_mut().poll(cx).is_pending()
            {
                return Ok(());
            }
            let Some(next) = self.session.tick(Instant::now().into_std())? else { return Ok(()) };
            self.heartbeat = Some(Box::pin(tokio::time::sleep_until(next.into())));
        }
    }
}

impl Shared {
    /// The stream is not where it was, or is no more: publishers and consumers there are out.
    fn moved(&self, stream: &str) {
        let (publishers, consumers) = {
            let mut ends = self.ends.lock();
            let gone = |name: &str| name == stream;
            let publishers: Vec<_> = ends
                .publishers
                .extract_if(|_, end| end.upgrade().is_none_or(|end| gone(end.stream())))
                .filter_map(|(_, end)| end.upgrade())
                .collect();
            let consumers: Vec<_> = ends
                .subscriptions
                .extract_if(|_, end| match end {
                    Subscriber::Consumer(end) => end.upgrade().is_none_or(|end| gone(end.stream())),
                    Subscriber::Probe(_) => false,
                })
                .collect();
            (publishers, consumers)
        };
        let error = lost(format!("stream `{stream}` is not available here any more"));
        publishers.iter().for_each(|publisher| publisher.detached(&error));
        for (_, subscriber) in consumers {
            if let Subscriber::Consumer(consumer) = subscriber {
                consumer.upgrade().inspect(|consumer| consumer.detached(&error));
            }
        }
    }
}
