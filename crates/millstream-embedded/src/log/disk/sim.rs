//! A disk in memory that does what disks do at the worst moment.
//!
//! What was written and not synced is kept apart: a crash keeps any subset of its sectors, in any order, and
//! any subset of the names that were changed and not synced. Everything random comes from the seed given to
//! the crash.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;

use super::{Disk, DiskFile, LockError, LockGuard, LockMode};

/// What a disk writes as a whole or not at all.
const SECTOR: u64 = 512;

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

#[derive(Debug, Default)]
struct Inner {
    files: HashMap<u64, Inode>,
    names: BTreeMap<PathBuf, u64>,
    durable_names: BTreeMap<PathBuf, u64>,
    name_changes: Vec<NameChange>,
    locks: BTreeSet<PathBuf>,
    next_inode: u64,
    /// Counts crashes and kills; handles from before one are dead.
    power: u64,
    operations: u64,
    /// From this operation on, everything fails.
    stop_at: Option<u64>,
    /// Bytes that all files together may have; 0: any number.
    capacity: u64,
    faults: HashMap<Fault, u32>,
}

#[derive(Debug, Default, Clone)]
struct Inode {
    durable: Vec<u8>,
    current: Vec<u8>,
    unsynced: Vec<(u64, Vec<u8>)>,
}

#[derive(Debug, Clone)]
enum NameChange {
    Add(PathBuf, u64),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
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

impl Inner {
    /// Counts an operation; an error when the disk stops before it is complete.
    fn operate(&mut self) -> io::Result<()> {
        let stopped = self.is_stopped();
        self.operations += 1;
        if stopped { Err(io::Error::other("the simulated disk has stopped")) } else { Ok(()) }
    }

    fn is_stopped(&self) -> bool {
        self.stop_at.is_some_and(|at| self.operations >= at)
    }

    /// Whether this very operation is the last one that may leave something behind.
    fn leaves_traces(&self) -> bool {
        self.stop_at.is_none_or(|at| self.operations <= at + 1)
    }

    fn check_alive(&self) -> io::Result<()> {
        if self.is_stopped() { Err(io::Error::other("the simulated disk has stopped")) } else { Ok(()) }
    }

    fn fails(&mut self, fault: Fault) -> bool {
        match self.faults.get_mut(&fault) {
            Some(count) if *count > 0 => {
                *count -= 1;
                true
            }
            _ => false,
        }
    }

    fn used(&self) -> u64 {
        self.names.values().map(|inode| self.files[inode].current.len() as u64).sum()
    }

    fn change(&mut self, change: NameChange) -> io::Result<()> {
        let done = self.operate();
        if self.leaves_traces() {
            apply(&mut self.names, &change);
            self.name_changes.push(change);
        }
        done
    }

    fn grow(&mut self, inode: u64, len: u64) -> io::Result<()> {
        let used = self.used();
        let file = self.files.get_mut(&inode).expect("open files exist");
        let more = len.saturating_sub(file.current.len() as u64);
        if more > 0 {
            if self.capacity > 0 && used + more > self.capacity {
                return Err(io::ErrorKind::StorageFull.into());
            }
            file.current.resize(len as usize, 0);
        }
        Ok(())
    }
}

impl Inode {
    /// Lets a part of what was not synced reach the disk, and forgets that there was more.
    fn settle(&mut self, keep: Keep, random: &mut Random) {
        for (offset, bytes) in std::mem::take(&mut self.unsynced) {
            let mut done = 0;
            while done < bytes.len() {
                let at = offset + done as u64;
                let len = ((SECTOR - at % SECTOR) as usize).min(bytes.len() - done);
                if keep.this(random) {
                    write_into(&mut self.durable, at, &bytes[done..done + len]);
                }
                done += len;
            }
        }
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

impl NameChange {
    fn path(&self) -> &Path {
        match self {
            Self::Add(path, _) | Self::Rename(path, _) | Self::Remove(path) => path,
        }
    }
}

fn apply(names: &mut BTreeMap<PathBuf, u64>, change: &NameChange) {
    match change {
        NameChange::Add(path, inode) => {
            names.insert(path.clone(), *inode);
        }
        NameChange::Rename(from, to) => {
            // Without its source, which a crash did not keep, a rename does nothing.
            if let Some(inode) = names.remove(from) {
                names.insert(to.clone(), inode);
            }
        }
        NameChange::Remove(path) => {
            names.remove(path);
        }
    }
}

fn write_into(bytes: &mut Vec<u8>, offset: u64, new: &[u8]) {
    let (start, end) = (offset as usize, offset as usize + new.len());
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[start..end].copy_from_slice(new);
}

/// What survives of what was not synced.
#[derive(Debug, Clone, Copy)]
enum Keep {
    Nothing,
    Everything,
    Some,
}

impl Keep {
    fn choose(random: &mut Random) -> Self {
        match random.next() % 8 {
            0 => Self::Nothing,
            1 => Self::Everything,
            _ => Self::Some,
        }
    }

    fn this(self, random: &mut Random) -> bool {
        match self {
            Self::Nothing => false,
            Self::Everything => true,
            Self::Some => random.next() & 1 == 0,
        }
    }
}

/// SplitMix64: enough for choosing sectors, and the same on every machine.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
