//! What was done, by whom, in which order: a file that no worker owns, so that it outlives each of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The file, and how much is to be in it.
pub(crate) struct Account {
    path: PathBuf,
    keys: u64,
    each: u64,
}

/// A worker's way to write into it.
pub(crate) struct Writer {
    file: File,
    worker: String,
}

/// What an account says when all is done.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// How much each worker did.
    pub(crate) by_worker: BTreeMap<String, u64>,
    /// What came again after it had been done.
    pub(crate) twice: u64,
    /// Whether each key's work was first done in the order in which it was published.
    pub(crate) in_order: bool,
}

impl Account {
    /// An empty one, for `each` pieces of work of so many keys.
    pub(crate) fn open(path: &Path, keys: u64, each: u64) -> io::Result<Account> {
        File::create(path)?;
        Ok(Account { path: path.to_owned(), keys, each })
    }

    fn lines(&self) -> io::Result<Vec<(String, u64, u64)>> {
        let text = std::fs::read_to_string(&self.path)?;
        let line = |line: &str| {
            let mut words = line.split(' ');
            let worker = words.next()?.to_owned();
            Some((worker, words.next()?.parse().ok()?, words.next()?.parse().ok()?))
        };
        // Only the last line may be half written.
        Ok(text.lines().filter_map(line).collect())
    }

    /// How many different pieces of work are done.
    pub(crate) fn done(&self) -> io::Result<usize> {
        Ok(self.lines()?.into_iter().map(|(_, key, number)| (key, number)).collect::<BTreeSet<_>>().len())
    }

    /// Who has done most.
    pub(crate) fn busiest(&self) -> io::Result<Option<String>> {
        let mut by_worker = BTreeMap::new();
        for (worker, _, _) in self.lines()? {
            *by_worker.entry(worker).or_insert(0) += 1;
        }
        Ok(by_worker.into_iter().max_by_key(|(_, done)| *done).map(|(worker, _)| worker))
    }

    /// Waits until so much is done; an error tells how much is after this time.
    pub(crate) async fn reaches(&self, wanted: u64, within: Duration) -> io::Result<()> {
        let waiting = async {
            while (self.done()? as u64) < wanted {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Ok(())
        };
        match tokio::time::timeout(within, waiting).await {
            Ok(reached) => reached,
            Err(_) => Err(io::Error::other(format!("{} of {wanted} were done in {within:?}", self.done()?))),
        }
    }

    /// Waits until all is done, and looks at what it says.
    pub(crate) async fn verdict(&self, within: Duration) -> io::Result<Verdict> {
        self.reaches(self.keys * self.each, within).await?;
        let mut next = vec![0; self.keys as usize];
        let mut verdict = Verdict { by_worker: BTreeMap::new(), twice: 0, in_order: true };
        let mut seen = BTreeSet::new();
        for (worker, key, number) in self.lines()? {
            *verdict.by_worker.entry(worker).or_insert(0) += 1;
            if !seen.insert((key, number)) {
                verdict.twice += 1;
            } else {
                verdict.in_order &= number == next[key as usize];
                next[key as usize] = number + 1;
            }
        }
        Ok(verdict)
    }
}

impl Writer {
    /// For the worker of this name.
    pub(crate) fn open(path: &Path, worker: &str) -> io::Result<Writer> {
        let file = OpenOptions::new().append(true).open(path)?;
        Ok(Writer { file, worker: worker.to_owned() })
    }

    /// Notes that a piece of work, whose message says `KEY NUMBER`, is done. One write: lines of several workers do not
    /// mix, and what is written outlives the worker.
    pub(crate) fn done(&mut self, message: &[u8]) -> io::Result<()> {
        let work = std::str::from_utf8(message).map_err(io::Error::other)?;
        self.file.write_all(format!("{} {work}\n", self.worker).as_bytes())
    }
}
