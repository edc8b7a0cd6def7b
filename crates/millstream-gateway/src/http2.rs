//! HTTP/2 by hyper, on both sides: its streams are exchanges like any other.

mod kept;
mod requests;
pub(crate) mod tasks;
mod written;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::io::AsyncReadExt;
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_util::future::FutureExt;

use crate::account::Tale;
use crate::asking::path_of;
use crate::body::{Body, BodyError};
use crate::client::{Client, text_to};
use crate::connection::tunnel;
use crate::current::Current;
use crate::duplex::{Duplex, Prefixed};
use crate::exchange::{Asked, Ended, exchange};
use crate::gateway::Shared;
use crate::head::{self, Framing, HeadError};
use crate::headers::Peer;
use crate::http1::io::Connection;
use crate::pump::Source;
use crate::report::Refusal;
use crate::settings::Settings;
use crate::under_way::Entered;

use kept::{Ends, Kept};
use tasks::Tasks;
use written::Watched;

pub(crate) use requests::{Requests, connect, request};

/// What a client may send of one body that nobody has taken. All its streams together may send as much as there are of them: with
/// less, a few uploads that nobody reads would hold up all others of their connection. With 64 KiB, clients whose last segment waits for
/// an acknowledgement (Nagle) send 1.5 MB/s instead of 150.
const STREAM_WINDOW: u32 = 128 << 10;
/// From how many bytes of a stream on that are not sent yet, to either side, hyper takes no further chunk: so many and a chunk are held
/// for a peer that opens no window.
const SEND_BUFFER: usize = 32 << 10;
/// How much longer than is allowed a head may be that hyper still lets through. It answers those beyond by itself, uncounted.
const HEAD_EXCESS: usize = 4;
/// The length of what every client begins with (RFC 9113, 3.4).
const PREFACE_LENGTH: usize = 24;
/// The name of the protocol, on either way to ask for it.
pub(crate) const WEBSOCKET: &str = "websocket";
/// How often a silent connection is asked whether it is still there, and how long it may take to say so.
const PING: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(20));

/// Serves a client's connection to its end, each request by what is in force when it begins, and what is of the connection by `shared`.
pub(crate) async fn serve(current: &Arc<Current>, shared: Arc<Shared>, stream: Box<dyn Duplex>, peer: Peer) {
    let Settings { limits, timeouts, .. } = shared.settings.clone();
    let stream = match timeout(timeouts.header, greeted(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(_)) => return,
        Err(_) => return shared.tally.refused(Refusal::Timeout),
    };
    let (serving, mut served) = watch::channel(0);
    let serving = Arc::new(serving);
    let mut builder = hyper::server::conn::http2::Builder::new(Tasks::new(&shared.tasks, &shared.stopped));
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(
            u32::try_from(limits.header_bytes.saturating_mul(HEAD_EXCESS)).unwrap_or(u32::MAX),
        )
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(all_windows(limits.streams))
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(PING.0)
        .keep_alive_timeout(PING.1)
        .enable_connect_protocol();
    let (stream, answers) = Watched::new(&shared.tally, stream);
    let draining = shared.draining.clone();
    let seen = Mutex::new(shared);
    let begun = AtomicU64::new(0);
    let service = service_fn(|request| {
        let shared = {
            let mut seen = seen.lock();
            current.renew(&mut seen);
            seen.clone()
        };
        let slot = Entered::new(&shared.tally, &peer, begun.fetch_add(1, Ordering::Relaxed) + 1);
        answer(shared, request, peer.clone(), (Stream::new(&serving), slot))
    });
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        biased;
        // An error is the client's: its streams have seen it.
        _ = connection.as_mut() => return,
        () = draining.cancelled() => {}
        () = idle(&mut served, &answers, timeouts.keep_alive) => {}
    }
    connection.as_mut().graceful_shutdown();
    tokio::select! {
        _ = connection => {}
        // The client was told to go, and takes nothing of what hyper has not sent yet of answers that have ended.
        () = idle(&mut served, &answers, timeouts.idle) => {}
    }
}

/// The window of a connection with so many streams (RFC 9113, 6.9.1).
fn all_windows(streams: u32) -> u32 {
    STREAM_WINDOW.saturating_mul(streams.max(16)).min(i32::MAX as u32)
}

/// The connection, once what every client begins with has come; it is there to be read again.
async fn greeted(mut stream: Box<dyn Duplex>) -> io::Result<Box<dyn Duplex>> {
    let mut preface = [0; PREFACE_LENGTH];
    stream.read_exact(&mut preface).await?;
    Ok(Box::new(Prefixed::new(Bytes::copy_from_slice(&preface), stream)))
}

/// Resolves when no exchange was under way for so long, and nothing was written of the answers of others.
async fn idle(served: &mut watch::Receiver<usize>, answers: &AtomicU64, time: Duration) {
    loop {
        if *served.borrow_and_update() > 0 {
            if served.changed().await.is_err() {
                return;
            }
            continue;
        }
        let before = answers.load(Ordering::Relaxed);
        match timeout(time, served.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return,
            Err(_) if answers.load(Ordering::Relaxed) == before => return,
            Err(_) => {}
        }
    }
}

/// Counts an exchange of a connection while it is under way.
struct Stream(Arc<watch::Sender<usize>>);

