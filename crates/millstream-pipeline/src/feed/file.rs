//! Files: one, or all that a pattern names, read once and remembered.

use super::lines::Lines;
use super::{Chunk, Feed};
use crate::bound::READ_BYTES;
use crate::codec::Framer;
use crate::file::model::{Format, Reading};
use bytes::Bytes;
use millstream_flow::BoxError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::future::Future;
use std::io::SeekFrom;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

/// How often a followed file is looked at for more.
const LOOK: Duration = Duration::from_millis(200);
/// Bytes at the begin of a file that tell it from another one of the same name.
const MARK: usize = 256;

/// How far each file was read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Position {
    files: BTreeMap<String, FilePosition>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct FilePosition {
    /// Where reading goes on.
    offset: u64,
    /// The line that begins there.
    line: u64,
    /// Checksum of the file's first bytes, as far as they had been read.
    mark: u32,
    /// How many bytes the checksum covers.
    marked: u64,
}

/// A file that cannot be read, with what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {path}", path = path.display())]
struct ReadError {
    path: PathBuf,
    source: std::io::Error,
}

/// Reads files from front to back, in the order of their names.
pub(crate) struct FileFeed {
    path: PathBuf,
    /// What messages call the directory of the pipeline file: nothing.
    base: PathBuf,
    read: Reading,
    follow: bool,
    /// The most items handed out at once.
    chunk: usize,
    position: Position,
    position_name: String,
    current: Option<Current>,
    /// Files of this run that were read to their end.
    done: Vec<PathBuf>,
}

struct Current {
    path: PathBuf,
    name: String,
    file: File,
    lines: Lines,
    first: Vec<u8>,
    end: bool,
    /// Whether it has lost its name, to another file or to none: what is in it is read to the end, for nobody will
    /// write more.
    gone: bool,
}

impl FileFeed {
    /// A feed of the files at `path`, whose last part may hold `*`, going on where `position` says.
    ///
    /// # Errors
    ///
    /// If there is no such file, or `position` is not one of ours.
    pub(crate) fn open(
        pipeline: &str,
        base: &Path,
        path: &Path,
        read: &Reading,
        follow: bool,
        chunk: usize,
    ) -> Result<Self, BoxError> {
        let position_name = format!("{pipeline}/file/{}", show(base, path));
        let feed = FileFeed {
            path: path.to_owned(),
            base: base.to_owned(),
            read: read.clone(),
            follow,
            chunk,
            position: Position::default(),
            position_name,
            current: None,
            done: Vec::new(),
        };
        if feed.files()?.is_empty() && !follow {
            let message =
                "no such file; check `source.file.path`, which starts from the pipeline file's directory";
            let source = std::io::Error::new(std::io::ErrorKind::NotFound, message);
            return Err(ReadError { path: path.to_owned(), source }.into());
        }
        Ok(feed)
    }

    /// The files there are now.
    fn files(&self) -> Result<Vec<PathBuf>, BoxError> {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        if !name.contains('*') {
            return Ok(if self.path.exists() { vec![self.path.clone()] } else { Vec::new() });
        }
        let directory =
            self.path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let entries = std::fs::read_dir(directory)
            .map_err(|source| ReadError { path: directory.to_owned(), source })?;
        let mut files: Vec<PathBuf> = entries
            .flatten()
            .filter(|entry| matches_pattern(&name, &entry.file_name().to_string_lossy()))
            .map(|entry| entry.path())
            .filter(|path| path.is_file())
            .collect();
        files.sort();
        Ok(files)
    }

    /// Opens the next file that has not been read in this run.
    async fn open_next(&mut self) -> Result<bool, BoxError> {
        let Some(path) = self.files()?.into_iter().find(|path| !self.done.contains(path)) else {
            return Ok(false);
        };
        let current =
            self.open_file(&path).await.map_err(|error| match error.downcast::<std::io::Error>() {
                Ok(source) => ReadError { path: path.clone(), source: *source }.into(),
                Err(error) => error,
            })?;
        self.current = Some(current);
        Ok(true)
    }

    async fn open_file(&self, path: &Path) -> Result<Current, BoxError> {
        let name = show(&self.base, path);
        let mut file = File::open(path).await?;
        let length = file.metadata().await?.len();
        let first = read_first(&mut file, MARK).await?;
        let place: Arc<str> = name.as_str().into();
        // A file that was replaced or cut is another file, and read from its begin.
        let known = self.position.files.get(&name).filter(|known| {
            let marked = known.marked as usize;
            known.offset <= length && marked <= first.len() && crc32fast::hash(&first[..marked]) == known.mark
        });
        let (offset, line) = known.map_or((0, 1), |known| (known.offset, known.line));
        let mut lines = Lines::resume(&self.read, place, offset, line);
        if offset > 0 && lines.wants_header() {
            self.read_header(&mut file, &mut lines).await?;
        }
        file.seek(SeekFrom::Start(offset)).await?;
        Ok(Current { path: path.to_owned(), name, file, lines, first, end: false, gone: false })
    }

    /// Reads the csv header again, of a file that goes on behind it.
    async fn read_header(&self, file: &mut File, lines: &mut Lines) -> Result<(), BoxError> {
        file.seek(SeekFrom::Start(0)).await?;
        let delimiter = (self.read.format.value == Format::Csv).then_some(self.read.delimiter.value);
        let mut framer = Framer::new(self.read.line_max, delimiter);
        loop {
            while let Some(frame) = framer.next() {
                if frame.length() > 0 {
                    return Ok(lines.header(&frame)?);
                }
            }
            framer.buffer().reserve(4096);
            if file.read_buf(framer.buffer()).await? == 0 {
                return Err("the csv header is gone".into());
            }
        }
    }

