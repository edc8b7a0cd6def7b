//! At most so many calls at once.

use std::borrow::Borrow;
use std::error::Error;
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Semaphore;
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
    /// How many calls run, and in the upper half how many wait. None waits while fewer run than may: whoever leaves then hands
    /// its place over, and as many run as before.
    held: AtomicU64,
    /// Where they wait, in their order. It has a permit for each place that was handed over and is not taken yet.
    line: Semaphore,
    /// Held while a place is handed over, and while somebody leaves the line. Whoever has the place is woken meanwhile, which a
    /// task's waker bears: it does not poll or drop the task then and there, and so does not come back here.
    hand: Mutex<()>,
    rejected: AtomicUsize,
}

/// One that waits, in [`Shared::held`].
const WAITING: u64 = 1 << 32;

const fn running(held: u64) -> u64 {
    held % WAITING
}

const fn waiting(held: u64) -> u64 {
    held / WAITING
}

impl Shared {
    /// Takes a place, or a place in the line: true if it was one to call.
    fn stand(&self) -> Option<bool> {
        let enter = |held| {
            if running(held) < half(self.concurrent) {
                Some(held + 1)
            } else {
                (waiting(held) < half(self.queue)).then_some(held + WAITING)
            }
        };
        let before = self.held.fetch_update(Ordering::Acquire, Ordering::Relaxed, enter).ok()?;
        Some(running(before) < half(self.concurrent))
    }

    #[inline]
    fn enter(&self) -> bool {
        let enter = |held| (running(held) < half(self.concurrent)).then_some(held + 1);
        self.held.fetch_update(Ordering::Acquire, Ordering::Relaxed, enter).is_ok()
    }

    /// Gives a place back.
    #[inline]
    fn leave(&self) {
        let leave = |held| (waiting(held) == 0).then(|| held - 1);
        if self.held.fetch_update(Ordering::Release, Ordering::Relaxed, leave).is_err() {
            self.hand_over();
        }
    }

    #[cold]
    fn hand_over(&self) {
        let _hand = self.hand.lock().expect("nothing panics while it is held");
        let leave = |held| Some(if waiting(held) == 0 { held - 1 } else { held - WAITING });
        let before = self.held.fetch_update(Ordering::Release, Ordering::Relaxed, leave);
        if before.is_ok_and(|held| waiting(held) > 0) {
            self.line.add_permits(1);
        }
    }

    /// Leaves the line, and gives back the place that was handed over meanwhile, if it was.
    #[cold]
    fn give_up(&self) {
        {
            let _hand = self.hand.lock().expect("nothing panics while it is held");
            let leave = |held| (waiting(held) > 0).then(|| held - WAITING);
            if self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, leave).is_ok() {
                return;
            }
            // Nobody waits for a place any more, so that each in the line has one: whoever leaves it leaves one.
            self.line.try_acquire().expect("one for each in the line").forget();
        }
        self.leave();
    }
}

/// What fits into half of [`Shared::held`].
const fn half(count: usize) -> u64 {
    let (count, most) = (count as u64, WAITING - 1);
    if count < most { count } else { most }
}

impl Bulkhead {
    /// Up to `concurrent` calls at once; others fail at once. 2^32 - 1 is no bound for anything here, nor is more.
    ///
    /// # Panics
    /// If `concurrent` is 0.
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
        Bulkhead(Arc::new(Shared {
            concurrent,
            queue,
            wait_max,
            held: AtomicU64::new(0),
            line: Semaphore::new(0),
            hand: Mutex::new(()),
            rejected: AtomicUsize::new(0),
        }))
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
        self.0.enter().then(|| Place(self.clone()))
    }

    /// A place, when there is one.
    ///
    /// # Errors
    /// If there is no place to wait, or none came free in time.
    pub async fn acquire(&self) -> Result<Place, Full> {
        if !self.0.enter() {
            self.wait().await?;
        }
        Ok(Place(self.clone()))
    }

    /// The same for whoever can borrow, at less cost.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    #[inline]
    pub async fn enter(&self) -> Result<Place<&Bulkhead>, Full> {
        if !self.0.enter() {
            self.wait().await?;
        }
        Ok(Place(self))
    }

    /// Waits for a place, if there is a place to wait.
    async fn wait(&self) -> Result<(), Full> {
        let Shared { wait_max, line, .. } = &*self.0;
        match self.0.stand() {
            None => return Err(self.full(false)),
            Some(true) => return Ok(()),
            Some(false) => {}
        }
        let stands = Stands(&self.0);
        let turn = match wait_max {
            None => line.acquire().await,
            Some(wait) => timeout(*wait, line.acquire()).await.map_err(|_| self.full(true))?,
        };
        turn.expect("nobody closes the semaphore").forget();
        std::mem::forget(stands);
        Ok(())
    }

    fn full(&self, waited: bool) -> Full {
        let Shared { concurrent, queue, wait_max, rejected, .. } = &*self.0;
        rejected.fetch_add(1, Ordering::Relaxed);
        Full { concurrent: *concurrent, queue: *queue, waited: wait_max.filter(|_| waited) }
    }

    /// How many calls are running, or about to.
    pub fn running(&self) -> usize {
        running(self.0.held.load(Ordering::Relaxed)) as usize
    }

    /// How many wait for a place.
    pub fn waiting(&self) -> usize {
        waiting(self.0.held.load(Ordering::Relaxed)) as usize
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

/// Nothing runs and nothing waits, and there are no clones.
impl Idle for Bulkhead {
    fn is_idle(&self) -> bool {
        Arc::strong_count(&self.0) == 1 && self.running() == 0 && self.waiting() == 0
    }
}

/// A place in a [`Bulkhead`], given back when it is dropped.
#[derive(Debug)]
#[must_use = "a place that is dropped is given back"]
pub struct Place<B: Borrow<Bulkhead> = Bulkhead>(B);

impl<B: Borrow<Bulkhead>> Drop for Place<B> {
    #[inline]
    fn drop(&mut self) {
        self.0.borrow().0.leave();
    }
}

/// Somebody in the line.
struct Stands<'a>(&'a Shared);

impl Drop for Stands<'_> {
    fn drop(&mut self) {
        self.0.give_up();
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
