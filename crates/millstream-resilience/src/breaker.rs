//! A circuit breaker: does not call what fails too often, for a while.

use std::borrow::Borrow;
use std::fmt;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{Notify, broadcast, watch};
use tokio::time::{Instant, timeout_at};

use crate::{ByTrait, Class, Classifier, Classify, Idle};
use book::{Admission, Book, Change, Ended};
use window::Call;

mod book;
mod event;
mod settings;
mod window;

pub use event::{BreakerEvent, BreakerSnapshot, BreakerState, Cause, Mode, Open};
pub use settings::{BreakerSettings, Window};

/// Stops calls to what fails, or dawdles, too often; after a pause, lets a few through and closes again if they succeed.
///
/// It counts by [`Class`]: transient and throttled errors are failures; permanent ones are successes, since the callee answered;
/// cancelled calls, and those that are dropped, say nothing. Results count by the state in which their calls *began*, so that what
/// was under way when it opened cannot close it. Clones are the same breaker.
///
/// A call that may not be made fails with [`Open`] at once ([`call`](Self::call)), or waits until it may be made
/// ([`acquire`](Self::acquire)), which pauses whatever waits for it, up to a flow's source.
///
/// ```
/// use millstream_resilience::{BoxError, BreakerSettings, BreakerState, CircuitBreaker, Open};
/// use std::time::Duration;
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// let settings = BreakerSettings::default().name("orders").calls_min(2).pause(Duration::from_secs(5)).probes(1);
/// let breaker = CircuitBreaker::new(settings);
/// for _ in 0..2 {
///     let _ = breaker.call(async || Err::<(), BoxError>("refused".into())).await;
/// }
/// let error = breaker.call(async || Ok::<(), BoxError>(())).await.unwrap_err();
/// assert_eq!(error.to_string(), "orders is open for another 5s");
///
/// tokio::time::sleep(Duration::from_secs(5)).await;
/// assert!(breaker.call(async || Ok::<(), BoxError>(())).await.is_ok());
/// assert_eq!(breaker.state(), BreakerState::Closed);
/// # }
/// ```
#[derive(Clone)]
pub struct CircuitBreaker(Arc<Shared>);

struct Shared {
    /// The era in the upper bits; [`CLOSED`] while calls need not ask the book.
    gate: AtomicU64,
    slow: Option<Duration>,
    book: Mutex<Book>,
    /// Rung when waiting calls should look again.
    change: Notify,
    states: watch::Sender<BreakerState>,
    /// Once somebody listens.
    events: OnceLock<broadcast::Sender<BreakerEvent>>,
}

const CLOSED: u64 = 1;
/// Events that a receiver may lag behind before it loses the oldest.
const EVENTS: usize = 64;

impl CircuitBreaker {
    /// A closed one.
    pub fn new(settings: BreakerSettings) -> Self {
        Self::make(settings, OnceLock::new())
    }

    /// One of several whose events go the same way: those of a [`Keyed`](crate::Keyed), for example.
    pub fn with_events(settings: BreakerSettings, events: broadcast::Sender<BreakerEvent>) -> Self {
        Self::make(settings, events.into())
    }

    fn make(settings: BreakerSettings, events: OnceLock<broadcast::Sender<BreakerEvent>>) -> Self {
        CircuitBreaker(Arc::new(Shared {
            gate: AtomicU64::new(CLOSED),
            slow: settings.slow.map(|slow| slow.longer_than),
            book: Mutex::new(Book::new(settings, Instant::now())),
            change: Notify::new(),
            states: watch::Sender::new(BreakerState::Closed),
            events,
        }))
    }

    /// Calls, if that is allowed; errors are of the class that they say themselves.
    ///
    /// # Errors
    /// Those of `call`; [`Open`], as an `E`, if it is not allowed.
    ///
    /// # Panics
    /// If `call` does, which counts as a failure.
    ///
    /// # Cancel safety
    /// A call that is dropped does not count, and gives the place of a probe back.
    pub async fn call<T, E, F>(&self, call: impl FnOnce() -> F) -> Result<T, E>
    where
        E: From<Open> + Classify,
        F: Future<Output = Result<T, E>>,
    {
        self.call_with(&ByTrait, call).await
    }

    /// As [`call`](Self::call), with errors of the class that `classifier` says.
    ///
    /// # Errors
    /// Those of `call`; [`Open`], as an `E`, if it is not allowed.
    pub async fn call_with<T, E, F>(
        &self,
        classifier: &impl Classifier<E>,
        call: impl FnOnce() -> F,
    ) -> Result<T, E>
    where
        E: From<Open>,
        F: Future<Output = Result<T, E>>,
    {
        let mut permit = self.try_acquire()?;
        let mut calling = pin!(permit.work(call));
        let result = poll_fn(|cx| permit.poll(calling.as_mut(), cx)).await;
        permit.end(result.as_ref().err().map(|error| classifier.classify(error)));
        result
    }

