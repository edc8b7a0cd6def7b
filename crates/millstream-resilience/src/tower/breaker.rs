use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::ClassifiedBy;
use crate::{ByTrait, CircuitBreaker, Classifier, Open, Permit};

impl<S> Layer<S> for CircuitBreaker {
    type Service = BreakerService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        BreakerService { inner, breaker: self.clone(), classifier: ByTrait }
    }
}

impl<S, C: Clone> Layer<S> for ClassifiedBy<CircuitBreaker, C> {
    type Service = BreakerService<S, C>;

    fn layer(&self, inner: S) -> Self::Service {
        BreakerService { inner, breaker: self.policy.clone(), classifier: self.classifier.clone() }
    }
}

/// A service that is not called while a circuit breaker is open.
#[derive(Debug, Clone)]
pub struct BreakerService<S, C = ByTrait> {
    inner: S,
    breaker: CircuitBreaker,
    classifier: C,
}

impl<R, S, C> Service<R> for BreakerService<S, C>
where
    S: Service<R, Error: From<Open>>,
    C: Classifier<S::Error> + Clone,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BreakerFuture<S::Future, C>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        match self.breaker.try_acquire_owned() {
            Ok(mut permit) => BreakerFuture::Calling {
                future: permit.work(|| self.inner.call(request)),
                permit: Some(permit),
                classifier: self.classifier.clone(),
            },
            Err(open) => BreakerFuture::Refused { open: Some(open) },
        }
    }
}

pin_project! {
    /// See [`BreakerService`].
    #[derive(Debug)]
    #[project = Projected]
    #[must_use = "futures do nothing unless they are polled"]
    pub enum BreakerFuture<F, C> {
        #[doc(hidden)]
        Calling {
            #[pin]
            future: F,
            permit: Option<Permit>,
            classifier: C,
        },
        #[doc(hidden)]
        Refused { open: Option<Open> },
    }
}

impl<T, E, F, C> Future for BreakerFuture<F, C>
where
    F: Future<Output = Result<T, E>>,
    E: From<Open>,
    C: Classifier<E>,
{
    type Output = Result<T, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T, E>> {
        match self.project() {
            Projected::Calling { future, permit, classifier } => match permit.as_mut() {
                Some(permit) => permit.poll(future, cx),
                None => future.poll(cx),
            }
            .map(|result| {
                let permit = permit.take().expect("a future that is done is not polled");
                permit.end(result.as_ref().err().map(|error| classifier.classify(error)));
                result
            }),
            Projected::Refused { open } => {
                Poll::Ready(Err(open.take().expect("a future that is done is not polled").into()))
            }
        }
    }
}
