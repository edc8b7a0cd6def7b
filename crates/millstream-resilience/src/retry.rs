//! Calls that are made again when they fail.

use std::collections::VecDeque;
use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::backoff::{Backoff, Delays};
use crate::clock::noting;
use crate::{Budget, ByTrait, Class, Classifier, Classify};

mod error;

pub use error::{Failure, FromRetry, RetryError, Stop, Tried};

type Hook = dyn Fn(&Retrying) + Send + Sync;

/// How often a call is made when it fails, with which delays between the attempts, and at what price.
///
/// An attempt is repeated if its error's class says that this can help ([`Class::is_retryable`]), and if the number of attempts,
/// the time and the budget allow it. By default: exponential backoff from 100 ms to 30 s with full jitter, no limit of time,
/// no budget.
///
/// ```
/// use millstream_resilience::{Backoff, Retry, Stop};
/// use std::{io, time::Duration};
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// let retry = Retry::new(3).backoff(Backoff::fixed(Duration::from_secs(1)));
///
/// let mut answers = [Err(io::Error::from(io::ErrorKind::TimedOut)), Ok(17)].into_iter();
/// let answer = retry.call(|| std::future::ready(answers.next().unwrap())).await;
/// assert_eq!(answer.unwrap(), 17);
///
/// let error = retry.call(async || Err::<(), _>(io::Error::from(io::ErrorKind::TimedOut))).await.unwrap_err();
/// assert_eq!((error.attempts(), error.stop(), error.elapsed()), (3, Stop::Attempts, Duration::from_secs(2)));
///
/// let error = retry.call(async || Err::<(), _>(io::Error::from(io::ErrorKind::NotFound))).await.unwrap_err();
/// assert_eq!((error.attempts(), error.stop()), (1, Stop::Permanent));
/// # }
/// ```
#[derive(Clone)]
pub struct Retry {
    attempts: u32,
    backoff: Backoff,
    elapsed_max: Option<Duration>,
    retry_after_max: Duration,
    budget: Option<Budget>,
    seed: Option<u64>,
    hook: Option<Arc<Hook>>,
}

impl Retry {
    /// Up to `attempts` attempts in all, the first included.
    ///
    /// # Panics
    /// If `attempts` is 0.
    pub fn new(attempts: u32) -> Self {
        assert!(attempts > 0, "a call is made at least once");
        Retry {
            attempts,
            backoff: Backoff::exponential(Duration::from_millis(100)).full_jitter(),
            elapsed_max: None,
            retry_after_max: Duration::from_secs(60),
            budget: None,
            seed: None,
            hook: None,
        }
    }

    /// One attempt.
    pub fn never() -> Self {
        Retry::new(1)
    }

    /// The delays between attempts.
    #[must_use]
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// No attempt begins later than this after the first one: a delay that would end later is not begun. It counts from when the
    /// first attempt first waits, and does not interrupt an attempt; a [`Timeout`](crate::Timeout) does.
    #[must_use]
    pub fn elapsed_max(mut self, elapsed: Duration) -> Self {
        self.elapsed_max = Some(elapsed);
        self
    }

    /// A callee that asks for a longer delay than the backoff's gets it, up to this; if it asks for more, the call fails at once
    /// and [`RetryError::class`] says what was asked. 60 s by default.
    #[must_use]
    pub fn retry_after_max(mut self, delay: Duration) -> Self {
        self.retry_after_max = delay;
        self
    }

    /// Extra attempts are paid from this budget, which other calls may share.
    #[must_use]
    pub fn budget(mut self, budget: Budget) -> Self {
        self.budget = Some(budget);
        self
    }

    /// The same delays for each call, for tests.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Calls `hook` before each delay. It is called by the task that makes the attempts, and must not block it.
    #[must_use]
    pub fn on_retry(mut self, hook: impl Fn(&Retrying) + Send + Sync + 'static) -> Self {
        self.hook = Some(Arc::new(hook));
        self
    }

    /// Attempts in all, the first included.
    pub fn attempts_max(&self) -> u32 {
        self.attempts
    }

    /// The delays between attempts.
    pub fn backoff_used(&self) -> Backoff {
        self.backoff
    }

    /// Calls until it succeeds or it makes no sense to go on; errors are of the class that they say themselves.
    ///
    /// # Errors
    /// The last attempt's, with what was before. For policies around this one, [`FromRetry::from_retry`] makes it an error that can be
    /// theirs too.
    ///
    /// # Cancel safety
    /// Dropping it drops the attempt, or the delay, that it is in.
    pub async fn call<T, E, F>(&self, call: impl FnMut() -> F) -> Result<T, RetryError<E>>
    where
        E: Classify,
        F: Future<Output = Result<T, E>>,
    {
        self.call_with(&ByTrait, call).await
    }

