//! What can go wrong, one error per operation.

use std::{error::Error, fmt, io, ops::Range, path::Path, sync::Arc};

use super::record::Position;

/// Why a log could not be opened, checkpointed, verified, exported or closed.
#[derive(Debug)]
pub struct LogError {
    kind: LogErrorKind,
    message: String,
    source: Option<io::Error>,
}

/// What the caller can do about a [`LogError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LogErrorKind {
    /// Another process (or another log in this one) has the directory open. Stop it, or choose another.
    Locked,
    /// The disk is full. Make room and try again; nothing that was accepted is lost.
    Full,
    /// The directory was written by a newer version, or is no log at all.
    Format,
    /// The settings contradict each other.
    Settings,
    /// The disk refused an operation for another reason; the source says which.
    Io,
}

impl LogError {
    pub(crate) fn new(kind: LogErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    pub(crate) fn with_source(kind: LogErrorKind, message: impl Into<String>, source: io::Error) -> Self {
        Self { kind, message: message.into(), source: Some(source) }
    }

    pub(crate) fn settings(message: impl Into<String>) -> Self {
        Self::new(LogErrorKind::Settings, message)
    }

    pub(crate) fn io(doing: &str, path: &Path, source: io::Error) -> Self {
        let kind = if is_full(&source) { LogErrorKind::Full } else { LogErrorKind::Io };
        let remedy = match (kind, source.kind()) {
            (LogErrorKind::Full, _) => "; make room on the disk and try again",
            (_, io::ErrorKind::PermissionDenied) => "; give this user the right to write there",
            _ => "",
        };
        Self { kind, message: format!("cannot {doing} {}{remedy}", path.display()), source: Some(source) }
    }

    /// What the caller can do about it.
    pub fn kind(&self) -> LogErrorKind {
        self.kind
    }
}

impl fmt::Display for LogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for LogError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_ref().map(|e| e as _)
    }
}

/// Whether `error` says that there is no room left.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}

/// Why an append was refused. Nothing of it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum AppendError {
    /// The record, or the atomic batch, is larger than the settings allow. Retrying cannot help.
    TooLarge {
        /// Bytes asked for.
        len: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// Only from `try_` forms: the pending bytes are used up. Wait for a commit and try again.
    Busy,
    /// The log was closed.
    Closed,
}

impl fmt::Display for AppendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge { len, max } => {
                write!(f, "record of {len} bytes is larger than the limit of {max}")
            }
            Self::Busy => f.write_str("too many bytes are waiting to become durable"),
            Self::Closed => f.write_str("the log is closed"),
        }
    }
}

impl Error for AppendError {}

/// Why records that were accepted did not become durable.
#[derive(Debug, Clone)]
pub struct CommitError {
    pub(crate) kind: CommitErrorKind,
    pub(crate) source: Arc<io::Error>,
}

/// Where the records of a failed commit are now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CommitErrorKind {
    /// They were never handed to the disk. Appending them again is safe.
    NotStored,
    /// The disk failed while storing them: after a crash they may be there. Append them again only if
    /// readers deduplicate.
    MaybeStored,
}

impl CommitError {
    /// Where the records are now.
    pub fn kind(&self) -> CommitErrorKind {
        self.kind
    }

    /// Whether the cause is a full disk: the log goes on by itself once there is room.
    pub fn is_full(&self) -> bool {
        is_full(&self.source)
    }
}

impl fmt::Display for CommitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            CommitErrorKind::NotStored => "records are not stored",
            CommitErrorKind::MaybeStored => "records are not confirmed and may be stored",
        })?;
        if self.is_full() {
            f.write_str(": the disk is full; make room, the log goes on by itself")?;
        }
        Ok(())
    }
}

impl Error for CommitError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.source)
    }
}

/// Why a record could not be read.
#[derive(Debug)]
#[non_exhaustive]
pub enum ReadError {
    /// The position was released, or never held a record.
    Gone(Position),
    /// The position is not durable yet.
    NotDurable(Position),
    /// The bytes of this range fail their checks. Reading can go on behind it.
    Damaged(Range<Position>),
    /// The disk refused.
    Io(Position, io::Error),
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone(p) => write!(f, "no record is kept at position {p}"),
            Self::NotDurable(p) => write!(f, "the record at position {p} is not durable yet"),
            Self::Damaged(r) => write!(f, "the log is damaged from position {} to {}", r.start, r.end),
            Self::Io(p, _) => write!(f, "cannot read the log at position {p}"),
        }
    }
}

impl Error for ReadError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Io(_, e) => Some(e),
            _ => None,
        }
    }
}
