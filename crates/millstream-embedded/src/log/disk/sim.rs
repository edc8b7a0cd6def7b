//! A disk in memory that does what disks do at the worst moment.
//!
//! What was written and not synced is kept apart: a crash keeps any subset of its sectors, in any order, and
//! any subset of the names that were changed and not synced. Everything random comes from the seed given to
//! the crash.

mod state;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;

use super::{Disk, DiskFile, LockError, LockGuard, LockMode};
use state::{Inner, Inode, Keep, NameChange, Random, apply, write_into};

/// A disk in memory, for tests. Clones are the same disk.
///
/// # Examples
///
/// ```
/// use std::{path::Path, sync::Arc};
/// use millstream_embedded::log::{Entry, Log, LogSettings, SimDisk};
///
/// let disk = SimDisk::new();
/// let settings = LogSettings { segment_bytes: 64 << 10, record_bytes_max: 8192, background: false, ..Default::default() };
/// let (log, _) = Log::open(Path::new("log"), settings.clone(), Arc::new(disk.clone()), &mut |_| {}).unwrap();
/// log.append_blocking(Entry { kind: 0, time: 0, head: b"", body: b"kept" }).unwrap().commit.wait().unwrap();
/// log.append_blocking(Entry { kind: 0, time: 0, head: b"", body: b"lost" }).unwrap().commit.later();
/// disk.stop(); // as a power cut would
/// drop(log);
/// disk.crash(42);
///
/// let (_, recovery) = Log::open(Path::new("log"), settings, Arc::new(disk), &mut |_| {}).unwrap();
/// assert_eq!(recovery.records, 1);
/// ```
#[derive(Debug, Clone, Default)]
pub struct SimDisk(Arc<Mutex<Inner>>);

/// An operation that is made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// A write of contents: a part may reach the disk.
    Write,
    /// A sync of contents: a part reaches the disk, and the rest is forgotten, so that a second sync would
    /// wrongly succeed.
    Sync,
}

impl SimDisk {
    /// An empty disk of any size.
    pub fn new() -> Self {
        Self::default()
    }

    /// Operations so far that change something or make something durable: the moments at which a crash can
    /// make a difference.
    pub fn operations(&self) -> u64 {
        self.0.lock().operations
    }

    /// Lets `operations` more succeed. The one after them may still do a part of its work, and fails, as
    /// does everything later, until [`crash`](Self::crash).
    pub fn stop_after(&self, operations: u64) {
        let mut inner = self.0.lock();
        inner.stop_at = Some(inner.operations + operations);
    }

    /// Lets everything fail from now on, until [`crash`](Self::crash).
    pub fn stop(&self) {
        self.stop_after(0);
    }

    /// Kills the process and leaves the system running: open files and locks are gone, everything written is
    /// there, and what was not synced still is not.
    pub fn kill(&self) {
        let mut inner = self.0.lock();
        inner.power += 1;
        inner.stop_at = None;
        inner.locks.clear();
        inner.faults.clear();
    }

    /// Takes the power away and gives it back: open files and locks are gone, and of what was not synced
    /// remains what `seed` decides: nothing, everything, or any sectors and any names.
    pub fn crash(&self, seed: u64) {
        let mut random = Random(seed);
        let mut inner = self.0.lock();
        let inner = &mut *inner;
        inner.power += 1;
        inner.stop_at = None;
        inner.locks.clear();
        inner.faults.clear();
        let keep = Keep::choose(&mut random);
        for change in std::mem::take(&mut inner.name_changes) {
            if keep.this(&mut random) {
                apply(&mut inner.durable_names, &change);
            }
        }
        inner.names = inner.durable_names.clone();
        let mut inodes: Vec<_> = inner.files.keys().copied().collect();
        inodes.sort_unstable();
        for inode in inodes {
            if !inner.names.values().any(|i| *i == inode) {
                inner.files.remove(&inode);
                continue;
            }
            let file = inner.files.get_mut(&inode).expect("listed above");
            file.settle(keep, &mut random);
            file.current = file.durable.clone();
        }
    }

    /// Another disk with the same contents; what is open or locked on this one is not there.
    pub fn fork(&self) -> Self {
        let inner = self.0.lock();
        let files = inner.files.iter().map(|(inode, file)| (*inode, file.clone())).collect();
        Self(Arc::new(Mutex::new(Inner {
            files,
            names: inner.names.clone(),
            durable_names: inner.durable_names.clone(),
            name_changes: inner.name_changes.clone(),
            next_inode: inner.next_inode,
            ..Inner::default()
        })))
    }

    /// Lets the next `count` operations of this sort fail.
    pub fn inject(&self, fault: Fault, count: u32) {
        self.0.lock().faults.insert(fault, count);
    }

    /// Limits the bytes of all files together; 0 lifts the limit.
    pub fn set_capacity(&self, bytes: u64) {
        self.0.lock().capacity = bytes;
    }

    /// The files and their lengths, by name.
    pub fn files(&self) -> Vec<(PathBuf, u64)> {
        let inner = self.0.lock();
        inner
            .names
            .iter()
            .map(|(path, inode)| (path.clone(), inner.files[inode].current.len() as u64))
            .collect()
    }

