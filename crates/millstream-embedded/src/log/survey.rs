//! Reading a log from end to end: what is a record, what is damage, and where the log ends.

use std::ops::Range;

use super::{
    checkpoint::Found,
    directory::{Directory, FoundSegment},
    disk::Disk,
    error::LogError,
    record::{ALIGN, HEADER, Header, RecordRef},
    scan::Cursor,
};

/// Where the first record of a new log is. Not 0, so that a page of zeros never claims its own position.
pub(crate) const FIRST_POSITION: u64 = 4096;

/// What a survey meets, in the order of positions.
pub(crate) trait Visitor {
    fn record(&mut self, record: RecordRef<'_>) -> Result<(), LogError>;

    /// A range whose records had been durable and are not readable. `bytes` is what the disk has of it.
    fn damaged(
        &mut self,
        range: Range<u64>,
        bytes: &dyn Fn() -> std::io::Result<Vec<u8>>,
    ) -> Result<(), LogError>;
}

/// What a survey found out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Surveyed {
    /// Behind the last record, and behind everything known to have been durable.
    pub(crate) end: u64,
    /// Bytes behind `end` that were written and never confirmed, as far as recognisable.
    pub(crate) torn_bytes: u64,
    pub(crate) epoch_max: u32,
    /// Everything before is known to have been durable; what is behind may be in the system's cache only.
    pub(crate) durable: u64,
}

/// Visits the records from `from` on.
pub(crate) fn survey(
    disk: &dyn Disk,
    directory: &Directory,
    from: u64,
    visitor: &mut dyn Visitor,
) -> Result<Surveyed, LogError> {
    let mut durable = directory.checkpoint.as_ref().map_or(0, |(covers, _)| *covers);
    let mut clean_end = None;
    if let Found::Whole(state) = &directory.state
        && state.clean_end > 0
    {
        durable = durable.max(state.clean_end);
        clean_end = Some(state.clean_end);
    }
    let mut survey = Survey {
        visitor,
        position: from.max(FIRST_POSITION),
        durable,
        clean_end,
        epoch: 0,
        written: None,
        torn_bytes: 0,
    };
    let first = directory.segments.partition_point(|s| s.base <= from).saturating_sub(1);
    for (index, segment) in directory.segments.iter().enumerate().skip(first) {
        let salt = directory.salt.expect("a directory with segments has a salt");
        let file = disk.open(&segment.path, false).map_err(|e| LogError::io("open", &segment.path, e))?;
        let mut cursor = Cursor::new(file, segment.base, salt);
        survey
            .segment(segment, &mut cursor, directory.end_of(index))
            .map_err(|e| e.into_log_error(segment))?;
    }
    if let Some(last) = directory.segments.last()
        && survey.position < survey.durable
    {
        // The file that held the end is missing.
        let range = survey.position..survey.durable;
        survey.damaged(range, None).map_err(|e| e.into_log_error(last))?;
    }
    Ok(Surveyed {
        end: survey.position.max(survey.durable),
        torn_bytes: survey.torn_bytes,
        epoch_max: survey.epoch,
        durable: survey.durable,
    })
}

struct Survey<'a> {
    visitor: &'a mut dyn Visitor,
    position: u64,
    /// Everything before was durable once: what is not readable there is damage, not a torn tail.
    durable: u64,
    clean_end: Option<u64>,
    /// Of the last record. Records of an earlier epoch are remains of a tail that was cut off before.
    epoch: u32,
    /// Behind the last record that is anywhere in the last segment. Known once its rest was searched, which is
    /// done once: damage upon damage does not make opening quadratic.
    written: Option<u64>,
    torn_bytes: u64,
}

/// Either side's failure, before it is known which file it was.
enum Failure {
    Read(std::io::Error),
    Visitor(LogError),
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Read(error)
    }
}

impl Failure {
    fn into_log_error(self, segment: &FoundSegment) -> LogError {
        match self {
            Self::Read(error) => LogError::io("read", &segment.path, error),
            Self::Visitor(error) => error,
        }
    }
}

