//! The client: which node has which stream, connections by node and use, and what is asked of the broker as a whole.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use millstream_message::{BrokerError, BrokerErrorKind, StreamFrom, StreamStats};
use millstream_resilience::{Backoff, Jitter};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::chunk::Chunk;
use super::command::{Body, Command, OffsetSpec, Request, code};
use super::consumer::{ConsumerOptions, StreamConsumer};
use super::link::{Link, lost, refused};
use super::producer::{Producer, ProducerOptions};
use super::super_stream::{Routing, SuperConsumer, SuperProducer};
use super::url::StreamSettings;

/// Publishers and consumers that share a connection.
const LOAD_MAX: usize = 64;
/// A reference to no node.
const NO_NODE: u16 = u16::MAX;

/// Twice as long each time, up to five seconds, and by chance between half of that and all of it, so that not all clients come at
/// once.
const BACKOFF: Backoff =
    Backoff::exponential(Duration::from_millis(50)).max(Duration::from_secs(5)).jitter(Jitter::Equal);

/// How long to wait before attempt number `attempt`, counted from 0, to connect again.
pub(crate) fn backoff(attempt: u32) -> Duration {
    BACKOFF.delay(attempt.saturating_add(1))
}

/// A client of RabbitMQ's streams by the stream protocol: declares streams, and makes producers and consumers.
///
/// Connections are made as they are needed, publishers and consumers apart (a broker that holds back publishers does
/// not hold back consumers), to the nodes where the streams are. A clone is another handle on the same connections.
///
/// ```no_run
/// use millstream_message::{Message, StreamFrom};
/// use millstream_rabbitmq::stream::{ConsumerOptions, ProducerOptions, StreamClient, StreamSettings};
///
/// # async fn run() -> Result<(), millstream_message::BrokerError> {
/// let client = StreamClient::connect(StreamSettings::parse("rabbitmq-stream://guest:guest@localhost")?).await?;
/// client.create_stream("orders", &[("max-age", "7D")]).await?;
///
/// let producer = client.producer("orders", ProducerOptions::default().name("shop")).await?;
/// let confirm = producer.send(&[Message::new("one"), Message::new("two")]).await?;
/// assert!(confirm.await.all_confirmed());
///
/// let mut reader = client.consumer("orders", StreamFrom::First, ConsumerOptions::default()).await?.into_reader();
/// assert_eq!(reader.next_chunk(1).await?[0].message.body(), "one");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct StreamClient {
    pub(crate) inner: Arc<Inner>,
}

/// What handles, producers and consumers share.
pub(crate) struct Inner {
    pub(crate) settings: StreamSettings,
    /// The connection for questions. Locked while it is made, so that it is made once.
    control: tokio::sync::Mutex<Option<Arc<Link>>>,
    pools: Mutex<BTreeMap<(Use, String, u16), Arc<Pool>>>,
    tasks: Mutex<JoinSet<()>>,
    closed: watch::Sender<bool>,
}

/// Connections of one use to one node. Locked while another is made: a node that does not answer holds up nobody who
/// does not need it.
type Pool = tokio::sync::Mutex<Vec<Weak<Link>>>;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Use {
    Publish,
    Consume,
}

/// First offset and number of messages of a chunk, if there is one.
type ChunkRange = Option<(u64, u32)>;

/// Where a stream is.
struct Place {
    leader: Option<(String, u16)>,
    replicas: Vec<(String, u16)>,
}

pub(crate) fn check_name(what: &str, name: &str) -> Result<(), BrokerError> {
    if (1..=255).contains(&name.len()) {
        return Ok(());
    }
    let text = format!("the name of a {what} has 1 to 255 bytes, not {}", name.len());
    Err(BrokerError::new(BrokerErrorKind::Invalid, text))
}

/// How long an operation goes on trying.
pub(crate) struct Patience<'a> {
    client: &'a Inner,
    begun: Instant,
    attempt: u32,
}

impl Patience<'_> {
    /// Waits before the next attempt, or fails as the last one did: when it is no use, or the time is up.
    pub(crate) async fn after(&mut self, error: BrokerError) -> Result<(), BrokerError> {
        let is_over = self.client.is_closed() || self.begun.elapsed() >= self.client.settings.patience;
        if error.kind() != BrokerErrorKind::Unavailable || is_over {
            return Err(error);
        }
        tracing::debug!(%error, attempt = self.attempt, "the broker is out of reach");
        tokio::time::sleep(backoff(self.attempt)).await;
        self.attempt += 1;
        Ok(())
    }
}

