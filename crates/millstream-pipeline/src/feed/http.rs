//! Items by HTTP: POST of one, an array, or lines of JSON. The reply says that they are safe.

mod connections;

use self::connections::serve;
use super::lines::Lines;
use super::{Chunk, Feed, NotSafe, Reply};
use crate::bound::VALUE_FACTOR;
use crate::codec::BYTE_ORDER_MARK;
use crate::file::model::{HttpSource, Reading};
use crate::item::Raw;
use crate::value::{self, Value};
use axum::body::{Body, HttpBody};
use axum::http::header::{ACCEPT_ENCODING, ALLOW, CONTENT_ENCODING, CONTENT_TYPE, ORIGIN, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Uri};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use millstream_flow::BoxError;
use millstream_message::codec::is_json;
use millstream_message::{TRACEPARENT, TRACESTATE, TraceContext};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Duration, Instant, timeout_at};

/// How long a body may take to come, and the bytes for which it gets another millisecond: who sends slowly keeps others out.
const BODY_TIME: Duration = Duration::from_secs(60);
const BODY_PACE: usize = 16;

/// Bodies that are being read at once, and that wait for room.
pub(crate) const READING: usize = 16;

/// Why the source cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}; is the port taken? choose another in `source.http.listen`")]
struct ListenError {
    address: String,
    source: std::io::Error,
}

/// Accepts items until it is dropped.
pub(crate) struct HttpFeed {
    requests: mpsc::Receiver<Chunk>,
    /// The server; dropping it closes the port.
    _server: JoinSet<()>,
}

struct Shared {
    requests: mpsc::Sender<Chunk>,
    /// Items accepted and not yet durable may be this many.
    pending: Arc<Semaphore>,
    pending_max: usize,
    /// Memory that they take, in KiB.
    pending_kib: Arc<Semaphore>,
    kib_max: u32,
    reading: Semaphore,
    /// Long bodies become values one after the other: how much memory that takes is known only then.
    parsing: Semaphore,
    body_max: usize,
    path: String,
}

/// A refusal, with what the client should know.
struct Refusal(StatusCode, String);

impl HttpFeed {
    /// Opens the port.
    pub(crate) async fn listen(http: &HttpSource) -> Result<Self, BoxError> {
        let failed = |source| ListenError { address: http.listen.value.clone(), source };
        let listener = TcpListener::bind(&http.listen.value).await.map_err(failed)?;
        // One chunk a request; those accepted beyond this many wait for the channel with their permits.
        let (sender, requests) = mpsc::channel(64);
        let pending_max =
            usize::try_from(http.pending_max.value).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        let kib_max = http.body_max.saturating_mul(READING).div_ceil(1024).min(Semaphore::MAX_PERMITS);
        let kib_max = u32::try_from(kib_max).unwrap_or(u32::MAX);
        let shared = Arc::new(Shared {
            requests: sender,
            pending: Arc::new(Semaphore::new(pending_max)),
            pending_max,
            pending_kib: Arc::new(Semaphore::new(kib_max as usize)),
            kib_max,
            reading: Semaphore::new(READING),
            parsing: Semaphore::new(1),
            body_max: http.body_max,
            path: http.path.value.clone(),
        });
        let mut server = JoinSet::new();
        // It ends only with the feed.
        server.spawn(serve(listener, shared, http.connections_max.value as usize));
        Ok(HttpFeed { requests, _server: server })
    }
}

impl Feed for HttpFeed {
    fn next(&mut self) -> Pin<Box<dyn Future<Output = Result<Option<Chunk>, BoxError>> + Send + '_>> {
        Box::pin(async { Ok(self.requests.recv().await) })
    }

    /// A client waits for its answer.
    fn can_wait(&self) -> bool {
        false
    }
}

async fn take(
    shared: Arc<Shared>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Response<Body> {
    if uri.path() != shared.path {
        return refuse(Refusal(StatusCode::NOT_FOUND, format!("items are taken at {}", shared.path)));
    }
    if method != Method::POST {
        let mut response = refuse(Refusal(StatusCode::METHOD_NOT_ALLOWED, "send items by POST".into()));
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
        return response;
    }
    match accept(&shared, &headers, body).await {
        Ok(count) => reply(StatusCode::OK, format!("{{\"accepted\":{count}}}\n")),
        Err(refusal) => refuse(refusal),
    }
}

fn refuse(Refusal(status, why): Refusal) -> Response<Body> {
    let mut text = Vec::from("{\"error\":");
    value::write_text(&mut text, why.as_bytes());
    text.extend_from_slice(b"}\n");
    let mut response = reply(status, text);
    if status == StatusCode::UNSUPPORTED_MEDIA_TYPE {
        response.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    }
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(RETRY_AFTER, 1.into());
    }
    response
}