impl Survey<'_> {
    /// `end` is where the records of the segment ended according to the next one; `None` for the last.
    fn segment(
        &mut self,
        segment: &FoundSegment,
        cursor: &mut Cursor,
        end: Option<u64>,
    ) -> Result<(), Failure> {
        let file_end = segment.base + segment.capacity;
        let limit = end.map_or(file_end, |e| e.min(file_end));
        // What lies between the segment before and this one was given up with an error.
        self.position = self.position.max(segment.base);
        let mut whole_until = self.position;
        while self.position < limit {
            let Some(header) = self.valid(cursor, self.position, limit)? else {
                if !self.pass(segment, cursor, limit, end)? {
                    return Ok(());
                }
                continue;
            };
            if header.joined() && self.position >= whole_until {
                whole_until = match self.batch_end(cursor, header, limit)? {
                    Ok(batch_end) => batch_end,
                    Err(broken_at)
                        if end.is_some()
                            || self.known_durable(segment, cursor, broken_at, limit)? > self.position =>
                    {
                        broken_at
                    }
                    Err(_) => {
                        // Of an atomic batch at the tail, a part is as good as nothing.
                        self.cut(cursor, limit)?;
                        return Ok(());
                    }
                };
                // The look ahead may have moved the cursor's buffer on.
                continue;
            }
            self.epoch = header.epoch;
            self.durable = self.durable.max(header.durable_before());
            self.position += header.stored_len();
            self.visitor.record(cursor.record(&header)).map_err(Failure::Visitor)?;
        }
        match end {
            Some(end) if self.position < end => self.damaged(self.position..end, None),
            _ => Ok(()),
        }
    }

    fn valid(&self, cursor: &mut Cursor, position: u64, limit: u64) -> Result<Option<Header>, Failure> {
        Ok(cursor.record_at(position, limit)?.filter(|h| h.epoch >= self.epoch))
    }

    /// Where the atomic batch that begins with `first` ends, or else where it breaks off.
    fn batch_end(&self, cursor: &mut Cursor, first: Header, limit: u64) -> Result<Result<u64, u64>, Failure> {
        let mut header = first;
        loop {
            let next = header.position + header.stored_len();
            if !header.joined() {
                return Ok(Ok(next));
            }
            match self.valid(cursor, next, limit)? {
                Some(h) => header = h,
                None => return Ok(Err(next)),
            }
        }
    }

    /// Gets past bytes that are no record. `false`: they are the end of the log.
    fn pass(
        &mut self,
        segment: &FoundSegment,
        cursor: &mut Cursor,
        limit: u64,
        end: Option<u64>,
    ) -> Result<bool, Failure> {
        let bound = match end {
            Some(end) => end,
            None if self.clean_end == Some(self.position) => return Ok(false),
            None => self.known_durable(segment, cursor, self.position, limit)?,
        };
        if self.position >= bound {
            self.cut(cursor, limit)?;
            return Ok(false);
        }
        let next = cursor.find(place_behind(segment, self.position), limit, self.epoch)?;
        let to = next.map(|h| h.position).filter(|p| *p < bound).unwrap_or(bound);
        self.damaged(self.position..to, Some(cursor))?;
        Ok(true)
    }

    /// Up to where the log had been durable, by what all records behind `from` say.
    fn known_durable(
        &mut self,
        segment: &FoundSegment,
        cursor: &mut Cursor,
        from: u64,
        limit: u64,
    ) -> Result<u64, Failure> {
        if self.written.is_none() {
            let mut written = from;
            let mut at = place_behind(segment, from);
            while let Some(header) = cursor.find(at, limit, self.epoch)? {
                self.durable = self.durable.max(header.durable_before());
                at = header.position + header.stored_len();
                written = at;
            }
            self.written = Some(written);
        }
        Ok(self.durable)
    }

    /// The log ends at the position: measures what is behind it.
    fn cut(&mut self, cursor: &mut Cursor, limit: u64) -> Result<(), Failure> {
        let mut written = self.written.unwrap_or(0).max(self.position);
        // A record that is torn itself still tells its length, if its header arrived.
        let header = cursor.raw(self.position, limit.min(self.position + HEADER as u64))?;
        if let Some(header) = Header::decode(&header).filter(|h| h.position == self.position) {
            written = written.max(limit.min(self.position + header.stored_len()));
        }
        self.torn_bytes = written - self.position;
        Ok(())
    }

    fn damaged(&mut self, range: Range<u64>, cursor: Option<&Cursor>) -> Result<(), Failure> {
        self.position = range.end;
        let bytes = || cursor.map_or(Ok(Vec::new()), |c| c.raw(range.start, range.end));
        self.visitor.damaged(range.clone(), &bytes).map_err(Failure::Visitor)
    }
}

/// The next position behind `at` at which a record may begin.
fn place_behind(segment: &FoundSegment, at: u64) -> u64 {
    segment.base + (at - segment.base + 1).next_multiple_of(ALIGN)
}