    /// The permit for a call, if it may be made now.
    ///
    /// # Errors
    /// If it may not.
    #[inline]
    pub fn try_acquire(&self) -> Result<Permit<&Self>, Open> {
        Ok(Permit::new(self, self.enter()?))
    }

    /// The same, for whoever cannot borrow.
    ///
    /// # Errors
    /// If it may not.
    pub fn try_acquire_owned(&self) -> Result<Permit<Self>, Open> {
        Ok(Permit::new(self.clone(), self.enter()?))
    }

    /// The permit for a call, as soon as it may be made.
    ///
    /// # Cancel safety
    /// Dropping it while it waits changes nothing for others.
    pub async fn acquire(&self) -> Permit<&Self> {
        loop {
            let change = self.0.change.notified();
            let mut change = std::pin::pin!(change);
            change.as_mut().enable();
            let until = match self.admit() {
                Admission::Now(era) => return Permit::new(self, era),
                Admission::NotBefore(until) => until,
            };
            match until {
                None => change.await,
                Some(until) => _ = timeout_at(until, change).await,
            }
        }
    }

    /// Waits until a call may be made, and leaves it to others: what a source waits for that is to pause. Somebody must make
    /// calls then, since an open breaker closes by calls that succeed, and by nothing else.
    pub async fn until_ready(&self) {
        drop(self.acquire().await);
    }

    #[inline]
    fn enter(&self) -> Result<u64, Open> {
        let gate = self.0.gate.load(Ordering::Acquire);
        if gate & CLOSED != 0 { Ok(gate >> 1) } else { self.ask() }
    }

    #[cold]
    fn ask(&self) -> Result<u64, Open> {
        let now = Instant::now();
        let mut book = self.book();
        let (admission, change) = book.admit(now);
        let answer = match admission {
            Admission::Now(era) => Ok(era),
            Admission::NotBefore(until) => {
                book.rejected += 1;
                let state = book.state();
                // Probes may end at any time: that they may take until then is no reason to wait for so long.
                let until = until.filter(|_| state == BreakerState::Open);
                let retry_after = until.map(|until| until.saturating_duration_since(now));
                Err(Open { name: book.settings.name.clone(), state, retry_after })
            }
        };
        self.tell(book, change);
        answer
    }

    fn admit(&self) -> Admission {
        let now = Instant::now();
        let mut book = self.book();
        let (admission, change) = book.admit(now);
        self.tell(book, change);
        admission
    }

    #[inline]
    fn end(&self, era: u64, ended: Ended) {
        let mut book = self.book();
        let change = book.end(era, ended, Instant::now);
        if change.is_some() {
            self.tell(book, change);
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.book.lock().expect("nothing panics while the book is held")
    }

    /// Tells whom it concerns. The book is held meanwhile, so that all hear the same order; nobody of them can hold it up.
    fn tell(&self, book: MutexGuard<'_, Book>, change: Option<Change>) {
        let Shared { gate, change: waiting, states, events, .. } = &*self.0;
        if let Some(Change::State { from, cause }) = change {
            let to = book.state();
            gate.store(book.era << 1 | u64::from(to == BreakerState::Closed), Ordering::Release);
            let name = book.settings.name.clone();
            match to {
                BreakerState::Open => tracing::warn!(breaker = %name, %cause, "a circuit breaker opens"),
                _ => tracing::info!(breaker = %name, %cause, "a circuit breaker is {to}"),
            }
            states.send_replace(to);
            if let Some(events) = events.get() {
                let _ = events.send(BreakerEvent { name, from, to, cause });
            }
        }
        drop(book);
        if change.is_some() {
            waiting.notify_waiters();
        }
    }

    fn set(&self, mode: Mode) {
        let mut book = self.book();
        let change = book.set(mode, Instant::now());
        self.tell(book, Some(change));
    }

    /// Opens it by hand, for one pause.
    pub fn trip(&self) {
        let mut book = self.book();
        book.mode = Mode::Automatic;
        let change = book.open(Cause::Manual, Instant::now());
        self.tell(book, Some(change));
    }

    /// Opens it by hand until [`reset`](Self::reset), or another such word.
    pub fn force_open(&self) {
        self.set(Mode::ForcedOpen);
    }

    /// Closes it by hand until [`reset`](Self::reset), or another such word. It counts, and does not open.
    pub fn force_closed(&self) {
        self.set(Mode::ForcedClosed);
    }

    /// Switches it off until [`reset`](Self::reset), or another such word: all calls are made, and none is counted.
    pub fn disable(&self) {
        self.set(Mode::Disabled);
    }

    /// Closes it, forgets what it counted, and lets it decide by itself again.
    pub fn reset(&self) {
        self.set(Mode::Automatic);
    }

    /// What it does with calls now. An open one whose pause is over is open until somebody calls.
    pub fn state(&self) -> BreakerState {
        self.book().state()
    }

    /// Its states, as they change.
    pub fn states(&self) -> watch::Receiver<BreakerState> {
        self.0.states.subscribe()
    }

    /// What happens from now on. A receiver that is 64 events behind loses the oldest, and is told so; nobody waits for it.
    pub fn events(&self) -> broadcast::Receiver<BreakerEvent> {
        self.0.events.get_or_init(|| broadcast::Sender::new(EVENTS)).subscribe()
    }

    /// What it has counted and decided.
    pub fn snapshot(&self) -> BreakerSnapshot {
        let now = Instant::now();
        let mut book = self.book();
        let tally = book.tally(now);
        BreakerSnapshot {
            name: book.settings.name.clone(),
            state: book.state(),
            mode: book.mode,
            age: now.saturating_duration_since(book.since),
            retry_after: book.opens_in(now),
            calls: tally.calls,
            failures: tally.failures,
            slow: tally.slow,
            calls_total: book.ended,
            failures_total: book.failed,
            opened: book.opened,
            rejected: book.rejected,
        }
    }

    /// How it was set.
    pub fn settings(&self) -> BreakerSettings {
        self.book().settings.clone()
    }
}

impl fmt::Debug for CircuitBreaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CircuitBreaker").field(&self.snapshot()).field(&self.settings()).finish()
    }
}

