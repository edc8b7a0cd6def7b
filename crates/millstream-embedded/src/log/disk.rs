//! The few operations the log needs of a disk, so that a test can put one below it that fails.

mod real;
#[cfg(feature = "test-support")]
mod sim;

use std::{any::Any, fmt, io, path::Path, sync::Arc};

pub use real::RealDisk;
#[cfg(feature = "test-support")]
pub use sim::{Fault, SimDisk};

/// A file system as the log sees it. What is assumed of an implementation is listed in `docs/format.md`.
///
/// Names become durable by [`sync_dir`](Self::sync_dir), contents by [`DiskFile::sync`], neither before.
pub trait Disk: Send + Sync + fmt::Debug + 'static {
    /// Creates `dir` and its missing parents, durably.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;

    /// The names of the files in `dir`, in any order. Names that are not Unicode are left out.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Opens an existing file, for writing too when `write` is set.
    fn open(&self, path: &Path, write: bool) -> io::Result<Arc<dyn DiskFile>>;

    /// Creates an empty file, in the place of one of that name.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;

    /// Renames a file, in the place of one that has the new name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes the names in `dir` durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Takes the lock file at `path` without waiting, creating it when exclusive, and holds it until the
    /// guard is dropped or the process ends.
    ///
    /// # Errors
    /// [`LockError::Held`] names the holder's process id as far as it is known.
    fn lock(&self, path: &Path, mode: LockMode) -> Result<LockGuard, LockError>;
}

/// A file as the log sees it.
pub trait DiskFile: Send + Sync + fmt::Debug {
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Whether the file has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Reads into `buf` from `offset` on, until `buf` is full or the file ends; gives the bytes read.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of `buf` at `offset`. Not durable before [`sync`](Self::sync).
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;

    /// Claims `len` bytes of disk for an empty file, failing at once when there is no room.
    fn reserve(&self, len: u64) -> io::Result<()>;

    /// Makes everything written so far durable. After a failure, what was written since the last success
    /// is in an unknown state, and a later success says nothing about it.
    fn sync(&self) -> io::Result<()>;
}

/// How a lock file is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockMode {
    /// By the one log that writes.
    Exclusive,
    /// By any number of readers. Succeeds when there is no lock file.
    Shared,
}

/// Keeps a lock until dropped.
#[derive(Debug)]
pub struct LockGuard(#[expect(dead_code, reason = "held for its Drop")] Box<dyn LockHeld>);

impl LockGuard {
    /// A guard that releases the lock when `held` is dropped.
    pub fn new(held: impl Any + Send + Sync + fmt::Debug) -> Self {
        Self(Box::new(held))
    }
}

trait LockHeld: Send + Sync + fmt::Debug {}
impl<T: Any + Send + Sync + fmt::Debug> LockHeld for T {}

/// Why a lock was not taken.
#[derive(Debug)]
pub enum LockError {
    /// Somebody has it; the process id as written in the lock file.
    Held(Option<u32>),
    /// The lock file could not be opened.
    Io(io::Error),
}
