//! What is measured: cases, their contestants, and the goals between them.

use std::collections::BTreeMap;
use std::time::Duration;

/// How much work is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scale {
    /// So few items that callgrind counts their instructions in seconds.
    Tiny,
    /// Four times as many.
    Small,
    /// A tenth.
    Quick,
    /// What the table of `README.md` was made with.
    Default,
    /// The sizes of the goals.
    Full,
}

impl Scale {
    pub(crate) const ALL: [(&'static str, Scale); 5] = [
        ("tiny", Scale::Tiny),
        ("small", Scale::Small),
        ("quick", Scale::Quick),
        ("default", Scale::Default),
        ("full", Scale::Full),
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Scale::Tiny => "tiny",
            Scale::Small => "small",
            Scale::Quick => "quick",
            Scale::Default => "default",
            Scale::Full => "full",
        }
    }

    /// `count` items of work, or a part of it.
    pub(crate) fn of(self, count: u64) -> u64 {
        let part = match self {
            Scale::Tiny => count / 1000,
            Scale::Small => count / 250,
            Scale::Quick => count / 10,
            Scale::Default | Scale::Full => count,
        };
        part.max(1)
    }
}

/// What one measurement found, by the name of the metric.
#[derive(Debug, Default)]
pub(crate) struct Sample(pub(crate) BTreeMap<String, f64>);

impl Sample {
    pub(crate) fn new() -> Self {
        Sample::default()
    }

    /// Nanoseconds an item, as metric `ns`.
    ///
    /// # Panics
    /// If `checksum` is not what `items` items sum up to: the contestant has not done the work.
    pub(crate) fn per_item(elapsed: Duration, items: u64, checksum: u64, expected: u64) -> Self {
        assert_eq!(
            checksum, expected,
            "the checksum of {items} items is wrong: not all of the work was done"
        );
        Sample::new().with(NS, elapsed.as_secs_f64() * 1e9 / items as f64).with(ITEMS, items as f64)
    }

    pub(crate) fn with(mut self, metric: &str, value: f64) -> Self {
        self.0.insert(metric.to_owned(), value);
        self
    }
}

/// The metric of most cases: nanoseconds an item.
pub(crate) const NS: &str = "ns";
/// How many items that was measured with.
pub(crate) const ITEMS: &str = "items";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// What the machine can do without any library.
    Floor,
    /// Another library.
    Peer,
    /// Millstream.
    Ours,
}

/// Why a contestant cannot be measured here, in words for the reader.
pub(crate) type Absent = String;

pub(crate) struct Contestant {
    pub(crate) name: &'static str,
    pub(crate) role: Role,
    pub(crate) run: Box<dyn Fn(Scale) -> Result<Sample, Absent>>,
}

/// What is compared.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Bound {
    /// Ours ÷ other must not exceed this: costs.
    TimesAtMost(f64, &'static str),
    /// Other ÷ ours must reach this: how many times cheaper.
    TimesFaster(f64, &'static str),
    /// Ours ÷ other must reach this: rates.
    RateOf(f64, &'static str),
    /// Ours must not exceed this value.
    AtMost(f64),
    /// Ours must reach this value.
    AtLeast(f64),
}

impl Bound {
    /// Whose figure ours is compared with.
    pub(crate) fn other(self) -> Option<&'static str> {
        match self {
            Bound::TimesAtMost(_, other) | Bound::TimesFaster(_, other) | Bound::RateOf(_, other) => {
                Some(other)
            }
            Bound::AtMost(_) | Bound::AtLeast(_) => None,
        }
    }

    /// The figure to judge, from ours and the other's value.
    pub(crate) fn figure(self, ours: f64, other: f64) -> f64 {
        match self {
            Bound::TimesAtMost(..) | Bound::RateOf(..) => ours / other,
            Bound::TimesFaster(..) => other / ours,
            Bound::AtMost(_) | Bound::AtLeast(_) => ours,
        }
    }

    pub(crate) fn is_met(self, figure: f64) -> bool {
        match self {
            Bound::TimesAtMost(limit, _) | Bound::AtMost(limit) => figure <= limit,
            Bound::TimesFaster(limit, _) | Bound::RateOf(limit, _) | Bound::AtLeast(limit) => figure >= limit,
        }
    }
}

/// One line of the table: a bound on the first of our contestants.
pub(crate) struct Goal {
    pub(crate) metric: &'static str,
    pub(crate) bound: Bound,
    /// The same goal as `goals.md` states it, if it does so in other terms.
    pub(crate) note: &'static str,
}

pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) contestants: Vec<Contestant>,
    pub(crate) goals: Vec<Goal>,
    /// What the reader must know to read the lines.
    pub(crate) remark: &'static str,
}

impl Case {
    pub(crate) fn new(name: &'static str) -> Self {
        Case { name, contestants: Vec::new(), goals: Vec::new(), remark: "" }
    }

    fn contestant<R: IntoSample>(
        mut self,
        role: Role,
        name: &'static str,
        run: impl Fn(Scale) -> R + 'static,
    ) -> Self {
        let run = Box::new(move |scale| run(scale).into_sample());
        self.contestants.push(Contestant { name, role, run });
        self
    }

    pub(crate) fn floor<R: IntoSample>(self, name: &'static str, run: impl Fn(Scale) -> R + 'static) -> Self {
        self.contestant(Role::Floor, name, run)
    }

    pub(crate) fn peer<R: IntoSample>(self, name: &'static str, run: impl Fn(Scale) -> R + 'static) -> Self {
        self.contestant(Role::Peer, name, run)
    }

    pub(crate) fn ours<R: IntoSample>(self, name: &'static str, run: impl Fn(Scale) -> R + 'static) -> Self {
        self.contestant(Role::Ours, name, run)
    }

    /// A goal for nanoseconds an item.
    pub(crate) fn goal(self, bound: Bound, note: &'static str) -> Self {
        self.goal_on(NS, bound, note)
    }

    pub(crate) fn goal_on(mut self, metric: &'static str, bound: Bound, note: &'static str) -> Self {
        self.goals.push(Goal { metric, bound, note });
        self
    }

    pub(crate) fn remark(mut self, remark: &'static str) -> Self {
        self.remark = remark;
        self
    }
}

/// What a contestant may answer with: a sample, or why there is none here.
pub(crate) trait IntoSample {
    fn into_sample(self) -> Result<Sample, Absent>;
}

impl IntoSample for Sample {
    fn into_sample(self) -> Result<Sample, Absent> {
        Ok(self)
    }
}

impl IntoSample for Result<Sample, Absent> {
    fn into_sample(self) -> Result<Sample, Absent> {
        self
    }
}