    /// Bytes of all files together.
    pub fn used_bytes(&self) -> u64 {
        self.0.lock().used()
    }

    /// The bytes of a file, for looking at or changing behind the log's back; a change is durable at once.
    /// `None` when there is no such file.
    pub fn tamper<T>(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>) -> T) -> Option<T> {
        let mut inner = self.0.lock();
        let inode = *inner.names.get(path)?;
        let file = inner.files.get_mut(&inode)?;
        let result = change(&mut file.current);
        file.durable = file.current.clone();
        file.unsynced.clear();
        Some(result)
    }

    fn handle(&self, inode: u64, inner: &Inner) -> Arc<dyn DiskFile> {
        Arc::new(SimFile { disk: self.clone(), inode, power: inner.power })
    }
}

impl Disk for SimDisk {
    fn create_dir(&self, _dir: &Path) -> io::Result<()> {
        self.0.lock().check_alive()
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let inner = self.0.lock();
        inner.check_alive()?;
        let inside = inner.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(inside.filter_map(|path| path.file_name()?.to_str().map(str::to_owned)).collect())
    }

    fn open(&self, path: &Path, _write: bool) -> io::Result<Arc<dyn DiskFile>> {
        let inner = self.0.lock();
        inner.check_alive()?;
        let inode = *inner.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(self.handle(inode, &inner))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut inner = self.0.lock();
        let inode = inner.next_inode;
        inner.next_inode += 1;
        inner.files.insert(inode, Inode::default());
        inner.change(NameChange::Add(path.into(), inode))?;
        Ok(self.handle(inode, &inner))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut inner = self.0.lock();
        if !inner.names.contains_key(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        inner.change(NameChange::Rename(from.into(), to.into()))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.0.lock();
        if !inner.names.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        inner.change(NameChange::Remove(path.into()))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut inner = self.0.lock();
        inner.operate()?;
        let inner = &mut *inner;
        for change in std::mem::take(&mut inner.name_changes) {
            if change.path().parent() == Some(dir) {
                apply(&mut inner.durable_names, &change);
            } else {
                inner.name_changes.push(change);
            }
        }
        Ok(())
    }

    fn lock(&self, path: &Path, mode: LockMode) -> Result<LockGuard, LockError> {
        let mut inner = self.0.lock();
        inner.check_alive().map_err(LockError::Io)?;
        if mode == LockMode::Shared {
            // Readers of a simulated disk come one at a time: they need no entry of their own.
            return if inner.locks.contains(path) {
                Err(LockError::Held(Some(std::process::id())))
            } else {
                Ok(LockGuard::new(()))
            };
        }
        if !inner.locks.insert(path.into()) {
            return Err(LockError::Held(Some(std::process::id())));
        }
        Ok(LockGuard::new(SimLock { disk: self.clone(), path: path.into(), power: inner.power }))
    }
}

#[derive(Debug)]
struct SimLock {
    disk: SimDisk,
    path: PathBuf,
    power: u64,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut inner = self.disk.0.lock();
        if inner.power == self.power {
            inner.locks.remove(&self.path);
        }
    }
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    inode: u64,
    power: u64,
}

impl SimFile {
    fn with<T>(&self, work: impl FnOnce(&mut Inner) -> io::Result<T>) -> io::Result<T> {
        let mut inner = self.disk.0.lock();
        if inner.power != self.power {
            return Err(io::Error::other("the process that opened this file is gone"));
        }
        work(&mut inner)
    }
}

impl DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        self.with(|inner| Ok(inner.files[&self.inode].current.len() as u64))
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.with(|inner| {
            inner.check_alive()?;
            let bytes = inner.files[&self.inode].current.get(offset as usize..).unwrap_or_default();
            let len = bytes.len().min(buf.len());
            buf[..len].copy_from_slice(&bytes[..len]);
            Ok(len)
        })
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.with(|inner| {
            let done = inner.operate();
            if !inner.leaves_traces() {
                return done;
            }
            inner.grow(self.inode, offset + buf.len() as u64)?;
            let failed = inner.fails(Fault::Write);
            let file = inner.files.get_mut(&self.inode).expect("open files exist");
            write_into(&mut file.current, offset, buf);
            file.unsynced.push((offset, buf.to_vec()));
            if failed {
                return Err(io::Error::other("simulated failure of a write"));
            }
            done
        })
    }

    fn reserve(&self, len: u64) -> io::Result<()> {
        self.with(|inner| {
            inner.operate()?;
            inner.grow(self.inode, len)
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.with(|inner| {
            inner.operate()?;
            let failed = inner.fails(Fault::Sync);
            let seed = inner.operations;
            let file = inner.files.get_mut(&self.inode).expect("open files exist");
            if failed {
                file.settle(Keep::Some, &mut Random(seed));
                return Err(io::Error::other("simulated failure of a sync"));
            }
            for (offset, bytes) in std::mem::take(&mut file.unsynced) {
                write_into(&mut file.durable, offset, &bytes);
            }
            let len = file.current.len();
            file.durable.resize(len, 0);
            Ok(())
        })
    }
}
