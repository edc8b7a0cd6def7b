//! Checking a log that nobody has open, without changing it.

use std::{io, ops::Range, path::Path, path::PathBuf};

use super::{
    checkpoint::Found,
    directory::{self, Directory},
    disk::{Disk, LockMode},
    error::{LogError, LogErrorKind},
    record::{Position, RecordRef},
    recovery::Replay,
    survey::{self, Visitor},
};

/// What [`verify`] found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct VerifyReport {
    /// Records whose checks all pass.
    pub records: u64,
    /// Bytes of their bodies.
    pub body_bytes: u64,
    /// Files that hold records.
    pub segments: u64,
    /// Files prepared for records to come.
    pub spare_segments: u64,
    /// The first position kept.
    pub start: Position,
    /// Where the log ends.
    pub end: Position,
    /// What the newest usable checkpoint covers.
    pub checkpoint: Option<Position>,
    /// Ranges that had been durable and cannot be read.
    pub damaged: Vec<Range<Position>>,
    /// Checkpoints, segments and state files that cannot be used.
    pub damaged_files: Vec<PathBuf>,
    /// Bytes behind the end that were written and never confirmed; opening the log cuts them off.
    pub torn_bytes: u64,
    /// Whether the log was closed properly.
    pub clean: bool,
}

impl VerifyReport {
    /// Whether nothing that had been durable is missing. A torn tail, as a crash leaves it, is sound.
    pub fn is_sound(&self) -> bool {
        self.damaged.is_empty() && self.damaged_files.is_empty()
    }
}

/// Reads every record of the log in `dir` and checks it. Changes nothing.
///
/// Takes the lock as a reader: others may verify and export at the same time.
///
/// # Errors
/// [`Locked`](LogErrorKind::Locked) when a log has the directory open, [`Format`](LogErrorKind::Format) when
/// there is none; damage is no error but part of the report.
///
/// # Examples
///
/// ```
/// # use std::sync::Arc;
/// use millstream_embedded::log::{self, Log, LogSettings, RealDisk};
/// # let dir = tempfile::tempdir()?;
/// let (log, _) = Log::open(dir.path(), LogSettings::default(), Arc::new(RealDisk), &mut |_| {})?;
/// assert!(log::verify(dir.path(), &RealDisk).is_err(), "in use");
/// log.close()?;
/// assert!(log::verify(dir.path(), &RealDisk)?.is_sound());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn verify(dir: &Path, disk: &dyn Disk) -> Result<VerifyReport, LogError> {
    visit(dir, disk, &mut |_| Ok(()))
}

/// [`verify`] that shows the newest usable checkpoint first, if there is one, and every record, also those that it covers.
pub(crate) fn walk(
    dir: &Path,
    disk: &dyn Disk,
    see: &mut dyn FnMut(Replay<'_>),
) -> Result<VerifyReport, LogError> {
    if let Some((covers, payload)) = Directory::load(disk, dir)?.checkpoint {
        see(Replay::Checkpoint { payload: &payload, covers: Position::new(covers) });
    }
    visit(dir, disk, &mut |met| {
        if let Met::Record(record) = met {
            see(Replay::Record(record));
        }
        Ok(())
    })
}

/// What a walk over a whole log meets.
pub(crate) enum Met<'a> {
    Record(RecordRef<'a>),
    Damage(Range<Position>),
}

/// Walks over all records of a log nobody has open.
pub(crate) fn visit(
    dir: &Path,
    disk: &dyn Disk,
    visit: &mut dyn FnMut(Met<'_>) -> Result<(), LogError>,
) -> Result<VerifyReport, LogError> {
    let _lock = directory::lock(disk, dir, LockMode::Shared)?;
    let found = Directory::load(disk, dir)?;
    if found.is_empty() {
        return Err(LogError::new(LogErrorKind::Format, format!("{} holds no log", dir.display())));
    }
    let mut report = VerifyReport {
        segments: found.segments.len() as u64,
        spare_segments: found.spares.len() as u64,
        checkpoint: found.checkpoint.as_ref().map(|(covers, _)| Position::new(*covers)),
        damaged_files: found.unusable.clone(),
        clean: matches!(&found.state, Found::Whole(s) if s.clean_end > 0),
        ..VerifyReport::default()
    };
    if found.state == Found::Damaged {
        report.damaged_files.push(dir.join(super::checkpoint::STATE_NAME));
    }
    let headless = found.segments.iter().filter(|s| s.head.is_none());
    report.damaged_files.extend(headless.map(|s| s.path.clone()));
    let mut checker = Checker { report: &mut report, visit };
    let start = found.segments.first().map_or(0, |s| s.base);
    let surveyed = survey::survey(disk, &found, start, &mut checker)?;
    report.start = Position::new(start.max(survey::FIRST_POSITION));
    report.end = Position::new(surveyed.end);
    report.torn_bytes = surveyed.torn_bytes;
    Ok(report)
}

struct Checker<'a> {
    report: &'a mut VerifyReport,
    visit: &'a mut dyn FnMut(Met<'_>) -> Result<(), LogError>,
}

impl Visitor for Checker<'_> {
    fn record(&mut self, record: RecordRef<'_>) -> Result<(), LogError> {
        self.report.records += 1;
        self.report.body_bytes += record.body.len() as u64;
        (self.visit)(Met::Record(record))
    }

    fn damaged(&mut self, range: Range<u64>, _: &dyn Fn() -> io::Result<Vec<u8>>) -> Result<(), LogError> {
        let range = Position::new(range.start)..Position::new(range.end);
        self.report.damaged.push(range.clone());
        (self.visit)(Met::Damage(range))
    }
}
