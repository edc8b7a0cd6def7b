//! The account of a run: its ledger, its stages, its memory bound.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::Serialize;

use crate::scope::{MemoryUse, Scope};

/// What became of every item that a run received.
///
/// `received + split - merged = completed + dropped + dead + in_flight`, where `split` and `merged` are 0 in
/// tracked flows, whose ledger counts what the *source* delivered, however often operators take it apart or put
/// it together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Ledger {
    /// Items that the sources let in.
    pub received: u64,
    /// Items that a sink confirmed.
    pub completed: u64,
    /// Items that ended by declaration, by the name of the operator that dropped them.
    pub dropped: BTreeMap<String, u64>,
    /// Items that failed for good.
    pub dead: u64,
    /// Items under way. After the end of a run: items that nobody settled, to be delivered again.
    pub in_flight: u64,
    /// Items that untracked operators made out of others (`flat_map`, `unbatch`, `broadcast`).
    #[serde(skip_serializing_if = "is_zero")]
    pub split: u64,
    /// Items that untracked operators turned into others (`flat_map`, `batch`, `broadcast`).
    #[serde(skip_serializing_if = "is_zero")]
    pub merged: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Ledger {
    /// All items dropped, whoever dropped them.
    pub fn dropped_total(&self) -> u64 {
        self.dropped.values().sum()
    }

    /// True if the account adds up.
    pub fn balances(&self) -> bool {
        self.received + self.split
            == self.merged + self.completed + self.dropped_total() + self.dead + self.in_flight
    }
}

/// What one stage did.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct StageReport {
    /// The names of its operators, from the source's end.
    pub name: String,
    /// Items handed on.
    pub items_out: u64,
    /// Rounds of its driver.
    pub quanta: u64,
    /// Seconds of work.
    pub busy_seconds: f64,
    /// Seconds of waiting for what comes before.
    pub starved_seconds: f64,
    /// Seconds of waiting for room in what comes after.
    pub blocked_seconds: f64,
    /// Panics of users' functions.
    pub panics: u64,
    /// How often it worked for 100 ms or longer in one go: a user's function blocks its thread.
    pub stalls: u64,
    /// Seconds that it has been working in one go, now: of a stage whose function never returns, ever more.
    pub working_seconds: f64,
    /// Its operators that dropped or failed items, or could have.
    pub operators: Vec<OpReport>,
}

/// What one operator did not pass on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct OpReport {
    /// Its name.
    pub name: String,
    /// What it is, for example `filter`.
    pub kind: String,
    /// Items it dropped.
    pub dropped: u64,
    /// Items whose function failed.
    pub failed: u64,
}

/// What one hop held.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct HopReport {
    /// Items waiting now; up to an eighth of the capacity more while somebody takes them.
    pub len: usize,
    /// The most items that ever waited.
    pub len_max: usize,
    /// How many may wait.
    pub capacity: usize,
    /// Bytes waiting, by the measure that the hop was given.
    pub bytes: usize,
    /// How many bytes may wait, if the hop counts them.
    pub bytes_max: Option<usize>,
    /// Items handed over.
    pub items: u64,
    /// Chunks handed over: items ÷ chunks is what a wake-up moved.
    pub chunks: u64,
}

/// A number of the run that may be moved while it goes on, as it stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct KnobReport {
    /// What it sets, for example `batch count`; of those that set the same, the second has a 2 behind its name, and so on.
    pub name: String,
    /// The number in force.
    pub value: usize,
    /// The lowest that it takes.
    pub min: usize,
    /// The highest that it takes.
    pub max: usize,
    /// Whether the user fixed the number.
    pub fixed: bool,
}

/// The account of a run so far, or of the whole run once it has ended.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// What became of every item.
    pub ledger: Ledger,
    /// The stages, sources first.
    pub stages: Vec<StageReport>,
    /// The hops between them.
    pub hops: Vec<HopReport>,
    /// The numbers that may be moved, in the order in which the flow was built.
    pub knobs: Vec<KnobReport>,
    /// What the run may hold in memory at most: see [`Report::memory`] for its parts.
    pub memory_bound_bytes: u64,
    /// The parts of the memory bound.
    #[serde(skip)]
    pub memory: Vec<MemoryUse>,
    /// Since the flow was built, by tokio's clock.
    pub elapsed_seconds: f64,
}

