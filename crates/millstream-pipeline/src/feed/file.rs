//! Files: one, or all that a pattern names, read once and remembered.

mod current;
mod error;
mod names;
mod place;

use self::current::Current;
use self::error::{Opening, ReadError};
use self::names::{key, matches_pattern, path_of, show};
use self::place::{Begin, Identity, Position, Tail};
use super::lines::Lines;
use super::{Chunk, Feed};
use crate::bound::READ_BYTES;
use crate::codec::Framer;
use crate::file::model::{Format, Reading};
use bytes::Bytes;
use millstream_flow::BoxError;
use std::collections::{HashMap, HashSet, VecDeque};
use std::future::Future;
use std::io::{Error, ErrorKind, SeekFrom};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::time::Instant;

/// How often followed files are looked at for more, and how long one is read that never ends while others wait.
const LOOK: Duration = Duration::from_millis(200);
/// Followed files that stay open while another one is read. What is written to one of them before it loses its name is read;
/// of others that are rotated, what was not read by then is gone with the name.
const RESTING: usize = 128;

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
    /// When followed ones were looked for.
    listed_at: Option<Instant>,
    /// Files of this run that were read to their end and are closed, and how long they were.
    done: HashMap<PathBuf, u64>,
    /// Followed files that are open and were read to their end, the longest ago first.
    resting: VecDeque<Current>,
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
            listed_at: None,
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
        // Before those that have changed: where all are written all the time, there is always one of them.
        let due = self.listed_at.is_none_or(|at| !self.follow || at.elapsed() >= LOOK);
        if self.listed.is_empty() && due {
            let files = self.files()?;
            self.forget(&files);
            self.listed = files.into_iter().filter(|path| self.is_new(path)).collect();
            self.listed_at = Some(Instant::now());
        }
        let Some(path) = self.listed.pop_front() else { return self.changed_file().await };
        self.done.remove(&path);
        match self.open_file(&path).await {
            // Its name was taken away since it was listed; it will be looked for again.
            Err(Opening::File(error)) if self.follow && error.kind() == ErrorKind::NotFound => Ok(None),
            Err(Opening::File(error)) => Err(ReadError::of(&path)(error).into()),
            Err(Opening::Header(error)) => Err(error),
            Ok(current) => Ok(Some(current)),
        }
    }

    /// A resting file that has changed, or lost its name.
    async fn changed_file(&mut self) -> Result<Option<Current>, BoxError> {
        let resting = self.resting.iter().map(|file| (file.path.clone(), file.identity, file.at));
        let resting: Vec<_> = resting.collect();
        if resting.is_empty() {
            return Ok(None);
        }
        let look = move || {
            resting.iter().position(|(path, identity, at)| {
                let named = std::fs::metadata(path);
                !named.is_ok_and(|named| identity.is_of(&named) && named.len() == *at)
            })
        };
        // All of them at once, away from the tasks.
        let changed = tokio::task::spawn_blocking(look).await.ok().flatten();
        match changed.and_then(|at| self.resting.remove(at)) {
            Some(changed) if changed.is_same()? => Ok(Some(changed.woken().await?)),
            // It will be found as a new one.
            Some(rewritten) => {
                self.position.files.remove(&rewritten.name);
                Ok(None)
            }
            None => Ok(None),
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
        // A directory without any may be one that is not mounted at the moment.
        if !self.is_pattern() || files.is_empty() {
            return;
        }
        let base = &self.base;
        // Earlier versions knew files as messages show them.
        let names: HashSet<String> =
            files.iter().flat_map(|file| [key(base, file), show(base, file)]).collect();
        let there = |path: &Path| path.try_exists().unwrap_or(true);
        self.position.files.retain(|name, _| names.contains(name) || there(&path_of(base, name)));
        self.done.retain(|path, _| files.binary_search(path).is_ok() || there(path));
    }

    async fn open_file(&self, path: &Path) -> Result<Current, Opening> {
        let (name, shown) = (key(&self.base, path), show(&self.base, path));
        // To open a pipe would wait for somebody who writes to it.
        if tokio::fs::metadata(path).await?.file_type().is_fifo() {
            return Err(Error::from(ErrorKind::NotSeekable).into());
        }
        let mut file = File::open(path).await?;
        let opened = file.metadata().await?;
        let length = opened.len();
        let (mut offset, mut line) = (0, 1);
        let files = &self.position.files;
        if let Some(known) = files.get(&name).or_else(|| files.get(&shown))
            && known.is_of(&file, length)?
        {
            (offset, line) = (known.offset, known.line);
        }
        let mut lines = Lines::resume(&self.read, shown.into(), offset, line);
        if offset > 0 && lines.wants_header() {
            self.read_header(&mut file, &mut lines).await?;
        }
        file.seek(SeekFrom::Start(offset)).await?;
        Ok(Current {
            path: path.to_owned(),
            name,
            file,
            identity: Identity::of(&opened),
            lines,
            begin: Begin::default(),
            at: offset,
            tail: Tail::default(),
            end: false,
            since: Instant::now(),
            found: length,
            gone: false,
        })
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
            if self.follow && current.has_had_its_turn() {
                current.since = Instant::now();
                if let Some(next) = self.next_file().await? {
                    self.hand_over(next);
                }
                continue;
            }
            let buffer = current.lines.framer.buffer();
            buffer.reserve(READ_BYTES as usize);
            let count = current.file.read_buf(buffer).await.map_err(ReadError::of(&current.path))?;
            // What was read may be of another text, which took the place of the one before it.
            if self.follow && count > 0 && !current.is_same()? {
                self.position.files.remove(&current.name);
                self.current = None;
                continue;
            }
            let buffer = current.lines.framer.buffer();
            current.tail.take(&buffer[buffer.len() - count..]);
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
        let named = tokio::fs::metadata(&current.path).await.ok();
        let same = named.as_ref().is_some_and(|named| current.identity.is_of(named));
        if !same && !current.gone {
            // Something may have been written between its end and its end of name.
            current.gone = true;
            return Ok(());
        }
        if !same || named.is_none_or(|named| named.len() < read) {
            self.position.files.remove(&current.name);
            self.current = None;
        } else if let Some(next) = self.next_file().await? {
            self.hand_over(next);
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
        Ok(())
    }

    fn hand_over(&mut self, next: Current) {
        if let Some(rested) = self.current.replace(next) {
            self.rest(rested);
        }
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
