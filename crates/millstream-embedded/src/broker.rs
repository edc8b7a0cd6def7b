//! The broker as its users see it.

mod checks;
mod operations;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use millstream_message::{Broker, BrokerError, BrokerErrorKind, BrokerUrl};
use parking_lot::Mutex;
use tokio::task::JoinSet;

use self::checks::not_found;
use crate::clock::Clock;
use crate::core::{Core, Ids};
use crate::journal::{self, Journal};
#[cfg(feature = "test-support")]
use crate::log::Disk;
use crate::log::{LogStats, RealDisk, Recovery};
use crate::opened::Opened;
use crate::queue::Queue;
use crate::settings::Settings;
use crate::shared::{Bell, Budget, Shared};
use crate::streams::{Stream, Streams};
use crate::upkeep;

/// Opens `memory:` or `embedded:PATH` with the default [`Settings`].
///
/// # Errors
/// See [`EmbeddedBroker::memory`]; `Unsupported` for every other scheme.
///
/// # Panics
/// Outside a tokio runtime: the broker's upkeep is a task of it.
pub async fn open(url: &BrokerUrl) -> Result<Arc<dyn Broker>, BrokerError> {
    match url {
        BrokerUrl::Memory => Ok(Arc::new(EmbeddedBroker::memory(Settings::memory())?)),
        BrokerUrl::Embedded(path) => Ok(Arc::new(EmbeddedBroker::open(path, Settings::default()).await?)),
        other => Err(BrokerError::new(
            BrokerErrorKind::Unsupported,
            format!("`{other}` is no embedded broker; this one opens `memory:` and `embedded:DIRECTORY`"),
        )),
    }
}

/// A broker inside this process.
///
/// Dropping it ends its consumers and its upkeep. See [`Broker::close`] for what dropping leaves undone.
pub struct EmbeddedBroker {
    core: Arc<Core>,
    url: BrokerUrl,
    recovery: Option<Recovery>,
    tasks: Mutex<JoinSet<()>>,
}

