//! Opening: from whatever a crash left behind to a log that can be appended to.

use std::{collections::hash_map::RandomState, hash::BuildHasher, io, ops::Range, path::Path, sync::Arc};

use super::{
    checkpoint::{self, Found, State},
    directory::{self, Directory},
    disk::{Disk, LockGuard, LockMode},
    error::LogError,
    pool::{Pool, Spare},
    record::{HEADER, Position, RecordRef},
    segment::{Segment, Segments},
    settings::{LogSettings, PAGE},
    shared::Shared,
    survey::{self, Visitor},
    writer::{Active, Writer},
};

/// Spare files taken over from the last opening.
const SPARE_MAX: usize = 2;

/// The tail is written again in pieces of this size.
const SETTLE_BYTES: usize = 256 << 10;

/// Added to the epoch when the state file is lost: more openings than can have left records behind.
const EPOCH_GAP: u32 = 1 << 16;

/// What opening a log hands over, in this order.
#[derive(Debug)]
pub enum Replay<'a> {
    /// The newest checkpoint. At most once, and first.
    Checkpoint {
        /// As given to [`checkpoint`](super::Log::checkpoint).
        payload: &'a [u8],
        /// Everything before is in it.
        covers: Position,
    },
    /// A record the checkpoint does not cover.
    Record(RecordRef<'a>),
}

/// What opening a log found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Recovery {
    /// Records handed over.
    pub records: u64,
    /// Where the checkpoint that was used stands; `None` without one.
    pub checkpoint: Option<Position>,
    /// Bytes of the tail that were written and never confirmed, and were cut off.
    pub torn_bytes: u64,
    /// Ranges that had been durable and cannot be read. What the disk still has of each is in a file
    /// `damaged-FROM-TO.bytes` in the directory.
    pub damaged: Vec<Range<Position>>,
    /// Checkpoints and segment files that could not be used; they were renamed, `.damaged` at the end.
    pub damaged_files: u64,
    /// Whether the log had been closed properly.
    pub clean: bool,
    /// Where the log goes on.
    pub end: Position,
}

