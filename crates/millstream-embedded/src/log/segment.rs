//! Segment files: their head page, and the table of those that hold records.

use std::{
    collections::VecDeque,
    fmt, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use parking_lot::{Mutex, RwLock};

use super::{
    disk::{Disk, DiskFile},
    record::{u32_at, u64_at},
    settings::PAGE,
};

/// Version of the layout that this code writes, and the newest it reads.
pub(crate) const VERSION: u32 = 1;

const MAGIC: &[u8; 8] = b"MSTRMLOG";
const HEAD_LEN: usize = 40;

/// How many finished segments keep their file open; more are reopened when read.
const OPEN_MAX: usize = 64;

/// What the first page of a segment says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentHead {
    pub(crate) version: u32,
    /// Mixed into every checksum, so that bytes from elsewhere (another log, a body that imitates a
    /// record) do not pass.
    pub(crate) salt: u32,
    /// Position of the first record.
    pub(crate) base: u64,
    /// Where the records of the segment before end; what it holds beyond was never confirmed.
    pub(crate) prev_end: u64,
    pub(crate) epoch: u32,
}

impl SegmentHead {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut page = vec![0; PAGE as usize];
        page[..8].copy_from_slice(MAGIC);
        page[8..12].copy_from_slice(&self.version.to_le_bytes());
        page[12..16].copy_from_slice(&self.salt.to_le_bytes());
        page[16..24].copy_from_slice(&self.base.to_le_bytes());
        page[24..32].copy_from_slice(&self.prev_end.to_le_bytes());
        page[32..36].copy_from_slice(&self.epoch.to_le_bytes());
        let crc = crc32fast::hash(&page[..36]);
        page[36..40].copy_from_slice(&crc.to_le_bytes());
        page
    }

    /// `None` when the page is not a head, or a damaged one.
    pub(crate) fn decode(page: &[u8]) -> Option<Self> {
        let head: &[u8; HEAD_LEN] = page.first_chunk()?;
        if &head[..8] != MAGIC || crc32fast::hash(&head[..36]) != u32_at(head, 36) {
            return None;
        }
        Some(Self {
            version: u32_at(head, 8),
            salt: u32_at(head, 12),
            base: u64_at(head, 16),
            prev_end: u64_at(head, 24),
            epoch: u32_at(head, 32),
        })
    }
}

/// The file name of the segment whose first record is at `base`.
pub(crate) fn file_name(base: u64) -> String {
    format!("{base:020}.log")
}

/// The `base` of a segment's file name.
pub(crate) fn parse_file_name(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".log")?;
    (digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok())?
}

/// A segment that holds records.
pub(crate) struct Segment {
    pub(crate) base: u64,
    /// Bytes for records: the file without its head page.
    pub(crate) capacity: u64,
    pub(crate) path: PathBuf,
    /// Position behind its last record; `u64::MAX` while records are being added.
    end: AtomicU64,
    /// Never reused: a sync of this file failed, or its head is damaged.
    poisoned: AtomicBool,
    file: Mutex<Option<Arc<dyn DiskFile>>>,
}

impl Segment {
    pub(crate) fn new(base: u64, capacity: u64, path: PathBuf, end: u64) -> Self {
        Self {
            base,
            capacity,
            path,
            end: AtomicU64::new(end),
            poisoned: AtomicBool::new(false),
            file: Mutex::new(None),
        }
    }

    pub(crate) fn end(&self) -> u64 {
        self.end.load(Ordering::Acquire)
    }

    pub(crate) fn seal(&self, end: u64) {
        self.end.store(end, Ordering::Release);
    }

    pub(crate) fn poison(&self) {
        self.poisoned.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Relaxed)
    }

    pub(crate) fn file_bytes(&self) -> u64 {
        self.capacity + PAGE
    }

    /// Where `position` is in the file.
    pub(crate) fn offset(&self, position: u64) -> u64 {
        PAGE + (position - self.base)
    }
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Segment").field("base", &self.base).field("end", &self.end()).finish_non_exhaustive()
    }
}

/// The segments that hold records, oldest first.
#[derive(Debug)]
pub(crate) struct Segments {
    disk: Arc<dyn Disk>,
    list: RwLock<Vec<Arc<Segment>>>,
    /// Those with an open file, in the order of opening.
    open: Mutex<VecDeque<Arc<Segment>>>,
}

impl Segments {
    pub(crate) fn new(disk: Arc<dyn Disk>, list: Vec<Arc<Segment>>) -> Self {
        Self { disk, list: RwLock::new(list), open: Mutex::default() }
    }

    pub(crate) fn push(&self, segment: Arc<Segment>) {
        self.list.write().push(segment);
    }

    /// Forgets the newest segment, which holds no confirmed record.
    pub(crate) fn pop_empty(&self, segment: &Arc<Segment>) {
        self.list.write().retain(|s| !Arc::ptr_eq(s, segment));
    }

    pub(crate) fn snapshot(&self) -> Vec<Arc<Segment>> {
        self.list.read().clone()
    }

    /// Position of the oldest record that may still be there.
    pub(crate) fn start(&self) -> Option<u64> {
        self.list.read().first().map(|s| s.base)
    }

    /// The segment that holds `position`, or else the next one after it.
    pub(crate) fn at_or_after(&self, position: u64) -> Option<Arc<Segment>> {
        let list = self.list.read();
        let index = list.partition_point(|s| s.end() <= position);
        list.get(index).cloned()
    }

    /// Removes the segments of which everything is before `position`. The newest one stays: its name keeps
    /// positions from being given twice.
    pub(crate) fn take_before(&self, position: u64) -> Vec<Arc<Segment>> {
        let mut list = self.list.write();
        let count = list.partition_point(|s| s.end() <= position).min(list.len().saturating_sub(1));
        let taken: Vec<_> = list.drain(..count).collect();
        drop(list);
        self.open.lock().retain(|s| !taken.iter().any(|t| Arc::ptr_eq(t, s)));
        taken
    }

    /// The segment's file, opened if need be.
    pub(crate) fn file(&self, segment: &Arc<Segment>) -> io::Result<Arc<dyn DiskFile>> {
        if let Some(file) = &*segment.file.lock() {
            return Ok(file.clone());
        }
        let file = self.disk.open(&segment.path, false)?;
        self.keep_open(segment, file.clone());
        Ok(file)
    }

    fn keep_open(&self, segment: &Arc<Segment>, file: Arc<dyn DiskFile>) {
        *segment.file.lock() = Some(file);
        let mut open = self.open.lock();
        open.push_back(segment.clone());
        if open.len() > OPEN_MAX
            && let Some(oldest) = open.pop_front()
        {
            *oldest.file.lock() = None;
        }
    }
}

/// `dir` joined with the file name of the segment at `base`.
pub(crate) fn path(dir: &Path, base: u64) -> PathBuf {
    dir.join(file_name(base))
}
