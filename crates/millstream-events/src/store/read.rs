//! Reading events.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use futures_core::Stream;
use futures_util::stream::{BoxStream, StreamExt, unfold};
use millstream_flow::{Clock, Failed, Flow, Pipe};
use millstream_message::{BrokerError, BrokerErrorKind, StreamFrom, StreamItem, StreamReader};

use super::error::StoreError;
use super::fold::{Entry, Place};
use super::shared::Shared;
use super::{Position, RecordedEvent, record};

/// Places of a stream that are looked up at once.
const BLOCK: usize = 128;

/// Entries that are read over, rather than to begin again behind them.
const SKIP: u64 = 512;

/// Entries that a reader of the whole log takes at once.
const CHUNK: usize = 256;

/// What is to be read of one stream: [`EventStore::read`](crate::EventStore::read).
///
/// ```
/// # use millstream_events::{Event, EventStore, Expected};
/// # use millstream_message::Message;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let broker = millstream_embedded::open(&"memory:".parse()?).await?;
/// let store = EventStore::open(broker, "log").await?;
/// let events = ["a", "b", "c", "d"].map(|name| Event::new(name, Message::new("")));
/// store.append("s", Expected::Any, events).await?;
///
/// let last = store.read("s").backward().limit(2).collect().await?;
/// assert_eq!(last.iter().map(|event| event.version).collect::<Vec<_>>(), [3, 2]);
///
/// let mut events = store.read("s").from(1).events();
/// assert_eq!(events.next().await.unwrap()?.event.event_type, "b");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use = "nothing is read before `events`, `collect` or `flow`"]
pub struct ReadStream {
    shared: Arc<Shared>,
    stream: Arc<str>,
    from: Option<u64>,
    backward: bool,
    limit: u64,
}

impl fmt::Debug for ReadStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ReadStream { stream, from, backward, limit, .. } = self;
        let mut out = f.debug_struct("ReadStream");
        out.field("stream", stream).field("from", from).field("backward", backward).field("limit", limit);
        out.finish_non_exhaustive()
    }
}

impl ReadStream {
    pub(super) fn new(shared: Arc<Shared>, stream: &str) -> ReadStream {
        ReadStream { shared, stream: stream.into(), from: None, backward: false, limit: u64::MAX }
    }

    /// Begins with this version; else with the first, or backward with the last.
    pub fn from(mut self, version: u64) -> Self {
        self.from = Some(version);
        self
    }

    /// The last one first.
    pub fn backward(mut self) -> Self {
        self.backward = true;
        self
    }

    /// No more than so many.
    pub fn limit(mut self, events: u64) -> Self {
        self.limit = events;
        self
    }

    /// Reads the events that are there now, one after the other. Empty if there is no such stream.
    pub fn events(self) -> EventReader {
        let versions = {
            let state = self.shared.state();
            state.fold.streams.get(&self.stream).map_or(0..0, |entry| entry.first..entry.next)
        };
        let versions = match (self.from, self.backward) {
            (None, _) => versions,
            (Some(from), false) => from.max(versions.start)..versions.end,
            (Some(from), true) => versions.start..versions.end.min(from.saturating_add(1)),
        };
        let events = Events {
            entries: Entries::new(self.shared.clone()),
            stream: self.stream,
            versions,
            backward: self.backward,
            ready: VecDeque::new(),
            failed: false,
        };
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        let stream = unfold(events, |mut events| async move { Some((events.next().await?, events)) });
        EventReader(stream.take(limit).boxed())
    }

    /// All of them.
    ///
    /// # Errors
    /// If the log cannot be read.
    pub async fn collect(self) -> Result<Vec<RecordedEvent>, StoreError> {
        self.events().collect().await
    }

    /// Them as a flow, which fails if the log cannot be read.
    pub fn flow(self) -> Pipe<impl Flow<Item = RecordedEvent, Token = ()>> {
        self.events().flow()
    }
}

/// Events, read as they are asked for. After an error there are no more.
///
/// # Cancel safety
/// Dropping the future of [`next`](Self::next) loses nothing.
pub struct EventReader(BoxStream<'static, Result<RecordedEvent, StoreError>>);

impl fmt::Debug for EventReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EventReader")
    }
}

impl EventReader {
    /// The next one.
    pub async fn next(&mut self) -> Option<Result<RecordedEvent, StoreError>> {
        self.0.next().await
    }

    /// All that are left.
    ///
    /// # Errors
    /// If the log cannot be read.
    pub async fn collect(mut self) -> Result<Vec<RecordedEvent>, StoreError> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event?);
        }
        Ok(events)
    }
}

