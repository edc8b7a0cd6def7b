//! Opening a directory: its log, and from it everything that was durable.

use std::path::PathBuf;
use std::sync::Arc;

use millstream_message::{BrokerError, BrokerErrorKind, BrokerUrl};
use parking_lot::{Mutex, RwLock};

use crate::broker::EmbeddedBroker;
use crate::clock::Clock;
use crate::core::{Core, Ids, Place};
use crate::journal::{Journal, storage};
use crate::log::{Disk, Log, LogError, LogErrorKind, LogSettings, Recovery};
use crate::rebuild::{self, Rebuild};
use crate::record::{FORMAT, META};
use crate::settings::Settings;
use crate::shared::{Bell, Budget, Shared};
use crate::stream_log;
use crate::streams::Streams;

/// An opened directory that is not running yet.
pub(crate) struct Opened {
    place: Place,
    settings: Settings,
    streams: Streams,
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
        let opened = Log::open(&path, log_settings, disk.clone(), &mut |replay| rebuild.see(&replay));
        let (log, recovery) = opened.map_err(broker_error)?;
        if let Some(error) = rebuild.error.take() {
            return Err(error);
        }
        let place = Place { path, disk, background };
        for id in &rebuild.image.gone_streams {
            stream_log::remove(&*place.disk, &stream_log::directory(&place.path, *id));
        }
        let streams = Streams::default();
        for (id, spec) in &rebuild.image.topology.streams {
            streams.insert(place.stream(*id, spec.clone(), &settings)?);
        }
        Ok(Opened { place, settings, streams, log, rebuild, recovery })
    }

    /// Starts the broker.
    pub(crate) async fn start(self) -> Result<EmbeddedBroker, BrokerError> {
        let Opened { place, settings, streams, log, rebuild, recovery } = self;
        let url = BrokerUrl::Embedded(place.path.clone());
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
        let next_id = image.topology.next_id.max(1);
        let topology = rebuild::topology(image.topology, image.queues, &shared);
        // Delays and expiry go on from here.
        shared.bell.wake_by(0);
        let core = Arc::new(Core {
            shared,
            topology: RwLock::new(topology),
            declaring: tokio::sync::Mutex::new(Ids { next_id, place: Some(place) }),
            positions: Mutex::new(image.positions),
            streams,
            upkeep: Default::default(),
        });
        // A process that was killed may have stored a message and not yet dropped the one it drove out.
        for queue in core.all_queues() {
            queue.tick(core.shared.clock.now());
        }
        Ok(EmbeddedBroker::start(core, url, Some(recovery)))
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
