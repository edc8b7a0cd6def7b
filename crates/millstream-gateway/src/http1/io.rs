//! The two sides of a connection. A buffer is leased when bytes are there to be read, and returned when they are written: a
//! connection that waits holds none.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncWrite, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{Instant, sleep_until};
use tokio_util::io::poll_read_buf;

use super::head::end_of_head;
use super::watch::{Waits, Watch};
use crate::chunk::Chunk;
use crate::duplex::{Duplex, Prefixed};
use crate::head::HeadError;
use crate::meter::Meter;
use crate::pool::BufferPool;
use crate::settings::HalfClose;

/// How long a peer may take nothing before it counts as slow: then what is left for it moves to a smaller buffer.
pub(crate) const SLOW: Duration = Duration::from_millis(10);

/// Both sides of a connection that nobody has split yet.
pub(crate) enum Connection {
    Tcp(TcpStream),
    Other(Box<dyn Duplex>),
}

impl Connection {
    pub(crate) fn split(self, pool: &BufferPool) -> (ReadSide, WriteSide) {
        let (read, write) = match self {
            Connection::Tcp(stream) => {
                let (read, write) = stream.into_split();
                (ReadIo::Tcp(read), WriteIo::Tcp(write))
            }
            Connection::Other(stream) => {
                let (read, write) = tokio::io::split(stream);
                (ReadIo::Other(read), WriteIo::Other(write))
            }
        };
        (
            ReadSide { io: read, carry: None, begun: Vec::new(), pool: pool.clone() },
            WriteSide { io: write, pending: Vec::new(), pool: pool.clone() },
        )
    }
}

enum ReadIo {
    Tcp(OwnedReadHalf),
    Other(ReadHalf<Box<dyn Duplex>>),
}

enum WriteIo {
    Tcp(OwnedWriteHalf),
    Other(WriteHalf<Box<dyn Duplex>>),
}

/// The side that bytes come from.
pub(crate) struct ReadSide {
    io: ReadIo,
    /// Read and not yet used: what followed a head, or a message.
    carry: Option<Chunk>,
    /// The beginning of a head.
    begun: Vec<u8>,
    pool: BufferPool,
}

/// How a connection does that nobody uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Idles {
    Well,
    Closed,
    /// Something was sent that nobody asked for.
    Unasked,
}

/// Why no head was read.
#[derive(Debug)]
pub(crate) enum NoHead {
    /// The peer closed before it began one.
    Closed,
    /// It closed in the middle of one, or the connection failed.
    Broken,
    Refused(HeadError),
}