    /// The position with the current file as far as its items were handed out.
    fn position(&mut self) -> Option<Bytes> {
        let current = self.current.as_ref()?;
        let (offset, line) = current.lines.framer.position();
        let marked = current.first.len().min(offset as usize);
        let mark = crc32fast::hash(&current.first[..marked]);
        let position = FilePosition { offset, line, mark, marked: marked as u64 };
        self.position.files.insert(current.name.clone(), position);
        serde_json::to_vec(&self.position).ok().map(Bytes::from)
    }

    async fn read_chunk(&mut self) -> Result<Option<Chunk>, BoxError> {
        let mut items = Vec::new();
        loop {
            let Some(current) = &mut self.current else {
                if self.open_next().await? {
                    continue;
                }
                if !self.follow {
                    return Ok(None);
                }
                tokio::time::sleep(LOOK).await;
                continue;
            };
            // A line without its break is an item only where nobody will write its rest.
            current.lines.take(self.chunk, current.end && (!self.follow || current.gone), &mut items)?;
            if !items.is_empty() {
                let position = self.position();
                return Ok(Some(Chunk { items, position, reply: None }));
            }
            if current.end && !self.follow {
                self.done.push(current.path.clone());
                self.current = None;
                continue;
            }
            let buffer = current.lines.framer.buffer();
            buffer.reserve(READ_BYTES as usize);
            let count = current
                .file
                .read_buf(buffer)
                .await
                .map_err(|source| ReadError { path: current.path.clone(), source })?;
            if count > 0 && current.first.len() < MARK {
                // A file that is still being written when its begin is marked.
                let mut file = File::open(&current.path).await?;
                current.first = read_first(&mut file, MARK).await?;
            }
            current.end = count == 0;
            if current.end && self.follow {
                self.look_again().await?;
            }
        }
    }

    /// At the end of a followed file: goes over to the next one, to the file that took its place, or waits.
    async fn look_again(&mut self) -> Result<(), BoxError> {
        let Some(current) = &mut self.current else { return Ok(()) };
        let (read, _) = current.lines.framer.position();
        let path = current.path.clone();
        let named = tokio::fs::metadata(&path).await.ok();
        let same = match &named {
            Some(named) => is_same(named, &current.file.metadata().await?),
            None => false,
        };
        if !same && !current.gone {
            // Something may have been written between its end and its end of name.
            current.gone = true;
            return Ok(());
        }
        if !same || named.is_none_or(|named| named.len() < read) {
            self.position.files.remove(&current.name);
            self.current = None;
        } else if self.files()?.iter().any(|file| *file != path && !self.done.contains(file)) {
            self.done.push(path);
            self.current = None;
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
        Ok(())
    }
}

/// Whether a name still means the file that was opened by it: logs are rotated by giving the name to another file.
#[cfg(unix)]
fn is_same(named: &std::fs::Metadata, open: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (named.dev(), named.ino()) == (open.dev(), open.ino())
}

/// Where files have no such numbers, one that is shorter than what was read of it shows that it is another one.
#[cfg(not(unix))]
fn is_same(_: &std::fs::Metadata, _: &std::fs::Metadata) -> bool {
    true
}

impl Feed for FileFeed {
    fn next(&mut self) -> Pin<Box<dyn Future<Output = Result<Option<Chunk>, BoxError>> + Send + '_>> {
        Box::pin(self.read_chunk())
    }

    /// A file that others still write may be gone before it is read.
    fn can_wait(&self) -> bool {
        !self.follow
    }

    fn resume(&mut self, position: &[u8]) -> Result<(), BoxError> {
        self.position = serde_json::from_slice(position).map_err(|error| {
            format!("the stored position `{}` cannot be read: {error}", self.position_name)
        })?;
        Ok(())
    }

    fn position_name(&self) -> Option<&str> {
        Some(&self.position_name)
    }
}

async fn read_first(file: &mut File, max: usize) -> std::io::Result<Vec<u8>> {
    let mut first = Vec::with_capacity(max);
    file.take(max as u64).read_to_end(&mut first).await?;
    Ok(first)
}

/// A path as messages show it: from the pipeline file's directory where it lies below that.
fn show(base: &Path, path: &Path) -> String {
    path.strip_prefix(base).unwrap_or(path).display().to_string()
}

/// Whether `name` is what `pattern` says, `*` standing for anything. Hidden files must be named so.
fn matches_pattern(pattern: &str, name: &str) -> bool {
    if name.starts_with('.') && !pattern.starts_with('.') {
        return false;
    }
    let mut parts = pattern.split('*');
    let Some(mut rest) = name.strip_prefix(parts.next().unwrap_or("")) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.len() >= last.len() && rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_names() {
        for (pattern, name, matches) in [
            ("*.csv", "a.csv", true),
            ("*.csv", ".a.csv", false),
            ("a*b*c", "abc", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("*.csv", "a.csv.gz", false),
            ("ab*ba", "aba", false),
        ] {
            assert_eq!(matches_pattern(pattern, name), matches, "{pattern} {name}");
        }
    }
}
