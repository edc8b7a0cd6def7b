//! What is counted with: counters, gauges and histograms.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::Value;

/// A number that only grows.
#[derive(Debug, Clone, Default)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    /// Counts so many more.
    #[inline]
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }
    /// The count.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
    /// The number for whoever must not keep it.
    pub(crate) fn weak(&self) -> WeakCounter {
        WeakCounter(Arc::downgrade(&self.0))
    }
}

/// A number that somebody else keeps.
#[derive(Debug)]
pub(crate) struct WeakCounter(Weak<AtomicU64>);

impl WeakCounter {
    /// The number, while it is kept.
    pub(crate) fn get(&self) -> Option<Counter> {
        self.0.upgrade().map(Counter)
    }
    /// Whether it is this very number, not an equal one.
    pub(crate) fn is(&self, counter: &Counter) -> bool {
        self.0.as_ptr() == Arc::as_ptr(&counter.0)
    }
}

/// A number that goes up and down.
#[derive(Debug, Clone, Default)]
pub struct Gauge(Arc<AtomicU64>);

impl Gauge {
    /// Sets it.
    #[inline]
    pub fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Ordering::Relaxed);
    }
    /// What it was set to last, 0 at first.
    pub fn value(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }
}

/// Durations, counted by how long they are.
#[derive(Clone)]
pub struct Histogram(Arc<Buckets>);

struct Buckets {
    /// The longest duration of each bucket, in nanoseconds, ascending; one bucket more takes the rest.
    bounds: Box<[u64]>,
    counts: Box<[AtomicU64]>,
    nanoseconds: AtomicU64,
}

impl Histogram {
    /// From 10 µs to 10 s, two or three a decade.
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

    /// From 10 ms to an hour, for what takes long: streams, and calls that are retried.
    pub const LONG_BOUNDS: [Duration; 12] = [
        Duration::from_millis(10),
        Duration::from_millis(100),
        Duration::from_millis(500),
        Duration::from_secs(1),
        Duration::from_secs(5),
        Duration::from_secs(10),
        Duration::from_secs(30),
        Duration::from_secs(60),
        Duration::from_secs(300),
        Duration::from_secs(600),
        Duration::from_secs(1_800),
        Duration::from_secs(3_600),
    ];

    pub(super) fn new(bounds: &[Duration]) -> Self {
        let bounds: Box<[u64]> = bounds.iter().map(|bound| nanoseconds(*bound)).collect();
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Histogram(Arc::new(Buckets { bounds, counts, nanoseconds: AtomicU64::new(0) }))
    }

    /// Counts one duration.
    #[inline]
    pub fn observe(&self, duration: Duration) {
        self.observe_many(duration, 1);
    }

    /// Counts one duration for `count` of which it is a sample.
    #[inline]
    pub fn observe_many(&self, duration: Duration, count: u64) {
        let Buckets { bounds, counts, nanoseconds: sum } = &*self.0;
        let length = nanoseconds(duration);
        let at = bounds.iter().position(|bound| length <= *bound).unwrap_or(bounds.len());
        counts[at].fetch_add(count, Ordering::Relaxed);
        sum.fetch_add(length.saturating_mul(count), Ordering::Relaxed);
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.0.counts.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    pub(super) fn read(&self) -> Value {
        let Buckets { bounds, counts, nanoseconds } = &*self.0;
        let counts = counts.iter().map(|count| count.load(Ordering::Relaxed));
        buckets(bounds, counts, nanoseconds.load(Ordering::Relaxed))
    }
}

/// A histogram's value of what each bucket counts for itself.
pub(super) fn buckets(bounds: &[u64], counts: impl Iterator<Item = u64>, nanoseconds: u64) -> Value {
    let mut total = 0;
    let bounds = bounds.iter().map(|bound| *bound as f64 / 1e9).chain([f64::INFINITY]);
    let buckets = bounds.zip(counts).map(|(bound, count)| {
        total += count;
        (bound, total)
    });
    let buckets = buckets.collect();
    Value::Histogram { buckets, count: total, sum: nanoseconds as f64 / 1e9 }
}

pub(crate) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Histogram").field("count", &self.count()).finish_non_exhaustive()
    }
}