impl StreamClient {
    /// Connects to the first host that answers.
    ///
    /// # Errors
    /// `Unavailable` when none answers, `Invalid` when the broker refuses user, password or virtual host. Later
    /// operations wait for lost connections; this one does not.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn connect(settings: StreamSettings) -> Result<StreamClient, BrokerError> {
        let inner = Arc::new(Inner {
            settings,
            control: tokio::sync::Mutex::default(),
            pools: Mutex::default(),
            tasks: Mutex::default(),
            closed: watch::Sender::new(false),
        });
        inner.control().await?;
        Ok(StreamClient { inner })
    }

    /// How it connects.
    pub fn settings(&self) -> &StreamSettings {
        &self.inner.settings
    }

    /// The broker's version, as `3.10.8`.
    ///
    /// # Errors
    /// When the broker is out of reach.
    pub async fn server_version(&self) -> Result<String, BrokerError> {
        let mut patience = self.inner.patience();
        loop {
            match self.inner.control().await {
                Ok(link) => return Ok(link.server.version.clone()),
                Err(error) => patience.after(error).await?,
            }
        }
    }

    /// Makes a stream with the broker's own arguments: `max-length-bytes`, `max-age` (as `12h`, `7D`),
    /// `stream-max-segment-size-bytes`, `initial-cluster-size`, `queue-leader-locator`. Fine when it exists with the same.
    ///
    /// # Errors
    /// `Mismatch` when it exists with others. The broker does not say which: all are named. `Invalid` when the broker
    /// does not take them.
    pub async fn create_stream(&self, name: &str, arguments: &[(&str, &str)]) -> Result<(), BrokerError> {
        check_name("stream", name)?;
        let arguments: Vec<_> =
            arguments.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let create = Request::Create { stream: name.to_owned(), arguments: arguments.clone() };
        match self.inner.ask(name, create).await? {
            (_, code::OK | code::STREAM_EXISTS) => Ok(()),
            (_, code::PRECONDITION_FAILED) => {
                let wanted: Vec<_> =
                    arguments.iter().map(|(name, value)| format!("{name}={value}")).collect();
                let wanted = if wanted.is_empty() { "no arguments".to_owned() } else { wanted.join(", ") };
                Err(match self.inner.place(name).await {
                    Ok(_) => BrokerError::new(
                        BrokerErrorKind::Mismatch,
                        format!(
                            "stream `{name}` exists with other arguments than {wanted}; delete it, or declare it as it is"
                        ),
                    ),
                    Err(_) => BrokerError::new(
                        BrokerErrorKind::Invalid,
                        format!(
                            "the broker does not make a stream `{name}` with {wanted}; a queue may have the name"
                        ),
                    ),
                })
            }
            (_, other) => Err(refused(other, name)),
        }
    }

    /// Deletes a stream. Deleting what is not there is fine.
    ///
    /// # Errors
    /// When the broker refuses, or is out of reach.
    pub async fn delete_stream(&self, name: &str) -> Result<(), BrokerError> {
        match self.inner.ask(name, Request::Delete { stream: name.to_owned() }).await? {
            (_, code::OK | code::NO_STREAM) => Ok(()),
            (_, other) => Err(refused(other, name)),
        }
    }

    /// A producer of a stream.
    ///
    /// # Errors
    /// `NotFound` when there is no such stream.
    pub async fn producer(&self, stream: &str, options: ProducerOptions) -> Result<Producer, BrokerError> {
        Producer::open(self.inner.clone(), stream, options).await
    }

    /// A consumer of a stream. Is it named and has it stored an offset, begin at
    /// [`stored_offset`](StreamClient::stored_offset).
    ///
    /// # Errors
    /// `NotFound` when there is no such stream; `Unsupported` for a single active consumer before RabbitMQ 3.11.
    pub async fn consumer(
        &self,
        stream: &str,
        from: StreamFrom,
        options: ConsumerOptions,
    ) -> Result<StreamConsumer, BrokerError> {
        StreamConsumer::open(self.inner.clone(), stream, from, options).await
    }

    /// A producer of a super stream, which puts each message into one of its partitions.
    ///
    /// # Errors
    /// `NotFound` when there is no such super stream.
    pub async fn super_producer(
        &self,
        super_stream: &str,
        routing: Routing,
        options: ProducerOptions,
    ) -> Result<SuperProducer, BrokerError> {
        SuperProducer::open(self.clone(), super_stream, routing, options).await
    }

    /// A consumer of all partitions of a super stream.
    ///
    /// # Errors
    /// `NotFound` when there is no such super stream.
    pub async fn super_consumer(
        &self,
        super_stream: &str,
        from: StreamFrom,
        options: ConsumerOptions,
    ) -> Result<SuperConsumer, BrokerError> {
        SuperConsumer::open(self, super_stream, from, options).await
    }

    /// The streams that a super stream is made of, in order.
    ///
    /// # Errors
    /// `NotFound` when there is no such super stream.
    pub async fn partitions(&self, super_stream: &str) -> Result<Vec<String>, BrokerError> {
        let (body, answer) = self
            .inner
            .ask(super_stream, Request::Partitions { super_stream: super_stream.to_owned() })
            .await?;
        match (answer, body) {
            (code::OK, Body::Names(names)) if !names.is_empty() => Ok(names),
            (code::OK | code::NO_STREAM, _) => Err(no_super_stream(super_stream)),
            (other, _) => Err(refused(other, super_stream)),
        }
    }

    /// The partitions that are bound with exactly this key.
    ///
    /// # Errors
    /// `NotFound` when there is no such super stream.
    pub async fn route(&self, super_stream: &str, key: &str) -> Result<Vec<String>, BrokerError> {
        if key.len() > i16::MAX as usize {
            let text = format!("a routing key of {} bytes is too long", key.len());
            return Err(BrokerError::new(BrokerErrorKind::Invalid, text));
        }
        let request = Request::Route { key: key.to_owned(), super_stream: super_stream.to_owned() };
        match self.inner.ask(super_stream, request).await? {
            (Body::Names(names), code::OK) => Ok(names),
            (_, code::OK | code::NO_STREAM) => Err(no_super_stream(super_stream)),
            (_, other) => Err(refused(other, super_stream)),
        }
    }

    /// Where a stream begins and where it ends: by its oldest and its newest chunk, which are fetched for that. The
    /// broker's own records also take offsets, so the next message may get a later one than `next`. Bytes are not
    /// known: zero.
    ///
    /// # Errors
    /// `NotFound` when there is no such stream.
    pub async fn stats(&self, stream: &str) -> Result<StreamStats, BrokerError> {
        let (first, last) = self.inner.ends(stream).await?;
        let next = last.map_or(0, |(first, messages)| first + u64::from(messages));
        Ok(StreamStats { first: first.map_or(next, |(first, _)| first), next, bytes: 0 })
    }

    /// Durably remembers, at the broker, how far a reader has come: the offset it wants next. As other clients do it
    /// the broker is told the one before, the last that was read.
    ///
    /// # Errors
    /// `NotFound` when there is no such stream.
    pub async fn store_offset(&self, stream: &str, reader: &str, offset: u64) -> Result<(), BrokerError> {
        self.inner.store_offset(stream, reader, offset).await
    }

    /// The offset that a reader wants next, as it was stored last.
    ///
    /// # Errors
    /// `NotFound` when there is no such stream.
    pub async fn stored_offset(&self, stream: &str, reader: &str) -> Result<Option<u64>, BrokerError> {
        self.inner.stored_offset(stream, reader).await
    }

    /// Ends: producers take nothing more and finish what is in flight, consumers end, and connections are closed. What
    /// is not done after [`timeout`](StreamSettings::timeout) is given up. Closing twice is fine.
    pub async fn close(&self) {
        self.inner.closed.send_replace(true);
        *self.inner.control.lock().await = None;
        let mut tasks = std::mem::take(&mut *self.inner.tasks.lock());
        let all = async { while tasks.join_next().await.is_some() {} };
        if timeout(self.inner.settings.timeout, all).await.is_err() {
            tracing::warn!("the broker does not let go of all connections in time");
        }
    }
}

