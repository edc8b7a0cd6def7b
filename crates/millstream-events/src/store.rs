//! The event store.

mod appending;
mod checkpoint;
mod error;
mod expected;
mod fold;
mod read;
mod record;
mod shared;
mod subscribe;
mod types;

use std::fmt;
use std::iter;
use std::ops::{Bound, Range};
use std::sync::Arc;

use bytes::Bytes;
use millstream_message::{Broker, BrokerError, BrokerErrorKind, Message, StreamFrom, StreamSpec};
use tokio::task::JoinHandle;

pub use self::error::{AppendError, Conflict, StoreError};
pub use self::expected::Expected;
use self::fold::Verdict;
pub(crate) use self::read::Tail;
pub use self::read::{EventReader, Filter, ReadAll, ReadStream};
use self::record::{BodyHead, Change, EventHead};
use self::shared::Shared;
use self::subscribe::Savers;
pub use self::subscribe::{CatchUp, EventSubscription, SubscribedEvents};
pub use self::types::{
    Appended, CatchUpStatistics, EventStoreOptions, EventStoreStatistics, Position, RecordedEvent,
};
use crate::event::{Event, EventData, new_id};

/// Streams of events, kept for ever in one stream of a broker: `memory:`, `embedded:PATH` or `rabbitmq-stream:`.
///
/// An append is one message, so all of its events are stored or none. Whether it counts is decided by the order of the log alone:
/// it says what was [expected](Expected) of its stream, and whoever reads the log up to there sees whether that held. So any number of
/// processes may append to one log, without a lock, and of two that have read the same version exactly one succeeds.
///
/// A handle is cheap to clone. It reads the log when it is opened, from its last checkpoint on
/// ([`EventStoreOptions::checkpoint_every`]), and then whatever is appended by anyone; in memory are the
/// newest entries ([`EventStoreOptions::cache_bytes`]), and where the others are: 16 bytes for each commit that is still read, some
/// 200 for each stream, some 10 for each entry that does not count, and the names of the last 65,536 commits, some 10 MB if they
/// are UUIDs.
///
/// ```
/// use millstream_events::{AppendError, Event, EventStore, Expected};
/// use millstream_message::Message;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let broker = millstream_embedded::open(&"memory:".parse()?).await?;
/// let store = EventStore::open(broker, "shop").await?;
///
/// let placed = Event::new("order-placed", Message::new("3 lamps"));
/// let paid = Event::new("order-paid", Message::new("120 EUR"));
/// store.append("order-7", Expected::NoStream, [placed, paid]).await?;
///
/// // Somebody who has read less is told.
/// let late = Event::new("order-cancelled", Message::new(""));
/// let error = store.append("order-7", Expected::Version(0), [late]).await.unwrap_err();
/// assert_eq!(error.to_string(), "stream `order-7` has version 1, and version 0 was expected");
///
/// let events = store.read("order-7").collect().await?;
/// assert_eq!(events[1].event.event_type, "order-paid");
/// # Ok(())
/// # }
/// ```
///
/// # Ordering
/// Within a stream by version; among all by [`Position`]. Who appends in one task after the other finds it in that order.
///
/// # Backpressure
/// An append waits until it is stored and seen: what a task has in flight is what it awaits. Appends that come while others are
/// being stored are stored together; entries of up to 64 MiB wait for that, those of futures that were dropped among them.
///
/// # Retention
/// The log must keep everything: what is missing is an error where the broker's offsets tell, when the store is opened
/// ([`EventStoreOptions::whole_log`]) or when it is read. Events
/// [before a version](EventStore::truncate) and [deleted](EventStore::delete) streams are not read any more, and stay on the disk.
#[derive(Clone)]
pub struct EventStore(Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) shared: Arc<Shared>,
    savers: Savers,
    follower: JoinHandle<()>,
    appender: JoinHandle<()>,
    checkpointer: JoinHandle<()>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.follower.abort();
        self.appender.abort();
        self.checkpointer.abort();
    }
}

impl fmt::Debug for EventStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventStore").field("log", &self.0.shared.log).finish_non_exhaustive()
    }
}

impl EventStore {
    /// Opens the store whose log is the broker's stream `log`, which is made if it is not there.
    ///
    /// # Errors
    /// If the broker has no streams or cannot be reached; if the log holds what cannot be read, or has lost what it held.
    pub async fn open(broker: Arc<dyn Broker>, log: impl Into<String>) -> Result<EventStore, StoreError> {
        EventStore::open_with(broker, log, EventStoreOptions::default()).await
    }

