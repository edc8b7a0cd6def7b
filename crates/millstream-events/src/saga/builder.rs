//! Which sagas a process runs, and how.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use millstream_flow::Clock;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::SAGA_STREAMS;
use super::definition::{Definition, Saga};
use super::driver::{Common, Counted};
use super::running::{Running, follow};
use super::sagas::Sagas;
use crate::store::{EventStore, Filter, StoreError};

/// Which sagas a process runs, and how: [`Sagas::builder`].
#[must_use = "nothing runs before `start`"]
pub struct SagasBuilder {
    store: EventStore,
    definitions: Vec<Result<Arc<dyn Definition>, String>>,
    concurrency: usize,
    active_max: usize,
    clock: Clock,
}

impl fmt::Debug for SagasBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SagasBuilder").field("definitions", &self.definitions.len()).finish_non_exhaustive()
    }
}

impl SagasBuilder {
    pub(super) fn new(store: EventStore) -> SagasBuilder {
        SagasBuilder {
            store,
            definitions: Vec::new(),
            concurrency: 64,
            active_max: 10_000,
            clock: Clock::system(),
        }
    }

    /// Runs sagas of this definition.
    pub fn saga<S>(mut self, saga: Saga<S>) -> Self
    where
        S: Serialize + DeserializeOwned + Send + 'static,
    {
        self.definitions.push(saga.erased());
        self
    }

    /// How many steps may be under way at once, of all sagas together. Default 64. Sagas that wait do not count.
    ///
    /// # Panics
    /// If it is 0.
    pub fn concurrency(mut self, steps: usize) -> Self {
        assert!(steps > 0, "no step would ever be begun");
        self.concurrency = steps;
        self
    }

    /// How many sagas may be active at once before no more are begun. Default 10,000: each is a task of some kilobytes, and its
    /// state. Those that are resumed count, and are resumed in any case.
    ///
    /// # Panics
    /// If it is 0.
    pub fn active_max(mut self, sagas: usize) -> Self {
        assert!(sagas > 0, "no saga would ever be begun");
        self.active_max = sagas;
        self
    }

    /// The clock by which delays, times of waiting and deadlines are reckoned: without this, the system's. For tests that pause the time
    /// and begin sagas again.
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Goes on with all sagas that have not ended, and takes new ones.
    ///
    /// # Errors
    /// If a definition is not sound (the error says of each why), or the store cannot be read.
    pub async fn start(self) -> Result<Sagas, StoreError> {
        let mut definitions: BTreeMap<String, Arc<dyn Definition>> = BTreeMap::new();
        let mut problems = Vec::new();
        for definition in self.definitions {
            match definition {
                Err(problem) => problems.push(problem),
                Ok(definition) => {
                    let name = definition.name().to_owned();
                    if definitions.insert(name.clone(), definition).is_some() {
                        problems.push(format!("there are two sagas `{name}`"));
                    }
                }
            }
        }
        if !problems.is_empty() {
            return Err(StoreError::Invalid(problems.join("; ")));
        }
        self.store.refresh().await?;
        let common = Arc::new(Common {
            store: self.store.clone(),
            clock: self.clock,
            steps: Semaphore::new(self.concurrency),
            stop: CancellationToken::new(),
            abandon: CancellationToken::new(),
            counted: Counted::default(),
        });
        let sagas = Sagas(Arc::new(Running {
            common,
            definitions,
            active_max: self.active_max,
            active: Mutex::default(),
            changed: watch::Sender::new(()),
            tasks: TaskTracker::new(),
            runtime: Handle::current(),
        }));
        // From here on what others store is heard; what is there now is looked up.
        let filter = Filter::all().streams(SAGA_STREAMS);
        let tail = self.store.tail(filter);
        sagas.resume().await?;
        sagas.0.tasks.spawn(follow(Arc::downgrade(&sagas.0), sagas.0.common.stop.clone(), tail));
        Ok(sagas)
    }
}
