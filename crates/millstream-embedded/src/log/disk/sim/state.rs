//! What a simulated disk holds, and what of it a crash leaves.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    path::{Path, PathBuf},
};

use super::Fault;

/// What a disk writes as a whole or not at all.
const SECTOR: u64 = 512;

#[derive(Debug, Default)]
pub(super) struct Inner {
    pub(super) files: HashMap<u64, Inode>,
    pub(super) names: BTreeMap<PathBuf, u64>,
    pub(super) durable_names: BTreeMap<PathBuf, u64>,
    pub(super) name_changes: Vec<NameChange>,
    pub(super) locks: BTreeSet<PathBuf>,
    pub(super) next_inode: u64,
    /// Counts crashes and kills; handles from before one are dead.
    pub(super) power: u64,
    pub(super) operations: u64,
    /// From this operation on, everything fails.
    pub(super) stop_at: Option<u64>,
    /// Bytes that all files together may have; 0: any number.
    pub(super) capacity: u64,
    pub(super) faults: HashMap<Fault, u32>,
}

#[derive(Debug, Default, Clone)]
pub(super) struct Inode {
    pub(super) durable: Vec<u8>,
    pub(super) current: Vec<u8>,
    pub(super) unsynced: Vec<(u64, Vec<u8>)>,
}

#[derive(Debug, Clone)]
pub(super) enum NameChange {
    Add(PathBuf, u64),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
}

impl Inner {
    /// Counts an operation; an error when the disk stops before it is complete.
    pub(super) fn operate(&mut self) -> io::Result<()> {
        let stopped = self.is_stopped();
        self.operations += 1;
        if stopped { Err(io::Error::other("the simulated disk has stopped")) } else { Ok(()) }
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stop_at.is_some_and(|at| self.operations >= at)
    }

    /// Whether this very operation is the last one that may leave something behind.
    pub(super) fn leaves_traces(&self) -> bool {
        self.stop_at.is_none_or(|at| self.operations <= at + 1)
    }

    pub(super) fn check_alive(&self) -> io::Result<()> {
        if self.is_stopped() { Err(io::Error::other("the simulated disk has stopped")) } else { Ok(()) }
    }

    pub(super) fn fails(&mut self, fault: Fault) -> bool {
        match self.faults.get_mut(&fault) {
            Some(count) if *count > 0 => {
                *count -= 1;
                true
            }
            _ => false,
        }
    }

    pub(super) fn used(&self) -> u64 {
        self.names.values().map(|inode| self.files[inode].current.len() as u64).sum()
    }

    pub(super) fn change(&mut self, change: NameChange) -> io::Result<()> {
        let done = self.operate();
        if self.leaves_traces() {
            apply(&mut self.names, &change);
            self.name_changes.push(change);
        }
        done
    }

    pub(super) fn grow(&mut self, inode: u64, len: u64) -> io::Result<()> {
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
    pub(super) fn settle(&mut self, keep: Keep, random: &mut Random) {
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

impl NameChange {
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Add(path, _) | Self::Rename(path, _) | Self::Remove(path) => path,
        }
    }
}

pub(super) fn apply(names: &mut BTreeMap<PathBuf, u64>, change: &NameChange) {
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

pub(super) fn write_into(bytes: &mut Vec<u8>, offset: u64, new: &[u8]) {
    let (start, end) = (offset as usize, offset as usize + new.len());
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[start..end].copy_from_slice(new);
}

/// What survives of what was not synced.
#[derive(Debug, Clone, Copy)]
pub(super) enum Keep {
    Nothing,
    Everything,
    Some,
}

impl Keep {
    pub(super) fn choose(random: &mut Random) -> Self {
        match random.next() % 8 {
            0 => Self::Nothing,
            1 => Self::Everything,
            _ => Self::Some,
        }
    }

    pub(super) fn this(self, random: &mut Random) -> bool {
        match self {
            Self::Nothing => false,
            Self::Everything => true,
            Self::Some => random.next() & 1 == 0,
        }
    }
}

/// SplitMix64: enough for choosing sectors, and the same on every machine.
#[derive(Debug)]
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
