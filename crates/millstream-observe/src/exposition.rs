//! The Prometheus text format (version 0.0.4), with labels that are types.

use std::fmt::Write;
use std::marker::PhantomData;
use std::time::Duration;

/// The most series one metric shows. What a pipeline names is bounded by its file; this bound holds even where
/// a program makes names from data. How many series did not fit is itself shown, see
/// [`Exposition::finish`].
pub const SERIES_MAX: usize = 500;

/// A set of labels: a type, so that a metric cannot be shown with the labels of another.
///
/// ```
/// use millstream_observe::{Exposition, Labels, Metric, Value};
///
/// struct ByColour<'a>(&'a str);
/// impl Labels for ByColour<'_> {
///     const NAMES: &'static [&'static str] = &["colour"];
///     fn values(&self) -> Vec<&str> { vec![self.0] }
/// }
///
/// const MARBLES: Metric<ByColour<'static>> = Metric::gauge("marbles", "Marbles in the bag.");
///
/// let mut exposition = Exposition::default();
/// exposition.show(&MARBLES, [(ByColour("red"), Value::Count(3))]);
/// assert!(exposition.finish().starts_with(
///     "# HELP marbles Marbles in the bag.\n# TYPE marbles gauge\nmarbles{colour=\"red\"} 3\n"
/// ));
/// ```
pub trait Labels {
    /// The names, in the order of [`Labels::values`].
    const NAMES: &'static [&'static str];
    /// The values, one for each name.
    fn values(&self) -> Vec<&str>;
}

/// Defines a set of labels, a name and a value each.
///
/// ```
/// use millstream_observe::{Exposition, Metric, Value, labels};
///
/// labels!(/** Labels of marbles. */ ByColour: colour, size);
/// const MARBLES: Metric<ByColour<'static>> = Metric::gauge("marbles", "Marbles in the bag.");
///
/// let mut exposition = Exposition::default();
/// exposition.show(&MARBLES, [(ByColour { colour: "red", size: "small" }, Value::Count(3))]);
/// assert!(exposition.finish().contains("\nmarbles{colour=\"red\",size=\"small\"} 3\n"));
/// ```
#[macro_export]
macro_rules! labels {
    ($(#[$doc:meta])* $name:ident: $($label:ident),+) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $name<'a> {
            $(#[doc = concat!("The label `", stringify!($label), "`.")] pub $label: &'a str),+
        }
        impl $crate::Labels for $name<'_> {
            const NAMES: &'static [&'static str] = &[$(stringify!($label)),+];
            fn values(&self) -> Vec<&str> {
                vec![$(self.$label),+]
            }
        }
    };
}

/// Defines metrics whose names begin alike, and `NAMES`, a list of them all.
///
/// ```
/// millstream_observe::metrics! { "bag_":
///     MARBLES: () = gauge "marbles" "Marbles in the bag.";
///     TAKEN: () = counter "taken_total" "Marbles that were taken out.";
/// }
/// assert_eq!((MARBLES.name, NAMES), ("bag_marbles", &["bag_marbles", "bag_taken_total"][..]));
/// ```
#[macro_export]
macro_rules! metrics {
    ($prefix:literal: $($const:ident: $labels:ty = $kind:ident $name:literal $help:literal;)+) => {
        $(#[doc = $help] pub const $const: $crate::Metric<$labels> =
            $crate::Metric::$kind(concat!($prefix, $name), $help);)+
        /// The names of all metrics.
        pub const NAMES: &[&str] = &[$(concat!($prefix, $name)),+];
    };
}

/// No labels.
impl Labels for () {
    const NAMES: &'static [&'static str] = &[];
    fn values(&self) -> Vec<&str> {
        Vec::new()
    }
}

/// What a metric's numbers do over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, except when the process starts anew.
    Counter,
    /// Goes up and down.
    Gauge,
    /// How many of what was measured were not larger than each bound, shown with [`Exposition::show_durations`].
    Histogram,
}

/// A metric: its name, its kind, what it means, and by its type which labels it has.
#[derive(Debug)]
pub struct Metric<L> {
    /// The name, with its unit, as in `_bytes`, `_seconds`; a counter ends with `_total`.
    pub name: &'static str,
    /// Counter, gauge or histogram.
    pub kind: Kind,
    /// What it means, in a sentence.
    pub help: &'static str,
    labels: PhantomData<fn(L)>,
}

impl<L: Labels> Metric<L> {
    /// A metric that only grows.
    pub const fn counter(name: &'static str, help: &'static str) -> Self {
        Metric { name, kind: Kind::Counter, help, labels: PhantomData }
    }

    /// A metric that goes up and down.
    pub const fn gauge(name: &'static str, help: &'static str) -> Self {
        Metric { name, kind: Kind::Gauge, help, labels: PhantomData }
    }

    /// Durations by how long they are; the name ends with `_seconds`.
    pub const fn histogram(name: &'static str, help: &'static str) -> Self {
        Metric { name, kind: Kind::Histogram, help, labels: PhantomData }
    }
}

/// A number, as it is written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// A whole number, written exactly.
    Count(u64),
    /// A measured one.
    Number(f64),
}

/// Durations of something, counted by how long they were: one series of a histogram.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Durations<'a> {
    /// The longest duration of each bucket, ascending.
    pub bounds: &'a [Duration],
    /// How many are in each bucket, not summed up; those beyond the last bound stand after the others.
    pub counts: &'a [u64],
    /// All of them together.
    pub sum: Duration,
}

/// An exposition being written.
#[derive(Debug, Default)]
pub struct Exposition {
    text: String,
    omitted: u64,
}

