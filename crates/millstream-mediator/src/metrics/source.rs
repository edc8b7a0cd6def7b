//! Numbers that are kept here, and those that are read elsewhere.

use std::sync::Arc;

use super::{Calls, Counter, Gauge, Histogram, Value};

/// Where a series' number is.
#[derive(Clone)]
pub(super) enum Source {
    Counter(Counter),
    Gauge(Gauge),
    Histogram(Histogram),
    Calls(Arc<Calls>),
    Read(Reads),
}

pub(super) type Read = Arc<dyn Fn() -> f64 + Send + Sync>;

/// Numbers that are read elsewhere and shown as one.
#[derive(Clone)]
pub(super) struct Reads {
    pub(super) combine: Combine,
    pub(super) reads: Vec<Read>,
    /// What is counted beside a sum of them.
    pub(super) counter: Option<Counter>,
}

impl Reads {
    pub(super) fn new(combine: Combine, reads: Vec<Read>) -> Self {
        Reads { combine, reads, counter: None }
    }

    fn all(&self) -> f64 {
        let numbers = self.reads.iter().map(|read| read());
        let counted = self.counter.iter().map(|counter| counter.value() as f64);
        self.combine.all(numbers.chain(counted))
    }
}

impl Source {
    pub(super) fn value(&self) -> Value {
        match self {
            Source::Counter(counter) => Value::Number(counter.value() as f64),
            Source::Gauge(gauge) => Value::Number(gauge.value()),
            Source::Read(reads) => Value::Number(reads.all()),
            Source::Histogram(histogram) => histogram.read(),
            Source::Calls(calls) => calls.read(),
        }
    }
}

/// What several numbers of the same name and labels show as one: of two breakers around one handler, for example.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Combine {
    /// All of them together.
    Sum,
    /// The smallest.
    Least,
    /// The largest.
    Most,
}

impl Combine {
    fn all(self, numbers: impl Iterator<Item = f64>) -> f64 {
        match self {
            Combine::Sum => numbers.sum(),
            Combine::Least => numbers.reduce(f64::min).unwrap_or(0.0),
            Combine::Most => numbers.reduce(f64::max).unwrap_or(0.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{MetricKind, Metrics};

    #[test]
    fn what_is_read_may_ask_for_numbers_itself() {
        let metrics = Metrics::default();
        let asked = Arc::downgrade(&metrics.0);
        metrics.read("a", "Of a.", MetricKind::Gauge, &[], move || {
            Metrics(asked.upgrade().unwrap()).counter("b", "Of b.", &[]).add(1);
            7.0
        });
        assert_eq!(metrics.snapshot().number("a", &[]), Some(7.0));
        assert_eq!(metrics.snapshot().number("b", &[]), Some(2.0), "one for each");
    }

    #[test]
    fn several_of_one_name_are_combined() {
        let metrics = Metrics::default();
        let numbers =
            [("sum", Combine::Sum, 5.0), ("least", Combine::Least, 2.0), ("most", Combine::Most, 3.0)];
        for (name, combine, both) in numbers {
            for number in [2.0, 3.0] {
                metrics.read_combined(name, "Of it.", MetricKind::Gauge, &[], combine, move || number);
            }
            assert_eq!(metrics.snapshot().number(name, &[]), Some(both), "{name}");
        }
        metrics.read("sum", "Of it.", MetricKind::Gauge, &[], || 1.0);
        assert_eq!(metrics.snapshot().number("sum", &[]), Some(1.0), "it takes the place of all");
    }

    #[test]
    fn what_is_counted_and_what_is_read_of_one_name_are_added_whichever_comes_first() {
        for counted_first in [true, false] {
            let metrics = Metrics::default();
            let count = || metrics.counter("sum", "Of it.", &[]).add(1);
            let read = |number: f64| {
                let kind = MetricKind::Counter;
                metrics.read_combined("sum", "Of it.", kind, &[], Combine::Sum, move || number);
            };
            if counted_first {
                count();
            }
            read(2.0);
            count();
            read(3.0);
            count();
            let counted = if counted_first { 3.0 } else { 2.0 };
            assert_eq!(metrics.snapshot().number("sum", &[]), Some(5.0 + counted), "{counted_first}");
        }
    }
}
