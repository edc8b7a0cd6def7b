//! How far items that are settled in any order are settled without a gap.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

/// The last mark below which every item is settled, for a source that keeps one position for all of them: items are settled in any
/// order, and a position counts once all items before it are. One that never is holds the position back for good.
///
/// It keeps a mark for each that is not reached, and a range for each run of items that are settled ahead.
///
/// ```
/// use millstream_message::LongestRun;
///
/// let mut run = LongestRun::default();
/// assert_eq!((run.mark(2, "after two"), run.mark(5, "after five")), (None, None));
/// assert_eq!(run.settle(2..5), None, "the first two are not");
/// assert_eq!(run.settle(0..2), Some("after five"));
/// assert!(run.is_reached());
/// ```
#[derive(Debug)]
pub struct LongestRun<M> {
    /// All items below are settled.
    below: u64,
    /// Ranges settled above, by their begin.
    ahead: BTreeMap<u64, u64>,
    /// What counts once all items below a number are settled, in their order.
    marks: VecDeque<(u64, M)>,
}

impl<M> Default for LongestRun<M> {
    fn default() -> LongestRun<M> {
        LongestRun { below: 0, ahead: BTreeMap::new(), marks: VecDeque::new() }
    }
}

impl<M> LongestRun<M> {
    /// `mark` counts when all items below `end` are settled; called with rising numbers, and of several with the same number the last
    /// counts. The last mark that is reached by that.
    pub fn mark(&mut self, end: u64, mark: M) -> Option<M> {
        match self.marks.back_mut() {
            Some(last) if last.0 == end => last.1 = mark,
            _ => self.marks.push_back((end, mark)),
        }
        self.reach()
    }

    /// Whether every mark is reached.
    pub fn is_reached(&self) -> bool {
        self.marks.is_empty()
    }

    /// These items are settled, each of them for the first time. The last mark that is reached by that.
    pub fn settle(&mut self, items: Range<u64>) -> Option<M> {
        if items.start != self.below {
            self.ahead.insert(items.start, items.end);
            return None;
        }
        self.below = items.end;
        while let Some(entry) = self.ahead.first_entry().filter(|entry| *entry.key() == self.below) {
            self.below = entry.remove();
        }
        self.reach()
    }

    fn reach(&mut self) -> Option<M> {
        let mut reached = None;
        while self.marks.front().is_some_and(|(end, _)| *end <= self.below) {
            reached = self.marks.pop_front().map(|(_, mark)| mark);
        }
        reached
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever the order in which ranges are settled and marks are set, what is reached is the last mark of the longest run of
        /// settled items.
        #[test]
        fn the_last_mark_below_which_all_is_settled_is_reached(
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
            let (mut run, mut reached) = (LongestRun::default(), None);
            let marked = order.index(ranges.len() + 1);
            for range in &ranges[..marked] {
                reached = run.mark(range.end, range.end).or(reached);
            }
            let mut shuffled: Vec<usize> = (0..ranges.len()).collect();
            let mut state = seed | 1;
            for at in (1..shuffled.len()).rev() {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                shuffled.swap(at, (state >> 33) as usize % (at + 1));
            }
            for at in shuffled {
                if Some(at) != abandoned {
                    reached = run.settle(ranges[at].clone()).or(reached);
                }
            }
            for range in &ranges[marked..] {
                reached = run.mark(range.end, range.end).or(reached);
            }
            let held = abandoned.filter(|at| *at < ranges.len()).unwrap_or(ranges.len());
            prop_assert_eq!(reached, ranges[..held].last().map(|range| range.end));
        }
    }
}
