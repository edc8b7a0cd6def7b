//! The one who writes: groups into segments, from segment to segment, past a failing disk.

use std::{
    io,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
};

use super::{
    commit::Outcome,
    disk::{Disk, DiskFile},
    pool::Pool,
    record::Header,
    segment::{self, Segment, SegmentHead, Segments, VERSION},
    settings::PAGE,
    shared::Counters,
};

/// How often one group is written anew, each time into a fresh segment, before it is given up.
const FRESH_SEGMENTS_MAX: u32 = 3;

/// Writes groups. Used by one thread at a time.
#[derive(Debug)]
pub(crate) struct Writer {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) dir: PathBuf,
    pub(crate) salt: u32,
    pub(crate) epoch: u32,
    pub(crate) segments: Arc<Segments>,
    pub(crate) pool: Arc<Pool>,
    /// The segment being written; none after a failure, until a fresh one is there.
    pub(crate) active: Option<Active>,
    /// Where the last confirmed record ends.
    pub(crate) confirmed: u64,
}

/// The segment being written.
#[derive(Debug)]
pub(crate) struct Active {
    pub(crate) segment: Arc<Segment>,
    pub(crate) file: Arc<dyn DiskFile>,
}

impl Active {
    /// Bytes that still fit behind `position`.
    fn room(&self, position: u64) -> usize {
        usize::try_from(self.segment.base + self.segment.capacity - position).unwrap_or(usize::MAX)
    }
}

impl Writer {
    /// Writes the records in `buffer`, whose first is at `base`, and makes them durable.
    pub(crate) fn write(&mut self, base: u64, buffer: &mut Vec<u8>, counters: &Counters) -> Outcome {
        let len = buffer.len();
        let mut done = 0;
        let mut untried = 0;
        let mut fresh = 0;
        let error = loop {
            if done == len {
                counters.bytes.fetch_add(len as u64, Ordering::Relaxed);
                break None;
            }
            let position = base + done as u64;
            let Some(active) = &self.active else {
                if fresh == FRESH_SEGMENTS_MAX {
                    break Some(io::Error::other("the disk fails on every segment"));
                }
                fresh += 1;
                match self.open_segment(position, unit_len(&buffer[done..])) {
                    Ok(()) => continue,
                    Err(error) => break Some(error),
                }
            };
            let take = units_within(&buffer[done..len], active.room(position));
            if take == 0 {
                // Full: the next segment begins where this one ends. Not an attempt that failed.
                active.segment.seal(position);
                self.active = None;
                fresh = 0;
                continue;
            }
            let last = done + take == len;
            untried = untried.max(done + take);
            match store(active, position, buffer, done..done + take, last) {
                Ok(()) => {
                    done += take;
                    self.confirmed = base + done as u64;
                    if active.room(self.confirmed) < active.segment.capacity as usize / 4 * 3 {
                        self.pool.prepare_one();
                    }
                }
                Err(error) => {
                    counters.failed_syncs.fetch_add(1, Ordering::Relaxed);
                    // The kernel may have dropped the pages and forgotten: this file is never synced again.
                    active.segment.poison();
                    active.segment.seal(position);
                    if active.segment.base == position {
                        // The next one takes its place, and its name.
                        self.segments.pop_empty(&active.segment);
                    }
                    self.active = None;
                    if fresh == FRESH_SEGMENTS_MAX {
                        break Some(error);
                    }
                }
            }
        };
        Outcome { durable: base + done as u64, untried: base + untried as u64, error: error.map(Arc::new) }
    }

    /// Where the last confirmed record ends.
    pub(crate) fn confirmed(&self) -> u64 {
        self.confirmed
    }

    /// Makes a prepared segment the active one, its first record at `base`, with room for `need` bytes.
    fn open_segment(&mut self, base: u64, need: usize) -> io::Result<()> {
        let spare = self.pool.take(need as u64 + PAGE)?;
        let head = SegmentHead {
            version: VERSION,
            salt: self.salt,
            base,
            prev_end: self.confirmed,
            epoch: self.epoch,
        };
        let path = segment::path(&self.dir, base);
        let named = spare
            .file
            .write_at(&head.encode(), 0)
            .and_then(|()| spare.file.sync())
            .and_then(|()| self.disk.rename(&spare.path, &path))
            .and_then(|()| self.disk.sync_dir(&self.dir));
        if let Err(error) = named {
            // Whichever name it has now, it holds no record; the next attempt takes another file.
            let _ = self.disk.remove(&path);
            let _ = self.disk.remove(&spare.path);
            return Err(error);
        }
        let segment = Arc::new(Segment::new(base, spare.bytes - PAGE, path, u64::MAX));
        self.segments.push(segment.clone());
        self.active = Some(Active { segment, file: spare.file });
        Ok(())
    }
}

/// Writes `range` of `buffer` at `position` and syncs. The last write of a group is filled up to a whole
/// page: the kernel then need not read the page it is in, and the bytes behind the tail are zeros.
fn store(
    active: &Active,
    position: u64,
    buffer: &mut Vec<u8>,
    range: std::ops::Range<usize>,
    last: bool,
) -> io::Result<()> {
    let offset = active.segment.offset(position);
    let len = buffer.len();
    let mut end = range.end;
    if last {
        let file_end = offset + (range.end - range.start) as u64;
        end += (file_end.next_multiple_of(PAGE) - file_end) as usize;
        buffer.resize(end, 0);
    }
    let written = active.file.write_at(&buffer[range.start..end], offset);
    buffer.truncate(len);
    written.and_then(|()| active.file.sync())
}

/// Bytes of the first record in `buffer`, or of the atomic batch that it begins.
fn unit_len(buffer: &[u8]) -> usize {
    let mut len = 0;
    while let Some(header) = buffer.get(len..).and_then(Header::decode) {
        len += header.stored_len() as usize;
        if !header.joined() {
            break;
        }
    }
    len
}

/// Bytes of as many whole units as fit into `room`.
fn units_within(buffer: &[u8], room: usize) -> usize {
    if buffer.len() <= room {
        return buffer.len();
    }
    let mut fitting = 0;
    loop {
        let len = unit_len(&buffer[fitting..]);
        if len == 0 || fitting + len > room {
            return fitting;
        }
        fitting += len;
    }
}
