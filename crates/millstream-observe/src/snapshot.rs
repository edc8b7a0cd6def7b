//! A run at one moment, as plain data.

use std::time::Duration;

use serde::Serialize;

/// Everything that is shown of a process, taken at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Its runs.
    pub runs: Vec<RunSnapshot>,
    /// The brokers in other processes that it is connected with.
    pub brokers: Vec<BrokerSnapshot>,
}

impl From<Vec<RunSnapshot>> for Snapshot {
    fn from(runs: Vec<RunSnapshot>) -> Self {
        Snapshot { runs, brokers: Vec::new() }
    }
}

/// What goes on between this process and a broker in another, since it was opened.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BrokerSnapshot {
    /// Its address, without a password; the label `broker` of its metrics.
    pub broker: String,
    /// Whether it has no connection though it should have one: what needs it waits.
    pub away: bool,
    /// Why it takes nothing for now, in its words: it is short of memory or disk.
    pub blocked: Option<String>,
    /// Connections that are there now.
    pub connections: u64,
    /// How often a connection was made.
    pub connects: u64,
    /// How often one was tried in vain.
    pub failed_connects: u64,
    /// Bytes that came.
    pub bytes_in: u64,
    /// Bytes that went.
    pub bytes_out: u64,
    /// Messages handed over to be published.
    pub published: u64,
    /// Those of them of which it is not known yet what became.
    pub unconfirmed: u64,
    /// Consumers.
    pub consumers: u64,
    /// How long batches took to be confirmed.
    pub confirms: LatencySnapshot,
}

/// How long something took, counted by how long that was.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LatencySnapshot {
    /// The longest time of each bucket, ascending.
    pub bounds: &'static [Duration],
    /// How many are in each bucket, not summed up; those beyond the last bound stand after the others.
    pub counts: Vec<u64>,
    /// All their times together.
    pub sum: Duration,
}

/// Everything that is shown of a run, taken at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RunSnapshot {
    /// The name of the pipeline; the label `pipeline` of every metric.
    pub name: String,
    /// Where in its life the run is.
    pub state: RunState,
    /// Why it refuses items now, if it does: its state alone does not say so.
    pub refusing: Option<String>,
    /// How long it has run, or ran if it has ended.
    #[serde(rename = "elapsed_seconds", serialize_with = "seconds")]
    pub elapsed: Duration,
    /// The account of its items.
    pub ledger: LedgerSnapshot,
    /// Its stages, from source to sink.
    pub stages: Vec<StageSnapshot>,
    /// The bounded hand-overs between its stages, from source to sink.
    pub hops: Vec<HopSnapshot>,
    /// The numbers that may be moved while it runs.
    pub knobs: Vec<KnobSnapshot>,
    /// The most memory its items can take, in bytes, if that is known.
    pub memory_bound_bytes: Option<u64>,
    /// Its last errors, newest first. Whoever makes the snapshot bounds their number.
    pub errors: Vec<ErrorSnapshot>,
}

/// Where in its life a run is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state", content = "reason")]
pub enum RunState {
    /// Built, and not yet taking items.
    #[default]
    Starting,
    /// Taking items.
    Running,
    /// No longer taking items; finishing those it took.
    Draining,
    /// Ended, and nothing failed.
    Completed,
    /// Ended by this error.
    Failed(String),
}

impl RunState {
    /// The state in one word.
    pub fn word(&self) -> &'static str {
        match self {
            RunState::Starting => "starting",
            RunState::Running => "running",
            RunState::Draining => "draining",
            RunState::Completed => "completed",
            RunState::Failed(_) => "failed",
        }
    }

    /// Every word that [`RunState::word`] can answer.
    pub const WORDS: [&'static str; 5] = ["starting", "running", "draining", "completed", "failed"];
}

/// The account of a run: `received = completed + dropped + dead + in_flight`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LedgerSnapshot {
    /// Items that entered.
    pub received: u64,
    /// Items that the sink confirmed.
    pub completed: u64,
    /// Items that a step dropped on purpose, by the name of the step.
    pub dropped: Vec<(String, u64)>,
    /// Items that failed and were put aside.
    pub dead: u64,
    /// Items that are neither yet.
    pub in_flight: u64,
}

impl LedgerSnapshot {
    /// The items dropped under any name.
    pub fn dropped_total(&self) -> u64 {
        self.dropped.iter().map(|(_, items)| items).sum()
    }
}

/// One stage: a run of operators in one task.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StageSnapshot {
    /// Its name, unique in the run; the label `stage` of its metrics.
    pub name: String,
    /// Items that left it.
    pub items_out: u64,
    /// Time its task spent working.
    #[serde(rename = "busy_seconds", serialize_with = "seconds")]
    pub busy: Duration,
    /// Time it waited for the stage after it to take items.
    #[serde(rename = "blocked_seconds", serialize_with = "seconds")]
    pub blocked: Duration,
    /// Time it waited for items from the stage before it.
    #[serde(rename = "starved_seconds", serialize_with = "seconds")]
    pub starved: Duration,
    /// How often it worked for 100 ms or longer in one go: something in it blocks its thread.
    pub stalls: u64,
    /// How long it has been working in one go, now.
    #[serde(rename = "working_seconds", serialize_with = "seconds")]
    pub working: Duration,
}

/// The bounded hand-over between two stages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HopSnapshot {
    /// Items that wait in it.
    pub items: u64,
    /// Items that fit.
    pub items_max: u64,
    /// Bytes that wait in it.
    pub bytes: u64,
    /// Bytes that fit; `None` if it is bounded by items alone.
    pub bytes_max: Option<u64>,
}

impl HopSnapshot {
    /// How full it is by whichever of its bounds is nearer, from 0 to 1.
    pub fn occupancy(&self) -> f64 {
        let share = |used: u64, max: u64| if max == 0 { 0.0 } else { used as f64 / max as f64 };
        share(self.items, self.items_max)
            .max(self.bytes_max.map_or(0.0, |max| share(self.bytes, max)))
            .clamp(0.0, 1.0)
    }
}

/// A number that may be moved while a run goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct KnobSnapshot {
    /// What it sets, unique in the run; the label `knob` of its metrics.
    pub name: String,
    /// The number in force.
    pub value: u64,
    /// The lowest that it takes.
    pub min: u64,
    /// The highest that it takes.
    pub max: u64,
    /// Whether somebody fixed it.
    pub fixed: bool,
}

/// An item's error, as it is shown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ErrorSnapshot {
    /// When it happened, in milliseconds since 1970.
    pub at_millis: u64,
    /// The stage or step that it happened in.
    pub stage: String,
    /// Where the item came from: a file, line and column, or a queue and message.
    pub origin: String,
    /// The error and its causes.
    pub message: String,
}

fn seconds<S: serde::Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64())
}