impl ReadSide {
    /// The next bytes, at most `want` of them from the connection; `None` at its end.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub(crate) async fn fill(&mut self, want: usize) -> io::Result<Option<Chunk>> {
        poll_fn(|cx| self.poll_fill(cx, want)).await
    }

    pub(crate) fn poll_fill(&mut self, cx: &mut Context<'_>, want: usize) -> Poll<io::Result<Option<Chunk>>> {
        if let Some(carry) = self.carry.take() {
            return Poll::Ready(Ok(Some(carry)));
        }
        if let ReadIo::Tcp(io) = &self.io {
            // What waits needs no lease.
            std::task::ready!(AsRef::<TcpStream>::as_ref(io).poll_read_ready(cx))?;
        }
        let mut lease = self.pool.lease_or_smaller(want);
        let mut spare = lease.spare(want);
        let read = match &mut self.io {
            ReadIo::Tcp(io) => poll_read_buf(Pin::new(io), cx, &mut spare),
            ReadIo::Other(io) => poll_read_buf(Pin::new(io), cx, &mut spare),
        };
        // While nothing is there the lease ends here.
        match std::task::ready!(read)? {
            0 => Poll::Ready(Ok(None)),
            read => Poll::Ready(Ok(Some(Chunk::Leased { lease, start: 0, end: read }))),
        }
    }

    /// Waits until there is something to read; `false` at the end of the connection.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub(crate) async fn ready(&mut self, want: usize) -> io::Result<bool> {
        let chunk = self.fill(want).await?;
        self.carry = chunk;
        Ok(self.carry.is_some())
    }

    /// Whether bytes were read that nobody has used.
    pub(crate) fn has_carry(&self) -> bool {
        self.carry.is_some()
    }

    /// Moves what was read and not used out of its lease.
    pub(crate) fn let_go(&mut self) {
        self.carry = self.carry.take().map(|carry| Chunk::Shared(Bytes::copy_from_slice(&carry)));
    }

    /// Puts bytes back that belong to the next message.
    pub(crate) fn keep(&mut self, chunk: Chunk) {
        debug_assert!(self.carry.is_none(), "what is put back was taken just before");
        if !chunk.is_empty() {
            self.carry = Some(chunk);
        }
    }

    /// Resolves when the client is gone. What it sends meanwhile is kept, up to one buffer; after that it waits in the system.
    pub(crate) async fn gone(&mut self, half_close: HalfClose) {
        if half_close == HalfClose::Cancel
            && self.carry.is_none()
            && !matches!(self.ready(SMALL).await, Ok(true))
        {
            return;
        }
        // Few clients send more before they were answered.
        Box::pin(self.watch(half_close).gone()).await;
    }

    /// A look at the connection that reads nothing; only one of plain TCP can be looked at.
    pub(crate) fn watch(&self, half_close: HalfClose) -> Watch<'_> {
        let socket = match &self.io {
            ReadIo::Tcp(io) => Some(io),
            ReadIo::Other(_) => None,
        };
        Watch { socket, half_close }
    }

    /// How an idle connection does.
    pub(crate) fn idles(&mut self) -> Idles {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        match self.poll_fill(&mut cx, SMALL) {
            Poll::Pending => Idles::Well,
            Poll::Ready(Ok(Some(_))) => Idles::Unasked,
            Poll::Ready(Ok(None) | Err(_)) => Idles::Closed,
        }
    }

    /// The next head, with its empty line; at most `max` bytes.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub(crate) async fn head(&mut self, max: usize) -> Result<Bytes, NoHead> {
        loop {
            let mut chunk = match self.fill(SMALL).await {
                Ok(Some(chunk)) => chunk,
                Ok(None) if self.begun.is_empty() => return Err(NoHead::Closed),
                Ok(None) | Err(_) => return Err(NoHead::Broken),
            };
            if self.begun.is_empty() && chunk.starts_with(b"\r\n") {
                // An empty line before a head is a relic that is passed over (RFC 9112, 2.2).
                chunk.advance(2);
            }
            // Nearly all heads come whole. They are copied without what follows, which may be a whole body.
            let seen = self.begun.len();
            if seen > 0 {
                self.begun.extend_from_slice(&chunk);
            }
            let read = if seen > 0 { &self.begun[..] } else { &chunk };
            let (end, length) = (end_of_head(read, seen).map_err(NoHead::Refused)?, read.len());
            if end.unwrap_or(length) > max {
                return Err(NoHead::Refused(HeadError::TooLarge));
            }
            let Some(end) = end else {
                if seen == 0 {
                    self.begun.extend_from_slice(&chunk);
                }
                continue;
            };
            let head = Bytes::copy_from_slice(&read[..end]);
            self.begun = Vec::new();
            chunk.advance(end - seen);
            self.keep(chunk);
            return Ok(head);
        }
    }

    /// A copy of bytes in a lease of their own, if one is large enough.
    pub(crate) fn copied(&self, bytes: &[u8]) -> Chunk {
        if bytes.is_empty() {
            return Chunk::Shared(Bytes::new());
        }
        let mut lease = self.pool.lease_or_smaller(bytes.len());
        if lease.room() < bytes.len() {
            return Chunk::Shared(Bytes::copy_from_slice(bytes));
        }
        lease.extend(bytes);
        Chunk::Leased { end: bytes.len(), lease, start: 0 }
    }
}

/// What is read before it is known how much there will be: heads, and the beginnings of bodies.
pub(crate) const SMALL: usize = 16 << 10;

/// The side that bytes go to.
pub(crate) struct WriteSide {
    io: WriteIo,
    /// Small things that go with what is written next.
    pub(crate) pending: Vec<u8>,
    pool: BufferPool,
}

