//! The log's handle.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    thread::JoinHandle,
};

use parking_lot::Mutex;

use super::{
    checkpoint,
    commit::Commit,
    disk::{Disk, LockGuard},
    error::{LogError, LogErrorKind, ReadError},
    reader::{self, Reader},
    record::{Position, Record},
    recovery::{self, Recovery, Replay},
    settings::LogSettings,
    shared::Shared,
};

/// The log's threads call nothing deep; a process may have a log per stream.
const STACK_BYTES: usize = 256 << 10;

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
    pub(crate) shared: Arc<Shared>,
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    threads: Vec<JoinHandle<()>>,
    closed: bool,
    /// One checkpoint at a time.
    checkpointing: Mutex<()>,
    _lock: LockGuard,
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
        let thread = std::thread::Builder::new().name(name.into()).stack_size(STACK_BYTES).spawn(run);
        let thread = thread.map_err(|e| LogError::io("start the threads of the log in", &self.dir, e))?;
        self.threads.push(thread);
        Ok(())
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
        // Without a segment the first one will begin at what is not durable yet, which was accepted before. Looked up first: there may
        // be a segment a moment later, and more is durable then.
        let durable = self.shared.durable();
        Position::new(self.shared.segments.start().unwrap_or(durable))
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
    /// First makes everything before `covers` durable; at most what was confirmed is covered. The checkpoint before is removed when this one is
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
        // At the end of the log there may be nothing but what was given up, as by a full disk. To cover that too would
        // be to promise records there, and whoever reads the log next would miss them.
        let covers = covers.min(self.durable()).min(Position::new(self.shared.confirmed()));
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
        if self.shared.counters.failed_groups.load(Ordering::Relaxed) > 0 {
            // Behind the end may lie what was written and never synced. The next opening settles that only if the end
            // does not count as clean.
            return Ok(());
        }
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
}

impl Drop for Log {
    fn drop(&mut self) {
        // Errors have nowhere to go from here; what is not durable was never confirmed to anybody.
        let _ = self.shut();
    }
}
