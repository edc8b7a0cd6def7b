//! What is in a log's directory. Looks, and changes nothing.

use std::path::{Path, PathBuf};

use super::{
    checkpoint::{self, Found, State},
    disk::{Disk, LockError, LockGuard, LockMode},
    error::{LogError, LogErrorKind},
    pool,
    record::ALIGN,
    segment::{self, SegmentHead},
    settings::PAGE,
};

pub(crate) const LOCK_NAME: &str = "lock";

/// No position is this large, so that sums of positions and file lengths stay in 64 bits.
const POSITION_LIMIT: u64 = 1 << 62;

/// The contents of a log's directory.
#[derive(Debug)]
pub(crate) struct Directory {
    pub(crate) state: Found<State>,
    /// The newest whole checkpoint: what it covers, and its payload.
    pub(crate) checkpoint: Option<(u64, Vec<u8>)>,
    /// Damaged checkpoints and files named like segments that are none.
    pub(crate) unusable: Vec<PathBuf>,
    /// Left over from writing that was interrupted.
    pub(crate) unfinished: Vec<PathBuf>,
    /// Oldest first.
    pub(crate) segments: Vec<FoundSegment>,
    /// Path, number and length of spare files.
    pub(crate) spares: Vec<(PathBuf, u64, u64)>,
    /// What the checksums are salted with; `None` in an empty directory.
    pub(crate) salt: Option<u32>,
}

/// A segment file.
#[derive(Debug)]
pub(crate) struct FoundSegment {
    pub(crate) base: u64,
    pub(crate) capacity: u64,
    pub(crate) path: PathBuf,
    /// `None`: damaged. The name and the neighbours say enough to read its records all the same.
    pub(crate) head: Option<SegmentHead>,
}

/// Whether `name` is that of a file this log had not finished. Others' `.tmp` files are none of its business.
fn is_unfinished(name: &str) -> bool {
    name.strip_suffix(".tmp").is_some_and(|stem| {
        stem == checkpoint::STATE_NAME
            || checkpoint::parse_checkpoint_name(stem).is_some()
            || pool::parse_spare_name(&format!("{stem}.seg")).is_some()
    })
}

/// Takes the lock of the log in `dir`.
pub(crate) fn lock(disk: &dyn Disk, dir: &Path, mode: LockMode) -> Result<LockGuard, LogError> {
    let path = dir.join(LOCK_NAME);
    disk.lock(&path, mode).map_err(|error| match error {
        LockError::Held(holder) => {
            let holder = holder.map_or_else(|| "another process".into(), |pid| format!("process {pid}"));
            LogError::new(
                LogErrorKind::Locked,
                format!("{} is in use by {holder}; stop it or choose another directory", dir.display()),
            )
        }
        LockError::Io(error) => LogError::io("lock", &path, error),
    })
}

impl Directory {
    pub(crate) fn load(disk: &dyn Disk, dir: &Path) -> Result<Self, LogError> {
        let mut names = disk.list(dir).map_err(|e| LogError::io("list the directory", dir, e))?;
        names.sort_unstable();
        let mut found = Self {
            state: checkpoint::read_state(disk, dir)?,
            checkpoint: None,
            unusable: Vec::new(),
            unfinished: Vec::new(),
            segments: Vec::new(),
            spares: Vec::new(),
            salt: None,
        };
        if let Found::Whole(state) = &found.state {
            found.salt = Some(state.salt);
        }
        // Fixed-width names sort by number; the newest checkpoint that is whole counts.
        for name in names.iter().rev() {
            let Some(covers) = checkpoint::parse_checkpoint_name(name) else { continue };
            match checkpoint::read(disk, dir, covers)? {
                Found::Whole(payload) if found.checkpoint.is_none() && covers < POSITION_LIMIT => {
                    found.checkpoint = Some((covers, payload));
                }
                Found::Whole(_) => found.unfinished.push(dir.join(name)),
                Found::Damaged | Found::Absent => found.unusable.push(dir.join(name)),
            }
        }
        for name in &names {
            let path = dir.join(name);
            if is_unfinished(name) {
                found.unfinished.push(path);
            } else if let Some(number) = pool::parse_spare_name(name) {
                let len = disk.open(&path, false).and_then(|f| f.len());
                found.spares.push((path.clone(), number, len.map_err(|e| LogError::io("open", &path, e))?));
            } else if let Some(base) = segment::parse_file_name(name) {
                found.load_segment(disk, path, base)?;
            }
        }
        if found.salt.is_none() && !found.segments.is_empty() {
            return Err(LogError::new(
                LogErrorKind::Format,
                format!(
                    "{}: neither the state file nor any segment's head can be read, so no record can be checked; \
                     bring back a copy of the file `state`, or move the directory away to begin anew",
                    dir.display()
                ),
            ));
        }
        Ok(found)
    }

    /// Whether there is nothing of a log.
    pub(crate) fn is_empty(&self) -> bool {
        self.state == Found::Absent && self.segments.is_empty() && self.checkpoint.is_none()
    }

    fn load_segment(&mut self, disk: &dyn Disk, path: PathBuf, base: u64) -> Result<(), LogError> {
        let failed = |e| LogError::io("read", &path, e);
        let file = disk.open(&path, false).map_err(failed)?;
        let len = file.len().map_err(failed)?;
        let mut page = vec![0; PAGE as usize];
        let read = file.read_at(&mut page, 0).map_err(failed)?;
        page.truncate(read);
        let head = SegmentHead::decode(&page);
        if let Some(head) = &head {
            checkpoint::refuse_newer(head.version, &path)?;
        }
        let foreign = head.as_ref().is_some_and(|h| h.base != base || self.salt.is_some_and(|s| s != h.salt));
        if foreign
            || len < PAGE
            || !base.is_multiple_of(ALIGN)
            || base >= POSITION_LIMIT
            || len >= POSITION_LIMIT
        {
            self.unusable.push(path);
            return Ok(());
        }
        self.salt = self.salt.or(head.as_ref().map(|h| h.salt));
        self.segments.push(FoundSegment { base, capacity: len - PAGE, path, head });
        Ok(())
    }

    /// Where the records of segment `index` end according to the one behind it; `None` for the last.
    pub(crate) fn end_of(&self, index: usize) -> Option<u64> {
        let next = self.segments.get(index + 1)?;
        let end = next.head.map_or(next.base, |h| h.prev_end.min(next.base));
        Some(end.max(self.segments[index].base))
    }
}
