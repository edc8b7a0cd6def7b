//! Layers that let calls in.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::BoxFuture;
use crate::{Bulkhead, Full, Limited, Place, RateLimiter};

impl<S> Layer<S> for Bulkhead {
    type Service = BulkheadService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        BulkheadService { inner, bulkhead: self.clone() }
    }
}

/// A service that has so many calls at once.
#[derive(Debug, Clone)]
pub struct BulkheadService<S> {
    inner: S,
    bulkhead: Bulkhead,
}

impl<R, S> Service<R> for BulkheadService<S>
where
    S: Service<R, Error: From<Full>> + Clone,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = AdmitFuture<R, S, Place, Full>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        if let Some(place) = self.bulkhead.try_acquire() {
            return AdmitFuture::Calling { future: self.inner.call(request), admitted: place };
        }
        let bulkhead = self.bulkhead.clone();
        let wait = Box::pin(async move { bulkhead.acquire().await });
        AdmitFuture::Waiting { wait, call: Some((super::ready(&mut self.inner), request)) }
    }
}

impl<S> Layer<S> for RateLimiter {
    type Service = RateLimitService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        RateLimitService { inner, limiter: self.clone() }
    }
}

/// A service that has so many calls in a time.
#[derive(Debug, Clone)]
pub struct RateLimitService<S> {
    inner: S,
    limiter: RateLimiter,
}

impl<R, S> Service<R> for RateLimitService<S>
where
    S: Service<R, Error: From<Limited>> + Clone,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = AdmitFuture<R, S, (), Limited>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        if self.limiter.enter(1) {
            return AdmitFuture::Calling { future: self.inner.call(request), admitted: () };
        }
        let limiter = self.limiter.clone();
        let wait = Box::pin(async move { limiter.acquire(1).await });
        AdmitFuture::Waiting { wait, call: Some((super::ready(&mut self.inner), request)) }
    }
}

pin_project! {
    /// See [`BulkheadService`] and [`RateLimitService`].
    #[project = Projected]
    #[must_use = "futures do nothing unless they are polled"]
    pub enum AdmitFuture<R, S: Service<R>, A, X> {
        #[doc(hidden)]
        Waiting { wait: BoxFuture<Result<A, X>>, call: Option<(S, R)> },
        #[doc(hidden)]
        Calling {
            #[pin]
            future: S::Future,
            admitted: A,
        },
    }
}

impl<R, S, A, X> Future for AdmitFuture<R, S, A, X>
where
    S: Service<R, Error: From<X>>,
{
    type Output = Result<S::Response, S::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            match self.as_mut().project() {
                Projected::Waiting { wait, call } => {
                    let admitted = ready!(wait.as_mut().poll(cx))?;
                    let (mut service, request) = call.take().expect("it is called once");
                    self.set(AdmitFuture::Calling { future: service.call(request), admitted });
                }
                Projected::Calling { future, .. } => return future.poll(cx),
            }
        }
    }
}
