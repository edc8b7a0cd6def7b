//! The side of an upstream's client.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use super::{PING, SEND_BUFFER, Tasks, WEBSOCKET, say_upgrade};
use crate::answer::NoAnswer;
use crate::body::Body;
use crate::duplex::Duplex;
use crate::exchange::Asked;
use crate::gateway::Shared;
use crate::head;

/// What an upstream may send of one answer that its reader has not taken.
const ANSWER_WINDOW: u32 = 64 << 10;
/// What it may send of all answers together: as much as there are (RFC 9113, 6.9.1). With less, a few slow readers would hold up all
/// others of the connection.
const ANSWERS_WINDOW: u32 = i32::MAX as u32;
/// How many streams an upstream allows that has not said so: no number that one would say.
const UNSAID: usize = (1 << 20) + 1;
/// How long a new connection waits for its server's first frame, in which it says so. A server may wait for a request before.
const FIRST_FRAME: Duration = Duration::from_millis(250);
/// How often it is looked for.
const LOOKS: Duration = Duration::from_millis(1);

/// Where requests to an upstream go, over one connection. Whoever has a stream of it has a clone.
#[derive(Clone)]
pub(crate) struct Requests {
    sender: SendRequest<Body>,
    /// None when it has ended.
    connection: Arc<Mutex<Option<UpstreamConnection>>>,
    made: Instant,
    clones: Arc<()>,
}

type UpstreamConnection = hyper::client::conn::http2::Connection<TokioIo<Box<dyn Duplex>>, Body, Tasks>;

/// Why there is no answer, and the request if it was not sent.
type Unanswered = (NoAnswer, Option<Box<Request<Body>>>);

/// Begins to speak HTTP/2 with an upstream.
pub(crate) async fn connect(shared: &Arc<Shared>, stream: Box<dyn Duplex>) -> hyper::Result<Requests> {
    let tasks = Tasks::new(&shared.upstream_tasks, &shared.stopped);
    let (sender, connection) = hyper::client::conn::http2::Builder::new(tasks.clone())
        .timer(TokioTimer::new())
        .initial_stream_window_size(ANSWER_WINDOW)
        .initial_connection_window_size(ANSWERS_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .initial_max_send_streams(UNSAID)
        .keep_alive_interval(PING.0)
        .keep_alive_timeout(PING.1)
        .handshake(TokioIo::new(stream))
        .await?;
    let connection = Arc::new(Mutex::new(Some(connection)));
    let driven = connection.clone();
    let drive = move |cx: &mut Context<'_>| {
        let mut connection = driven.lock();
        let ended =
            connection.as_mut().map_or(Poll::Ready(Ok(())), |connection| Pin::new(connection).poll(cx));
        if ended.is_ready() {
            // As long as it is there, it takes requests.
            *connection = None;
        }
        ended
    };
    tasks.drive(poll_fn(drive));
    let requests = Requests { sender, connection, made: Instant::now(), clones: Arc::default() };
    // Else more would be asked of it at once than it allows, and wait for one another.
    requests.first_frame(FIRST_FRAME).await;
    Ok(requests)
}

impl Requests {
    /// Whether the connection is open.
    pub(crate) fn is_ready(&self) -> bool {
        self.sender.is_ready()
    }

    /// How many others have a stream of it, or are about to.
    pub(crate) fn others(&self) -> usize {
        Arc::strong_count(&self.clones) - 1
    }

    /// Whether the server allows one more stream.
    pub(crate) fn has_room(&self) -> bool {
        self.others() < self.allowed()
    }

    /// How many streams the server allows.
    fn allowed(&self) -> usize {
        self.connection.lock().as_ref().map_or(0, UpstreamConnection::current_max_send_streams)
    }

    /// Waits for the server's first frame, for at most `patience` from the beginning of the connection. Nothing tells when it is there,
    /// so that it is looked for.
    async fn first_frame(&self, patience: Duration) {
        while self.allowed() == UNSAID && self.made.elapsed() < patience {
            sleep(LOOKS).await;
        }
    }