    /// As [`open`](Self::open), with options.
    ///
    /// # Errors
    /// As `open`.
    pub async fn open_with(
        broker: Arc<dyn Broker>,
        log: impl Into<String>,
        options: EventStoreOptions,
    ) -> Result<EventStore, StoreError> {
        let log = log.into();
        if !broker.features().streams {
            let text = format!(
                "`{}` has no streams, in which events are kept; use `memory:`, `embedded:PATH` or `rabbitmq-stream://`",
                broker.url()
            );
            return Err(StoreError::broker(&log, BrokerError::new(BrokerErrorKind::Unsupported, text)));
        }
        let declared = broker.declare_stream(StreamSpec::new(&log)).await;
        declared.map_err(|error| StoreError::broker(&log, error))?;
        let (shared, appends) = Shared::new(broker, log, options);
        let reader = shared.catch_up().await?;
        // A program that ends soon shall not have read so much in vain.
        shared.checkpoint().await;
        let follower = tokio::spawn(shared.clone().follow(reader));
        let appender = tokio::spawn(shared.clone().append(appends));
        let checkpointer = tokio::spawn(shared.clone().keep_checkpoints());
        let savers = Savers::default();
        Ok(EventStore(Arc::new(Inner { shared, savers, follower, appender, checkpointer })))
    }

    /// The name of its log.
    pub fn log(&self) -> &str {
        &self.0.shared.log
    }

    /// The broker that keeps it.
    pub fn broker(&self) -> &Arc<dyn Broker> {
        &self.0.shared.broker
    }

    /// Appends events to a stream, all of them or none, if it is as expected. Returns when they are stored, and when this store reads
    /// them.
    ///
    /// # Errors
    /// [`Conflict`](AppendError::Conflict) when the stream is not as expected; for the others see [`AppendError`].
    ///
    /// # Cancel safety
    /// Dropping the future leaves them appended or not.
    pub async fn append(
        &self,
        stream: &str,
        expected: Expected,
        events: impl IntoIterator<Item = Event>,
    ) -> Result<Appended, AppendError> {
        self.append_as(&new_id(), stream, expected, events).await
    }

    /// As [`append`](Self::append), under a name that makes it safe to do again: a commit of a stream whose name is among the last 65,536
    /// of the log counts once, and says again what it said. The id of the command or message that causes the events is a good one.
    ///
    /// # Errors
    /// As `append`, and if the name is empty, longer than 255 bytes, or holds a zero byte.
    ///
    /// # Cancel safety
    /// As `append`; who appends again under the same name learns what became of it.
    pub async fn append_as(
        &self,
        commit: &str,
        stream: &str,
        expected: Expected,
        events: impl IntoIterator<Item = Event>,
    ) -> Result<Appended, AppendError> {
        let events: Vec<Event> = events.into_iter().collect();
        if events.is_empty() {
            return Err(AppendError::Invalid(format!("there is no event to append to stream `{stream}`")));
        }
        if let Some(event) = events.iter().position(|event| event.event_type.is_empty()) {
            return Err(AppendError::Invalid(format!("event {event} for stream `{stream}` has no type")));
        }
        let heads = events.iter().map(EventHead::of).collect();
        let change = Change::Append { expect: expected, events: heads };
        let bodies = events.iter().map(|event| event.data.body());
        let (versions, repeated) = self.commit(stream, commit, expected, change, bodies).await?;
        let last_version = versions.end.saturating_sub(1);
        Ok(Appended { first_version: versions.start, last_version, repeated })
    }