impl fmt::Debug for StreamClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamClient").field("settings", &self.inner.settings).finish_non_exhaustive()
    }
}

fn no_super_stream(name: &str) -> BrokerError {
    let text = format!("there is no super stream `{name}`; `rabbitmq-streams add_super_stream` makes one");
    BrokerError::new(BrokerErrorKind::NotFound, text)
}

/// An offset as the broker keeps it is that of the last message read: the one before the one wanted next. Before
/// the first there is the greatest number, which adds up to zero again.
fn as_kept(next: u64) -> u64 {
    next.wrapping_sub(1)
}

fn as_wanted(kept: u64) -> u64 {
    kept.wrapping_add(1)
}

impl Inner {
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock();
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    pub(crate) fn is_closed(&self) -> bool {
        *self.closed.borrow()
    }

    /// Waits until the client is closed.
    pub(crate) async fn closed(&self) {
        // The sender is here: it cannot be gone.
        let _ = self.closed.subscribe().wait_for(|closed| *closed).await;
    }

    fn check(&self) -> Result<(), BrokerError> {
        if self.is_closed() { Err(lost("the client is closed")) } else { Ok(()) }
    }

    /// The connection for questions.
    async fn control(&self) -> Result<Arc<Link>, BrokerError> {
        let mut control = self.control.lock().await;
        self.check()?;
        if let Some(link) = control.as_ref().filter(|link| link.is_alive()) {
            return Ok(link.clone());
        }
        let mut error = lost("the URL names no host");
        for host in &self.settings.hosts {
            match self.connect(host).await {
                Ok(link) => {
                    *control = Some(link.clone());
                    return Ok(link);
                }
                Err(other) => error = other,
            }
        }
        Err(error)
    }

