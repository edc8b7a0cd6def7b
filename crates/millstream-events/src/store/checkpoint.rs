//! Checkpoints: what a store knows of its log at one offset, so that opening reads only what comes behind.
//!
//! A checkpoint is no truth of its own. All that it says follows from the log, so one that is torn, stale, damaged or of another log is
//! passed over, and the log is read from its begin. There are two places for it, each a stream of the broker, and a new one goes where
//! the newest is not: that stays until the new one is whole. (The two places are those of Gray and Reuter's ping-pong writes,
//! *Transaction Processing*, 1993.)

mod form;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use millstream_message::{
    BrokerError, BrokerErrorKind, StreamFrom, StreamItem, StreamReader, StreamSpec, stream_extent,
};
use tokio::time::{sleep, timeout};

use self::form::{FormError, Mark, Reader, Writer};
use super::fold::Fold;
use super::shared::{Shared, State};
use crate::event::new_id;

/// Messages that are read or written at once.
const CHUNK: usize = 16;

/// A checkpoint is written when so many times its bytes have been appended since the one before: it costs at most this part of what
/// the log itself costs.
const WORTH: u64 = 4;

/// What is known of the newest checkpoint.
#[derive(Debug, Default)]
pub(crate) struct Newest {
    /// The offset behind it.
    pub(crate) offset: u64,
    /// How large it is.
    bytes: u64,
    /// Bytes of the log that were read since.
    since: u64,
    /// Where none could be written.
    failed: u64,
}

impl Newest {
    /// So much of the log was read.
    pub(crate) fn read(&mut self, bytes: usize) {
        self.since += bytes as u64;
    }
}

/// A checkpoint in one of the two places.
struct Found {
    place: usize,
    of: String,
    next_offset: u64,
    mark: Mark,
}

