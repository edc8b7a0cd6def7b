//! One body on its way outside of any gateway: by the same loop, through the same buffers, with the same counts.

mod sides;

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::head::Framing;
use crate::http1::decoder::Decoder;
use crate::http1::io::Connection;
use crate::meter::{Direction, Meter, StreamOutcome, StreamReport, Sums};
use crate::pool::{BufferPool, PoolSettings};
use crate::pump::{Broken, Rules, Sink, Source, pump};
use crate::settings::{CHUNK_MAX, CHUNK_MIN, Settings};

use sides::{Destination, Origin};
pub use sides::{StreamSink, StreamSource};

/// Moves a body from its source to its sink in constant memory, counted as a request's: towards a server.
///
/// Await what it returns, with or without options:
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use millstream_gateway::{Body, stream_request};
///
/// let report = stream_request(Body::from("an upload"), tokio::io::sink()).await?;
/// assert_eq!((report.bytes, report.chunks), (9, 1));
///
/// let upload = std::io::Cursor::new(vec![0; 100_000]); // or a file, a connection, whatever can be read
/// let streaming = stream_request(upload, tokio::io::sink()).chunk(4096).idle(Duration::from_secs(5));
/// let progress = streaming.progress();
/// let report = streaming.await?;
/// assert_eq!((report.bytes, report.chunks, progress.bytes()), (100_000, 25, 100_000));
/// # Ok(()) }
/// ```
///
/// # Backpressure
/// While the sink takes nothing the source is not read: one chunk at most lies between them, in a buffer of the pool.
///
/// # Errors
/// A [`StreamError`], with what was moved until then. The sink is then dropped without having been shut down: after the whole body it
/// is flushed and shut down. Who reads from [`StreamSink::body`], or from TLS, sees by that that the body is not whole; from a TCP
/// connection, a pipe or a `duplex` he sees the same end either way, and needs a length or a framing to know.
///
/// # Cancel safety
/// Dropping the future cancels: source and sink are dropped, buffers return, and [`StreamProgress::outcome`] says
/// [`Cancelled`](StreamOutcome::Cancelled).
pub fn stream_request(from: impl Into<StreamSource>, to: impl Into<StreamSink>) -> Streaming {
    let chunk = Settings::default().request_chunk;
    Streaming::new(Direction::Request, from.into(), to.into(), chunk)
}

/// The same, counted as a response's: towards a client. With [`StreamSink::body`] it becomes the body of an answer.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use millstream_gateway::{StreamSink, stream_response};
///
/// let (sink, body) = StreamSink::body();
/// let streaming = tokio::spawn(stream_response(&b"an answer"[..], sink).into_future());
/// assert_eq!(body.collect(100).await?, "an answer"); // a handler would return it
/// assert_eq!(streaming.await??.bytes, 9);
/// # Ok(()) }
/// ```
pub fn stream_response(from: impl Into<StreamSource>, to: impl Into<StreamSink>) -> Streaming {
    let chunk = Settings::default().response_chunk;
    Streaming::new(Direction::Response, from.into(), to.into(), chunk)
}

/// A stream that is about to be moved, and its options; it moves when it is awaited. Its times count from when it was made, and one
/// that is dropped before it was awaited was cancelled. See [`stream_request`].
#[must_use = "a stream moves only while it is awaited"]
pub struct Streaming {
    from: Origin,
    to: Destination,
    rules: Rules,
    total: Option<Duration>,
    pool: Option<BufferPool>,
    meter: Meter,
    progress: StreamProgress,
}

impl Streaming {
    fn new(direction: Direction, from: StreamSource, to: StreamSink, chunk: usize) -> Streaming {
        let sums = Arc::new(Sums::default());
        let meter = Meter::start(direction, &sums, None);
        let progress = StreamProgress { started: meter.started(), sums };
        let rules =
            Rules { chunk, bytes_max: u64::MAX, idle: Settings::default().timeouts.idle, client: None };
        Streaming { from: from.0, to: to.0, rules, total: None, pool: None, meter, progress }
    }

    /// The most bytes of one read; 512 KiB if nothing else is said. Until 4 MiB have gone, and again after the sink took nothing for
    /// 10 ms, it is at most 16 KiB. The frames of a body go on as they are, whatever this says.
    ///
    /// # Panics
    /// Unless it lies from [`CHUNK_MIN`] to [`CHUNK_MAX`].
    pub fn chunk(mut self, bytes: usize) -> Streaming {
        assert!((CHUNK_MIN..=CHUNK_MAX).contains(&bytes), "a chunk of {bytes} bytes");
        self.rules.chunk = bytes;
        self
    }

    /// Whose buffers it uses; those of [`BufferPool::global`] if nothing else is said.
    pub fn pool(mut self, pool: &BufferPool) -> Streaming {
        self.pool = Some(pool.clone());
        self
    }

    /// The most bytes of the body, beyond which it ends with [`TooLarge`](StreamOutcome::TooLarge); without it as many as come.
    pub fn bytes_max(mut self, bytes: u64) -> Streaming {
        self.rules.bytes_max = bytes;
        self
    }

    /// How long nothing may move, 60 s if nothing else is said; then it ends with [`TimedOut`](StreamOutcome::TimedOut).
    pub fn idle(mut self, time: Duration) -> Streaming {
        self.rules.idle = time;
        self
    }

    /// How long all of it may take from when it is awaited, without which it may as long as it moves; then it ends with
    /// [`TimedOut`](StreamOutcome::TimedOut).
    pub fn total(mut self, time: Duration) -> Streaming {
        self.total = Some(time);
        self
    }

    /// What is counted of it while it moves, and after.
    pub fn progress(&self) -> StreamProgress {
        self.progress.clone()
    }

