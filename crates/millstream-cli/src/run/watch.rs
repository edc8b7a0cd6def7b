//! What is known of the runs of this process while they run and after: one place for the progress line, the
//! status page and the report.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use millstream_observe::{ErrorSnapshot, HopSnapshot, LedgerSnapshot, RunSnapshot, RunState, StageSnapshot};
use millstream_pipeline::{Monitor, Report};
use serde_json::json;

/// All runs, in the order of their files.
#[derive(Default)]
pub(crate) struct Watch {
    runs: Mutex<Vec<Watched>>,
}

struct Watched {
    state: RunState,
    monitor: Monitor,
    /// The report at the end; until then the monitor makes one whenever it is asked.
    last: Option<Report>,
}

impl Watched {
    fn report(&self) -> Report {
        self.last.clone().unwrap_or_else(|| self.monitor.report())
    }
}

impl Watch {
    /// Adds a run that has started; its number.
    pub(crate) fn add(&self, monitor: Monitor) -> usize {
        let mut runs = self.lock();
        runs.push(Watched { state: RunState::Running, monitor, last: None });
        runs.len() - 1
    }

    /// Tells all sources to stop.
    pub(crate) fn drain(&self) {
        for run in self.lock().iter_mut().filter(|run| run.last.is_none()) {
            run.state = RunState::Draining;
            run.monitor.stop();
        }
    }

    /// Remembers how a run ended: by itself, drained after a signal, or with a failure.
    pub(crate) fn ended(&self, number: usize, report: Report, failure: Option<String>) {
        let run = &mut self.lock()[number];
        match failure {
            Some(failure) => run.state = RunState::Failed(failure),
            None if run.state == RunState::Running => run.state = RunState::Completed,
            None => {}
        }
        run.last = Some(report);
    }

    /// Keeps the last report of every run as it is now: those that still run are being dropped.
    pub(crate) fn freeze(&self) {
        for run in self.lock().iter_mut() {
            run.last = Some(run.report());
        }
    }

    /// All runs as they are now.
    pub(crate) fn snapshots(&self) -> Vec<RunSnapshot> {
        self.lock().iter().map(|run| snapshot(run.state.clone(), run.report())).collect()
    }

    /// The report of all runs as JSON: an object for one, a list for several.
    pub(crate) fn report(&self) -> serde_json::Result<String> {
        let reports: Vec<Report> = self.lock().iter().map(Watched::report).collect();
        match reports.as_slice() {
            [one] => serde_json::to_string_pretty(one),
            several => serde_json::to_string_pretty(&json!({ "runs": several })),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Watched>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A report in the words of the views.
fn snapshot(state: RunState, report: Report) -> RunSnapshot {
    let seconds = |seconds: f64| Duration::try_from_secs_f64(seconds).unwrap_or_default();
    let stages = report.stages.into_iter().map(|stage| StageSnapshot {
        name: stage.name,
        items_out: stage.items_out,
        busy: seconds(stage.busy_seconds),
        blocked: seconds(stage.blocked_seconds),
        starved: seconds(stage.starved_seconds),
        stalls: stage.stalls,
        working: seconds(stage.working_seconds),
    });
    let hops = report.hops.into_iter().map(|hop| HopSnapshot {
        items: hop.len as u64,
        items_max: hop.capacity as u64,
        bytes: hop.bytes as u64,
        bytes_max: hop.bytes_max.map(|bytes| bytes as u64),
    });
    let errors = report.errors.into_iter().rev().map(|error| ErrorSnapshot {
        at_millis: error.at_millis,
        stage: error.stage,
        origin: error.place,
        message: error.reason,
    });
    RunSnapshot {
        name: report.name,
        state,
        elapsed: seconds(report.elapsed_seconds),
        ledger: LedgerSnapshot {
            received: report.ledger.received,
            completed: report.ledger.completed,
            dropped: report.ledger.dropped.into_iter().collect(),
            dead: report.ledger.dead,
            in_flight: report.ledger.in_flight,
        },
        stages: stages.collect(),
        hops: hops.collect(),
        memory_bound_bytes: Some(report.memory_bound_bytes),
        errors: errors.collect(),
    }
}
