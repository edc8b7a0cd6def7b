//! A running pipeline: watch it, wait for it, stop it.

use crate::file::Pipeline;
use crate::hold::Released;
use crate::intake::Remembered;
use crate::item::ItemError;
use crate::output::{Outputs, stdout};
use crate::trouble::{ItemFailure, TooMany, Trouble};
use millstream_flow::{
    BoxError, Ended, Ledger, Monitor as FlowMonitor, Plan, Run as FlowRun, RunErrorKind, StageReport,
};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{oneshot, watch};

/// What a durable buffer adds to the account: items found in it, and items stored by this run.
#[derive(Debug, Clone)]
pub(crate) struct Counted {
    pub(crate) found: u64,
    pub(crate) stored: Arc<AtomicU64>,
}

/// What is known of those who put items into a durable buffer.
pub(crate) struct Stored {
    pub(crate) counted: Counted,
    /// Told when they cannot go on.
    pub(crate) failed: oneshot::Receiver<BoxError>,
}

/// A started pipeline. Dropping it stops it; what was not settled is given back to its source. Its files may be in use
/// for a moment longer, until a write that is under way ends.
#[must_use = "dropping a run stops it"]
pub struct Run {
    flow: FlowRun<Outputs>,
    monitor: Monitor,
    /// What a run that fails has still to keep.
    position: Option<Arc<Remembered>>,
    released: Released,
}

/// Watches a run, and can stop it. Cheap to clone; does not keep the run alive.
#[derive(Clone)]
pub struct Monitor {
    name: Arc<str>,
    flow: FlowMonitor,
    counted: Option<Counted>,
    stop: watch::Sender<bool>,
    trouble: Arc<Trouble>,
    memory_bound_bytes: u64,
    /// What to do about an item that ends the run.
    about_failed_item: Arc<str>,
}

/// The account of a run.
///
/// `received = completed + dropped + dead + in_flight`, always. Behind a durable buffer, `received` is what the
/// buffer held when the run began and what the source put into it since; `in_flight` is what it still holds.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// The pipeline.
    pub name: String,
    /// What became of every item.
    pub ledger: Ledger,
    /// Of those received, items that an earlier run had left in the buffer.
    pub found: u64,
    /// The stages, sources first.
    pub stages: Vec<StageReport>,
    /// The hops between them.
    pub hops: Vec<millstream_flow::HopReport>,
    /// The numbers that may be moved while it runs; those that the file gives are fixed.
    pub knobs: Vec<millstream_flow::KnobReport>,
    /// The most bytes that items of the run hold at once.
    pub memory_bound_bytes: u64,
    /// Since the run began.
    pub elapsed_seconds: f64,
    /// The last errors of items, the oldest first.
    pub errors: Vec<ItemFailure>,
}

impl Report {
    /// Items dropped, by the name of what dropped them.
    pub fn dropped(&self) -> &BTreeMap<String, u64> {
        &self.ledger.dropped
    }
}

/// A run that did not end well, with its account.
#[derive(Debug)]
pub struct RunError {
    error: millstream_flow::RunError,
    report: Box<Report>,
    about_failed_item: Arc<str>,
}

impl RunError {
    /// How it ended.
    pub fn ended(&self) -> &Ended {
        self.error.ended()
    }

    /// The account up to the end.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Whether it ended because nobody reads standard output any more, as in `… | head`. What was not written is given
    /// back to its source.
    pub fn nobody_reads(&self) -> bool {
        matches!(self.ended(), Ended::Failed(RunErrorKind::Sink(error)) if stdout::is_closed(&**error))
    }
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.report.name;
        match self.ended() {
            Ended::Failed(RunErrorKind::Source(error) | RunErrorKind::Sink(error))
                if error.is::<TooMany>() =>
            {
                write!(f, "pipeline `{name}`: {error}")
            }
            Ended::Failed(RunErrorKind::Item(_)) => {
                write!(f, "pipeline `{name}`: {}\n  {}", self.error, self.about_failed_item)
            }
            // An output did not take an item, and `on_error` says that this ends the run.
            Ended::Failed(RunErrorKind::Sink(error)) if error.is::<ItemError>() => {
                write!(f, "pipeline `{name}`: an item failed: {error}\n  {}", self.about_failed_item)
            }
            _ => write!(f, "pipeline `{name}`: {}", self.error),
        }
    }
}

impl std::error::Error for RunError {}

