//! Streams on disk: a log of their own each, in `streams/NUMBER` of the broker's directory.

use std::collections::VecDeque;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use millstream_message::{
    BrokerError, BrokerErrorKind, Message, StreamFrom, StreamItem, StreamReader, StreamSource, StreamSpec,
    StreamStats,
};
use parking_lot::{Mutex, RwLock};

use crate::clock::{millis, system_time, unix_millis};
use crate::journal::storage;
use crate::log::{Commit, Disk, Entry, Log, LogError, LogSettings, Position, ReadError, Reader, Replay};
use crate::opened::broker_error;
use crate::record::APPENDED;
use crate::shared::closed;
use crate::streams::deleted;
use crate::wire::{Input, Malformed, put_bytes, put_properties, put_u64};

/// A record holds messages of about this many bytes, or one that is larger.
const RECORD_BYTES: usize = 256 << 10;

/// Between two marks of the index lie about this many bytes: what a reader may have to pass over at its start.
const MARK_BYTES: u64 = 64 << 10;

/// A stream on disk.
pub(crate) struct LoggedStream {
    pub(crate) id: u32,
    pub(crate) spec: StreamSpec,
    dir: PathBuf,
    disk: Arc<dyn Disk>,
    segment_bytes: u64,
    /// `None` once closed.
    log: RwLock<Option<Arc<Log>>>,
    /// Held while offsets are given out, so that they are in the order of the log.
    appending: tokio::sync::Mutex<()>,
    index: Mutex<Index>,
}

/// Where offsets are.
#[derive(Debug, Default)]
struct Index {
    marks: Vec<Mark>,
    /// The offset of the oldest message kept.
    first: u64,
    /// The offset the next message gets.
    next: u64,
    /// How far the last checkpoint reaches.
    covered: u64,
    wakers: Vec<Waker>,
    deleted: bool,
}

/// A record of which the place is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    offset: u64,
    position: u64,
    time: u64,
}

impl Index {
    fn see(&mut self, offset: u64, count: u64, position: u64, time: u64) {
        if self.marks.last().is_none_or(|last| position >= last.position + MARK_BYTES) {
            self.marks.push(Mark { offset, position, time });
        }
        self.next = self.next.max(offset.saturating_add(count));
    }

    /// The last mark before which `is_before` holds, or the first.
    fn before(&self, is_before: impl Fn(&Mark) -> bool) -> Option<Mark> {
        let at = self.marks.partition_point(is_before);
        self.marks.get(at.saturating_sub(1)).copied()
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_u64(&mut out, self.next);
        put_u64(&mut out, self.marks.len() as u64);
        for mark in &self.marks {
            put_u64(&mut out, mark.offset);
            put_u64(&mut out, mark.position);
            put_u64(&mut out, mark.time);
        }
        out
    }

    fn decode(payload: &[u8]) -> Result<Index, Malformed> {
        let mut input = Input(payload);
        let mut index = Index { next: input.u64()?, ..Index::default() };
        for _ in 0..input.count()? {
            index.marks.push(Mark { offset: input.u64()?, position: input.u64()?, time: input.u64()? });
        }
        Ok(index)
    }
}

/// Where a stream's log is.
pub(crate) fn directory(broker: &Path, id: u32) -> PathBuf {
    broker.join("streams").join(format!("{id:010}"))
}

