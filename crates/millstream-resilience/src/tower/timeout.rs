use std::task::{Context, Poll};

use tower_layer::Layer;
use tower_service::Service;

use crate::{Timed, TimedOut, Timeout};

impl<S> Layer<S> for Timeout {
    type Service = TimeoutService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        TimeoutService { inner, timeout: *self }
    }
}

/// A service whose calls take so long at most.
#[derive(Debug, Clone)]
pub struct TimeoutService<S> {
    inner: S,
    timeout: Timeout,
}

impl<R, S> Service<R> for TimeoutService<S>
where
    S: Service<R, Error: From<TimedOut>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Timed<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        self.timeout.wrap(self.inner.call(request))
    }
}
