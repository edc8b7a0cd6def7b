//! Appending: one record, many, or many as one.

use std::sync::atomic::Ordering;

use super::{
    block_on::block_on,
    commit::Commit,
    error::AppendError,
    handle::Log,
    record::{Entry, Position, stored_len},
};

/// An accepted record.
#[derive(Debug)]
#[must_use = "the record is durable only once its commit resolves"]
pub struct Appended {
    /// Where it is.
    pub position: Position,
    /// Resolves when it is durable.
    pub commit: Commit,
}

/// An accepted batch.
#[derive(Debug)]
#[must_use = "the records are durable only once their commit resolves"]
pub struct AppendedBatch {
    /// Where each record is.
    pub positions: Vec<Position>,
    /// Resolves when all of them are durable.
    pub commit: Commit,
}

impl Log {
    /// Appends a record. Returns as soon as it is accepted; await the commit for durability.
    ///
    /// # Cancel safety
    /// A cancelled append stored nothing.
    ///
    /// # Errors
    /// Nothing of a refused record is stored.
    pub async fn append(&self, entry: Entry<'_>) -> Result<Appended, AppendError> {
        let len = self.checked_len(&entry)?;
        let room = self.shared.take_room(len).await?;
        Ok(self.place(entry, room))
    }

    /// [`append`](Self::append), waiting for room on this thread.
    ///
    /// # Errors
    /// As `append`.
    pub fn append_blocking(&self, entry: Entry<'_>) -> Result<Appended, AppendError> {
        block_on(self.append(entry))
    }

    /// [`append`](Self::append) without waiting for room.
    ///
    /// # Errors
    /// [`Busy`](AppendError::Busy) when there is no room.
    pub fn try_append(&self, entry: Entry<'_>) -> Result<Appended, AppendError> {
        let len = self.checked_len(&entry)?;
        let room = self.shared.try_take_room(len)?;
        Ok(self.place(entry, room))
    }

    /// Appends records in order, each stored or not for itself.
    ///
    /// # Cancel safety
    /// A batch of at most `pending_bytes_max` is accepted as a whole or, when cancelled, not at all. Of a
    /// larger one, a part may have been accepted.
    ///
    /// # Errors
    /// A record that is too large refuses the whole batch. Nothing of it is stored.
    pub async fn append_batch(&self, entries: &[Entry<'_>]) -> Result<AppendedBatch, AppendError> {
        for entry in entries {
            self.checked_len(entry)?;
        }
        let mut batch = self.empty_batch(entries.len());
        let mut rest = entries;
        while !rest.is_empty() {
            let (count, bytes) = self.fitting(rest);
            let (now, later) = rest.split_at(count);
            let room = self.shared.take_room(bytes).await?;
            self.place_all(now, false, room, &mut batch);
            rest = later;
        }
        Ok(batch)
    }

    /// [`append_batch`](Self::append_batch), waiting for room on this thread.
    ///
    /// # Errors
    /// As `append_batch`.
    pub fn append_batch_blocking(&self, entries: &[Entry<'_>]) -> Result<AppendedBatch, AppendError> {
        block_on(self.append_batch(entries))
    }

    /// [`append_batch`](Self::append_batch) without waiting for room.
    ///
    /// # Errors
    /// [`Busy`](AppendError::Busy) when there is no room for the whole batch; nothing of it is stored then.
    pub fn try_append_batch(&self, entries: &[Entry<'_>]) -> Result<AppendedBatch, AppendError> {
        let mut bytes = 0;
        for entry in entries {
            bytes += self.checked_len(entry)?;
        }
        let mut batch = self.empty_batch(entries.len());
        if !entries.is_empty() {
            let room = self.shared.try_take_room(bytes)?;
            self.place_all(entries, false, room, &mut batch);
        }
        Ok(batch)
    }

    /// Appends records of which after a crash either all are there or none.
    ///
    /// # Errors
    /// [`TooLarge`](AppendError::TooLarge) when together they take more than `record_bytes_max`, headers
    /// included. Nothing of a refused batch is stored.
    pub async fn append_atomic(&self, entries: &[Entry<'_>]) -> Result<AppendedBatch, AppendError> {
        let bytes = entries.iter().map(|e| stored_len(e.body_len())).sum();
        let max = self.shared.settings.record_bytes_max;
        if bytes > max {
            return Err(AppendError::TooLarge { len: bytes, max });
        }
        let mut batch = self.empty_batch(entries.len());
        if !entries.is_empty() {
            let room = self.shared.take_room(bytes).await?;
            self.place_all(entries, true, room, &mut batch);
        }
        Ok(batch)
    }

    /// [`append_atomic`](Self::append_atomic), waiting for room on this thread.
    ///
    /// # Errors
    /// As `append_atomic`.
    pub fn append_atomic_blocking(&self, entries: &[Entry<'_>]) -> Result<AppendedBatch, AppendError> {
        block_on(self.append_atomic(entries))
    }

    fn checked_len(&self, entry: &Entry<'_>) -> Result<usize, AppendError> {
        let (len, max) = (entry.body_len(), self.shared.settings.record_bytes_max);
        if len > max { Err(AppendError::TooLarge { len, max }) } else { Ok(stored_len(len)) }
    }

    /// How many of `entries` make one piece of at most the pending bytes, at least one; and their bytes.
    fn fitting(&self, entries: &[Entry<'_>]) -> (usize, usize) {
        let mut total = 0;
        for (index, entry) in entries.iter().enumerate() {
            let len = stored_len(entry.body_len());
            if index > 0 && total + len > self.shared.settings.pending_bytes_max {
                return (index, total);
            }
            total += len;
        }
        (entries.len(), total)
    }

    fn empty_batch(&self, count: usize) -> AppendedBatch {
        AppendedBatch { positions: Vec::with_capacity(count), commit: Commit::new(self.shared.clone(), None) }
    }

    fn place(&self, entry: Entry<'_>, room: usize) -> Appended {
        self.shared.counters.records.fetch_add(1, Ordering::Relaxed);
        let part = self.shared.push(&[entry], false, room, |_| {});
        Appended { position: Position::new(part.from), commit: Commit::new(self.shared.clone(), Some(part)) }
    }

    fn place_all(&self, entries: &[Entry<'_>], joined: bool, room: usize, batch: &mut AppendedBatch) {
        self.shared.counters.records.fetch_add(entries.len() as u64, Ordering::Relaxed);
        let positions = &mut batch.positions;
        let part = self.shared.push(entries, joined, room, |at| positions.push(Position::new(at)));
        batch.commit.extend(part);
    }
}
