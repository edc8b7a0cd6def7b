//! A file that is open.

use super::LOOK;
use super::error::ReadError;
use super::place::{Begin, Identity, Tail};
use crate::feed::lines::Lines;
use std::io::SeekFrom;
use std::path::PathBuf;
use tokio::fs::File;
use tokio::io::AsyncSeekExt;
use tokio::time::Instant;

/// One that is being read, or rests until it grows.
pub(super) struct Current {
    pub(super) path: PathBuf,
    pub(super) name: String,
    pub(super) file: File,
    pub(super) identity: Identity,
    pub(super) lines: Lines,
    pub(super) begin: Begin,
    /// Where its next bytes are read.
    pub(super) at: u64,
    /// What was read before that.
    pub(super) tail: Tail,
    pub(super) end: bool,
    /// Since when it is read.
    pub(super) since: Instant,
    /// How long it was when it was found: that much is read before others have their turn.
    pub(super) found: u64,
    /// Whether it has lost its name, to another file or to none: what is in it is read to the end, for nobody will
    /// write more.
    pub(super) gone: bool,
}

impl Current {
    /// Whether others have waited long enough for one that is written so fast that its end is never reached. What was
    /// there when it was found is read first: files are in the order of their names.
    pub(super) fn has_had_its_turn(&self) -> bool {
        self.at >= self.found && !self.end && !self.gone && self.since.elapsed() >= LOOK
    }

    /// Whether what was read last still stands where it stood: a log may be cut, or written anew, under its name.
    pub(super) fn is_same(&self) -> Result<bool, ReadError> {
        self.tail.is_before(self.at, &self.file).map_err(ReadError::of(&self.path))
    }

    /// Goes on after a rest.
    pub(super) async fn woken(mut self) -> Result<Self, ReadError> {
        let (offset, _) = self.lines.framer.position();
        self.tail.give_back(self.at - offset);
        self.file.seek(SeekFrom::Start(offset)).await.map_err(ReadError::of(&self.path))?;
        (self.at, self.end, self.since, self.found) = (offset, false, Instant::now(), offset);
        Ok(self)
    }
}
