//! The steps of a pipeline as operators of a flow.
//!
//! A failed item travels on, untouched by later steps, to the one place that applies `on_error`. Each step is
//! one operator with the user's name, so that the report's stages read like the file; what a step needs beside it is named
//! by what it does.

use crate::bound::PARALLEL_BYTES;
use crate::expr::{Condition, Mapping};
use crate::file::model::{Output, Route, Setting, Step};
use crate::handlers::Sending;
use crate::item::{Failure, Raw, Record, Reporter};
use crate::output::ROUTE;
use crate::value;
use millstream_flow::flows::BoxFlow;
use millstream_flow::{Concurrency, Failed, Pipe, Retry, Token, Workers};
use std::sync::Arc;
use std::time::Duration;

/// An item between two steps.
pub(crate) type Passing = Result<Record, Failure>;
pub(crate) type Passage = Pipe<BoxFlow<Passing, Token>>;

/// Reads the items of a source.
pub(crate) fn read(pipe: Pipe<BoxFlow<Raw, Token>>, reporter: &Arc<Reporter>) -> Passage {
    let (stage, reporter) = (Arc::from("read"), reporter.clone());
    pipe.map(move |raw| raw.read(&stage, &reporter)).named("read").boxed()
}

/// Adds `steps` behind `pipe`.
pub(crate) fn add(mut pipe: Passage, steps: &[Step], reporter: &Arc<Reporter>) -> Passage {
    for step in steps {
        pipe = match step {
            Step::Parallel { workers, ordered, steps, .. } => {
                parallel(pipe, workers, ordered.value, steps, reporter)
            }
            Step::Send { name, handler, at_once, into, timeout, .. } => {
                let sending = Sending {
                    name: name.value.as_str().into(),
                    handler: handler.clone(),
                    into: into.as_deref().map(Arc::from),
                    reporter: reporter.clone(),
                };
                match timeout {
                    None => {
                        let send = move |passing| sending.clone().apply(passing);
                        pipe.map_async(Concurrency::ordered(*at_once), send).named(&name.value).boxed()
                    }
                    Some(timeout) => send_within(pipe, *timeout, *at_once, sending),
                }
            }
            // Refused by the check.
            Step::Misplaced { .. } => pipe,
            simple => match Simple::of(simple, reporter) {
                Some(simple) => {
                    let name = simple.name.clone();
                    pipe.filter_map(move |passing| simple.apply(passing)).named(&name).boxed()
                }
                None => pipe,
            },
        };
    }
    pipe
}

/// Sends items to a handler that may take only so long for each. What failed before passes through as no failure of this
/// step; a call only borrows what it is given, so such a failure is shared while it passes.
fn send_within(pipe: Passage, timeout: Duration, at_once: usize, sending: Sending) -> Passage {
    let calls = Concurrency::ordered(at_once).time_limit(timeout);
    let (name, later) = (sending.name.clone(), sending.clone());
    pipe.map_err(Arc::new)
        .named("share")
        .try_map_async(calls, Retry::never(), async move |passing: &Result<Record, Arc<Failure>>| {
            match passing {
                Ok(record) => sending.answered(record).await.map(Ok),
                Err(failed) => Ok(Err(failed.clone())),
            }
        })
        .named(&name)
        .map(move |sent| match sent {
            Ok(sent) => sent.map_err(unshared),
            Err(failed) => {
                let Failed { input, error, .. } = failed;
                Err(later.failed(&input.map_err(unshared)?, &*error))
            }
        })
        .named("gather")
        .boxed()
}

fn unshared(failed: Arc<Failure>) -> Failure {
    Arc::into_inner(failed).expect("the call that shared it is over")
}

/// What came out of the steps inside `parallel`.
enum Worked {
    Passing(Passing),
    /// Dropped by the step of this number.
    Dropped(usize),
}

fn footprint(passing: &Passing) -> usize {
    match passing {
        Ok(record) => value::footprint(&record.value),
        Err(failed) => failed.input.body.len(),
    }
}

