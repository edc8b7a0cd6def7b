//! Moving a body from where it comes to where it goes, whatever either side is.

pub(crate) mod frames;

use std::borrow::Cow;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::Body as _;
use tokio::time::{Instant, sleep_until, timeout};

use crate::body::{Body, BodyError, split};
use crate::chunk::Chunk;
use crate::compress::Encoder;
use crate::head::{self, Framing};
use crate::http1::decoder::{Decoder, FramingError};
use crate::http1::head::write_headers;
use crate::http1::io::{ReadSide, SMALL, WriteSide};
use crate::http1::watch::{ClientGone, Waits, Watch};
use crate::meter::{Meter, StreamOutcome};
use crate::pieces::Pieces;
use crate::settings::HalfClose;

/// So many bytes are moved in small chunks before a stream gets large ones: whoever is slow shows it before that, when the
/// system's socket buffers are full.
const PROBATION: u64 = 4 << 20;

/// Where a body comes from.
pub(crate) enum Source<'a> {
    Wire { read: &'a mut ReadSide, decoder: Decoder },
    Frames(Body),
    Compressed(Box<Source<'a>>, Encoder),
}

/// Where a body goes.
pub(crate) enum Sink<'a> {
    Wire { write: &'a mut WriteSide, framing: Framing },
    Frames(Pieces),
}

/// What a stream may do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// The most bytes of one read.
    pub(crate) chunk: usize,
    /// The most bytes of the body.
    pub(crate) bytes_max: u64,
    /// How long nothing may move.
    pub(crate) idle: Duration,
    /// Of a request: when its client counts as gone, so that nobody waits any more for who takes it.
    pub(crate) client: Option<HalfClose>,
}

