//! Directories that outlast a power cut.

use std::fs::{self, File};
use std::io;
use std::path::Path;

/// Makes a directory and those above it that are missing. Each new name is on the disk when this returns: a file that is
/// synced later would be gone with the directory that it lies in.
pub(crate) fn create(directory: &Path) -> io::Result<()> {
    if directory.as_os_str().is_empty() || directory.is_dir() {
        return Ok(());
    }
    let parent = match directory.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    create(parent)?;
    match fs::create_dir(directory) {
        Ok(()) => sync(parent),
        // Somebody else was quicker, and may not have synced it.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && directory.is_dir() => sync(parent),
        Err(error) => Err(error),
    }
}

/// Returns when the names in a directory are on the disk.
pub(crate) fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}
