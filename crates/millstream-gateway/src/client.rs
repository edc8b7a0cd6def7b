//! The side of an exchange that a client sees: an answer's head, then a place for its body.

use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Response, StatusCode, Version};
use tokio::sync::oneshot;

use crate::asking::size_of;
use crate::body::Body;
use crate::chunk::Chunk;
use crate::head::{self, Framing};
use crate::http1::head::{write_headers, write_status_line};
use crate::http1::io::WriteSide;
use crate::http1::watch::Waits;
use crate::pieces::To;
use crate::pump::Sink;

/// Where an answer goes.
pub(crate) enum Client<'a> {
    Wire { write: &'a mut WriteSide, method: Method, version: Version, keep_alive: bool },
    Frames { respond: Option<oneshot::Sender<Response<Body>>>, method: Method },
}

/// The head of an answer, whoever gave it.
#[derive(Debug)]
pub(crate) struct AnswerHead {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) framing: Framing,
}

impl Client<'_> {
    /// Whether the connection may serve another request after this one.
    pub(crate) fn keeps_alive(&self) -> bool {
        matches!(self, Client::Wire { keep_alive: true, .. })
    }

    /// The connection will not serve another request.
    pub(crate) fn close(&mut self) {
        if let Client::Wire { keep_alive, .. } = self {
            *keep_alive = false;
        }
    }

    /// Sends an interim answer, such as 100 or 103, to clients that understand it.
    pub(crate) async fn interim(
        &mut self,
        status: StatusCode,
        headers: &HeaderMap,
        idle: Duration,
    ) -> std::io::Result<()> {
        let Client::Wire { write, version: Version::HTTP_11, .. } = self else { return Ok(()) };
        write_status_line(&mut write.pending, status);
        write_headers(&mut write.pending, headers);
        write.pending.extend_from_slice(b"\r\n");
        write.flush(idle).await
    }

    /// Begins the answer: its head goes with the first of its body. `None` if the client is gone.
    pub(crate) fn start(&mut self, mut head: AnswerHead) -> Option<Sink<'_>> {
        match self {
            Client::Wire { write, method, version, keep_alive } => {
                let framing = match head.framing {
                    Framing::Chunked | Framing::UntilClose if *version == Version::HTTP_10 => {
                        Framing::UntilClose
                    }
                    Framing::UntilClose => Framing::Chunked,
                    other => other,
                };
                *keep_alive &= framing != Framing::UntilClose;
                head.headers.remove(header::TRANSFER_ENCODING);
                match framing {
                    Framing::Chunked => {
                        head.headers.remove(header::CONTENT_LENGTH);
                        head.headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
                    }
                    Framing::UntilClose => drop(head.headers.remove(header::CONTENT_LENGTH)),
                    Framing::Length(length) if head::length(&head.headers) == Ok(Some(length)) => {}
                    Framing::Length(length) => {
                        drop(head.headers.insert(header::CONTENT_LENGTH, length.into()));
                    }
                    // The answers that never have a body say nothing of its length; those to HEAD and 304 keep what they say.
                    Framing::None
                        if head.status == StatusCode::NO_CONTENT || head.status.is_informational() =>
                    {
                        head.headers.remove(header::CONTENT_LENGTH);
                    }
                    Framing::None if *method != Method::HEAD && head.status != StatusCode::NOT_MODIFIED => {
                        head.headers.insert(header::CONTENT_LENGTH, 0.into());
                    }
                    Framing::None => {}
                }
                if head.status != StatusCode::SWITCHING_PROTOCOLS {
                    let upgrade = head.headers.contains_key(header::UPGRADE);
                    let connection = match (*keep_alive, *version) {
                        (false, _) if upgrade => Some("close, upgrade"),
                        (false, _) => Some("close"),
                        (true, Version::HTTP_10) => Some("keep-alive"),
                        (true, _) => upgrade.then_some("upgrade"),
                    };
                    if let Some(connection) = connection {
                        head.headers.insert(header::CONNECTION, HeaderValue::from_static(connection));
                    }
                }
                write_status_line(&mut write.pending, head.status);
                write_headers(&mut write.pending, &head.headers);
                write.pending.extend_from_slice(b"\r\n");
                Some(Sink::Wire { write, framing })
            }
            Client::Frames { respond, .. } => {
                if head.status == StatusCode::SWITCHING_PROTOCOLS {
                    // HTTP/2 has another word for it (RFC 8441, 5).
                    head.status = StatusCode::OK;
                    for name in [header::UPGRADE, header::CONNECTION, header::SEC_WEBSOCKET_ACCEPT] {
                        head.headers.remove(name);
                    }
                }
                head.headers.remove(header::UPGRADE);
                let (sender, body) = Body::channel(size_of(head.framing), To::Client);
                let body = if head.framing == Framing::None { Body::empty() } else { body };
                let mut response = Response::new(body);
                *response.status_mut() = head.status;
                *response.headers_mut() = head.headers;
                respond.take()?.send(response).ok()?;
                Some(Sink::Frames(sender))
            }
        }
    }

    /// Answers with a short text, as whole.
    pub(crate) async fn answer(
        &mut self,
        status: StatusCode,
        headers: HeaderMap,
        text: &str,
        idle: Duration,
    ) {
        let head = |headers: HeaderMap, framing| {
            let mut head = AnswerHead { status, headers, framing };
            head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
            head
        };
        match self {
            Client::Frames { respond, method } => {
                let Some(respond) = respond.take() else { return };
                let mut response = Response::new(text_to(method, text.to_owned()));
                *response.status_mut() = status;
                *response.headers_mut() = head(headers, Framing::None).headers;
                response.headers_mut().insert(header::CONTENT_LENGTH, text.len().into());
                // A client that is gone needs no answer.
                let _ = respond.send(response);
            }
            Client::Wire { method, .. } => {
                let bodiless = *method == Method::HEAD;
                let Some(Sink::Wire { write, .. }) =
                    self.start(head(headers, Framing::Length(text.len() as u64)))
                else {
                    return;
                };
                let body = Bytes::copy_from_slice(if bodiless { b"" } else { text.as_bytes() });
                // A client that is gone needs no answer.
                let _ = write.send(b"", Chunk::Shared(body), b"", None, &Waits::of(idle)).await;
            }
        }
    }
}

/// A short text as a body, for hyper, which sends whatever it is given: nothing to who asked for no more than a head.
pub(crate) fn text_to(method: &Method, text: String) -> Body {
    if *method == Method::HEAD { Body::empty() } else { text.into() }
}