#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error(transparent)]
    Form(#[from] FormError),
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

impl State {
    /// Whether it is time for a checkpoint after every so many entries.
    pub(crate) fn is_due(&self, every: u64) -> bool {
        let Newest { offset, bytes, since, failed } = &self.newest;
        let entries = self.fold.next_offset.saturating_sub(*offset.max(failed));
        // What is lost has to be told by each opening.
        every > 0 && entries >= every && *since >= WORTH * bytes && self.fold.gaps == 0
    }
}

impl Shared {
    fn place(&self, place: usize) -> String {
        format!("{}.checkpoint-{place}", self.log)
    }

    /// Takes over the newest checkpoint that fits the log, which has these offsets.
    pub(crate) async fn restore(&self, extent: &Range<u64>) {
        for found in self.found().await {
            let from = found.next_offset;
            match self.restored(&found, extent).await {
                Ok(Some((fold, bytes))) => {
                    let mut state = self.state();
                    state.fold = fold;
                    state.newest = Newest { offset: from, bytes, ..Newest::default() };
                    self.reached_at(&state);
                    return;
                }
                Ok(None) => {}
                Err(error) => {
                    let (log, place) = (&self.log, self.place(found.place));
                    tracing::warn!(%log, %place, %error, "a checkpoint of an event log cannot be used");
                }
            }
        }
    }

    /// What is whole in the two places, the newest first.
    async fn found(&self) -> Vec<Found> {
        let mut found = Vec::new();
        for place in 0..2 {
            match self.ends(place).await {
                Ok(here) => found.extend(here),
                Err(error) if error.kind() == BrokerErrorKind::NotFound => {}
                Err(error) => tracing::warn!(log = %self.log, %error, "no checkpoint can be read"),
            }
        }
        found.sort_by_key(|found| std::cmp::Reverse(found.next_offset));
        found
    }

    /// The checkpoint that was finished last in this place. Others may have begun between its parts, and may not have been finished.
    async fn ends(&self, place: usize) -> Result<Option<Found>, BrokerError> {
        let mut reader = self.reader(&self.place(place), StreamFrom::Last).await?;
        let last = next(&mut reader, 1).await?;
        let end = last.first().and_then(|item| form::end(&item.message));
        Ok(end.map(|(of, next_offset, mark)| Found { place, of, next_offset, mark }))
    }

    async fn reader(&self, stream: &str, from: StreamFrom) -> Result<StreamReader, BrokerError> {
        let extent = stream_extent(&*self.broker, stream, from).await?;
        Ok(self.broker.read(stream, StreamFrom::Offset(extent.start)).await?.until(extent))
    }

    /// The whole of a checkpoint, if it is one of this log; and its bytes.
    async fn restored(&self, found: &Found, extent: &Range<u64>) -> Result<Option<(Fold, u64)>, Unusable> {
        let Found { place, of, next_offset, mark } = found;
        // What has lost its begin is not whole, whatever is known of it.
        if extent.start > 0 || extent.end < *next_offset || mark.offset.checked_add(1) != Some(*next_offset) {
            return Ok(None);
        }
        let marked = self.broker.read(&self.log, StreamFrom::Offset(mark.offset)).await?;
        let marked = next(&mut marked.until(mark.offset..extent.end), 1).await?;
        if marked.first().map(|item| Mark::of(item.offset, &item.message)).as_ref() != Some(mark) {
            return Ok(None);
        }
        let mut reader = self.reader(&self.place(*place), StreamFrom::First).await?;
        let (mut parts, mut bytes) = (Reader::new(of.clone()), 0);
        'parts: loop {
            let chunk = next(&mut reader, CHUNK).await?;
            if chunk.is_empty() {
                break;
            }
            for item in chunk {
                bytes += item.message.size() as u64;
                if !parts.message(&item.message)? {
                    break 'parts;
                }
            }
        }
        Ok(Some((parts.end()?, bytes)))
    }

    /// Removes the checkpoints: who opens the log from one would know what nobody else can know any more.
    pub(crate) async fn forget_checkpoints(&self) {
        for place in 0..2 {
            match self.broker.delete_stream(&self.place(place)).await {
                Err(error) if error.kind() != BrokerErrorKind::NotFound => {
                    tracing::warn!(log = %self.log, %error, "a checkpoint of an event log that has gaps is still there");
                }
                _ => {}
            }
        }
    }

    /// Writes a checkpoint whenever it is time.
    pub(crate) async fn keep_checkpoints(self: Arc<Shared>) {
        loop {
            self.due.notified().await;
            // All processes that follow the log find it time at the same entry: one of them is the first.
            sleep(jitter()).await;
            self.checkpoint().await;
        }
    }

    /// Writes a checkpoint if it is time. None is worth an error: without it the log is read.
    pub(crate) async fn checkpoint(&self) {
        if !self.state().is_due(self.checkpoint_every) {
            return;
        }
        let found = self.found().await;
        let reached = self.reached();
        let newest = found.first();
        if let Some(newest) = newest {
            if newest.next_offset > reached {
                // Somebody is further than this store, or it is of another log, which this one will outgrow.
                self.state().newest.failed = reached;
                return;
            }
            // Another process may have written one meanwhile.
            let mut state = self.state();
            state.newest.offset = state.newest.offset.max(newest.next_offset);
            if !state.is_due(self.checkpoint_every) {
                return;
            }
        }
        let place = newest.map_or(0, |newest| 1 - newest.place);
        let written = self.write(&self.place(place)).await;
        if let Err(error) = written {
            let mut state = self.state();
            state.newest.failed = state.fold.next_offset;
            drop(state);
            tracing::warn!(log = %self.log, %error, "no checkpoint of an event log could be written");
        }
    }

    async fn write(&self, place: &str) -> Result<(), BrokerError> {
        match self.broker.delete_stream(place).await {
            Err(error) if error.kind() != BrokerErrorKind::NotFound => return Err(error),
            _ => self.broker.declare_stream(StreamSpec::new(place)).await?,
        }
        let _taking = Taking(self);
        let begun = {
            let mut state = self.state();
            let beside = state.fold.begin_taking();
            let since = std::mem::take(&mut state.newest.since);
            state.last.clone().map(|(offset, message)| (Mark::of(offset, &message), beside, since))
        };
        let Some((mark, beside, since)) = begun else { return Ok(()) };
        let offset = beside.totals.next_offset;
        let written = self.write_parts(place, Writer::new(new_id(), &beside, mark)).await;
        let newest = &mut self.state().newest;
        match written {
            Ok(bytes) => (newest.offset, newest.bytes) = (offset, bytes),
            Err(_) => newest.since += since,
        }
        written.map(drop)
    }

    async fn write_parts(&self, place: &str, mut writer: Writer) -> Result<u64, BrokerError> {
        let (mut bytes, mut parts) = (0, writer.ready());
        loop {
            // Appends want the lock: it is held for a part at a time, or for one stream that is longer.
            let more = self.state().fold.take(|name, entry| writer.stream(name, entry));
            if !more {
                writer.end();
            }
            parts.extend(writer.ready());
            while parts.len() >= CHUNK || !(more || parts.is_empty()) {
                let some: Vec<_> = parts.drain(..CHUNK.min(parts.len())).collect();
                bytes += some.iter().map(|part| part.size() as u64).sum::<u64>();
                self.broker.append(place, some).await?;
            }
            if !more {
                return Ok(bytes);
            }
            tokio::task::yield_now().await;
        }
    }
}

/// How long a broker may take for a part of a checkpoint. One that is written anew meanwhile may never have the part that was looked for.
const PATIENCE: Duration = Duration::from_secs(10);

async fn next(reader: &mut StreamReader, max: usize) -> Result<Vec<StreamItem>, BrokerError> {
    timeout(PATIENCE, reader.next_chunk(max)).await.unwrap_or_else(|_| {
        let text = format!("nothing of a checkpoint came within {PATIENCE:?}");
        Err(BrokerError::new(BrokerErrorKind::Unavailable, text))
    })
}

/// Up to two seconds.
fn jitter() -> Duration {
    Duration::from_millis(RandomState::new().build_hasher().finish() % 2_000)
}

/// Streams are taken. Nothing is kept for that when it ends, whatever ends it.
struct Taking<'a>(&'a Shared);

impl Drop for Taking<'_> {
    fn drop(&mut self) {
        self.0.state().fold.end_taking();
    }
}

#[cfg(test)]
mod tests;