impl Exposition {
    /// Shows one metric with a value for each set of labels. A metric without series is not shown at all, and
    /// beyond [`SERIES_MAX`] series the rest are counted instead of shown.
    pub fn show<L, M>(&mut self, metric: &Metric<M>, series: impl IntoIterator<Item = (L, Value)>)
    where
        L: Labels,
        M: Labels,
    {
        // `M` is the metric's label type with any lifetime, `L` the same type with that of the values.
        const { assert!(L::NAMES.len() == M::NAMES.len()) };
        let mut series = series.into_iter();
        let mut shown = 0;
        for (labels, value) in series.by_ref() {
            if shown == 0 {
                self.head(metric.name, metric.kind, metric.help);
            }
            self.sample(metric.name, L::NAMES, &labels.values(), value);
            shown += 1;
            if shown == SERIES_MAX {
                break;
            }
        }
        self.omitted += series.count() as u64;
    }

    /// Shows a histogram with its buckets for each set of labels; [`SERIES_MAX`] bounds the sets.
    ///
    /// ```
    /// use std::time::Duration;
    /// use millstream_observe::{Durations, Exposition, Metric};
    ///
    /// const WAITS: Metric<()> = Metric::histogram("wait_seconds", "Waits.");
    /// let mut exposition = Exposition::default();
    /// let bounds = &[Duration::from_millis(500)];
    /// exposition.show_durations(&WAITS, [((), Durations { bounds, counts: &[2, 1], sum: Duration::from_secs(3) })]);
    /// assert!(exposition.finish().starts_with(
    ///     "# HELP wait_seconds Waits.\n# TYPE wait_seconds histogram\n\
    ///      wait_seconds_bucket{le=\"0.5\"} 2\nwait_seconds_bucket{le=\"+Inf\"} 3\n\
    ///      wait_seconds_sum 3\nwait_seconds_count 3\n"
    /// ));
    /// ```
    pub fn show_durations<'a, L, M>(
        &mut self,
        metric: &Metric<M>,
        series: impl IntoIterator<Item = (L, Durations<'a>)>,
    ) where
        L: Labels,
        M: Labels,
    {
        const { assert!(L::NAMES.len() == M::NAMES.len()) };
        let names = [L::NAMES, &["le"]].concat();
        let [bucket, sum, count] = ["bucket", "sum", "count"].map(|part| format!("{}_{part}", metric.name));
        let mut series = series.into_iter();
        for (shown, (labels, durations)) in series.by_ref().take(SERIES_MAX).enumerate() {
            if shown == 0 {
                self.head(metric.name, metric.kind, metric.help);
            }
            let labels = labels.values();
            let mut total = 0;
            let bounds = durations.bounds.iter().map(|bound| bound.as_secs_f64().to_string());
            let bounds = bounds.chain(std::iter::once("+Inf".to_owned()));
            for (bound, held) in bounds.zip(durations.counts) {
                total += held;
                self.sample(&bucket, &names, &[&labels[..], &[&bound]].concat(), Value::Count(total));
            }
            self.sample(&sum, L::NAMES, &labels, Value::Number(durations.sum.as_secs_f64()));
            self.sample(&count, L::NAMES, &labels, Value::Count(total));
        }
        self.omitted += series.count() as u64;
    }

    /// The text, closed by `millstream_metrics_series_omitted`.
    pub fn finish(mut self) -> String {
        let omitted = self.omitted;
        self.show(&crate::metrics::SERIES_OMITTED, [((), Value::Count(omitted))]);
        self.text
    }

    fn head(&mut self, name: &str, kind: Kind, help: &str) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, names: &[&str], values: &[&str], value: Value) {
        self.text.push_str(name);
        for (at, (label, value)) in names.iter().zip(values).enumerate() {
            self.text.push(if at == 0 { '{' } else { ',' });
            self.text.push_str(label);
            self.text.push_str("=\"");
            for character in value.chars() {
                match character {
                    '\\' => self.text.push_str("\\\\"),
                    '"' => self.text.push_str("\\\""),
                    '\n' => self.text.push_str("\\n"),
                    other => self.text.push(other),
                }
            }
            self.text.push('"');
        }
        if !names.is_empty() {
            self.text.push('}');
        }
        let _ = match value {
            Value::Count(number) => writeln!(self.text, " {number}"),
            Value::Number(number) => writeln!(self.text, " {number}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct ByName(String);
    impl Labels for ByName {
        const NAMES: &'static [&'static str] = &["name"];
        fn values(&self) -> Vec<&str> {
            vec![&self.0]
        }
    }

    const METRIC: Metric<ByName> = Metric::counter("things_total", "Things\nand \\ others.");

    #[test]
    fn hostile_label_values_stay_inside_their_quotes() {
        let mut exposition = Exposition::default();
        exposition.show(&METRIC, [(ByName("a\"} 7\n# \\".into()), Value::Count(1))]);
        let text = exposition.finish();
        assert!(text.contains("things_total{name=\"a\\\"} 7\\n# \\\\\"} 1\n"), "{text}");
        assert!(text.contains("# HELP things_total Things\\nand \\\\ others.\n"), "{text}");
    }

    #[test]
    fn series_beyond_the_bound_are_counted_instead_of_shown() {
        let mut exposition = Exposition::default();
        let series = (0..SERIES_MAX + 3).map(|n| (ByName(n.to_string()), Value::Count(1)));
        exposition.show(&METRIC, series);
        let text = exposition.finish();
        assert_eq!(text.lines().filter(|line| line.starts_with("things_total{")).count(), SERIES_MAX);
        assert!(text.ends_with("millstream_metrics_series_omitted 3\n"), "{text}");
    }

    #[test]
    fn a_metric_without_series_has_no_heading_either() {
        let mut exposition = Exposition::default();
        exposition.show(&METRIC, Vec::<(ByName, Value)>::new());
        assert!(!exposition.finish().contains("things"));
    }
}
