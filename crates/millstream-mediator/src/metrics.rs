//! Numbers by name: counted where things happen, read when somebody asks.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

mod calls;
mod lanes;
mod numbers;
mod rare;
mod snapshot;
mod source;

pub(crate) use calls::Calls;
use numbers::buckets;
pub use numbers::{Counter, Gauge, Histogram};
pub(crate) use numbers::{WeakCounter, nanoseconds};
pub(crate) use rare::Rare;
pub use snapshot::{Metric, Snapshot, Value};
pub use source::Combine;
use source::{Read, Reads, Source};

/// The most series that one metric shows. Labels are names of registered types and fixed words, and a series for each word is
/// there from its first count on, so that a mediator reaches this only by being very large; how often one was asked for that did
/// not fit, [`Snapshot::omitted`] says.
pub const SERIES_MAX: usize = 500;

/// The numbers of a mediator. Behaviours register theirs when they are made for a type; [`snapshot`](Metrics::snapshot)
/// reads all of them, and prints itself in the text format of Prometheus.
///
/// Clones are the same numbers. `docs/mediator.md` lists the names.
#[derive(Clone, Default)]
pub struct Metrics(Arc<Mutex<Vec<Family>>>);

struct Family {
    name: &'static str,
    help: &'static str,
    kind: MetricKind,
    series: Vec<(Labels, Source)>,
    omitted: u64,
}

/// Names and values of a series' labels.
pub type Labels = Vec<(&'static str, String)>;

type Copied = (&'static str, &'static str, MetricKind, Vec<(Labels, Source)>);

/// What a metric's numbers do over time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by size.
    Histogram,
}

/// Items of a stream that were not delivered, and why: part of what every stream has.
pub(crate) fn stream_dropped(about: &crate::message::About, reason: &str) -> Counter {
    let help = "Items of streams that were not delivered.";
    about.metrics().counter(
        "mediator_stream_dropped_items",
        help,
        &[("type", about.label()), ("reason", reason)],
    )
}

impl Metrics {
    fn families(&self) -> MutexGuard<'_, Vec<Family>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// A counter, or the one that is already there with this name and these labels. Beside numbers that are
    /// [read](Metrics::read) elsewhere and added up it is one more of them.
    pub fn counter(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
    ) -> Counter {
        let make = || Source::Counter(Counter::default());
        self.source(name, help, MetricKind::Counter, labels, make, |source| match source {
            Source::Counter(counter) => Some(counter.clone()),
            Source::Read(Reads { combine: Combine::Sum, counter, .. }) => {
                Some(counter.get_or_insert_default().clone())
            }
            _ => None,
        })
        .unwrap_or_default()
    }