    /// Whether WebSockets go over streams of it (RFC 8441, 3). The server says so with its first frame, which may take `patience` from
    /// the beginning of the connection.
    pub(crate) async fn carries_websockets(&self, patience: Duration) -> bool {
        self.first_frame(patience).await;
        let connection = self.connection.lock();
        connection.as_ref().is_some_and(UpstreamConnection::is_extended_connect_protocol_enabled)
    }

    /// Asks an upstream. Nobody can tell a server that closed from one that refused the stream: neither has answered. One that said that
    /// it takes no more requests was not asked.
    pub(crate) fn ask(
        &self,
        request: Request<Body>,
    ) -> impl Future<Output = Result<Response<Body>, NoAnswer>> + Send + use<> {
        let asking = self.try_ask(request);
        async move { asking.await.map_err(|(why, _)| why) }
    }

    /// The same, and what was not sent comes back, with whatever its body has meanwhile.
    pub(crate) fn try_ask(
        &self,
        request: Request<Body>,
    ) -> impl Future<Output = Result<Response<Body>, Unanswered>> + Send + use<> {
        let mut sender = self.sender.clone();
        async move {
            if sender.ready().await.is_err() {
                return Err((NoAnswer::Unsent, Some(Box::new(request))));
            }
            let response = sender.try_send_request(request).await;
            let response = response.map_err(|mut error| match error.take_message() {
                Some(request) => (NoAnswer::Unsent, Some(Box::new(request))),
                None => (NoAnswer::Closed, None),
            })?;
            let invalid = |error| NoAnswer::Invalid(format!("the upstream's answer is invalid: {error}"));
            head::check_answer(response.headers()).map_err(|error| (invalid(error), None))?;
            Ok(response.map(Body::new))
        }
    }

    /// Asks for a WebSocket. If it is accepted, the answer is what HTTP/1 would say with `accept`, and `switched` gets the stream.
    pub(crate) async fn ask_for_websocket(
        self,
        mut request: Request<Body>,
        accept: Option<HeaderValue>,
        switched: oneshot::Sender<Box<dyn Duplex>>,
    ) -> Result<Response<Body>, NoAnswer> {
        *request.method_mut() = Method::CONNECT;
        request.headers_mut().remove(header::SEC_WEBSOCKET_KEY);
        request.extensions_mut().insert(hyper::ext::Protocol::from_static(WEBSOCKET));
        let mut response = self.ask(request).await?;
        if response.status() == StatusCode::OK {
            let stream = hyper::upgrade::on(&mut response).await.map_err(|_| NoAnswer::Closed)?;
            // Whoever asked is gone with what waits for it.
            let _ = switched.send(Box::new(TokioIo::new(stream)));
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            say_upgrade(response.headers_mut());
            response.headers_mut().extend(accept.map(|accept| (header::SEC_WEBSOCKET_ACCEPT, accept)));
        }
        Ok(response)
    }
}

/// A request for an upstream, of what a client has asked.
pub(crate) fn request(
    asked: &Asked<'_>,
    tls: bool,
    authority: &str,
    path: &str,
    body: Body,
) -> Request<Body> {
    let mut request = Request::new(body);
    *request.method_mut() = asked.method.clone();
    *request.version_mut() = Version::HTTP_2;
    *request.headers_mut() = asked.headers.clone();
    let host = request.headers_mut().remove(header::HOST);
    let host = host.as_ref().and_then(|host| host.to_str().ok()).filter(|host| !host.is_empty());
    let scheme = if tls { "https" } else { "http" };
    let uri = Uri::builder().scheme(scheme).authority(host.unwrap_or(authority)).path_and_query(path).build();
    // The parts were parsed as such before: a head whose `Host` is no authority is refused, and so is a target that is no path.
    *request.uri_mut() = uri.unwrap_or_default();
    request
}
