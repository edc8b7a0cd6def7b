//! Opening a directory: its log, and from it everything that was durable.

use std::path::PathBuf;
use std::sync::Arc;

use millstream_message::{BrokerError, BrokerErrorKind, BrokerUrl};
use parking_lot::{Mutex, RwLock};

use crate::broker::EmbeddedBroker;
use crate::clock::Clock;
use crate::core::{Core, Ids};
use crate::journal::{Journal, storage};
use crate::log::{Disk, Log, LogError, LogErrorKind, LogSettings, Recovery};
use crate::rebuild::{self, Rebuild};
use crate::record::{FORMAT, META};
use crate::settings::Settings;
use crate::shared::{Bell, Budget, Shared};
use crate::stream::Streams;

/// An opened directory that is not running yet.
pub(crate) struct Opened {
    path: PathBuf,
    settings: Settings,
    log: Log,
    rebuild: Rebuild,
    recovery: Recovery,
}

impl Opened {
    /// Opens the log. Blocks.
    pub(crate) fn open(
        path: PathBuf,
        settings: Settings,
        disk: Arc<dyn Disk>,
        background: bool,
    ) -> Result<Opened, BrokerError> {
        settings.validate()?;
        let log_settings = LogSettings { background, ..settings.log() };
        let mut rebuild = Rebuild { image: Default::default(), ..Rebuild::default() };
        let opened = Log::open(&path, log_settings, disk, &mut |replay| rebuild.see(&replay));
        let (log, recovery) = opened.map_err(broker_error)?;
        if let Some(error) = rebuild.error.take() {
            return Err(error);
        }
        Ok(Opened { path, settings, log, rebuild, recovery })
    }

    /// Starts the broker.
    pub(crate) async fn start(self) -> Result<EmbeddedBroker, BrokerError> {
        let Opened { path, settings, log, rebuild, recovery } = self;
        let image = rebuild.image;
        let covered = recovery.checkpoint.map_or(0, |position| position.get());
        let journal = Journal::new(log);
        journal.checkpoint_at(covered + settings.segment_bytes);
        let shared = Arc::new(Shared {
            clock: Clock::start(),
            budget: Budget::new(settings.memory_bytes),
            settings,
            bell: Bell::new(),
            journal: Some(journal),
            closed: false.into(),
        });
        if !rebuild.found {
            let journal = shared.journal.as_ref().expect("made above");
            let (_, commit) = journal.append(META, FORMAT, shared.clock.now()).await?;
            commit.await.map_err(|error| storage(&error))?;
        }
        let next_queue = image.topology.next_queue.max(1);
        let topology = rebuild::topology(image.topology, image.queues, &shared);
        // Delays and expiry go on from here.
        shared.bell.wake_by(0);
        let core = Arc::new(Core {
            shared,
            topology: RwLock::new(topology),
            declaring: tokio::sync::Mutex::new(Ids { next_queue }),
            positions: Mutex::new(image.positions),
            streams: Streams::default(),
        });
        Ok(EmbeddedBroker::start(core, BrokerUrl::Embedded(path), Some(recovery)))
    }
}

/// A log's error in the broker's words.
pub(crate) fn broker_error(error: LogError) -> BrokerError {
    let kind = match error.kind() {
        LogErrorKind::Locked => BrokerErrorKind::InUse,
        LogErrorKind::Format => BrokerErrorKind::Damaged,
        LogErrorKind::Settings => BrokerErrorKind::Invalid,
        _ => BrokerErrorKind::Storage,
    };
    BrokerError::with_source(kind, error.to_string(), error)
}
