//! Tasks that outlive the call which began them, but never the mediator.

use std::future::Future;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Begins tasks, counts them, and ends them with itself.
pub(crate) struct Supervisor {
    tasks: TaskTracker,
    stop: CancellationToken,
    permits: Arc<Semaphore>,
}

impl Supervisor {
    /// One with room for so many tasks at once.
    pub(crate) fn new(tasks_max: usize) -> Self {
        let permits = Arc::new(Semaphore::new(tasks_max.min(Semaphore::MAX_PERMITS)));
        Supervisor { tasks: TaskTracker::new(), stop: CancellationToken::new(), permits }
    }

    /// Room for one task, waited for. `None` once it drains.
    pub(crate) async fn room(&self) -> Option<OwnedSemaphorePermit> {
        self.permits.clone().acquire_owned().await.ok()
    }

    /// Begins a task in that room. It is dropped where it is when the supervisor is.
    pub(crate) fn spawn(&self, room: OwnedSemaphorePermit, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            let _room = room;
            tokio::select! {
                () = stop.cancelled() => {}
                () = task => {}
            }
        });
    }

    /// Lets no more tasks begin, and waits for those there are.
    pub(crate) async fn drain(&self) {
        self.permits.close();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