fn parallel(
    pipe: Passage,
    workers: &Setting<Option<u64>>,
    ordered: bool,
    steps: &[Step],
    reporter: &Arc<Reporter>,
) -> Passage {
    let simple: Vec<Simple> = steps.iter().filter_map(|step| Simple::of(step, reporter)).collect();
    let names: Vec<Arc<str>> = simple.iter().map(|step| step.name.clone()).collect();
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let count = workers.value.map_or(cores, |count| count as usize);
    let workers = if ordered { Workers::ordered(count) } else { Workers::unordered(count) };
    let workers = workers.bytes(PARALLEL_BYTES as usize, footprint);
    let mut pipe = pipe
        .parallel_measured(workers, move |mut passing: Passing| {
            for (number, step) in simple.iter().enumerate() {
                match step.apply(passing) {
                    Some(next) => passing = next,
                    None => return Worked::Dropped(number),
                }
            }
            Worked::Passing(passing)
        })
        .boxed();
    // What a step dropped on a worker is counted under the step's name here.
    for (number, name) in names.iter().enumerate() {
        pipe = pipe
            .filter(move |worked| !matches!(worked, Worked::Dropped(by) if *by == number))
            .named(name)
            .boxed();
    }
    pipe.filter_map(|worked| match worked {
        Worked::Passing(passing) => Some(passing),
        Worked::Dropped(_) => None,
    })
    .named("gather")
    .boxed()
}

/// A step that looks at one item at a time.
pub(crate) struct Simple {
    pub(crate) name: Arc<str>,
    does: Does,
    reporter: Arc<Reporter>,
}

enum Does {
    Filter(Arc<Condition>),
    Map(Arc<Mapping>),
}

impl Simple {
    pub(crate) fn of(step: &Step, reporter: &Arc<Reporter>) -> Option<Self> {
        let (name, does) = match step {
            Step::Filter { name, keep } => (name, Does::Filter(keep.clone())),
            Step::Map { name, jq } => (name, Does::Map(jq.clone())),
            Step::Parallel { .. } | Step::Send { .. } | Step::Misplaced { .. } => return None,
        };
        Some(Simple { name: name.value.as_str().into(), does, reporter: reporter.clone() })
    }

    /// Applies the step; `None` drops the item. What has failed already passes.
    pub(crate) fn apply(&self, passing: Passing) -> Option<Passing> {
        let mut record = match passing {
            Ok(record) => record,
            failed => return Some(failed),
        };
        let applied = match &self.does {
            Does::Filter(keep) => keep.holds(&record.value),
            // The item is kept for the case of an error; its contents are shared, not copied.
            Does::Map(jq) => jq.apply(record.value.clone()).map(|value| {
                let kept = value.is_some();
                if let Some(value) = value {
                    record.value = value;
                }
                kept
            }),
        };
        match applied {
            Ok(true) => Some(Ok(record)),
            Ok(false) => None,
            Err(error) => Some(Err(self.reporter.failure(record.letter(), error.to_string(), &self.name))),
        }
    }
}

/// Chooses an output for each item.
pub(crate) struct Router {
    stage: Arc<str>,
    cases: Vec<(Arc<Condition>, Option<usize>)>,
    otherwise: Option<usize>,
    reporter: Arc<Reporter>,
}

impl Router {
    pub(crate) fn new(route: &Route, outputs: &[Output], reporter: &Arc<Reporter>) -> Self {
        let index = |name: &str| outputs.iter().position(|output| output.name.value == name);
        Router {
            stage: ROUTE.into(),
            cases: route.cases.iter().map(|(when, to)| (when.clone(), index(to))).collect(),
            otherwise: index(&route.otherwise),
            reporter: reporter.clone(),
        }
    }

    /// Routes an item; `None` drops it, as `else: drop` says.
    pub(crate) fn apply(&self, passing: Passing) -> Option<Passing> {
        let mut record = match passing {
            Ok(record) => record,
            failed => return Some(failed),
        };
        for (when, output) in &self.cases {
            match when.holds(&record.value) {
                Ok(false) => {}
                Ok(true) => {
                    record.output = (*output)?;
                    return Some(Ok(record));
                }
                Err(error) => {
                    return Some(Err(self.reporter.failure(record.letter(), error.to_string(), &self.stage)));
                }
            }
        }
        record.output = self.otherwise?;
        Some(Ok(record))
    }
}
