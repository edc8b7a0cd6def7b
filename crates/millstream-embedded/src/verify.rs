//! Checking a broker's directory that nobody has open, without changing it.

use std::path::Path;

use crate::log::{self, Disk, LogError, Replay, VerifyReport};
use crate::rebuild::Rebuild;

/// What [`verify`] found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Verified {
    /// What is to be said of the log's files.
    pub log: VerifyReport,
    /// Messages that queues hold, whose records were in files that are not there any more.
    pub missing_messages: u64,
}

impl Verified {
    /// Whether nothing that had been durable is missing. A torn tail, as a crash leaves it, is sound.
    pub fn is_sound(&self) -> bool {
        self.log.is_sound() && self.missing_messages == 0
    }
}

/// Reads every record of one of a broker's [`logs`](crate::logs) and checks it, and whether the queues' messages are among them.
/// Changes nothing. Of a stream, which gives its oldest files free, nobody can tell whether one is missing.
///
/// # Errors
/// As of [`log::verify`].
pub fn verify(dir: &Path, disk: &dyn Disk) -> Result<Verified, LogError> {
    let mut rebuilt = Rebuild::default();
    let mut covers = 0;
    let log = log::walk(dir, disk, &mut |replay| {
        match replay {
            Replay::Checkpoint { covers: before, .. } => covers = before.get(),
            Replay::Record(record) if record.position.get() < covers => return,
            Replay::Record(_) => {}
        }
        rebuilt.see(&replay);
    })?;
    // A stream's log is none of queues.
    let queues = rebuilt.image.queues.values().filter(|_| rebuilt.error.is_none());
    let begin = if log.segments == 0 { u64::MAX } else { log.start.get() };
    let runs = queues.flat_map(|queue| queue.live.iter()).map(|live| &live.run);
    let gone = |position: u64| position != 0 && position < begin;
    let missing = runs.map(|run| (0..run.count).filter(|&at| gone(run.slot(at).0)).count() as u64);
    Ok(Verified { missing_messages: missing.sum(), log })
}
