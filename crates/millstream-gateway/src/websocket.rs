//! WebSocket (RFC 6455) as an answer: the handshake here, the frames by tungstenite.

use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use futures_util::{SinkExt, StreamExt};
use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};

use crate::body::{Body, BodyError};
use crate::headers;
use crate::sse::HEARTBEAT;
use crate::upgrade::{Upgrade, Upgraded};

pub use tokio_tungstenite::tungstenite::{Error as WebSocketError, Message as WebSocketMessage};

/// The largest message that a client may send.
const MESSAGE_MAX: usize = 1 << 20;
/// How long a client may take to take one message.
const SEND_MAX: Duration = Duration::from_secs(30);

/// A WebSocket: a stream and a sink of messages. Pings are answered while it is read.
pub type WebSocket = WebSocketStream<Upgraded>;

/// Answers a request for a WebSocket with the messages of a stream, which any flow is; any other request is answered with what is
/// wrong with it.
///
/// The client is pinged every 15 s, and let go when it has not answered by the next ping, or takes a message for longer than
/// 30 s. What it sends is passed over. The socket is closed with 1000 after the last message, and with 1011 after an error, so that
/// the client knows whether there was more.
///
/// ```
/// use http::{Request, Response};
/// use millstream_flow::Pipe;
/// use millstream_gateway::websocket::{self, WebSocketMessage};
/// use millstream_gateway::{Body, Route};
///
/// async fn count(request: Request<Body>) -> Response<Body> {
///     let numbers = Pipe::from_iter(0..1000).map(|n| Ok(WebSocketMessage::text(n.to_string())));
///     websocket::messages(&request, numbers)
/// }
/// # let _ =
/// Route::handler("count", count)
/// # ;
/// ```
///
/// # Backpressure
/// The stream is asked for the next message when the client's connection has taken the one before.
///
/// # Cancel safety
/// When the client is gone or the gateway stops, the stream is dropped.
pub fn messages<S>(request: &Request<Body>, messages: S) -> Response<Body>
where
    S: Stream<Item = Result<WebSocketMessage, BodyError>> + Send + 'static,
{
    accept(request, move |socket| tell(socket, Box::pin(messages)))
}

/// Sends messages until either side ends, or the client shows no sign of life.
async fn tell<S>(mut socket: WebSocket, mut messages: Pin<Box<S>>)
where
    S: Stream<Item = Result<WebSocketMessage, BodyError>>,
{
    let mut pings = interval_at(Instant::now() + HEARTBEAT, HEARTBEAT);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut heard_since_ping = true;
    let code = loop {
        let message = tokio::select! {
            // What was heard counts before it is missed, and pings go out however many messages there are.
            biased;
            heard = socket.next() => match heard {
                Some(Ok(_)) => {
                    heard_since_ping = true;
                    continue;
                }
                Some(Err(_)) | None => return,
            },
            _ = pings.tick() => {
                if !std::mem::take(&mut heard_since_ping) {
                    return;
                }
                WebSocketMessage::Ping(Bytes::new())
            }
            message = messages.next() => match message {
                Some(Ok(message)) => message,
                Some(Err(_)) => break CloseCode::Error,
                None => break CloseCode::Normal,
            },
        };
        if !matches!(timeout(SEND_MAX, socket.send(message)).await, Ok(Ok(()))) {
            return;
        }
    };
    // A client that is gone needs no farewell.
    let farewell = CloseFrame { code, reason: Default::default() };
    let _ = timeout(SEND_MAX, socket.close(Some(farewell))).await;
}

/// Answers a request for a WebSocket, and gives the socket to `talk` when the answer was sent; any other request is answered with
/// what is wrong with it. `talk` runs until it returns, the client is gone, or the gateway stops.
///
/// # Cancel safety
/// When the gateway stops, the future of `talk` is dropped.
pub fn accept<F>(
    request: &Request<Body>,
    talk: impl FnOnce(WebSocket) -> F + Send + 'static,
) -> Response<Body>
where
    F: Future<Output = ()> + Send + 'static,
{
    let key = match check(request) {
        Ok(key) => key,
        Err((status, text)) => {
            let mut response = Response::new(Body::from(text));
            *response.status_mut() = status;
            response.headers_mut().insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
            return response;
        }
    };
    let Some(upgrade) = request.extensions().get::<Upgrade>().cloned() else {
        let mut response = Response::new(Body::from(
            "over this connection no WebSocket can be begun; ask by HTTP/1.1 without a body, or by HTTP/2 (RFC 8441)\n",
        ));
        *response.status_mut() = StatusCode::NOT_IMPLEMENTED;
        return response;
    };
    upgrade.on_upgrade(async move |connection| {
        let config =
            WebSocketConfig::default().max_message_size(Some(MESSAGE_MAX)).max_frame_size(Some(MESSAGE_MAX));
        talk(WebSocketStream::from_raw_socket(connection, Role::Server, Some(config)).await).await;
    });
    let mut response = Response::default();
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, key);
    response
}

/// The key of the answer.
fn check(request: &Request<Body>) -> Result<HeaderValue, (StatusCode, &'static str)> {
    let asked = headers::upgrade(request.headers());
    if !asked.is_some_and(|protocol| protocol.as_bytes().eq_ignore_ascii_case(b"websocket")) {
        return Err((StatusCode::UPGRADE_REQUIRED, "ask with `Upgrade: websocket`\n"));
    }
    if request.method() != Method::GET {
        return Err((StatusCode::METHOD_NOT_ALLOWED, "ask for a WebSocket by GET\n"));
    }
    if request.headers().get(header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err((StatusCode::UPGRADE_REQUIRED, "WebSocket is spoken in version 13\n"));
    }
    let key = request.headers().get(header::SEC_WEBSOCKET_KEY);
    let key = key.ok_or((StatusCode::BAD_REQUEST, "`Sec-WebSocket-Key` is missing\n"))?;
    HeaderValue::from_str(&derive_accept_key(key.as_bytes()))
        .map_err(|_| (StatusCode::BAD_REQUEST, "`Sec-WebSocket-Key` is invalid\n"))
}
