//! How long confirms take.

use std::time::Duration;

use crate::confirms::Entry;

/// How long batches took from when they were handed to the connection to when it was known what became of all their messages,
/// counted by how long that was: a histogram of the shape that Prometheus asks for.
///
/// What waited for a connection counts with its waiting, and what was sent again from when it was handed over first. Batches
/// that were given up (`confirm_timeout`, a handle that was closed) do not count, and neither do those of which nothing was left
/// to be confirmed. The waiting of publishers for room in the window comes before, and does not count either.
///
/// The clock is not read for each batch: all that are handed over between two turns of the connection's task count from the first
/// of them, so what is said is up to such a turn too long.
///
/// ```
/// use millstream_observe::{Durations, Exposition, Metric};
/// use millstream_rabbitmq::{ConfirmLatency, Statistics};
///
/// const CONFIRMS: Metric<()> = Metric::histogram("confirm_seconds", "How long confirms took.");
/// fn show(figures: &Statistics, exposition: &mut Exposition) {
///     let ConfirmLatency { counts, sum, .. } = &figures.confirm_latency;
///     let durations = Durations { bounds: &ConfirmLatency::BOUNDS, counts, sum: *sum };
///     exposition.show_durations(&CONFIRMS, [((), durations)]);
/// }
/// # let mut exposition = Exposition::default();
/// # show(&Statistics::default(), &mut exposition);
/// # let text = exposition.finish();
/// # assert!(text.contains("confirm_seconds_bucket{le=\"0.01\"} 0\n"), "{text}");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConfirmLatency {
    /// How many batches took no longer than each of [`BOUNDS`](Self::BOUNDS), and longer than the one before; those that took
    /// longer than all of them come last.
    pub counts: [u64; ConfirmLatency::BOUNDS.len() + 1],
    /// All of them together.
    pub sum: Duration,
}

impl ConfirmLatency {
    /// The longest time of each bucket: from 10 µs to 10 s, two or three a decade, like those of the mediator's metrics.
    pub const BOUNDS: [Duration; 14] = [
        Duration::from_micros(10),
        Duration::from_micros(50),
        Duration::from_micros(100),
        Duration::from_micros(500),
        Duration::from_millis(1),
        Duration::from_micros(2_500),
        Duration::from_millis(5),
        Duration::from_millis(10),
        Duration::from_millis(50),
        Duration::from_millis(100),
        Duration::from_millis(500),
        Duration::from_secs(1),
        Duration::from_secs(5),
        Duration::from_secs(10),
    ];

    /// How many batches were counted.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Counts batches of which all is known now.
    pub(super) fn at(&mut self, now: Duration) -> Timing<'_> {
        Timing { latency: self, now, handed: Duration::ZERO, batches: 0 }
    }

    /// Counts batches that took this long.
    pub(crate) fn add(&mut self, time: Duration, batches: u32) {
        let at = Self::BOUNDS.iter().position(|bound| time <= *bound).unwrap_or(Self::BOUNDS.len());
        self.counts[at] += u64::from(batches);
        self.sum = self.sum.saturating_add(time.saturating_mul(batches));
    }
}

/// Batches of one read. Those that were handed over at the same time, as many are, cost one addition each.
pub(super) struct Timing<'a> {
    latency: &'a mut ConfirmLatency,
    now: Duration,
    handed: Duration,
    batches: u32,
}

impl Timing<'_> {
    #[inline]
    pub(super) fn add(&mut self, entry: &Entry) {
        if entry.handed != self.handed {
            self.flush();
            self.handed = entry.handed;
        }
        self.batches += u32::from(!entry.publishes().is_empty());
    }

    fn flush(&mut self) {
        if self.batches > 0 {
            self.latency.add(self.now.saturating_sub(self.handed), self.batches);
            self.batches = 0;
        }
    }
}

impl Drop for Timing<'_> {
    fn drop(&mut self) {
        self.flush();
    }
}
