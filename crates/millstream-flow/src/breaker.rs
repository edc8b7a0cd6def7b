//! A circuit breaker whose calls wait instead of failing: the flow behind them pauses up to its source.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};

use crate::timer::bounded;

/// Stops calling what fails too often, for a while, and tries again with a few calls before it goes on.
///
/// Made for flows: a call that may not be made now *waits*. With [`try_map_async`](crate::Pipe::try_map_async) that
/// fills the calls in flight, and then nothing more is taken from the source until the other side has recovered; no item
/// fails because others did. Clones are the same breaker, for several flows that call the same thing.
///
/// Results count by the calls that were begun since the breaker last changed its mind; a call that is dropped counts as
/// neither.
///
/// ```
/// use millstream_flow::{Breaker, BreakerState, Pipe, Retry};
/// use std::time::Duration;
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// let began = tokio::time::Instant::now();
/// // Down for the first minute.
/// let fetch = async move |n: u32| if began.elapsed().as_secs() < 60 { Err("refused") } else { Ok(n) };
///
/// let breaker = Breaker::new(0.5, 10).pause(Duration::from_secs(30));
/// let guard = breaker.clone();
/// let retry = Retry::attempts(5).unwrap();
/// let (items, report) = Pipe::from_iter(0..1000)
///     .try_map_async(8, retry, async move |n: &u32| guard.call(async || fetch(*n).await).await)
///     .reject()
///     .collect()
///     .await
///     .unwrap();
/// assert_eq!((items.len(), report.ledger.dead), (1000, 0));
/// assert_eq!((breaker.state(), breaker.times_opened()), (BreakerState::Closed, 2));
/// # }
/// ```
#[derive(Clone)]
pub struct Breaker(Arc<Shared>);

/// What a [`Breaker`] does with calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    /// They are made.
    Closed,
    /// They wait.
    Open,
    /// A few are made, to see how it goes; the others wait.
    HalfOpen,
}

struct Shared {
    book: Mutex<Book>,
    /// Rung when waiting calls should look again.
    change: Notify,
    states: watch::Sender<BreakerState>,
}

#[derive(Debug, Clone, Copy)]
struct Rule {
    rate: f64,
    calls_min: u64,
    window: Duration,
    pause: Duration,
    probes: usize,
}

/// The window is this many parts, of which the oldest is forgotten at a time.
const PARTS: usize = 10;

struct Book {
    rule: Rule,
    phase: Phase,
    /// Which of its phases it is in, counted: results of calls of another do not count.
    era: u64,
    opened: u64,
    parts: [Part; PARTS],
    /// The part that counts now, and since when.
    newest: usize,
    began: Instant,
}

#[derive(Debug, Clone, Copy, Default)]
struct Part {
    calls: u64,
    failures: u64,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    Closed,
    Open { until: Instant },
    HalfOpen { running: usize, succeeded: usize },
}

impl Breaker {
    /// One that opens when, of at least `calls_min` calls of the last ten seconds, the part `rate` has failed. It pauses for
    /// thirty seconds, and three calls must succeed before it closes again.
    ///
    /// # Panics
    /// If `rate` is not above 0 and at most 1, or `calls_min` is 0.
    pub fn new(rate: f64, calls_min: u64) -> Self {
        assert!(rate > 0.0 && rate <= 1.0, "a failure rate is above 0 and at most 1, not {rate}");
        assert!(calls_min > 0, "of no calls none has failed");
        let (window, pause) = (Duration::from_secs(10), Duration::from_secs(30));
        let rule = Rule { rate, calls_min, window, pause, probes: 3 };
        let book = Book {
            rule,
            phase: Phase::Closed,
            era: 0,
            opened: 0,
            parts: [Part::default(); PARTS],
            newest: 0,
            began: Instant::now(),
        };
        let states = watch::Sender::new(BreakerState::Closed);
        Breaker(Arc::new(Shared { book: Mutex::new(book), change: Notify::new(), states }))
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.book.lock().expect("nothing panics while the book is held")
    }

    fn with(self, set: impl FnOnce(&mut Rule)) -> Self {
        set(&mut self.book().rule);
        self
    }

    /// How far back calls count; 10 s by default.
    ///
    /// # Panics
    /// If `window` is zero.
    #[must_use]
    pub fn window(self, window: Duration) -> Self {
        assert!(!window.is_zero(), "in no time nothing fails");
        self.with(|rule| rule.window = bounded(window))
    }

    /// How long calls wait before it tries again; 30 s by default.
    ///
    /// # Panics
    /// If `pause` is zero.
    #[must_use]
    pub fn pause(self, pause: Duration) -> Self {
        assert!(!pause.is_zero(), "a pause of no time is none");
        self.with(|rule| rule.pause = bounded(pause))
    }

    /// How many calls must succeed after a pause, of as many that are made at once; 3 by default. One that fails begins the
    /// next pause.
    ///
    /// # Panics
    /// If `probes` is 0.
    #[must_use]
    pub fn probes(self, probes: usize) -> Self {
        assert!(probes > 0, "without a try nobody knows");
        self.with(|rule| rule.probes = probes)
    }