    async fn run(self) -> Result<StreamReport, StreamError> {
        let Streaming { from, to, rules, total, pool, mut meter, .. } = self;
        let pool = pool.unwrap_or_else(|| BufferPool::global().clone());
        let moving = moved(from, to, &pool, &mut meter, rules);
        let result = match total {
            None => moving.await.map_err(Cause::Broken),
            Some(total) => match timeout(total, moving).await {
                Ok(moved) => moved.map_err(Cause::Broken),
                Err(_) => Err(Cause::Total(total)),
            },
        };
        let outcome = match &result {
            Ok(()) => StreamOutcome::Complete,
            Err(Cause::Broken(broken)) => broken.outcome(),
            Err(Cause::Total(_)) => StreamOutcome::TimedOut,
        };
        let report = meter.end(outcome);
        match result {
            Ok(()) => Ok(report),
            Err(cause) => Err(StreamError { report: Box::new(report), cause }),
        }
    }
}

impl IntoFuture for Streaming {
    type Output = Result<StreamReport, StreamError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

async fn moved(
    from: Origin,
    to: Destination,
    pool: &BufferPool,
    meter: &mut Meter,
    rules: Rules,
) -> Result<(), Broken> {
    let (mut read, mut write);
    let mut source = match from {
        Origin::Body(body) => Source::Frames(body),
        Origin::Reader(reader) => {
            read = Connection::Other(reader).split(pool).0;
            Source::Wire { read: &mut read, decoder: Decoder::new(Framing::UntilClose) }
        }
    };
    let mut sink = match to {
        Destination::Body(sender) => Sink::Frames(sender),
        Destination::Writer(writer) => {
            write = Connection::Other(writer).split(pool).1;
            Sink::Wire { write: &mut write, framing: Framing::UntilClose }
        }
    };
    pump(&mut source, &mut sink, meter, rules).await?;
    if let Sink::Wire { write, .. } = &mut sink {
        let shut = timeout(rules.idle, write.shutdown()).await;
        shut.map_err(|_| Broken::SinkIdle(rules.idle))?.map_err(Broken::Sink)?;
    }
    Ok(())
}

impl BufferPool {
    /// The pool of streams that were given none, with the settings by default. Nobody [trims](BufferPool::trim) it but you.
    pub fn global() -> &'static BufferPool {
        static GLOBAL: LazyLock<BufferPool> = LazyLock::new(|| BufferPool::new(PoolSettings::default()));
        &GLOBAL
    }
}

/// Why a stream is not whole, and what was moved of it.
#[derive(Debug, thiserror::Error)]
#[error("the stream broke off after {} bytes", .report.bytes)]
pub struct StreamError {
    report: Box<StreamReport>,
    #[source]
    cause: Cause,
}

#[derive(Debug, thiserror::Error)]
enum Cause {
    #[error(transparent)]
    Broken(Broken),
    #[error("it was not done after {0:?}")]
    Total(Duration),
}

impl StreamError {
    /// What was moved. Its outcome says which side broke it off, or which bound.
    pub fn report(&self) -> &StreamReport {
        &self.report
    }
}

/// What is counted of one stream, at any time and from anywhere. Reading it costs the stream nothing.
#[derive(Clone, Debug)]
pub struct StreamProgress {
    started: Instant,
    sums: Arc<Sums>,
}

impl StreamProgress {
    /// How it ended; `None` before that.
    pub fn outcome(&self) -> Option<StreamOutcome> {
        let ended = |at: &StreamOutcome| self.sums.ended[*at as usize].load(Ordering::Acquire) > 0;
        StreamOutcome::WORDS.into_iter().map(|(outcome, _)| outcome).find(ended)
    }

    /// Bytes read to be handed on; the last chunk is on its way.
    pub fn bytes(&self) -> u64 {
        self.sums.bytes.load(Ordering::Relaxed)
    }

    /// Chunks read to be handed on.
    pub fn chunks(&self) -> u64 {
        self.sums.chunks.load(Ordering::Relaxed)
    }

    /// Bytes of a chunk on average; 0 without chunks.
    pub fn chunk_bytes_average(&self) -> f64 {
        rate(self.bytes(), self.chunks() as f64)
    }

    /// From the start to the end, or to now.
    pub fn duration(&self) -> Duration {
        match self.outcome() {
            Some(_) => Duration::from_nanos(self.sums.duration_nanos.load(Ordering::Relaxed)),
            None => self.started.elapsed(),
        }
    }

    /// From the start to the first byte, if there was one.
    pub fn first_byte(&self) -> Option<Duration> {
        let came = self.sums.first_bytes.load(Ordering::Acquire) > 0;
        came.then(|| Duration::from_nanos(self.sums.first_byte_nanos.load(Ordering::Relaxed)))
    }

    /// Bytes a second over that duration; 0 if it is 0.
    pub fn bytes_per_second(&self) -> f64 {
        rate(self.bytes(), self.duration().as_secs_f64())
    }

    /// How often the sink was not ready to take more.
    pub fn backpressure_events(&self) -> u64 {
        self.sums.blocked_events.load(Ordering::Relaxed)
    }

    /// How long it took until it was, in all, without a wait that has not ended.
    pub fn backpressure_time(&self) -> Duration {
        Duration::from_nanos(self.sums.blocked_nanos.load(Ordering::Relaxed))
    }

    /// How long the source gave nothing, in all, without a wait that has not ended.
    pub fn source_wait(&self) -> Duration {
        Duration::from_nanos(self.sums.source_wait_nanos.load(Ordering::Relaxed))
    }
}

fn rate(amount: u64, of: f64) -> f64 {
    if of > 0.0 { amount as f64 / of } else { 0.0 }
}

impl fmt::Debug for Streaming {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Streaming").field("rules", &self.rules).finish_non_exhaustive()
    }
}
