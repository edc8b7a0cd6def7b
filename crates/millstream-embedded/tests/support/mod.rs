//! A disk as one process sees it: once the process is dead, none of its threads reaches the disk any more. And a small
//! broker on it.
#![allow(dead_code, reason = "every test file uses its own part")]

use std::io;
use std::path::Path;
use std::sync::Arc;

use millstream_embedded::log::{Disk, DiskFile, LockError, LockGuard, LockMode, SimDisk};
use millstream_embedded::{EmbeddedBroker, Settings};
use parking_lot::RwLock;

/// One process's view of a simulated disk. Handles to files die with the disk's power by themselves; this also ends
/// creating, renaming and removing, which a thread that outlives its simulated process would go on doing.
#[derive(Debug, Clone)]
pub(crate) struct ProcessDisk {
    disk: SimDisk,
    alive: Arc<RwLock<bool>>,
}

impl ProcessDisk {
    pub(crate) fn new(disk: &SimDisk) -> ProcessDisk {
        ProcessDisk { disk: disk.clone(), alive: Arc::new(RwLock::new(true)) }
    }

    /// Waits for operations under way and lets none begin after.
    pub(crate) fn die(&self) {
        *self.alive.write() = false;
    }

    fn alive<T>(&self, work: impl FnOnce(&SimDisk) -> io::Result<T>) -> io::Result<T> {
        let alive = self.alive.read();
        if *alive { work(&self.disk) } else { Err(io::Error::other("this process is dead")) }
    }
}

impl Disk for ProcessDisk {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        self.alive(|disk| disk.create_dir(dir))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.alive(|disk| disk.list(dir))
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<Arc<dyn DiskFile>> {
        self.alive(|disk| disk.open(path, write))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.alive(|disk| disk.create(path))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.alive(|disk| disk.rename(from, to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.alive(|disk| disk.remove(path))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.alive(|disk| disk.sync_dir(dir))
    }

    fn lock(&self, path: &Path, mode: LockMode) -> Result<LockGuard, LockError> {
        let alive = self.alive.read();
        if *alive {
            self.disk.lock(path, mode)
        } else {
            Err(LockError::Io(io::Error::other("this process is dead")))
        }
    }
}

/// Settings with which little fills memory, and segments follow each other soon.
pub(crate) fn small() -> Settings {
    Settings {
        memory_bytes: 64 << 10,
        message_bytes_max: 16 << 10,
        segment_bytes: 256 << 10,
        pending_bytes_max: 128 << 10,
        ..Settings::default()
    }
}

/// A broker of [`small`] settings on this disk.
pub(crate) async fn on(disk: &ProcessDisk) -> EmbeddedBroker {
    EmbeddedBroker::open_on("/sim", small(), Arc::new(disk.clone())).await.expect("opens")
}