fn reply(status: StatusCode, body: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

async fn accept(shared: &Shared, headers: &HeaderMap, body: Body) -> Result<usize, Refusal> {
    let full = || {
        Refusal(StatusCode::SERVICE_UNAVAILABLE, "too many items are waiting to be stored; try again".into())
    };
    plain(headers)?;
    let form = form(headers)?;
    let reading = shared.reading.acquire().await.map_err(|_| full())?;
    let bytes = read_body(body, shared.body_max).await?;
    let parsing = match bytes.len() as u64 > shared.body_max as u64 / VALUE_FACTOR {
        true => Some(shared.parsing.acquire().await.map_err(|_| full())?),
        false => None,
    };
    let bytes = if bytes.starts_with(BYTE_ORDER_MARK) { bytes.slice(BYTE_ORDER_MARK.len()..) } else { bytes };
    let lines = |name| headers.get_all(name).into_iter().map(HeaderValue::as_bytes);
    let trace = TraceContext::of_request(lines(TRACEPARENT), lines(TRACESTATE)).map(Arc::new);
    let item = |value| Raw::Value(value, trace.clone());
    let items = match form {
        Form::Json => read_json(&bytes, item)?,
        Form::Lines => read_lines(&bytes, shared.body_max, item)?,
        // One value may stand on several lines, and several lines are no single value. If it is neither, the first line tells
        // which of both was meant.
        Form::Either if !bytes.trim_ascii().contains(&b'\n') => read_json(&bytes, item)?,
        Form::Either => read_json(&bytes, item).or_else(|whole| {
            let first = bytes.trim_ascii_start().split(|byte| *byte == b'\n').next().unwrap_or_default();
            match value::parse_json(first) {
                Ok(_) => read_lines(&bytes, shared.body_max, item),
                Err(_) => Err(whole),
            }
        })?,
    };
    let count = items.len();
    if count == 0 {
        return Ok(0);
    }
    if count > shared.pending_max {
        let why = format!("{count} items in one request; `max_pending` allows {}", shared.pending_max);
        return Err(Refusal(StatusCode::PAYLOAD_TOO_LARGE, why));
    }
    let memory = bytes.len() + items.iter().map(Raw::footprint).sum::<usize>();
    // One request has room whatever it takes, when it is alone.
    let kib = u32::try_from(memory.div_ceil(1024)).unwrap_or(u32::MAX).min(shared.kib_max);
    let take =
        |semaphore: &Arc<Semaphore>, many| semaphore.clone().try_acquire_many_owned(many).map_err(|_| full());
    let room = vec![take(&shared.pending, count as u32)?, take(&shared.pending_kib, kib)?];
    drop((parsing, reading, bytes));
    let (to, answer) = oneshot::channel();
    let ending = || Refusal(StatusCode::SERVICE_UNAVAILABLE, "the pipeline is ending; try again".into());
    let chunk = Chunk { items, position: None, reply: Some(Reply::new(to, room)) };
    shared.requests.send(chunk).await.map_err(|_| ending())?;
    match answer.await {
        Ok(Ok(())) => Ok(count),
        Ok(Err(NotSafe::TooLarge(why))) => {
            Err(Refusal(StatusCode::PAYLOAD_TOO_LARGE, format!("{why}; nothing was accepted")))
        }
        Ok(Err(NotSafe::Ended(why))) => Err(Refusal(StatusCode::SERVICE_UNAVAILABLE, why)),
        Err(_) => Err(ending()),
    }
}

/// The body of a request, which has to come within its time.
async fn read_body(body: Body, most: usize) -> Result<Bytes, Refusal> {
    let too_long = || {
        let why = format!("the body is larger than {most} bytes, which is `max_body`");
        Refusal(StatusCode::PAYLOAD_TOO_LARGE, why)
    };
    let mut body = Limited::new(body, most);
    if body.size_hint().lower() > most as u64 {
        return Err(too_long());
    }
    let begun = Instant::now();
    let mut pieces: Vec<Bytes> = Vec::new();
    let mut length = 0;
    loop {
        let time = BODY_TIME + Duration::from_millis((length / BODY_PACE) as u64);
        let Ok(frame) = timeout_at(begun + time, body.frame()).await else {
            let why =
                format!("the body did not come within {} s; nothing of it was accepted", time.as_secs());
            return Err(Refusal(StatusCode::REQUEST_TIMEOUT, why));
        };
        let frame = match frame {
            None => break,
            Some(Ok(frame)) => frame,
            Some(Err(error)) if error.is::<LengthLimitError>() => return Err(too_long()),
            Some(Err(error)) => {
                let why =
                    format!("the body was cut short, or is no HTTP: {error}; nothing of it was accepted");
                return Err(Refusal(StatusCode::BAD_REQUEST, why));
            }
        };
        if let Ok(data) = frame.into_data() {
            length += data.len();
            pieces.push(data);
        }
    }
    Ok(match pieces.len() {
        1 => pieces.swap_remove(0),
        _ => pieces.concat().into(),
    })
}

/// Refuses a body that is packed: how much it would be unpacked is known too late.
fn plain(headers: &HeaderMap) -> Result<(), Refusal> {
    let packed =
        |coding: &&HeaderValue| !coding.as_bytes().eq_ignore_ascii_case(b"identity") && !coding.is_empty();
    match headers.get_all(CONTENT_ENCODING).iter().find(packed) {
        None => Ok(()),
        Some(coding) => {
            let why = format!(
                "content encoding {coding:?}; send the items as they are, without `Content-Encoding`"
            );
            Err(Refusal(StatusCode::UNSUPPORTED_MEDIA_TYPE, why))
        }
    }
}

/// How items are written in a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// One JSON value: an item, or an array of items.
    Json,
    /// A JSON value a line.
    Lines,
    /// Whichever of both it is.
    Either,
}

