//! One live connection: a task that owns the socket, and handles for those who use it. A link that is lost stays lost;
//! whoever needs one again gets another.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes, BytesMut};
use hashbrown::HashMap;
use millstream_message::{BrokerError, BrokerErrorKind};
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep, timeout};

use super::command::{Body, Command, OffsetSpec, Request, Response, code};
use super::session::{Event, Server, Session, Settings};
use super::url::StreamSettings;
use super::{consumer, producer};

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
/// Numbers of publishers, and of subscriptions.
const ENDS_MAX: usize = 256;

/// A handle. The connection is closed when the last one is gone.
pub(crate) struct Link {
    shared: Arc<Shared>,
    pub(crate) server: Server,
    timeout: std::time::Duration,
}

struct Shared {
    outbox: Mutex<Outbox>,
    ends: Mutex<Ends>,
}

#[derive(Default)]
struct Outbox {
    queue: VecDeque<Out>,
    waker: Option<Waker>,
    closing: bool,
    lost: Option<BrokerError>,
}

enum Out {
    Frame(Bytes),
    Request(Request, oneshot::Sender<Response>),
    Activate(u32, Option<OffsetSpec>),
}

/// Who is told what the broker sends.
#[derive(Default)]
struct Ends {
    publishers: HashMap<u8, Weak<producer::Shared>>,
    subscriptions: HashMap<u8, Subscriber>,
    /// Numbers are given in turn, so that a late word to a former holder does not reach the next.
    next: u8,
}

#[derive(Clone)]
enum Subscriber {
    Consumer(Weak<consumer::Shared>),
    /// Somebody who wants to see one chunk.
    Probe(Arc<Mutex<Option<Bytes>>>),
}

pub(crate) fn lost(text: impl Into<String>) -> BrokerError {
    BrokerError::new(BrokerErrorKind::Unavailable, text)
}

impl Link {
    /// Connects, logs in and opens the virtual host. `serve` is given what must run for the link to live.
    pub(crate) async fn connect(
        settings: &StreamSettings,
        (host, port): &(String, u16),
        serve: impl FnOnce(Pin<Box<dyn Future<Output = ()> + Send>>),
    ) -> Result<Arc<Link>, BrokerError> {
        let address = format!("{host}:{port}");
        let attempt = async {
            let socket = TcpStream::connect((host.as_str(), *port)).await?;
            socket.set_nodelay(true)?;
            Ok::<_, io::Error>(socket)
        };
        let socket = match timeout(settings.timeout, attempt).await {
            Ok(Ok(socket)) => socket,
            Ok(Err(error)) => {
                let text = format!(
                    "`{address}` cannot be reached; check host and port, that RabbitMQ runs there, and that its plugin \
                     `rabbitmq_stream` is enabled"
                );
                return Err(BrokerError::with_source(BrokerErrorKind::Unavailable, text, error));
            }
            Err(_) => {
                let text = format!(
                    "`{address}` does not answer for {} s; check host and port",
                    settings.timeout.as_secs()
                );
                return Err(lost(text));
            }
        };
        let session = Session::new(
            Settings {
                user: settings.user.clone(),
                password: settings.password.clone(),
                vhost: settings.vhost.clone(),
                name: settings.name.clone(),
                frame_max: settings.frame_bytes_max,
                heartbeat: settings.heartbeat,
                chunk_bytes_max: settings.chunk_bytes_max,
            },
            Instant::now().into_std(),
        );
        let shared = Arc::new(Shared { outbox: Mutex::default(), ends: Mutex::default() });
        let mut driver = Driver::new(socket, session, shared.clone());
        let handshake = poll_fn(|cx| match driver.poll(cx) {
            Poll::Ready(error) => Poll::Ready(Err(error)),
            Poll::Pending if driver.session.is_ready() => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        });
        match timeout(settings.timeout, handshake).await {
            Ok(done) => done?,
            Err(_) => {
                let text = format!(
                    "`{address}` does not finish the handshake in {} s; is it the port of the stream protocol?",
                    settings.timeout.as_secs()
                );
                return Err(lost(text));
            }
        }
        let server = driver.session.server.clone();
        serve(Box::pin(driver.run()));
        Ok(Arc::new(Link { shared, server, timeout: settings.timeout }))
    }

