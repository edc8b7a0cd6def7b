//! How far the items of a source that has no queue are settled.

use super::position::Keeper;
use bytes::Bytes;
use millstream_flow::BoxError;
use millstream_message::{LongestRun, keep_saving};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// The position up to which every item is settled, and where it is kept.
///
/// Items are settled in any order; a position counts once all items before it are completed, dropped or dead. One that
/// was abandoned holds the position back for good, so that the next run reads it again.
pub(crate) struct Remembered {
    keeper: Keeper,
    progress: Mutex<Progress>,
    changed: Notify,
}

#[derive(Default)]
struct Progress {
    run: LongestRun<Bytes>,
    reached: Option<Bytes>,
}

impl Progress {
    /// Whether another position was reached.
    fn reach(&mut self, position: Option<Bytes>) -> bool {
        let reached = position.is_some();
        self.reached = position.or(self.reached.take());
        reached
    }
}

impl Remembered {
    pub(crate) fn new(keeper: Keeper) -> Arc<Self> {
        Arc::new(Remembered { keeper, progress: Mutex::default(), changed: Notify::new() })
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `position` is reached when all items below `end` are settled. Called with rising numbers.
    pub(crate) fn mark(&self, end: u64, position: Bytes) {
        let mut progress = self.progress();
        let reached = progress.run.mark(end, position);
        if progress.reach(reached) {
            self.changed.notify_one();
        }
    }

    /// These items are done with.
    pub(crate) fn settle(&self, items: Range<u64>) {
        let mut progress = self.progress();
        let reached = progress.run.settle(items);
        if progress.reach(reached) {
            self.changed.notify_one();
        }
    }

    /// Saves the position now and then, until dropped.
    ///
    /// # Errors
    ///
    /// As [`save`](Self::save), but for a broker that is out of reach: that is tried again.
    pub(crate) async fn keep(self: Arc<Self>) -> Result<(), BoxError> {
        keep_saving(&self.changed, || self.save()).await
    }

    /// Saves the position that is reached.
    ///
    /// # Errors
    ///
    /// If it cannot be kept. The position before it stays.
    pub(crate) async fn save(&self) -> Result<(), BoxError> {
        let Some(position) = self.progress().reached.clone() else { return Ok(()) };
        self.keeper.keep(position).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intake::position_of;
    use millstream_embedded::{EmbeddedBroker, Settings};
    use millstream_message::{Broker, StreamOffset, StreamSpec};
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn a_broker_out_of_reach_fails_only_the_last_save() {
        let broker = Arc::new(EmbeddedBroker::memory(Settings::memory()).expect("a broker"));
        broker.declare_stream(StreamSpec::new("s")).await.expect("declared");
        let (offset, _) = StreamOffset::open(broker.clone(), "s", "reader").await.expect("opened");
        let remembered = Remembered::new(Keeper::Stream(offset));
        broker.close().await.expect("closed");
        remembered.mark(1, position_of(1));
        remembered.settle(0..1);
        let keeps = tokio::time::timeout(Duration::from_secs(60), remembered.clone().keep()).await;
        assert!(keeps.is_err(), "{keeps:?}");
        assert!(remembered.save().await.is_err(), "what was settled is not stored");
    }
}
