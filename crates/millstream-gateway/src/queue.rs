//! Queues and streams of brokers behind routes: publishing what is posted, and serving what is there.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_core::Stream;
use futures_util::StreamExt;
use futures_util::stream::{empty, unfold};
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode, Version};
use http_body::Body as _;
use millstream_message::{
    Address, Broker, BrokerError, BrokerErrorKind, ConsumeOptions, Consumer, Delivery, Message,
    PublishOutcome, Refusal, StreamFrom, StreamItem, StreamReader, TRACEPARENT, TRACESTATE, TraceContext,
};
use tokio::time::timeout;

use crate::body::{Body, BodyError};
use crate::headers;
use crate::pool::BufferPool;
use crate::route::{Answering, Handler};
use crate::sse::{Event, events, last_event_id};
use crate::websocket::{self, WebSocketMessage};

/// How many items of a stream are read at once.
const CHUNK: usize = 64;
/// How long a body that is to be published waits for room in the pool.
const ROOM_WAIT: Duration = Duration::from_secs(5);

/// Publishes the body of each request as a message, and answers when it is stored.
///
/// The answer is 202 when every queue that wanted the message has stored it; 404 if no queue wanted it; 413 or 409 with the reason if
/// the broker refused it, 503 if it may take it later (a full queue or disk, a broker out of reach); and 504 if the connection to the
/// broker was lost before it said so: then the message may be stored or not. Content type and encoding go along, and so does the
/// [trace](TraceContext) that `traceparent` and `tracestate` tell of.
pub struct PublishTo {
    broker: Arc<dyn Broker>,
    address: Address,
    body_max: usize,
}

impl PublishTo {
    /// Publishes to this address; a body may have `body_max` bytes. They are gathered in a buffer of the gateway's pool, and wait for
    /// room in it for at most 5 s (then the answer is 503), holding none: nothing is read of them before but what came with their heads,
    /// at most 16 KiB, in memory of its own. A body that may be larger than 1 MiB is gathered in memory of its own.
    pub fn new(broker: Arc<dyn Broker>, address: Address, body_max: usize) -> PublishTo {
        PublishTo { broker, address, body_max }
    }
}

impl Handler for PublishTo {
    fn body_max(&self) -> Option<u64> {
        Some(self.body_max as u64)
    }

    fn handle(&self, request: Request<Body>) -> Answering {
        let (broker, address, max) = (self.broker.clone(), self.address.clone(), self.body_max);
        let publishes = matches!(*request.method(), Method::POST | Method::PUT);
        if publishes {
            // Else those who wait for room would fill it with what was read ahead for them.
            request.body().read_on_demand();
        }
        Box::pin(async move {
            if !publishes {
                let mut response = answer(StatusCode::METHOD_NOT_ALLOWED, "publish by POST or PUT\n");
                response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST, PUT"));
                return response;
            }
            let (parts, body) = request.into_parts();
            let body = match gathered(body, parts.extensions.get::<BufferPool>(), max).await {
                Ok(body) => body,
                Err(Ungathered::Full) => {
                    let mut response =
                        answer(StatusCode::SERVICE_UNAVAILABLE, "there is no room for the body\n");
                    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
                    return response;
                }
                Err(Ungathered::Body) => {
                    return answer(
                        StatusCode::PAYLOAD_TOO_LARGE,
                        format!("a message may have {max} bytes\n"),
                    );
                }
            };
            let mut message = Message::new(body);
            if let Some(kind) = parts.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()) {
                message = message.with_content_type(kind);
            }
            let codings = parts.headers.get_all(header::CONTENT_ENCODING).into_iter();
            let codings: Vec<&str> = codings.filter_map(|coding| coding.to_str().ok()).collect();
            if !codings.is_empty() {
                message = message.with_content_encoding(codings.join(", "));
            }
            if let Some(trace) = trace(&parts.headers) {
                message = message.with_trace(&trace);
            }
            match broker.publish(&address, message).await {
                Ok(outcome) => outcome_of(outcome),
                Err(error) => answer(StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
            }
        })
    }
}

/// The trace that a request belongs to.
fn trace(headers: &HeaderMap) -> Option<TraceContext> {
    let lines = |name| headers.get_all(name).into_iter().map(HeaderValue::as_bytes);
    TraceContext::of_request(lines(TRACEPARENT), lines(TRACESTATE))
}

