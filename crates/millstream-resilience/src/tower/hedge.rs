use std::task::{Context, Poll};

use tower_layer::Layer;
use tower_service::Service;

use super::{BoxFuture, Callee};
use crate::Hedge;

impl<S> Layer<S> for Hedge {
    type Service = HedgeService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        HedgeService { inner, hedge: self.clone() }
    }
}

/// A service that is called a second time, with a clone of the request, when a call is slow.
#[derive(Debug, Clone)]
pub struct HedgeService<S> {
    inner: S,
    hedge: Hedge,
}

impl<R, S> Service<R> for HedgeService<S>
where
    R: Clone + Send + 'static,
    S: Service<R, Error: Send, Response: Send, Future: Send> + Clone + Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let (hedge, mut callee) = (self.hedge.clone(), Callee::new(super::ready(&mut self.inner), request));
        Box::pin(async move { hedge.call(|| callee.call()).await })
    }
}