impl EventReader {
    fn flow(self) -> Pipe<impl Flow<Item = RecordedEvent, Token = ()>> {
        let failed = |error| Failed::new((), error, "events", Clock::system().now());
        Pipe::from_stream(self).named("events").map(move |event| event.map_err(failed)).fail_fast()
    }
}

impl Stream for EventReader {
    type Item = Result<RecordedEvent, StoreError>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.0.poll_next_unpin(cx)
    }
}

/// The events of one stream.
struct Events {
    entries: Entries,
    stream: Arc<str>,
    /// What is still to be looked up.
    versions: Range<u64>,
    backward: bool,
    ready: VecDeque<RecordedEvent>,
    failed: bool,
}

impl Events {
    async fn next(&mut self) -> Option<Result<RecordedEvent, StoreError>> {
        while self.ready.is_empty() && !self.versions.is_empty() && !self.failed {
            if let Err(error) = self.read().await {
                self.failed = true;
                return Some(Err(error));
            }
        }
        self.ready.pop_front().map(Ok)
    }

    /// Reads the next entries.
    async fn read(&mut self) -> Result<(), StoreError> {
        self.entries.shared.check()?;
        let (places, block) = {
            let state = self.entries.shared.state();
            match state.fold.streams.get(&self.stream) {
                Some(entry) => block(entry, &self.versions, self.backward),
                None => (Vec::new(), self.versions.clone()),
            }
        };
        if self.backward {
            // What was read beyond a block is behind all that comes now.
            self.entries.restart();
        }
        let mut events = Vec::new();
        for (at, place) in places.iter().enumerate() {
            let item = self.entries.get(place.offset, &places[at..]).await?;
            let read = record::events(&item.message)
                .map_err(|error| StoreError::entry(&self.entries.shared.log, place.offset, error))?;
            let read = recorded(&self.stream, *place, &item, read.into_iter());
            events.extend(read.filter(|event| block.contains(&event.version)));
        }
        if self.backward {
            self.versions.end = block.start;
            self.ready.extend(events.into_iter().rev());
        } else {
            self.versions.start = block.end;
            self.ready.extend(events);
        }
        Ok(())
    }
}

/// The first of the places that have these versions, or the last, and the versions that are done with then. Events that are no
/// longer read by now are not among them.
fn block(entry: &Entry, versions: &Range<u64>, backward: bool) -> (Vec<Place>, Range<u64>) {
    let wanted = versions.start.max(entry.first)..versions.end.min(entry.next);
    if wanted.is_empty() {
        return (Vec::new(), versions.clone());
    }
    let first = entry.commits.partition_point(|place| place.first <= wanted.start).saturating_sub(1);
    let end = entry.commits.partition_point(|place| place.first < wanted.end);
    let (first, end) =
        if backward { (first.max(end.saturating_sub(BLOCK)), end) } else { (first, end.min(first + BLOCK)) };
    if first >= end {
        return (Vec::new(), versions.clone());
    }
    let done = match backward {
        true => entry.commits[first].first.max(wanted.start)..versions.end,
        false => versions.start..entry.versions(end - 1).end.min(versions.end),
    };
    (entry.commits[first..end].to_vec(), done)
}

/// The events of an entry, with their places.
fn recorded<'a>(
    stream: &'a Arc<str>,
    place: Place,
    item: &'a StreamItem,
    events: impl Iterator<Item = crate::Event> + 'a,
) -> impl Iterator<Item = RecordedEvent> + 'a {
    events.zip(0_u32..).map(move |(event, index)| RecordedEvent {
        stream: stream.clone(),
        version: place.first + u64::from(index),
        position: Position { offset: place.offset, index },
        recorded_at: item.time,
        event,
    })
}

/// Entries of the log, by their offset.
struct Entries {
    shared: Arc<Shared>,
    reader: Option<StreamReader>,
    ready: VecDeque<StreamItem>,
    /// What the reader gives next.
    next: u64,
}

impl Entries {
    fn new(shared: Arc<Shared>) -> Entries {
        Entries { shared, reader: None, ready: VecDeque::new(), next: 0 }
    }

    /// Forgets what was read ahead.
    fn restart(&mut self) {
        self.reader = None;
        self.ready.clear();
    }