    async fn connect(&self, host: &(String, u16)) -> Result<Arc<Link>, BrokerError> {
        Link::connect(&self.settings, host, |task| self.spawn(task)).await
    }

    /// A connection to this node. A node may give a name that only its neighbours know: then those of the URL are
    /// tried, of which each leads to every stream, if not always by the shortest way.
    async fn link(&self, used: Use, node: &(String, u16)) -> Result<Arc<Link>, BrokerError> {
        let pool = self.pools.lock().entry((used, node.0.clone(), node.1)).or_default().clone();
        let mut pool = pool.lock().await;
        self.check()?;
        pool.retain(|link| link.upgrade().is_some_and(|link| link.is_alive()));
        let free = pool.iter().filter_map(Weak::upgrade).find(|link| link.load() < LOAD_MAX);
        if let Some(link) = free {
            return Ok(link);
        }
        let mut outcome = match self.settings.hosts.first() {
            Some(host) if self.settings.hosts_only => self.connect(host).await,
            _ => self.connect(node).await,
        };
        for host in self.settings.hosts.iter().filter(|host| *host != node) {
            if outcome.is_ok() {
                break;
            }
            tracing::debug!(?node, ?host, "a node cannot be reached as it says; another is tried");
            outcome = self.connect(host).await;
        }
        let link = outcome?;
        pool.push(Arc::downgrade(&link));
        Ok(link)
    }