impl WriteSide {
    /// Writes what is pending.
    pub(crate) async fn flush(&mut self, idle: Duration) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        self.send(b"", Chunk::Shared(Bytes::new()), b"", None, &Waits::of(idle)).await.map(|_| ())
    }

    /// Writes what is pending, then `prefix`, `chunk` and `suffix`, in as few calls as the connection takes. True if the peer was
    /// slow to take it.
    ///
    /// # Errors
    /// The connection's, and what [`Waits::during`] says when it takes nothing for long. Nothing is pending then.
    pub(crate) async fn send(
        &mut self,
        prefix: &[u8],
        mut chunk: Chunk,
        suffix: &[u8],
        mut meter: Option<&mut Meter>,
        waits: &Waits<'_>,
    ) -> io::Result<bool> {
        let mut slow = false;
        // What of pending, prefix, chunk and suffix is written.
        let mut written = 0;
        let before = self.pending.len() + prefix.len();
        while written < before + chunk.len() + suffix.len() {
            let parts = [&self.pending[..], prefix, &chunk, suffix];
            let now = poll_fn(|cx| Poll::Ready(poll_write(&mut self.io, cx, &parts, written))).await;
            if let Poll::Ready(sent) = now {
                written += self.or_forget(sent)?;
                continue;
            }
            let since = Instant::now();
            if let Some(meter) = meter.as_deref_mut() {
                meter.blocks(since);
            }
            let mut alarm = pin!(sleep_until(since + SLOW));
            let soon = poll_fn(|cx| match poll_write(&mut self.io, cx, &parts, written) {
                Poll::Ready(sent) => Poll::Ready(Some(sent)),
                Poll::Pending => alarm.as_mut().poll(cx).map(|()| None),
            });
            let sent = match soon.await {
                Some(sent) => sent,
                None => {
                    slow = true;
                    let inside = (before..before + chunk.len()).contains(&written);
                    if inside && chunk.shrink(written - before, &self.pool) {
                        written = before;
                    }
                    let parts = [&self.pending[..], prefix, &chunk, suffix];
                    waits.during(alarm, |cx| poll_write(&mut self.io, cx, &parts, written)).await
                }
            };
            if let Some(meter) = meter.as_deref_mut() {
                meter.blocked(since.elapsed());
            }
            written += self.or_forget(sent)?;
        }
        if self.pending.capacity() > SMALL {
            self.pending = Vec::new();
        } else {
            self.pending.clear();
        }
        let WriteIo::Other(io) = &mut self.io else { return Ok(slow) };
        // TLS takes some chunks as a whole, and keeps what it has encrypted until it is told to send it: so it is here that a slow
        // peer shows, and nobody needs what was encrypted any more.
        drop(chunk);
        let mut flush = |cx: &mut Context<'_>| Pin::new(&mut *io).poll_flush(cx);
        if let Poll::Ready(flushed) = poll_fn(|cx| Poll::Ready(flush(cx))).await {
            return flushed.map(|()| slow);
        }
        let since = Instant::now();
        if let Some(meter) = meter.as_deref_mut() {
            meter.blocks(since);
        }
        let flushed = waits.during(pin!(sleep_until(since)), flush).await;
        let waited = since.elapsed();
        if let Some(meter) = meter {
            meter.blocked(waited);
        }
        flushed.map(|()| slow || waited > SLOW)
    }

    /// Where that failed nothing is pending any more: some of it was written, and must not be again.
    fn or_forget(&mut self, sent: io::Result<usize>) -> io::Result<usize> {
        if sent.is_err() {
            self.pending = Vec::new();
        }
        sent
    }

    /// Says that nothing more will be written.
    pub(crate) async fn shutdown(&mut self) -> io::Result<()> {
        poll_fn(|cx| match &mut self.io {
            WriteIo::Tcp(io) => Pin::new(io).poll_shutdown(cx),
            WriteIo::Other(io) => Pin::new(io).poll_shutdown(cx),
        })
        .await
    }

    /// Closes the connection by a reset, which no reader can take for an orderly end.
    pub(crate) fn reset(self) {
        if let WriteIo::Tcp(io) = self.io {
            // Where that fails the peer sees an end in the middle, which the framing tells it.
            let _ = io.as_ref().set_zero_linger();
            // Dropping it would shut it down in order.
            io.forget();
        }
    }
}

/// Writes of `parts` what is left after the first `written` bytes, as much as the connection takes at once.
fn poll_write(
    io: &mut WriteIo,
    cx: &mut Context<'_>,
    parts: &[&[u8]; 4],
    written: usize,
) -> Poll<io::Result<usize>> {
    let mut slices = [IoSlice::new(&[]); 4];
    let count = rest(parts, written, &mut slices);
    let sent = match io {
        WriteIo::Tcp(io) => Pin::new(io).poll_write_vectored(cx, &slices[..count]),
        WriteIo::Other(io) => Pin::new(io).poll_write_vectored(cx, &slices[..count]),
    };
    match sent {
        Poll::Ready(Ok(0)) => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
        sent => sent,
    }
}

/// What of `parts` is left after the first `written` bytes; returns how many slices.
fn rest<'a>(parts: &[&'a [u8]; 4], mut written: usize, slices: &mut [IoSlice<'a>; 4]) -> usize {
    let mut count = 0;
    for part in parts {
        if written >= part.len() {
            written -= part.len();
            continue;
        }
        slices[count] = IoSlice::new(&part[written..]);
        written = 0;
        count += 1;
    }
    count
}

/// Puts both sides of a connection together again, with what was read of it and not used in front.
pub(crate) fn unsplit(read: ReadSide, write: WriteSide, before: Bytes) -> Box<dyn Duplex> {
    let stream: Box<dyn Duplex> = match (read.io, write.io) {
        (ReadIo::Tcp(read), WriteIo::Tcp(write)) => {
            Box::new(read.reunite(write).expect("both are sides of one connection"))
        }
        (ReadIo::Other(read), WriteIo::Other(write)) => read.unsplit(write),
        _ => unreachable!("both are sides of one connection"),
    };
    let mut first = before.to_vec();
    if let Some(carry) = read.carry {
        first.extend_from_slice(&carry);
    }
    Box::new(Prefixed::new(first.into(), stream))
}