/// The logs in a broker's directory: its own, and one for each stream, by their paths. A stream that was deleted
/// while its files could not be removed may be among them.
///
/// # Errors
///
/// If the directory cannot be listed.
pub fn logs(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut streams = Vec::new();
    match std::fs::read_dir(directory.join("streams")) {
        Ok(entries) => {
            for entry in entries {
                let path = entry?.path();
                // What a deleted stream leaves is a directory without files.
                if path.is_dir() && std::fs::read_dir(&path)?.next().is_some() {
                    streams.push(path);
                }
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    streams.sort();
    streams.insert(0, directory.to_owned());
    Ok(streams)
}

/// Removes a deleted stream's files. What cannot be removed is left: nothing reads it any more.
pub(crate) fn remove(disk: &dyn Disk, dir: &Path) {
    for name in disk.list(dir).unwrap_or_default() {
        let _ = disk.remove(&dir.join(name));
    }
}

impl LoggedStream {
    /// Opens or makes the stream's log. Blocks.
    pub(crate) fn open(
        broker: &Path,
        id: u32,
        spec: StreamSpec,
        settings: LogSettings,
        disk: Arc<dyn Disk>,
    ) -> Result<LoggedStream, BrokerError> {
        let dir = directory(broker, id);
        let mut index = Index::default();
        let segment_bytes = settings.segment_bytes;
        let (log, recovery) = Log::open(&dir, settings, disk.clone(), &mut |replay| match replay {
            // A checkpoint that passes its checksum and makes no sense is of another version: the records tell all.
            Replay::Checkpoint { payload, .. } => index = Index::decode(payload).unwrap_or_default(),
            Replay::Record(record) => {
                if let (APPENDED, Ok((offset, count))) = (record.kind, head(&mut Input(record.body))) {
                    index.see(offset, count, record.position.get(), record.time);
                }
            }
        })
        .map_err(broker_error)?;
        index.covered = recovery.checkpoint.map_or(0, |position| position.get());
        let stream = LoggedStream {
            id,
            spec,
            dir,
            disk,
            segment_bytes,
            log: RwLock::new(Some(Arc::new(log))),
            appending: tokio::sync::Mutex::new(()),
            index: Mutex::new(index),
        };
        stream.find_first(&*stream.log()?);
        Ok(stream)
    }

    fn log(&self) -> Result<Arc<Log>, BrokerError> {
        self.log.read().clone().ok_or_else(closed)
    }

    pub(crate) fn take(&self) -> Option<Arc<Log>> {
        self.log.write().take()
    }

    /// Appends durably; the offset of the first message.
    pub(crate) async fn append(&self, messages: Vec<Message>, now: u64) -> Result<u64, BrokerError> {
        let log = self.log()?;
        let mut commits = Vec::new();
        let first;
        {
            let _in_order = self.appending.lock().await;
            first = self.index.lock().next;
            let mut rest = &messages[..];
            while !rest.is_empty() {
                let (count, body) = encode(self.index.lock().next, rest);
                rest = &rest[count..];
                let entry = Entry { kind: APPENDED, time: now, head: &body, body: &[] };
                // Each record is accepted and counted in one step, so that a caller who goes away leaves no offset
                // given twice.
                let appended = log.append(entry).await.map_err(|error| {
                    BrokerError::with_source(
                        BrokerErrorKind::Storage,
                        "the stream's log does not take it",
                        error,
                    )
                })?;
                let mut index = self.index.lock();
                let offset = index.next;
                index.see(offset, count as u64, appended.position.get(), now);
                commits.push(appended.commit);
            }
        }
        self.wake();
        for commit in commits {
            commit.await.map_err(|error| storage(&error))?;
        }
        self.tend(&log, now).await?;
        Ok(first)
    }

    /// Lets go of what retention does not keep, and writes a checkpoint after every segment's worth.
    async fn tend(&self, log: &Arc<Log>, now: u64) -> Result<(), BrokerError> {
        let size = log.end().get() - log.start().get();
        let old = self.spec.max_age.is_some() || self.spec.max_bytes.is_some_and(|max| size > max.get());
        let due = log.end().get() >= self.index.lock().covered + self.segment_bytes;
        if old && let Some(keep) = self.keep_from(log, now) {
            log.release_before(keep);
            self.find_first(log);
        }
        if !due {
            return Ok(());
        }
        let (payload, covers) = {
            let _no_appends = self.appending.lock().await;
            let mut index = self.index.lock();
            let covers = log.end();
            index.covered = covers.get();
            (index.encode(), covers)
        };
        let log = log.clone();
        // A checkpoint that fails costs time at the next opening and nothing else.
        let _ = tokio::task::spawn_blocking(move || log.checkpoint(&payload, covers)).await;
        Ok(())
    }

    /// The first position that retention keeps, when a whole segment is before it.
    fn keep_from(&self, log: &Log, now: u64) -> Option<Position> {
        let (starts, end) = (log.segment_starts(), log.end().get());
        let oldest = self.spec.max_age.map(|age| now.saturating_sub(millis(age)));
        let mut keep = None;
        for &start in starts.iter().skip(1) {
            let enough = self.spec.max_bytes.is_some_and(|max| end - start.get() >= max.get());
            // Every record before a segment is at least as old as its first.
            let too_old =
                oldest.is_some_and(|oldest| log.read_at(start).is_ok_and(|record| record.time < oldest));
            if !enough && !too_old {
                break;
            }
            keep = Some(start);
        }
        keep
    }

    /// Learns which offset is the oldest that is kept.
    fn find_first(&self, log: &Log) {
        let start = log.start();
        let mut reader = log.reader(start);
        let found = loop {
            match reader.next() {
                Ok(Some(record)) => {
                    if let (APPENDED, Ok((offset, _))) = (record.kind, head(&mut Input(record.body))) {
                        break Some(offset);
                    }
                }
                Ok(None) | Err(ReadError::Io(..)) => break None,
                Err(_) => {}
            }
        };
        let mut index = self.index.lock();
        // A mark before the start leads to a place that readers pass over; the last such mark must stay.
        // What lies between the start and the first mark behind it is found from that one alone.
        let gone = index.marks.partition_point(|mark| mark.position <= start.get()).saturating_sub(1);
        index.marks.drain(..gone);
        index.first = found.unwrap_or(index.next);
    }

    pub(crate) fn stats(&self) -> Result<StreamStats, BrokerError> {
        let log = self.log()?;
        let index = self.index.lock();
        let bytes = log.end().get().saturating_sub(log.start().get());
        Ok(StreamStats { first: index.first, next: index.next, bytes })
    }

    pub(crate) fn delete(&self) {
        self.index.lock().deleted = true;
        drop(self.take());
        remove(&*self.disk, &self.dir);
        self.wake();
    }

    pub(crate) fn wake(&self) {
        let wakers = std::mem::take(&mut self.index.lock().wakers);
        wakers.into_iter().for_each(Waker::wake);
    }

    pub(crate) async fn close(&self) -> Result<(), BrokerError> {
        let Some(log) = self.take() else { return Ok(()) };
        let (payload, covers) = (self.index.lock().encode(), log.end());
        let task = tokio::task::spawn_blocking(move || {
            // A checkpoint that fails costs time at the next opening and nothing else.
            let _ = log.checkpoint(&payload, covers);
            Arc::into_inner(log).map_or(Ok(()), Log::close)
        });
        let closed = task.await.map_err(|error| {
            BrokerError::with_source(BrokerErrorKind::Storage, "closing the stream panicked", error)
        })?;
        closed.map_err(|error: LogError| {
            BrokerError::with_source(BrokerErrorKind::Storage, "the stream did not close cleanly", error)
        })
    }

    pub(crate) fn read(self: &Arc<Self>, from: StreamFrom) -> Result<StreamReader, BrokerError> {
        let log = self.log()?;
        let index = self.index.lock();
        let mut not_before = 0;
        let at = match from {
            StreamFrom::First => index.first,
            StreamFrom::Next => index.next,
            StreamFrom::Last => index.next.saturating_sub(1).max(index.first),
            StreamFrom::Offset(offset) => offset,
            StreamFrom::Timestamp(time) => {
                not_before = unix_millis(time);
                index.first
            }
        };
        let mark = if not_before > 0 {
            index.before(|mark| mark.time < not_before)
        } else {
            index.before(|mark| mark.offset <= at)
        };
        let start = mark.map_or(log.start(), |mark| Position::new(mark.position).max(log.start()));
        let reader = LogReader {
            stream: self.clone(),
            reader: log.reader(start),
            at,
            not_before,
            ready: VecDeque::new(),
            flushing: None,
            at_end: false,
        };
        Ok(StreamReader::new(Box::new(reader)))
    }
}

/// Encodes as many messages as one record takes, at least one.
fn encode(first: u64, messages: &[Message]) -> (usize, Vec<u8>) {
    let mut bytes = 0;
    let mut count = 0;
    while count < messages.len() && (count == 0 || bytes + messages[count].size() <= RECORD_BYTES) {
        bytes += messages[count].size();
        count += 1;
    }
    let mut out = Vec::with_capacity(bytes + 8 * count + 16);
    put_u64(&mut out, first);
    put_u64(&mut out, count as u64);
    for message in &messages[..count] {
        put_properties(&mut out, (!message.is_plain()).then(|| message.properties()));
        put_bytes(&mut out, message.body());
    }
    (count, out)
}

/// The first offset of a record and how many messages it has.
fn head(input: &mut Input<'_>) -> Result<(u64, u64), Malformed> {
    Ok((input.u64()?, input.count()? as u64))
}

/// Reads a record's messages; bodies share its bytes.
pub(crate) fn decode(record: &Bytes, mut each: impl FnMut(u64, Message)) -> Result<(), Malformed> {
    let mut input = Input(record);
    let (first, count) = head(&mut input)?;
    for offset in first..first.checked_add(count).ok_or(Malformed)? {
        let properties = input.properties()?;
        let body = record.slice_ref(input.bytes()?);
        each(
            offset,
            match properties {
                None => Message::new(body),
                Some(properties) => Message::from_parts(body, properties),
            },
        );
    }
    Ok(())
}

struct LogReader {
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
    /// Reads the next record into `ready`. False at the end of what is durable.
    fn fill(&mut self) -> Result<bool, BrokerError> {
        let record = match self.reader.next() {
            Ok(None) => return Ok(false),
            // Damage shows as a gap in the offsets.
            Err(ReadError::Damaged(_) | ReadError::Gone(_) | ReadError::NotDurable(_)) => return Ok(true),
            Err(error) => {
                let text = format!("stream `{}` cannot be read now", self.stream.spec.name);
                return Err(BrokerError::with_source(BrokerErrorKind::Storage, text, error));
            }
            Ok(Some(record)) => record,
        };
        if record.kind != APPENDED || record.time < self.not_before {
            return Ok(true);
        }
        let time = system_time(record.time);
        let (at, ready) = (&mut self.at, &mut self.ready);
        let body = Bytes::copy_from_slice(record.body);
        // A record that passed its checksum and makes no sense is a gap too.
        let _ = decode(&body, |offset, message| {
            if offset >= *at {
                *at = offset + 1;
                ready.push_back(StreamItem { offset, time, message });
            }
        });
        Ok(true)
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
            let (next, end) = (self.stream.index.lock().next, log.end());
            if self.fill()? {
                continue;
            }
            if log.durable() < end {
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Index::decode(&bytes);
            let mut count: u32 = 0;
            let _ = decode(&Bytes::from(bytes), |_, _| count += 1);
            prop_assert!(count < 200);
        }
    }

    #[test]
    fn messages_come_back_and_share_their_record() {
        let messages = [Message::new("a"), Message::new("b").with_header("h", 1_i64)];
        let (count, record) = encode(7, &messages);
        let record = Bytes::from(record);
        let mut read = Vec::new();
        decode(&record, |offset, message| read.push((offset, message))).expect("reads back");
        assert_eq!((count, read.len()), (2, 2));
        assert_eq!(read[1], (8, messages[1].clone()));
        assert!(record.as_ptr_range().contains(&read[0].1.body().as_ptr()));
    }

    #[test]
    fn a_record_takes_one_large_message_or_many_small_ones() {
        let large = vec![Message::new(vec![0; 2 * RECORD_BYTES]), Message::new("x")];
        assert_eq!(encode(0, &large).0, 1);
        let small = vec![Message::new(vec![0; 1024]); 1000];
        assert_eq!(encode(0, &small).0, RECORD_BYTES / 1024);
    }
}
