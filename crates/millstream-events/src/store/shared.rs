//! What a store's handles, readers and follower share.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use millstream_message::{Broker, BrokerError, Message, StreamFrom, StreamItem, StreamReader};
use tokio::sync::{Notify, oneshot, watch};

use super::appending::{Appending, Appends};
use super::checkpoint::Newest;
use super::error::StoreError;
use super::fold::{Fold, Verdict};
use super::record::{Head, RecordError};
use super::{EventStoreOptions, record};
use crate::event::new_id;

/// Entries that the follower takes at once.
const CHUNK: usize = 512;

pub(crate) struct Shared {
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) log: String,
    cache_bytes: usize,
    accept_gaps: bool,
    pub(crate) checkpoint_every: u64,
    whole_log: bool,
    dense: bool,
    /// It is time for a checkpoint.
    pub(crate) due: Notify,
    /// What names this store's attempts to append: its own name, and a number.
    name: String,
    attempts: AtomicU64,
    pub(crate) appending: Appending,
    state: Mutex<State>,
    /// The offset up to which the log is folded; told once more when nothing further comes.
    folded: watch::Sender<u64>,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) fold: Fold,
    /// Those who wait for what becomes of an entry, by the number of the attempt.
    waiting: HashMap<u64, oneshot::Sender<Result<Verdict, BrokerError>>>,
    cache: Cache,
    pub(crate) newest: Newest,
    /// What was folded last.
    pub(crate) last: Option<(u64, Message)>,
    failed: Option<StoreError>,
}

/// The newest entries, since they are what is read most.
#[derive(Default)]
struct Cache {
    items: VecDeque<StreamItem>,
    bytes: usize,
}

impl Cache {
    fn push(&mut self, item: StreamItem, bytes_max: usize) {
        self.bytes += item.message.footprint();
        self.items.push_back(item);
        while self.bytes > bytes_max {
            let oldest = self.items.pop_front().expect("what has bytes has items");
            self.bytes -= oldest.message.footprint();
        }
    }

    fn find(&self, offset: u64) -> Option<&StreamItem> {
        let index = self.items.binary_search_by_key(&offset, |item| item.offset).ok()?;
        Some(&self.items[index])
    }
}

impl State {
    /// Folds the entry at this offset, and tells who waits for that. Attempts of this store begin with its name.
    fn judge(&mut self, name: &str, offset: u64, message: &Message, head: Option<Head<'_>>) {
        self.newest.read(message.footprint());
        let Some(head) = head else { return self.fold.pass(offset) };
        let verdict = self.fold.fold(offset, &head);
        let attempt = message.properties().message_id.as_deref();
        let attempt = attempt.and_then(|attempt| attempt.strip_prefix(name)?.parse().ok());
        if let Some(one) = attempt.and_then(|attempt: u64| self.waiting.remove(&attempt)) {
            // Who no longer waits does not want to know.
            let _ = one.send(Ok(verdict));
        }
    }
}

/// What an entry says; `None` of what is not of a store.
fn head(message: &Message) -> Result<Option<Head<'_>>, RecordError> {
    record::is_ours(message).then(|| record::head(message)).transpose()
}

