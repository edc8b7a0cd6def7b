//! Connections by node and use, and questions that go on over them.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use millstream_message::{BrokerError, BrokerErrorKind};
use millstream_resilience::{Backoff, Jitter};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::super::chunk::Chunk;
use super::super::command::{Body, Command, OffsetSpec, Request, code};
use super::super::counters::{Counters, add};
use super::super::link::{Link, lost, refused};
use super::super::session::Server;
use super::super::url::StreamSettings;

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

/// What handles, producers and consumers share.
pub(crate) struct Inner {
    pub(crate) settings: StreamSettings,
    /// The connection for questions. Locked while it is made, so that it is made once.
    pub(super) control: tokio::sync::Mutex<Option<Arc<Link>>>,
    pub(super) pools: Mutex<BTreeMap<(Use, String, u16), Arc<Pool>>>,
    pub(super) tasks: Mutex<JoinSet<()>>,
    pub(super) closed: watch::Sender<bool>,
    pub(crate) counters: Arc<Counters>,
}

/// Connections of one use to one node. Locked while another is made: a node that does not answer holds up nobody who
/// does not need it.
pub(super) type Pool = tokio::sync::Mutex<Vec<Weak<Link>>>;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Use {
    Publish,
    Consume,
}

/// First offset and number of messages of a chunk, if there is one.
pub(crate) type ChunkRange = Option<(u64, u32)>;

/// Where a stream is.
pub(super) struct Place {
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

/// An offset as the broker keeps it is that of the last message read: the one before the one wanted next. Before
/// the first there is the greatest number, which adds up to zero again.
fn as_kept(next: u64) -> u64 {
    next.wrapping_sub(1)
}

fn as_wanted(kept: u64) -> u64 {
    kept.wrapping_add(1)
}

/// The frame that has the broker remember the offset that a reader wants next. It is not answered.
pub(crate) fn store(stream: &str, reader: &str, offset: u64) -> Bytes {
    let (reference, stream) = (reader.to_owned(), stream.to_owned());
    Command::StoreOffset { reference, stream, offset: as_kept(offset) }.frame()
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
    pub(super) async fn control(&self) -> Result<Arc<Link>, BrokerError> {
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

    /// What the broker says of itself.
    pub(super) async fn server(&self) -> Result<Server, BrokerError> {
        let mut patience = self.patience();
        loop {
            match self.control().await {
                Ok(link) => return Ok(link.server.clone()),
                Err(error) => patience.after(error).await?,
            }
        }
    }

    async fn connect(&self, host: &(String, u16)) -> Result<Arc<Link>, BrokerError> {
        let outcome = Link::connect(&self.settings, host, &self.counters, |task| self.spawn(task)).await;
        add(if outcome.is_ok() { &self.counters.connects } else { &self.counters.failed_connects }, 1);
        outcome
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
    pub(super) async fn ask(&self, about: &str, request: Request) -> Result<(Body, u16), BrokerError> {
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

    pub(super) async fn place(&self, stream: &str) -> Result<Place, BrokerError> {
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

    /// Remembers the offset that a reader wants next. Who has told earlier ones by a link of its own tells this one by
    /// it, too: on another way it might be overtaken.
    pub(crate) async fn store_offset(
        &self,
        own: Option<&Link>,
        stream: &str,
        reader: &str,
        offset: u64,
    ) -> Result<(), BrokerError> {
        check_name("reader", reader)?;
        // The broker does not answer: it is asked until it knows. The first question also tells whether the stream is
        // there.
        self.kept(stream, reader).await?;
        let frame = store(stream, reader, offset);
        let begun = Instant::now();
        for attempt in 0.. {
            match own.filter(|link| link.is_alive()) {
                Some(link) => link.send(frame.clone()),
                None => {
                    let control = self.control().await;
                    control.into_iter().for_each(|link| link.send(frame.clone()));
                }
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
