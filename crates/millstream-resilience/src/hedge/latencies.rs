//! How long the latest calls took, in little space.

use std::time::Duration;

/// A histogram of the latest one to two thousand times, whose classes are an eighth wide (as in HdrHistogram, with fewer digits). When
/// it holds twice as many as it needs, all counts are halved, so that what was long ago fades.
#[derive(Debug)]
pub(super) struct Latencies {
    /// By the position of the highest bit of the microseconds, and the three bits after it.
    counts: [u16; CLASSES],
    total: u32,
}

const CLASSES: usize = 8 * 40;
const TOTAL_MAX: u32 = 2048;
/// Before there are so many, nothing is known.
const TOTAL_MIN: u32 = 20;

impl Default for Latencies {
    fn default() -> Self {
        Latencies { counts: [0; CLASSES], total: 0 }
    }
}

fn class(time: Duration) -> usize {
    let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    if micros < 8 {
        return micros as usize;
    }
    let shift = micros.ilog2() - 3;
    let class = 8 * (shift as usize + 1) + (micros >> shift) as usize - 8;
    class.min(CLASSES - 1)
}

/// The longest time of a class.
fn longest(class: usize) -> Duration {
    let (group, part) = (class / 8, class as u64 % 8);
    let micros = if group == 0 { part + 1 } else { (8 + part + 1) << (group - 1) };
    Duration::from_micros(micros)
}

impl Latencies {
    pub(super) fn add(&mut self, time: Duration) {
        self.counts[class(time)] += 1;
        self.total += 1;
        if self.total == TOTAL_MAX {
            self.counts.iter_mut().for_each(|count| *count /= 2);
            self.total = self.counts.iter().map(|count| u32::from(*count)).sum();
        }
    }

    /// The time within which this part of them ended, or up to an eighth more.
    pub(super) fn quantile(&self, part: f64) -> Option<Duration> {
        if self.total < TOTAL_MIN {
            return None;
        }
        let mut wanted = (part * f64::from(self.total)).ceil() as u32;
        let class = self.counts.iter().position(|&count| {
            wanted = wanted.saturating_sub(u32::from(count));
            wanted == 0
        });
        class.map(longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_is_in_a_class_that_is_at_most_an_eighth_longer() {
        for micros in (0..5000).chain((0..35).map(|n| 1 << n)).chain((1..35).map(|n| (1 << n) - 1)) {
            let (time, limit) =
                (Duration::from_micros(micros), longest(class(Duration::from_micros(micros))));
            assert!(time < limit, "{time:?} {limit:?}");
            assert!(limit <= time.mul_f64(1.125) + Duration::from_micros(1), "{time:?} {limit:?}");
        }
        assert_eq!(class(Duration::MAX), CLASSES - 1);
    }

    #[test]
    fn quantiles_follow_the_latest_times() {
        let mut latencies = Latencies::default();
        let ms = Duration::from_millis;
        (0..19).for_each(|_| latencies.add(ms(10)));
        assert_eq!(latencies.quantile(0.95), None, "too few");
        (0..981).for_each(|n| latencies.add(ms(if n % 10 == 0 { 1000 } else { 10 })));
        let median = latencies.quantile(0.5).unwrap();
        assert!(ms(10) < median && median < ms(12), "{median:?}");
        assert!(latencies.quantile(0.95).unwrap() > ms(1000));
        (0..20_000).for_each(|_| latencies.add(ms(100)));
        let median = latencies.quantile(0.01).unwrap();
        assert!(ms(100) < median && median < ms(113), "{median:?}");
    }
}
