//! A file that is being written: hidden until it is whole, continued after a crash, never overwritten.

use super::file::FileError;
use crate::codec::Framer;
use crate::directory;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// A partial file is named `.NAME.partial` beside its final place.
const SUFFIX: &str = ".partial";

/// A file under its hidden name.
#[derive(Debug)]
pub(crate) struct Partial {
    target: PathBuf,
    path: PathBuf,
    /// `None` while it is set aside to keep the number of open files bounded.
    file: Option<File>,
    /// Bytes known to be in the file; whatever lies beyond is cut off after a failed write.
    length: u64,
}

impl Partial {
    /// Begins the file for `target`, or goes on with what a killed run left of it; `whole` says that this run left it, synced.
    pub(crate) fn open(target: PathBuf, csv: bool, whole: bool) -> Result<Self, FileError> {
        let path = hidden(&target);
        let parent = parent(&target);
        directory::create(parent).map_err(|error| FileError::new("create directory", parent, error))?;
        let existed = path.exists();
        let mut file = open(&path)?;
        let length = match (existed, whole) {
            (false, _) => Ok(0),
            (true, false) => recover(&mut file, csv),
            (true, true) => file.seek(SeekFrom::End(0)),
        };
        let length = length.map_err(|error| FileError::new("recover", &path, error))?;
        if !existed {
            sync_directory(parent)?;
        }
        Ok(Partial { target, path, file: Some(file), length })
    }

    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    pub(crate) fn is_open(&self) -> bool {
        self.file.is_some()
    }

    /// Whether the file's first bytes are these.
    pub(crate) fn begins_with(&mut self, bytes: &[u8]) -> Result<bool, FileError> {
        use std::os::unix::fs::FileExt;
        let path = self.path.clone();
        let mut first = vec![0; bytes.len()];
        match self.reopen()?.read_exact_at(&mut first, 0) {
            Ok(()) => Ok(first == bytes),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(FileError::new("read", &path, error)),
        }
    }

    /// Finishes what is there and begins the file anew.
    pub(crate) fn restart(&mut self) -> Result<(), FileError> {
        let csv = true; // only csv has a header that can differ
        self.give_name()?;
        *self = Partial::open(self.target.clone(), csv, false)?;
        Ok(())
    }

    /// Appends `bytes`, or leaves the file as it was.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        let length = self.length;
        let path = self.path.clone();
        let file = self.reopen()?;
        if let Err(error) = file.write_all(bytes) {
            // Half a line must not stay: the items will come again. If even this fails, recovery cuts it.
            let _ = file.set_len(length).and_then(|()| file.seek(SeekFrom::Start(length)));
            return Err(FileError::new("write", &path, error));
        }
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Cuts the file back to `length`: what was appended since then will come again.
    pub(crate) fn cut(&mut self, length: u64) -> Result<(), FileError> {
        let path = self.path.clone();
        let file = self.reopen()?;
        file.set_len(length)
            .and_then(|()| file.seek(SeekFrom::Start(length)))
            .map_err(|error| FileError::new("cut back", &path, error))?;
        self.length = length;
        Ok(())
    }

    /// Returns when everything appended is on the disk.
    pub(crate) fn sync(&mut self) -> Result<(), FileError> {
        let path = self.path.clone();
        self.reopen()?.sync_data().map_err(|error| FileError::new("sync", &path, error))
    }

    /// Closes the file for now. It must be synced.
    pub(crate) fn set_aside(&mut self) {
        self.file = None;
    }

    /// Gives the file its name: `NAME.ext`, or `NAME-2.ext` and so on where that exists. An empty one is removed.
    pub(crate) fn finish(mut self) -> Result<(), FileError> {
        self.give_name()
    }

    fn give_name(&mut self) -> Result<(), FileError> {
        self.reopen()?;
        if self.length == 0 {
            return std::fs::remove_file(&self.path)
                .map_err(|error| FileError::new("remove", &self.path, error));
        }
        self.sync()?;
        let mut number = 1;
        let target = loop {
            let target = numbered(&self.target, number);
            // A link that leads nowhere is there, too, and would be replaced.
            if target.symlink_metadata().is_err() {
                break target;
            }
            number += 1;
        };
        std::fs::rename(&self.path, &target).map_err(|error| FileError::new("rename", &self.path, error))?;
        sync_directory(parent(&target))
    }

    /// Opens the file again after it was set aside.
    pub(crate) fn reopen(&mut self) -> Result<&mut File, FileError> {
        if self.file.is_none() {
            let mut file = open(&self.path)?;
            file.seek(SeekFrom::Start(self.length))
                .map_err(|error| FileError::new("seek in", &self.path, error))?;
            self.file = Some(file);
        }
        Ok(self.file.as_mut().expect("opened just above"))
    }
}

/// The targets of all partial files up to `levels` directories below `root`, as a killed run left them.
pub(crate) fn left_over(root: &Path, levels: usize) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut directories = vec![(root.to_owned(), 0)];
    while let Some((directory, level)) = directories.pop() {
        let Ok(entries) = std::fs::read_dir(&directory) else { continue };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if level < levels {
                    directories.push((entry.path(), level + 1));
                }
            } else if let Some(target) = name.strip_prefix('.').and_then(|name| name.strip_suffix(SUFFIX)) {
                found.push(directory.join(target));
            }
        }
    }
    found.sort();
    found
}

fn hidden(target: &Path) -> PathBuf {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    parent(target).join(format!(".{name}{SUFFIX}"))
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// `out/UA.ndjson`, `out/UA-2.ndjson`, …
fn numbered(target: &Path, number: u32) -> PathBuf {
    if number == 1 {
        return target.to_owned();
    }
    let stem = target.file_stem().unwrap_or_default().to_string_lossy();
    match target.extension() {
        Some(extension) => target.with_file_name(format!("{stem}-{number}.{}", extension.to_string_lossy())),
        None => target.with_file_name(format!("{stem}-{number}")),
    }
}

fn open(path: &Path) -> Result<File, FileError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(|error| FileError::new("open", path, error))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(error) => Err(FileError::new("lock", path, error.into())),
    }
}

fn sync_directory(path: &Path) -> Result<(), FileError> {
    directory::sync(path).map_err(|error| FileError::new("sync directory", path, error))
}

/// Cuts what a crash left behind the last whole line, and gives the length that remains.
///
/// Only what was synced was settled, so cutting too much costs a repetition, never an item. Zeros are what a
/// power failure leaves where a length reached the disk and its data did not; JSON and our csv never hold one.
fn recover(file: &mut File, csv: bool) -> std::io::Result<u64> {
    let mut framer = Framer::new(64 << 20, csv.then_some(b','));
    let mut piece = vec![0; 256 << 10];
    let mut zero = false;
    file.seek(SeekFrom::Start(0))?;
    while !zero {
        let count = file.read(&mut piece)?;
        if count == 0 {
            break;
        }
        let whole = memchr::memchr(0, &piece[..count]);
        zero = whole.is_some();
        framer.buffer().extend_from_slice(&piece[..whole.unwrap_or(count)]);
        while framer.next().is_some() {}
    }
    let (length, _) = framer.position();
    if file.metadata()?.len() != length {
        file.set_len(length)?;
    }
    file.seek(SeekFrom::Start(length))?;
    Ok(length)
}
