//! A started flow: watch it, wait for it, stop it.

use std::error::Error;
use std::fmt;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::failure::{BoxError, chain};
use crate::knob::Knob;
use crate::report::Report;
use crate::scope::{RunErrorKind, Scope};
use crate::spawn::Guarded;
use crate::stats::StageStats;

type Task<T> = Pin<Box<dyn Future<Output = Option<T>> + Send>>;

/// A flow with its end, ready to start.
///
/// Await it to run it to its end, or [`start`](Plan::start) it to keep a handle.
#[must_use = "a plan does nothing until it is started or awaited"]
pub struct Plan<T> {
    task: Task<T>,
    scope: Arc<Scope>,
}

impl<T: Send + 'static> Plan<T> {
    /// A flow whose last stage is `task`; it gives `None` if the run has failed.
    pub(crate) fn new(
        scope: Arc<Scope>,
        stage: Arc<StageStats>,
        task: impl Future<Output = Option<T>> + Send + 'static,
    ) -> Self {
        let task = Guarded::new(scope.clone(), stage, task);
        Plan { task: Box::pin(async { task.await.flatten() }), scope }
    }

    /// Starts the flow on the current runtime.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(self) -> Run<T> {
        let Plan { task, scope } = self;
        let running = scope.start_end();
        let handle = Some(tokio::spawn(async move {
            let _running = running;
            task.await
        }));
        Run { handle, monitor: Monitor { scope } }
    }

    /// The report before anything ran: the stages, and the memory bound.
    pub fn report(&self) -> Report {
        Report::of(&self.scope.root())
    }
}

impl<T: Send + 'static> IntoFuture for Plan<T> {
    type Output = Result<(T, Report), RunError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { self.start().join().await })
    }
}

/// How long a flow in which nothing is under way may take to end.
const ENDING: Duration = Duration::from_millis(100);

/// A started flow. Dropping it stops every task it owns; what was not settled is given back to its source.
#[must_use = "dropping a run stops it"]
pub struct Run<T> {
    handle: Option<JoinHandle<Option<T>>>,
    monitor: Monitor,
}

impl<T: Send + 'static> Run<T> {
    /// A handle to watch and stop the run with, for others to hold.
    pub fn monitor(&self) -> Monitor {
        self.monitor.clone()
    }

    /// The account so far.
    pub fn report(&self) -> Report {
        self.monitor.report()
    }

    /// Waits for the flow to end, and for every task that only it owned.
    ///
    /// # Errors
    /// If an item failed and the declared policy is to fail, or if a source or a sink failed. The error carries
    /// the report.
    ///
    /// # Cancel safety
    /// Dropping the future stops the run.
    pub async fn join(mut self) -> Result<(T, Report), RunError> {
        let output = self.wait().await;
        self.finish(output).await
    }

    /// Stops the sources, lets what was accepted flow to its end for up to `deadline`, then stops what is left. A flow in which nothing is
    /// under way has a moment longer to end.
    ///
    /// # Errors
    /// As [`join`](Run::join), and [`Ended::Deadline`] in the error's kind if items were still under way; the
    /// report's `in_flight` says how many.
    pub async fn shutdown(mut self, deadline: Duration) -> Result<(T, Report), RunError> {
        self.monitor.stop();
        let output = match timeout(deadline, self.wait()).await {
            Ok(output) => Some(output),
            // Its tasks have only to see that there is nothing.
            Err(_) if self.report().ledger.in_flight == 0 => timeout(ENDING, self.wait()).await.ok(),
            Err(_) => None,
        };
        match output {
            Some(output) => self.finish(output).await,
            None => {
                self.abort().await;
                let report = self.report();
                Err(RunError { ended: Ended::Deadline(deadline), report: Box::new(report) })
            }
        }
    }

    async fn wait(&mut self) -> Result<Option<T>, tokio::task::JoinError> {
        let handle = self.handle.as_mut().expect("a run has its task until it is finished");
        handle.await
    }

    async fn finish(
        &mut self,
        output: Result<Option<T>, tokio::task::JoinError>,
    ) -> Result<(T, Report), RunError> {
        self.handle = None;
        self.settle_tasks().await;
        let scope = &self.monitor.scope;
        let failure = scope.take_failure();
        let report = self.report();
        match (failure, output) {
            (None, Ok(Some(output))) => Ok((output, report)),
            (Some(kind), _) => Err(RunError { ended: Ended::Failed(kind), report: Box::new(report) }),
            (None, _) => {
                let ended = Ended::Failed(RunErrorKind::Cancelled);
                Err(RunError { ended, report: Box::new(report) })
            }
        }
    }

    async fn abort(&mut self) {
        if let Some(handle) = self.handle.take() {
            handle.abort();
            let _ = handle.await;
        }
        self.settle_tasks().await;
    }

    /// Waits for the tasks that nobody reads from any more. A fan-out's goes on while another lane has a run.
    async fn settle_tasks(&self) {
        let all = self.monitor.scope.root().all();
        // A task that ends may leave others behind that only it needed.
        while all.iter().any(|scope| !scope.leaving.is_empty()) {
            for scope in &all {
                scope.leaving.close();
                scope.leaving.wait().await;
            }
        }
    }
}