    /// Appends values, written as JSON.
    ///
    /// # Errors
    /// As [`append`](Self::append), and if one of them cannot be written: then none is appended.
    pub async fn append_values<'a, E: EventData>(
        &self,
        stream: &str,
        expected: Expected,
        values: impl IntoIterator<Item = &'a E>,
    ) -> Result<Appended, AppendError> {
        let events = values.into_iter().enumerate().map(|(index, value)| {
            Event::of(value).map_err(|error| AppendError::Codec { index, error: Arc::new(error) })
        });
        self.append(stream, expected, events.collect::<Result<Vec<_>, _>>()?).await
    }

    /// Deletes a stream, if it is as expected. Its events are read no more, also by subscriptions and outboxes that have not come to
    /// them; one who appends later finds no stream, and goes on with the versions.
    ///
    /// # Errors
    /// As [`append`](Self::append). A stream that never had events is in conflict with every expectation.
    pub async fn delete(&self, stream: &str, expected: Expected) -> Result<(), AppendError> {
        self.change(stream, expected, Change::Delete { expect: expected, forever: false }).await
    }

    /// Deletes a stream for ever: nobody can append to it again. With [`Any`](Expected::Any) or [`NoStream`](Expected::NoStream) also one
    /// that was never there, whose name nobody can use then.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    pub async fn delete_forever(&self, stream: &str, expected: Expected) -> Result<(), AppendError> {
        self.change(stream, expected, Change::Delete { expect: expected, forever: true }).await
    }

    /// Reads events before this version no more: those that a snapshot has made needless. Subscriptions and outboxes that have not come
    /// to them do not hear of them either.
    ///
    /// # Errors
    /// As [`append`](Self::append); a stream that was never there is in conflict.
    pub async fn truncate(&self, stream: &str, before: u64) -> Result<(), AppendError> {
        self.change(stream, Expected::Any, Change::Truncate { before }).await
    }

    /// Keeps `state` as what the events up to this version have made, so that a reader need not begin with the first. The last one is
    /// [found](Self::snapshot).
    ///
    /// # Errors
    /// As [`append`](Self::append); a version that the stream does not have is a conflict.
    pub async fn save_snapshot(&self, stream: &str, version: u64, state: Message) -> Result<(), AppendError> {
        let next = version.saturating_add(1);
        let change = Change::Snapshot { next, state: BodyHead::of(&state) };
        // The stream may be further by now.
        match self.commit(stream, &new_id(), Expected::Any, change, iter::once(state.body())).await {
            Err(AppendError::Conflict(conflict)) => {
                Err(AppendError::Conflict(Conflict { expected: Expected::Version(version), ..conflict }))
            }
            other => other.map(drop),
        }
    }

    /// The last snapshot of a stream, and the version that it stands for.
    ///
    /// # Errors
    /// If it cannot be read.
    pub async fn snapshot(&self, stream: &str) -> Result<Option<(u64, Message)>, StoreError> {
        let shared = &self.0.shared;
        shared.check()?;
        let Some(offset) = shared.state().fold.streams.get(stream).and_then(|entry| entry.snapshot) else {
            return Ok(None);
        };
        let item = read::entry(shared, offset.0).await?;
        let snapshot = record::snapshot(&item.message)
            .map_err(|error| StoreError::entry(&shared.log, offset.0, error))?;
        Ok(snapshot.map(|(next, state)| (next.saturating_sub(1), state)))
    }

    /// The version of a stream's last event, also if that is [truncated](Self::truncate); `None` if it has none.
    pub fn version(&self, stream: &str) -> Option<u64> {
        self.0.shared.state().fold.streams.get(stream).and_then(fold::Entry::version)
    }

    /// Why it can do nothing more, if that is so.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        self.0.shared.check()
    }

    /// The version of the first event of a stream that is still read, if others before it were [truncated](Self::truncate).
    pub(crate) fn truncated(&self, stream: &str) -> Option<u64> {
        let state = self.0.shared.state();
        state.fold.streams.get(stream).filter(|entry| entry.first > entry.begun).map(|entry| entry.first)
    }

    /// What a commit of this name has appended to a stream, if it is among the last 65,536 of the log.
    pub fn committed(&self, stream: &str, commit: &str) -> Option<Appended> {
        let versions = self.0.shared.state().fold.commit(stream, commit)?;
        let last_version = versions.end.saturating_sub(1);
        Some(Appended { first_version: versions.start, last_version, repeated: true })
    }

    /// The names of the streams that have events and begin with `prefix`, in order.
    pub fn streams(&self, prefix: &str) -> Vec<Arc<str>> {
        let state = self.0.shared.state();
        let from = (Bound::Included(prefix), Bound::Unbounded);
        let named = state.fold.streams.range::<str, _>(from).take_while(|(name, _)| name.starts_with(prefix));
        named.filter(|(_, entry)| entry.version().is_some()).map(|(name, _)| name.clone()).collect()
    }

    /// Reads a stream's events, as far as this store has seen.
    pub fn read(&self, stream: &str) -> ReadStream {
        ReadStream::new(self.0.shared.clone(), stream)
    }

    /// Reads the events of all streams in the order of the log, as far as this store has seen.
    pub fn read_all(&self) -> ReadAll {
        ReadAll::new(self.0.shared.clone())
    }

    /// All events from where the subscription of this name has come, and then whatever is appended: see [`CatchUp`].
    pub fn subscribe(&self, name: impl Into<String>) -> CatchUp {
        CatchUp::new(self.0.clone(), name.into())
    }

    /// What is appended from now on.
    pub(crate) fn tail(&self, filter: Filter) -> Tail {
        Tail::new(self.0.shared.clone(), self.0.shared.reached(), None, filter)
    }

    /// Waits until this store has seen all that was stored before, by anyone. What was appended by this handle it has seen already.
    ///
    /// # Errors
    /// If the log cannot be read.
    pub async fn refresh(&self) -> Result<(), StoreError> {
        let shared = &self.0.shared;
        let failed = |error| StoreError::broker(&shared.log, error);
        let from = shared.reached();
        let begin = StreamFrom::Offset(from);
        let extent = millstream_message::stream_extent(&*shared.broker, &shared.log, begin);
        let extent = extent.await.map_err(failed)?;
        if extent.is_empty() {
            return shared.check();
        }
        // Offsets may lead nowhere, where the broker's own records have some: the last that is there says how far to wait.
        let mut reader = shared.broker.read(&shared.log, begin).await.map_err(failed)?.until(extent);
        let mut seen = from;
        loop {
            let chunk = reader.next_chunk(512).await.map_err(failed)?;
            let Some(last) = chunk.last() else { return shared.folded(seen).await };
            seen = last.offset + 1;
        }
    }

    /// What it holds, with what others have appended until now.
    ///
    /// # Errors
    /// As [`refresh`](Self::refresh), or if the broker does not tell.
    pub async fn statistics(&self) -> Result<EventStoreStatistics, StoreError> {
        self.refresh().await?;
        let shared = &self.0.shared;
        let stats = shared.broker.stream_stats(&shared.log).await;
        let bytes = stats.map_err(|error| StoreError::broker(&shared.log, error))?.bytes;
        let state = shared.state();
        let fold = &state.fold;
        let streams = fold.streams.values().filter(|entry| entry.version().is_some()).count();
        let subscriptions = self.0.savers.places(fold.next_offset);
        Ok(EventStoreStatistics {
            streams: streams as u64,
            commits: fold.applied,
            events: fold.events,
            snapshots: fold.snapshots,
            conflicts: fold.conflicts,
            foreign: fold.foreign,
            gaps: fold.gaps,
            next_offset: fold.next_offset,
            checkpoint_offset: state.newest.offset,
            bytes,
            subscriptions,
        })
    }

    /// Waits until the places of subscriptions that have ended are saved. The broker stays open.
    pub async fn saved(&self) {
        self.0.savers.saved().await;
    }

    async fn change(&self, stream: &str, expected: Expected, change: Change<'_>) -> Result<(), AppendError> {
        self.commit(stream, &new_id(), expected, change, iter::empty()).await.map(drop)
    }

    /// Stores an entry with these bodies, and sees whether it counts: the versions of its events, and whether it did before.
    async fn commit<'b>(
        &self,
        stream: &str,
        commit: &str,
        expected: Expected,
        change: Change<'_>,
        bodies: impl Iterator<Item = &'b Bytes> + Clone,
    ) -> Result<(Range<u64>, bool), AppendError> {
        let shared = &self.0.shared;
        if stream.is_empty() || stream.len() > 255 {
            let text = format!("a stream's name has 1 to 255 bytes, and `{stream}` has {}", stream.len());
            return Err(AppendError::Invalid(text));
        }
        if commit.is_empty() || commit.len() > 255 || commit.contains('\0') {
            let text =
                format!("a commit's name has 1 to 255 bytes, none of them zero, and this is {commit:?}");
            return Err(AppendError::Invalid(text));
        }
        if let Some(said) = self.foreseen(stream, commit, expected) {
            return said;
        }
        let (attempt, name) = shared.attempt();
        let message = record::write(stream, commit, &name, change, bodies);
        let (len, max) = (message.size() as u64, shared.broker.features().max_message_bytes);
        if len > max {
            return Err(AppendError::TooLarge { len, max });
        }
        match shared.store(commit, attempt, message).await? {
            Verdict::Applied(versions) => Ok((versions, false)),
            Verdict::Repeated(versions) => Ok((versions, true)),
            Verdict::Conflict(actual) => Err(conflict(stream, expected, actual)),
            Verdict::Gone => Err(AppendError::Gone { stream: stream.to_owned() }),
        }
    }

    /// What is known without storing anything: versions only grow, and what is gone stays so.
    fn foreseen(
        &self,
        stream: &str,
        commit: &str,
        expected: Expected,
    ) -> Option<Result<(Range<u64>, bool), AppendError>> {
        let state = self.0.shared.state();
        if let Some(versions) = state.fold.commit(stream, commit) {
            return Some(Ok((versions, true)));
        }
        let entry = state.fold.streams.get(stream)?;
        if entry.gone {
            return Some(Err(AppendError::Gone { stream: stream.to_owned() }));
        }
        match expected {
            Expected::Version(version) if entry.next > version.saturating_add(1) => {
                Some(Err(conflict(stream, expected, entry.version())))
            }
            _ => None,
        }
    }
}

fn conflict(stream: &str, expected: Expected, actual: Option<u64>) -> AppendError {
    AppendError::Conflict(Conflict { stream: stream.to_owned(), expected, actual })
}