impl Shared {
    pub(crate) fn new(
        broker: Arc<dyn Broker>,
        log: String,
        options: EventStoreOptions,
    ) -> (Arc<Shared>, Appends) {
        let (appending, appends) = Appending::new();
        let EventStoreOptions { cache_bytes, accept_gaps, checkpoint_every, whole_log } = options;
        let shared = Shared {
            dense: broker.features().dense_offsets,
            broker,
            log,
            cache_bytes,
            accept_gaps,
            checkpoint_every,
            whole_log,
            due: Notify::new(),
            name: new_id() + ".",
            attempts: AtomicU64::new(0),
            appending,
            state: Mutex::default(),
            folded: watch::Sender::new(0),
        };
        (Arc::new(shared), appends)
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the log to its end, from the newest checkpoint on, and returns a reader of what comes then.
    pub(crate) async fn catch_up(&self) -> Result<StreamReader, StoreError> {
        let failed = |error| StoreError::broker(&self.log, error);
        let extent = millstream_message::stream_extent(&*self.broker, &self.log, StreamFrom::First)
            .await
            .map_err(failed)?;
        if self.dense && extent.start > 0 {
            self.lost(0, extent.start)?;
        }
        // Of what is lost all must know alike.
        if !self.whole_log && !self.accept_gaps {
            self.restore(&extent).await;
        }
        let (end, from) = (extent.end, self.reached().max(extent.start));
        let reader = self.broker.read(&self.log, StreamFrom::Offset(from)).await.map_err(failed)?;
        let mut reader = reader.until(from..end);
        loop {
            let chunk = reader.next_chunk(CHUNK).await.map_err(failed)?;
            if chunk.is_empty() {
                break;
            }
            self.take(chunk)?;
        }
        if self.dense && self.state().fold.next_offset < end {
            let from = self.state().fold.next_offset;
            self.lost(from, end)?;
        }
        if self.state().fold.gaps > 0 {
            self.forget_checkpoints().await;
        }
        self.broker.read(&self.log, StreamFrom::Offset(end)).await.map_err(failed)
    }

    /// Reads what is appended, until the log ends.
    pub(crate) async fn follow(self: Arc<Shared>, mut reader: StreamReader) {
        let _told = TellOfPanic(&self);
        let error = loop {
            let taken = match reader.next_chunk(CHUNK).await {
                Ok(chunk) if chunk.is_empty() => break StoreError::Closed { log: self.log.clone() },
                Ok(chunk) => self.take(chunk),
                Err(error) => Err(StoreError::broker(&self.log, error)),
            };
            if let Err(error) = taken {
                break error;
            }
        };
        self.fail(error);
    }

    /// Nothing more comes of this log.
    pub(crate) fn fail(&self, error: StoreError) {
        let mut state = self.state();
        state.failed.get_or_insert(error);
        state.waiting.clear();
        drop(state);
        // Who waits for an offset looks again, and sees why it never comes.
        self.folded.send_modify(|_| {});
    }

    /// Folds what was read of the log.
    fn take(&self, items: Vec<StreamItem>) -> Result<(), StoreError> {
        // Read before the lock is taken, which appends want. What was folded when it was stored needs no second look.
        let from = self.reached();
        let new = items.partition_point(|item| item.offset < from);
        let heads: Vec<_> = items[new..].iter().map(|item| head(&item.message)).collect();
        let mut state = self.state();
        for (item, head) in items[new..].iter().zip(heads) {
            let next = state.fold.next_offset;
            if item.offset < next {
                continue;
            }
            if self.dense && item.offset > next {
                self.lost_in(&mut state.fold, next, item.offset)?;
            }
            let head = head.map_err(|error| StoreError::entry(&self.log, item.offset, error))?;
            state.judge(&self.name, item.offset, &item.message, head);
        }
        if let Some(last) = items.last().filter(|last| last.offset + 1 == state.fold.next_offset) {
            state.last = Some((last.offset, last.message.clone()));
        }
        for item in items {
            state.cache.push(item, self.cache_bytes);
        }
        self.went_on(state);
        Ok(())
    }

    /// Folds what this store has appended at this offset and behind, if all before is folded: whoever waits for that need not wait until
    /// it is read.
    pub(super) fn stored(&self, offset: u64, entries: &[(u64, Message)]) {
        if !self.dense {
            return;
        }
        let heads: Result<Vec<_>, _> = entries.iter().map(|(_, message)| head(message)).collect();
        // Whoever reads it tells what is wrong with it.
        let Ok(heads) = heads else { return };
        let mut state = self.state();
        if state.failed.is_some() || state.fold.next_offset != offset {
            return;
        }
        for ((offset, (_, message)), head) in (offset..).zip(entries).zip(heads) {
            state.judge(&self.name, offset, message, head);
        }
        if let Some((_, last)) = entries.last() {
            state.last = Some((state.fold.next_offset - 1, last.clone()));
        }
        self.went_on(state);
    }

    fn went_on(&self, state: MutexGuard<'_, State>) {
        self.reached_at(&state);
        if state.is_due(self.checkpoint_every) {
            self.due.notify_one();
        }
    }

    /// Tells who waits for an offset.
    pub(crate) fn reached_at(&self, state: &State) {
        self.folded.send_replace(state.fold.next_offset);
    }

    fn lost(&self, from: u64, next: u64) -> Result<(), StoreError> {
        self.lost_in(&mut self.state().fold, from, next)
    }

    fn lost_in(&self, fold: &mut Fold, from: u64, next: u64) -> Result<(), StoreError> {
        if !self.accept_gaps {
            return Err(StoreError::Gap { log: self.log.clone(), from, to: next - 1 });
        }
        fold.gaps += 1;
        fold.next_offset = next;
        Ok(())
    }

    /// A number for an attempt to append, and a name for its message that nothing else has.
    pub(crate) fn attempt(&self) -> (u64, String) {
        let attempt = self.attempts.fetch_add(1, Ordering::Relaxed);
        (attempt, format!("{}{attempt}", self.name))
    }

    /// The broker has not appended this attempt, or does not know.
    pub(crate) fn not_appended(&self, attempt: u64, error: &BrokerError) {
        let waiting = self.state().waiting.remove(&attempt);
        if let Some(one) = waiting {
            // Who no longer waits does not want to know.
            let _ = one.send(Err(error.clone()));
        }
    }

    /// Hears what becomes of an attempt to append.
    pub(crate) fn wait_for(self: &Arc<Shared>, attempt: u64) -> Result<Waiting, StoreError> {
        let (sender, verdict) = oneshot::channel();
        let mut state = self.state();
        if let Some(error) = &state.failed {
            return Err(error.clone());
        }
        state.waiting.insert(attempt, sender);
        Ok(Waiting { shared: self.clone(), attempt, verdict })
    }

    /// What was read of the log, wanted from `next` on, must be all that is there.
    pub(crate) fn is_whole(&self, next: u64, items: &[StreamItem]) -> Result<(), StoreError> {
        let offsets = std::iter::once(next).chain(items.iter().map(|item| item.offset + 1));
        match offsets.zip(items).find(|(wanted, item)| self.dense && item.offset > *wanted) {
            Some((from, item)) if !self.accept_gaps => {
                Err(StoreError::Gap { log: self.log.clone(), from, to: item.offset - 1 })
            }
            _ => Ok(()),
        }
    }

    /// Waits until the log is folded up to this offset.
    pub(crate) async fn folded(&self, offset: u64) -> Result<(), StoreError> {
        let mut folded = self.folded.subscribe();
        loop {
            if *folded.borrow_and_update() >= offset {
                return Ok(());
            }
            self.check()?;
            // The sender is in `self`.
            let _ = folded.changed().await;
        }
    }

    /// Up to where the log is folded.
    pub(crate) fn reached(&self) -> u64 {
        self.state().fold.next_offset
    }

    pub(crate) fn check(&self) -> Result<(), StoreError> {
        self.state().failed.clone().map_or(Ok(()), Err)
    }

    /// An entry that was seen lately.
    pub(crate) fn cached(&self, offset: u64) -> Option<StreamItem> {
        self.state().cache.find(offset).cloned()
    }
}

/// A task of the store that panics has it fail: nobody waits for what nobody reads or appends.
pub(crate) struct TellOfPanic<'a>(pub(crate) &'a Shared);

