//! How far the items of a source that has no queue are settled, kept in a file of its own.

use crate::hold::Hold;
use bytes::Bytes;
use millstream_flow::BoxError;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::spawn_blocking;

/// The time between two saves: a run that is killed repeats what it settled since the last one.
const SAVE_EVERY: Duration = Duration::from_millis(200);

/// A position file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the position file {}: {what}; {remedy}", path.display())]
struct PositionError {
    path: PathBuf,
    what: String,
    remedy: &'static str,
}

/// The position up to which every item is settled, and the file it is saved in.
///
/// Items are settled in any order; a position counts once all items before it are completed, dropped or dead. One that
/// was abandoned holds the position back for good, so that the next run reads it again.
pub(crate) struct Remembered {
    path: PathBuf,
    settled: Mutex<Settled>,
    changed: Notify,
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

#[derive(Default)]
struct Settled {
    /// All items below are settled.
    below: u64,
    /// Ranges settled above, by their begin.
    ahead: BTreeMap<u64, u64>,
    /// What to remember once all items below a number are settled, in their order.
    marks: VecDeque<(u64, Bytes)>,
    reached: Option<Bytes>,
}

impl Settled {
    /// Returns whether another mark was reached.
    fn add(&mut self, items: Range<u64>) -> bool {
        if items.start != self.below {
            self.ahead.insert(items.start, items.end);
            return false;
        }
        self.below = items.end;
        while let Some(entry) = self.ahead.first_entry().filter(|entry| *entry.key() == self.below) {
            self.below = entry.remove();
        }
        self.reach()
    }

    fn reach(&mut self) -> bool {
        let mut reached = false;
        while self.marks.front().is_some_and(|(end, _)| *end <= self.below) {
            self.reached = self.marks.pop_front().map(|(_, position)| position);
            reached = true;
        }
        reached
    }
}

impl Remembered {
    /// Takes the file at `path` for this run, and gives the position in it, if there is one.
    ///
    /// # Errors
    ///
    /// If the file or its directory cannot be used, or another run uses it.
    pub(crate) fn open(path: &Path, hold: Hold) -> Result<(Arc<Self>, Option<Bytes>), BoxError> {
        let failed = |remedy| {
            move |error: std::io::Error| PositionError {
                path: path.to_owned(),
                what: error.to_string(),
                remedy,
            }
        };
        let parent = directory(path);
        fs::create_dir_all(parent)
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
        let remembered = Remembered {
            path: path.to_owned(),
            settled: Mutex::default(),
            changed: Notify::new(),
            saved: Arc::new(Mutex::new(Saved { position: found.clone(), _lock: lock, _hold: hold })),
        };
        Ok((Arc::new(remembered), found))
    }

    fn settled(&self) -> MutexGuard<'_, Settled> {
        self.settled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `position` is reached when all items below `end` are settled. Called with rising numbers.
    pub(crate) fn mark(&self, end: u64, position: Bytes) {
        let mut settled = self.settled();
        settled.marks.push_back((end, position));
        if settled.reach() {
            self.changed.notify_one();
        }
    }

    /// These items are done with.
    pub(crate) fn settle(&self, items: Range<u64>) {
        if self.settled().add(items) {
            self.changed.notify_one();
        }
    }

    /// Saves the position now and then, until dropped.
    ///
    /// # Errors
    ///
    /// As [`save`](Self::save).
    pub(crate) async fn keep(self: Arc<Self>) -> Result<(), BoxError> {
        loop {
            self.changed.notified().await;
            self.save().await?;
            tokio::time::sleep(SAVE_EVERY).await;
        }
    }

    /// Saves the position that is reached, in one step: the file has either the old one or the new one, whenever the
    /// power goes.
    ///
    /// # Errors
    ///
    /// If it cannot be written. The position before it stays.
    pub(crate) async fn save(&self) -> Result<(), BoxError> {
        let Some(position) = self.settled().reached.clone() else { return Ok(()) };
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
    File::open(directory(path))?.sync_all()
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A file beside `path`, of its name and an extension more.
fn beside(path: &Path, extension: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(extension);
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever the order in which ranges are settled and marks are set, the position is the last mark of the
        /// longest run of settled items.
        #[test]
        fn the_position_is_the_last_mark_below_which_all_is_settled(
            lengths in proptest::collection::vec(1u64..9, 1..30),
            order in any::<prop::sample::Index>(),
            abandoned in proptest::option::of(0usize..30),
            seed in any::<u64>(),
        ) {
            let mut ranges = Vec::new();
            let mut end = 0;
            for length in &lengths {
                ranges.push(end..end + length);
                end += length;
            }
            let mut settled = Settled::default();
            let marked = order.index(ranges.len() + 1);
            for range in &ranges[..marked] {
                settled.marks.push_back((range.end, Bytes::from(range.end.to_string())));
            }
            let mut shuffled: Vec<usize> = (0..ranges.len()).collect();
            let mut state = seed | 1;
            for at in (1..shuffled.len()).rev() {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                shuffled.swap(at, (state >> 33) as usize % (at + 1));
            }
            for at in shuffled {
                if Some(at) != abandoned {
                    settled.add(ranges[at].clone());
                }
            }
            for range in &ranges[marked..] {
                settled.marks.push_back((range.end, Bytes::from(range.end.to_string())));
                settled.reach();
            }
            let held = abandoned.filter(|at| *at < ranges.len()).unwrap_or(ranges.len());
            let expected = ranges[..held].last().map(|range| Bytes::from(range.end.to_string()));
            prop_assert_eq!(settled.reached, expected);
        }
    }
}