/// Why a body is not whole.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error("the side it comes from failed: {0}")]
    Source(#[source] io::Error),
    #[error("the side it comes from closed in the middle")]
    Short,
    #[error("its framing is wrong: {0}")]
    Framing(#[from] FramingError),
    #[error("{0}")]
    Body(#[source] BodyError),
    #[error("the side it goes to failed: {0}")]
    Sink(#[source] io::Error),
    #[error("the side it goes to is gone")]
    Gone,
    #[error("its client is gone")]
    ClientGone,
    #[error("it has more than {0} bytes")]
    TooLarge(u64),
    #[error("it has another length than was said before")]
    Length,
    #[error("nothing came for {0:?}")]
    SourceIdle(Duration),
    #[error("nothing was taken for {0:?}")]
    SinkIdle(Duration),
}

impl Broken {
    pub(crate) fn outcome(&self) -> StreamOutcome {
        match self {
            Broken::Source(_)
            | Broken::Short
            | Broken::ClientGone
            | Broken::Framing(_)
            | Broken::Body(_)
            | Broken::Length => StreamOutcome::SourceFailed,
            Broken::Sink(_) | Broken::Gone => StreamOutcome::SinkFailed,
            Broken::TooLarge(_) => StreamOutcome::TooLarge,
            Broken::SourceIdle(_) | Broken::SinkIdle(_) => StreamOutcome::TimedOut,
        }
    }

    fn sink(error: io::Error, idle: Duration) -> Broken {
        match error.kind() {
            io::ErrorKind::TimedOut => Broken::SinkIdle(idle),
            _ if error.get_ref().is_some_and(|inner| inner.is::<ClientGone>()) => Broken::ClientGone,
            _ => Broken::Sink(error),
        }
    }
}

/// A part of a body.
struct Part {
    data: Chunk,
    /// Nothing follows.
    last: bool,
    trailers: Option<HeaderMap>,
}

/// Moves the whole body.
///
/// # Cancel safety
/// A dropped future leaves the body broken: neither side can be used for another message.
pub(crate) async fn pump(
    from: &mut Source<'_>,
    to: &mut Sink<'_>,
    meter: &mut Meter,
    rules: Rules,
) -> Result<(), Broken> {
    let mut pace = Pace { chunk: rules.chunk, since_slow: 0 };
    if let Sink::Frames(pieces) = to
        && pieces.is_early()
    {
        Box::pin(demanded(from, pieces, meter, rules)).await?;
    }
    loop {
        if !from.has_more_now() {
            to.flush(rules.idle).await?;
        }
        let part = match came(from.next(pace.size()), meter, rules.idle).await {
            Some(part) => part?,
            None => return Err(Broken::SourceIdle(rules.idle)),
        };
        let bytes = part.data.len();
        if bytes > 0 {
            meter.chunk(bytes);
        }
        if meter.bytes() > rules.bytes_max {
            return Err(Broken::TooLarge(rules.bytes_max));
        }
        let last = part.last;
        let watch = rules.client.map_or(Watch::NOBODY, |half_close| from.watch(half_close));
        let waits = Waits { idle: rules.idle, client: watch };
        let slow = to.send(part, meter, &waits).await?;
        pace.moved(bytes, slow);
        if last {
            return Ok(());
        }
    }
}

/// Waits for a receiver that wants nothing yet, holding no lease. One that does not ask for long gets what comes all the same: what is
/// short is there when it asks, and what is not is given up like any that nobody takes.
async fn demanded(
    from: &mut Source<'_>,
    pieces: &Pieces,
    meter: &mut Meter,
    rules: Rules,
) -> Result<(), Broken> {
    if let Source::Wire { read, .. } = from {
        read.let_go();
    }
    let watch = rules.client.map_or(Watch::NOBODY, |half_close| from.watch(half_close));
    let waits = Waits { idle: rules.idle, client: watch };
    let since = Instant::now();
    meter.blocks(since);
    let waited = waits.during(pin!(sleep_until(since)), |cx| pieces.poll_demanded(cx).map(Ok)).await;
    meter.blocked(since.elapsed());
    match waited {
        Err(error) if error.kind() == io::ErrorKind::TimedOut => Ok(()),
        waited => waited.map_err(|error| Broken::sink(error, rules.idle)),
    }
}

/// What a future gives within this time. The clock is read only where it has to be waited for.
async fn came<F: Future>(next: F, meter: &mut Meter, idle: Duration) -> Option<F::Output> {
    let mut next = pin!(next);
    if let Poll::Ready(came) = poll_fn(|cx| Poll::Ready(next.as_mut().poll(cx))).await {
        return Some(came);
    }
    let since = Instant::now();
    meter.waits(since);
    let came = timeout(idle, next).await;
    meter.waited(since.elapsed());
    came.ok()
}

/// How much to read at a time.
struct Pace {
    chunk: usize,
    since_slow: u64,
}

impl Pace {
    fn size(&self) -> usize {
        if self.since_slow < PROBATION { self.chunk.min(SMALL) } else { self.chunk }
    }

    fn moved(&mut self, bytes: usize, slow: bool) {
        self.since_slow = if slow { 0 } else { self.since_slow.saturating_add(bytes as u64) };
    }
}

impl Source<'_> {
    /// Whether the next part is there without waiting, as far as is known.
    fn has_more_now(&self) -> bool {
        match self {
            Source::Wire { read, decoder } => decoder.is_done() || read.has_carry(),
            Source::Frames(body) => body.is_end_stream(),
            Source::Compressed(source, _) => source.has_more_now(),
        }
    }

    fn watch(&self, half_close: HalfClose) -> Watch<'_> {
        match self {
            Source::Wire { read, .. } => read.watch(half_close),
            Source::Frames(_) => Watch::NOBODY,
            Source::Compressed(source, _) => source.watch(half_close),
        }
    }

    async fn next(&mut self, want: usize) -> Result<Part, Broken> {
        match self {
            Source::Wire { read, decoder } => next_of_wire(read, decoder, want).await,
            Source::Frames(body) => next_of_frames(body).await,
            Source::Compressed(source, encoder) => {
                let mut part = Box::pin(source.next(want)).await?;
                let encoded = encoder.encode(&part.data, part.last);
                part.data = Chunk::Shared(encoded.map_err(Broken::Source)?);
                Ok(part)
            }
        }
    }
}

async fn next_of_wire(read: &mut ReadSide, decoder: &mut Decoder, want: usize) -> Result<Part, Broken> {
    let nothing = || Chunk::Shared(Bytes::new());
    while !decoder.is_done() {
        let want = usize::try_from(decoder.wants()).map_or(want, |wants| wants.min(want));
        let Some(chunk) = read.fill(want).await.map_err(Broken::Source)? else {
            if decoder.may_end() {
                break;
            }
            return Err(Broken::Short);
        };
        let (data, rest) = decoded(decoder, chunk, read)?;
        read.keep(rest);
        if !data.is_empty() || decoder.is_done() {
            return Ok(Part { data, last: decoder.is_done(), trailers: decoder.trailers() });
        }
    }
    Ok(Part { data: nothing(), last: true, trailers: None })
}

/// The payload of what was read, and what of it belongs to the next message.
fn decoded(decoder: &mut Decoder, chunk: Chunk, read: &ReadSide) -> Result<(Chunk, Chunk), Broken> {
    match chunk {
        Chunk::Leased { mut lease, start, end } => {
            let found = decoder.decode(&mut lease[start..end])?;
            let (payload, after) = (found.payload, start + found.consumed);
            let rest = read.copied(&lease[after..end]);
            Ok((Chunk::Leased { lease, start: start + payload.start, end: start + payload.end }, rest))
        }
        Chunk::Shared(bytes) => {
            let mut bytes = bytes.to_vec();
            let found = decoder.decode(&mut bytes)?;
            let bytes = Bytes::from(bytes);
            Ok((Chunk::Shared(bytes.slice(found.payload)), Chunk::Shared(bytes.slice(found.consumed..))))
        }
    }
}

async fn next_of_frames(body: &mut Body) -> Result<Part, Broken> {
    let frame = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await;
    let nothing = Chunk::Shared(Bytes::new());
    Ok(match frame {
        None => Part { data: nothing, last: true, trailers: None },
        Some(frame) => match split(frame.map_err(Broken::Body)?) {
            Ok(data) => Part { last: body.is_end_stream(), data: Chunk::Shared(data), trailers: None },
            Err(trailers) => {
                let trailers = head::check_trailers(trailers).map_err(FramingError::Trailers)?;
                Part { data: nothing, last: true, trailers: Some(trailers) }
            }
        },
    })
}

impl Sink<'_> {
    async fn flush(&mut self, idle: Duration) -> Result<(), Broken> {
        match self {
            Sink::Wire { write, .. } => write.flush(idle).await.map_err(|error| Broken::sink(error, idle)),
            Sink::Frames(_) => Ok(()),
        }
    }

    /// Hands a part on; true if the receiver was slow.
    async fn send(&mut self, part: Part, meter: &mut Meter, waits: &Waits<'_>) -> Result<bool, Broken> {
        match self {
            Sink::Wire { write, framing } => send_wire(write, framing, part, meter, waits).await,
            Sink::Frames(pieces) => frames::send(pieces, part, meter, waits).await,
        }
    }
}

