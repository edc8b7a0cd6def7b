//! Entries on their way into the log.
//!
//! Whoever comes while others are being stored goes with the next batch, so that a hundred writers cost one sync of the disk, or one
//! confirm of the broker, and one wake-up (group commit: DeWitt et al., *Implementation techniques for main memory database systems*,
//! SIGMOD 1984).

use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use millstream_message::{BrokerErrorKind, Message};
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
        let waiting = self.wait_for(attempt).map_err(AppendError::Unreadable)?;
        if !self.appending.push(attempt, message).await {
            return Err(AppendError::Unreadable(StoreError::Closed { log: self.log.clone() }));
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
        let (mut attempts, mut messages, mut room) = (Vec::new(), Vec::new(), Vec::new());
        for entry in entries {
            attempts.push(entry.attempt);
            messages.push(entry.message);
            room.push(entry.room);
        }
        let several = (messages.len() > 1).then(|| messages.clone());
        let Err(error) = self.broker.append(&self.log, messages).await else { return };
        let Some(several) = several.filter(|_| error.kind() == BrokerErrorKind::Invalid) else {
            attempts.into_iter().for_each(|attempt| self.not_appended(attempt, &error));
            return;
        };
        // One that the broker does not take is no reason to refuse the others. If some of them were stored, they are stored again,
        // and count once.
        for (attempt, message) in attempts.into_iter().zip(several) {
            if let Err(error) = self.broker.append(&self.log, vec![message]).await {
                self.not_appended(attempt, &error);
            }
        }
    }
}
