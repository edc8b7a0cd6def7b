//! Hyper's tasks: where the gateway can wait for them, and end them, one by one or all.

use futures_util::future::{AbortHandle, Abortable};
use tokio_util::future::FutureExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Ends one task. If it was at a stream, that is reset.
pub(crate) type Abort = AbortHandle;

tokio::task_local! {
    static CURRENT: Abort;
}

/// The end of the task of hyper's that runs here, if one does.
pub(crate) fn current() -> Option<Abort> {
    CURRENT.try_with(Abort::clone).ok()
}

/// Spawns hyper's tasks.
#[derive(Clone)]
pub(super) struct Tasks {
    tracker: TaskTracker,
    stopped: CancellationToken,
}

impl Tasks {
    pub(super) fn new(tracker: &TaskTracker, stopped: &CancellationToken) -> Tasks {
        Tasks { tracker: tracker.clone(), stopped: stopped.clone() }
    }

    /// Spawns what drives a whole connection, which no stream may end.
    pub(super) fn drive(&self, future: impl Future<Output: Send> + Send + 'static) {
        self.tracker.spawn(future.with_cancellation_token_owned(self.stopped.clone()));
    }
}

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, future: F) {
        let (abort, registration) = AbortHandle::new_pair();
        self.drive(CURRENT.scope(abort, Abortable::new(future, registration)));
    }
}
