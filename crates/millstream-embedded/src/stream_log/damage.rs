//! Where a stream's log cannot be read.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::log::{Position, Recovery};

/// The places that opening found, and that readers met since: each counts once, however many readers pass over it.
#[derive(Debug, Default)]
pub(super) struct Damage {
    /// Where each ends, by where it begins. They do not overlap.
    ranges: BTreeMap<u64, u64>,
    /// Checkpoints and segments that could not be used.
    files: u64,
}

impl Damage {
    /// What opening found.
    pub(super) fn found(recovery: &Recovery) -> Damage {
        let mut damage = Damage { ranges: BTreeMap::new(), files: recovery.damaged_files };
        recovery.damaged.iter().cloned().for_each(|range| damage.note(range));
        damage
    }

    /// These bytes cannot be read.
    pub(super) fn note(&mut self, range: Range<Position>) {
        let (mut start, mut end) = (range.start.get(), range.end.get());
        // What opening and readers find of one place may differ in where it ends.
        while let Some((&from, &to)) = self.ranges.range(..end).next_back().filter(|(_, to)| **to > start) {
            self.ranges.remove(&from);
            (start, end) = (start.min(from), end.max(to));
        }
        self.ranges.insert(start, end);
    }

    pub(super) fn places(&self) -> u64 {
        self.ranges.len() as u64 + self.files
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_counts_once_whatever_is_seen_of_it() {
        let mut damage = Damage::default();
        for (start, end, places) in [
            (10, 20, 1),
            (10, 20, 1),
            (15, 30, 1),
            (30, 40, 2), // beside it
            (0, 5, 3),
            (12, 13, 3),
            (50, 60, 4),
            (4, 55, 1),
        ] {
            damage.note(Position::new(start)..Position::new(end));
            assert_eq!(damage.places(), places, "{start} to {end}");
        }
    }
}
