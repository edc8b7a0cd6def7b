//! Reading a stream's log.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use millstream_message::{BrokerError, BrokerErrorKind, StreamItem, StreamSource};

use super::LoggedStream;
use super::record::{decode, is_before};
use crate::clock::system_time;
use crate::log::{Commit, Position, ReadError, Reader};
use crate::record::APPENDED;
use crate::streams::deleted;

/// Bytes of records after which a chunk is handed on, however few messages it has: whoever reads holds no more than this and one record.
const CHUNK_BYTES: usize = 256 << 10;

/// Reads a stream's log, and waits at its end.
pub(super) struct LogReader {
    stream: Arc<LoggedStream>,
    reader: Reader,
    /// The offset wanted next.
    at: u64,
    /// Nothing appended before this time is wanted.
    not_before: u64,
    ready: VecDeque<StreamItem>,
    /// Waits until what was appended is durable, and so readable.
    flushing: Option<Commit>,
    /// The last poll came to the end of the log.
    at_end: bool,
}

impl LogReader {
    /// Reads from a record on what is at this offset or behind, and was appended at this time or later.
    pub(super) fn new(stream: Arc<LoggedStream>, reader: Reader, at: u64, not_before: u64) -> LogReader {
        LogReader { stream, reader, at, not_before, ready: VecDeque::new(), flushing: None, at_end: false }
    }

    /// Reads records into `ready` until there are `max` messages of them, or the bytes of a chunk. False if it is the end of what
    /// is durable that leaves it empty.
    fn fill(&mut self, max: usize) -> Result<bool, BrokerError> {
        let mut bytes = 0;
        loop {
            match self.read() {
                Ok(Some(more)) => bytes += more,
                Ok(None) => return Ok(!self.ready.is_empty()),
                // What was read before goes first; the next call comes here again.
                Err(_) if !self.ready.is_empty() => return Ok(true),
                Err(error) => return Err(error),
            }
            if self.ready.len() >= max || bytes >= CHUNK_BYTES {
                return Ok(true);
            }
        }
    }

    /// Reads the next record into `ready`: its bytes, or `None` at the end of what is durable.
    fn read(&mut self) -> Result<Option<usize>, BrokerError> {
        let record = match self.reader.next() {
            Ok(None) => return Ok(None),
            // Damage shows as a gap in the offsets.
            Err(ReadError::Damaged(range)) => {
                self.stream.damage.lock().note(range);
                return Ok(Some(0));
            }
            Err(ReadError::Gone(_) | ReadError::NotDurable(_)) => return Ok(Some(0)),
            Err(error) => {
                let text = format!("stream `{}` cannot be read now", self.stream.spec.name);
                return Err(BrokerError::with_source(BrokerErrorKind::Storage, text, error));
            }
            Ok(Some(record)) => record,
        };
        if record.kind != APPENDED || record.time < self.not_before {
            return Ok(Some(record.body.len()));
        }
        if is_before(record.body, self.at) {
            return Ok(Some(record.body.len()));
        }
        let (time, position) = (system_time(record.time), record.position);
        let (at, ready) = (&mut self.at, &mut self.ready);
        let body = Bytes::copy_from_slice(record.body);
        // A record that passed its checksum and makes no sense is a gap too.
        let made_sense = decode(&body, |offset, message| {
            if offset >= *at {
                *at = offset + 1;
                ready.push_back(StreamItem { offset, time, message });
            }
        });
        if made_sense.is_err() {
            self.stream.damage.lock().note(position..Position::new(position.get() + 1));
        }
        Ok(Some(body.len()))
    }
}

impl StreamSource for LogReader {
    fn poll_chunk(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
        into: &mut Vec<StreamItem>,
    ) -> Poll<Result<usize, BrokerError>> {
        self.at_end = false;
        loop {
            if !self.ready.is_empty() {
                let count = self.ready.len().min(max);
                into.extend(self.ready.drain(..count));
                return Poll::Ready(Ok(count));
            }
            if self.stream.index.lock().deleted {
                return Poll::Ready(Err(deleted(&self.stream.spec.name)));
            }
            // Before reading, so that what is appended after the read is not taken for seen.
            let Ok(log) = self.stream.log() else { return Poll::Ready(Ok(0)) };
            let (next, end, durable) = (self.stream.index.lock().next, log.end(), log.durable());
            if self.fill(max)? {
                continue;
            }
            if durable < end {
                let commit = self.flushing.get_or_insert_with(|| log.flush());
                if Pin::new(commit).poll(cx).is_pending() {
                    return Poll::Pending;
                }
                self.flushing = None;
                continue;
            }
            self.flushing = None;
            let mut index = self.stream.index.lock();
            if index.next == next && log.end() == end && !index.deleted {
                if !index.wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
                    index.wakers.push(cx.waker().clone());
                }
                drop(index);
                self.at_end = true;
                return Poll::Pending;
            }
        }
    }

    fn is_at_end(&self) -> bool {
        self.at_end
    }
}