/// The form that the declared type means. Types that clients send unasked, as `curl -d` does, mean nothing: the body
/// tells. A page of another site could make a browser send them without asking us first, so what comes from a
/// browser must say what it is (the fetch standard calls the others CORS-safelisted).
fn form(headers: &HeaderMap) -> Result<Form, Refusal> {
    let Some(declared) = headers.get(CONTENT_TYPE) else { return Ok(Form::Either) };
    let declared = declared.to_str().unwrap_or("");
    match declared.split(';').next().unwrap_or("").trim().to_ascii_lowercase().as_str() {
        media if is_json(media) => Ok(Form::Json),
        "application/x-ndjson" | "application/ndjson" | "application/jsonl" => Ok(Form::Lines),
        "" | "text/plain" | "application/octet-stream" | "application/x-www-form-urlencoded"
            if !headers.contains_key(ORIGIN) =>
        {
            Ok(Form::Either)
        }
        _ => {
            let why = format!("content type {declared:?}; send `application/json` or `application/x-ndjson`");
            Err(Refusal(StatusCode::UNSUPPORTED_MEDIA_TYPE, why))
        }
    }
}

fn read_json(bytes: &Bytes, item: impl Fn(Value) -> Raw) -> Result<Vec<Raw>, Refusal> {
    match value::parse_shared(bytes) {
        Ok(Value::Arr(values)) => Ok(values.iter().cloned().map(item).collect()),
        Ok(value) => Ok(vec![item(value)]),
        Err(error) => {
            Err(Refusal(StatusCode::BAD_REQUEST, format!("not JSON: {error}; nothing was accepted")))
        }
    }
}

fn read_lines(bytes: &Bytes, line_max: usize, item: impl Fn(Value) -> Raw) -> Result<Vec<Raw>, Refusal> {
    let mut lines = Lines::new(&Reading { line_max, ..Reading::ndjson() }, "body".into());
    lines.framer.buffer().extend_from_slice(bytes);
    let mut frames = Vec::new();
    let bad = |why: String| Refusal(StatusCode::BAD_REQUEST, format!("{why}; nothing was accepted"));
    lines.take_all(&mut frames).map_err(|error| bad(error.to_string()))?;
    frames.into_iter().map(|frame| frame.parsed().map(&item).map_err(bad)).collect()
}
