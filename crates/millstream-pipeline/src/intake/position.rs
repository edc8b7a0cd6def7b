//! Where a position is kept from run to run: a file of its own, or a stream's broker.

use crate::directory;
use crate::hold::Hold;
use bytes::Bytes;
use millstream_flow::BoxError;
use millstream_message::StreamOffset;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::task::spawn_blocking;

/// Where a position is kept.
pub(crate) enum Keeper {
    File(PositionFile),
    Stream(StreamOffset),
}

impl Keeper {
    /// Keeps `position`, durably; what was kept already costs nothing. One call at a time.
    ///
    /// # Errors
    ///
    /// If it cannot be kept. The position before it stays.
    pub(crate) async fn keep(&self, position: Bytes) -> Result<(), BoxError> {
        match self {
            Keeper::File(file) => file.save(position).await,
            Keeper::Stream(offset) => Ok(offset.store(offset_of(&position)?).await?),
        }
    }
}

/// A position file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the position file {}: {what}; {remedy}", path.display())]
struct PositionError {
    path: PathBuf,
    what: String,
    remedy: &'static str,
}

/// A file that holds a position, and a lock on it.
pub(crate) struct PositionFile {
    path: PathBuf,
    /// One save at a time, in order.
    saved: Arc<Mutex<Saved>>,
}

/// What is in the file. A save that is under way keeps it, and with it the lock, until it ends.
struct Saved {
    position: Option<Bytes>,
    /// Held so that no other run uses the file.
    _lock: File,
    /// After the lock, which is free before it is let go.
    _hold: Hold,
}

impl PositionFile {
    /// Takes the file at `path` for this run, and gives the position in it, if there is one.
    ///
    /// # Errors
    ///
    /// If the file or its directory cannot be used, or another run uses it.
    pub(crate) fn open(path: &Path, hold: Hold) -> Result<(Self, Option<Bytes>), BoxError> {
        let failed = |remedy| {
            move |error: std::io::Error| PositionError {
                path: path.to_owned(),
                what: error.to_string(),
                remedy,
            }
        };
        let parent = parent(path);
        directory::create(parent)
            .map_err(failed("its directory cannot be made; check `source.file.position`"))?;
        let lock = File::create(beside(path, "lock"))
            .map_err(failed("its directory must be writable; check `source.file.position`"))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                return Err(PositionError {
                    path: path.to_owned(),
                    what: "another process is using it".to_owned(),
                    remedy: "stop the other run, or give each its own `source.file.position`",
                }
                .into());
            }
            Err(error) => return Err(failed("its directory must allow locks")(error.into()).into()),
        }
        let found = match fs::read(path) {
            Ok(bytes) => Some(Bytes::from(bytes)),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => {
                return Err(failed("make it readable, or move it away to begin again")(error).into());
            }
        };
        let saved = Saved { position: found.clone(), _lock: lock, _hold: hold };
        Ok((PositionFile { path: path.to_owned(), saved: Arc::new(Mutex::new(saved)) }, found))
    }

    /// Writes it in one step: the file has either the old position or the new one, whenever the power goes.
    async fn save(&self, position: Bytes) -> Result<(), BoxError> {
        let (path, saved) = (self.path.clone(), self.saved.clone());
        let written = spawn_blocking(move || {
            let mut saved = saved.lock().unwrap_or_else(PoisonError::into_inner);
            if saved.position.as_ref() == Some(&position) {
                return Ok(());
            }
            replace(&path, &position)?;
            saved.position = Some(position);
            Ok(())
        });
        written.await?.map_err(|error: std::io::Error| {
            let what = format!("cannot be written: {error}");
            let remedy = "free some space or mend the directory; the next run goes on at the position before";
            PositionError { path: self.path.clone(), what, remedy }.into()
        })
    }
}

fn replace(path: &Path, position: &[u8]) -> std::io::Result<()> {
    let new = beside(path, "new");
    let mut file = File::create(&new)?;
    file.write_all(position)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    directory::sync(parent(path))
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A file beside `path`, of its name and an extension more.
fn beside(path: &Path, extension: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(extension);
    path.with_file_name(name)
}

/// An offset as a position.
pub(crate) fn position_of(offset: u64) -> Bytes {
    Bytes::copy_from_slice(&offset.to_be_bytes())
}

/// The offset that a position stands for.
///
/// # Errors
///
/// If it is another source's.
pub(crate) fn offset_of(position: &[u8]) -> Result<u64, BoxError> {
    let bytes = position.try_into().map_err(|_| "the stored position is not that of a stream")?;
    Ok(u64::from_be_bytes(bytes))
}
