//! Append-only streams, read by offset.

use std::fmt;
use std::future::poll_fn;
use std::num::NonZeroU64;
use std::ops::Range;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::broker::Broker;
use crate::error::{BrokerError, BrokerErrorKind};
use crate::message::Message;

/// A stream: messages stay after they were read, until retention removes the oldest. Every reader has a place of its
/// own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamSpec {
    /// Its name, not empty, at most 255 bytes.
    pub name: String,
    /// Keep about this many bytes: the oldest are removed by whole segments, so somewhat more is kept, never less.
    #[serde(default)]
    pub max_bytes: Option<NonZeroU64>,
    /// Keep messages for about this long, by whole segments: never shorter.
    #[serde(default)]
    pub max_age: Option<Duration>,
}

impl StreamSpec {
    /// A stream that keeps everything.
    pub fn new(name: impl Into<String>) -> StreamSpec {
        StreamSpec { name: name.into(), max_bytes: None, max_age: None }
    }

    /// Keeps about this many bytes. Zero is read as one.
    #[must_use]
    pub fn max_bytes(mut self, bytes: u64) -> StreamSpec {
        self.max_bytes = Some(NonZeroU64::new(bytes).unwrap_or(NonZeroU64::MIN));
        self
    }

    /// Keeps messages for about this long.
    #[must_use]
    pub fn max_age(mut self, age: Duration) -> StreamSpec {
        self.max_age = Some(age);
        self
    }
}

/// Where to begin reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamFrom {
    /// The oldest message that is kept.
    First,
    /// After the newest: only what is appended from now on.
    Next,
    /// The newest message.
    Last,
    /// This offset, or the oldest that is kept when that is later.
    Offset(u64),
    /// The first message appended at or after this time.
    Timestamp(SystemTime),
}

/// One message of a stream.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamItem {
    /// Its place: 0, 1, 2 … in the order of appending, for ever. Where the broker's
    /// [`Features`](crate::Features::dense_offsets) say so, its own records take places, too.
    pub offset: u64,
    /// When it was appended, to the millisecond.
    pub time: SystemTime,
    /// The message.
    pub message: Message,
}

/// What a stream holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StreamStats {
    /// Offset of the oldest message that is kept.
    pub first: u64,
    /// Offset that the next message will get; at least, without [`dense_offsets`](crate::Features::dense_offsets).
    pub next: u64,
    /// Bytes kept; zero where the broker does not tell.
    pub bytes: u64,
}

/// The offsets of what a stream holds now for one who begins to read at `from`: a reader that has come to their end has
/// read everything. Empty if that is nothing.
///
/// # Errors
/// When the stream is not there or cannot be read.
pub async fn stream_extent(
    broker: &dyn Broker,
    stream: &str,
    from: StreamFrom,
) -> Result<Range<u64>, BrokerError> {
    let StreamStats { first, next, .. } = broker.stream_stats(stream).await?;
    let begin = match from {
        StreamFrom::First => first,
        StreamFrom::Next => next,
        StreamFrom::Offset(offset) => offset.clamp(first, next),
        StreamFrom::Last | StreamFrom::Timestamp(_) if first == next => next,
        StreamFrom::Last => next - 1,
        StreamFrom::Timestamp(time) => {
            let last = broker.read(stream, StreamFrom::Last).await?.next_chunk(1).await?;
            if last.last().is_some_and(|last| last.time >= time) { first } else { next }
        }
    };
    Ok(begin..next)
}

/// What a backend does for a [`StreamReader`].
pub trait StreamSource: Send {
    /// Appends up to `max` items to `into` and returns how many; waits at the end of the stream for more. Zero means
    /// that the broker is closed.
    fn poll_chunk(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
        into: &mut Vec<StreamItem>,
    ) -> Poll<Result<usize, BrokerError>>;

    /// Whether the last poll waits because nothing is left to be read of what was appended before; `false` where that is not
    /// known. It tells offsets that lead nowhere, as of an append that failed or of damaged data, from those of messages that
    /// are still on their way.
    fn is_at_end(&self) -> bool {
        false
    }
}

/// Reads a stream forward and waits at its end for more.
///
/// # Ordering
/// Offsets only grow. A gap means that retention was faster than the reader, or that stored data was damaged; both
/// show in the offsets.
pub struct StreamReader(Box<dyn StreamSource>);

impl StreamReader {
    /// A reader over this backend.
    pub fn new(source: Box<dyn StreamSource>) -> StreamReader {
        StreamReader(source)
    }

    /// Reads these offsets, as of [`stream_extent`], and no further: then the chunks are empty. Offsets that lead nowhere are not
    /// waited for where the backend [knows](StreamSource::is_at_end) that nothing comes.
    ///
    /// # Errors
    /// Reading fails as before, and with `Unavailable` when the broker is closed before the last of them was read.
    #[must_use]
    pub fn until(self, wanted: Range<u64>) -> StreamReader {
        StreamReader::new(Box::new(Until { reader: self, wanted }))
    }

