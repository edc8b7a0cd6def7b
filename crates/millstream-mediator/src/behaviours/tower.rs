//! Any layer of tower as a behaviour, and a mediator as a service of tower.

use std::any::Any;
use std::borrow::Cow;
use std::future::poll_fn;
use std::sync::Arc;

use millstream_flow::BoxError;
use tower_layer::Layer;
use tower_service::Service;

use crate::behaviour::{Behaviour, Next};
use crate::call::Call;
use crate::error::{Error, ErrorKind};
use crate::message::{About, Request};

mod in_turn;
mod passing;
mod service;

pub use in_turn::{InTurn, InTurnService};
pub use passing::{Answering, Passing, TowerNext};
pub use service::TowerService;

/// A layer of tower as a behaviour: of all requests, which pass it as [`Passing`], whatever they are. It costs two boxes a call.
///
/// Each handler has a service of its own, made by the layer; a layer that is to hold for all shares its state itself, as
/// tower's `GlobalConcurrencyLimitLayer` does. Services are cloned for each call; what cannot be cloned is for
/// [`in_turn`](Tower::in_turn).
///
/// The policies of `millstream-resilience` are layers too. For those that call again, with a clone of the request, there are
/// behaviours: [`Retries`](crate::Retries) and [`Hedging`](crate::Hedging) know which requests [may be
/// repeated](Request::repeat). Tower's own retries learn it by [`Passing::repeat`].
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
    /// This layer, by the name that [`describe`](crate::Mediator::describe) shows.
    pub fn new(name: impl Into<Cow<'static, str>>, layer: L) -> Self {
        let service = layer.layer(TowerNext::new());
        Tower { name: name.into(), layer: Arc::new(layer), service }
    }
}

impl<L> Tower<InTurn<L>>
where
    L: Layer<TowerNext>,
{
    /// The same of a layer whose services cannot be cloned: all calls of a handler share one. See [`InTurn`].
    ///
    /// ```
    /// use millstream_mediator::{Mediator, Tower};
    /// use std::time::Duration;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let five_a_second = tower::limit::RateLimitLayer::new(5, Duration::from_secs(1));
    /// let builder = Mediator::builder().behaviour(Tower::in_turn("five a second", five_a_second));
    /// # let _ = builder;
    /// # }
    /// ```
    pub fn in_turn(name: impl Into<Cow<'static, str>>, layer: L) -> Self {
        Tower::new(name, InTurn::new(layer))
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
        let service = self.layer.layer(TowerNext::new());
        Tower { name: self.name.clone(), layer: self.layer.clone(), service }
    }

    async fn call<R: Request, N: Next<R>>(
        &self,
        call: &Call<'_>,
        request: R,
        next: &N,
    ) -> Result<R::Response, Error> {
        let failed = |error: BoxError| match error.downcast::<Error>() {
            // The mediator's own, which the layer has passed on, or one that a policy has made.
            Ok(error) => error.of(call.about()),
            Err(error) => Error::new(call.about(), ErrorKind::Failed).because(error),
        };
        let mut service = self.service.clone();
        poll_fn(|cx| service.poll_ready(cx)).await.map_err(|error| failed(error.into()))?;
        let passing = Passing::new(next.clone(), call.detach(), request);
        let response = service.call(passing).await.map_err(|error| failed(error.into()))?;
        let response = response.downcast::<R::Response>();
        Ok(*response.map_err(|_| failed("a layer of tower has answered with something else".into()))?)
    }
}