impl Drop for TellOfPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(StoreError::Invalid(format!(
                "the reading or appending of the event log `{}` has panicked",
                self.0.log
            )));
        }
    }
}

/// Waits for what becomes of an attempt. Dropping it forgets that.
pub(crate) struct Waiting {
    shared: Arc<Shared>,
    attempt: u64,
    verdict: oneshot::Receiver<Result<Verdict, BrokerError>>,
}

impl Waiting {
    /// The verdict, or why the broker has not stored it, or does not know.
    ///
    /// # Errors
    /// If the log is not read any more.
    pub(crate) async fn verdict(mut self) -> Result<Result<Verdict, BrokerError>, StoreError> {
        let verdict = (&mut self.verdict).await;
        verdict.map_err(|_| {
            let closed = || StoreError::Closed { log: self.shared.log.clone() };
            self.shared.check().err().unwrap_or_else(closed)
        })
    }
}

impl Waiting {
    /// When there is a verdict, or never will be one.
    pub(crate) async fn ended(&mut self) {
        let _ = (&mut self.verdict).await;
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.shared.state().waiting.remove(&self.attempt);
    }
}

#[cfg(test)]
mod tests {
    use millstream_message::Message;

    use crate::{Event, EventStore, EventStoreOptions, Expected};

    #[tokio::test]
    async fn the_newest_entries_are_kept_as_far_as_there_is_memory_for_them() {
        let broker = millstream_embedded::open(&"memory:".parse().expect("a URL")).await.expect("opened");
        let store = EventStore::open(broker.clone(), "log").await.expect("opened");
        for _ in 0..20 {
            let event = Event::new("e", Message::new(vec![0; 10_000]));
            store.append("s", Expected::Any, [event]).await.expect("stored");
        }
        for (bytes, kept) in [(0, 0), (35_000, 3), (1 << 20, 20)] {
            let options = EventStoreOptions::default().cache_bytes(bytes);
            let store = EventStore::open_with(broker.clone(), "log", options).await.expect("opened");
            let cached = (0..20).filter(|offset| store.0.shared.cached(*offset).is_some());
            assert!(cached.eq(20 - kept..20), "with {bytes} bytes");
        }
    }
}
