//! Which windows a moment is in, by arithmetic on nanoseconds since the epoch.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::aggregate::Aggregate;
use super::panes::{Panes, Part};
use crate::token::Settle;

/// Windows that lie side by side, or over each other, in time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spec {
    pub(super) size: i64,
    pub(super) slide: i64,
    pub(super) offset: i64,
    /// Items are gathered in panes of this length, of which each window has a whole number.
    pub(super) pane: i64,
}
/// A span in nanoseconds, at most some 36 years, so that a few of them can be added to any time.
pub(super) fn span(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX).min(i64::MAX / 8)
}

/// Nanoseconds since the epoch, at most some 146 years before or after it.
#[inline]
pub(super) fn nanos(time: SystemTime) -> i64 {
    let nanos = match time.duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_nanos()).unwrap_or(i64::MAX),
        Err(before) => -i64::try_from(before.duration().as_nanos()).unwrap_or(i64::MAX),
    };
    nanos.clamp(-(i64::MAX / 2), i64::MAX / 2)
}

pub(super) fn moment(nanos: i64) -> SystemTime {
    if nanos >= 0 {
        UNIX_EPOCH + Duration::from_nanos(nanos as u64)
    } else {
        UNIX_EPOCH - Duration::from_nanos(nanos.unsigned_abs())
    }
}

pub(super) fn common_divisor(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { common_divisor(b, a % b) }
}

/// A pane and the windows it is in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    start: i64,
    end: i64,
    pub(super) pane: i64,
    pub(super) first_end: i64,
    pub(super) last_end: i64,
}

impl Place {
    #[inline]
    pub(super) fn holds(&self, time: i64) -> bool {
        self.start <= time && time < self.end
    }
}

impl Spec {
    /// Where a moment is.
    pub(super) fn place(&self, time: i64) -> Place {
        let pane = self.pane_of(time);
        let start = self.pane_start(pane);
        // Windows begin and end where panes do, so all moments of a pane are in the same ones.
        let (first_end, last_end) = (self.first_end(time), self.last_end(time));
        Place { start, end: start.saturating_add(self.pane), pane, first_end, last_end }
    }

    /// The end of the first window that covers `time`.
    #[inline]
    pub(super) fn first_end(&self, time: i64) -> i64 {
        // Of those that begin after `time - size`, the first.
        let begins_after = time.saturating_sub(self.size).saturating_sub(self.offset);
        let start = (begins_after.div_euclid(self.slide) + 1) * self.slide + self.offset;
        start.saturating_add(self.size)
    }

    /// The end of the last window that covers `time`; before `time` if none does.
    #[inline]
    pub(super) fn last_end(&self, time: i64) -> i64 {
        let start = (time.saturating_sub(self.offset)).div_euclid(self.slide) * self.slide + self.offset;
        start.saturating_add(self.size)
    }

    /// The number of the pane that holds `time`.
    #[inline]
    pub(super) fn pane_of(&self, time: i64) -> i64 {
        (time.saturating_sub(self.offset)).div_euclid(self.pane)
    }

    /// When a pane begins.
    pub(super) fn pane_start(&self, pane: i64) -> i64 {
        pane * self.pane + self.offset
    }

    /// The earliest end of a window that is later than `time`.
    pub(super) fn first_end_after(&self, time: i64) -> i64 {
        if time == i64::MIN {
            return i64::MIN;
        }
        let size = self.size.rem_euclid(self.slide);
        let cut = |time: i64| (time - self.offset - size).div_euclid(self.slide);
        (cut(time) + 1) * self.slide + self.offset + size
    }

    /// The value of the window that ends at `end`, if it holds anything; what is in no later one is given up.
    pub(super) fn fire<T, S, G: Settle<Group = G> + Default>(
        &self,
        panes: &mut Panes<S, G>,
        end: i64,
        aggregate: &impl Aggregate<T, State = S>,
    ) -> Option<(Part<S>, G)> {
        let last = self.pane_of(end);
        panes.fire(last, last + (self.slide - self.size) / self.pane, aggregate)
    }

    /// The end of the first window behind that which ends at `end` that holds anything.
    pub(super) fn next_end<S, G: Settle<Group = G> + Default>(
        &self,
        panes: &Panes<S, G>,
        end: i64,
    ) -> Option<i64> {
        let first = panes.first()?;
        Some(self.first_end(self.pane_start(first)).max(end + self.slide))
    }
}
