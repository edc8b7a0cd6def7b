//! A circuit breaker whose calls wait instead of failing: the flow behind them pauses up to its source.

use std::panic::resume_unwind;
use std::time::Duration;

use millstream_resilience::{BreakerSettings, BreakerState, CircuitBreaker, Timeout};
use tokio::sync::watch;

use crate::failure::BoxError;
use crate::op::try_async::caught;

/// Stops calling what fails too often, for a while, and tries again with a few calls before it goes on.
///
/// Made for flows: a call that may not be made now *waits*. With [`try_map_async`](crate::Pipe::try_map_async) that
/// fills the calls in flight, and then nothing more is taken from the source until the other side has recovered; no item
/// fails because others did. Clones are the same breaker, for several flows that call the same thing.
///
/// Results count by the calls that were begun since the breaker last changed its mind; a call that is dropped counts as
/// neither. It is a [`CircuitBreaker`] whose calls wait, and can be made of any.
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
#[derive(Debug, Clone)]
pub struct Breaker {
    circuit: CircuitBreaker,
    /// It was made elsewhere, where others may have it too.
    shared: bool,
}

/// The same breaker, whose settings are those it was made with.
impl From<CircuitBreaker> for Breaker {
    fn from(circuit: CircuitBreaker) -> Self {
        Breaker { circuit, shared: true }
    }
}

impl Breaker {
    /// One that opens when, of at least `calls_min` calls of the last ten seconds, the part `rate` has failed. It pauses for
    /// thirty seconds, and three calls must succeed before it closes again.
    ///
    /// # Panics
    /// If `rate` is not above 0 and at most 1, or `calls_min` is 0.
    pub fn new(rate: f64, calls_min: u64) -> Self {
        let calls_min = u32::try_from(calls_min).unwrap_or(u32::MAX);
        let settings = BreakerSettings::default().failure_rate(rate).calls_min(calls_min);
        Breaker { circuit: CircuitBreaker::new(settings), shared: false }
    }

    /// The same as a breaker whose calls fail while it is open.
    pub fn circuit(&self) -> &CircuitBreaker {
        &self.circuit
    }

    fn with(self, set: impl FnOnce(BreakerSettings) -> BreakerSettings) -> Self {
        assert!(!self.shared, "a breaker that was made of a CircuitBreaker is set up where that is made");
        Breaker { circuit: CircuitBreaker::new(set(self.circuit.settings())), shared: false }
    }

    /// How far back calls count; 10 s by default. To be said before it is cloned, as all that follows.
    ///
    /// # Panics
    /// If `window` is zero, or it was made of a [`CircuitBreaker`].
    #[must_use]
    pub fn window(self, window: Duration) -> Self {
        self.with(|settings| settings.time_window(window))
    }

    /// How long calls wait before it tries again; 30 s by default.
    ///
    /// # Panics
    /// If `pause` is zero, or it was made of a [`CircuitBreaker`].
    #[must_use]
    pub fn pause(self, pause: Duration) -> Self {
        self.with(|settings| settings.pause(pause))
    }

    /// How many calls must succeed after a pause, of as many that are made at once; 3 by default. One that fails begins the
    /// next pause.
    ///
    /// # Panics
    /// If `probes` is 0, or it was made of a [`CircuitBreaker`].
    #[must_use]
    pub fn probes(self, probes: usize) -> Self {
        self.with(|settings| settings.probes(u32::try_from(probes).unwrap_or(u32::MAX)))
    }

    /// Calls, when that is allowed. A call that panics counts as failed.
    ///
    /// Set no [`Retry::timeout`](crate::Retry::timeout) around it: that counts the wait too, so items would fail because
    /// others did, and a call that it drops counts as neither, so a service that hangs would never open the breaker. The
    /// limit of a call belongs inside: [`call_within`](Self::call_within).
    ///
    /// # Errors
    /// Those of `call`.
    ///
    /// # Cancel safety
    /// Dropping it while it waits, or calls, changes nothing for other calls.
    pub async fn call<T, E>(&self, call: impl AsyncFnOnce() -> Result<T, E>) -> Result<T, E> {
        let permit = self.circuit.acquire().await;
        match caught(async { call().await }).await {
            Ok(Ok(output)) => {
                permit.succeed();
                Ok(output)
            }
            Ok(Err(error)) => {
                permit.fail();
                Err(error)
            }
            Err(payload) => {
                permit.fail();
                resume_unwind(payload)
            }
        }
    }

    /// As [`call`](Self::call), for up to `limit`, which begins when the call does. One that takes longer is dropped then and
    /// has failed.
    ///
    /// ```
    /// use millstream_flow::{Breaker, Pipe, Retry};
    /// use std::time::Duration;
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// let began = tokio::time::Instant::now();
    /// // Hangs for the first minute.
    /// let fetch = async move |n: u32| {
    ///     if began.elapsed().as_secs() < 60 { std::future::pending::<()>().await }
    ///     Ok::<_, std::io::Error>(n)
    /// };
    /// let breaker = Breaker::new(0.5, 10).pause(Duration::from_secs(30));
    /// let guard = breaker.clone();
    /// let (items, report) = Pipe::from_iter(0..100)
    ///     .try_map_async(8, Retry::attempts(5).unwrap(), async move |n: &u32| {
    ///         guard.call_within(Duration::from_secs(5), async || fetch(*n).await).await
    ///     })
    ///     .reject()
    ///     .collect()
    ///     .await
    ///     .unwrap();
    /// assert_eq!((items.len(), report.ledger.dead), (100, 0));
    /// assert!(breaker.times_opened() > 0);
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of `call`, and [`TimedOut`](crate::TimedOut).
    ///
    /// # Panics
    /// If `limit` is zero.
    ///
    /// # Cancel safety
    /// As [`call`](Self::call).
    pub async fn call_within<T, E: Into<BoxError>>(
        &self,
        limit: Duration,
        call: impl AsyncFnOnce() -> Result<T, E>,
    ) -> Result<T, BoxError> {
        let limited = Timeout::new(limit);
        self.call(async || limited.wrap(async { call().await.map_err(Into::into) }).await).await
    }

    /// What it does with calls now.
    pub fn state(&self) -> BreakerState {
        self.circuit.state()
    }

    /// How often it has opened.
    pub fn times_opened(&self) -> u64 {
        self.circuit.snapshot().opened
    }

    /// Its states, as they change.
    pub fn states(&self) -> watch::Receiver<BreakerState> {
        self.circuit.states()
    }

    /// Opens it by hand, for one pause.
    pub fn trip(&self) {
        self.circuit.trip();
    }

    /// Closes it by hand.
    pub fn reset(&self) {
        self.circuit.reset();
    }
}