    /// Calls, when that is allowed.
    ///
    /// # Errors
    /// Those of `call`.
    ///
    /// # Cancel safety
    /// Dropping it while it waits, or calls, changes nothing for other calls.
    pub async fn call<T, E>(&self, call: impl AsyncFnOnce() -> Result<T, E>) -> Result<T, E> {
        let mut permit = self.permit().await;
        let result = call().await;
        permit.end(result.is_ok());
        result
    }

    async fn permit(&self) -> Permit {
        loop {
            let change = self.0.change.notified();
            let mut change = std::pin::pin!(change);
            change.as_mut().enable();
            let until = {
                let mut book = self.book();
                if let Phase::Open { until } = book.phase
                    && until <= Instant::now()
                {
                    self.turn(&mut book, Phase::HalfOpen { running: 0, succeeded: 0 });
                }
                let (era, probes) = (book.era, book.rule.probes);
                match &mut book.phase {
                    Phase::Closed => return Permit { breaker: self.clone(), era, ended: false },
                    Phase::HalfOpen { running, succeeded } if *running + *succeeded < probes => {
                        *running += 1;
                        return Permit { breaker: self.clone(), era, ended: false };
                    }
                    Phase::HalfOpen { .. } => None,
                    Phase::Open { until } => Some(*until),
                }
            };
            match until {
                None => change.await,
                Some(until) => tokio::select! {
                    () = sleep_until(until) => {}
                    () = change => {}
                },
            }
        }
    }

    /// Changes the phase, and tells.
    fn turn(&self, book: &mut Book, phase: Phase) {
        let state = phase.state();
        book.phase = phase;
        book.era += 1;
        book.parts = [Part::default(); PARTS];
        book.opened += u64::from(state == BreakerState::Open);
        self.0.states.send_replace(state);
        self.0.change.notify_waiters();
    }

    fn open(&self, book: &mut Book) {
        let until = Instant::now() + book.rule.pause;
        tracing::warn!(pause = ?book.rule.pause, "too many calls fail: a breaker opens");
        self.turn(book, Phase::Open { until });
    }

    /// What it does with calls now.
    pub fn state(&self) -> BreakerState {
        self.book().phase.state()
    }

    /// How often it has opened.
    pub fn times_opened(&self) -> u64 {
        self.book().opened
    }

    /// Its states, as they change.
    pub fn states(&self) -> watch::Receiver<BreakerState> {
        self.0.states.subscribe()
    }

    /// Opens it by hand, for one pause.
    pub fn trip(&self) {
        self.open(&mut self.book());
    }

    /// Closes it by hand.
    pub fn reset(&self) {
        self.turn(&mut self.book(), Phase::Closed);
    }
}

impl Phase {
    fn state(&self) -> BreakerState {
        match self {
            Phase::Closed => BreakerState::Closed,
            Phase::Open { .. } => BreakerState::Open,
            Phase::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }
}

impl Book {
    /// Counts a call. True if too many have failed.
    fn count(&mut self, succeeded: bool) -> bool {
        let length = self.rule.window / PARTS as u32;
        let passed = self.began.elapsed().as_nanos() / length.as_nanos().max(1);
        for _ in 0..passed.min(PARTS as u128) {
            self.newest = (self.newest + 1) % PARTS;
            self.parts[self.newest] = Part::default();
        }
        self.began += length * u32::try_from(passed).unwrap_or(u32::MAX);
        let part = &mut self.parts[self.newest];
        part.calls += 1;
        part.failures += u64::from(!succeeded);
        let calls: u64 = self.parts.iter().map(|part| part.calls).sum();
        let failures: u64 = self.parts.iter().map(|part| part.failures).sum();
        calls >= self.rule.calls_min && failures as f64 >= self.rule.rate * calls as f64
    }
}

/// A call that may be made.
struct Permit {
    breaker: Breaker,
    era: u64,
    ended: bool,
}

impl Permit {
    fn end(&mut self, succeeded: bool) {
        self.ended = true;
        let breaker = &self.breaker;
        let mut book = breaker.book();
        if book.era != self.era {
            return;
        }
        let probes = book.rule.probes;
        match &mut book.phase {
            Phase::Closed => {
                if book.count(succeeded) {
                    breaker.open(&mut book);
                }
            }
            Phase::HalfOpen { .. } if !succeeded => breaker.open(&mut book),
            Phase::HalfOpen { running, succeeded } => {
                *running -= 1;
                *succeeded += 1;
                if *succeeded >= probes {
                    breaker.turn(&mut book, Phase::Closed);
                }
            }
            Phase::Open { .. } => {}
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        // Neither a success nor a failure: another call has its turn.
        let mut book = self.breaker.book();
        if book.era == self.era
            && let Phase::HalfOpen { running, .. } = &mut book.phase
        {
            *running -= 1;
            drop(book);
            self.breaker.0.change.notify_waiters();
        }
    }
}

impl fmt::Debug for Breaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let book = self.book();
        f.debug_struct("Breaker")
            .field("rule", &book.rule)
            .field("phase", &book.phase)
            .finish_non_exhaustive()
    }
}
