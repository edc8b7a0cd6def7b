//! The log's handle.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    thread::JoinHandle,
};

use parking_lot::Mutex;

use super::{
    block_on::block_on,
    checkpoint,
    commit::Commit,
    disk::{Disk, LockGuard},
    error::{AppendError, LogError, LogErrorKind, ReadError},
    reader::{self, Reader},
    record::{Entry, Position, Record, stored_len},
    recovery::{self, Recovery, Replay},
    settings::LogSettings,
    shared::Shared,
};

/// A durable log in a directory. See the [module](super).
///
/// # Ordering
/// Records are stored in the order in which appends returned their positions, and become durable in that
/// order: when a commit resolves, everything before it in the log is durable or was reported.
///
/// # Backpressure
/// At most [`pending_bytes_max`](LogSettings::pending_bytes_max) bytes are accepted and not yet durable.
/// Appending waits beyond that, first come, first served.
///
/// Dropping the log writes what was appended, closes it and gives the directory free; [`close`](Self::close)
/// also says whether that worked.
#[derive(Debug)]
pub struct Log {
    shared: Arc<Shared>,
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    threads: Vec<JoinHandle<()>>,
    closed: bool,
    /// One checkpoint at a time.
    checkpointing: Mutex<()>,
    _lock: LockGuard,
}

/// An accepted record.
#[derive(Debug)]
#[must_use = "the record is durable only once its commit resolves"]
pub struct Appended {
    /// Where it is.
    pub position: Position,
    /// Resolves when it is durable.
    pub commit: Commit,
}

/// An accepted batch.
#[derive(Debug)]
#[must_use = "the records are durable only once their commit resolves"]
pub struct AppendedBatch {
    /// Where each record is.
    pub positions: Vec<Position>,
    /// Resolves when all of them are durable.
    pub commit: Commit,
}

/// Counts and sizes of a log, at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct LogStats {
    /// Records accepted since opening.
    pub records: u64,
    /// Bytes made durable since opening, record headers included.
    pub bytes: u64,
    /// Groups written since opening: with `records`, how well the syncs were shared.
    pub groups: u64,
    /// Writes and syncs that failed; each gave up a segment.
    pub failed_syncs: u64,
    /// Groups whose records were reported as failed.
    pub failed_groups: u64,
    /// Files that hold records.
    pub segments: u64,
    /// Bytes of disk taken by all segments, spare ones included.
    pub disk_bytes: u64,
}