impl Run {
    pub(crate) fn new(
        pipeline: &Pipeline,
        plan: Plan<Outputs>,
        stored: Option<Stored>,
        position: Option<Arc<Remembered>>,
        stop: watch::Sender<bool>,
        trouble: Arc<Trouble>,
        released: Released,
    ) -> Self {
        let flow = plan.start();
        let counted = stored.map(|Stored { counted, failed }| {
            let flow = flow.monitor();
            // It ends with those who may tell it.
            tokio::spawn(async move {
                if let Ok(error) = failed.await {
                    flow.fail(error);
                }
            });
            counted
        });
        let monitor = Monitor {
            name: pipeline.name().into(),
            flow: flow.monitor(),
            counted,
            stop,
            trouble,
            memory_bound_bytes: pipeline.memory_bound_bytes(),
            about_failed_item: pipeline.draft.about_failed_item().into(),
        };
        Run { flow, monitor, position, released }
    }

    /// A handle to watch and stop the run with, for others to hold.
    pub fn monitor(&self) -> Monitor {
        self.monitor.clone()
    }

    /// The account so far.
    pub fn report(&self) -> Report {
        self.monitor.report()
    }

    /// Waits for the run to end and to let go of its files: a next run can have them at once.
    ///
    /// # Errors
    ///
    /// If an item failed and `on_error` says fail, or if the source or an output failed. The error carries the
    /// report.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops the run.
    pub async fn join(self) -> Result<Report, RunError> {
        let Run { flow, monitor, position, mut released } = self;
        let ended = flow.join().await.map(drop);
        settled(position, ended.is_err()).await;
        released.wait().await;
        monitor.ended(ended)
    }

    /// Accepts nothing more, lets what is under way flow to its end for up to `deadline`, then stops the rest.
    /// What a durable buffer holds stays there for the next run. A write that the disk has begun is waited for
    /// beyond the deadline, for it cannot be stopped.
    ///
    /// # Errors
    ///
    /// As [`join`](Run::join), and if the deadline passed with items under way.
    pub async fn shutdown(self, deadline: Duration) -> Result<Report, RunError> {
        let Run { flow, monitor, position, mut released } = self;
        monitor.stop();
        let ended = flow.shutdown(deadline).await.map(drop);
        settled(position, ended.is_err()).await;
        released.wait().await;
        monitor.ended(ended)
    }
}

/// How long a run that has failed tries to keep its position: the broker that keeps it may be what failed.
const LAST_SAVE: Duration = Duration::from_secs(5);

/// Keeps how far a run came that has failed, which its output has not done at its end: the next run need not repeat that.
async fn settled(position: Option<Arc<Remembered>>, failed: bool) {
    let Some(position) = position.filter(|_| failed) else { return };
    // Else it is the position of the last save, from which the next run repeats something. Why the run failed is told already.
    let _ = tokio::time::timeout(LAST_SAVE, position.save()).await;
}

impl Monitor {
    /// The account so far.
    pub fn report(&self) -> Report {
        self.report_of(self.flow.report())
    }

    /// The numbers that may be moved while it runs. Those that the file gives are frozen.
    pub fn knobs(&self) -> Vec<millstream_flow::Knob> {
        self.flow.knobs()
    }

    /// Why what is sent to a `source.http` is refused now, though the run goes on: its durable buffer cannot store it. `None` as
    /// soon as something was stored, and ten seconds after the last refusal: what is sent then shows whether there is room.
    pub fn refusing(&self) -> Option<String> {
        self.trouble.refusing()
    }

    /// Accepts nothing more. What is under way flows on, and the run ends when it is done.
    pub fn stop(&self) {
        // The ingest may have ended already.
        let _ = self.stop.send(true);
        self.flow.stop();
    }

    fn ended(&self, ended: Result<(), millstream_flow::RunError>) -> Result<Report, RunError> {
        match ended {
            Ok(()) => Ok(self.report()),
            Err(error) => {
                let report = Box::new(self.report_of(error.report().clone()));
                Err(RunError { error, report, about_failed_item: self.about_failed_item.clone() })
            }
        }
    }

    fn report_of(&self, flow: millstream_flow::Report) -> Report {
        let mut ledger = flow.ledger;
        // Operators share and merge tokens, not items: a tracked flow's ledger has neither.
        let mut found = 0;
        if let Some(counted) = &self.counted {
            found = counted.found;
            // What was stored was counted after it could already have come out at the other end.
            ledger.received = (found + counted.stored.load(Ordering::Acquire)).max(ledger.received);
            let ended = ledger.completed + ledger.dropped_total() + ledger.dead;
            ledger.in_flight = ledger.received.saturating_sub(ended);
        }
        Report {
            name: self.name.to_string(),
            ledger,
            found,
            stages: flow.stages,
            hops: flow.hops,
            knobs: flow.knobs,
            memory_bound_bytes: self.memory_bound_bytes,
            elapsed_seconds: flow.elapsed_seconds,
            errors: self.trouble.last(),
        }
    }
}

impl fmt::Debug for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Monitor").field("name", &self.name).finish_non_exhaustive()
    }
}

impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Run").field("monitor", &self.monitor).finish_non_exhaustive()
    }
}