    /// As [`call`](Self::call), with errors of the class that `classifier` says.
    ///
    /// # Errors
    /// The last attempt's, with what was before.
    pub async fn call_with<T, E, F>(
        &self,
        classifier: &impl Classifier<E>,
        mut call: impl FnMut() -> F,
    ) -> Result<T, RetryError<E>>
    where
        F: Future<Output = Result<T, E>>,
    {
        let mut began = None;
        // A statement of its own: what the attempt held is given back before the next one wants it.
        let first = noting(&mut began, pin!(call())).await;
        match first {
            Ok(value) => {
                self.succeeded();
                Ok(value)
            }
            Err(error) => self.go_on(classifier, began, error, call).await,
        }
    }

    /// All attempts after the first, which failed with this error.
    pub(crate) async fn go_on<T, E, F>(
        &self,
        classifier: &impl Classifier<E>,
        began: Option<Instant>,
        mut error: E,
        mut call: impl FnMut() -> F,
    ) -> Result<T, RetryError<E>>
    where
        F: Future<Output = Result<T, E>>,
    {
        let mut attempts = self.attempts(began);
        let mut earlier = VecDeque::new();
        loop {
            let class = classifier.classify(&error);
            let delay = match attempts.failed(self, class) {
                Ok(delay) => delay,
                Err(stop) => return Err(RetryError::new(error, class, stop, &attempts, earlier)),
            };
            error::remember(&mut earlier, Failure { error, class, delay });
            sleep(delay).await;
            error = match call().await {
                Ok(value) => {
                    self.succeeded();
                    return Ok(value);
                }
                Err(error) => error,
            };
        }
    }

    /// To be told when a call has succeeded, by whoever makes the attempts himself with [`attempts`](Self::attempts).
    #[inline]
    pub fn succeeded(&self) {
        if let Some(budget) = &self.budget {
            budget.earn();
        }
    }

    /// The account of one call's attempts, for whoever makes them himself: a state machine between polls, a synchronous
    /// function. The first attempt began to wait at that time; if it never did, it took no time.
    pub fn attempts(&self, began: Option<Instant>) -> Attempts {
        let delays = match self.seed {
            None => self.backoff.delays(),
            Some(seed) => self.backoff.delays_seeded(seed),
        };
        Attempts { made: 0, began: began.unwrap_or_else(Instant::now), delays }
    }
}

impl fmt::Debug for Retry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Retry { attempts, backoff, elapsed_max, retry_after_max, budget, seed, hook } = self;
        f.debug_struct("Retry")
            .field("attempts", attempts)
            .field("backoff", backoff)
            .field("elapsed_max", elapsed_max)
            .field("retry_after_max", retry_after_max)
            .field("budget", budget)
            .field("seed", seed)
            .field("hook", &hook.is_some())
            .finish()
    }
}

/// `up to 4 attempts, 1s each time, within 30s`
impl fmt::Display for Retry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.attempts == 1 {
            return f.write_str("one attempt");
        }
        write!(f, "up to {} attempts, {}", self.attempts, self.backoff)?;
        if let Some(elapsed) = self.elapsed_max {
            write!(f, ", within {elapsed:?}")?;
        }
        if self.budget.is_some() {
            f.write_str(", from a budget")?;
        }
        Ok(())
    }
}

/// What [`Retry::on_retry`] is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Retrying {
    /// How many attempts have failed.
    pub attempts: u32,
    /// The class of the last one's error.
    pub class: Class,
    /// How long the next one is waited for.
    pub delay: Duration,
}

/// The attempts of one call, counted. See [`Retry::attempts`].
#[derive(Debug, Clone)]
pub struct Attempts {
    made: u32,
    began: Instant,
    delays: Delays,
}

impl Attempts {
    /// An attempt has failed with an error of this class: how long to wait for the next one.
    ///
    /// # Errors
    /// Why there is no next one.
    pub fn failed(&mut self, retry: &Retry, class: Class) -> Result<Duration, Stop> {
        self.made += 1;
        match class {
            Class::Permanent => return Err(Stop::Permanent),
            Class::Cancelled => return Err(Stop::Cancelled),
            Class::Transient | Class::Throttled { .. } => {}
        }
        if self.made >= retry.attempts {
            return Err(Stop::Attempts);
        }
        let asked = class.retry_after().unwrap_or_default();
        if asked > retry.retry_after_max {
            return Err(Stop::RetryAfter);
        }
        let delay = self.delays.next_delay().max(asked);
        if retry.elapsed_max.is_some_and(|max| self.elapsed().saturating_add(delay) > max) {
            return Err(Stop::Elapsed);
        }
        if retry.budget.as_ref().is_some_and(|budget| !budget.spend()) {
            return Err(Stop::Budget);
        }
        if let Some(hook) = &retry.hook {
            hook(&Retrying { attempts: self.made, class, delay });
        }
        Ok(delay)
    }

    /// How many have failed.
    pub fn made(&self) -> u32 {
        self.made
    }

    /// How long ago the first one began.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }
}
