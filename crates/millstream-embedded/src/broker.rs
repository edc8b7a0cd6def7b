//! The broker as its users see it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use millstream_message::{
    Batch, Binding, BoxFuture, Broker, BrokerError, BrokerErrorKind, BrokerUrl, Browsed, Confirm,
    ConsumeOptions, Consumer, Declaration as Declared, Exchange, ExchangeKind, Features, Message,
    Queue as Spec, QueueKind, QueueStats, Standing, StreamFrom, StreamReader, StreamSpec, StreamStats,
    differences,
};
use parking_lot::Mutex;
use tokio::task::JoinSet;

use crate::clock::Clock;
use crate::core::{Core, From, Ids};
use crate::exchange::Topology;
use crate::journal::{self, Journal};
#[cfg(feature = "test-support")]
use crate::log::Disk;
use crate::log::{LogStats, RealDisk, Recovery};
use crate::opened::Opened;
use crate::queue::Queue;
use crate::record::Declaration;
use crate::session;
use crate::settings::Settings;
use crate::shared::{Bell, Budget, Shared};
use crate::stream_memory::MemoryStream;
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

    /// What of this broker's directory is known to be damaged, in sentences for whoever runs it: what opening found,
    /// and messages that were taken off their queues since. Empty if nothing is.
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

fn not_found(what: &str, name: &str) -> BrokerError {
    BrokerError::new(BrokerErrorKind::NotFound, format!("there is no {what} `{name}`; declare it first"))
}

fn check_name(what: &str, name: &str) -> Result<(), BrokerError> {
    let wrong = match name.len() {
        0 => "is empty".to_owned(),
        1..=255 => return Ok(()),
        len => format!("has {len} bytes"),
    };
    Err(BrokerError::new(
        BrokerErrorKind::Invalid,
        format!("the name of a {what} {wrong}; use 1 to 255 bytes"),
    ))
}

fn mismatch(what: &str, name: &str, differences: &str) -> BrokerError {
    BrokerError::new(
        BrokerErrorKind::Mismatch,
        format!("{what} `{name}` exists and differs: {differences}; delete it first, or declare it as it is"),
    )
}

impl Broker for EmbeddedBroker {
    fn url(&self) -> &BrokerUrl {
        &self.url
    }

    fn features(&self) -> Features {
        let max = self.core.shared.settings.message_bytes_max as u64;
        let mut features = Features::all(max);
        features.durable = self.core.shared.journal.is_some();
        features.consumer_priority = false;
        features.queue_expiry = false;
        features.stream_queues = false;
        features
    }

