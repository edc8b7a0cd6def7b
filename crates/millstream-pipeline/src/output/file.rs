//! The file output: items go to the file their path names, files are finished by size, by age and at the end.

use super::partial::{Partial, left_over};
use crate::file::model::FileOutput;
use crate::file::template::Template;
use crate::hold::Hold;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::time::Instant;

/// Why a file could not be written, with what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {path}: {remedy}", path = path.display(), remedy = remedy(source))]
pub(crate) struct FileError {
    what: &'static str,
    path: PathBuf,
    source: std::io::Error,
}

impl FileError {
    pub(crate) fn new(what: &'static str, path: &Path, source: std::io::Error) -> Self {
        FileError { what, path: path.to_owned(), source }
    }
}

fn remedy(error: &std::io::Error) -> &'static str {
    use std::io::ErrorKind::*;
    match error.kind() {
        StorageFull | QuotaExceeded => {
            "the disk is full; free some space and start again, nothing accepted is lost"
        }
        PermissionDenied | ReadOnlyFilesystem => {
            "it is not writable for this user; change its permissions or `output.file.path`"
        }
        NotADirectory | AlreadyExists | IsADirectory => {
            "something else has that name; move it or change `output.file.path`"
        }
        WouldBlock => "another process is writing it; give each run its own `output.file.path`",
        _ => "check the disk and the path; start again, nothing accepted is lost",
    }
}

/// Lines for one file are gathered up to so many bytes before they are written to it.
const GATHERED: usize = 64 << 10;

/// All files of one output.
#[derive(Debug)]
pub(crate) struct Files {
    template: Template,
    /// The header row that each file begins with, for csv.
    header: Header,
    rotate_bytes: Option<u64>,
    rotate_every: Option<Duration>,
    open_max: usize,
    files: HashMap<Arc<str>, Writing>,
    /// Counts uses, to know which file was not used longest.
    uses: u64,
    /// Set by a failed sync: what the disk holds is unknown until the file is opened anew.
    broken: bool,
    /// After the files, which are closed before it is let go.
    _hold: Hold,
}

/// The header row of a csv output, known from the first item on. `None` for other formats.
pub(crate) type Header = Option<Arc<OnceLock<Vec<u8>>>>;

#[derive(Debug)]
struct Writing {
    partial: Partial,
    pending: Vec<u8>,
    /// Whether lines were added since the last sync.
    dirty: bool,
    /// The length at the last sync: everything up to here is settled.
    settled: u64,
    since: Instant,
    used: u64,
}

impl Files {
    /// Opens the output: makes its directory, sees that it can be written, and takes over what a killed run
    /// left unfinished.
    pub(crate) fn open(output: &FileOutput, header: Header, hold: Hold) -> Result<Self, FileError> {
        let template = output.path.value.clone();
        let root = &template.root;
        std::fs::create_dir_all(root).map_err(|error| FileError::new("create directory", root, error))?;
        let probe = root.join(".millstream-writable");
        std::fs::File::create(&probe).map_err(|error| FileError::new("write in", root, error))?;
        std::fs::remove_file(&probe).map_err(|error| FileError::new("write in", root, error))?;
        let mut files = Files {
            header,
            rotate_bytes: output.rotate_bytes,
            rotate_every: output.rotate_every,
            open_max: output.open_max.value as usize,
            files: HashMap::new(),
            uses: 0,
            broken: false,
            _hold: hold,
            template,
        };
        for target in left_over(&files.template.root) {
            if let Ok(path) = target.strip_prefix(&files.template.root)
                && let Some(path) = path.to_str()
                && files.template.matches(path)
            {
                files.writing(path.into())?;
            }
        }
        Ok(files)
    }

    /// Takes lines, with their line breaks, for the file `path`.
    ///
    /// # Errors
    ///
    /// The disk's. Nothing taken since the last [`sync`](Self::sync) counts as written then.
    pub(crate) fn add(&mut self, path: &Arc<str>, lines: &[u8]) -> Result<(), FileError> {
        self.uses += 1;
        let uses = self.uses;
        if !self.files.get(path).is_some_and(|writing| writing.partial.is_open()) {
            self.writing(path.clone())?;
        }
        let writing = self.files.get_mut(path).expect("it was there just now, or opened");
        writing.used = uses;
        writing.dirty = true;
        if writing.pending.len() + lines.len() < GATHERED {
            writing.pending.extend_from_slice(lines);
            return Ok(());
        }
        writing.put(&self.header)?;
        writing.append(lines, &self.header)
    }

