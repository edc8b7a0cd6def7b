//! Files: one, or all that a pattern names, read once and remembered.

mod names;
mod place;

use self::names::{matches_pattern, show};
use self::place::{Begin, Position, is_same};
use super::lines::Lines;
use super::{Chunk, Feed};
use crate::bound::READ_BYTES;
use crate::codec::Framer;
use crate::file::model::{Format, Reading};
use bytes::Bytes;
use millstream_flow::BoxError;
use std::collections::{HashMap, VecDeque};
use std::fs::Metadata;
use std::future::Future;
use std::io::{Error, ErrorKind, SeekFrom};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

/// How often followed files are looked at for more.
const LOOK: Duration = Duration::from_millis(200);
/// Followed files that stay open while another one is read. What is written to one of them before it loses its name is read;
/// of others that are rotated, what was not read by then is gone with the name.
const RESTING: usize = 128;

/// A file that cannot be read, with what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {path}: {remedy}", path = path.display(), remedy = remedy(source))]
struct ReadError {
    path: PathBuf,
    source: Error,
}

impl ReadError {
    fn of(path: &Path) -> impl FnOnce(Error) -> ReadError {
        move |source| ReadError { path: path.to_owned(), source }
    }
}

fn remedy(error: &Error) -> &'static str {
    match error.kind() {
        ErrorKind::NotFound => "check `source.file.path`, which starts from the pipeline file's directory",
        ErrorKind::PermissionDenied => {
            "it is not readable for this user; change its permissions or `source.file.path`"
        }
        ErrorKind::IsADirectory => "it is a directory; name a file in `source.file.path`, or all by `*`",
        _ => "check the disk, and start again",
    }
}

/// Reads files from front to back, in the order of their names. Followed ones are looked at in turn.
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
    /// Files that were found and not opened yet.
    listed: VecDeque<PathBuf>,
    /// Files of this run that were read to their end and are closed, and how long they were.
    done: HashMap<PathBuf, u64>,
    /// Followed files that are open and were read to their end, the longest ago first.
    resting: VecDeque<Current>,
}