impl EmbeddedBroker {
    /// A broker that keeps everything in memory and forgets it when it is dropped.
    ///
    /// # Errors
    /// `Invalid` when the settings contradict each other.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn memory(settings: Settings) -> Result<EmbeddedBroker, BrokerError> {
        settings.validate()?;
        let shared = Arc::new(Shared {
            clock: Clock::start(),
            budget: Budget::new(settings.memory_bytes),
            settings,
            bell: Bell::new(),
            journal: None,
            closed: false.into(),
        });
        let core = Arc::new(Core {
            shared,
            topology: Default::default(),
            declaring: tokio::sync::Mutex::new(Ids { next_id: 1, place: None }),
            positions: Mutex::default(),
            streams: Streams::default(),
            upkeep: Default::default(),
        });
        Ok(EmbeddedBroker::start(core, BrokerUrl::Memory, None))
    }

    /// Opens the broker in a directory, making both if need be, and everything durable in it. One process has a
    /// directory open at a time.
    ///
    /// # Errors
    /// `InUse` names the process that has it open; `Damaged` that it is no broker's directory, or of another version;
    /// `Storage` what the disk refuses. A torn tail and damaged records are no errors: see
    /// [`recovery`](EmbeddedBroker::recovery).
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn open(path: impl Into<PathBuf>, settings: Settings) -> Result<EmbeddedBroker, BrokerError> {
        let path = path.into();
        let task =
            tokio::task::spawn_blocking(move || Opened::open(path, settings, Arc::new(RealDisk), true));
        let opened = task.await.map_err(|error| {
            BrokerError::with_source(BrokerErrorKind::Storage, "opening the broker panicked", error)
        })??;
        opened.start().await
    }

    /// Opens the broker on another disk, without threads of its own: for tests that crash.
    ///
    /// # Errors
    /// As [`open`](EmbeddedBroker::open).
    #[cfg(feature = "test-support")]
    pub async fn open_on(
        path: impl Into<PathBuf>,
        settings: Settings,
        disk: Arc<dyn Disk>,
    ) -> Result<EmbeddedBroker, BrokerError> {
        Opened::open(path.into(), settings, disk, false)?.start().await
    }

    /// What opening found: records read, a torn tail, damage. `None` for `memory:`.
    pub fn recovery(&self) -> Option<&Recovery> {
        self.recovery.as_ref()
    }

    /// Counts and sizes of the log of queues: records, groups, disk. `None` for `memory:` and once closed.
    pub fn log_stats(&self) -> Option<LogStats> {
        let log = self.core.shared.journal.as_ref()?.log().ok()?;
        Some(log.stats())
    }

    /// Bytes of messages in memory now, with all that keeps them there, of the `memory_bytes` of the settings.
    pub fn memory_used(&self) -> u64 {
        self.core.shared.budget.used()
    }

    /// How many messages were taken off their queue because their bytes on the disk are damaged, since opening.
    pub fn damaged_messages(&self) -> u64 {
        self.core.shared.journal.as_ref().map_or(0, Journal::damaged)
    }

    /// The streams whose logs are known to be damaged, and in how many places each: what opening found, and what readers met
    /// since. Readers pass over such a place, and its messages are missing from the offsets. A place that nobody has come to
    /// is not known; [`verify`](crate::log::verify) reads them all.
    pub fn damaged_streams(&self) -> BTreeMap<String, u64> {
        self.core.streams.damaged()
    }

    /// What of this broker's directory is known to be damaged, in sentences for whoever runs it: what opening found,
    /// and messages that were taken off their queues, or passed over in their streams, since. Empty if nothing is.
    pub fn damage(&self) -> Vec<String> {
        let mut known = Vec::new();
        let url = &self.url;
        let counted = |count: u64, one: &str, several: &str| match count {
            1 => format!("1 {one}"),
            _ => format!("{count} {several}"),
        };
        let places =
            self.recovery.as_ref().map_or(0, |found| found.damaged.len() as u64 + found.damaged_files);
        if places > 0 {
            known.push(format!(
                "the log of `{url}` is damaged in {}; what cannot be read was set aside beside it, and the rest goes on",
                counted(places, "place", "places")
            ));
        }
        let messages = self.damaged_messages();
        if messages > 0 {
            known.push(format!(
                "{} of `{url}` cannot be read, because the log is damaged, and came off the queue unread; \
                 publish them again if their senders still have them",
                counted(messages, "message", "messages")
            ));
        }
        for (stream, places) in self.damaged_streams() {
            known.push(format!(
                "the stream `{stream}` of `{url}` is damaged in {}; readers pass over what cannot be read there",
                counted(places, "place", "places")
            ));
        }
        known
    }

    pub(crate) fn start(core: Arc<Core>, url: BrokerUrl, recovery: Option<Recovery>) -> EmbeddedBroker {
        let mut tasks = JoinSet::new();
        if core.shared.journal.is_some() {
            tasks.spawn(journal::land(core.clone()));
        }
        tasks.spawn(upkeep::run(core.clone()));
        EmbeddedBroker { core, url, recovery, tasks: Mutex::new(tasks) }
    }

    fn existing(&self, name: &str) -> Result<Arc<Queue>, BrokerError> {
        self.core.shared.check_open()?;
        self.core.queue(name).ok_or_else(|| not_found("queue", name))
    }

    fn stream_of(&self, name: &str) -> Result<Arc<Stream>, BrokerError> {
        self.core.shared.check_open()?;
        self.core.streams.get(name).ok_or_else(|| not_found("stream", name))
    }

    /// Forgets how far the readers of a stream have read.
    async fn forget_offsets(&self, stream: &str) -> Result<(), BrokerError> {
        let begin = offset_name(stream, "");
        let names: Vec<String> = {
            let positions = self.core.positions.lock();
            let of_stream = positions.range(begin.clone()..).map(|(name, _)| name);
            of_stream.take_while(|name| name.starts_with(&begin)).cloned().collect()
        };
        for name in names {
            self.core.store_position(name, None).await?;
        }
        Ok(())
    }

    /// Ends everything that waits.
    fn shut(&self) -> bool {
        if self.core.shared.closed.swap(true, Ordering::AcqRel) {
            return false;
        }
        self.core.shared.budget.end();
        self.core.all_queues().iter().for_each(|queue| queue.wake_all());
        self.core.streams.all().iter().for_each(|stream| stream.wake());
        self.core.shared.bell.ring.notify_one();
        true
    }
}

/// Runs work that blocks on the disk on a thread for such work.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BrokerError> + Send + 'static,
) -> Result<T, BrokerError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => {
            Err(BrokerError::with_source(BrokerErrorKind::Storage, "work on the disk panicked", error))
        }
    }
}

impl Drop for EmbeddedBroker {
    fn drop(&mut self) {
        self.shut();
        self.core.flush_settled();
        // Writes what was appended and gives the directory free, whoever still holds an acker.
        if let Some(journal) = &self.core.shared.journal {
            drop(journal.take());
            journal.abandon(&self.core);
        }
        self.core.streams.all().iter().for_each(|stream| stream.abandon());
        self.tasks.lock().abort_all();
    }
}

/// Under which position a reader's offset is kept: lengths first, so that no two pairs share a name.
fn offset_name(stream: &str, reader: &str) -> String {
    format!("millstream-stream-offset:{}:{stream}:{reader}", stream.len())
}