    /// The entry at `offset`; `ahead` says which others are wanted next, itself the first.
    async fn get(&mut self, offset: u64, ahead: &[Place]) -> Result<StreamItem, StoreError> {
        if let Some(item) = self.shared.cached(offset) {
            return Ok(item);
        }
        let failed = |log: &str, error| StoreError::broker(log, error);
        loop {
            while self.ready.front().is_some_and(|item| item.offset < offset) {
                self.ready.pop_front();
            }
            match self.ready.front() {
                Some(item) if item.offset == offset => {
                    return Ok(self.ready.pop_front().expect("it is there"));
                }
                Some(_) if self.next > offset => {
                    // It is not where it was.
                    let text = format!("entry {offset} is not there any more");
                    return Err(failed(&self.shared.log, BrokerError::new(BrokerErrorKind::Damaged, text)));
                }
                _ => {}
            }
            let near = self.reader.is_some() && self.next <= offset && offset - self.next <= SKIP;
            if !near {
                let reader = self.shared.broker.read(&self.shared.log, StreamFrom::Offset(offset)).await;
                self.reader = Some(reader.map_err(|error| failed(&self.shared.log, error))?);
                self.ready.clear();
                self.next = offset;
            }
            let last = ahead.iter().map(|place| place.offset).take_while(|last| last - offset <= SKIP).last();
            let wanted = last.unwrap_or(offset) - self.next + 1;
            let reader = self.reader.as_mut().expect("it was opened");
            let chunk = reader.next_chunk(wanted as usize).await;
            let chunk = chunk.map_err(|error| failed(&self.shared.log, error))?;
            let Some(last) = chunk.last() else {
                return Err(StoreError::Closed { log: self.shared.log.clone() });
            };
            self.next = last.offset + 1;
            self.ready.extend(chunk);
        }
    }
}

/// One entry of the log.
pub(super) async fn entry(shared: &Arc<Shared>, offset: u64) -> Result<StreamItem, StoreError> {
    Entries::new(shared.clone()).get(offset, &[Place { offset, first: 0 }]).await
}

/// Which events are read of all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    stream_prefix: String,
    event_types: Vec<String>,
}

impl Filter {
    /// Of all streams, of every type.
    pub fn all() -> Filter {
        Filter::default()
    }

    /// Those of streams whose names begin so.
    #[must_use]
    pub fn streams(mut self, prefix: impl Into<String>) -> Filter {
        self.stream_prefix = prefix.into();
        self
    }

    /// Those of these types. Of none means of every type.
    #[must_use]
    pub fn types<T: Into<String>>(mut self, types: impl IntoIterator<Item = T>) -> Filter {
        self.event_types = types.into_iter().map(Into::into).collect();
        self
    }

    fn takes_stream(&self, stream: &str) -> bool {
        stream.starts_with(&self.stream_prefix)
    }

    fn takes_type(&self, event_type: &str) -> bool {
        self.event_types.is_empty() || self.event_types.iter().any(|wanted| wanted == event_type)
    }
}

/// What is to be read of all events: [`EventStore::read_all`](crate::EventStore::read_all).
#[derive(Clone)]
#[must_use = "nothing is read before `events`, `collect` or `flow`"]
pub struct ReadAll {
    shared: Arc<Shared>,
    from: Position,
    filter: Filter,
    limit: u64,
}

impl fmt::Debug for ReadAll {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ReadAll { from, filter, limit, .. } = self;
        let mut out = f.debug_struct("ReadAll");
        out.field("from", from).field("filter", filter).field("limit", limit).finish_non_exhaustive()
    }
}

impl ReadAll {
    pub(super) fn new(shared: Arc<Shared>) -> ReadAll {
        ReadAll { shared, from: Position::default(), filter: Filter::default(), limit: u64::MAX }
    }

    /// Begins with the event at this position, or the first behind it.
    pub fn from(mut self, position: Position) -> Self {
        self.from = position;
        self
    }

    /// Only these.
    pub fn filter(mut self, filter: Filter) -> Self {
        self.filter = filter;
        self
    }

    /// No more than so many.
    pub fn limit(mut self, events: u64) -> Self {
        self.limit = events;
        self
    }

    /// Reads the events that are there now, one after the other.
    pub fn events(self) -> EventReader {
        let end = self.shared.reached();
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        let from = self.from;
        let tail = Tail::new(self.shared, from.offset, Some(end), self.filter);
        let stream = unfold(Some(tail), |tail| async move {
            let mut tail = tail?;
            match tail.next_chunk().await {
                Ok(chunk) if chunk.is_empty() => None,
                Ok(chunk) => Some((chunk.into_iter().map(Ok).collect(), Some(tail))),
                Err(error) => Some((vec![Err(error)], None)),
            }
        });
        let stream = stream.flat_map(futures_util::stream::iter);
        let behind = move |event: &Result<RecordedEvent, StoreError>| {
            std::future::ready(event.as_ref().is_ok_and(|event| event.position < from))
        };
        EventReader(stream.skip_while(behind).take(limit).boxed())
    }