    fn declare_exchange(&self, exchange: Exchange) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(async move {
            self.core.shared.check_open()?;
            check_name("exchange", &exchange.name)?;
            let _one = self.core.declaring.lock().await;
            let known =
                self.core.topology.read().exchanges.get(&exchange.name).map(|bound| bound.exchange.clone());
            if let Some(known) = known {
                return match differences(&known, &exchange) {
                    None => Ok(()),
                    Some(text) => Err(mismatch("exchange", &exchange.name, &text)),
                };
            }
            let declared = exchange.durable.then(|| Declaration::Exchange(exchange.clone()));
            let name = exchange.name.clone();
            self.core
                .declare(
                    declared,
                    |topology| topology.declare(exchange),
                    |topology| topology.remove_exchange(&name),
                )
                .await
        })
    }

    fn delete_exchange<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), BrokerError>> {
        Box::pin(async move {
            self.core.shared.check_open()?;
            let _one = self.core.declaring.lock().await;
            let known = self.core.topology.read().exchanges.get(name).map(|bound| bound.exchange.durable);
            let declared = (known == Some(true)).then(|| Declaration::DeleteExchange(name.to_owned()));
            self.core.declare(declared, |topology| topology.remove_exchange(name), |_| {}).await
        })
    }

    fn declare_queue(&self, queue: Spec) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(async move {
            self.core.shared.check_open()?;
            check_queue(&queue)?;
            let mut ids = self.core.declaring.lock().await;
            if let Some(known) = self.core.queue(&queue.name) {
                return match differences(&known.spec, &queue) {
                    None => Ok(()),
                    Some(text) => Err(mismatch("queue", &queue.name, &text)),
                };
            }
            let id = ids.next_id;
            ids.next_id += 1;
            let queue = Arc::new(Queue::new(id, queue, self.core.shared.clone()));
            let declared = queue.durable.then(|| Declaration::Queue { id, queue: queue.spec.clone() });
            let name = queue.name().to_owned();
            self.core
                .declare(
                    declared,
                    |topology| _ = topology.queues.insert(queue.name().to_owned(), queue),
                    |topology| _ = topology.remove_queue(&name),
                )
                .await
        })
    }

    fn delete_queue<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<u64, BrokerError>> {
        Box::pin(async move {
            self.core.shared.check_open()?;
            let _one = self.core.declaring.lock().await;
            let Some(queue) = self.core.queue(name) else { return Ok(0) };
            let declared = queue.durable.then(|| Declaration::DeleteQueue(queue.id));
            let mut ready = 0;
            let delete = |topology: &mut Topology| {
                topology.remove_queue(name);
                ready = queue.delete();
            };
            self.core.declare(declared, delete, |_| {}).await?;
            Ok(ready)
        })
    }

    fn bind(&self, binding: Binding) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(async move {
            self.core.shared.check_open()?;
            let _one = self.core.declaring.lock().await;
            let (leads, durable) = {
                let topology = self.core.topology.read();
                let Some(bound) = topology.exchanges.get(&binding.exchange) else {
                    return Err(not_found("exchange", &binding.exchange));
                };
                let Some(leads) = topology.target(&binding) else {
                    let what = if binding.target_kind == millstream_message::Target::Queue {
                        "queue"
                    } else {
                        "exchange"
                    };
                    return Err(not_found(what, &binding.target));
                };
                check_binding(&bound.exchange, &binding)?;
                if bound.bindings.iter().any(|(known, _)| *known == binding) {
                    return Ok(());
                }
                let durable = topology.is_durable(bound, &leads);
                (leads, durable)
            };
            let declared = durable.then(|| Declaration::Bind(binding.clone()));
            let undo = binding.clone();
            self.core
                .declare(
                    declared,
                    |topology| _ = topology.bind(binding, &leads),
                    |topology| _ = topology.unbind(&undo),
                )
                .await
        })
    }

    fn unbind(&self, binding: Binding) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(async move {
            self.core.shared.check_open()?;
            let _one = self.core.declaring.lock().await;
            let declared = Some(Declaration::Unbind(binding.clone()));
            self.core.declare(declared, |topology| _ = topology.unbind(&binding), |_| {}).await
        })
    }

    fn standing<'a>(&'a self, what: &'a Declared) -> BoxFuture<'a, Result<Standing, BrokerError>> {
        Box::pin(async move {
            self.core.shared.check_open()?;
            let topology = self.core.topology.read();
            let found = match what {
                Declared::Exchange(exchange) => {
                    topology.exchanges.get(&exchange.name).map(|bound| differences(&bound.exchange, exchange))
                }
                Declared::Queue(queue) => {
                    topology.queues.get(&queue.name).map(|known| differences(&known.spec, queue))
                }
                Declared::Binding(binding) => topology
                    .exchanges
                    .get(&binding.exchange)
                    .filter(|bound| bound.bindings.iter().any(|(known, _)| known == binding))
                    .map(|_| None),
            };
            Ok(match found {
                None => Standing::Missing,
                Some(None) => Standing::Same,
                Some(Some(text)) => Standing::Different(text),
            })
        })
    }

    fn purge<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, Result<u64, BrokerError>> {
        Box::pin(async move { Ok(self.existing(queue)?.purge()) })
    }

    fn submit(&self, batch: Batch) -> BoxFuture<'_, Result<Confirm, BrokerError>> {
        Box::pin(self.core.submit(batch, From::User))
    }

    fn consume<'a>(
        &'a self,
        queue: &'a str,
        options: ConsumeOptions,
    ) -> BoxFuture<'a, Result<Consumer, BrokerError>> {
        Box::pin(async move { session::consume(&self.existing(queue)?, options) })
    }

    fn browse<'a>(
        &'a self,
        queue: &'a str,
        skip: u64,
        max: usize,
    ) -> BoxFuture<'a, Result<Vec<Browsed>, BrokerError>> {
        Box::pin(async move { self.existing(queue)?.browse(skip, max) })
    }

    fn stats<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, Result<QueueStats, BrokerError>> {
        Box::pin(async move { Ok(self.existing(queue)?.stats()) })
    }

    fn queue<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Spec>, BrokerError>> {
        Box::pin(async move {
            self.core.shared.check_open()?;
            Ok(self.core.queue(name).map(|queue| queue.spec.clone()))
        })
    }

    fn queues(&self) -> BoxFuture<'_, Result<Vec<String>, BrokerError>> {
        Box::pin(async move {
            self.core.shared.check_open()?;
            Ok(self.core.topology.read().queues.keys().cloned().collect())
        })
    }

    fn position<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Bytes>, BrokerError>> {
        Box::pin(async move {
            self.core.shared.check_open()?;
            Ok(self.core.positions.lock().get(name).cloned())
        })
    }

    fn store_position<'a>(
        &'a self,
        name: &'a str,
        value: Option<Bytes>,
    ) -> BoxFuture<'a, Result<(), BrokerError>> {
        Box::pin(async move { self.core.store_position(name.to_owned(), value).await })
    }

    fn declare_stream(&self, stream: StreamSpec) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(async move {
            self.core.shared.check_open()?;
            check_name("stream", &stream.name)?;
            let mut ids = self.core.declaring.lock().await;
            if let Some(known) = self.core.streams.get(&stream.name) {
                return match differences(known.spec(), &stream) {
                    None => Ok(()),
                    Some(text) => Err(mismatch("stream", &stream.name, &text)),
                };
            }
            let Some(place) = ids.place.clone() else {
                self.core.streams.insert(Stream::Memory(Arc::new(MemoryStream::new(stream))));
                return Ok(());
            };
            let id = ids.next_id;
            ids.next_id += 1;
            let declaration = Declaration::Stream { id, stream: stream.clone() };
            let settings = self.core.shared.settings.clone();
            let opened = blocking(move || place.stream(id, stream, &settings)).await?;
            let name = opened.spec().name.clone();
            let insert = |_: &mut Topology| self.core.streams.insert(opened);
            let undo = |_: &mut Topology| {
                self.core.streams.remove(&name).into_iter().for_each(|stream| stream.delete())
            };
            self.core.declare(Some(declaration), insert, undo).await
        })
    }

    fn delete_stream<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), BrokerError>> {
        Box::pin(async move {
            self.core.shared.check_open()?;
            let _one = self.core.declaring.lock().await;
            let Some(stream) = self.core.streams.get(name) else { return Ok(()) };
            let declaration = match &*stream {
                Stream::Logged(logged) => Some(Declaration::DeleteStream(logged.id)),
                Stream::Memory(_) => None,
            };
            let remove = |_: &mut Topology| _ = self.core.streams.remove(name);
            // Before, so that no crash leaves an offset of this stream to another of its name; and what was stored meanwhile.
            self.forget_offsets(name).await?;
            self.core.declare(declaration, remove, |_| {}).await?;
            self.forget_offsets(name).await?;
            blocking(move || {
                stream.delete();
                Ok(())
            })
            .await
        })
    }

    fn append<'a>(
        &'a self,
        stream: &'a str,
        messages: Vec<Message>,
    ) -> BoxFuture<'a, Result<u64, BrokerError>> {
        Box::pin(async move { self.stream_of(stream)?.append(messages, &self.core.shared).await })
    }

    fn read<'a>(
        &'a self,
        stream: &'a str,
        from: StreamFrom,
    ) -> BoxFuture<'a, Result<StreamReader, BrokerError>> {
        Box::pin(async move { self.stream_of(stream)?.read(from, &self.core.shared) })
    }

    fn stream_stats<'a>(&'a self, stream: &'a str) -> BoxFuture<'a, Result<StreamStats, BrokerError>> {
        Box::pin(async move { self.stream_of(stream)?.stats(self.core.shared.clock.now()) })
    }

    fn store_offset<'a>(
        &'a self,
        stream: &'a str,
        reader: &'a str,
        offset: u64,
    ) -> BoxFuture<'a, Result<(), BrokerError>> {
        Box::pin(async move {
            self.stream_of(stream)?;
            let value = Bytes::copy_from_slice(&offset.to_le_bytes());
            self.core.store_position(offset_name(stream, reader), Some(value)).await
        })
    }

    fn stored_offset<'a>(
        &'a self,
        stream: &'a str,
        reader: &'a str,
    ) -> BoxFuture<'a, Result<Option<u64>, BrokerError>> {
        Box::pin(async move {
            self.stream_of(stream)?;
            let value = self.core.positions.lock().get(&offset_name(stream, reader)).cloned();
            Ok(value.and_then(|bytes| Some(u64::from_le_bytes(*bytes.first_chunk()?))))
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(async move {
            self.shut();
            self.core.close().await
        })
    }
}

