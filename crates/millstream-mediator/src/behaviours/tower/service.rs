//! A mediator as a service of tower.

use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use tower_service::Service;

use crate::error::Error;
use crate::mediator::{Handle, Mediator};
use crate::message::Request;

/// A handler with its behaviours as a service of tower, always ready. See [`Mediator::service`].
#[derive(Debug, Clone)]
pub struct TowerService<R: Request>(Handle<R>);

impl Mediator {
    /// The way to one handler as a service of tower. The policies of `millstream-resilience` stand around it as they are, for
    /// an [`Error`] is made of theirs.
    ///
    /// # Errors
    /// [`NoHandler`](crate::ErrorKind::NoHandler).
    pub fn service<R: Request>(&self) -> Result<TowerService<R>, Error> {
        Ok(TowerService(self.handle()?))
    }
}

impl<R: Request> Service<R> for TowerService<R> {
    type Response = R::Response;
    type Error = Error;
    type Future = BoxFuture<'static, Result<R::Response, Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: R) -> Self::Future {
        let handle = self.0.clone();
        Box::pin(async move { handle.send(request).await })
    }
}
