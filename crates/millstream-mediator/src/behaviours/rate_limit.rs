//! So many calls in a time.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use millstream_resilience::{Rate, RateLimiter};

use super::sharing::{Sharing, Who};
use crate::behaviour::{Behaviour, Next};
use crate::call::Call;
use crate::error::{Error, ErrorKind};
use crate::message::{About, Request};

/// Makes so many calls in a time. The others wait for their turn as long as they may, and fail with
/// [`ErrorKind::Throttled`] at once if it would come later.
///
/// ```
/// use millstream_mediator::{Mediator, RateLimit};
/// use std::time::Duration;
///
/// let limit = RateLimit::new(100, Duration::from_secs(1)).burst(20).wait_max(Duration::from_millis(250));
/// let builder = Mediator::builder().behaviour(limit);
/// # let _ = builder;
/// ```
#[derive(Clone)]
pub struct RateLimit {
    sharing: Sharing<RateLimiter>,
    who: Who,
    calls: u64,
    period: Duration,
    burst: u64,
    wait_max: Duration,
}

impl RateLimit {
    /// So many calls of each handler in so long, evenly, none of which waits.
    ///
    /// # Panics
    /// If `calls` or `period` is 0.
    pub fn new(calls: u64, period: Duration) -> Self {
        RateLimit::make(Who::Each, calls, period, 1, Duration::ZERO)
    }

    fn make(who: Who, calls: u64, period: Duration, burst: u64, wait_max: Duration) -> Self {
        let rate = Rate::new(calls, period).burst(burst);
        let sharing = who.share(move || RateLimiter::new(rate).wait_max(wait_max));
        RateLimit { sharing, who, calls, period, burst, wait_max }
    }

    /// How many may come at once after a time without any; 1 if it is not said.
    ///
    /// # Panics
    /// If it is 0.
    #[must_use]
    pub fn burst(self, burst: u64) -> Self {
        RateLimit::make(self.who, self.calls, self.period, burst, self.wait_max)
    }

    /// How long a call may wait for its turn; not at all if it is not said.
    #[must_use]
    pub fn wait_max(self, wait: Duration) -> Self {
        RateLimit::make(self.who, self.calls, self.period, self.burst, wait)
    }

    /// The same limit for all handlers together.
    #[must_use]
    pub fn shared(self) -> Self {
        RateLimit::make(Who::All, self.calls, self.period, self.burst, self.wait_max)
    }

    /// The same limit for all calls of one key together, for at most `keys_max` keys.
    #[must_use]
    pub fn by_key(self, keys_max: usize, key: impl Fn(&Call<'_>) -> String + Send + Sync + 'static) -> Self {
        RateLimit::make(Who::by_key(keys_max, key), self.calls, self.period, self.burst, self.wait_max)
    }
}

impl Behaviour for RateLimit {
    fn name(&self) -> Cow<'static, str> {
        let RateLimit { sharing, calls, period, burst, wait_max, .. } = self;
        let wait = if wait_max.is_zero() { String::new() } else { format!(", waiting up to {wait_max:?}") };
        format!("rate limit {calls} in {period:?}, burst {burst}{wait}{}", sharing.words()).into()
    }

    fn of(&self, about: &About) -> Self {
        RateLimit { sharing: self.sharing.of(about), ..self.clone() }
    }

    #[inline]
    async fn call<R: Request, N: Next<R>>(
        &self,
        call: &Call<'_>,
        request: R,
        next: &N,
    ) -> Result<R::Response, Error> {
        let limiter = self.sharing.get(call);
        if let Err(limited) = limiter.acquire(1).await {
            let kind = ErrorKind::Throttled { retry_after: limited.retry_after };
            return Err(Error::new(call.about(), kind).because(limited));
        }
        next.call(call, request).await
    }
}

impl fmt::Debug for RateLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}
