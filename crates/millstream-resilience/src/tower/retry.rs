use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

use super::{BoxFuture, ClassifiedBy, oneshot};
use crate::{ByTrait, Classifier, FromRetry, Retry};

impl<S> Layer<S> for Retry {
    type Service = RetryService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        RetryService { inner, retry: self.clone(), classifier: ByTrait }
    }
}

impl<S, C: Clone> Layer<S> for ClassifiedBy<Retry, C> {
    type Service = RetryService<S, C>;

    fn layer(&self, inner: S) -> Self::Service {
        RetryService { inner, retry: self.policy.clone(), classifier: self.classifier.clone() }
    }
}

/// A service that is called again, with a clone of the request, when a call fails.
#[derive(Debug, Clone)]
pub struct RetryService<S, C = ByTrait> {
    inner: S,
    retry: Retry,
    classifier: C,
}

impl<R, S, C> Service<R> for RetryService<S, C>
where
    R: Clone + Send + 'static,
    S: Service<R, Error: FromRetry + Send, Response: Send, Future: Send> + Clone + Send + 'static,
    C: Classifier<S::Error> + Clone + Send + Sync + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = RetryFuture<R, S, C>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let mut inner = super::ready(&mut self.inner);
        let first = inner.call(request.clone());
        let again = RetryService { inner, retry: self.retry.clone(), classifier: self.classifier.clone() };
        RetryFuture::First { first, began: None, again: Some((again, request)) }
    }
}

impl<S, C> RetryService<S, C> {
    async fn go_on<R>(
        self,
        request: R,
        began: Option<Instant>,
        error: S::Error,
    ) -> Result<S::Response, S::Error>
    where
        R: Clone,
        S: Service<R, Error: FromRetry> + Clone,
        C: Classifier<S::Error>,
    {
        let RetryService { inner, retry, classifier } = self;
        let call = move || oneshot(inner.clone(), request.clone());
        retry.go_on(&classifier, began, error, call).await.map_err(FromRetry::from_retry)
    }
}

pin_project! {
    /// See [`RetryService`].
    #[project = Projected]
    #[must_use = "futures do nothing unless they are polled"]
    pub enum RetryFuture<R, S: Service<R>, C> {
        #[doc(hidden)]
        First {
            #[pin]
            first: S::Future,
            began: Option<Instant>,
            again: Option<(RetryService<S, C>, R)>,
        },
        #[doc(hidden)]
        Again { future: BoxFuture<Result<S::Response, S::Error>> },
    }
}

impl<R, S, C> Future for RetryFuture<R, S, C>
where
    R: Clone + Send + 'static,
    S: Service<R, Error: FromRetry + Send, Response: Send, Future: Send> + Clone + Send + 'static,
    C: Classifier<S::Error> + Send + Sync + 'static,
{
    type Output = Result<S::Response, S::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            match self.as_mut().project() {
                Projected::First { first, began, again } => {
                    let result = first.poll(cx);
                    if result.is_pending() {
                        began.get_or_insert_with(Instant::now);
                    }
                    match ready!(result) {
                        Ok(response) => {
                            let (service, _) = again.as_ref().expect("a future that is done is not polled");
                            service.retry.succeeded();
                            return Poll::Ready(Ok(response));
                        }
                        Err(error) => {
                            let (service, request) =
                                again.take().expect("a future that is done is not polled");
                            let future = Box::pin(service.go_on(request, *began, error));
                            self.set(RetryFuture::Again { future });
                        }
                    }
                }
                Projected::Again { future } => return future.as_mut().poll(cx),
            }
        }
    }
}
