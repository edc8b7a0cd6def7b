//! Streams on disk: a log of their own each, in `streams/NUMBER` of the broker's directory.

mod damage;
mod reader;
pub(crate) mod record;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::Waker;

use millstream_message::{
    BrokerError, BrokerErrorKind, Message, StreamFrom, StreamReader, StreamSpec, StreamStats,
};
use parking_lot::{Mutex, RwLock};

use self::damage::Damage;
use self::reader::LogReader;
use self::record::{encode, head};
use crate::clock::{millis, unix_millis};
use crate::journal::storage;
use crate::log::{Disk, Entry, Log, LogError, LogSettings, Position, ReadError, Replay};
use crate::opened::broker_error;
use crate::record::APPENDED;
use crate::shared::closed;
use crate::wire::{Input, Malformed, put_u64};

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
    damage: Mutex<Damage>,
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

/// Wakes readers when it goes.
struct Wakes<'a>(&'a LoggedStream);

impl Drop for Wakes<'_> {
    fn drop(&mut self) {
        self.0.wake();
    }
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
        let damage = Damage::found(&recovery);
        let stream = LoggedStream {
            id,
            spec,
            dir,
            disk,
            segment_bytes,
            log: RwLock::new(Some(Arc::new(log))),
            appending: tokio::sync::Mutex::new(()),
            index: Mutex::new(index),
            damage: Mutex::new(damage),
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
            // Also if the caller goes away between two records: the first is there.
            let _wakes = Wakes(self);
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
                Err(ReadError::Damaged(range)) => self.damage.lock().note(range),
                Err(ReadError::Gone(_) | ReadError::NotDurable(_)) => {}
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

    /// In how many places it is known to be damaged.
    pub(crate) fn damaged(&self) -> u64 {
        self.damage.lock().places()
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
        let reader = LogReader::new(self.clone(), log.reader(start), at, not_before);
        Ok(StreamReader::new(Box::new(reader)))
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
        }
    }
}
