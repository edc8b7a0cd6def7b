//! How far files were read, and whether a file is still the one that was read.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use tokio::fs::File;

/// Bytes that tell a file from another one of the same name: so many at its begin, and so many before where reading goes on.
const MARK: u64 = 256;

/// How far each file was read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    pub(super) files: BTreeMap<String, FilePosition>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FilePosition {
    /// Where reading goes on.
    pub(super) offset: u64,
    /// The line that begins there.
    pub(super) line: u64,
    /// Checksum of the file's first bytes, as far as they had been read.
    mark: u32,
    /// How many bytes the checksum covers.
    marked: u64,
    /// Checksum of the last bytes before `offset`, which differ where files begin alike: csv of one header. Positions of
    /// earlier versions have none.
    #[serde(default)]
    tail: u32,
    #[serde(default)]
    tailed: u64,
}

/// The begin of an open file, as far as it is known.
#[derive(Debug, Default)]
pub(super) struct Begin(Vec<u8>);

impl Begin {
    /// The position of `file` at `offset`, up to which it has been read.
    ///
    /// What is read here was read a moment ago: no disk is waited for.
    pub(super) fn position(&mut self, file: &File, offset: u64, line: u64) -> io::Result<FilePosition> {
        let marked = offset.min(MARK);
        if (self.0.len() as u64) < marked {
            self.0 = read_at(file, 0, MARK)?;
        }
        let first = &self.0[..self.0.len().min(marked as usize)];
        let tailed = (offset - marked).min(MARK);
        // Of a file that is cut in this moment there is less, and it is another one from then on.
        let tail = crc32fast::hash(&read_at(file, offset - tailed, tailed)?);
        Ok(FilePosition { offset, line, mark: crc32fast::hash(first), marked, tail, tailed })
    }
}

impl FilePosition {
    /// Whether this is a position of `file`, which is `length` bytes long: one that was replaced or cut is another file.
    pub(super) fn is_of(&self, file: &File, length: u64) -> io::Result<bool> {
        let is =
            |from, count, mark| Ok::<_, io::Error>(crc32fast::hash(&read_at(file, from, count)?) == mark);
        Ok(self.offset <= length
            && self.tailed <= self.offset
            && is(0, self.marked.min(MARK), self.mark)?
            && is(self.offset - self.tailed, self.tailed.min(MARK), self.tail)?)
    }
}

/// The last bytes that were read of an open file, up to [`MARK`] of them. Where others stand in their place the file was
/// written anew, also when it is longer again than it was.
#[derive(Debug, Default)]
pub(super) struct Tail(Vec<u8>);

impl Tail {
    /// Takes what was read behind them.
    pub(super) fn take(&mut self, read: &[u8]) {
        let read = &read[read.len().saturating_sub(MARK as usize)..];
        self.0.drain(..(self.0.len() + read.len()).saturating_sub(MARK as usize));
        self.0.extend_from_slice(read);
    }

    /// Forgets the last `count` bytes: they will be read again.
    pub(super) fn give_back(&mut self, count: u64) {
        self.0.truncate(self.0.len().saturating_sub(usize::try_from(count).unwrap_or(usize::MAX)));
    }

    /// Whether they are still what `file` has before `at`, up to which it was read.
    pub(super) fn is_before(&self, at: u64, file: &File) -> io::Result<bool> {
        let count = self.0.len() as u64;
        Ok(count == 0 || read_at(file, at.saturating_sub(count), count)? == self.0)
    }
}

/// Up to `count` bytes from `offset` on, whatever is being read of the file meanwhile.
fn read_at(file: &File, offset: u64, count: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; count as usize];
    let mut read = 0;
    while read < bytes.len() {
        match rustix::io::pread(file, &mut bytes[read..], offset + read as u64) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    bytes.truncate(read);
    Ok(bytes)
}

/// What tells a file from others whatever its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    pub(super) fn of(file: &Metadata) -> Identity {
        Identity { device: file.dev(), inode: file.ino() }
    }

    /// Whether a name still means the file that was opened by it: logs are rotated by giving the name to another file.
    pub(super) fn is_of(self, named: &Metadata) -> bool {
        self == Identity::of(named)
    }
}
