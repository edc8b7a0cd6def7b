//! Finding records in a segment file, and finding them again behind a damaged range.

use std::{io, sync::Arc};

use super::{
    disk::DiskFile,
    record::{ALIGN, HEADER, Header, Position, RecordRef, crc_matches, u64_at},
    settings::PAGE,
};

/// Bytes read at once. Fits the second-level cache of current processors.
const READ_AHEAD: u64 = 512 << 10;

/// The same at first, and twice as many each time: who wants one record shall not wait for half a megabyte.
const READ_FIRST: u64 = 64 << 10;

/// How many bytes may be checksummed while looking for a record behind a damaged range, in multiples of the
/// range searched: bytes that were made to look like headers cannot make the search quadratic.
const SEARCH_BUDGET: u64 = 16;

/// Reads records of one segment through a buffer.
#[derive(Debug)]
pub(crate) struct Cursor {
    file: Arc<dyn DiskFile>,
    base: u64,
    salt: u32,
    /// Bytes of the positions from `buffer_at` on; `filled` of them are valid.
    buffer: Vec<u8>,
    buffer_at: u64,
    filled: usize,
    /// How many bytes are read next.
    ahead: u64,
}

impl Cursor {
    pub(crate) fn new(file: Arc<dyn DiskFile>, base: u64, salt: u32) -> Self {
        Self { file, base, salt, buffer: Vec::new(), buffer_at: base, filled: 0, ahead: READ_FIRST }
    }

    /// The record at `position`, if a whole and valid one is there that ends at `limit` at the latest. Its
    /// body can then be had by [`record`](Self::record).
    pub(crate) fn record_at(&mut self, position: u64, limit: u64) -> io::Result<Option<Header>> {
        let Some(room) = limit.checked_sub(position).filter(|r| *r >= HEADER as u64) else { return Ok(None) };
        let Some(header) = Header::decode(self.window(position, HEADER as u64, limit)?) else {
            return Ok(None);
        };
        // The length is believed only as far as the file reaches: it cannot cause a larger allocation.
        if header.position != position || header.stored_len() > room {
            return Ok(None);
        }
        let salt = self.salt;
        let bytes = self.window(position, header.stored_len(), limit)?;
        Ok(crc_matches(salt, &header, bytes).then_some(header))
    }

    /// The record of a `header` that [`record_at`](Self::record_at) or [`find`](Self::find) gave last.
    pub(crate) fn record(&self, header: &Header) -> RecordRef<'_> {
        let at = (header.position - self.buffer_at) as usize + HEADER;
        RecordRef {
            position: Position::new(header.position),
            kind: header.kind,
            time: header.time,
            body: &self.buffer[at..at + header.len as usize],
        }
    }

    /// The first valid record at or behind `from` (a multiple of [`ALIGN`] from the base) that ends at
    /// `limit` at the latest and is of `epoch_min` or later.
    pub(crate) fn find(&mut self, from: u64, limit: u64, epoch_min: u32) -> io::Result<Option<Header>> {
        let mut budget = limit.saturating_sub(from).saturating_mul(SEARCH_BUDGET);
        let mut position = from;
        while position + HEADER as u64 <= limit {
            let window = self.window(position, HEADER as u64, limit)?;
            let Some(candidate) = candidate(window, position) else {
                let searched = window.len().saturating_sub(HEADER) as u64 / ALIGN + 1;
                position += searched * ALIGN;
                continue;
            };
            position = candidate;
            let header = Header::decode(self.window(position, HEADER as u64, limit)?);
            if let Some(header) =
                header.filter(|h| h.epoch >= epoch_min && h.stored_len() <= limit - position)
            {
                let Some(left) = budget.checked_sub(header.stored_len()) else { return Ok(None) };
                budget = left;
                if let Some(header) = self.record_at(position, limit)? {
                    return Ok(Some(header));
                }
            }
            position += ALIGN;
        }
        Ok(None)
    }

    /// Raw bytes of `from..to`, fewer where the file ends; for setting a damaged range aside.
    pub(crate) fn raw(&self, from: u64, to: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; (to - from) as usize];
        let read = self.file.read_at(&mut bytes, PAGE + (from - self.base))?;
        bytes.truncate(read);
        Ok(bytes)
    }

    /// The bytes from `position` on: `need` of them at least, unless the file or `limit` ends before.
    fn window(&mut self, position: u64, need: u64, limit: u64) -> io::Result<&[u8]> {
        let buffered = self.buffer_at..self.buffer_at + self.filled as u64;
        if position < buffered.start || position + need > buffered.end {
            // Nothing at or behind `limit` is buffered: it may be written after this.
            let len = need.max(self.ahead).min(limit - position) as usize;
            self.ahead = (2 * self.ahead).min(READ_AHEAD);
            if self.buffer.len() < len {
                self.buffer.resize(len, 0);
            }
            self.filled = 0;
            self.filled = self.file.read_at(&mut self.buffer[..len], PAGE + (position - self.base))?;
            self.buffer_at = position;
        }
        let at = (position - self.buffer_at) as usize;
        let end = self.filled.min(at + (limit - position) as usize);
        Ok(self.buffer.get(at..end).unwrap_or_default())
    }
}

/// The first place in `window` whose bytes claim to be a record of exactly that position.
fn candidate(window: &[u8], position: u64) -> Option<u64> {
    let places = window.len().checked_sub(HEADER)? / ALIGN as usize + 1;
    (0..places).map(|i| i * ALIGN as usize).find_map(|at| {
        let claimed = position + at as u64;
        (u64_at(window, at + 8) == claimed).then_some(claimed)
    })
}
