use std::sync::Mutex;
use std::task::{Context, Poll};

use tower_layer::Layer;
use tower_service::Service;

use super::{BoxFuture, Callee};
use crate::{Classifier, Error, Policy};

impl<S, C: Clone> Layer<S> for Policy<C> {
    type Service = PolicyService<S, C>;

    fn layer(&self, inner: S) -> Self::Service {
        PolicyService { inner, policy: self.clone() }
    }
}

/// A service behind several policies.
#[derive(Debug, Clone)]
pub struct PolicyService<S, C> {
    inner: S,
    policy: Policy<C>,
}

impl<R, S, C> Service<R> for PolicyService<S, C>
where
    R: Clone + Send + 'static,
    S: Service<R, Error: Send, Response: Send, Future: Send> + Clone + Send + 'static,
    C: Classifier<S::Error> + Clone + Send + Sync + 'static,
{
    type Response = S::Response;
    type Error = Error<S::Error>;
    type Future = BoxFuture<Result<S::Response, Self::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx).map_err(Error::Failed)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let policy = self.policy.clone();
        // A service need not be shareable; what is locked is never waited for.
        let callee = Mutex::new(Callee::new(super::ready(&mut self.inner), request));
        let call =
            move || callee.lock().expect("nothing panics while the callee is held but the callee").call();
        Box::pin(async move { policy.call(call).await })
    }
}