impl Stream {
    fn new(serving: &Arc<watch::Sender<usize>>) -> Stream {
        serving.send_modify(|streams| *streams += 1);
        Stream(serving.clone())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.send_modify(|streams| *streams -= 1);
    }
}

/// One stream.
async fn answer(
    shared: Arc<Shared>,
    mut request: Request<Incoming>,
    peer: Peer,
    under_way: (Stream, Entered),
) -> Result<Response<Kept>, BodyError> {
    let upgrade = asks_for_websocket(&request).then(|| hyper::upgrade::on(&mut request));
    let (mut parts, incoming) = request.into_parts();
    if upgrade.is_some() {
        ask_as_http1(&mut parts);
    }
    join_cookies(&mut parts.headers);
    let limits = &shared.settings.limits;
    let declared = if path_of(&parts.uri).len() > limits.target_bytes {
        Err(HeadError::TargetTooLong)
    } else if head::bytes_of(&parts.headers) > limits.header_bytes {
        Err(HeadError::TooLarge)
    } else {
        head::check(&parts.method, &parts.uri, Version::HTTP_2, &mut parts.headers)
    };
    let framing = match declared {
        Err(error) => return Ok(refused(&shared, &parts.method, error).map(Kept::free)),
        Ok(_) if incoming.is_end_stream() => Framing::None,
        // A body without a length, whose end the stream will tell.
        Ok(Framing::None) if incoming.size_hint().exact().is_none() => Framing::Chunked,
        Ok(framing) => framing,
    };
    let may_switch = upgrade.is_some();
    let method = parts.method.clone();
    let asked = Box::new(Asked {
        method: parts.method,
        target: parts.uri,
        version: Version::HTTP_2,
        headers: parts.headers,
        framing,
        may_switch,
        source: Source::Frames(Body::new(incoming)),
        peer,
    });
    let (respond, responded) = oneshot::channel();
    let tasks = shared.tasks.clone();
    let stopped = shared.stopped.clone();
    let exchange = async move {
        // What hyper has not written when it ends the client has room for; it is watched over with the connection.
        let (_stream, slot) = under_way;
        let mut client = Client::Frames { respond: Some(respond), method };
        let (ended, tale) = exchange(&shared, &slot, asked, &mut client).await;
        if let Some(upgrade) = upgrade {
            go_on(&shared, ended, upgrade, tale).await;
        }
    };
    let serving = tasks.spawn(exchange.with_cancellation_token_owned(stopped));
    let serving = Ends::new(serving);
    match responded.await {
        Ok(response) if may_switch && response.status().is_success() => {
            serving.goes_on();
            Ok(response.map(Kept::free))
        }
        Ok(response) => Ok(response.map(|body| Kept::new(body, serving))),
        // Without an answer the stream is reset.
        Err(_) => Err(BodyError::new("the exchange ended without an answer")),
    }
}

/// Whether this begins a WebSocket (RFC 8441).
fn asks_for_websocket(request: &Request<Incoming>) -> bool {
    let protocol = request.extensions().get::<hyper::ext::Protocol>();
    request.method() == Method::CONNECT && protocol.is_some_and(|protocol| protocol.as_str() == WEBSOCKET)
}

/// Makes a request that begins a WebSocket over HTTP/2 into what it would be over HTTP/1.
fn ask_as_http1(parts: &mut http::request::Parts) {
    parts.method = Method::GET;
    say_upgrade(&mut parts.headers);
    // It shows that an HTTP/1 server has read the request; over HTTP/2 nothing else could answer.
    let key = HeaderValue::from_str(&generate_key()).expect("base64 is text");
    parts.headers.insert(header::SEC_WEBSOCKET_KEY, key);
}

/// Says of a head of HTTP/1 that it is about a WebSocket.
fn say_upgrade(headers: &mut HeaderMap) {
    headers.insert(header::UPGRADE, HeaderValue::from_static(WEBSOCKET));
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
}

/// Goes on in another protocol, over the stream of a request whose answer said so.
async fn go_on(shared: &Shared, ended: Ended, upgrade: OnUpgrade, tale: Option<Tale>) {
    let stream = async { Some(Box::new(TokioIo::new(upgrade.await.ok()?)) as Box<dyn Duplex>) };
    match ended {
        Ended::Tunnel(up, _in_flight) => {
            let Some(stream) = stream.await else { return };
            let (read, write) = Connection::Other(stream).split(&shared.pool);
            tunnel(shared, read, write, *up, tale).await;
        }
        Ended::Handed(offer) => {
            let Some(stream) = stream.await else { return };
            offer.run(shared, stream, tale).await;
        }
        Ended::Keep | Ended::Close | Ended::Reset => {}
    }
}

/// Answers a head that cannot be served.
fn refused(shared: &Shared, method: &Method, error: HeadError) -> Response<Body> {
    shared.tally.refused(error.refusal());
    let mut response = Response::new(text_to(method, format!("{error}\n")));
    *response.status_mut() = error.status();
    response
}

/// HTTP/2 may send cookies one by one, HTTP/1 may not (RFC 9113, 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let cookies: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if cookies.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&cookies.join(&b"; "[..]))
    {
        headers.insert(header::COOKIE, joined);
    }
}
