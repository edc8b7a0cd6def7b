//! Server-sent events (the *event stream* of the HTML standard) as answers.

use std::fmt::Write;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use http::Response;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::body::{Body, BodyError};

/// The name of the last event that a client has seen, which it sends when it connects again.
pub const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// How long a client hears nothing before a comment tells it, and what lies between, that the connection lives.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(15);

/// How long the events of an answer may be silent, in milliseconds.
#[derive(Clone)]
pub(crate) struct Heartbeat(Arc<AtomicU64>);

impl Heartbeat {
    fn new() -> Heartbeat {
        Heartbeat(Arc::new(AtomicU64::new(HEARTBEAT.as_millis() as u64)))
    }

    /// Not for longer than this.
    pub(crate) fn at_most(&self, silence: Duration) {
        let silence = u64::try_from(silence.as_millis()).unwrap_or(u64::MAX).max(1);
        self.0.fetch_min(silence, Ordering::Relaxed);
    }

    fn next(&self) -> Instant {
        Instant::now() + Duration::from_millis(self.0.load(Ordering::Relaxed))
    }
}

/// One event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// What a client says it has seen last when it connects again.
    pub id: Option<String>,
    /// Its kind; a browser calls it `message` if there is none.
    pub event: Option<String>,
    /// The text; it may have several lines.
    pub data: String,
}

impl Event {
    /// An event of this text.
    pub fn new(data: impl Into<String>) -> Event {
        Event { data: data.into(), ..Event::default() }
    }

    /// The same with this name.
    #[must_use]
    pub fn id(mut self, id: impl Into<String>) -> Event {
        self.id = Some(id.into());
        self
    }

    /// As it is written. Ends of lines in names would be read as the end of the field, and are left out.
    pub fn encode(&self) -> Bytes {
        let mut out = String::with_capacity(self.data.len() + 32);
        let clean = |text: &str| text.replace(['\r', '\n', '\0'], "");
        if let Some(id) = &self.id {
            let _ = writeln!(out, "id: {}", clean(id));
        }
        if let Some(event) = &self.event {
            let _ = writeln!(out, "event: {}", clean(event));
        }
        // A lone carriage return ends a line, too.
        for line in self.data.replace("\r\n", "\n").split(['\n', '\r']) {
            let _ = writeln!(out, "data: {line}");
        }
        out.push('\n');
        out.into()
    }
}

/// An answer of a stream's events, each of which goes on at once, with a comment whenever nothing came for 15 s, or for a third of
/// [`Timeouts::idle`](crate::Timeouts::idle) where that is less.
///
/// # Backpressure
/// The stream is asked for the next event when the client has taken the one before.
pub fn events<S>(events: S) -> Response<Body>
where
    S: Stream<Item = Result<Event, BodyError>> + Send + 'static,
{
    let heartbeat = Heartbeat::new();
    let stream = Events { events: Box::pin(events), heartbeat: heartbeat.clone(), silence: None };
    let mut response = Response::new(Body::from_stream(stream));
    response.extensions_mut().insert(heartbeat);
    for (name, value) in [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-cache, no-transform"),
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// What the client has seen last.
pub fn last_event_id(headers: &HeaderMap) -> Option<&str> {
    headers.get(LAST_EVENT_ID).and_then(|id| id.to_str().ok()).filter(|id| !id.is_empty())
}

struct Events<S> {
    events: Pin<Box<S>>,
    heartbeat: Heartbeat,
    /// Until the next comment; from when somebody asks for the first event.
    silence: Option<Pin<Box<Sleep>>>,
}

impl<S: Stream<Item = Result<Event, BodyError>>> Stream for Events<S> {
    type Item = Result<Bytes, BodyError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Events { events, heartbeat, silence } = &mut *self;
        let silence = silence.get_or_insert_with(|| Box::pin(sleep_until(heartbeat.next())));
        let next = match events.as_mut().poll_next(cx) {
            Poll::Ready(next) => next.map(|event| event.map(|event| event.encode())),
            Poll::Pending => match silence.as_mut().poll(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(()) => Some(Ok(Bytes::from_static(b":\n\n"))),
            },
        };
        silence.as_mut().reset(heartbeat.next());
        Poll::Ready(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_written_so_that_it_is_read_as_one() {
        let event =
            Event { id: Some("7\n8".into()), event: Some("tick".into()), data: "a\nb\r\nc\rd".into() };
        let expected = "id: 78\nevent: tick\ndata: a\ndata: b\ndata: c\ndata: d\n\n";
        assert_eq!(event.encode(), expected.as_bytes());
        assert_eq!(Event::new("").encode(), "data: \n\n".as_bytes());
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_stream_is_kept_alive_by_comments() {
        let pipe = millstream_flow::Pipe::channel(1);
        let (mut sender, pipe) = pipe;
        let mut body = events(millstream_flow::Pipe::map(pipe, |event: Event| Ok(event))).into_body();
        let started = Instant::now();
        assert_eq!(body.next().await.expect("a comment").expect("bytes"), ":\n\n");
        assert_eq!(started.elapsed(), HEARTBEAT);
        sender.send(Event::new("x")).await.expect("taken");
        assert_eq!(body.next().await.expect("an event").expect("bytes"), "data: x\n\n");
        drop(sender);
        assert!(body.next().await.is_none());
    }
}
