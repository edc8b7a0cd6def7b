//! How often, and after which delays, a failed attempt is repeated.

use std::error::Error;
use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

type Classify = dyn Fn(&(dyn Error + 'static)) -> bool + Send + Sync;

/// A bounded number of attempts with exponential backoff between them.
///
/// The delay before attempt `n + 1` is `first * 2^(n-1)`, at most `max`: with the defaults 100 ms, 200 ms,
/// 400 ms ... up to 30 s.
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
    attempts: NonZeroU32,
    first: Duration,
    max: Duration,
    timeout: Option<Duration>,
    retryable: Option<Arc<Classify>>,
}

impl Retry {
    /// Up to `attempts` attempts in all, the first included. `None` for 0: an item is tried at least once.
    pub fn attempts(attempts: u32) -> Option<Self> {
        let attempts = NonZeroU32::new(attempts)?;
        let (first, max) = (Duration::from_millis(100), Duration::from_secs(30));
        Some(Retry { attempts, first, max, timeout: None, retryable: None })
    }

    /// One attempt.
    pub fn never() -> Self {
        Retry {
            attempts: NonZeroU32::MIN,
            first: Duration::ZERO,
            max: Duration::ZERO,
            timeout: None,
            retryable: None,
        }
    }

    /// The delay before the second attempt; each further one waits twice as long.
    pub fn first_delay(mut self, delay: Duration) -> Self {
        self.first = delay;
        self
    }

    /// The longest delay.
    pub fn max_delay(mut self, delay: Duration) -> Self {
        self.max = delay;
        self
    }

    /// How long one attempt may take. One that takes longer fails with [`TimedOut`](crate::TimedOut); an async one is
    /// dropped at that moment, one that is not cannot be interrupted and is found late when it returns.
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
    /// `error`; `None` if that was the last.
    pub fn next_delay(&self, attempts: u32, error: &(dyn Error + 'static)) -> Option<Duration> {
        if attempts >= self.attempts.get()
            || self.retryable.as_ref().is_some_and(|retryable| !retryable(error))
        {
            return None;
        }
        let doubled = 1u32.checked_shl(attempts.saturating_sub(1)).unwrap_or(u32::MAX);
        Some(self.first.saturating_mul(doubled).min(self.max))
    }
}

impl fmt::Debug for Retry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Retry { attempts, first, max, timeout, retryable } = self;
        f.debug_struct("Retry")
            .field("attempts", attempts)
            .field("first", first)
            .field("max", max)
            .field("timeout", timeout)
            .field("classified", &retryable.is_some())
            .finish()
    }
}
