//! Reading all events, in the order of the log.

use std::fmt;
use std::sync::Arc;

use futures_util::stream::{StreamExt, unfold};
use millstream_flow::{Flow, Pipe};
use millstream_message::{StreamFrom, StreamItem, StreamReader};

use super::super::error::StoreError;
use super::super::fold::{Fold, Place};
use super::super::shared::Shared;
use super::super::{Position, RecordedEvent, record};
use super::{EventReader, recorded};

/// Entries that are taken at once.
const CHUNK: usize = 256;

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
    pub(in crate::store) fn new(shared: Arc<Shared>) -> ReadAll {
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
    pub(in crate::store) next: u64,
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
        self.next_chunk_telling(|_| {}).await
    }

    /// The same; what is passed over meanwhile is told, by the offset behind it.
    pub(crate) async fn next_chunk_telling(
        &mut self,
        passed: impl Fn(u64),
    ) -> Result<Vec<RecordedEvent>, StoreError> {
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
            passed(next);
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
fn place(fold: &Fold, offset: u64, stream: &str) -> Option<(Arc<str>, Place, u64)> {
    if !fold.counts(offset) {
        return None;
    }
    let (name, entry) = fold.streams.get_key_value(stream)?;
    let index = entry.commits.binary_search_by_key(&offset, |place| place.offset).ok()?;
    Some((name.clone(), entry.commits[index], entry.first))
}