/// Why a body was not gathered.
enum Ungathered {
    /// There was no room in the pool for too long.
    Full,
    /// It is too large, or was broken off.
    Body,
}

/// All of a body. It is gathered in a buffer of the pool, so that bodies which come slowly hold no more than the pool's bound; one that
/// no buffer can hold is gathered in memory of its own.
async fn gathered(mut body: Body, pool: Option<&BufferPool>, max: usize) -> Result<Bytes, Ungathered> {
    let upper = body.size_hint().upper().and_then(|upper| usize::try_from(upper).ok());
    let most = upper.unwrap_or(max);
    if most > max {
        return Err(Ungathered::Body);
    }
    let lease = match pool {
        Some(pool) => Some(timeout(ROOM_WAIT, pool.lease(most)).await.map_err(|_| Ungathered::Full)?),
        None => None,
    };
    let Some(mut lease) = lease.filter(|lease| lease.capacity() >= most) else {
        return body.collect(max).await.map_err(|_| Ungathered::Body);
    };
    while let Some(bytes) = body.next().await {
        let bytes = bytes.map_err(|_| Ungathered::Body)?;
        if lease.len() + bytes.len() > most {
            return Err(Ungathered::Body);
        }
        lease.extend(&bytes);
    }
    Ok(Bytes::copy_from_slice(&lease))
}

fn outcome_of(outcome: PublishOutcome) -> Response<Body> {
    match outcome {
        PublishOutcome::Confirmed => answer(StatusCode::ACCEPTED, ""),
        PublishOutcome::Unroutable(returned) => {
            answer(StatusCode::NOT_FOUND, format!("{}\n", returned.reason))
        }
        PublishOutcome::Refused(refusal) => {
            let status = match &refusal {
                Refusal::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
                Refusal::NoExchange { .. } => StatusCode::NOT_FOUND,
                Refusal::Full { .. } => StatusCode::SERVICE_UNAVAILABLE,
                // The same may be taken later.
                Refusal::Broker(error) if is_passing(error) => StatusCode::SERVICE_UNAVAILABLE,
                _ => StatusCode::CONFLICT,
            };
            answer(status, format!("{refusal}\n"))
        }
        PublishOutcome::Unconfirmed(error) => {
            answer(StatusCode::GATEWAY_TIMEOUT, format!("the message may be stored or not: {error}\n"))
        }
    }
}

/// Whether it is the broker that cannot store anything now, rather than the message that it will never store.
fn is_passing(error: &BrokerError) -> bool {
    matches!(error.kind(), BrokerErrorKind::Unavailable | BrokerErrorKind::Storage)
}

fn answer(status: StatusCode, text: impl Into<String>) -> Response<Body> {
    let mut response = Response::new(Body::from(text.into()));
    *response.status_mut() = status;
    response
}

/// What is served of a broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Served {
    /// A stream, to everybody from his own place on. An event's name is its offset; a client that connects again with
    /// `Last-Event-ID` goes on after it (or with `?last-event-id=`, as a browser's WebSocket must, which sends no headers of its own), and
    /// one that has seen nothing begins with what comes next, or with the first message if it asks with `?from=first`.
    Stream(String),
    /// A queue: each message to one client. It is acknowledged when it was written to the client's connection, and delivered again
    /// if the client left before that; what the network loses after that is lost. Use a stream where clients must be able to go on.
    /// Over HTTP/2, where nobody learns what was written when, the answer is 505.
    Queue(String),
}

/// Serves a stream or a queue as server-sent events, and to those who ask for it as a WebSocket.
///
/// A WebSocket gets a text message for each, `{"id": …, "data": …}`, as [`websocket::messages`] sends them. A message that is no
/// text in UTF-8 is sent in base64: over a WebSocket as `{"id": …, "base64": …}`, as an event of the kind `base64`. Ends of lines
/// become line feeds in server-sent events, which know no others.
///
/// It is asked by GET; what is not there is answered 404, and a broker that cannot be reached 503.
pub struct Serve {
    broker: Arc<dyn Broker>,
    what: Served,
}

impl Serve {
    /// Serves this.
    pub fn new(broker: Arc<dyn Broker>, what: Served) -> Serve {
        Serve { broker, what }
    }
}

