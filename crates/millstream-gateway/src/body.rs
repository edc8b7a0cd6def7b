//! Bodies as handlers see them, and for what joins the gateway to flows.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;

use crate::pieces::{self, Pieces, Taken, Taker, To};

/// A body of known or unknown length, whose bytes come when they are asked for.
///
/// It is an [`http_body::Body`] of [`Bytes`]; [`next`](Body::next) is the short way to its bytes.
///
/// # Backpressure
/// Whoever does not ask holds back the peer: at most one chunk is read ahead.
#[derive(Default)]
pub struct Body(Kind);

#[derive(Default)]
enum Kind {
    #[default]
    Empty,
    Whole(Bytes),
    Channel(Taken),
    Other(UnsyncBoxBody<Bytes, BodyError>),
}

/// Why a body ended before its end.
#[derive(Debug, thiserror::Error)]
#[error("the body ended before its end: {0}")]
pub struct BodyError(Box<dyn std::error::Error + Send + Sync>);

impl BodyError {
    /// A body cannot go on, for this reason.
    pub fn new(reason: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        BodyError(reason.into())
    }
}

impl Body {
    /// No bytes.
    pub fn empty() -> Self {
        Body::default()
    }

    /// A body of any other kind.
    pub fn new<B>(body: B) -> Self
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: std::error::Error + Send + Sync + 'static,
    {
        Body(Kind::Other(body.map_err(BodyError::new).boxed_unsync()))
    }

    /// A body of a stream's chunks; an error breaks it off, so that the peer sees that it is not whole.
    pub fn from_stream<S>(stream: S) -> Self
    where
        S: futures_core::Stream<Item = Result<Bytes, BodyError>> + Send + 'static,
    {
        Body(Kind::Other(StreamBody(Box::pin(stream)).boxed_unsync()))
    }

    /// A body of what is sent, and the sending end.
    pub(crate) fn channel(size: SizeHint, to: To) -> (Pieces, Body) {
        let (pieces, taken) = pieces::channel(size, to);
        (pieces, Body(Kind::Channel(taken)))
    }

    /// What of an answer to a client is taken.
    pub(crate) fn taker(&self) -> Option<Arc<Taker>> {
        match &self.0 {
            Kind::Channel(taken) => taken.taker(),
            _ => None,
        }
    }

    /// Nothing is to be read ahead for it before it is asked for the first time: who waits for something else holds no buffer meanwhile.
    pub(crate) fn read_on_demand(&self) {
        if let Kind::Channel(taken) = &self.0 {
            taken.read_on_demand();
        }
    }

    /// The next bytes; `None` at the end. Trailers are passed over.
    ///
    /// # Errors
    /// If the body was broken off.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Option<Result<Bytes, BodyError>> {
        loop {
            match self.frame().await? {
                Ok(frame) => match frame.into_data() {
                    Ok(data) if data.is_empty() => {}
                    Ok(data) => return Some(Ok(data)),
                    Err(_trailers) => {}
                },
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// All bytes, if there are at most `max`.
    ///
    /// # Errors
    /// If there are more, or the body was broken off.
    pub async fn collect(mut self, max: usize) -> Result<Bytes, BodyError> {
        let mut all = Vec::new();
        while let Some(bytes) = self.next().await {
            let bytes = bytes?;
            if all.len() + bytes.len() > max {
                return Err(BodyError::new(format!("it has more than {max} bytes")));
            }
            all.extend_from_slice(&bytes);
        }
        Ok(all.into())
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        if bytes.is_empty() { Body::empty() } else { Body(Kind::Whole(bytes)) }
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Bytes::from(text).into()
    }
}

impl From<&'static str> for Body {
    fn from(text: &'static str) -> Self {
        Bytes::from_static(text.as_bytes()).into()
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let kind = &mut self.get_mut().0;
        match kind {
            Kind::Empty => Poll::Ready(None),
            Kind::Whole(bytes) => {
                let bytes = std::mem::take(bytes);
                *kind = Kind::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Kind::Channel(channel) => channel.poll_frame(cx),
            Kind::Other(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Empty => true,
            Kind::Whole(_) => false,
            Kind::Channel(channel) => channel.is_end_stream(),
            Kind::Other(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Channel(channel) => channel.size(),
            Kind::Other(body) => body.size_hint(),
        }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Body").field("size", &self.size_hint()).finish_non_exhaustive()
    }
}

struct StreamBody<S>(Pin<Box<S>>);

impl<S: futures_core::Stream<Item = Result<Bytes, BodyError>>> HttpBody for StreamBody<S> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.0.as_mut().poll_next(cx).map(|next| next.map(|bytes| bytes.map(Frame::data)))
    }
}

/// Trailers of a frame, if it is one of trailers.
pub(crate) fn split(frame: Frame<Bytes>) -> Result<Bytes, HeaderMap> {
    frame.into_data().map_err(|frame| frame.into_trailers().unwrap_or_default())
}