async fn send_wire(
    write: &mut WriteSide,
    framing: &mut Framing,
    part: Part,
    meter: &mut Meter,
    waits: &Waits<'_>,
) -> Result<bool, Broken> {
    let length = part.data.len();
    let sent = match framing {
        Framing::Chunked => {
            let (digits, prefix) = chunk_size(length);
            let suffix = chunk_end(length, part.last, part.trailers.as_ref());
            write.send(&digits[prefix..], part.data, &suffix, Some(meter), waits).await
        }
        Framing::Length(left) => {
            // A source may say one length in its head and send another; what was promised downstream is kept or broken.
            *left = left.checked_sub(length as u64).ok_or(Broken::Length)?;
            if part.last && *left > 0 {
                return Err(Broken::Length);
            }
            write.send(b"", part.data, b"", Some(meter), waits).await
        }
        Framing::UntilClose => write.send(b"", part.data, b"", Some(meter), waits).await,
        Framing::None if length > 0 => return Err(Broken::Length),
        Framing::None => write.send(b"", part.data, b"", Some(meter), waits).await,
    };
    sent.map_err(|error| Broken::sink(error, waits.idle))
}

/// What stands before the data of a chunk, if there is data: at the end of some bytes, and where it begins in them.
fn chunk_size(length: usize) -> ([u8; 18], usize) {
    let mut bytes = [0; 18];
    let mut at = bytes.len();
    if length > 0 {
        at -= 2;
        bytes[at..].copy_from_slice(b"\r\n");
        let mut left = length;
        while left > 0 {
            at -= 1;
            bytes[at] = b"0123456789abcdef"[left & 15];
            left >>= 4;
        }
    }
    (bytes, at)
}

/// What stands after it. Only trailers must be written for it.
fn chunk_end(length: usize, last: bool, trailers: Option<&HeaderMap>) -> Cow<'static, [u8]> {
    let end: &[u8] = match (length > 0, last) {
        (false, false) => b"",
        (true, false) => b"\r\n",
        (false, true) => b"0\r\n\r\n",
        (true, true) => b"\r\n0\r\n\r\n",
    };
    let Some(trailers) = trailers.filter(|_| last) else { return Cow::Borrowed(end) };
    // They stand before the empty line.
    let mut end = end[..end.len() - 2].to_vec();
    write_headers(&mut end, trailers);
    end.extend_from_slice(b"\r\n");
    Cow::Owned(end)
}
