use std::task::{Context, Poll};

use tower_layer::Layer;
use tower_service::Service;

use super::{BoxFuture, oneshot};
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
        // The first call takes the service that was found ready; the others wait for theirs.
        let (hedge, service) = (self.hedge.clone(), super::ready(&mut self.inner));
        Box::pin(async move {
            let spare = service.clone();
            let mut first = Some(service);
            hedge
                .call(move || {
                    let (ready, service) = (first.take(), spare.clone());
                    let request = request.clone();
                    async move {
                        match ready {
                            Some(mut service) => service.call(request).await,
                            None => oneshot(service, request).await,
                        }
                    }
                })
                .await
        })
    }
}
