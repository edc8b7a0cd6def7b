//! Tasks that a flow owns: started when somebody first asks for their items, stopped when nobody can any more.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};

use tokio::task::AbortHandle;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::failure::{Failure, Panicked};
use crate::scope::{RunErrorKind, Scope};
use crate::stats::StageStats;

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A task whose panic fails the run. Those of users' functions are caught where their item is known; this is for
/// what is called elsewhere, so that a stage never ends as if its source had.
pub(crate) struct Guarded<T> {
    future: Pin<Box<dyn Future<Output = T> + Send>>,
    scope: Arc<Scope>,
    stage: Arc<StageStats>,
    /// After `future`, whose end it announces.
    _leaving: Leaving,
}

impl<T> Guarded<T> {
    pub(crate) fn new(
        scope: Arc<Scope>,
        stage: Arc<StageStats>,
        future: impl Future<Output = T> + Send + 'static,
    ) -> Self {
        Guarded { future: Box::pin(future), scope, stage, _leaving: Leaving::default() }
    }
}

impl<T> Future for Guarded<T> {
    /// `None` if the task panicked.
    type Output = Option<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        match catch_unwind(AssertUnwindSafe(|| self.future.as_mut().poll(cx))) {
            Ok(polled) => polled.map(Some),
            Err(payload) => {
                self.stage.add_panic();
                let failure =
                    Failure::new(self.stage.name(), &Panicked::new(payload), self.scope.clock().now());
                tracing::error!(stage = %failure.stage, reason = %failure.reason, "a stage panicked");
                self.scope.fail(RunErrorKind::Item(failure));
                Poll::Ready(None)
            }
        }
    }
}

/// Where a task that nobody needs any more finds what it drops when it has ended.
#[derive(Clone, Default)]
struct Leaving(Arc<Mutex<Option<TaskTrackerToken>>>);

struct Running {
    abort: AbortHandle,
    leaving: Leaving,
}

enum State {
    Waiting(Vec<Task>),
    Running(Vec<Running>),
}

/// Tasks shared by those who read from them. The first reader starts them; the last one to go aborts them.
#[derive(Clone)]
pub(crate) struct Tasks {
    shared: Arc<Shared>,
    started: bool,
}

struct Shared {
    state: Mutex<State>,
    scope: Arc<Scope>,
    stage: Arc<StageStats>,
}

impl Tasks {
    /// The tasks of one stage.
    pub(crate) fn new(scope: Arc<Scope>, stage: Arc<StageStats>, tasks: Vec<Task>) -> Self {
        let state = Mutex::new(State::Waiting(tasks));
        Tasks { shared: Arc::new(Shared { state, scope, stage }), started: false }
    }

    /// For somebody else to start them, who does not keep them alive.
    pub(crate) fn starter(&self) -> Starter {
        Starter(Arc::downgrade(&self.shared))
    }

    /// Starts the tasks on the runtime that polls the flow, if nobody has yet.
    #[inline]
    pub(crate) fn start(&mut self) {
        if !self.started {
            self.started = true;
            self.shared.start();
        }
    }
}

/// Starts tasks on behalf of who will read from them.
pub(crate) struct Starter(Weak<Shared>);

impl Starter {
    /// Starts the tasks if their reader is still there.
    pub(crate) fn start(self) {
        if let Some(shared) = self.0.upgrade() {
            shared.start();
        }
    }
}

impl Shared {
    #[cold]
    fn start(&self) {
        let mut state = self.state.lock().expect("spawning does not panic inside a runtime");
        if let State::Waiting(tasks) = &mut *state {
            let spawn = |task| {
                let leaving = Leaving::default();
                let task = Guarded {
                    future: task,
                    scope: self.scope.clone(),
                    stage: self.stage.clone(),
                    _leaving: leaving.clone(),
                };
                Running { abort: tokio::spawn(task).abort_handle(), leaving }
            };
            *state = State::Running(tasks.drain(..).map(spawn).collect());
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Ok(State::Running(tasks)) = self.state.get_mut() {
            for Running { abort, leaving } in tasks {
                // From now on the run waits for the task. Until now it may have served another run's lane.
                let token = self.scope.leaving.token();
                *leaving.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(token);
                abort.abort();
            }
        }
    }
}
