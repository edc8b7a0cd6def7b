//! What is known of the runs of this process while they run and after: one place for the progress line, the
//! status page and the report.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use millstream_message::BrokerUrl;
use millstream_observe::{
    BrokerSnapshot, ErrorSnapshot, HopSnapshot, KnobSnapshot, LatencySnapshot, LedgerSnapshot, RunSnapshot,
    RunState, StageSnapshot,
};
use millstream_pipeline::{Brokers, Monitor, Pipeline, Report};
use millstream_rabbitmq::{ConfirmLatency, Statistics};
use serde::Serialize;
use serde_json::json;

/// All runs, in the order of their files.
#[derive(Default)]
pub(crate) struct Watch {
    runs: Mutex<Vec<Watched>>,
}

struct Watched {
    state: RunState,
    /// `None` of what has not started.
    monitor: Option<Monitor>,
    /// The report at the end; until then the monitor makes one whenever it is asked.
    last: Option<Report>,
}

/// What `--report` writes of one run.
#[derive(Serialize)]
struct Account {
    #[serde(flatten)]
    report: Report,
    /// `completed`, `failed`, or `stopped`: by a signal, or because nobody reads standard output any more.
    state: &'static str,
    failure: Option<String>,
}

impl Watched {
    fn report(&self) -> Report {
        let now = || self.monitor.as_ref().map(Monitor::report).unwrap_or_default();
        self.last.clone().unwrap_or_else(now)
    }

    fn snapshot(&self) -> RunSnapshot {
        let refusing = match self.state {
            RunState::Running => self.monitor.as_ref().and_then(Monitor::refusing),
            _ => None,
        };
        RunSnapshot { refusing, ..snapshot(self.state.clone(), self.report()) }
    }

    /// The report as JSON, with how the run ended.
    fn account(&self) -> Account {
        let (state, failure) = match &self.state {
            RunState::Completed => ("completed", None),
            RunState::Failed(failure) => ("failed", Some(failure.clone())),
            RunState::Starting | RunState::Running | RunState::Draining => ("stopped", None),
        };
        Account { report: self.report(), state, failure }
    }
}

impl Watch {
    /// Adds a run that is about to start; its number. Until it has started, nothing was received.
    pub(crate) fn add(&self, pipeline: &Pipeline) -> usize {
        let mut report = Report::default();
        report.name = pipeline.name().to_owned();
        report.memory_bound_bytes = pipeline.memory_bound_bytes();
        let mut runs = self.lock();
        runs.push(Watched { state: RunState::Starting, monitor: None, last: Some(report) });
        runs.len() - 1
    }

    /// Remembers that a run has started.
    pub(crate) fn started_one(&self, number: usize, monitor: Monitor) {
        self.lock()[number] = Watched { state: RunState::Running, monitor: Some(monitor), last: None };
    }

    /// Remembers why one could not start.
    pub(crate) fn failed(&self, number: usize, why: String) {
        self.lock()[number].state = RunState::Failed(why);
    }

    /// Tells all sources to stop.
    pub(crate) fn drain(&self) {
        for run in self.lock().iter_mut().filter(|run| run.last.is_none()) {
            run.state = RunState::Draining;
            if let Some(monitor) = &run.monitor {
                monitor.stop();
            }
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

    /// Remembers the report of a run that had no more to do, before its source's end.
    pub(crate) fn stopped(&self, number: usize, report: Report) {
        let run = &mut self.lock()[number];
        run.state = RunState::Draining;
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
        self.lock().iter().map(Watched::snapshot).collect()
    }

    /// Those of them that could start.
    pub(crate) fn started(&self) -> Vec<RunSnapshot> {
        let runs = self.lock();
        let started = runs.iter().filter(|run| run.monitor.is_some());
        started.map(Watched::snapshot).collect()
    }

    /// The report of all runs as JSON: an object for one, a list for several.
    pub(crate) fn report(&self) -> serde_json::Result<String> {
        let accounts: Vec<Account> = self.lock().iter().map(Watched::account).collect();
        match accounts.as_slice() {
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
    let knobs = report.knobs.into_iter().map(|knob| KnobSnapshot {
        name: knob.name,
        value: knob.value as u64,
        min: knob.min as u64,
        max: knob.max as u64,
        fixed: knob.fixed,
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
        refusing: None,
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
        knobs: knobs.collect(),
        memory_bound_bytes: Some(report.memory_bound_bytes),
        errors: errors.collect(),
    }
}

/// The brokers in the words of the views.
pub(super) fn brokers(brokers: &Brokers) -> Vec<BrokerSnapshot> {
    brokers.statistics().into_iter().map(|(url, figures)| broker(&url, figures)).collect()
}

fn broker(url: &BrokerUrl, figures: Statistics) -> BrokerSnapshot {
    // By the stream protocol a connection is made when it is needed; by AMQP there is always one.
    let needed =
        !matches!(url, BrokerUrl::RabbitmqStream(_)) || figures.consumers > 0 || figures.in_flight > 0;
    BrokerSnapshot {
        broker: url.to_string(),
        away: needed && figures.connections == 0,
        blocked: figures.blocked,
        connections: figures.connections,
        connects: figures.connects,
        failed_connects: figures.failed_connects,
        bytes_in: figures.bytes_in,
        bytes_out: figures.bytes_out,
        published: figures.published,
        unconfirmed: figures.in_flight,
        consumers: figures.consumers,
        confirms: LatencySnapshot {
            bounds: &ConfirmLatency::BOUNDS,
            counts: figures.confirm_latency.counts.to_vec(),
            sum: figures.confirm_latency.sum,
        },
    }
}
