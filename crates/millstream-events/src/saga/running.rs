//! The sagas of a process that are on their way.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::acting::Acting;
use super::change::SagaChange;
use super::definition::Definition;
use super::driver::{Common, Driver};
use super::error::BeginError;
use super::names;
use crate::store::Tail;

/// What the handles of a process's sagas share.
pub(super) struct Running {
    pub(super) common: Arc<Common>,
    pub(super) definitions: BTreeMap<String, Arc<dyn Definition>>,
    pub(super) active_max: usize,
    pub(super) active: Mutex<HashMap<(String, String), Active>>,
    /// Some saga has ended.
    pub(super) changed: watch::Sender<()>,
    pub(super) tasks: TaskTracker,
    /// Where drivers run, whoever lets go of a reservation.
    pub(super) runtime: Handle,
}

/// A saga on its way.
pub(super) struct Active {
    wake: Arc<Notify>,
    acting: Acting,
    pub(super) correlation_id: String,
    /// A driver has it.
    driven: bool,
    /// It was heard to have begun.
    begun: bool,
}

impl Active {
    fn new(wake: &Arc<Notify>, correlation_id: &str) -> Active {
        Active {
            wake: wake.clone(),
            acting: Acting::default(),
            correlation_id: correlation_id.to_owned(),
            driven: false,
            begun: false,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.common.stop.cancel();
        self.common.abandon.cancel();
    }
}

impl Running {
    pub(super) fn active(&self) -> MutexGuard<'_, HashMap<(String, String), Active>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn wake(&self, saga: &str, id: &str) {
        if let Some(active) = self.active().get(&(saga.to_owned(), id.to_owned())) {
            active.wake.notify_one();
        }
    }

    /// The step that this process is doing of a saga.
    pub(super) fn acting(&self, saga: &str, id: &str) -> Option<String> {
        self.active().get(&(saga.to_owned(), id.to_owned())).and_then(|active| active.acting.step())
    }

    /// Goes on with a saga that this process has not begun, unless it has it in hand.
    pub(super) fn take_up(self: &Arc<Self>, saga: &str, id: &str, correlation_id: &str) {
        let Some(definition) = self.definitions.get(saga).cloned() else { return };
        let name = (saga.to_owned(), id.to_owned());
        let wake = Arc::new(Notify::new());
        let mut active = self.active();
        if let Some(active) = active.get_mut(&name) {
            // Who begins it may be gone before he hears that he has.
            active.begun = true;
            return;
        }
        active.insert(name.clone(), Active::new(&wake, correlation_id));
        drop(active);
        Reserved { running: Arc::downgrade(self), name, wake }.drive(definition);
    }
}

/// A saga's place among the active ones; given back when dropped.
pub(super) struct Reserved {
    running: Weak<Running>,
    name: (String, String),
    wake: Arc<Notify>,
}

impl Reserved {
    pub(super) fn of(
        running: &Arc<Running>,
        saga: &str,
        id: &str,
        correlation_id: &str,
    ) -> Result<Reserved, BeginError> {
        let name = (saga.to_owned(), id.to_owned());
        let mut active = running.active();
        if active.contains_key(&name) {
            let (saga, id) = name;
            return Err(BeginError::Begun { saga, id });
        }
        if active.len() >= running.active_max {
            return Err(BeginError::TooMany { active: active.len() });
        }
        let wake = Arc::new(Notify::new());
        active.insert(name.clone(), Active::new(&wake, correlation_id));
        Ok(Reserved { running: Arc::downgrade(running), name, wake })
    }

    pub(super) fn drive(self, definition: Arc<dyn Definition>) {
        let Some(running) = self.running.upgrade() else { return };
        let mut acting = Acting::default();
        if let Some(active) = running.active().get_mut(&self.name) {
            active.driven = true;
            acting = active.acting.clone();
        }
        let driver = Driver {
            common: running.common.clone(),
            definition,
            id: self.name.1.clone(),
            wake: self.wake.clone(),
            acting,
        };
        let runtime = running.runtime.clone();
        running.tasks.spawn_on(
            async move {
                if driver.drive().await {
                    // It keeps its place: whoever tells it of an event must not hear that nobody waits for that.
                    std::mem::forget(self);
                }
            },
            &runtime,
        );
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let Some(running) = self.running.upgrade() else { return };
        let was = running.active().remove(&self.name);
        if let Some(Active { driven: false, begun: true, correlation_id, .. }) = was {
            running.take_up(&self.name.0, &self.name.1, &correlation_id);
        }
        running.changed.send_replace(());
    }
}

/// Hears what is stored of sagas, by this process or another.
pub(super) async fn follow(running: Weak<Running>, stop: CancellationToken, mut tail: Tail) {
    loop {
        let chunk = tokio::select! {
            chunk = tail.next_chunk() => chunk,
            () = stop.cancelled() => return,
        };
        let events = match chunk {
            Ok(events) => events,
            Err(error) => {
                let error = millstream_flow::chain(&error);
                tracing::error!(error, "what others store of sagas is no longer heard");
                return;
            }
        };
        let Some(running) = running.upgrade() else { return };
        for event in &events {
            let Some((saga, id)) = names(&event.stream) else { continue };
            match SagaChange::of(event) {
                Some(SagaChange::Begun { correlation_id, .. }) => running.take_up(saga, id, &correlation_id),
                Some(SagaChange::Ended { .. }) => {
                    running.wake(saga, id);
                    running.changed.send_replace(());
                }
                _ => running.wake(saga, id),
            }
        }
    }
}
