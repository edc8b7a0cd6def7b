//! Any layer of tower as a behaviour, and a mediator as a service of tower.

use std::any::Any;
use std::borrow::Cow;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use millstream_flow::BoxError;
use tower_layer::Layer;
use tower_service::Service;

use crate::behaviour::{Behaviour, Next};
use crate::call::Call;
use crate::error::{Error, ErrorKind};
use crate::mediator::{Handle, Mediator};
use crate::message::{About, Request};

/// A layer of tower as a behaviour: of all requests, which pass it as [`Passing`], whatever they are. So it is for layers that
/// do not look at requests: limits, timeouts, load shedding. It costs two boxes a call.
///
/// Each handler has a service of its own, made by the layer; a layer that is to hold for all shares its state itself, as
/// tower's `GlobalConcurrencyLimitLayer` does. Services are cloned for each call.
///
/// ```
/// use millstream_mediator::{Error, Mediator, Request, Tower};
/// use std::time::Duration;
///
/// struct Never;
/// impl Request for Never { type Response = (); }
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), millstream_flow::BoxError> {
/// let layer = tower::timeout::TimeoutLayer::new(Duration::from_secs(1));
/// let mediator = Mediator::builder()
///     .behaviour(Tower::new("tower timeout", layer))
///     .request(async |_: Never| std::future::pending::<Result<(), Error>>().await)
///     .build()?;
/// let error = mediator.send(Never).await.unwrap_err();
/// assert!(error.find::<tower::timeout::error::Elapsed>().is_some());
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Tower<L: Layer<TowerNext>> {
    name: Cow<'static, str>,
    layer: Arc<L>,
    service: L::Service,
}

impl<L> Tower<L>
where
    L: Layer<TowerNext>,
{
    /// This layer, by the name that [`describe`](Mediator::describe) shows.
    pub fn new(name: impl Into<Cow<'static, str>>, layer: L) -> Self {
        let service = layer.layer(TowerNext(()));
        Tower { name: name.into(), layer: Arc::new(layer), service }
    }
}

/// A request that passes layers of tower: it brings along what answers it.
pub struct Passing(BoxFuture<'static, Result<Box<dyn Any + Send>, Error>>);

/// The service inside a layer of tower: what comes next.
#[derive(Debug, Clone)]
pub struct TowerNext(());

impl Service<Passing> for TowerNext {
    type Response = Box<dyn Any + Send>;
    type Error = Error;
    type Future = BoxFuture<'static, Result<Box<dyn Any + Send>, Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Passing) -> Self::Future {
        request.0
    }
}

impl<L> Behaviour for Tower<L>
where
    L: Layer<TowerNext> + Send + Sync + 'static,
    L::Service: Service<Passing, Response = Box<dyn Any + Send>> + Clone + Send + Sync + 'static,
    <L::Service as Service<Passing>>::Error: Into<BoxError>,
    <L::Service as Service<Passing>>::Future: Send,
{
    fn name(&self) -> Cow<'static, str> {
        self.name.clone()
    }

    fn of(&self, _: &About) -> Self {
        let service = self.layer.layer(TowerNext(()));
        Tower { name: self.name.clone(), layer: self.layer.clone(), service }
    }

    async fn call<R: Request, N: Next<R>>(
        &self,
        call: &Call<'_>,
        request: R,
        next: &N,
    ) -> Result<R::Response, Error> {
        let failed = |error: BoxError| match error.downcast::<Error>() {
            Ok(error) => *error, // the mediator's own, which the layer has passed on
            Err(error) => Error::new(call.about(), ErrorKind::Failed).because(error),
        };
        let mut service = self.service.clone();
        poll_fn(|cx| service.poll_ready(cx)).await.map_err(|error| failed(error.into()))?;
        let (next, detached) = (next.clone(), call.detach());
        let passing = Passing(Box::pin(async move {
            let response = next.call(&detached.call(), request).await?;
            Ok(Box::new(response) as Box<dyn Any + Send>)
        }));
        let response = service.call(passing).await.map_err(|error| failed(error.into()))?;
        let response = response.downcast::<R::Response>();
        Ok(*response.map_err(|_| failed("a layer of tower has answered with something else".into()))?)
    }
}

/// A handler with its behaviours as a service of tower, always ready. See [`Mediator::service`].
#[derive(Debug, Clone)]
pub struct TowerService<R: Request>(Handle<R>);

impl Mediator {
    /// The way to one handler as a service of tower.
    ///
    /// # Errors
    /// [`ErrorKind::NoHandler`].
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