impl Drop for EmbeddedBroker {
    fn drop(&mut self) {
        self.shut();
        self.core.flush_settled();
        // Writes what was appended and gives the directory free, whoever still holds an acker.
        drop(self.core.shared.journal.as_ref().and_then(Journal::take));
        self.core.streams.all().iter().for_each(|stream| stream.abandon());
        self.tasks.lock().abort_all();
    }
}

/// Under which position a reader's offset is kept: lengths first, so that no two pairs share a name.
fn offset_name(stream: &str, reader: &str) -> String {
    format!("millstream-stream-offset:{}:{stream}:{reader}", stream.len())
}

fn check_queue(queue: &Spec) -> Result<(), BrokerError> {
    check_name("queue", &queue.name)?;
    let fail = |text: &str| {
        Err(BrokerError::new(BrokerErrorKind::Invalid, format!("queue `{}`: {text}", queue.name)))
    };
    if queue.durable && queue.exclusive {
        return fail("an exclusive queue vanishes with its connection, so it cannot be durable; choose one");
    }
    if queue.dead_letter_key.is_some() && queue.dead_letter_exchange.is_none() {
        return fail(
            "a dead-letter key without a dead-letter exchange has no effect; set `dead_letter_exchange` (\"\" is the default exchange)",
        );
    }
    if queue.kind == Some(QueueKind::Stream) || queue.expires.is_some() {
        let text = if queue.expires.is_some() {
            "queues do not go by themselves here: leave `expires` out, and delete it when it is no longer used"
        } else {
            "streams are declared by `declare_stream` here, and read by `read`"
        };
        return Err(BrokerError::new(
            BrokerErrorKind::Unsupported,
            format!("queue `{}`: {text}", queue.name),
        ));
    }
    if queue.ttl.is_some_and(|ttl| ttl.subsec_nanos() % 1_000_000 != 0) {
        return fail("the TTL is kept in whole milliseconds; round it");
    }
    Ok(())
}

fn check_binding(exchange: &Exchange, binding: &Binding) -> Result<(), BrokerError> {
    let by_headers = exchange.kind == ExchangeKind::Headers;
    let text = match &binding.headers {
        Some(_) if !by_headers => "compares headers, which only a headers exchange does",
        None if by_headers => "gives no headers to compare; use `Binding::headers`",
        _ => return Ok(()),
    };
    Err(BrokerError::new(BrokerErrorKind::Invalid, format!("the {binding} {text}")))
}