    /// All of them.
    ///
    /// # Errors
    /// If the log cannot be read.
    pub async fn collect(self) -> Result<Vec<RecordedEvent>, StoreError> {
        self.events().collect().await
    }

    /// Them as a flow, which fails if the log cannot be read.
    pub fn flow(self) -> Pipe<impl Flow<Item = RecordedEvent, Token = ()>> {
        self.events().flow()
    }
}

/// Reads the log forward, and waits at its end for more unless it has one.
pub(crate) struct Tail {
    shared: Arc<Shared>,
    reader: Option<StreamReader>,
    pub(super) next: u64,
    end: Option<u64>,
    filter: Filter,
}

impl Tail {
    pub(crate) fn new(shared: Arc<Shared>, from: u64, end: Option<u64>, filter: Filter) -> Tail {
        Tail { shared, reader: None, next: from, end, filter }
    }

    /// Some events that are wanted, in order; empty at the end.
    ///
    /// # Cancel safety
    /// Nothing is lost: entries that were read and not given are read again.
    pub(crate) async fn next_chunk(&mut self) -> Result<Vec<RecordedEvent>, StoreError> {
        loop {
            if self.end.is_some_and(|end| self.next >= end) {
                return Ok(Vec::new());
            }
            let failed = |error| StoreError::broker(&self.shared.log, error);
            // Taken out while it is waited for: who drops this future begins again where it was.
            let mut reader = match self.reader.take() {
                Some(reader) => reader,
                None => {
                    let from = StreamFrom::Offset(self.next);
                    let reader = self.shared.broker.read(&self.shared.log, from).await.map_err(failed)?;
                    // The last entries before the end may be lost.
                    match self.end {
                        Some(end) => reader.until(self.next..end),
                        None => reader,
                    }
                }
            };
            let chunk = reader.next_chunk(CHUNK).await.map_err(failed)?;
            let Some(last) = chunk.last() else {
                if self.end.is_some() {
                    return Ok(Vec::new());
                }
                return Err(StoreError::Closed { log: self.shared.log.clone() });
            };
            self.shared.is_whole(self.next, &chunk)?;
            let next = last.offset + 1;
            self.shared.folded(next).await?;
            let events = self.events(&chunk)?;
            self.reader = Some(reader);
            self.next = next;
            if !events.is_empty() {
                return Ok(events);
            }
        }
    }

    fn events(&self, chunk: &[StreamItem]) -> Result<Vec<RecordedEvent>, StoreError> {
        let end = self.end.unwrap_or(u64::MAX);
        let ours = chunk.iter().filter(|item| item.offset < end && record::is_ours(&item.message));
        let mut read = Vec::new();
        for item in ours {
            let split = record::split(&item.message);
            let (head, at) =
                split.map_err(|error| StoreError::entry(&self.shared.log, item.offset, error))?;
            if self.filter.takes_stream(&head.stream) {
                read.push((item, head, at));
            }
        }
        // Looked up together, decoded without the lock.
        let places: Vec<Option<(Arc<str>, Place, u64)>> = {
            let state = self.shared.state();
            read.iter().map(|(item, head, _)| place(&state.fold, item.offset, &head.stream)).collect()
        };
        let mut events = Vec::new();
        for ((item, head, at), place) in read.into_iter().zip(places) {
            let Some((stream, place, first)) = place else { continue };
            let read = recorded(&stream, place, item, record::bodied(&item.message, head, at));
            let wanted = |event: &RecordedEvent| {
                event.version >= first && self.filter.takes_type(&event.event.event_type)
            };
            events.extend(read.filter(wanted));
        }
        Ok(events)
    }
}

/// Where the commit at this offset stands in its stream, and the first version of that which is still read. `None` if it does not
/// count, or is no longer read.
fn place(fold: &super::fold::Fold, offset: u64, stream: &str) -> Option<(Arc<str>, Place, u64)> {
    if !fold.counts(offset) {
        return None;
    }
    let (name, entry) = fold.streams.get_key_value(stream)?;
    let index = entry.commits.binary_search_by_key(&offset, |place| place.offset).ok()?;
    Some((name.clone(), entry.commits[index], entry.first))
}