    /// Whether it is still there.
    pub(crate) fn is_alive(&self) -> bool {
        self.shared.outbox.lock().lost.is_none()
    }

    /// Sends a frame. On a link that is lost it goes nowhere, and who is registered there is told so.
    pub(crate) fn send(&self, frame: Bytes) {
        self.push([Out::Frame(frame)]);
    }

    /// Sends frames in this order, without others between them.
    pub(crate) fn send_all(&self, frames: impl IntoIterator<Item = Bytes>) {
        self.push(frames.into_iter().map(Out::Frame));
    }

    /// Answers the server's question whether a consumer begins.
    pub(crate) fn activate(&self, correlation: u32, from: Option<OffsetSpec>) {
        self.push([Out::Activate(correlation, from)]);
    }

    fn push(&self, out: impl IntoIterator<Item = Out>) {
        let mut outbox = self.shared.outbox.lock();
        if outbox.lost.is_none() {
            outbox.queue.extend(out);
            let waker = outbox.waker.take();
            drop(outbox);
            waker.into_iter().for_each(Waker::wake);
        }
    }

    /// Asks and waits for the answer, whatever its code.
    ///
    /// # Cancel safety
    /// The broker does what was asked, or not, all the same.
    pub(crate) async fn ask(&self, request: Request) -> Result<Response, BrokerError> {
        let (sender, answer) = oneshot::channel();
        self.push([Out::Request(request, sender)]);
        match timeout(self.timeout, answer).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(_)) => Err(self.why()),
            Err(_) => Err(lost(format!("the broker does not answer for {} s", self.timeout.as_secs()))),
        }
    }

    /// Asks and insists on the code that all is well.
    pub(crate) async fn request(&self, request: Request, about: &str) -> Result<Body, BrokerError> {
        let response = self.ask(request).await?;
        if response.code == code::OK { Ok(response.body) } else { Err(refused(response.code, about)) }
    }

    /// Why it was lost.
    fn why(&self) -> BrokerError {
        self.shared.outbox.lock().lost.clone().unwrap_or_else(|| lost("the connection was closed"))
    }

    /// Registers a publisher; `None` when all numbers are taken.
    pub(crate) fn add_publisher(&self, publisher: &Arc<producer::Shared>) -> Option<u8> {
        let mut ends = self.shared.ends.lock();
        let number = ends.free(|ends, number| !ends.publishers.contains_key(&number))?;
        ends.publishers.insert(number, Arc::downgrade(publisher));
        Some(number)
    }

    pub(crate) fn remove_publisher(&self, number: u8) {
        self.shared.ends.lock().publishers.remove(&number);
    }

    /// Registers a consumer; `None` when all numbers are taken.
    pub(crate) fn add_consumer(&self, consumer: &Arc<consumer::Shared>) -> Option<u8> {
        self.add_subscriber(Subscriber::Consumer(Arc::downgrade(consumer)))
    }

    fn add_subscriber(&self, subscriber: Subscriber) -> Option<u8> {
        let mut ends = self.shared.ends.lock();
        let number = ends.free(|ends, number| !ends.subscriptions.contains_key(&number))?;
        ends.subscriptions.insert(number, subscriber);
        Some(number)
    }

    pub(crate) fn remove_consumer(&self, number: u8) {
        self.shared.ends.lock().subscriptions.remove(&number);
    }

    /// How many publishers and consumers it serves.
    pub(crate) fn load(&self) -> usize {
        let ends = self.shared.ends.lock();
        ends.publishers.len() + ends.subscriptions.len()
    }

    /// The first chunk that a subscription gets that begins here; `None` when there is none yet.
    pub(crate) async fn peek(&self, stream: &str, from: OffsetSpec) -> Result<Option<Bytes>, BrokerError> {
        let probe = Arc::new(Mutex::new(None));
        let number = self.add_subscriber(Subscriber::Probe(probe.clone()));
        let number = number.ok_or_else(|| lost("all subscriptions of a connection are taken"))?;
        let subscribe = Request::Subscribe {
            subscription: number,
            stream: stream.to_owned(),
            from,
            credit: 1,
            properties: Vec::new(),
        };
        // The broker sends what is there before it looks at the next command: once that is answered, the chunk was
        // here or is not there.
        let (subscribed, over) = tokio::join!(
            self.request(subscribe, stream),
            self.ask(Request::Unsubscribe { subscription: number })
        );
        self.remove_consumer(number);
        subscribed?;
        over?;
        Ok(probe.lock().take())
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let mut outbox = self.shared.outbox.lock();
        outbox.closing = true;
        outbox.waker.take().into_iter().for_each(Waker::wake);
    }
}

