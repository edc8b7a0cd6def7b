//! Entries on their way into the log.
//!
//! Whoever comes while others are being stored goes with the next batch, so that a hundred writers cost one sync of the disk, or one
//! confirm of the broker, and one wake-up (group commit: DeWitt et al., *Implementation techniques for main memory database systems*,
//! SIGMOD 1984).

use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use millstream_message::{BrokerError, BrokerErrorKind, Message};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::error::{AppendError, StoreError};
use super::fold::Verdict;
use super::shared::{Shared, TellOfPanic};

/// Entries that are stored together.
const BATCH: usize = 512;
/// Batches that the broker has at once.
const UNDER_WAY: usize = 8;
/// Entries that wait, also those whose writers have gone.
const ENTRIES: usize = 1 << 14;
/// Their bytes.
const ROOM: usize = 64 << 20;

/// An entry that is to be stored.
struct Entry {
    attempt: u64,
    message: Message,
    /// Its part of the room, until the broker has answered.
    room: OwnedSemaphorePermit,
}

/// Where entries wait.
pub(crate) struct Appending {
    room: Arc<Semaphore>,
    entries: mpsc::Sender<Entry>,
}

/// Where they are taken.
pub(crate) struct Appends(mpsc::Receiver<Entry>);

impl Appending {
    pub(crate) fn new() -> (Appending, Appends) {
        let (entries, taken) = mpsc::channel(ENTRIES);
        (Appending { room: Arc::new(Semaphore::new(ROOM)), entries }, Appends(taken))
    }

    /// Hands an entry over; what becomes of it is told to who [waits](Shared::wait_for) for its attempt. False if nobody takes it.
    async fn push(&self, attempt: u64, message: Message) -> bool {
        let bytes = message.footprint().min(ROOM) as u32;
        let Ok(room) = self.room.clone().acquire_many_owned(bytes).await else { return false };
        self.entries.send(Entry { attempt, message, room }).await.is_ok()
    }
}

impl Shared {
    /// Stores an entry, and returns when it is read back.
    ///
    /// # Cancel safety
    /// Dropped, it may be stored or not.
    pub(crate) async fn store(
        self: &Arc<Shared>,
        commit: &str,
        attempt: u64,
        message: Message,
    ) -> Result<Verdict, AppendError> {
        let mut waiting = self.wait_for(attempt).map_err(AppendError::Unreadable)?;
        let pushed = tokio::select! {
            biased;
            pushed = self.appending.push(attempt, message) => pushed,
            // Without a verdict on what nobody has: the store has failed while there was no room.
            () = waiting.ended() => false,
        };
        if !pushed {
            let closed = || StoreError::Closed { log: self.log.clone() };
            return Err(AppendError::Unreadable(self.check().err().unwrap_or_else(closed)));
        }
        let commit = || commit.to_owned();
        match waiting.verdict().await {
            Ok(Ok(verdict)) => Ok(verdict),
            Ok(Err(error)) => Err(match error.kind() {
                BrokerErrorKind::NotFound | BrokerErrorKind::Unsupported | BrokerErrorKind::Invalid => {
                    AppendError::Refused(error)
                }
                _ => AppendError::Unknown { commit: commit(), error },
            }),
            Err(error) => Err(AppendError::Unseen { commit: commit(), error }),
        }
    }

    /// Appends what comes, as long as the store lives.
    pub(crate) async fn append(self: Arc<Shared>, Appends(mut taken): Appends) {
        let _told = TellOfPanic(&self);
        let (mut entries, mut under_way) = (Vec::new(), FuturesUnordered::new());
        loop {
            tokio::select! {
                // A batch does not wait for the one before to be stored: the broker's log has a batching of its own.
                count = taken.recv_many(&mut entries, BATCH), if under_way.len() < UNDER_WAY => {
                    if count == 0 {
                        return;
                    }
                    under_way.push(self.append_all(std::mem::take(&mut entries)));
                }
                Some(()) = under_way.next() => {}
            }
        }
    }

    async fn append_all(&self, entries: Vec<Entry>) {
        // The room is given back when all is told.
        let (mut all, mut rooms) = (Vec::new(), Vec::new());
        for Entry { attempt, message, room } in entries {
            all.push((attempt, message));
            rooms.push(room);
        }
        // What is refused for a message that the broker does not take is no reason to refuse the others: by halves, so that one costs
        // little. If some of them were stored, they are stored again, and count once.
        let (mut parts, mut alone) = (vec![all], Alone::default());
        while let Some(mut part) = parts.pop() {
            let several = part.len() > 1;
            if several && let Some(error) = alone.of_all() {
                part.iter().for_each(|(attempt, _)| self.not_appended(*attempt, error));
                continue;
            }
            let messages = part.iter().map(|(_, message)| message.clone()).collect();
            let error = match self.broker.append(&self.log, messages).await {
                Ok(offset) => {
                    self.stored(offset, &part);
                    alone = Alone::default();
                    continue;
                }
                Err(error) => error,
            };
            if several && error.kind() == BrokerErrorKind::Invalid {
                let half = part.split_off(part.len() / 2);
                parts.extend([half, part]);
                continue;
            }
            part.iter().for_each(|(attempt, _)| self.not_appended(*attempt, &error));
            alone.refused(error);
        }
    }
}

/// Messages that were refused one after the other, each by itself.
#[derive(Default)]
struct Alone {
    count: usize,
    error: Option<BrokerError>,
}

/// So many refused for one reason are not refused for what they are: the broker takes none.
const ALONE: usize = 4;

impl Alone {
    fn refused(&mut self, error: BrokerError) {
        let same = self.error.as_ref().is_some_and(|before| before.to_string() == error.to_string());
        self.count = if same { self.count + 1 } else { 1 };
        self.error = Some(error);
    }

    fn of_all(&self) -> Option<&BrokerError> {
        self.error.as_ref().filter(|_| self.count >= ALONE)
    }
}
