//! Bodies as flows, and flows as bodies: where the gateway joins the engine.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use futures_core::Stream;
use http_body::Body as HttpBody;
use millstream_flow::flows::FromStream;
use millstream_flow::{Flow, Pipe};
use serde::de::DeserializeOwned;

use crate::body::{Body, BodyError, split};

/// The chunks of a body, as they come. An error is the last item.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use millstream_gateway::{Body, flow};
///
/// let body = Body::from("one\ntwo\nthree");
/// let (lines, _) = flow::lines(body, 1024).map(|line| line.unwrap().len()).collect().await.unwrap();
/// assert_eq!(lines, [3, 3, 5]);
/// # }
/// ```
///
/// # Backpressure
/// A flow that is full does not ask for more, and the client's connection is not read.
pub fn chunks(body: Body) -> Pipe<FromStream<Chunks>> {
    Pipe::from_stream(Chunks(body)).named("chunks")
}

/// The lines of a body, without their ends; one that is longer than `max` bytes is an error, and so is a body that is broken off.
/// An error is the last item.
pub fn lines(body: Body, max: usize) -> Pipe<FromStream<Lines>> {
    let lines = Lines { chunks: Chunks(body), begun: BytesMut::new(), searched: 0, max, ended: false };
    Pipe::from_stream(lines).named("lines")
}

/// The values of a body that has one JSON value on each line; empty lines are passed over. A line that is no such value is an error,
/// and the next line comes after it.
pub fn records<T: DeserializeOwned>(
    body: Body,
    max: usize,
) -> Pipe<impl Flow<Item = Result<T, BodyError>, Token = ()>> {
    lines(body, max)
        .filter(|line| !line.as_ref().is_ok_and(|line| line.trim_ascii().is_empty()))
        .map(|line| serde_json::from_slice(&line?).map_err(BodyError::new))
        .named("records")
}

impl Body {
    /// A body of a flow's items, each a chunk that goes on at once.
    ///
    /// # Backpressure
    /// The flow is driven by the client's reading, one item at a time.
    pub fn from_flow<F>(pipe: Pipe<F>) -> Body
    where
        F: Flow<Token = (), Item: Into<Bytes>> + Send + Unpin + 'static,
        Pipe<F>: Stream<Item = F::Item> + Send,
    {
        Body::from_stream(Items(pipe))
    }
}

/// A stream of a body's chunks; see [`chunks`].
#[derive(Debug)]
pub struct Chunks(Body);

impl Stream for Chunks {
    type Item = Result<Bytes, BodyError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            match ready!(Pin::new(&mut self.0).poll_frame(cx)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => {
                    self.0 = Body::empty();
                    return Poll::Ready(Some(Err(error)));
                }
                Some(Ok(frame)) => {
                    if let Ok(bytes) = split(frame)
                        && !bytes.is_empty()
                    {
                        return Poll::Ready(Some(Ok(bytes)));
                    }
                }
            }
        }
    }
}

/// A stream of a body's lines; see [`lines`].
#[derive(Debug)]
pub struct Lines {
    chunks: Chunks,
    begun: BytesMut,
    /// How much of that has no end of a line.
    searched: usize,
    max: usize,
    ended: bool,
}

impl Lines {
    fn fail(&mut self, error: BodyError) -> Poll<Option<Result<Bytes, BodyError>>> {
        self.ended = true;
        self.begun.clear();
        self.searched = 0;
        self.chunks.0 = Body::empty();
        Poll::Ready(Some(Err(error)))
    }
}

impl Stream for Lines {
    type Item = Result<Bytes, BodyError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            let end = this.begun[this.searched..].iter().position(|byte| *byte == b'\n');
            let end = end.map(|end| this.searched + end);
            if end.unwrap_or(this.begun.len()) > this.max {
                return this.fail(BodyError::new(format!("a line is longer than {} bytes", this.max)));
            }
            if let Some(end) = end {
                let mut line = this.begun.split_to(end + 1);
                this.searched = 0;
                line.truncate(line.len() - if line.ends_with(b"\r\n") { 2 } else { 1 });
                return Poll::Ready(Some(Ok(line.freeze())));
            }
            if this.ended {
                let last = std::mem::take(&mut this.begun);
                this.searched = 0;
                return Poll::Ready((!last.is_empty()).then(|| Ok(last.freeze())));
            }
            this.searched = this.begun.len();
            match ready!(Pin::new(&mut this.chunks).poll_next(cx)) {
                Some(Ok(chunk)) => this.begun.extend_from_slice(&chunk),
                Some(Err(error)) => return this.fail(error),
                None => this.ended = true,
            }
        }
    }
}

/// The items of a flow as the chunks of a body.
struct Items<P>(P);

impl<P: Stream<Item: Into<Bytes>> + Unpin> Stream for Items<P> {
    type Item = Result<Bytes, BodyError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.0).poll_next(cx).map(|item| item.map(|item| Ok(item.into())))
    }
}