impl Ends {
    fn free(&mut self, is_free: impl Fn(&Ends, u8) -> bool) -> Option<u8> {
        let number = (0..ENDS_MAX)
            .map(|step| self.next.wrapping_add(step as u8))
            .find(|number| is_free(self, *number))?;
        self.next = number.wrapping_add(1);
        Some(number)
    }
}

/// What a code of the broker's means to the caller.
pub(crate) fn refused(code: u16, about: &str) -> BrokerError {
    let (kind, remedy) = match code {
        code::NO_STREAM => (BrokerErrorKind::NotFound, "; declare it first"),
        code::STREAM_NOT_AVAILABLE => (BrokerErrorKind::Unavailable, "; it may have no leader at present"),
        code::ACCESS_REFUSED => (BrokerErrorKind::Invalid, "; give the user permission"),
        code::PRECONDITION_FAILED => (BrokerErrorKind::Mismatch, ""),
        _ => (BrokerErrorKind::Unavailable, ""),
    };
    BrokerError::new(kind, format!("stream `{about}`: {}{remedy}", code::words(code)))
}

/// The socket and what goes through it.
struct Driver {
    socket: TcpStream,
    session: Session,
    shared: Arc<Shared>,
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
    fn new(socket: TcpStream, session: Session, shared: Arc<Shared>) -> Driver {
        Driver {
            socket,
            session,
            shared,
            input: BytesMut::new(),
            wanted: 0,
            usual: READ,
            writing: VecDeque::new(),
            answers: HashMap::new(),
            heartbeat: None,
        }
    }

    /// Until the connection ends; then tells everybody.
    async fn run(mut self) {
        let error = poll_fn(|cx| self.poll(cx)).await;
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
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<BrokerError> {
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
            match self.socket.try_write_vectored(&parts[..count]) {
                Ok(len) => {
                    wrote = true;
                    self.written(len);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.socket.poll_write_ready(cx).map_err(closed)?.is_pending() {
                        break;
                    }
                }
                Err(error) => return Err(closed(error)),
            }
        }
        if wrote {
            self.session.sent(Instant::now().into_std());
        }
        Ok(self.writing.is_empty())
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
            match self.socket.try_read_buf(&mut self.input) {
                Ok(0) => return Err(lost("the broker closed the connection")),
                Ok(_) => self.receive()?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.socket.poll_read_ready(cx).map_err(closed)?.is_pending() {
                        return Ok(false);
                    }
                }
                Err(error) => return Err(closed(error)),
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

fn closed(error: io::Error) -> BrokerError {
    BrokerError::with_source(BrokerErrorKind::Unavailable, "the connection broke", error)
}

/// The frame that gives credit.
pub(crate) fn credit(subscription: u8, credit: u16) -> Bytes {
    Command::Credit { subscription, credit }.frame()
}