    /// For doing something again when the connection is lost, as long as patience lasts.
    pub(crate) fn patience(&self) -> Patience<'_> {
        Patience { client: self, begun: Instant::now(), attempt: 0 }
    }

    /// Asks, patiently; about this stream.
    async fn ask(&self, about: &str, request: Request) -> Result<(Body, u16), BrokerError> {
        let mut patience = self.patience();
        loop {
            let outcome = match self.control().await {
                Ok(link) => link.ask(request.clone()).await,
                Err(error) => Err(error),
            };
            match outcome {
                // A stream has no leader for a moment after a restart, or while it finds another.
                Ok(response) if response.code == code::STREAM_NOT_AVAILABLE => {
                    patience.after(refused(response.code, about)).await?;
                }
                Ok(response) => return Ok((response.body, response.code)),
                Err(error) => patience.after(error).await?,
            }
        }
    }

    async fn place(&self, stream: &str) -> Result<Place, BrokerError> {
        let control = self.control().await?;
        let request = Request::Metadata { streams: vec![stream.to_owned()] };
        let Body::Metadata { brokers, streams } = control.ask(request).await?.body else {
            return Err(lost("the broker does not say where streams are"));
        };
        let Some(found) = streams.into_iter().find(|found| found.stream == stream) else {
            return Err(refused(code::NO_STREAM, stream));
        };
        if found.code != code::OK {
            return Err(refused(found.code, stream));
        }
        let node = |reference: u16| {
            let broker = brokers.iter().find(|broker| broker.reference == reference)?;
            Some((broker.host.clone(), u16::try_from(broker.port).ok()?))
        };
        let leader = Some(found.leader).filter(|leader| *leader != NO_NODE).and_then(node);
        Ok(Place { leader, replicas: found.replicas.into_iter().filter_map(node).collect() })
    }

    /// A connection to the node that leads the stream.
    pub(crate) async fn leader(&self, stream: &str) -> Result<Arc<Link>, BrokerError> {
        let place = self.place(stream).await?;
        let leader = place.leader.ok_or_else(|| refused(code::STREAM_NOT_AVAILABLE, stream))?;
        self.link(Use::Publish, &leader).await
    }

    /// A connection to a node that has a copy of the stream, or to its leader.
    pub(crate) async fn replica(&self, stream: &str) -> Result<Arc<Link>, BrokerError> {
        let place = self.place(stream).await?;
        let node = fastrand::choice(&place.replicas).or(place.leader.as_ref());
        let node = node.ok_or_else(|| refused(code::STREAM_NOT_AVAILABLE, stream))?;
        self.link(Use::Consume, node).await
    }

    /// First offset and number of messages of the oldest chunk and of the newest.
    pub(crate) async fn ends(&self, stream: &str) -> Result<(ChunkRange, ChunkRange), BrokerError> {
        let mut patience = self.patience();
        loop {
            match self.look_at_ends(stream).await {
                Ok(ends) => return Ok(ends),
                Err(error) => patience.after(error).await?,
            }
        }
    }

    async fn look_at_ends(&self, stream: &str) -> Result<(ChunkRange, ChunkRange), BrokerError> {
        let link = self.replica(stream).await?;
        let (first, last) =
            tokio::try_join!(link.peek(stream, OffsetSpec::First), link.peek(stream, OffsetSpec::Last))?;
        let range = |chunk: Option<Bytes>| chunk.and_then(|chunk| Chunk::range(&chunk));
        Ok((range(first), range(last)))
    }

    /// Remembers the offset that a reader wants next.
    pub(crate) async fn store_offset(
        &self,
        stream: &str,
        reader: &str,
        offset: u64,
    ) -> Result<(), BrokerError> {
        check_name("reader", reader)?;
        // The broker does not answer: it is asked until it knows. The first question also tells whether the stream is
        // there.
        self.kept(stream, reader).await?;
        let store = Command::StoreOffset {
            reference: reader.to_owned(),
            stream: stream.to_owned(),
            offset: as_kept(offset),
        };
        let frame: Bytes = store.frame();
        let begun = Instant::now();
        for attempt in 0.. {
            if let Ok(link) = self.control().await {
                link.send(frame.clone());
            }
            if self.kept(stream, reader).await? == Some(as_kept(offset)) {
                return Ok(());
            }
            if begun.elapsed() >= self.settings.timeout {
                break;
            }
            tokio::time::sleep(backoff(attempt)).await;
        }
        let text = format!(
            "the broker does not store the offset of `{reader}`; may the user write to stream `{stream}`?"
        );
        Err(lost(text))
    }

    /// The offset that a reader wants next, as it was stored.
    pub(crate) async fn stored_offset(&self, stream: &str, reader: &str) -> Result<Option<u64>, BrokerError> {
        check_name("reader", reader)?;
        Ok(self.kept(stream, reader).await?.map(as_wanted))
    }

    async fn kept(&self, stream: &str, reader: &str) -> Result<Option<u64>, BrokerError> {
        let query = Request::QueryOffset { reference: reader.to_owned(), stream: stream.to_owned() };
        match self.ask(stream, query).await? {
            (Body::Number(offset), code::OK) => Ok(Some(offset)),
            (_, code::NO_OFFSET) => Ok(None),
            (_, other) => Err(refused(other, stream)),
        }
    }
}