/// Closed, and nothing has failed lately.
impl Idle for CircuitBreaker {
    fn is_idle(&self) -> bool {
        if Arc::strong_count(&self.0) > 1 {
            return false;
        }
        let snapshot = self.snapshot();
        snapshot.state == BreakerState::Closed
            && snapshot.mode == Mode::Automatic
            && snapshot.failures + snapshot.slow == 0
    }
}

/// A call that may be made. Dropped without a word it says nothing, and gives the place of a probe back; but a call that panics when
/// it is [polled](Permit::poll) through its permit has failed.
#[derive(Debug)]
#[must_use = "a permit that is dropped is given back"]
pub struct Permit<B: Borrow<CircuitBreaker> = CircuitBreaker> {
    breaker: B,
    era: u64,
    /// Only where slow calls count.
    began: Option<Instant>,
    call: Doing,
}

/// What the call of a permit does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doing {
    Waits,
    /// It is at work, and not another one of its thread.
    Works,
    Ended,
}

impl<B: Borrow<CircuitBreaker>> Permit<B> {
    #[inline]
    fn new(breaker: B, era: u64) -> Self {
        let began = breaker.borrow().0.slow.map(|_| Instant::now());
        Permit { breaker, era, began, call: Doing::Waits }
    }

    /// Polls the call: if that panics, it has failed.
    #[inline]
    pub fn poll<F: Future>(&mut self, call: Pin<&mut F>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.work(|| call.poll(cx))
    }

    /// Does a part of the call, such as to begin it: if that panics, it has failed.
    #[inline]
    pub fn work<T>(&mut self, part: impl FnOnce() -> T) -> T {
        self.begin_work();
        let done = part();
        self.end_work();
        done
    }

    /// The call is at work from now on: if the permit is dropped meanwhile, that is by a panic of the call, which has failed.
    #[inline]
    pub fn begin_work(&mut self) {
        self.call = Doing::Works;
    }

    /// The call waits again, or others work: if the permit is dropped meanwhile, nothing is known of it.
    #[inline]
    pub fn end_work(&mut self) {
        self.call = Doing::Waits;
    }

    /// Nobody has said how the call has ended.
    #[cold]
    fn dropped(&self) {
        let ended = match self.call {
            Doing::Works => Ended::Counted(Call { failed: true, slow: false }),
            Doing::Waits | Doing::Ended => Ended::Ignored,
        };
        self.breaker.borrow().end(self.era, ended);
    }

    /// The call has succeeded.
    #[inline]
    pub fn succeed(self) {
        self.end(None);
    }

    /// The call has failed in a way that counts.
    pub fn fail(self) {
        self.end(Some(Class::Transient));
    }

    /// The call has ended, with an error of this class if it failed.
    #[inline]
    pub fn end(mut self, error: Option<Class>) {
        self.call = Doing::Ended;
        let breaker = self.breaker.borrow();
        let ended = match error {
            Some(Class::Cancelled) => Ended::Ignored,
            _ => {
                let slow = match (self.began, breaker.0.slow) {
                    (Some(began), Some(longer_than)) => began.elapsed() > longer_than,
                    _ => false,
                };
                Ended::Counted(Call { failed: error.is_some_and(Class::is_retryable), slow })
            }
        };
        breaker.end(self.era, ended);
    }
}

impl<B: Borrow<CircuitBreaker>> Drop for Permit<B> {
    #[inline]
    fn drop(&mut self) {
        if self.call != Doing::Ended {
            self.dropped();
        }
    }
}
