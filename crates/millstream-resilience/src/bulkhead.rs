//! At most so many calls at once.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::time::timeout;

use crate::{Class, Classify, Idle};

/// A limit for the calls that are made at once, with a bounded queue for those that come when there are more: one slow callee
/// cannot take all there is of a process. Clones are the same bulkhead.
///
/// Those that wait go in the order in which they came.
///
/// ```
/// use millstream_resilience::{BoxError, Bulkhead, Full};
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// let bulkhead = Bulkhead::new(1);
/// let inner = bulkhead.clone();
/// let result: Result<(), BoxError> = bulkhead.call(async || inner.call(async || Ok(())).await).await;
/// assert_eq!(result.unwrap_err().to_string(), "1 calls are running, and none may wait");
/// # }
/// ```
#[derive(Clone)]
pub struct Bulkhead(Arc<Shared>);

struct Shared {
    concurrent: usize,
    queue: usize,
    wait_max: Option<Duration>,
    places: Arc<Semaphore>,
    waiting: AtomicUsize,
    rejected: AtomicUsize,
}

impl Bulkhead {
    /// Up to `concurrent` calls at once; others fail at once.
    ///
    /// # Panics
    /// If `concurrent` is 0, or above [`Semaphore::MAX_PERMITS`].
    pub fn new(concurrent: usize) -> Self {
        assert!(concurrent > 0, "without a place nothing is ever called");
        Bulkhead::make(concurrent, 0, None)
    }

    /// Up to `queue` calls wait for a place. To be said before it is cloned.
    #[must_use]
    pub fn queue(self, queue: usize) -> Self {
        Bulkhead::make(self.0.concurrent, queue, self.0.wait_max)
    }

    /// How long they wait at most; for as long as it takes by default. To be said before it is cloned.
    #[must_use]
    pub fn wait_max(self, wait: Duration) -> Self {
        Bulkhead::make(self.0.concurrent, self.0.queue, Some(wait))
    }

    fn make(concurrent: usize, queue: usize, wait_max: Option<Duration>) -> Self {
        let places = Arc::new(Semaphore::new(concurrent));
        let (waiting, rejected) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Bulkhead(Arc::new(Shared { concurrent, queue, wait_max, places, waiting, rejected }))
    }

    /// Calls, when there is a place.
    ///
    /// # Errors
    /// Those of `call`; [`Full`], as an `E`, if there is no place to wait, or none came free in time.
    ///
    /// # Cancel safety
    /// Dropping it gives its place back, whether it waits or calls.
    pub async fn call<T, E, F>(&self, call: impl FnOnce() -> F) -> Result<T, E>
    where
        E: From<Full>,
        F: Future<Output = Result<T, E>>,
    {
        let _place = self.enter().await?;
        call().await
    }

    /// A place, if there is one now.
    pub fn try_acquire(&self) -> Option<Place> {
        self.0.places.clone().try_acquire_owned().ok().map(Place)
    }

    /// A place, when there is one.
    ///
    /// # Errors
    /// If there is no place to wait, or none came free in time.
    pub async fn acquire(&self) -> Result<Place, Full> {
        if let Some(place) = self.try_acquire() {
            return Ok(place);
        }
        self.waited(self.0.places.clone().acquire_owned()).await.map(Place)
    }

    /// The same for whoever can borrow, at less cost.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    #[inline]
    pub async fn enter(&self) -> Result<Place<SemaphorePermit<'_>>, Full> {
        if let Ok(place) = self.0.places.try_acquire() {
            return Ok(Place(place));
        }
        self.waited(self.0.places.acquire()).await.map(Place)
    }

    /// Waits for a place, if there is a place to wait.
    async fn waited<P>(&self, place: impl Future<Output = Result<P, AcquireError>>) -> Result<P, Full> {
        let Shared { queue, wait_max, waiting, .. } = &*self.0;
        let enter = |waiting: usize| (waiting < *queue).then_some(waiting + 1);
        if waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, enter).is_err() {
            return Err(self.full(false));
        }
        let _leave = Leave(waiting);
        let place = match wait_max {
            None => place.await,
            Some(wait) => timeout(*wait, place).await.map_err(|_| self.full(true))?,
        };
        Ok(place.expect("nobody closes the semaphore"))
    }

    fn full(&self, waited: bool) -> Full {
        let Shared { concurrent, queue, wait_max, rejected, .. } = &*self.0;
        rejected.fetch_add(1, Ordering::Relaxed);
        Full { concurrent: *concurrent, queue: *queue, waited: wait_max.filter(|_| waited) }
    }

    /// How many calls are running, or about to.
    pub fn running(&self) -> usize {
        self.0.concurrent - self.0.places.available_permits()
    }

    /// How many wait for a place.
    pub fn waiting(&self) -> usize {
        self.0.waiting.load(Ordering::Relaxed)
    }

    /// How many were not let in.
    pub fn rejected(&self) -> usize {
        self.0.rejected.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Bulkhead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shared { concurrent, queue, wait_max, .. } = &*self.0;
        f.debug_struct("Bulkhead")
            .field("concurrent", concurrent)
            .field("queue", queue)
            .field("wait_max", wait_max)
            .field("running", &self.running())
            .field("waiting", &self.waiting())
            .finish()
    }
}

/// Nothing runs and nothing waits.
impl Idle for Bulkhead {
    fn is_idle(&self) -> bool {
        self.running() == 0 && self.waiting() == 0
    }
}

/// A place in a [`Bulkhead`], given back when it is dropped.
#[derive(Debug)]
#[must_use = "a place that is dropped is given back"]
pub struct Place<P = OwnedSemaphorePermit>(P);

struct Leave<'a>(&'a AtomicUsize);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The error of a call for which a bulkhead had no place.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Full {
    /// How many calls may run.
    pub concurrent: usize,
    /// How many may wait.
    pub queue: usize,
    /// How long this one waited; `None` if it could not even wait.
    pub waited: Option<Duration>,
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Full { concurrent, queue, waited } = self;
        match (waited, queue) {
            (Some(waited), _) => write!(f, "none of {concurrent} running calls ended within {waited:?}"),
            (None, 0) => write!(f, "{concurrent} calls are running, and none may wait"),
            (None, queue) => write!(f, "{concurrent} calls are running and {queue} wait, as many as may"),
        }
    }
}

impl Error for Full {}

impl Classify for Full {
    fn class(&self) -> Class {
        Class::Throttled { retry_after: None }
    }
}
