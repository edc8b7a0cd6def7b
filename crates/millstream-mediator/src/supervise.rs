//! Tasks that outlive the call which began them, but never the mediator.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

tokio::task_local! {
    /// Whose task this is, by the place of its permits in memory.
    static WITHIN: usize;
}

/// How long tasks that are stopped are waited for: one that does not give way by then blocks its thread.
const GIVES_WAY: Duration = Duration::from_secs(1);

/// Begins tasks, counts them, and ends them with itself.
pub(crate) struct Supervisor {
    tasks: TaskTracker,
    stop: CancellationToken,
    permits: Arc<Semaphore>,
    tasks_max: usize,
}

impl Supervisor {
    /// One with room for so many tasks at once.
    pub(crate) fn new(tasks_max: usize) -> Self {
        let tasks_max = tasks_max.min(Semaphore::MAX_PERMITS);
        let permits = Arc::new(Semaphore::new(tasks_max));
        Supervisor { tasks: TaskTracker::new(), stop: CancellationToken::new(), permits, tasks_max }
    }

    /// Room for one task, waited for. One of its own tasks does not wait: it holds room itself, and if all did, nobody would ever
    /// go on.
    pub(crate) async fn room(&self) -> Room {
        // Whoever drains waits for the task from now on: what has room then begins before the end, and nothing after it.
        let counted = self.tasks.token();
        let permit = match self.permits.clone().try_acquire_owned() {
            Ok(permit) => Some(permit),
            Err(TryAcquireError::Closed) => None,
            Err(TryAcquireError::NoPermits)
                if WITHIN.try_with(|within| *within == self.key()).unwrap_or(false) =>
            {
                return Room::Here;
            }
            Err(TryAcquireError::NoPermits) => self.permits.clone().acquire_owned().await.ok(),
        };
        permit.map_or(Room::Closed, |permit| Room::Own(Held { _permit: permit, _counted: counted }))
    }

    fn key(&self) -> usize {
        Arc::as_ptr(&self.permits).addr()
    }

    /// Begins a task in that room. It is dropped where it is when the supervisor is.
    pub(crate) fn spawn(&self, held: Held, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        tokio::spawn(WITHIN.scope(self.key(), async move {
            let _held = held;
            tokio::select! {
                () = stop.cancelled() => {}
                () = task => {}
            }
        }));
    }

    /// Lets no more tasks begin, and waits for those there are.
    pub(crate) async fn drain(&self) {
        self.permits.close();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// As [`drain`](Self::drain) until the deadline; what is under way then is dropped where it is. Returns how many tasks that were.
    pub(crate) async fn drain_within(&self, deadline: Duration) -> usize {
        if timeout(deadline, self.drain()).await.is_ok() {
            return 0;
        }
        let left = self.tasks_max - self.permits.available_permits();
        self.stop.cancel();
        let _ = timeout(GIVES_WAY, self.tasks.wait()).await;
        left
    }
}

/// Where a task may run.
pub(crate) enum Room {
    /// By itself.
    Own(Held),
    /// Where it is asked for: in one of the supervisor's tasks, while there are as many as may be.
    Here,
    /// Nowhere: it drains.
    Closed,
}

/// Room for one task.
pub(crate) struct Held {
    _permit: OwnedSemaphorePermit,
    _counted: TaskTrackerToken,
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use futures_util::FutureExt;
    use tokio::task::yield_now;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_has_room_ends_before_a_drain_does() {
        let supervisor = Supervisor::new(2);
        let Room::Own(room) = supervisor.room().await else { panic!("there is room for two") };
        let mut drain = std::pin::pin!(supervisor.drain());
        assert!(drain.as_mut().now_or_never().is_none(), "a task may still begin");
        assert!(matches!(supervisor.room().await, Room::Closed), "no other may");
        let ended = Arc::new(AtomicBool::new(false));
        let end = ended.clone();
        supervisor.spawn(room, async move {
            yield_now().await;
            end.store(true, Ordering::SeqCst);
        });
        drain.await;
        assert!(ended.load(Ordering::SeqCst));
    }
}
