//! The two kinds of small files beside the segments: checkpoints, and the log's state.
//! Both appear under their name only when whole and durable.

use std::{io, path::Path};

use super::{
    disk::Disk,
    error::{LogError, LogErrorKind},
    record::{u32_at, u64_at},
    segment::VERSION,
};

pub(crate) const STATE_NAME: &str = "state";
const STATE_MAGIC: &[u8; 8] = b"MSTRMSTA";
const STATE_LEN: usize = 36;

const CHECKPOINT_MAGIC: &[u8; 8] = b"MSTRMCKP";
const CHECKPOINT_HEAD: usize = 32;

/// What a log must know of its earlier openings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) salt: u32,
    pub(crate) epoch: u32,
    /// Where the records end, if the log was closed; 0 while it is open.
    pub(crate) clean_end: u64,
}

/// A small file as it was found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found<T> {
    Whole(T),
    Damaged,
    Absent,
}

pub(crate) fn write_state(disk: &dyn Disk, dir: &Path, state: &State) -> Result<(), LogError> {
    let mut bytes = [0; STATE_LEN];
    bytes[..8].copy_from_slice(STATE_MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes[12..16].copy_from_slice(&state.salt.to_le_bytes());
    bytes[16..20].copy_from_slice(&state.epoch.to_le_bytes());
    bytes[24..32].copy_from_slice(&state.clean_end.to_le_bytes());
    let crc = crc32fast::hash(&bytes[..32]);
    bytes[32..].copy_from_slice(&crc.to_le_bytes());
    write_atomically(disk, dir, STATE_NAME, &[&bytes])
}

pub(crate) fn read_state(disk: &dyn Disk, dir: &Path) -> Result<Found<State>, LogError> {
    let path = dir.join(STATE_NAME);
    let Some(bytes) = read_all(disk, &path, STATE_LEN as u64)? else { return Ok(Found::Absent) };
    let Some(bytes) = bytes.first_chunk::<STATE_LEN>() else { return Ok(Found::Damaged) };
    if &bytes[..8] != STATE_MAGIC || crc32fast::hash(&bytes[..32]) != u32_at(bytes, 32) {
        return Ok(Found::Damaged);
    }
    refuse_newer(u32_at(bytes, 8), &path)?;
    Ok(Found::Whole(State {
        salt: u32_at(bytes, 12),
        epoch: u32_at(bytes, 16),
        clean_end: u64_at(bytes, 24),
    }))
}

/// Whether `name` is a checkpoint, and the position it covers.
pub(crate) fn parse_checkpoint_name(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".checkpoint")?;
    (digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok())?
}

pub(crate) fn checkpoint_name(covers: u64) -> String {
    format!("{covers:020}.checkpoint")
}

/// Stores a checkpoint, then removes the ones before it.
pub(crate) fn write(disk: &dyn Disk, dir: &Path, payload: &[u8], covers: u64) -> Result<(), LogError> {
    let mut head = [0; CHECKPOINT_HEAD];
    head[..8].copy_from_slice(CHECKPOINT_MAGIC);
    head[8..12].copy_from_slice(&VERSION.to_le_bytes());
    head[16..24].copy_from_slice(&covers.to_le_bytes());
    head[24..32].copy_from_slice(&(payload.len() as u64).to_le_bytes());
    let crc = checkpoint_crc(&head, payload);
    head[12..16].copy_from_slice(&crc.to_le_bytes());
    let name = checkpoint_name(covers);
    write_atomically(disk, dir, &name, &[&head, payload])?;
    let names = disk.list(dir).map_err(|e| LogError::io("list the directory", dir, e))?;
    for old in names.iter().filter(|n| **n != name && parse_checkpoint_name(n).is_some()) {
        disk.remove(&dir.join(old))
            .map_err(|e| LogError::io("remove the old checkpoint", &dir.join(old), e))?;
    }
    Ok(())
}

/// Reads the payload of the checkpoint that covers everything before `covers`.
pub(crate) fn read(disk: &dyn Disk, dir: &Path, covers: u64) -> Result<Found<Vec<u8>>, LogError> {
    let path = dir.join(checkpoint_name(covers));
    let Some(mut bytes) = read_all(disk, &path, u64::MAX)? else { return Ok(Found::Absent) };
    let Some(head) = bytes.first_chunk::<CHECKPOINT_HEAD>() else { return Ok(Found::Damaged) };
    let payload = &bytes[CHECKPOINT_HEAD..];
    let whole = &head[..8] == CHECKPOINT_MAGIC
        && u64_at(head, 16) == covers
        && u64_at(head, 24) == payload.len() as u64
        && u32_at(head, 12) == checkpoint_crc(head, payload);
    if !whole {
        return Ok(Found::Damaged);
    }
    refuse_newer(u32_at(head, 8), &path)?;
    bytes.drain(..CHECKPOINT_HEAD);
    Ok(Found::Whole(bytes))
}

fn checkpoint_crc(head: &[u8; CHECKPOINT_HEAD], payload: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&head[..12]);
    crc.update(&head[16..]);
    crc.update(payload);
    crc.finalize()
}

pub(crate) fn refuse_newer(version: u32, path: &Path) -> Result<(), LogError> {
    if version <= VERSION {
        return Ok(());
    }
    Err(LogError::new(
        LogErrorKind::Format,
        format!(
            "{} has format version {version}, this program knows versions up to {VERSION}; use the newer program",
            path.display()
        ),
    ))
}

/// At most `limit` bytes of the file; `None` when there is none.
fn read_all(disk: &dyn Disk, path: &Path, limit: u64) -> Result<Option<Vec<u8>>, LogError> {
    let failed = |e| LogError::io("read", path, e);
    let file = match disk.open(path, false) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    let len = file.len().map_err(failed)?.min(limit);
    let mut bytes = vec![0; len as usize];
    let read = file.read_at(&mut bytes, 0).map_err(failed)?;
    bytes.truncate(read);
    Ok(Some(bytes))
}

fn write_atomically(disk: &dyn Disk, dir: &Path, name: &str, parts: &[&[u8]]) -> Result<(), LogError> {
    let unfinished = dir.join(format!("{name}.tmp"));
    let path = dir.join(name);
    let write = || {
        let file = disk.create(&unfinished)?;
        let mut at = 0;
        for part in parts {
            file.write_at(part, at)?;
            at += part.len() as u64;
        }
        file.sync()?;
        disk.rename(&unfinished, &path)?;
        disk.sync_dir(dir)
    };
    write().map_err(|e| {
        // What is left of it is removed at the next opening at the latest.
        let _ = disk.remove(&unfinished);
        LogError::io("write", &path, e)
    })
}