    /// A gauge, or the one that is already there.
    pub fn gauge(&self, name: &'static str, help: &'static str, labels: &[(&'static str, &str)]) -> Gauge {
        let make = || Source::Gauge(Gauge::default());
        self.source(name, help, MetricKind::Gauge, labels, make, |source| match source {
            Source::Gauge(gauge) => Some(gauge.clone()),
            _ => None,
        })
        .unwrap_or_default()
    }

    /// A histogram with these bounds, or the one that is already there.
    pub fn histogram(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
        bounds: &[Duration],
    ) -> Histogram {
        let make = || Source::Histogram(Histogram::new(bounds));
        self.source(name, help, MetricKind::Histogram, labels, make, |source| match source {
            Source::Histogram(histogram) => Some(histogram.clone()),
            _ => None,
        })
        .unwrap_or_else(|| Histogram::new(bounds))
    }

    /// The calls of one type, as a histogram of how long they take.
    pub(crate) fn calls(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
        bounds: &[Duration],
    ) -> Arc<Calls> {
        let make = || Source::Calls(Arc::new(Calls::new(bounds)));
        self.source(name, help, MetricKind::Histogram, labels, make, |source| match source {
            Source::Calls(calls) => Some(calls.clone()),
            _ => None,
        })
        .unwrap_or_else(|| Arc::new(Calls::new(bounds)))
    }

    /// A counter or gauge whose number is kept elsewhere; it takes the place of one that is already there.
    pub fn read(
        &self,
        name: &'static str,
        help: &'static str,
        kind: MetricKind,
        labels: &[(&'static str, &str)],
        read: impl Fn() -> f64 + Send + Sync + 'static,
    ) {
        let read = Source::Read(Reads::new(Combine::Sum, vec![Arc::new(read)]));
        let none = || Source::Gauge(Gauge::default());
        let replaced =
            self.source(name, help, kind, labels, none, |source| Some(std::mem::replace(source, read)));
        drop(replaced); // after the lock: what it reads may do anything when it is dropped
    }

    /// As [`read`](Metrics::read), beside those that are already there, a counter among them if they are added up: they are shown
    /// as one, combined. It is kept as long as the metrics are.
    pub fn read_combined(
        &self,
        name: &'static str,
        help: &'static str,
        kind: MetricKind,
        labels: &[(&'static str, &str)],
        combine: Combine,
        read: impl Fn() -> f64 + Send + Sync + 'static,
    ) {
        let read: Read = Arc::new(read);
        let none = || Source::Read(Reads::new(combine, Vec::new()));
        let replaced = self.source(name, help, kind, labels, none, |source| match source {
            Source::Read(Reads { reads, .. }) => {
                reads.push(read);
                None
            }
            other => {
                let mut reads = Reads::new(combine, vec![read]);
                if let (Source::Counter(counter), Combine::Sum) = (&*other, combine) {
                    reads.counter = Some(counter.clone());
                }
                Some(std::mem::replace(other, Source::Read(reads)))
            }
        });
        drop(replaced);
    }

    fn source<T>(
        &self,
        name: &'static str,
        help: &'static str,
        kind: MetricKind,
        labels: &[(&'static str, &str)],
        make: impl FnOnce() -> Source,
        get: impl FnOnce(&mut Source) -> Option<T>,
    ) -> Option<T> {
        let mut families = self.families();
        let at = match families.iter().position(|family| family.name == name) {
            Some(at) => at,
            None => {
                families.push(Family { name, help, kind, series: Vec::new(), omitted: 0 });
                families.len() - 1
            }
        };
        let family = &mut families[at];
        let same = |(known, _): &(Labels, Source)| {
            known.len() == labels.len()
                && known.iter().zip(labels).all(|(known, label)| known.0 == label.0 && known.1 == label.1)
        };
        if let Some(at) = family.series.iter().position(same) {
            return get(&mut family.series[at].1);
        }
        if family.series.len() == SERIES_MAX {
            family.omitted += 1;
            return None;
        }
        let labels = labels.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        family.series.push((labels, make()));
        family.series.last_mut().and_then(|(_, source)| get(source))
    }

    /// All numbers as they are now.
    pub fn snapshot(&self) -> Snapshot {
        // What is read elsewhere may do anything, also ask for numbers: nobody is held up meanwhile.
        let (families, omitted) = self.copied();
        let mut metrics: Vec<_> = families
            .into_iter()
            .map(|(name, help, kind, series)| {
                let series = series.into_iter().map(|(labels, source)| (labels, source.value())).collect();
                Metric { name, help, kind, series }
            })
            .collect();
        metrics.sort_by_key(|metric| metric.name);
        Snapshot { metrics, omitted }
    }

    fn copied(&self) -> (Vec<Copied>, u64) {
        let families = self.families();
        let copied =
            families.iter().map(|family| (family.name, family.help, family.kind, family.series.clone()));
        (copied.collect(), families.iter().map(|family| family.omitted).sum())
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("metrics", &self.families().len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_what_a_scraper_reads() {
        let metrics = Metrics::default();
        metrics.counter("b_total", "Of b.", &[("type", "a\"\\\n")]).add(2);
        metrics
            .histogram("a_seconds", "Of a.", &[], &[Duration::from_millis(5)])
            .observe(Duration::from_millis(5));
        metrics.histogram("a_seconds", "Of a.", &[], &[]).observe(Duration::from_millis(6));
        metrics.read("c", "Of c.", MetricKind::Gauge, &[], || 0.5);
        let text = metrics.snapshot().to_string();
        assert_eq!(
            text,
            "# HELP a_seconds Of a.\n# TYPE a_seconds histogram\n\
             a_seconds_bucket{le=\"0.005\"} 1\na_seconds_bucket{le=\"+Inf\"} 2\na_seconds_sum 0.011\na_seconds_count 2\n\
             # HELP b_total Of b.\n# TYPE b_total counter\nb_total{type=\"a\\\"\\\\\\n\"} 2\n\
             # HELP c Of c.\n# TYPE c gauge\nc 0.5\n\
             # HELP mediator_metrics_series_omitted How often a series was asked for that did not fit.\n\
             # TYPE mediator_metrics_series_omitted gauge\nmediator_metrics_series_omitted 0\n"
        );
    }

    #[test]
    fn series_beyond_the_bound_are_counted_instead_of_shown() {
        let metrics = Metrics::default();
        for n in 0..SERIES_MAX + 3 {
            metrics.counter("a", "Of a.", &[("n", &n.to_string())]).add(1);
        }
        let snapshot = metrics.snapshot();
        assert_eq!((snapshot.metrics[0].series.len(), snapshot.omitted), (SERIES_MAX, 3));
    }
}
