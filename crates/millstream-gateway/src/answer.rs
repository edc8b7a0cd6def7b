//! Where answers come from: the wire, or a future in this process.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use http::header::{self, HeaderValue};
use http::{Method, Response, StatusCode};
use http_body::Body as _;

use crate::body::Body;
use crate::client::AnswerHead;
use crate::head::Framing;
use crate::headers;
use crate::http1;
use crate::http1::decoder::Decoder;
use crate::http1::io::{NoHead, ReadSide};
use crate::pump::Source;

/// Where an answer comes from.
pub(crate) enum Answer<'u> {
    Wire { read: &'u mut ReadSide, method: Method },
    Frames(Pin<Box<dyn Future<Output = Result<Response<Body>, NoAnswer>> + Send + 'u>>),
}

/// Why there is no answer.
pub(crate) enum NoAnswer {
    /// The connection, or the request's stream, has ended.
    Closed,
    /// The connection takes no more requests, and has not taken this one.
    Unsent,
    Invalid(String),
}

impl<'u> Answer<'u> {
    /// The next head, and whether the connection may be used again after its body.
    pub(crate) async fn head(&mut self, max: usize) -> Result<(AnswerHead, bool), NoAnswer> {
        match self {
            Answer::Wire { read, method } => {
                let bytes = read.head(max).await.map_err(|none| match none {
                    NoHead::Closed | NoHead::Broken => NoAnswer::Closed,
                    NoHead::Refused(error) => {
                        NoAnswer::Invalid(format!("the upstream's answer is invalid: {error}"))
                    }
                })?;
                let head = http1::head::response(&bytes, method).map_err(|error| {
                    NoAnswer::Invalid(format!("the upstream's answer is invalid: {error}"))
                })?;
                let mut answered =
                    AnswerHead { status: head.status, headers: head.headers, framing: head.framing };
                if head.status == StatusCode::SWITCHING_PROTOCOLS {
                    let protocol = headers::upgrade(&answered.headers);
                    headers::remove_hop_by_hop(&mut answered.headers);
                    if let Some(protocol) = protocol {
                        answered.headers.insert(header::UPGRADE, protocol);
                        answered.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
                    }
                } else {
                    let instead = answered.headers.get(header::UPGRADE).cloned();
                    headers::remove_hop_by_hop(&mut answered.headers);
                    // What is required is the answer (RFC 9110, 15.5.22).
                    if let Some(instead) = instead.filter(|_| head.status == StatusCode::UPGRADE_REQUIRED) {
                        answered.headers.insert(header::UPGRADE, instead);
                    }
                }
                Ok((answered, head.keep_alive))
            }
            Answer::Frames(future) => {
                let response = future.await?;
                let (parts, body) = response.into_parts();
                if parts.status.is_informational() && parts.status != StatusCode::SWITCHING_PROTOCOLS {
                    return Err(NoAnswer::Invalid(format!("{} is no final answer", parts.status)));
                }
                let bodiless = matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
                    || parts.status.is_informational();
                let framing = match body.size_hint().exact() {
                    _ if bodiless || body.is_end_stream() => Framing::None,
                    Some(length) => Framing::Length(length),
                    None => Framing::Chunked,
                };
                let mut answered = AnswerHead { status: parts.status, headers: parts.headers, framing };
                if parts.status != StatusCode::SWITCHING_PROTOCOLS {
                    headers::remove_hop_by_hop(&mut answered.headers);
                }
                *self = Answer::Frames(Box::pin(async move { Ok(Response::new(body)) }));
                Ok((answered, true))
            }
        }
    }

    /// The body after the head.
    pub(crate) fn body(self, framing: Framing) -> Source<'u> {
        match self {
            Answer::Wire { read, .. } => Source::Wire { read, decoder: Decoder::new(framing) },
            Answer::Frames(future) if framing == Framing::None => {
                drop(future);
                Source::Frames(Body::empty())
            }
            Answer::Frames(mut future) => {
                let mut cx = Context::from_waker(Waker::noop());
                match future.as_mut().poll(&mut cx) {
                    Poll::Ready(Ok(response)) => Source::Frames(response.into_body()),
                    _ => unreachable!("the head has put a ready answer here"),
                }
            }
        }
    }
}
