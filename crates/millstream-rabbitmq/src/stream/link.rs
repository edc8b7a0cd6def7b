//! One live connection: a task that owns the socket, and handles for those who use it. A link that is lost stays lost;
//! whoever needs one again gets another.

mod driver;

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Poll, Waker};

use bytes::Bytes;
use hashbrown::HashMap;
use millstream_message::{BrokerError, BrokerErrorKind};
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use self::driver::Driver;
use super::command::{Body, Command, OffsetSpec, Request, Response, code};
use super::counters::Counters;
use super::session::{Server, Session, Settings};
use super::url::StreamSettings;
use super::{consumer, producer};
use crate::socket::Socket;

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

impl Subscriber {
    fn is(&self, consumer: &Arc<consumer::Shared>) -> bool {
        matches!(self, Subscriber::Consumer(there) if there.as_ptr() == Arc::as_ptr(consumer))
    }
}

pub(crate) fn lost(text: impl Into<String>) -> BrokerError {
    BrokerError::new(BrokerErrorKind::Unavailable, text)
}

impl Link {
    /// Connects, logs in and opens the virtual host. `serve` is given what must run for the link to live.
    pub(crate) async fn connect(
        settings: &StreamSettings,
        (host, port): &(String, u16),
        counters: &Arc<Counters>,
        serve: impl FnOnce(Pin<Box<dyn Future<Output = ()> + Send>>),
    ) -> Result<Arc<Link>, BrokerError> {
        let address = format!("{host}:{port}");
        let connecting = async {
            let stream = TcpStream::connect((host.as_str(), *port)).await?;
            stream.set_nodelay(true)?;
            Ok::<_, io::Error>(stream)
        };
        let silent = |_| {
            let seconds = settings.timeout.as_secs();
            lost(format!("`{address}` does not answer for {seconds} s; check host and port"))
        };
        let stream = timeout(settings.timeout, connecting).await.map_err(silent)?.map_err(|error| {
            let text = format!(
                "`{address}` cannot be reached; check host and port, that RabbitMQ runs there, and that its plugin \
                 `rabbitmq_stream` is enabled"
            );
            BrokerError::with_source(BrokerErrorKind::Unavailable, text, error)
        })?;
        let securing = Socket::over(stream, host, settings.tls.as_ref());
        let socket = timeout(settings.timeout, securing).await.map_err(silent)?.map_err(|error| {
            let text = format!("no TLS with `{address}`: {error}");
            BrokerError::with_source(BrokerErrorKind::Unavailable, text, error)
        })?;
        let session = Session::new(
            Settings {
                user: settings.user.clone(),
                password: settings.password.clone(),
                external: settings.external,
                vhost: settings.vhost.clone(),
                name: settings.name.clone(),
                frame_max: settings.frame_bytes_max,
                heartbeat: settings.heartbeat,
                chunk_bytes_max: settings.chunk_bytes_max,
            },
            Instant::now().into_std(),
        );
        let shared = Arc::new(Shared { outbox: Mutex::default(), ends: Mutex::default() });
        let mut driver = Driver::new(socket, session, shared.clone(), counters.clone());
        let handshake = poll_fn(|cx| match driver.poll(cx) {
            Poll::Ready(error) => Poll::Ready(Err(error)),
            Poll::Pending if driver.session.is_ready() => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        });
        match timeout(settings.timeout, handshake).await {
            Ok(Err(error)) if settings.external && error.kind() == BrokerErrorKind::Unavailable => {
                let text = format!(
                    "`{address}` closes the connection while it is told who this is; by certificate that is known of \
                     RabbitMQ before 3.11: update it, or leave `auth_mechanism=external` away"
                );
                return Err(BrokerError::with_source(BrokerErrorKind::Unavailable, text, error));
            }
            Ok(Err(error)) if driver.is_cut => {
                let text = format!(
                    "`{address}` closed the connection within the handshake; is it the port of the stream protocol, 5552 or 5551 \
                     with TLS? 5672 is AMQP's, 15672 the management's"
                );
                return Err(BrokerError::with_source(BrokerErrorKind::Unavailable, text, error));
            }
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
        serve(Box::pin(driver.run(counters.connection())));
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

    /// Asks, and nobody waits for the answer.
    pub(crate) fn tell(&self, request: Request) {
        self.push([Out::Request(request, oneshot::channel().0)]);
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

    /// Whether a publisher is registered there: it is not when its stream has moved.
    pub(crate) fn has_publisher(&self, number: u8, publisher: &Arc<producer::Shared>) -> bool {
        let ends = self.shared.ends.lock();
        ends.publishers.get(&number).is_some_and(|there| there.as_ptr() == Arc::as_ptr(publisher))
    }

    /// Frees the number, if it is this publisher's still.
    pub(crate) fn remove_publisher(&self, number: u8, publisher: &Arc<producer::Shared>) {
        let mut ends = self.shared.ends.lock();
        if ends.publishers.get(&number).is_some_and(|there| there.as_ptr() == Arc::as_ptr(publisher)) {
            ends.publishers.remove(&number);
        }
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

    /// Whether a consumer is registered there: it is not when its stream has moved.
    pub(crate) fn has_consumer(&self, number: u8, consumer: &Arc<consumer::Shared>) -> bool {
        self.shared.ends.lock().subscriptions.get(&number).is_some_and(|there| there.is(consumer))
    }

    /// Frees the number, if it is this consumer's still.
    pub(crate) fn remove_consumer(&self, number: u8, consumer: &Arc<consumer::Shared>) {
        let mut ends = self.shared.ends.lock();
        if ends.subscriptions.get(&number).is_some_and(|there| there.is(consumer)) {
            ends.subscriptions.remove(&number);
        }
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
        self.shared.ends.lock().subscriptions.remove(&number);
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

/// The frame that gives credit.
pub(crate) fn credit(subscription: u8, credit: u16) -> Bytes {
    Command::Credit { subscription, credit }.frame()
}
