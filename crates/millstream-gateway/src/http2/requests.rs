//! The side of an upstream's client.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use super::{PING, STREAM_WINDOW, Tasks, WEBSOCKET, say_upgrade};
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
/// How often it is looked for an upstream's first frame where it matters.
const LOOKS: Duration = Duration::from_millis(5);

/// Where requests to an upstream go, over one connection.
#[derive(Clone)]
pub(crate) struct Requests {
    sender: SendRequest<Body>,
    connection: Arc<Mutex<UpstreamConnection>>,
    made: Instant,
}

type UpstreamConnection = hyper::client::conn::http2::Connection<TokioIo<Box<dyn Duplex>>, Body, Tasks>;

/// Begins to speak HTTP/2 with an upstream.
pub(crate) async fn connect(shared: &Arc<Shared>, stream: Box<dyn Duplex>) -> hyper::Result<Requests> {
    let tasks = Tasks { tracker: shared.upstream_tasks.clone(), stopped: shared.stopped.clone() };
    let (sender, connection) = hyper::client::conn::http2::Builder::new(tasks.clone())
        .timer(TokioTimer::new())
        .initial_stream_window_size(ANSWER_WINDOW)
        .initial_connection_window_size(ANSWERS_WINDOW)
        .max_send_buf_size(STREAM_WINDOW as usize)
        .keep_alive_interval(PING.0)
        .keep_alive_timeout(PING.1)
        .handshake(TokioIo::new(stream))
        .await?;
    let connection = Arc::new(Mutex::new(connection));
    let driven = connection.clone();
    hyper::rt::Executor::execute(&tasks, poll_fn(move |cx| Pin::new(&mut *driven.lock()).poll(cx)));
    Ok(Requests { sender, connection, made: Instant::now() })
}

impl Requests {
    /// Whether the connection is open.
    pub(crate) fn is_ready(&self) -> bool {
        self.sender.is_ready()
    }

    /// Whether WebSockets go over streams of it (RFC 8441, 3). The server says so with its first frame, which may take `patience` from
    /// the beginning of the connection; nothing tells when it is there, so that it is looked for.
    pub(crate) async fn carries_websockets(&self, patience: Duration) -> bool {
        while !self.connection.lock().is_extended_connect_protocol_enabled() {
            if self.made.elapsed() >= patience {
                return false;
            }
            sleep(LOOKS).await;
        }
        true
    }

    /// Asks an upstream. Nobody can tell a server that closed from one that refused the stream: neither has answered.
    pub(crate) async fn ask(mut self, request: Request<Body>) -> Result<Response<Body>, NoAnswer> {
        self.sender.ready().await.map_err(|_| NoAnswer::Closed)?;
        let response = self.sender.send_request(request).await.map_err(|_| NoAnswer::Closed)?;
        head::check_answer(response.headers())
            .map_err(|error| NoAnswer::Invalid(format!("the upstream's answer is invalid: {error}")))?;
        Ok(response.map(Body::new))
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
    *request.uri_mut() = uri.unwrap_or_default();
    request
}
