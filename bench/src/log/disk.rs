//! Where the logs lie, what is written into them, and what the disk itself can do.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::fdatasync;
use tempfile::TempDir;

use crate::case::{Absent, Sample, Scale};
use crate::clock;

/// The size of a record's body.
pub(crate) const RECORD: usize = 1024;
/// How much is written before one begins at the start again: a segment's worth.
const FILE: usize = 64 << 20;

pub(crate) const RATE: &str = "records/s";

/// A directory for one contestant, gone with it. It lies in `TMPDIR` if that is set, else beside this program: `/tmp`
/// may be memory, which would measure nothing.
pub(crate) fn directory() -> Result<TempDir, Absent> {
    let parent = match std::env::var_os("TMPDIR") {
        Some(parent) => PathBuf::from(parent),
        None => {
            let own = std::env::current_exe().map_err(|error| format!("this program's own path: {error}"))?;
            own.parent().unwrap_or(Path::new(".")).to_owned()
        }
    };
    tempfile::Builder::new()
        .prefix("millstream-bench-")
        .tempdir_in(&parent)
        .map_err(|error| format!("a directory in {}: {error}; set TMPDIR to one", parent.display()))
}

/// Bytes that do not compress, the same in every run.
pub(crate) fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let words = (0..len.div_ceil(8)).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.take(len).collect()
}

/// Records to write, one after the other: slices of a megabyte of noise.
pub(crate) struct Records {
    noise: Vec<u8>,
    next: usize,
}

impl Records {
    pub(crate) fn new() -> Self {
        Records { noise: noise(1 << 20), next: 0 }
    }

    /// The places of the next `count` records in [`bytes`](Self::bytes).
    pub(crate) fn next(&mut self, count: usize) -> Vec<std::ops::Range<usize>> {
        let all = self.noise.len() / RECORD;
        let places = (0..count).map(|at| {
            let start = (self.next + at) % all * RECORD;
            start..start + RECORD
        });
        let places = places.collect();
        self.next = (self.next + count) % all;
        places
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.noise
    }
}

/// For how long a contestant writes.
pub(crate) fn duration(scale: Scale) -> Duration {
    match scale {
        Scale::Tiny | Scale::Small | Scale::Quick => Duration::from_millis(200),
        Scale::Default => Duration::from_millis(700),
        Scale::Full => Duration::from_secs(3),
    }
}

/// Calls `commit`, which makes `batch` records durable, again and again for the time that `scale` allows.
pub(crate) fn rate(
    scale: Scale,
    batch: usize,
    mut commit: impl FnMut() -> Result<(), Absent>,
) -> Result<Sample, Absent> {
    // Until caches are full, the disk has found its rhythm, and those who prepare or compact files have some to use
    // again. The raw file is written before, too.
    let began = clock::now();
    while clock::now() - began < duration(scale) * 2 / 3 {
        commit()?;
    }
    let began = clock::now();
    let mut batches = 0u64;
    while clock::now() - began < duration(scale) {
        commit()?;
        batches += 1;
    }
    let seconds = (clock::now() - began).as_secs_f64();
    Ok(Sample::new().with(RATE, batches as f64 * batch as f64 / seconds))
}

/// The floor: `write` and `fdatasync` of a batch, on blocks that were written before.
pub(crate) fn raw(scale: Scale, batch: usize) -> Result<Sample, Absent> {
    let directory = directory()?;
    let file = prewritten(&directory.path().join("raw")).map_err(|error| format!("the raw file: {error}"))?;
    let bytes = noise(batch * RECORD);
    let mut at = 0;
    rate(scale, batch, || {
        if at + bytes.len() > FILE {
            at = 0;
        }
        file.write_all_at(&bytes, at as u64).map_err(|error| format!("writing: {error}"))?;
        at += bytes.len();
        fdatasync(&file).map_err(|error| format!("syncing: {error}"))
    })
}

fn prewritten(path: &Path) -> std::io::Result<File> {
    let file = OpenOptions::new().create_new(true).write(true).open(path)?;
    let zeros = vec![0; 1 << 20];
    for at in (0..FILE).step_by(zeros.len()) {
        file.write_all_at(&zeros, at as u64)?;
    }
    file.sync_all()?;
    Ok(file)
}
