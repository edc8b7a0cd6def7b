//! Counters of what seldom happens.

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, Weak};

use super::{Counter, Family, Metrics};

/// Counters that differ in one label, whose values are known: each is shown from its first count on, so that kinds of failures
/// which never happen cost no series.
#[derive(Clone)]
pub(crate) struct Rare<const N: usize> {
    /// Not an owner: what the metrics read may hold these.
    metrics: Weak<Mutex<Vec<Family>>>,
    name: &'static str,
    help: &'static str,
    labels: Vec<(&'static str, String)>,
    label: &'static str,
    words: [&'static str; N],
    counters: [OnceLock<Counter>; N],
}

impl<const N: usize> fmt::Debug for Rare<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rare").field("name", &self.name).field("words", &self.words).finish_non_exhaustive()
    }
}

impl<const N: usize> Default for Rare<N> {
    fn default() -> Self {
        let counters = [const { OnceLock::new() }; N];
        Rare {
            metrics: Weak::new(),
            name: "",
            help: "",
            labels: Vec::new(),
            label: "",
            words: [""; N],
            counters,
        }
    }
}

impl<const N: usize> Rare<N> {
    /// Counts for the `at`th word.
    #[cold]
    pub(crate) fn add(&self, at: usize, count: u64) {
        self.counters[at].get_or_init(|| self.register(at)).add(count);
    }

    fn register(&self, at: usize) -> Counter {
        let Some(metrics) = self.metrics.upgrade() else { return Counter::default() };
        let value = |(name, value): &(&'static str, String)| -> (&'static str, String) {
            let value = if *name == self.label { self.words[at].to_owned() } else { value.clone() };
            (name, value)
        };
        let labels: Vec<_> = self.labels.iter().map(value).collect();
        let labels: Vec<_> = labels.iter().map(|(name, value)| (*name, &**value)).collect();
        Metrics(metrics).counter(self.name, self.help, &labels)
    }
}

impl Metrics {
    /// A counter for each of these words, which is the value of `label`; what stands there in `labels` says only its place.
    pub(crate) fn rare<const N: usize>(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
        label: &'static str,
        words: [&'static str; N],
    ) -> Rare<N> {
        debug_assert!(labels.iter().any(|(name, _)| *name == label), "{label} has no place in {name}");
        let labels = labels.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        let metrics = Arc::downgrade(&self.0);
        Rare { metrics, name, help, labels, label, words, counters: [const { OnceLock::new() }; N] }
    }
}
