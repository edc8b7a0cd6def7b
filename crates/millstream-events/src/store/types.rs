//! How a store is opened, and what it gives.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use serde::Serialize;

use crate::event::Event;

/// How a store is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EventStoreOptions {
    /// How much memory keeps the newest entries of the log, in bytes: reading those asks no broker. Default 16 MiB; 0 keeps none.
    pub cache_bytes: usize,
    /// Whether to go on without entries that are lost. Default false: the store does not open.
    pub accept_gaps: bool,
    /// After how many entries a checkpoint is written, from which the store is opened the next time. Default 100,000; 0 writes none.
    pub checkpoint_every: u64,
    /// Whether to read the whole log though there is a checkpoint. Default false.
    pub whole_log: bool,
}

impl Default for EventStoreOptions {
    fn default() -> EventStoreOptions {
        EventStoreOptions {
            cache_bytes: 16 << 20,
            accept_gaps: false,
            checkpoint_every: 100_000,
            whole_log: false,
        }
    }
}

impl EventStoreOptions {
    /// How much memory keeps the newest entries, in bytes.
    #[must_use]
    pub fn cache_bytes(mut self, bytes: usize) -> Self {
        self.cache_bytes = bytes;
        self
    }

    /// Goes on without entries that are lost, and reads the whole log to see which. Versions go on where later writers saw them: what is missing stays missing, and nothing
    /// takes its place. Processes that had the log open before the loss have seen more than this one will: open the store again in
    /// all of them, else they may disagree about what is appended next.
    #[must_use]
    pub fn accept_gaps(mut self) -> Self {
        self.accept_gaps = true;
        self
    }

    /// Writes a checkpoint after every so many entries, or later: when four times the bytes of the last one were appended since. They
    /// are in two streams of the broker, `LOG.checkpoint-0` and `-1`, the newest two. 0 writes none.
    #[must_use]
    pub fn checkpoint_every(mut self, entries: u64) -> Self {
        self.checkpoint_every = entries;
        self
    }

    /// Reads the whole log, though there is a checkpoint: what is lost or damaged is found when the store is opened, and not when it
    /// is read.
    #[must_use]
    pub fn whole_log(mut self) -> Self {
        self.whole_log = true;
        self
    }
}

/// A place in the log of a store, and so the order of all its events.
///
/// It is written as `offset.index`, and orders as the log does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Position {
    /// The offset of the entry.
    pub offset: u64,
    /// Which of its events, from 0.
    pub index: u32,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.offset, self.index)
    }
}

/// An event of a stream.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct RecordedEvent {
    /// The stream.
    pub stream: Arc<str>,
    /// Its place in the stream, from 0.
    pub version: u64,
    /// Its place among all events of the store.
    pub position: Position,
    /// When the broker stored it, to the millisecond.
    pub recorded_at: SystemTime,
    /// The event.
    pub event: Event,
}

/// What was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Appended {
    /// The version of the first event.
    pub first_version: u64,
    /// The version of the last event: the stream's.
    pub last_version: u64,
    /// Whether the commit of this name had been stored before. Nothing was stored now.
    pub repeated: bool,
}

/// What a store holds, and has seen since it was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct EventStoreStatistics {
    /// Streams that have events.
    pub streams: u64,
    /// Entries of the log that count.
    pub commits: u64,
    /// Events ever appended.
    pub events: u64,
    /// Snapshots ever taken.
    pub snapshots: u64,
    /// Entries that do not count, since their writers expected what did not hold.
    pub conflicts: u64,
    /// Messages of the log that no store has written.
    pub foreign: u64,
    /// Ranges of entries that are lost.
    pub gaps: u64,
    /// The offset behind the last entry.
    pub next_offset: u64,
    /// The offset behind the newest checkpoint that this store knows: opening reads from there on. 0 without one.
    pub checkpoint_offset: u64,
    /// Bytes of the log; 0 where the broker does not tell.
    pub bytes: u64,
    /// The subscriptions that are open by this handle of the store or a clone of it, by name.
    pub subscriptions: Vec<CatchUpStatistics>,
}

/// How far a [subscription](crate::EventStore::subscribe) has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CatchUpStatistics {
    /// Its name.
    pub name: String,
    /// The offset of the first entry of the log that it does not have behind it for ever: if its process were killed, it went on there,
    /// or a little before.
    pub offset: u64,
    /// Entries of the log that it has not read, or whose events are not all settled. 0 when it has nothing left to do. Before that it may
    /// be too many on RabbitMQ, which has entries of its own in a stream.
    pub behind: u64,
}