pub(crate) fn recover(
    dir: &Path,
    settings: LogSettings,
    disk: &Arc<dyn Disk>,
    replay: &mut dyn FnMut(Replay<'_>),
) -> Result<(Shared, LockGuard, Recovery), LogError> {
    disk.create_dir(dir).map_err(|e| LogError::io("create the directory", dir, e))?;
    let lock = directory::lock(&**disk, dir, LockMode::Exclusive)?;
    let found = Directory::load(&**disk, dir)?;
    let damaged_files = tidy(&**disk, dir, &found)?;

    let mut from = 0;
    if let Some((covers, payload)) = &found.checkpoint {
        from = *covers;
        replay(Replay::Checkpoint { payload, covers: Position::new(from) });
    }
    let mut replayer = Replayer { replay, disk: &**disk, dir, records: 0, damaged: Vec::new() };
    let surveyed = survey::survey(&**disk, &found, from, &mut replayer)?;
    let recovery = Recovery {
        records: replayer.records,
        checkpoint: found.checkpoint.as_ref().map(|(covers, _)| Position::new(*covers)),
        torn_bytes: surveyed.torn_bytes,
        damaged: replayer.damaged,
        damaged_files,
        clean: matches!(&found.state, Found::Whole(s) if s.clean_end > 0),
        end: Position::new(surveyed.end),
    };

    let salt = found.salt.unwrap_or_else(|| RandomState::new().hash_one(0_u8) as u32);
    let epoch = next_epoch(&found, surveyed.epoch_max);
    // Before anything of this epoch is written: two openings never share one.
    checkpoint::write_state(&**disk, dir, &State { salt, epoch, clean_end: 0 })?;

    if !recovery.clean {
        settle_tail(&**disk, &found, surveyed.durable, surveyed.end)?;
    }
    let (segments, active) = segments(disk, &found, surveyed.end)?;
    let pool = Arc::new(pool(disk, dir, &settings, &found)?);
    let writer = Writer {
        disk: disk.clone(),
        dir: dir.to_path_buf(),
        salt,
        epoch,
        segments: segments.clone(),
        pool: pool.clone(),
        active,
        confirmed: surveyed.end,
    };
    let shared = Shared::new(settings, salt, epoch, surveyed.end, segments, pool, writer);
    Ok((shared, lock, recovery))
}

/// Removes what was left unfinished and renames what cannot be used; gives the number of the latter.
fn tidy(disk: &dyn Disk, dir: &Path, found: &Directory) -> Result<u64, LogError> {
    if !found.unfinished.is_empty() {
        // The name of the newest checkpoint first: else a crash could keep only the removal of the one before.
        disk.sync_dir(dir).map_err(|e| LogError::io("sync the directory", dir, e))?;
    }
    for path in &found.unfinished {
        disk.remove(path).map_err(|e| LogError::io("remove", path, e))?;
    }
    for path in &found.unusable {
        let mut aside = path.clone().into_os_string();
        aside.push(".damaged");
        disk.rename(path, Path::new(&aside)).map_err(|e| LogError::io("set aside", path, e))?;
    }
    if !found.unusable.is_empty() {
        disk.sync_dir(dir).map_err(|e| LogError::io("sync the directory", dir, e))?;
    }
    Ok(found.unusable.len() as u64)
}

/// Makes the tail durable that was handed over. After a process died and the system did not, it may be in the
/// system's cache only; after a failed sync even that cache calls it clean, so it is written again.
fn settle_tail(disk: &dyn Disk, found: &Directory, durable: u64, end: u64) -> Result<(), LogError> {
    let Some(last) = found.segments.last() else { return Ok(()) };
    let file_end = last.base + last.capacity;
    let (from, to) = (durable.clamp(last.base, file_end), end.clamp(last.base, file_end));
    // From the page's begin, and never nothing: the sync is due in any case.
    let mut at = PAGE + (from - last.base) / PAGE * PAGE;
    let mut settle = || {
        let file = disk.open(&last.path, true)?;
        let mut piece = vec![0; SETTLE_BYTES];
        while at < PAGE + (to - last.base) {
            let len = ((PAGE + (to - last.base) - at) as usize).min(piece.len());
            let read = file.read_at(&mut piece[..len], at)?;
            if read == 0 {
                break;
            }
            file.write_at(&piece[..read], at)?;
            at += read as u64;
        }
        // A torn record that was cut off keeps its valid header. The next torn write begins at the same place and
        // could fill just the sectors it lacks with bytes that happen to be equal: without a header it stays gone.
        let room = (file_end - to).min(HEADER as u64) as usize;
        file.write_at(&[0; HEADER][..room], PAGE + (to - last.base))?;
        file.sync()
    };
    settle().map_err(|e| LogError::io("make the tail durable in", &last.path, e))
}

fn next_epoch(found: &Directory, of_records: u32) -> u32 {
    let of_heads = found.segments.iter().filter_map(|s| s.head.map(|h| h.epoch)).max();
    let seen = of_records.max(of_heads.unwrap_or(0));
    match &found.state {
        Found::Whole(state) => seen.max(state.epoch) + 1,
        Found::Absent if found.segments.is_empty() => 1,
        Found::Absent | Found::Damaged => seen + EPOCH_GAP,
    }
}

/// The table of segments, and the last one opened for writing if it can be gone on with.
fn segments(
    disk: &Arc<dyn Disk>,
    found: &Directory,
    end: u64,
) -> Result<(Arc<Segments>, Option<Active>), LogError> {
    let mut list = Vec::new();
    let mut active = None;
    for (index, at) in found.segments.iter().enumerate() {
        if at.head.is_none() && at.base >= end {
            // Nothing was ever read from it, and the next segment gets its name: as an entry of the table it would be released
            // some day, and that name's file removed.
            continue;
        }
        let file_end = at.base + at.capacity;
        let sealed = found.end_of(index).unwrap_or(end.max(at.base)).min(file_end);
        let segment = Arc::new(Segment::new(at.base, at.capacity, at.path.clone(), sealed));
        if at.head.is_none() {
            segment.poison();
        } else if index + 1 == found.segments.len() && (at.base..file_end).contains(&end) {
            let file = disk.open(&at.path, true).map_err(|e| LogError::io("open", &at.path, e))?;
            segment.seal(u64::MAX);
            active = Some(Active { segment: segment.clone(), file });
        }
        list.push(segment);
    }
    Ok((Arc::new(Segments::new(disk.clone(), list)), active))
}

fn pool(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    settings: &LogSettings,
    found: &Directory,
) -> Result<Pool, LogError> {
    let mut spares = Vec::new();
    let mut names = 0;
    for (path, number, bytes) in &found.spares {
        names = names.max(*number);
        if *bytes == settings.segment_bytes && spares.len() < SPARE_MAX {
            let file = disk.open(path, true).map_err(|e| LogError::io("open", path, e))?;
            spares.push(Spare { path: path.clone(), file, bytes: *bytes });
        } else {
            disk.remove(path).map_err(|e| LogError::io("remove", path, e))?;
        }
    }
    let last_bytes = found.segments.last().map_or(0, |s| s.capacity + PAGE);
    Ok(Pool::new(disk.clone(), dir.to_path_buf(), settings.clone(), spares, last_bytes, names))
}

struct Replayer<'a> {
    replay: &'a mut dyn FnMut(Replay<'_>),
    disk: &'a dyn Disk,
    dir: &'a Path,
    records: u64,
    damaged: Vec<Range<Position>>,
}

impl Visitor for Replayer<'_> {
    fn record(&mut self, record: RecordRef<'_>) -> Result<(), LogError> {
        self.records += 1;
        (self.replay)(Replay::Record(record));
        Ok(())
    }

    /// Copies the range aside, as far as the disk lets us: a full disk must not keep the log shut.
    fn damaged(
        &mut self,
        range: Range<u64>,
        bytes: &dyn Fn() -> io::Result<Vec<u8>>,
    ) -> Result<(), LogError> {
        self.damaged.push(Position::new(range.start)..Position::new(range.end));
        let path = self.dir.join(format!("damaged-{:020}-{:020}.bytes", range.start, range.end));
        if self.disk.open(&path, false).is_ok() {
            return Ok(()); // set aside by an earlier opening
        }
        let copy = || {
            let bytes = bytes()?;
            let file = self.disk.create(&path)?;
            file.write_at(&bytes, 0)?;
            file.sync()?;
            self.disk.sync_dir(self.dir)
        };
        let _ = copy().inspect_err(|_| {
            let _ = self.disk.remove(&path);
        });
        Ok(())
    }
}
