//! Reading records: one by position, or many in order.

use std::sync::Arc;

use bytes::Bytes;

use super::{
    error::ReadError,
    record::{HEADER, Header, Position, Record, RecordRef, crc_matches},
    scan::Cursor,
    segment::Segment,
    shared::Shared,
};

/// Bytes read at first when a single record is asked for: most records need no second read.
const FIRST_READ: u64 = 4096;

/// Reads the record at `position`.
pub(crate) fn read_at(shared: &Shared, position: Position) -> Result<Record, ReadError> {
    let at = position.get();
    let durable = shared.durable();
    if at >= durable {
        return Err(ReadError::NotDurable(position));
    }
    let segment =
        shared.segments.at_or_after(at).filter(|s| s.base <= at).ok_or(ReadError::Gone(position))?;
    match try_read_at(shared, &segment, at, durable) {
        Ok(Some(record)) => Ok(record),
        // A released segment may be overwritten or removed while it is read.
        _ if !is_kept(shared, &segment) => Err(ReadError::Gone(position)),
        Ok(None) => {
            let end = damage_end(shared, &segment, at, durable).map_err(|e| ReadError::Io(position, e))?;
            Err(ReadError::Damaged(position..Position::new(end)))
        }
        Err(error) => Err(ReadError::Io(position, error)),
    }
}

fn try_read_at(
    shared: &Shared,
    segment: &Arc<Segment>,
    at: u64,
    durable: u64,
) -> std::io::Result<Option<Record>> {
    let file = shared.segments.file(segment)?;
    let room = limit(segment, durable) - at;
    let mut bytes = vec![0; room.min(FIRST_READ) as usize];
    let read = file.read_at(&mut bytes, segment.offset(at))?;
    bytes.truncate(read);
    let Some(header) = Header::decode(&bytes).filter(|h| h.position == at && h.stored_len() <= room) else {
        return Ok(None);
    };
    let (len, read) = (HEADER + header.len as usize, bytes.len());
    if len > read {
        bytes.resize(len, 0);
        let more = file.read_at(&mut bytes[read..], segment.offset(at) + read as u64)?;
        bytes.truncate(read + more);
    }
    if !crc_matches(shared.salt, &header, &bytes) {
        return Ok(None);
    }
    // A small record does not keep a large buffer alive.
    let body = if len * 2 < bytes.len() {
        Bytes::copy_from_slice(&bytes[HEADER..len])
    } else {
        bytes.truncate(len);
        Bytes::from(bytes).slice(HEADER..)
    };
    Ok(Some(Record { position: Position::new(at), kind: header.kind, time: header.time, body }))
}

/// Where reading can go on behind the damage at `at`.
fn damage_end(shared: &Shared, segment: &Arc<Segment>, at: u64, durable: u64) -> std::io::Result<u64> {
    let limit = limit(segment, durable);
    let mut cursor = Cursor::new(shared.segments.file(segment)?, segment.base, shared.salt);
    Ok(cursor.find(next_place(segment, at), limit, 0)?.map_or(limit, |h| h.position))
}

/// The next position behind `at` at which a record may begin.
fn next_place(segment: &Segment, at: u64) -> u64 {
    segment.base + (at - segment.base + 1).next_multiple_of(super::record::ALIGN)
}

/// Where the readable records of `segment` end. `durable` was read before.
fn limit(segment: &Segment, durable: u64) -> u64 {
    segment.end().min(durable).min(segment.base + segment.capacity)
}

fn is_kept(shared: &Shared, segment: &Arc<Segment>) -> bool {
    shared.segments.at_or_after(segment.base).is_some_and(|s| Arc::ptr_eq(&s, segment))
}

/// Reads records in order, with read-ahead.
///
/// At the end of what is durable, [`next`](Self::next) gives `None`, and records again once there are more.
#[derive(Debug)]
pub struct Reader {
    shared: Arc<Shared>,
    position: u64,
    current: Option<(Arc<Segment>, Cursor)>,
}

impl Reader {
    pub(crate) fn new(shared: Arc<Shared>, from: Position) -> Self {
        Self { shared, position: from.get(), current: None }
    }

    /// Where the next record will be looked for.
    pub fn position(&self) -> Position {
        Position::new(self.position)
    }

    /// The next record, or `None` at the end of what is durable now. Blocks on the disk.
    ///
    /// # Errors
    /// [`ReadError::Damaged`] once per damaged range; the next call goes on behind it. Ranges that were
    /// released are passed over without an error.
    #[expect(clippy::should_implement_trait, reason = "the record borrows from the reader")]
    pub fn next(&mut self) -> Result<Option<RecordRef<'_>>, ReadError> {
        let Some(header) = self.advance()? else { return Ok(None) };
        self.position = header.position + header.stored_len();
        let (_, cursor) = self.current.as_ref().expect("a record was just read through it");
        Ok(Some(cursor.record(&header)))
    }

    fn advance(&mut self) -> Result<Option<Header>, ReadError> {
        loop {
            let durable = self.shared.durable();
            if self.position >= durable {
                return Ok(None);
            }
            if self.current.as_ref().is_none_or(|(s, _)| s.end() <= self.position) {
                let Some(segment) = self.shared.segments.at_or_after(self.position) else { return Ok(None) };
                self.position = self.position.max(segment.base);
                match self.shared.segments.file(&segment) {
                    Ok(file) => {
                        let cursor = Cursor::new(file, segment.base, self.shared.salt);
                        self.current = Some((segment, cursor));
                    }
                    Err(_) if !is_kept(&self.shared, &segment) => {}
                    Err(error) => return Err(ReadError::Io(self.position(), error)),
                }
                continue;
            }
            let (segment, cursor) = self.current.as_mut().expect("set above");
            let limit = limit(segment, durable);
            if self.position >= limit {
                if segment.end() <= self.position {
                    continue;
                }
                return Ok(None);
            }
            let found = cursor.record_at(self.position, limit);
            if let Ok(Some(header)) = found {
                return Ok(Some(header));
            }
            if !is_kept(&self.shared, segment) {
                self.current = None;
                continue;
            }
            let from = Position::new(self.position);
            let next = found.and_then(|_| cursor.find(next_place(segment, self.position), limit, 0));
            let end = next.map_err(|e| ReadError::Io(from, e))?.map_or(limit, |h| h.position);
            self.position = end;
            return Err(ReadError::Damaged(from..Position::new(end)));
        }
    }
}
