//! The file output: items go to the file their path names, files are finished by size, by age and at the end.

mod error;

pub(crate) use self::error::FileError;
use super::partial::{Partial, left_over};
use crate::directory;
use crate::file::model::FileOutput;
use crate::file::template::Template;
use crate::hold::Hold;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::time::Instant;

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
    /// Whether everything that was left over is taken over: what is found from then on, this run has left.
    opened: bool,
    /// Whether files were forgotten that are to be finished at the end.
    forgotten: bool,
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
        directory::create(root).map_err(|error| FileError::new("create directory", root, error))?;
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
            opened: false,
            forgotten: false,
            broken: false,
            _hold: hold,
            template,
        };
        for path in files.left_over() {
            files.writing(path)?;
            files.forget();
        }
        files.opened = true;
        Ok(files)
    }

    /// The files of this output that are not finished.
    fn left_over(&self) -> Vec<Arc<str>> {
        let Template { root, .. } = &self.template;
        let targets = left_over(root, self.template.levels());
        let paths = targets.iter().filter_map(|target| target.strip_prefix(root).ok()?.to_str());
        paths.filter(|path| self.template.matches(path)).map(Arc::from).collect()
    }

    /// Forgets files that are set aside and synced: paths by a field may be any number. Until it is written to again, all
    /// that is to be known of one is on the disk, but for its age.
    fn forget(&mut self) {
        if self.rotate_every.is_none() {
            let known = self.files.len();
            self.files.retain(|_, writing| writing.dirty || writing.partial.is_open());
            self.forgotten |= self.files.len() < known;
        }
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
        due.iter().try_for_each(|path| self.finish(path))?;
        self.forget();
        Ok(())
    }

    fn write_out(&mut self) -> Result<(), FileError> {
        for writing in self.files.values_mut().filter(|writing| writing.dirty) {
            writing.put(&self.header)?;
        }
        for writing in self.files.values_mut().filter(|writing| writing.dirty) {
            let open = writing.partial.is_open();
            if let Err(error) = writing.partial.sync() {
                self.broken = true;
                return Err(error);
            }
            if !open {
                writing.partial.set_aside();
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
        paths.iter().try_for_each(|path| self.finish(path))?;
        if self.forgotten {
            for path in self.left_over() {
                let target = self.template.root.join(&*path);
                Partial::open(target, self.header.is_some(), true)?.finish()?;
            }
        }
        Ok(())
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
                writing.pending = Vec::new();
                writing.partial.set_aside();
            }
        }
        let target = self.template.root.join(&*path);
        match self.files.entry(path) {
            Entry::Occupied(entry) => {
                entry.into_mut().partial.reopen()?;
            }
            Entry::Vacant(entry) => {
                let partial = Partial::open(target, self.header.is_some(), self.opened)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::model::{Format, Setting};
    use crate::file::place::{At, Spanned};
    use std::collections::BTreeMap;
    use std::path::Path;

    fn files(root: &Path, rotate_every: Option<Duration>) -> Files {
        let template = Template::parse("{k}.ndjson", root).expect("a good template");
        let output = FileOutput {
            path: Spanned { value: template, at: At::START },
            format: Setting { value: Format::Ndjson, at: None },
            columns: None,
            rotate: None,
            rotate_bytes: None,
            rotate_every,
            open_max: Setting { value: 2, at: None },
        };
        let (hold, _) = crate::hold::hold();
        Files::open(&output, None, hold).expect("opened")
    }

    /// Paths by a field may be any number, and each is to be written to again.
    #[test]
    fn files_that_are_set_aside_take_no_memory_and_lose_nothing() {
        let dir = tempfile::TempDir::new().expect("a directory");
        let mut files = files(dir.path(), None);
        let mut expected: BTreeMap<String, String> = BTreeMap::new();
        for round in 0..3 {
            for key in 0..40 {
                let line = format!("{round}\n");
                let path: Arc<str> = format!("{key}.ndjson").into();
                files.add(&path, line.as_bytes()).expect("taken");
                expected.entry(path.to_string()).or_default().push_str(&line);
                if key % 7 == 0 {
                    files.sync().expect("synced");
                }
            }
            files.sync().expect("synced");
            let open = files.files.values().filter(|writing| writing.partial.is_open()).count();
            assert!(
                files.files.len() <= 2 && open <= 2,
                "{} files are known, {open} open",
                files.files.len()
            );
        }
        files.close().expect("closed");
        drop(files);
        let names = std::fs::read_dir(dir.path()).expect("listed").map(|entry| entry.expect("one").path());
        let found: BTreeMap<String, String> = names
            .map(|path| {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                (name, std::fs::read_to_string(&path).expect("a file"))
            })
            .collect();
        assert_eq!(found, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn files_that_are_finished_by_their_age_are_not_forgotten() {
        let dir = tempfile::TempDir::new().expect("a directory");
        let mut files = files(dir.path(), Some(Duration::from_secs(60)));
        for key in 0..10 {
            files.add(&format!("{key}.ndjson").into(), b"1\n").expect("taken");
        }
        files.sync().expect("synced");
        files.rotate(Instant::now() + Duration::from_secs(61)).expect("finished");
        let hidden = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with('.');
        let left = std::fs::read_dir(dir.path()).expect("listed");
        assert_eq!(left.filter(|entry| entry.as_ref().is_ok_and(|one| hidden(&one.file_name()))).count(), 0);
    }
}
