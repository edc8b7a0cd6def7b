//! Reading events.

mod all;
mod entries;

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use futures_core::Stream;
use futures_util::stream::{BoxStream, StreamExt, unfold};
use millstream_flow::{Clock, Failed, Flow, Pipe};
use millstream_message::StreamItem;

pub(crate) use self::all::Tail;
pub use self::all::{Filter, ReadAll};
use self::entries::Entries;
pub(super) use self::entries::entry;
use super::error::StoreError;
use super::fold::{Entry, Place};
use super::shared::Shared;
use super::{Position, RecordedEvent, record};

/// Places of a stream that are looked up at once.
const BLOCK: usize = 128;

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
