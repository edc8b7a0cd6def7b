//! Entries of the log, by their offset.

use std::collections::VecDeque;
use std::sync::Arc;

use millstream_message::{BrokerError, BrokerErrorKind, StreamFrom, StreamItem, StreamReader};

use super::super::error::StoreError;
use super::super::fold::Place;
use super::super::shared::Shared;

/// Entries that are read over, rather than to begin again behind them.
const SKIP: u64 = 512;

/// Entries of the log, by their offset.
pub(super) struct Entries {
    pub(super) shared: Arc<Shared>,
    reader: Option<StreamReader>,
    ready: VecDeque<StreamItem>,
    /// What the reader gives next.
    next: u64,
}

impl Entries {
    pub(super) fn new(shared: Arc<Shared>) -> Entries {
        Entries { shared, reader: None, ready: VecDeque::new(), next: 0 }
    }

    /// Forgets what was read ahead.
    pub(super) fn restart(&mut self) {
        self.reader = None;
        self.ready.clear();
    }

    /// The entry at `offset`; `ahead` says which others are wanted next, itself the first.
    pub(super) async fn get(&mut self, offset: u64, ahead: &[Place]) -> Result<StreamItem, StoreError> {
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
pub(in crate::store) async fn entry(shared: &Arc<Shared>, offset: u64) -> Result<StreamItem, StoreError> {
    Entries::new(shared.clone()).get(offset, &[Place { offset, first: 0 }]).await
}
