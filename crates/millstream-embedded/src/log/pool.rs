//! Segment files that hold no records: prepared ahead, recycled, removed.
//!
//! A segment is written full of zeros and synced before it is used, so that syncing records into it never
//! has to allocate blocks or grow the file; that nearly doubles the commit rate. The writing costs tens of
//! milliseconds, which is why it is done ahead, away from those who append.

use std::{
    collections::VecDeque,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::{Condvar, Mutex};

use super::{
    disk::{Disk, DiskFile},
    error::is_full,
    segment::Segment,
    settings::LogSettings,
};

/// Spare files kept at most. With the active one: what a log of which everything is released occupies.
const SPARE_MAX: usize = 2;

/// Zeros are written in pieces of this size, and synced every few pieces, so that the sync of a commit
/// never waits behind a whole segment of them.
const FILL_BYTES: usize = 1 << 20;
const FILL_SYNC_EVERY: u64 = 8;

/// A file ready to become a segment: as long as it will be, all of it written once, its name durable.
#[derive(Debug)]
pub(crate) struct Spare {
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<dyn DiskFile>,
    pub(crate) bytes: u64,
}

/// The spare files of one log.
#[derive(Debug)]
pub(crate) struct Pool {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    settings: LogSettings,
    state: Mutex<PoolState>,
    /// Work for the thread.
    work: Condvar,
    /// A file became ready, or failed to.
    ready: Condvar,
}

#[derive(Debug, Default)]
struct PoolState {
    spares: Vec<Spare>,
    /// Segments whose records were released.
    retired: VecDeque<Arc<Segment>>,
    /// Size of the newest segment.
    last_bytes: u64,
    /// Makes file names unique.
    names: u64,
    wanted: bool,
    preparing: bool,
    /// The last preparation failed, most likely for want of room: nothing is prepared ahead before a segment
    /// that is needed now could be had.
    failing: bool,
    stopping: bool,
}

/// Whether `name` is that of a spare file, and its number.
pub(crate) fn parse_spare_name(name: &str) -> Option<u64> {
    name.strip_prefix("spare-")?.strip_suffix(".seg")?.parse().ok()
}

impl Pool {
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        settings: LogSettings,
        spares: Vec<Spare>,
        last_bytes: u64,
        names: u64,
    ) -> Self {
        let state = PoolState { spares, last_bytes, names, ..PoolState::default() };
        Self { disk, dir, settings, state: Mutex::new(state), work: Condvar::new(), ready: Condvar::new() }
    }

    /// A file of at least `bytes`: one that is ready, or else one prepared now.
    pub(crate) fn take(&self, bytes: u64) -> io::Result<Spare> {
        let mut state = self.state.lock();
        loop {
            if let Some(index) = state.spares.iter().position(|s| s.bytes >= bytes) {
                let spare = state.spares.remove(index);
                state.last_bytes = spare.bytes;
                return Ok(spare);
            }
            if !state.preparing {
                break;
            }
            // The thread is at it already. A failure, or a file too small, is seen in the next round.
            self.ready.wait(&mut state);
        }
        let bytes = self.settings.next_segment_bytes(state.last_bytes).max(bytes.next_multiple_of(4096));
        state.names += 1;
        let name = state.names;
        state.last_bytes = bytes;
        drop(state);
        let prepared = self.prepare(name, bytes);
        self.state.lock().failing = prepared.is_err();
        prepared
    }

    /// Has one file prepared if none is ready.
    pub(crate) fn prepare_one(&self) {
        if !self.settings.background {
            return;
        }
        let mut state = self.state.lock();
        if state.spares.is_empty() && !state.wanted && !state.preparing && !state.failing {
            state.wanted = true;
            self.work.notify_one();
        }
    }

    /// Takes over segments whose records were released.
    pub(crate) fn retire(&self, segments: Vec<Arc<Segment>>) {
        if segments.is_empty() {
            return;
        }
        self.state.lock().retired.extend(segments);
        if self.settings.background {
            self.work.notify_one();
        } else {
            self.recycle_all();
        }
    }

    /// Bytes of the files that are ready or wait for being recycled.
    pub(crate) fn bytes(&self) -> u64 {
        let state = self.state.lock();
        state.spares.iter().map(|s| s.bytes).sum::<u64>()
            + state.retired.iter().map(|s| s.file_bytes()).sum::<u64>()
    }

    /// The thread: prepares and recycles until told to stop.
    pub(crate) fn run(&self) {
        let mut state = self.state.lock();
        loop {
            if !state.retired.is_empty() {
                drop(state);
                self.recycle_all();
                state = self.state.lock();
            } else if state.stopping {
                return;
            } else if state.wanted {
                state.wanted = false;
                if !state.spares.is_empty() {
                    continue;
                }
                state.preparing = true;
                state.names += 1;
                let (name, bytes) = (state.names, self.settings.next_segment_bytes(state.last_bytes));
                drop(state);
                let prepared = self.prepare(name, bytes);
                state = self.state.lock();
                state.preparing = false;
                // A failure needs no report from here: whoever needs the file tries again and meets it.
                state.failing = prepared.is_err();
                state.spares.extend(prepared.ok());
                self.ready.notify_all();
            } else {
                self.work.wait(&mut state);
            }
        }
    }

    pub(crate) fn stop(&self) {
        self.state.lock().stopping = true;
        self.work.notify_all();
    }

    fn recycle_all(&self) {
        loop {
            let mut state = self.state.lock();
            let Some(segment) = state.retired.front().cloned() else { return };
            let keep = segment.file_bytes() == self.settings.segment_bytes
                && !segment.is_poisoned()
                && state.spares.len() < SPARE_MAX;
            state.names += 1;
            let name = state.names;
            drop(state);
            let spare = if keep { self.recycle(&segment, name).ok() } else { None };
            if spare.is_none() {
                // Failing to remove a file costs its space until the log is opened again.
                let _ = self.disk.remove(&segment.path);
            }
            let mut state = self.state.lock();
            state.retired.pop_front();
            state.spares.extend(spare);
            self.ready.notify_all();
        }
    }

    fn recycle(&self, segment: &Segment, name: u64) -> io::Result<Spare> {
        let path = self.spare_path(name);
        let file = self.disk.open(&segment.path, true)?;
        self.disk.rename(&segment.path, &path)?;
        // Before it is written again, so that no crash finds new bytes under the old name.
        self.disk.sync_dir(&self.dir)?;
        Ok(Spare { path, file, bytes: segment.file_bytes() })
    }

    fn prepare(&self, name: u64, bytes: u64) -> io::Result<Spare> {
        let path = self.spare_path(name);
        let unfinished = path.with_extension("tmp");
        let file = self.fill(&unfinished, bytes).map_err(|error| {
            let _ = self.disk.remove(&unfinished);
            in_need_of(bytes, error)
        })?;
        self.disk.rename(&unfinished, &path)?;
        Ok(Spare { path, file, bytes })
    }

    fn fill(&self, path: &Path, bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.disk.create(path)?;
        file.reserve(bytes)?;
        let zeros = vec![0; FILL_BYTES.min(bytes as usize)];
        let mut at = 0;
        while at < bytes {
            let len = (bytes - at).min(FILL_BYTES as u64);
            file.write_at(&zeros[..len as usize], at)?;
            at += len;
            if at % (FILL_SYNC_EVERY * FILL_BYTES as u64) == 0 {
                file.sync()?;
            }
        }
        file.sync()?;
        Ok(file)
    }

    fn spare_path(&self, name: u64) -> PathBuf {
        self.dir.join(format!("spare-{name}.seg"))
    }
}

/// An error of a full disk that says how much is missing: there may be room left, only not for a whole segment.
fn in_need_of(bytes: u64, error: io::Error) -> io::Error {
    if !is_full(&error) {
        return error;
    }
    let mib = bytes.div_ceil(1 << 20);
    io::Error::new(error.kind(), format!("the next segment of the log needs {mib} MiB of room ({error})"))
}