    /// Returns when every line taken so far is on the disk; then finishes the files that are due by their size.
    ///
    /// # Errors
    ///
    /// The disk's. None of the lines taken since the last success is in any file then.
    pub(crate) fn sync(&mut self) -> Result<(), FileError> {
        if self.broken {
            let error = std::io::Error::other("an earlier sync failed");
            return Err(FileError::new("go on writing in", &self.template.root, error));
        }
        if let Err(error) = self.write_out() {
            self.roll_back();
            return Err(error);
        }
        let max = self.rotate_bytes.unwrap_or(u64::MAX);
        let due: Vec<_> = self
            .files
            .iter()
            .filter(|(_, writing)| writing.partial.length() >= max)
            .map(|(path, _)| path.clone())
            .collect();
        due.iter().try_for_each(|path| self.finish(path))
    }

    fn write_out(&mut self) -> Result<(), FileError> {
        for writing in self.files.values_mut().filter(|writing| writing.dirty) {
            writing.put(&self.header)?;
        }
        for writing in self.files.values_mut().filter(|writing| writing.dirty) {
            if let Err(error) = writing.partial.sync() {
                self.broken = true;
                return Err(error);
            }
        }
        for writing in self.files.values_mut() {
            writing.dirty = false;
            writing.settled = writing.partial.length();
        }
        Ok(())
    }

    /// Takes back everything since the last sync. Where even that fails the files are broken: nothing is
    /// appended to them again in this run, and the next one cuts them.
    pub(crate) fn roll_back(&mut self) {
        for writing in self.files.values_mut().filter(|writing| writing.dirty) {
            writing.pending.clear();
            writing.dirty = false;
            if writing.partial.length() != writing.settled && writing.partial.cut(writing.settled).is_err() {
                self.broken = true;
            }
        }
    }

    /// Whether files are finished by their age.
    pub(crate) fn rotates_by_age(&self) -> bool {
        self.rotate_every.is_some()
    }

    /// The age at which a file is finished.
    pub(crate) fn interval(&self) -> Duration {
        self.rotate_every.unwrap_or(Duration::MAX)
    }

    /// When the next file is due by its age.
    pub(crate) fn due(&self) -> Option<Instant> {
        let every = self.rotate_every?;
        self.files.values().map(|writing| writing.since + every).min()
    }

    /// Finishes the files that are due by their age. Everything taken must have been synced.
    pub(crate) fn rotate(&mut self, now: Instant) -> Result<(), FileError> {
        let Some(every) = self.rotate_every else { return Ok(()) };
        let due = self.files.iter().filter(|(_, writing)| writing.since + every <= now && !writing.dirty);
        let due: Vec<_> = due.map(|(path, _)| path.clone()).collect();
        due.iter().try_for_each(|path| self.finish(path))
    }

    /// Finishes every file.
    pub(crate) fn close(&mut self) -> Result<(), FileError> {
        self.sync()?;
        let paths: Vec<_> = self.files.keys().cloned().collect();
        paths.iter().try_for_each(|path| self.finish(path))
    }

    fn finish(&mut self, path: &str) -> Result<(), FileError> {
        match self.files.remove(path) {
            Some(writing) => writing.partial.finish(),
            None => Ok(()),
        }
    }

    /// The file for `path`, opened, with another one set aside if too many are.
    fn writing(&mut self, path: Arc<str>) -> Result<(), FileError> {
        if self.files.values().filter(|writing| writing.partial.is_open()).count() >= self.open_max {
            let open = self.files.values_mut().filter(|writing| writing.partial.is_open());
            if let Some(writing) = open.min_by_key(|writing| writing.used) {
                // What it has taken is put into the file now and synced with all others; `sync` opens it again.
                writing.put(&self.header)?;
                writing.partial.set_aside();
            }
        }
        let target = self.template.root.join(&*path);
        match self.files.entry(path) {
            Entry::Occupied(entry) => {
                entry.into_mut().partial.reopen()?;
            }
            Entry::Vacant(entry) => {
                let partial = Partial::open(target, self.header.is_some())?;
                let settled = partial.length();
                let (pending, dirty, since, used) = (Vec::new(), false, Instant::now(), self.uses);
                entry.insert(Writing { partial, pending, dirty, settled, since, used });
            }
        }
        Ok(())
    }
}

impl Writing {
    /// Puts the lines taken so far into the file, behind a header row where one is due.
    fn put(&mut self, header: &Header) -> Result<(), FileError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let mut pending = std::mem::take(&mut self.pending);
        let put = self.append(&pending, header);
        pending.clear();
        self.pending = pending;
        put
    }

    /// Puts lines into the file, behind a header row where one is due.
    fn append(&mut self, lines: &[u8], header: &Header) -> Result<(), FileError> {
        if let Some(header) = header.as_ref().and_then(|header| header.get()) {
            // What a killed run left may have other columns; then it is whole as it is.
            if self.partial.length() > 0
                && self.settled == self.partial.length()
                && !self.partial.begins_with(header)?
            {
                self.partial.restart()?;
                self.settled = 0;
            }
            if self.partial.length() == 0 {
                self.partial.append(header)?;
            }
        }
        self.partial.append(lines)
    }
}
