//! Several policies as one.

use crate::error::Within;
use crate::{
    Bulkhead, ByTrait, CircuitBreaker, Classifier, Error, FromRetry, Hedge, RateLimiter, Retry, Timeout,
};

/// Several policies around one call, in the order that makes sense of them together. From the outside in:
///
/// 1. [`timeout`](Self::timeout): all of what follows takes so long at most;
/// 2. [`bulkhead`](Self::bulkhead): a call takes one place, however often it is tried;
/// 3. [`retry`](Self::retry): sees the errors of what follows as they are, and waits for the breaker as long as that asks;
/// 4. [`hedge`](Self::hedge): every attempt may be two;
/// 5. [`rate_limit`](Self::rate_limit): every attempt counts, hedges too;
/// 6. [`breaker`](Self::breaker): judges attempts, and does not count what waited before it;
/// 7. [`attempt_timeout`](Self::attempt_timeout): every attempt takes so long at most, which is a failure to the breaker.
///
/// What is not set costs nothing. For another order, nest the policies' own `call`s. Clones share their breakers, limits and budgets.
///
/// ```
/// use millstream_resilience::{Backoff, BreakerSettings, CircuitBreaker, Policy, Retry, Timeout};
/// use std::{io, time::Duration};
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// let s = Duration::from_secs;
/// let policy = Policy::new()
///     .timeout(Timeout::new(s(30)))
///     .retry(Retry::new(4).backoff(Backoff::fixed(s(1))))
///     .breaker(CircuitBreaker::new(BreakerSettings::default()))
///     .attempt_timeout(Timeout::new(s(2)));
///
/// let attempts = std::cell::Cell::new(0);
/// let answer = policy.call(async || match attempts.replace(attempts.get() + 1) {
///     0 => std::future::pending().await,
///     1 => Err(io::Error::from(io::ErrorKind::ConnectionReset)),
///     _ => Ok("at last"),
/// });
/// assert_eq!(answer.await.unwrap(), "at last");
///
/// let error = policy.call(async || Err::<(), _>(io::Error::from(io::ErrorKind::NotFound))).await.unwrap_err();
/// assert_eq!(error.into_failure().unwrap().kind(), io::ErrorKind::NotFound);
/// # }
/// ```
#[derive(Debug, Clone, Default)]
pub struct Policy<C = ByTrait> {
    timeout: Option<Timeout>,
    bulkhead: Option<Bulkhead>,
    retry: Option<Retry>,
    hedge: Option<Hedge>,
    rate_limit: Option<RateLimiter>,
    breaker: Option<CircuitBreaker>,
    attempt_timeout: Option<Timeout>,
    classifier: C,
}

impl Policy {
    /// None yet.
    pub fn new() -> Self {
        Policy::default()
    }
}

impl<C> Policy<C> {
    /// Errors are of the class that `classifier` says, rather than themselves.
    #[must_use]
    pub fn classified_by<D>(self, classifier: D) -> Policy<D> {
        let Policy { timeout, bulkhead, retry, hedge, rate_limit, breaker, attempt_timeout, .. } = self;
        Policy { timeout, bulkhead, retry, hedge, rate_limit, breaker, attempt_timeout, classifier }
    }

    /// A limit for all attempts and waits together.
    #[must_use]
    pub fn timeout(mut self, timeout: Timeout) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// A limit for the calls that are made at once.
    #[must_use]
    pub fn bulkhead(mut self, bulkhead: Bulkhead) -> Self {
        self.bulkhead = Some(bulkhead);
        self
    }

    /// How often a call is tried.
    #[must_use]
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = Some(retry);
        self
    }

    /// When an attempt is made a second time at once.
    #[must_use]
    pub fn hedge(mut self, hedge: Hedge) -> Self {
        self.hedge = Some(hedge);
        self
    }

    /// How often attempts are made.
    #[must_use]
    pub fn rate_limit(mut self, limiter: RateLimiter) -> Self {
        self.rate_limit = Some(limiter);
        self
    }

    /// What stops attempts when too many fail.
    #[must_use]
    pub fn breaker(mut self, breaker: CircuitBreaker) -> Self {
        self.breaker = Some(breaker);
        self
    }

    /// A limit for each attempt.
    #[must_use]
    pub fn attempt_timeout(mut self, timeout: Timeout) -> Self {
        self.attempt_timeout = Some(timeout);
        self
    }

    /// Calls, through all of them.
    ///
    /// # Errors
    /// Those of `call`, and of the policies.
    ///
    /// # Cancel safety
    /// Dropping it drops the attempts that are under way, and gives back whatever they hold.
    pub async fn call<T, E, F>(&self, call: impl Fn() -> F) -> Result<T, Error<E>>
    where
        C: Classifier<E>,
        F: Future<Output = Result<T, E>>,
    {
        match &self.timeout {
            None => self.admitted(&call).await,
            Some(timeout) => timeout.call(|| self.admitted(&call)).await,
        }
    }

    async fn admitted<T, E, F>(&self, call: &impl Fn() -> F) -> Result<T, Error<E>>
    where
        C: Classifier<E>,
        F: Future<Output = Result<T, E>>,
    {
        let _place = match &self.bulkhead {
            None => None,
            Some(bulkhead) => Some(bulkhead.acquire().await?),
        };
        match &self.retry {
            None => self.hedged(call).await,
            Some(retry) => {
                let tried = retry.call_with(&Within(&self.classifier), || self.hedged(call)).await;
                tried.map_err(Error::from_retry)
            }
        }
    }

    async fn hedged<T, E, F>(&self, call: &impl Fn() -> F) -> Result<T, Error<E>>
    where
        C: Classifier<E>,
        F: Future<Output = Result<T, E>>,
    {
        match &self.hedge {
            None => self.attempt(call).await,
            Some(hedge) => hedge.call(|| self.attempt(call)).await,
        }
    }

    async fn attempt<T, E, F>(&self, call: &impl Fn() -> F) -> Result<T, Error<E>>
    where
        C: Classifier<E>,
        F: Future<Output = Result<T, E>>,
    {
        if let Some(limiter) = &self.rate_limit {
            limiter.acquire(1).await?;
        }
        let mut permit = match &self.breaker {
            None => None,
            Some(breaker) => Some(breaker.try_acquire()?),
        };
        let mut called = std::pin::pin!(async {
            let called = async { call().await.map_err(Error::Failed) };
            match &self.attempt_timeout {
                None => called.await,
                Some(timeout) => timeout.wrap(called).await,
            }
        });
        let result = std::future::poll_fn(|cx| match &mut permit {
            Some(permit) => permit.poll(called.as_mut(), cx),
            None => called.as_mut().poll(cx),
        })
        .await;
        if let Some(permit) = permit {
            permit.end(result.as_ref().err().map(|error| error.class_by(&self.classifier)));
        }
        result
    }
}