impl Report {
    /// Time since the flow was built.
    pub fn elapsed(&self) -> Duration {
        Duration::from_secs_f64(self.elapsed_seconds)
    }

    pub(crate) fn of(root: &Arc<Scope>) -> Report {
        let mut report =
            Report { elapsed_seconds: root.clock().elapsed().as_secs_f64(), ..Report::default() };
        let mut named = HashMap::new();
        for scope in root.all() {
            report.add_ledger(&scope);
            report.add_stages(&scope);
            report.add_knobs(&scope, &mut named);
            report.memory.extend(scope.memory());
        }
        report.memory_bound_bytes = report.memory.iter().map(|part| part.bytes).sum();
        let ledger = &mut report.ledger;
        let known = ledger.merged + ledger.completed + ledger.dropped_total() + ledger.dead;
        // Counters are read one after the other while the run goes on; a moment's excess is not negative flight.
        ledger.in_flight = (ledger.received + ledger.split).saturating_sub(known);
        report
    }

    fn add_ledger(&mut self, scope: &Scope) {
        let ledger = &mut self.ledger;
        let counts = &scope.counts;
        // Ends before beginnings: an item that ends in between is still counted as under way.
        ledger.completed += counts.completed.load(Ordering::Acquire);
        ledger.dead += counts.dead.load(Ordering::Acquire);
        ledger.merged += counts.merged.load(Ordering::Acquire);
        for op in scope.untracked_ops() {
            if op.dropped() > 0 {
                *ledger.dropped.entry(op.name().to_string()).or_default() += op.dropped();
            }
        }
        ledger.split += counts.split.load(Ordering::Acquire);
        ledger.received += counts.received.load(Ordering::Acquire);
        for account in scope.accounts() {
            ledger.completed += account.completed();
            ledger.dead += account.dead();
            for (name, count) in account.dropped() {
                *ledger.dropped.entry(name.to_string()).or_default() += count;
            }
            ledger.received += account.received();
        }
    }

    /// `named` has how many there are of each name.
    fn add_knobs(&mut self, scope: &Scope, named: &mut HashMap<String, usize>) {
        for knob in scope.knobs() {
            let ((min, max), value, fixed) = (knob.bounds(), knob.value(), knob.is_frozen());
            let mut name = knob.name().to_owned();
            let mut number = named.get(&name).map_or(0, |number| *number);
            while named.contains_key(&name) {
                number += 1;
                name = format!("{} {number}", knob.name());
            }
            named.insert(name.clone(), 1);
            named.insert(knob.name().to_owned(), number.max(1));
            self.knobs.push(KnobReport { name, value, min, max, fixed });
        }
    }

    fn add_stages(&mut self, scope: &Scope) {
        self.stages.extend(scope.stages().iter().map(|stage| {
            StageReport {
                name: stage.name(),
                items_out: stage.items_out(),
                quanta: stage.quanta(),
                busy_seconds: stage.busy().as_secs_f64(),
                starved_seconds: stage.starved().as_secs_f64(),
                blocked_seconds: stage.blocked().as_secs_f64(),
                panics: stage.panics(),
                stalls: stage.stalls(),
                working_seconds: stage.working().as_secs_f64(),
                operators: stage
                    .ops()
                    .iter()
                    .map(|op| OpReport {
                        name: op.name().to_string(),
                        kind: op.kind().to_owned(),
                        dropped: op.dropped(),
                        failed: op.failed(),
                    })
                    .collect(),
            }
        }));
        self.hops.extend(scope.hops().iter().map(|hop| {
            let (len, bytes) = hop.stats.waiting();
            HopReport {
                len,
                len_max: hop.stats.len_max(),
                capacity: hop.capacity.value(),
                bytes,
                bytes_max: hop.bytes_max,
                items: hop.stats.items(),
                chunks: hop.stats.chunks(),
            }
        }));
    }
}
