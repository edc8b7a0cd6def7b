//! What is counted for every call, at the cost of a few additions.

use std::time::Duration;

use super::lanes::Lanes;
use super::{Value, buckets, nanoseconds};

/// Calls: those that have begun, those that have ended, and how long they took.
pub(crate) struct Calls {
    /// The longest duration of each bucket, in nanoseconds, ascending; one bucket more takes the rest.
    bounds: Box<[u64]>,
    lanes: Lanes,
}

const BEGUN: usize = 0;
const OK: usize = 1;
/// Those that failed or were dropped.
const OTHERWISE: usize = 2;
const NANOSECONDS: usize = 3;
/// Where the buckets begin.
const BUCKETS: usize = 4;

impl Calls {
    pub(crate) fn new(bounds: &[Duration]) -> Self {
        let bounds: Box<[u64]> = bounds.iter().map(|bound| nanoseconds(*bound)).collect();
        let lanes = Lanes::new(BUCKETS + bounds.len() + 1);
        Calls { bounds, lanes }
    }

    /// One more has begun, and how many of this thread have before.
    #[inline]
    pub(crate) fn begin(&self) -> u64 {
        self.lanes.here().add(BEGUN, 1)
    }

    /// One has ended, and is timed as a sample of so many if it took a known time.
    #[inline]
    pub(crate) fn end(&self, ok: bool, took: Option<u64>, stands_for: u64) {
        let lane = self.lanes.here();
        lane.add(if ok { OK } else { OTHERWISE }, 1);
        if let Some(took) = took {
            let bucket = self.bounds.iter().position(|bound| took <= *bound).unwrap_or(self.bounds.len());
            lane.add(BUCKETS + bucket, stands_for);
            lane.add(NANOSECONDS, took.saturating_mul(stands_for));
        }
    }

    /// One was dropped.
    pub(crate) fn cancel(&self) {
        self.lanes.here().add(OTHERWISE, 1);
    }

    /// How many have begun and not ended.
    pub(crate) fn underway(&self) -> u64 {
        // What ends while this adds up is not taken for more than has begun.
        let ended = self.ok().wrapping_add(self.lanes.value(OTHERWISE));
        self.lanes.value(BEGUN).saturating_sub(ended)
    }

    pub(crate) fn ok(&self) -> u64 {
        self.lanes.value(OK)
    }

    pub(super) fn read(&self) -> Value {
        let counts = (0..=self.bounds.len()).map(|bucket| self.lanes.value(BUCKETS + bucket));
        buckets(&self.bounds, counts, self.lanes.value(NANOSECONDS))
    }
}
