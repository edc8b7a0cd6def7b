//! All numbers at one moment, and their text.

use std::fmt;

use super::{Labels, MetricKind};

/// All numbers at one moment. It prints itself in the text format of Prometheus, version 0.0.4.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// By name, in its order.
    pub metrics: Vec<Metric>,
    /// How often a series was asked for that did not fit: see [`SERIES_MAX`](super::SERIES_MAX).
    pub omitted: u64,
}

/// One metric at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// What it means, in a sentence.
    pub help: &'static str,
    /// What its numbers do over time.
    pub kind: MetricKind,
    /// A value for each set of labels.
    pub series: Vec<(Labels, Value)>,
}

/// What a series shows.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A counter's or a gauge's number.
    Number(f64),
    /// A histogram's buckets, each with its bound in seconds and how many were not longer; how many there were, and their
    /// sum in seconds.
    Histogram {
        /// The bounds and the counts up to them; the last bound is infinite.
        buckets: Vec<(f64, u64)>,
        /// All of them.
        count: u64,
        /// Their sum in seconds.
        sum: f64,
    },
}

impl Snapshot {
    /// The number of a series: of a metric, and of labels of which these are a part; a histogram's is its count. The sum, if
    /// there are several. `None` if there is none.
    pub fn number(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let metric = self.metrics.iter().find(|metric| metric.name == name)?;
        let fits =
            |known: &Labels| labels.iter().all(|(n, v)| known.iter().any(|(kn, kv)| kn == n && kv == v));
        let numbers = metric.series.iter().filter(|(known, _)| fits(known)).map(|(_, value)| match value {
            Value::Number(number) => *number,
            Value::Histogram { count, .. } => *count as f64,
        });
        numbers.fold(None, |sum, number| Some(sum.unwrap_or(0.0) + number))
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Metric { name, help, kind, series } in &self.metrics {
            if series.is_empty() {
                continue;
            }
            let kind = match kind {
                MetricKind::Counter => "counter",
                MetricKind::Gauge => "gauge",
                MetricKind::Histogram => "histogram",
            };
            writeln!(f, "# HELP {name} {help}\n# TYPE {name} {kind}")?;
            for (labels, value) in series {
                match value {
                    Value::Number(number) => sample(f, name, "", labels, None, *number)?,
                    Value::Histogram { buckets, count, sum } => {
                        for (bound, count) in buckets {
                            sample(f, name, "_bucket", labels, Some(*bound), *count as f64)?;
                        }
                        sample(f, name, "_sum", labels, None, *sum)?;
                        sample(f, name, "_count", labels, None, *count as f64)?;
                    }
                }
            }
        }
        writeln!(
            f,
            "# HELP mediator_metrics_series_omitted How often a series was asked for that did not fit."
        )?;
        writeln!(f, "# TYPE mediator_metrics_series_omitted gauge")?;
        writeln!(f, "mediator_metrics_series_omitted {}", self.omitted)
    }
}

fn sample(
    f: &mut fmt::Formatter<'_>,
    name: &str,
    suffix: &str,
    labels: &Labels,
    bound: Option<f64>,
    value: f64,
) -> fmt::Result {
    write!(f, "{name}{suffix}")?;
    let mut open = '{';
    for (name, value) in labels {
        write!(f, "{open}{name}=\"")?;
        for c in value.chars() {
            match c {
                '\\' => f.write_str("\\\\")?,
                '"' => f.write_str("\\\"")?,
                '\n' => f.write_str("\\n")?,
                c => write!(f, "{c}")?,
            }
        }
        f.write_str("\"")?;
        open = ',';
    }
    match bound {
        Some(bound) if bound.is_infinite() => write!(f, "{open}le=\"+Inf\"")?,
        Some(bound) => write!(f, "{open}le=\"{bound}\"")?,
        None => {}
    }
    if open == ',' || bound.is_some() {
        f.write_str("}")?;
    }
    writeln!(f, " {value}")
}