impl<T> Drop for Run<T> {
    fn drop(&mut self) {
        if let Some(handle) = &self.handle {
            handle.abort();
        }
    }
}

/// Watches a run, and can stop it. Cheap to clone; does not keep the run alive.
#[derive(Clone)]
pub struct Monitor {
    scope: Arc<Scope>,
}

impl Monitor {
    pub(crate) fn new(scope: Arc<Scope>) -> Self {
        Monitor { scope }
    }

    /// The account so far.
    pub fn report(&self) -> Report {
        Report::of(&self.scope.root())
    }

    /// The numbers that may be moved, in the order in which the flow was built.
    pub fn knobs(&self) -> Vec<Knob> {
        self.scope.root().all().iter().flat_map(|scope| scope.knobs()).collect()
    }

    /// Fails the run, as if its source had: for what feeds a source from beside the flow, which may not be polled for long while
    /// its sink is slow. What is under way is given back. The first failure is the run's; after its end nothing happens.
    pub fn fail(&self, error: impl Into<BoxError>) {
        if !self.scope.has_ended() {
            self.scope.fail(RunErrorKind::Source(error.into()));
        }
    }

    /// Tells the sources to accept nothing more. What was accepted flows on, and the run ends when it is done.
    pub fn stop(&self) {
        self.scope.root().stop();
    }
}

impl fmt::Debug for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Monitor").finish_non_exhaustive()
    }
}

/// How a run ended that did not end well.
#[derive(Debug)]
#[non_exhaustive]
pub enum Ended {
    /// It failed.
    Failed(RunErrorKind),
    /// Its shutdown's deadline passed with items under way.
    Deadline(Duration),
}

/// A run that did not end well, with its account.
#[derive(Debug)]
pub struct RunError {
    ended: Ended,
    report: Box<Report>,
}

impl RunError {
    /// How it ended.
    pub fn ended(&self) -> &Ended {
        &self.ended
    }

    /// The account up to the end.
    pub fn report(&self) -> &Report {
        &self.report
    }
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.ended {
            Ended::Failed(RunErrorKind::Item(failure)) => write!(f, "an item failed: {failure}"),
            Ended::Failed(RunErrorKind::Source(error)) => write!(f, "the source failed: {}", chain(&**error)),
            Ended::Failed(RunErrorKind::Sink(error)) => write!(f, "the sink failed: {}", chain(&**error)),
            Ended::Failed(RunErrorKind::Stage(error)) => write!(f, "a stage failed: {}", chain(&**error)),
            Ended::Failed(RunErrorKind::Cancelled) => f.write_str("the run was cancelled"),
            Ended::Deadline(deadline) => write!(
                f,
                "{} items were still under way when the shutdown's deadline of {deadline:?} passed",
                self.report.ledger.in_flight
            ),
        }
    }
}

impl Error for RunError {}