impl Handler for Serve {
    fn handle(&self, request: Request<Body>) -> Answering {
        let (broker, what) = (self.broker.clone(), self.what.clone());
        Box::pin(async move {
            match *request.method() {
                Method::GET => {}
                // The same head, and no consumer that would take messages.
                Method::HEAD => return events(empty()),
                _ => {
                    let mut response = answer(StatusCode::METHOD_NOT_ALLOWED, "follow by GET\n");
                    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
                    return response;
                }
            }
            let opened = match &what {
                Served::Stream(name) => match from(&request) {
                    Ok(from) => broker.read(name, from).await.map(Opened::Stream),
                    Err(text) => return answer(StatusCode::BAD_REQUEST, text),
                },
                Served::Queue(_) if request.version() == Version::HTTP_2 => {
                    let text = "a queue is served over HTTP/1.1, where it is known what was written\n";
                    return answer(StatusCode::HTTP_VERSION_NOT_SUPPORTED, text);
                }
                Served::Queue(name) => {
                    let options = ConsumeOptions::default().prefetch(2);
                    broker.consume(name, options).await.map(Opened::Queue)
                }
            };
            let opened = match opened {
                Ok(opened) => opened.events(),
                Err(error) if error.kind() == BrokerErrorKind::NotFound => {
                    return answer(StatusCode::NOT_FOUND, format!("{error}\n"));
                }
                Err(error) => return answer(StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
            };
            if headers::upgrade(request.headers()).is_some() {
                let messages = opened.map(|event| event.map(|event| told(&event)).map_err(BodyError::new));
                return websocket::messages(&request, messages);
            }
            events(opened.map(|event| event.map_err(BodyError::new)))
        })
    }
}

/// Where a client wants to begin.
fn from(request: &Request<Body>) -> Result<StreamFrom, String> {
    let query = |name: &str| {
        let pairs = request.uri().query().unwrap_or("").split('&');
        pairs.filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name).map(|(_, value)| value)
    };
    let seen = last_event_id(request.headers()).or_else(|| query("last-event-id"));
    // Who has seen none says so with an empty one.
    let seen = seen.filter(|seen| !seen.is_empty());
    if let Some(seen) = seen {
        let offset = seen.parse::<u64>().ok().and_then(|offset| offset.checked_add(1));
        return offset
            .map(StreamFrom::Offset)
            .ok_or_else(|| format!("`{seen}` is no event of this stream\n"));
    }
    match query("from") {
        None | Some("next") => Ok(StreamFrom::Next),
        Some("first") => Ok(StreamFrom::First),
        Some(other) => Err(format!("`from` is `first` or `next`, not `{other}`\n")),
    }
}

enum Opened {
    Stream(StreamReader),
    Queue(Consumer),
}

type Events = std::pin::Pin<Box<dyn Stream<Item = Result<Event, BrokerError>> + Send>>;

impl Opened {
    fn events(self) -> Events {
        match self {
            Opened::Stream(reader) => {
                let start = (reader, Vec::<StreamItem>::new().into_iter());
                Box::pin(unfold(start, async |(mut reader, mut ready)| {
                    if ready.len() == 0 {
                        match reader.next_chunk(CHUNK).await {
                            Ok(chunk) => ready = chunk.into_iter(),
                            Err(error) => return Some((Err(error), (reader, ready))),
                        }
                    }
                    let item = ready.next()?;
                    let event = event(&item.message).id(item.offset.to_string());
                    Some((Ok(event), (reader, ready)))
                }))
            }
            Opened::Queue(consumer) => {
                Box::pin(unfold((consumer, None::<Delivery>), async |(mut consumer, given)| {
                    // Whoever asks for the next has written this one.
                    if let Some(delivery) = given {
                        delivery.ack();
                    }
                    match consumer.next().await? {
                        Ok(delivery) => Some((Ok(event(&delivery.message)), (consumer, Some(delivery)))),
                        Err(error) => Some((Err(error), (consumer, None))),
                    }
                }))
            }
        }
    }
}

/// The kind of events whose data is no text.
const BASE64: &str = "base64";

fn event(message: &Message) -> Event {
    let event = match std::str::from_utf8(message.body()) {
        Ok(text) => Event::new(text),
        Err(_) => Event { event: Some(BASE64.into()), ..Event::new(STANDARD.encode(message.body())) },
    };
    match &message.properties().message_id {
        Some(id) => event.id(id),
        None => event,
    }
}

/// An event as a message of a WebSocket.
fn told(event: &Event) -> WebSocketMessage {
    let data = event.event.as_deref().unwrap_or("data");
    WebSocketMessage::text(serde_json::json!({ "id": event.id, data: event.data }).to_string())
}
