//! How far the items of a source that has no queue are settled.

use super::position::Keeper;
use bytes::Bytes;
use millstream_flow::BoxError;
use millstream_message::keep_saving;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// The position up to which every item is settled, and where it is kept.
///
/// Items are settled in any order; a position counts once all items before it are completed, dropped or dead. One that
/// was abandoned holds the position back for good, so that the next run reads it again.
pub(crate) struct Remembered {
    keeper: Keeper,
    settled: Mutex<Settled>,
    changed: Notify,
}

#[derive(Default)]
struct Settled {
    /// All items below are settled.
    below: u64,
    /// Ranges settled above, by their begin.
    ahead: BTreeMap<u64, u64>,
    /// What to remember once all items below a number are settled, in their order.
    marks: VecDeque<(u64, Bytes)>,
    reached: Option<Bytes>,
}

impl Settled {
    /// Returns whether another mark was reached.
    fn add(&mut self, items: Range<u64>) -> bool {
        if items.start != self.below {
            self.ahead.insert(items.start, items.end);
            return false;
        }
        self.below = items.end;
        while let Some(entry) = self.ahead.first_entry().filter(|entry| *entry.key() == self.below) {
            self.below = entry.remove();
        }
        self.reach()
    }

    fn reach(&mut self) -> bool {
        let mut reached = false;
        while self.marks.front().is_some_and(|(end, _)| *end <= self.below) {
            self.reached = self.marks.pop_front().map(|(_, position)| position);
            reached = true;
        }
        reached
    }
}

impl Remembered {
    pub(crate) fn new(keeper: Keeper) -> Arc<Self> {
        Arc::new(Remembered { keeper, settled: Mutex::default(), changed: Notify::new() })
    }

    fn settled(&self) -> MutexGuard<'_, Settled> {
        self.settled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `position` is reached when all items below `end` are settled. Called with rising numbers.
    pub(crate) fn mark(&self, end: u64, position: Bytes) {
        let mut settled = self.settled();
        settled.marks.push_back((end, position));
        if settled.reach() {
            self.changed.notify_one();
        }
    }

    /// These items are done with.
    pub(crate) fn settle(&self, items: Range<u64>) {
        if self.settled().add(items) {
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
        let Some(position) = self.settled().reached.clone() else { return Ok(()) };
        self.keeper.keep(position).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intake::position_of;
    use millstream_embedded::{EmbeddedBroker, Settings};
    use millstream_message::{Broker, StreamOffset, StreamSpec};
    use proptest::prelude::*;
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

    proptest! {
        /// Whatever the order in which ranges are settled and marks are set, the position is the last mark of the
        /// longest run of settled items.
        #[test]
        fn the_position_is_the_last_mark_below_which_all_is_settled(
            lengths in proptest::collection::vec(1u64..9, 1..30),
            order in any::<prop::sample::Index>(),
            abandoned in proptest::option::of(0usize..30),
            seed in any::<u64>(),
        ) {
            let mut ranges = Vec::new();
            let mut end = 0;
            for length in &lengths {
                ranges.push(end..end + length);
                end += length;
            }
            let mut settled = Settled::default();
            let marked = order.index(ranges.len() + 1);
            for range in &ranges[..marked] {
                settled.marks.push_back((range.end, Bytes::from(range.end.to_string())));
            }
            let mut shuffled: Vec<usize> = (0..ranges.len()).collect();
            let mut state = seed | 1;
            for at in (1..shuffled.len()).rev() {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                shuffled.swap(at, (state >> 33) as usize % (at + 1));
            }
            for at in shuffled {
                if Some(at) != abandoned {
                    settled.add(ranges[at].clone());
                }
            }
            for range in &ranges[marked..] {
                settled.marks.push_back((range.end, Bytes::from(range.end.to_string())));
                settled.reach();
            }
            let held = abandoned.filter(|at| *at < ranges.len()).unwrap_or(ranges.len());
            let expected = ranges[..held].last().map(|range| Bytes::from(range.end.to_string()));
            prop_assert_eq!(settled.reached, expected);
        }
    }
}
