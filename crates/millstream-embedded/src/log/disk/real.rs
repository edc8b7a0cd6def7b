//! The operating system's file system.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
    sync::Arc,
};

use rustix::{
    fs::{FallocateFlags, FlockOperation},
    io::Errno,
};

use super::{Disk, DiskFile, LockError, LockGuard, LockMode};

/// The operating system's file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealDisk;

/// Who holds a lock: as the kernel says where it does (Linux), else as the file does, which between taking the lock and saying so
/// is empty or names the holder before.
fn holder(file: &mut File) -> Option<u32> {
    let told = fs::read_to_string("/proc/locks").ok();
    if let (Some(locks), Ok(metadata)) = (told, file.metadata())
        && let Some(holder) = holder_of(&locks, metadata.ino())
    {
        return Some(holder);
    }
    let mut text = String::new();
    let _ = file.take(32).read_to_string(&mut text);
    text.trim().parse().ok()
}

/// The process that `/proc/locks` names for the file of this number: `1: FLOCK ADVISORY WRITE 4711 fe:00:123 0 EOF`. One
/// out of sight of this process (another container's) has no number.
fn holder_of(locks: &str, inode: u64) -> Option<u32> {
    locks.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let (kind, process, file) = (words.next()?, words.nth(2)?, words.next()?);
        let ours = kind == "FLOCK" && file.rsplit(':').next()?.parse() == Ok(inode);
        process.parse().ok().filter(|process| ours && *process > 0)
    })
}

impl Disk for RealDisk {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        if dir.is_dir() {
            return Ok(());
        }
        let parent = dir.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        self.create_dir(parent)?;
        match fs::create_dir(dir) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            Err(_) if !dir.is_dir() => return Err(io::ErrorKind::NotADirectory.into()),
            _ => {}
        }
        self.sync_dir(parent)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(RealFile(OpenOptions::new().read(true).write(write).open(path)?)))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
        Ok(Arc::new(RealFile(file)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn lock(&self, path: &Path, mode: LockMode) -> Result<LockGuard, LockError> {
        let opened = match mode {
            LockMode::Exclusive => {
                OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
            }
            LockMode::Shared => File::open(path),
        };
        let mut file = match opened {
            Ok(file) => file,
            // A directory that was copied without its lock file has no writer either.
            Err(e) if mode == LockMode::Shared && e.kind() == io::ErrorKind::NotFound => {
                return Ok(LockGuard::new(()));
            }
            Err(e) => return Err(LockError::Io(e)),
        };
        let operation = match mode {
            LockMode::Exclusive => FlockOperation::NonBlockingLockExclusive,
            LockMode::Shared => FlockOperation::NonBlockingLockShared,
        };
        match rustix::fs::flock(&file, operation) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                return Err(LockError::Held(holder(&mut file)));
            }
            Err(e) => return Err(LockError::Io(e.into())),
        }
        if mode == LockMode::Exclusive {
            // The lock is the kernel's; the number only serves the error message of whoever comes second.
            let written =
                file.set_len(0).and_then(|()| file.write_all(format!("{}\n", std::process::id()).as_bytes()));
            written.map_err(LockError::Io)?;
        }
        Ok(LockGuard::new(file))
    }
}

#[derive(Debug)]
struct RealFile(File);

impl DiskFile for RealFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match self.0.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(buf, offset)
    }

    fn reserve(&self, len: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&self.0, FallocateFlags::empty(), 0, len) {
            // Some file systems cannot reserve; writing the zeros finds out instead.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_of_a_lock_is_read_from_what_the_kernel_lists() {
        let locks = "1: POSIX  ADVISORY  WRITE 11 fe:00:42 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 12 fe:00:41 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 0 fe:01:42 0 EOF\n\
                     3: -> FLOCK  ADVISORY  WRITE 13 fe:00:42 0 EOF\n\
                     4: FLOCK  ADVISORY  WRITE 14 fe:00:42 0 EOF\n";
        assert_eq!(holder_of(locks, 42), Some(14), "neither another kind of lock, nor one that waits");
        assert_eq!(holder_of(locks, 41), Some(12));
        assert_eq!(holder_of(locks, 43), None);
        assert_eq!(holder_of("nonsense", 42), None);
    }
}
