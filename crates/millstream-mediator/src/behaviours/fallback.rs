//! Another answer when there is none.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::behaviour::Next;
use crate::call::Call;
use crate::error::Error;
use crate::message::{About, Request};
use crate::metrics::Counter;
use crate::typed::BehaviourOf;

type Instead<T> = dyn Fn(Error) -> BoxFuture<'static, Result<T, Error>> + Send + Sync;

/// Answers requests of one type in another way when they fail: from a copy, with a default, by another service.
///
/// ```
/// use millstream_flow::BoxError;
/// use millstream_mediator::{Error, Fallback, Mediator, Request};
///
/// struct RateOf(&'static str);
/// impl Request for RateOf { type Response = f64; }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), BoxError> {
/// let mediator = Mediator::builder()
///     .behaviour_of::<RateOf, _>(Fallback::new(async |_| Ok(1.0)))
///     .request(async |_: RateOf| Err::<f64, BoxError>("the exchange is closed".into()))
///     .build()?;
/// assert_eq!(mediator.send(RateOf("EUR")).await?, 1.0);
/// # Ok(()) }
/// ```
pub struct Fallback<T> {
    policy: Arc<Policy<T>>,
    used: Counter,
}

type Policy<T> = millstream_resilience::Fallback<Box<Instead<T>>, Error>;

impl<T> Fallback<T> {
    /// What is answered instead, or the error that remains.
    pub fn new<F, Fut>(instead: F) -> Self
    where
        F: Fn(Error) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let instead: Box<Instead<T>> = Box::new(move |error| Box::pin(instead(error)));
        Fallback { policy: Arc::new(Policy::new(instead)), used: Counter::default() }
    }

    /// Only for errors like these; for all if it is not said.
    #[must_use]
    pub fn when(self, when: impl Fn(&Error) -> bool + Send + Sync + 'static) -> Self {
        let policy = Arc::into_inner(self.policy).expect("a builder alone shares it, and gives it to nobody");
        Fallback { policy: Arc::new(policy.when(when)), used: self.used }
    }
}

impl<R: Request> BehaviourOf<R> for Fallback<R::Response> {
    fn name(&self) -> Cow<'static, str> {
        "fallback".into()
    }

    fn of(&self, about: &About) -> Self {
        let help = "Calls that failed and were answered in another way.";
        let used = about.metrics().counter("mediator_fallbacks_total", help, &[("type", about.label())]);
        Fallback { policy: self.policy.clone(), used }
    }

    #[inline]
    async fn call<N: Next<R>>(&self, call: &Call<'_>, request: R, next: &N) -> Result<R::Response, Error> {
        match next.call(call, request).await {
            Err(error) if self.policy.applies(&error) => {
                self.used.add(1);
                self.policy.instead(error).await
            }
            ended => ended,
        }
    }
}

impl<T> fmt::Debug for Fallback<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fallback").field("used", &self.used.value()).finish_non_exhaustive()
    }
}
