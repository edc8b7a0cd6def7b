//! Where streams come from and go to.

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use http_body::SizeHint;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::body::Body;
use crate::duplex::Duplex;
use crate::pieces::{Pieces, To};

/// Where a stream comes from: a [`Body`], or whatever can be read.
pub struct StreamSource(pub(super) Origin);

pub(super) enum Origin {
    Reader(Box<dyn Duplex>),
    Body(Body),
}

impl From<Body> for StreamSource {
    fn from(body: Body) -> Self {
        StreamSource(Origin::Body(body))
    }
}

impl<R: AsyncRead + Send + Unpin + 'static> From<R> for StreamSource {
    fn from(reader: R) -> Self {
        StreamSource(Origin::Reader(Box::new(Reader(reader))))
    }
}

/// Where a stream goes: whatever can be written to, or a body that somebody else reads.
pub struct StreamSink(pub(super) Destination);

pub(super) enum Destination {
    Writer(Box<dyn Duplex>),
    Body(Pieces),
}

impl StreamSink {
    /// A body that brings what is streamed, and the sink that it comes through. A stream that breaks off, or is dropped, breaks the
    /// body off; who drops the body ends the stream with [`SinkFailed`](crate::StreamOutcome::SinkFailed). Trailers of a source that is a
    /// body go along; a writer is not given them.
    pub fn body() -> (StreamSink, Body) {
        let (sender, body) = Body::channel(SizeHint::default(), To::Handler);
        (StreamSink(Destination::Body(sender)), body)
    }
}

impl<W: AsyncWrite + Send + Unpin + 'static> From<W> for StreamSink {
    fn from(writer: W) -> Self {
        StreamSink(Destination::Writer(Box::new(Writer(writer))))
    }
}

/// A connection of which only the reading side is used.
struct Reader<R>(R);

impl<R: AsyncRead + Unpin> AsyncRead for Reader<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl<R: Unpin> AsyncWrite for Reader<R> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A connection of which only the writing side is used.
struct Writer<W>(W);

impl<W: Unpin> AsyncRead for Writer<W> {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Writer<W> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, slices)
    }
    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

impl fmt::Debug for StreamSource {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("StreamSource").finish_non_exhaustive()
    }
}

impl fmt::Debug for StreamSink {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("StreamSink").finish_non_exhaustive()
    }
}
