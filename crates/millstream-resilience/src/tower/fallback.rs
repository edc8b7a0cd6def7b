use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::Fallback;

impl<S, F: Clone, E> Layer<S> for Fallback<F, E> {
    type Service = FallbackService<S, F, E>;

    fn layer(&self, inner: S) -> Self::Service {
        FallbackService { inner, fallback: self.clone() }
    }
}

/// A service that has another answer when a call fails.
pub struct FallbackService<S, F, E> {
    inner: S,
    fallback: Fallback<F, E>,
}

impl<S: Clone, F: Clone, E> Clone for FallbackService<S, F, E> {
    fn clone(&self) -> Self {
        FallbackService { inner: self.inner.clone(), fallback: self.fallback.clone() }
    }
}

impl<R, S, F, G> Service<R> for FallbackService<S, F, S::Error>
where
    S: Service<R>,
    F: Fn(S::Error) -> G + Clone,
    G: Future<Output = Result<S::Response, S::Error>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = FallbackFuture<S::Future, F, S::Error, G>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        FallbackFuture::Calling { future: self.inner.call(request), fallback: self.fallback.clone() }
    }
}

pin_project! {
    /// See [`FallbackService`].
    #[project = Projected]
    #[must_use = "futures do nothing unless they are polled"]
    pub enum FallbackFuture<F, M, E, G> {
        #[doc(hidden)]
        Calling {
            #[pin]
            future: F,
            fallback: Fallback<M, E>,
        },
        #[doc(hidden)]
        Instead {
            #[pin]
            future: G,
        },
    }
}

impl<T, E, F, M, G> Future for FallbackFuture<F, M, E, G>
where
    F: Future<Output = Result<T, E>>,
    M: Fn(E) -> G,
    G: Future<Output = Result<T, E>>,
{
    type Output = Result<T, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T, E>> {
        loop {
            match self.as_mut().project() {
                Projected::Calling { future, fallback } => match ready!(future.poll(cx)) {
                    Err(error) if fallback.applies(&error) => {
                        let future = fallback.instead(error);
                        self.set(FallbackFuture::Instead { future });
                    }
                    result => return Poll::Ready(result),
                },
                Projected::Instead { future } => return future.poll(cx),
            }
        }
    }
}
