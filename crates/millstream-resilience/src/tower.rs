//! The policies as layers of [`tower`](https://docs.rs/tower): each *is* a layer.
//!
//! ```
//! use millstream_resilience::{BreakerSettings, CircuitBreaker, Error, Retry, Timeout};
//! use std::{io, time::Duration};
//! use tower_layer::Layer;
//! use tower_service::Service;
//! # #[derive(Clone)]
//! # struct Double;
//! # impl Service<u32> for Double {
//! #     type Response = u32;
//! #     type Error = Error<io::Error>;
//! #     type Future = std::future::Ready<Result<u32, Self::Error>>;
//! #     fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
//! #         Ok(()).into()
//! #     }
//! #     fn call(&mut self, n: u32) -> Self::Future { std::future::ready(Ok(2 * n)) }
//! # }
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() {
//! let breaker = CircuitBreaker::new(BreakerSettings::default());
//! // The outermost first, as in `ServiceBuilder`.
//! let layers = (Retry::new(3), breaker, Timeout::new(Duration::from_secs(1)));
//! let mut service = layers.layer(Double);
//! # std::future::poll_fn(|cx| service.poll_ready(cx)).await.unwrap();
//! assert_eq!(service.call(21).await.unwrap(), 42);
//! # }
//! ```
//!
//! A layer keeps the service's error type, which must be one that can be made of the policy's error: a box,
//! [`Error`](crate::Error), one of yours. `classified_by` makes a layer that asks a [`Classifier`](crate::Classifier) instead of the
//! error.
//!
//! # Backpressure
//!
//! `poll_ready` is the inner service's. A bulkhead and a rate limit wait, or refuse, in the call itself, by their own rules: so
//! a balancer or a test of readiness holds no place of theirs.
//!
//! # Cost
//!
//! Timeouts, breakers, and the first attempt of a retry allocate nothing; further attempts, a wait for a place or for the rate, and a
//! hedged call take one box.

use std::pin::Pin;

mod admit;
mod breaker;
mod fallback;
mod hedge;
mod retry;
mod timeout;

pub use admit::{AdmitFuture, BulkheadService, RateLimitService};
pub use breaker::{BreakerFuture, BreakerService};
pub use fallback::{FallbackFuture, FallbackService};
pub use hedge::HedgeService;
pub use retry::{RetryFuture, RetryService};
pub use timeout::TimeoutService;

/// A policy that asks this classifier, as a layer.
#[derive(Debug, Clone)]
pub struct ClassifiedBy<P, C> {
    policy: P,
    classifier: C,
}

impl crate::Retry {
    /// As a layer that asks `classifier`, rather than the error.
    pub fn classified_by<C>(self, classifier: C) -> ClassifiedBy<Self, C> {
        ClassifiedBy { policy: self, classifier }
    }
}

impl crate::CircuitBreaker {
    /// As a layer that asks `classifier`, rather than the error.
    pub fn classified_by<C>(self, classifier: C) -> ClassifiedBy<Self, C> {
        ClassifiedBy { policy: self, classifier }
    }
}

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The service that was found ready; a clone, which has to be asked, stays in its place.
fn ready<S: Clone>(service: &mut S) -> S {
    let clone = service.clone();
    std::mem::replace(service, clone)
}

/// A call of a service that has still to become ready.
async fn oneshot<S: tower_service::Service<R>, R>(
    mut service: S,
    request: R,
) -> Result<S::Response, S::Error> {
    std::future::poll_fn(|cx| service.poll_ready(cx)).await?;
    service.call(request).await
}