impl Log {
    /// Opens the log in `dir`, creating both if need be, and takes its lock.
    ///
    /// What was stored is handed to `replay`: the newest checkpoint first, if there is one, then every
    /// record it does not cover. A torn tail is cut off; a damaged range is copied aside, counted and passed
    /// over. The [`Recovery`] says what was found.
    ///
    /// Blocks: on reading what the checkpoint does not cover, and on a few syncs.
    ///
    /// # Errors
    /// [`Locked`](LogErrorKind::Locked) names the process that has the log open;
    /// [`Format`](LogErrorKind::Format) that the files are of a newer version.
    pub fn open(
        dir: &Path,
        settings: LogSettings,
        disk: Arc<dyn Disk>,
        replay: &mut dyn FnMut(Replay<'_>),
    ) -> Result<(Self, Recovery), LogError> {
        settings.validate()?;
        let (shared, lock, recovery) = recovery::recover(dir, settings, &disk, replay)?;
        let mut log = Self {
            shared: Arc::new(shared),
            disk,
            dir: dir.to_path_buf(),
            threads: Vec::new(),
            closed: false,
            checkpointing: Mutex::default(),
            _lock: lock,
        };
        if log.shared.settings.background {
            let (writer, pool) = (log.shared.clone(), log.shared.pool.clone());
            log.spawn("log-write", move || writer.run())?;
            log.spawn("log-prepare", move || pool.run())?;
        }
        Ok((log, recovery))
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), LogError> {
        let thread = std::thread::Builder::new().name(name.into()).spawn(run);
        let thread = thread.map_err(|e| LogError::io("start the threads of the log in", &self.dir, e))?;
        self.threads.push(thread);
        Ok(())
    }

    /// Appends a record. Returns as soon as it is accepted; await the commit for durability.
    ///
    /// # Cancel safety
    /// A cancelled append stored nothing.
    ///
    /// # Errors
    /// Nothing of a refused record is stored.
    pub async fn append(&self, entry: Entry<'_>) -> Result<Appended, AppendError> {
        let len = self.checked_len(&entry)?;
        let room = self.shared.take_room(len).await?;
        Ok(self.place(entry, room))
    }

    /// [`append`](Self::append), waiting for room on this thread.
    ///
    /// # Errors
    /// As `append`.
    pub fn append_blocking(&self, entry: Entry<'_>) -> Result<Appended, AppendError> {
        block_on(self.append(entry))
    }

    /// [`append`](Self::append) without waiting for room.
    ///
    /// # Errors
    /// [`Busy`](AppendError::Busy) when there is no room.
    pub fn try_append(&self, entry: Entry<'_>) -> Result<Appended, AppendError> {
        let len = self.checked_len(&entry)?;
        let room = self.shared.try_take_room(len)?;
        Ok(self.place(entry, room))
    }

    /// Appends records in order, each stored or not for itself.
    ///
    /// # Cancel safety
    /// A batch of at most `pending_bytes_max` is accepted as a whole or, when cancelled, not at all. Of a
    /// larger one, a part may have been accepted.
    ///
    /// # Errors
    /// A record that is too large refuses the whole batch. Nothing of it is stored.
    pub async fn append_batch(&self, entries: &[Entry<'_>]) -> Result<AppendedBatch, AppendError> {
        for entry in entries {
            self.checked_len(entry)?;
        }
        let mut batch = self.empty_batch(entries.len());
        let mut rest = entries;
        while !rest.is_empty() {
            let (count, bytes) = self.fitting(rest);
            let (now, later) = rest.split_at(count);
            let room = self.shared.take_room(bytes).await?;
            self.place_all(now, false, room, &mut batch);
            rest = later;
        }
        Ok(batch)
    }

    /// [`append_batch`](Self::append_batch), waiting for room on this thread.
    ///
    /// # Errors
    /// As `append_batch`.
    pub fn append_batch_blocking(&self, entries: &[Entry<'_>]) -> Result<AppendedBatch, AppendError> {
        block_on(self.append_batch(entries))
    }

    /// [`append_batch`](Self::append_batch) without waiting for room.
    ///
    /// # Errors
    /// [`Busy`](AppendError::Busy) when there is no room for the whole batch; nothing of it is stored then.
    pub fn try_append_batch(&self, entries: &[Entry<'_>]) -> Result<AppendedBatch, AppendError> {
        let mut bytes = 0;
        for entry in entries {
            bytes += self.checked_len(entry)?;
        }
        let mut batch = self.empty_batch(entries.len());
        if !entries.is_empty() {
            let room = self.shared.try_take_room(bytes)?;
            self.place_all(entries, false, room, &mut batch);
        }
        Ok(batch)
    }

    /// Appends records of which after a crash either all are there or none.
    ///
    /// # Errors
    /// [`TooLarge`](AppendError::TooLarge) when together they take more than `record_bytes_max`, headers
    /// included. Nothing of a refused batch is stored.
    pub async fn append_atomic(&self, entries: &[Entry<'_>]) -> Result<AppendedBatch, AppendError> {
        let bytes = entries.iter().map(|e| stored_len(e.body_len())).sum();
        let max = self.shared.settings.record_bytes_max;
        if bytes > max {
            return Err(AppendError::TooLarge { len: bytes, max });
        }
        let mut batch = self.empty_batch(entries.len());
        if !entries.is_empty() {
            let room = self.shared.take_room(bytes).await?;
            self.place_all(entries, true, room, &mut batch);
        }
        Ok(batch)
    }

    /// [`append_atomic`](Self::append_atomic), waiting for room on this thread.
    ///
    /// # Errors
    /// As `append_atomic`.
    pub fn append_atomic_blocking(&self, entries: &[Entry<'_>]) -> Result<AppendedBatch, AppendError> {
        block_on(self.append_atomic(entries))
    }

    /// Resolves when everything appended so far is durable.
    pub fn flush(&self) -> Commit {
        Commit::new(self.shared.clone(), self.shared.everything())
    }

    /// Has what was appended written as soon as nothing else is being written, without waiting for it.
    /// For records whose commit was left for [`later`](Commit::later).
    pub fn kick(&self) {
        self.shared.ask_all();
    }

    /// Where the next record will be.
    pub fn end(&self) -> Position {
        Position::new(self.shared.end())
    }

    /// Everything before this position is durable, except what was reported as failed.
    pub fn durable(&self) -> Position {
        Position::new(self.shared.durable())
    }

    /// The position of the oldest record that is kept, or where the first one will be.
    pub fn start(&self) -> Position {
        Position::new(self.shared.segments.start().unwrap_or_else(|| self.shared.end()))
    }

    /// The positions at which the segments that hold records begin, oldest first. Disk space comes back
    /// from the first on, segment by segment.
    pub fn segment_starts(&self) -> Vec<Position> {
        self.shared.segments.snapshot().iter().map(|s| Position::new(s.base)).collect()
    }

    /// Reads the record at `position`, which must be durable. Blocks on the disk unless the page is cached.
    ///
    /// # Errors
    /// See [`ReadError`]. Every checksum is verified.
    pub fn read_at(&self, position: Position) -> Result<Record, ReadError> {
        reader::read_at(&self.shared, position)
    }

    /// Reads records in order from `from` on, or from the first record kept after it.
    pub fn reader(&self, from: Position) -> Reader {
        Reader::new(self.shared.clone(), from)
    }

    /// Gives free every segment of which all records are before `position`: they are never read again, and
    /// their files are recycled or removed.
    pub fn release_before(&self, position: Position) {
        self.shared.pool.retire(self.shared.segments.take_before(position.get()));
    }

    /// Stores a snapshot of the caller's state that makes the records before `covers` unnecessary for
    /// recovery; replay begins with it from now on. Records the snapshot still refers to by position remain
    /// readable until [released](Self::release_before).
    ///
    /// First makes everything before `covers` durable. The checkpoint before is removed when this one is
    /// durable. Blocks on several syncs.
    ///
    /// # Errors
    /// The checkpoint before stays in force.
    pub fn checkpoint(&self, payload: &[u8], covers: Position) -> Result<(), LogError> {
        if covers > self.durable() {
            self.flush().wait().map_err(|e| {
                let source = std::io::Error::new(e.source.kind(), e.to_string());
                LogError::io("make the records durable that a checkpoint covers, in", &self.dir, source)
            })?;
        }
        let covers = covers.min(self.durable());
        let _one_at_a_time = self.checkpointing.lock();
        checkpoint::write(&*self.disk, &self.dir, payload, covers.get())
    }

    /// Counts and sizes, now.
    pub fn stats(&self) -> LogStats {
        let counters = &self.shared.counters;
        let segments = self.shared.segments.snapshot();
        LogStats {
            records: counters.records.load(Ordering::Relaxed),
            bytes: counters.bytes.load(Ordering::Relaxed),
            groups: counters.groups.load(Ordering::Relaxed),
            failed_syncs: counters.failed_syncs.load(Ordering::Relaxed),
            failed_groups: counters.failed_groups.load(Ordering::Relaxed),
            segments: segments.len() as u64,
            disk_bytes: segments.iter().map(|s| s.file_bytes()).sum::<u64>() + self.shared.pool.bytes(),
        }
    }

    /// Writes what was appended, notes the clean end, and gives the directory free.
    ///
    /// # Errors
    /// When what was pending could not be made durable.
    pub fn close(mut self) -> Result<(), LogError> {
        self.shut()
    }

    fn shut(&mut self) -> Result<(), LogError> {
        if std::mem::replace(&mut self.closed, true) {
            return Ok(());
        }
        self.shared.stop();
        let flushed = self.flush().wait();
        self.shared.pool.stop();
        let mut panicked = false;
        for thread in self.threads.drain(..) {
            panicked |= thread.join().is_err();
        }
        if panicked {
            return Err(LogError::new(LogErrorKind::Io, "a thread of the log panicked; open the log again"));
        }
        flushed.map_err(|e| {
            let source = std::io::Error::new(e.source.kind(), e.to_string());
            LogError::io("make the last records durable in", &self.dir, source)
        })?;
        checkpoint::write_state(
            &*self.disk,
            &self.dir,
            &checkpoint::State {
                salt: self.shared.salt,
                epoch: self.shared.epoch,
                clean_end: self.shared.confirmed(),
            },
        )
    }

    fn checked_len(&self, entry: &Entry<'_>) -> Result<usize, AppendError> {
        let (len, max) = (entry.body_len(), self.shared.settings.record_bytes_max);
        if len > max { Err(AppendError::TooLarge { len, max }) } else { Ok(stored_len(len)) }
    }

    /// How many of `entries` make one piece of at most the pending bytes, at least one; and their bytes.
    fn fitting(&self, entries: &[Entry<'_>]) -> (usize, usize) {
        let mut total = 0;
        for (index, entry) in entries.iter().enumerate() {
            let len = stored_len(entry.body_len());
            if index > 0 && total + len > self.shared.settings.pending_bytes_max {
                return (index, total);
            }
            total += len;
        }
        (entries.len(), total)
    }

    fn empty_batch(&self, count: usize) -> AppendedBatch {
        AppendedBatch { positions: Vec::with_capacity(count), commit: Commit::new(self.shared.clone(), None) }
    }

    fn place(&self, entry: Entry<'_>, room: usize) -> Appended {
        self.shared.counters.records.fetch_add(1, Ordering::Relaxed);
        let part = self.shared.push(&[entry], false, room, |_| {});
        Appended { position: Position::new(part.from), commit: Commit::new(self.shared.clone(), Some(part)) }
    }

    fn place_all(&self, entries: &[Entry<'_>], joined: bool, room: usize, batch: &mut AppendedBatch) {
        self.shared.counters.records.fetch_add(entries.len() as u64, Ordering::Relaxed);
        let positions = &mut batch.positions;
        let part = self.shared.push(entries, joined, room, |at| positions.push(Position::new(at)));
        batch.commit.extend(part);
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        // Errors have nowhere to go from here; what is not durable was never confirmed to anybody.
        let _ = self.shut();
    }
}
