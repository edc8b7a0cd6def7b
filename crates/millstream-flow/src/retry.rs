//! How often, and after which delays, a failed attempt is repeated.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use millstream_resilience::{Attempts, Backoff, Class, class_of};
use tokio::time::Instant;

type Retryable = dyn Fn(&(dyn Error + 'static)) -> bool + Send + Sync;

/// A bounded number of attempts with delays between them.
///
/// By default the delay before attempt `n + 1` is `first * 2^(n-1)`, at most `max`: 100 ms, 200 ms, 400 ms ... up to 30 s. A
/// [`millstream_resilience::Retry`] can be made one of these, for other delays, chance in them, a limit of time, a budget
/// that calls share.
///
/// An error that says that another attempt cannot help is final at once, and one that says when to come back is obeyed, if its
/// [class](class_of) is known: [`std::io::Error`]'s is, and any that somebody
/// [`Classified`](millstream_resilience::Classified). All others are tried again.
///
/// ```
/// use millstream_flow::Retry;
/// use std::{io, time::Duration};
///
/// let retry = Retry::attempts(3).unwrap().first_delay(Duration::from_millis(10));
/// let error = io::Error::other("busy");
/// assert_eq!(retry.next_delay(1, &error), Some(Duration::from_millis(10)));
/// assert_eq!(retry.next_delay(2, &error), Some(Duration::from_millis(20)));
/// assert_eq!(retry.next_delay(3, &error), None, "three attempts were made");
/// ```
#[derive(Clone)]
pub struct Retry {
    policy: millstream_resilience::Retry,
    timeout: Option<Duration>,
    retryable: Option<Arc<Retryable>>,
}

impl From<millstream_resilience::Retry> for Retry {
    fn from(policy: millstream_resilience::Retry) -> Self {
        Retry { policy, timeout: None, retryable: None }
    }
}

impl Retry {
    /// Up to `attempts` attempts in all, the first included. `None` for 0: an item is tried at least once.
    pub fn attempts(attempts: u32) -> Option<Self> {
        let backoff = Backoff::exponential(Duration::from_millis(100));
        (attempts > 0).then(|| millstream_resilience::Retry::new(attempts).backoff(backoff).into())
    }

    /// One attempt.
    pub fn never() -> Self {
        millstream_resilience::Retry::never().into()
    }

    fn with_backoff(mut self, change: impl FnOnce(Backoff) -> Backoff) -> Self {
        let backoff = change(self.policy.backoff_used());
        self.policy = self.policy.backoff(backoff);
        self
    }

    /// The delay before the second attempt; each further one waits twice as long.
    pub fn first_delay(self, delay: Duration) -> Self {
        self.with_backoff(|backoff| backoff.first(delay))
    }

    /// The longest delay.
    pub fn max_delay(self, delay: Duration) -> Self {
        self.with_backoff(|backoff| backoff.max(delay))
    }

    /// How long one attempt may take. One that takes longer fails with [`TimedOut`](crate::TimedOut); an async one is
    /// dropped at that moment, one that is not cannot be interrupted and is found late when it returns. It counts all that
    /// the function does: a call behind a [`Breaker`](crate::Breaker) has its limit there.
    ///
    /// The time of an async attempt runs from when it first waits, and begins anew if it could have gone on while nobody asked for
    /// results, because what comes after is slow: as of [`Concurrency::time_limit`](crate::Concurrency::time_limit). All attempts
    /// of an operator share one timer.
    ///
    /// # Panics
    /// If `limit` is zero.
    pub fn timeout(mut self, limit: Duration) -> Self {
        assert!(!limit.is_zero(), "nothing can be done in no time");
        self.timeout = Some(limit);
        self
    }

    /// How long one attempt may take, if that is limited.
    pub fn limit(&self) -> Option<Duration> {
        self.timeout
    }

    /// Repeats only what `retryable` says is worth repeating; other errors are final at once.
    pub fn only_if(
        mut self,
        retryable: impl Fn(&(dyn Error + 'static)) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.retryable = Some(Arc::new(retryable));
        self
    }

    /// How long to wait before the next attempt, when `attempts` have been made and the last one ended with
    /// `error`; `None` if that was the last. Without what only a run knows: chance, the time that has passed, a budget.
    pub fn next_delay(&self, attempts: u32, error: &(dyn Error + 'static)) -> Option<Duration> {
        let class = self.class(error);
        if attempts >= self.policy.attempts_max() || !class.is_retryable() {
            return None;
        }
        let delay = self.policy.backoff_used().nominal(attempts);
        Some(delay.max(class.retry_after().unwrap_or_default()))
    }

    fn class(&self, error: &(dyn Error + 'static)) -> Class {
        let known = class_of(error);
        match (&self.retryable, known) {
            (None, known) => known.unwrap_or(Class::Transient),
            (Some(retryable), _) if !retryable(error) => Class::Permanent,
            (Some(_), Some(throttled @ Class::Throttled { .. })) => throttled,
            (Some(_), _) => Class::Transient,
        }
    }

    /// An item's first attempt has failed, which began to wait then, if it did. `None` if there is never another.
    pub(crate) fn begin(&self, began: Option<Instant>) -> Option<Attempts> {
        self.repeats().then(|| self.policy.attempts(began))
    }

    /// Whether there is ever a second attempt.
    pub(crate) fn repeats(&self) -> bool {
        self.policy.attempts_max() > 1
    }

    /// Another attempt has failed: how long to wait for the next one, if there is one.
    pub(crate) fn failed(&self, attempts: &mut Attempts, error: &(dyn Error + 'static)) -> Option<Duration> {
        attempts.failed(&self.policy, self.class(error)).ok()
    }

    #[inline]
    pub(crate) fn succeeded(&self) {
        self.policy.succeeded();
    }
}

impl fmt::Debug for Retry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Retry { policy, timeout, retryable } = self;
        f.debug_struct("Retry")
            .field("policy", policy)
            .field("timeout", timeout)
            .field("classified", &retryable.is_some())
            .finish()
    }
}