struct Current {
    path: PathBuf,
    name: String,
    file: File,
    lines: Lines,
    begin: Begin,
    /// Where its next bytes are read.
    at: u64,
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
            listed: VecDeque::new(),
            done: HashMap::new(),
            resting: VecDeque::new(),
        };
        if feed.files()?.is_empty() && !follow {
            let source = Error::new(ErrorKind::NotFound, "no such file");
            return Err(ReadError { path: path.to_owned(), source }.into());
        }
        Ok(feed)
    }

    fn is_pattern(&self) -> bool {
        self.path.file_name().unwrap_or_default().to_string_lossy().contains('*')
    }

    /// The files there are now.
    fn files(&self) -> Result<Vec<PathBuf>, BoxError> {
        if !self.is_pattern() {
            return Ok(if self.path.exists() { vec![self.path.clone()] } else { Vec::new() });
        }
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let directory =
            self.path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let entries = std::fs::read_dir(directory).map_err(ReadError::of(directory))?;
        let mut files: Vec<PathBuf> = entries
            .flatten()
            .filter(|entry| matches_pattern(&name, &entry.file_name().to_string_lossy()))
            .map(|entry| entry.path())
            .filter(|path| path.is_file())
            .collect();
        files.sort();
        Ok(files)
    }

    /// The next file to read, opened: one that was not read in this run or, of followed ones, one that has changed.
    async fn next_file(&mut self) -> Result<Option<Current>, BoxError> {
        for at in 0..self.resting.len() {
            let resting = &self.resting[at];
            let (named, same) = resting.named().await.map_err(ReadError::of(&resting.path))?;
            if !same || named.is_some_and(|named| named.len() != resting.at) {
                let Some(changed) = self.resting.remove(at) else { break };
                return Ok(Some(changed.woken().await?));
            }
        }
        if self.listed.is_empty() {
            let files = self.files()?;
            self.forget(&files);
            self.listed = files.into_iter().filter(|path| self.is_new(path)).collect();
        }
        let Some(path) = self.listed.pop_front() else { return Ok(None) };
        self.done.remove(&path);
        match self.open_file(&path).await {
            // Its name was taken away since it was listed; it will be looked for again.
            Err(Opening::File(error)) if self.follow && error.kind() == ErrorKind::NotFound => Ok(None),
            Err(Opening::File(error)) => Err(ReadError::of(&path)(error).into()),
            Err(Opening::Header(error)) => Err(error),
            Ok(current) => Ok(Some(current)),
        }
    }

    /// Whether there may be something in a file that was not read.
    fn is_new(&self, path: &Path) -> bool {
        let open = self.current.iter().chain(&self.resting).any(|open| open.path == path);
        let done = self.done.get(path).is_some_and(|length| {
            !self.follow || std::fs::metadata(path).is_ok_and(|named| named.len() == *length)
        });
        !open && !done
    }

    /// Forgets files that are not there any more: the position is stored with each chunk, and does not grow for ever.
    fn forget(&mut self, files: &[PathBuf]) {
        if !self.is_pattern() {
            return;
        }
        let there = |path: &Path| {
            files.binary_search_by(|file| file.as_path().cmp(path)).is_ok()
                || path.try_exists().unwrap_or(true)
        };
        let base = &self.base;
        self.position.files.retain(|name, _| there(&base.join(name)));
        self.done.retain(|path, _| there(path));
    }

    async fn open_file(&self, path: &Path) -> Result<Current, Opening> {
        let name = show(&self.base, path);
        let mut file = File::open(path).await?;
        let length = file.metadata().await?.len();
        let place: Arc<str> = name.as_str().into();
        let (mut offset, mut line) = (0, 1);
        if let Some(known) = self.position.files.get(&name)
            && known.is_of(&file, length)?
        {
            (offset, line) = (known.offset, known.line);
        }
        let mut lines = Lines::resume(&self.read, place, offset, line);
        if offset > 0 && lines.wants_header() {
            self.read_header(&mut file, &mut lines).await?;
        }
        file.seek(SeekFrom::Start(offset)).await?;
        let path = path.to_owned();
        Ok(Current { path, name, file, lines, begin: Begin::default(), at: offset, end: false, gone: false })
    }

    /// Reads the csv header again, of a file that goes on behind it.
    async fn read_header(&self, file: &mut File, lines: &mut Lines) -> Result<(), Opening> {
        file.seek(SeekFrom::Start(0)).await?;
        let delimiter = (self.read.format.value == Format::Csv).then_some(self.read.delimiter.value);
        let mut framer = Framer::new(self.read.line_max, delimiter);
        loop {
            while let Some(frame) = framer.next() {
                if frame.length() > 0 {
                    return lines.header(&frame).map_err(|error| Opening::Header(error.into()));
                }
            }
            framer.buffer().reserve(4096);
            if file.read_buf(framer.buffer()).await? == 0 {
                return Err(Opening::Header("the csv header is gone".into()));
            }
        }
    }

    /// The position with the current file as far as its items were handed out.
    fn position(&mut self) -> Result<Option<Bytes>, BoxError> {
        let Some(current) = &mut self.current else { return Ok(None) };
        let (offset, line) = current.lines.framer.position();
        let position = current.begin.position(&current.file, offset, line);
        let position = position.map_err(ReadError::of(&current.path))?;
        match self.position.files.get_mut(&current.name) {
            Some(known) => *known = position,
            None => _ = self.position.files.insert(current.name.clone(), position),
        }
        Ok(serde_json::to_vec(&self.position).ok().map(Bytes::from))
    }

    async fn read_chunk(&mut self) -> Result<Option<Chunk>, BoxError> {
        let mut items = Vec::new();
        loop {
            let Some(current) = &mut self.current else {
                self.current = self.next_file().await?;
                if self.current.is_some() {
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
                let position = self.position()?;
                return Ok(Some(Chunk { items, position, reply: None }));
            }
            if current.end && !self.follow {
                self.done.insert(current.path.clone(), current.at);
                self.current = None;
                continue;
            }
            let buffer = current.lines.framer.buffer();
            buffer.reserve(READ_BYTES as usize);
            let count = current.file.read_buf(buffer).await.map_err(ReadError::of(&current.path))?;
            current.at += count as u64;
            current.end = count == 0;
            if current.end && self.follow {
                self.look_again().await?;
            }
        }
    }

    /// At the end of a followed file: goes over to one that has more, to the file that took its place, or waits.
    async fn look_again(&mut self) -> Result<(), BoxError> {
        let Some(current) = &mut self.current else { return Ok(()) };
        let (read, _) = current.lines.framer.position();
        let (named, same) = current.named().await.map_err(ReadError::of(&current.path))?;
        if !same && !current.gone {
            // Something may have been written between its end and its end of name.
            current.gone = true;
            return Ok(());
        }
        if !same || named.is_none_or(|named| named.len() < read) {
            self.position.files.remove(&current.name);
            self.current = None;
        } else if let Some(next) = self.next_file().await? {
            if let Some(rested) = self.current.replace(next) {
                self.rest(rested);
            }
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
        Ok(())
    }

    /// Keeps a followed file open while others are read.
    fn rest(&mut self, mut file: Current) {
        file.lines.rewind(&self.read);
        self.resting.push_back(file);
        if self.resting.len() > RESTING
            && let Some(longest) = self.resting.pop_front()
        {
            self.done.insert(longest.path, longest.at);
        }
    }
}

impl Current {
    /// What its name means now, and whether that is still this file.
    async fn named(&self) -> Result<(Option<Metadata>, bool), Error> {
        let named = tokio::fs::metadata(&self.path).await.ok();
        let same = match &named {
            Some(named) => is_same(named, &self.file.metadata().await?),
            None => false,
        };
        Ok((named, same))
    }

    /// Goes on after a rest.
    async fn woken(mut self) -> Result<Self, ReadError> {
        let (offset, _) = self.lines.framer.position();
        self.file.seek(SeekFrom::Start(offset)).await.map_err(ReadError::of(&self.path))?;
        (self.at, self.end) = (offset, false);
        Ok(self)
    }
}

/// Why a file could not be opened.
enum Opening {
    File(Error),
    Header(BoxError),
}

impl From<Error> for Opening {
    fn from(error: Error) -> Self {
        Opening::File(error)
    }
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