    /// Up to `max` (at least one) items; waits at the end for more. Empty means that the broker is closed.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// When the stream was deleted or cannot be read.
    pub async fn next_chunk(&mut self, max: usize) -> Result<Vec<StreamItem>, BrokerError> {
        let mut chunk = Vec::new();
        poll_fn(|cx| self.poll_chunk(cx, max, &mut chunk)).await?;
        Ok(chunk)
    }

    /// The same by polling; returns how many were appended to `into`.
    pub fn poll_chunk(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
        into: &mut Vec<StreamItem>,
    ) -> Poll<Result<usize, BrokerError>> {
        self.0.poll_chunk(cx, max.max(1), into)
    }
}

impl fmt::Debug for StreamReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StreamReader")
    }
}

/// A reader that ends.
struct Until {
    reader: StreamReader,
    /// What is still wanted.
    wanted: Range<u64>,
}

impl StreamSource for Until {
    fn poll_chunk(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
        into: &mut Vec<StreamItem>,
    ) -> Poll<Result<usize, BrokerError>> {
        if self.wanted.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let (before, end) = (into.len(), self.wanted.end);
        match self.reader.poll_chunk(cx, max, into) {
            Poll::Pending if self.reader.0.is_at_end() => {
                self.wanted.start = end;
                Poll::Ready(Ok(0))
            }
            Poll::Ready(Ok(0)) => {
                let text = format!("the broker was closed before the stream was read up to offset {end}");
                Poll::Ready(Err(BrokerError::new(BrokerErrorKind::Unavailable, text)))
            }
            Poll::Ready(Ok(_)) => {
                self.wanted.start = into.last().map_or(end, |last| last.offset.saturating_add(1));
                let wanted = into[before..].partition_point(|item| item.offset < end);
                into.truncate(before + wanted);
                Poll::Ready(Ok(wanted))
            }
            other => other,
        }
    }

    fn is_at_end(&self) -> bool {
        self.wanted.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives these chunks of offsets, then waits.
    struct Script {
        chunks: Vec<Vec<u64>>,
        at_end: bool,
        closed: bool,
    }

    impl StreamSource for Script {
        fn poll_chunk(
            &mut self,
            _: &mut Context<'_>,
            _: usize,
            into: &mut Vec<StreamItem>,
        ) -> Poll<Result<usize, BrokerError>> {
            if self.chunks.is_empty() {
                return if self.closed { Poll::Ready(Ok(0)) } else { Poll::Pending };
            }
            let chunk = self.chunks.remove(0);
            let item = |offset: &u64| StreamItem {
                offset: *offset,
                time: SystemTime::UNIX_EPOCH,
                message: Message::new("x"),
            };
            into.extend(chunk.iter().map(item));
            Poll::Ready(Ok(chunk.len()))
        }

        fn is_at_end(&self) -> bool {
            self.at_end
        }
    }

    /// The offsets that are read before the end or an error; `None` if it waits then.
    fn read(
        chunks: &[&[u64]],
        at_end: bool,
        closed: bool,
    ) -> (Vec<u64>, Option<Result<(), BrokerErrorKind>>) {
        let chunks = chunks.iter().map(|chunk| chunk.to_vec()).collect();
        let mut reader = StreamReader::new(Box::new(Script { chunks, at_end, closed })).until(2..5);
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut items = Vec::new();
        let ended = loop {
            match reader.poll_chunk(&mut cx, 9, &mut items) {
                Poll::Pending => break None,
                Poll::Ready(Err(error)) => break Some(Err(error.kind())),
                Poll::Ready(Ok(0)) => break Some(Ok(())),
                Poll::Ready(Ok(_)) => {}
            }
        };
        (items.iter().map(|item| item.offset).collect(), ended)
    }

    #[test]
    fn a_reader_that_ends_gives_what_is_wanted_and_nothing_behind() {
        assert_eq!(read(&[&[2, 3], &[4]], false, false), (vec![2, 3, 4], Some(Ok(()))));
        assert_eq!(read(&[&[2, 3, 4, 5, 6]], false, false), (vec![2, 3, 4], Some(Ok(()))));
        assert_eq!(
            read(&[&[2], &[7]], false, false),
            (vec![2], Some(Ok(()))),
            "the rest is not there any more"
        );
    }

    #[test]
    fn what_is_on_its_way_is_waited_for_and_what_leads_nowhere_is_not() {
        assert_eq!(read(&[&[2, 3]], false, false), (vec![2, 3], None));
        assert_eq!(read(&[&[2, 3]], true, false), (vec![2, 3], Some(Ok(()))));
        assert_eq!(read(&[&[2, 3]], false, true), (vec![2, 3], Some(Err(BrokerErrorKind::Unavailable))));
    }
}
