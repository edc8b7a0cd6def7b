//! The mediator: tables that are frozen, and the ways into them.

use std::any::{Any, TypeId};
use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::hash::{BuildHasherDefault, Hasher};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use hashbrown::HashMap;
use tokio_util::sync::ReusableBoxFuture;

use crate::behaviour::Stage;
use crate::call::{Call, Context};
use crate::describe::Description;
use crate::error::{Error, ErrorKind};
use crate::handler::{Catching, panicked};
use crate::json::Doors;
use crate::message::{About, Notification, Request, StreamRequest};
use crate::metrics::Metrics;
use crate::notify::{Notifications, Published, Subscribe, Topic};
use crate::stream::{Opening, Streaming};
use crate::supervise::Supervisor;

/// Sends requests, notifications and stream requests to their handlers. Clones are the same mediator.
///
/// ```
/// use millstream_flow::BoxError;
/// use millstream_mediator::{Kind, Mediator, Request};
/// use std::collections::BTreeMap;
/// use std::sync::Arc;
///
/// struct PriceOf { article: u32 }
/// impl Request for PriceOf {
///     type Response = u64;
///     const KIND: Kind = Kind::Query;
/// }
///
/// type Prices = Arc<BTreeMap<u32, u64>>;
/// async fn price_of(prices: Prices, asked: PriceOf) -> Result<u64, BoxError> {
///     prices.get(&asked.article).copied().ok_or_else(|| "no such article".into())
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), BoxError> {
/// let prices = Prices::new(BTreeMap::from([(7, 250)]));
/// let mediator = Mediator::builder().request_with(prices, price_of).build()?;
/// assert_eq!(mediator.send(PriceOf { article: 7 }).await?, 250);
/// let error = mediator.send(PriceOf { article: 8 }).await.unwrap_err();
/// assert_eq!(error.to_string(), "PriceOf: its handler `price_of` failed");
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Mediator(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) requests: Table,
    pub(crate) streams: Table,
    pub(crate) topics: Table,
    pub(crate) doors: Doors,
    pub(crate) description: Description,
    pub(crate) metrics: Metrics,
    pub(crate) supervisor: Supervisor,
}

/// What is there for each type of message.
pub(crate) type Table = HashMap<TypeId, Box<dyn Any + Send + Sync>, BuildHasherDefault<AsItIs>>;

/// A type's identifier is a hash already.
#[derive(Default)]
pub(crate) struct AsItIs(u64);

impl Hasher for AsItIs {
    #[inline]
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }
}

/// A handler with its behaviours whose types are forgotten, but for the request's.
pub(crate) trait Dispatch<R: Request>: Send + Sync {
    fn about(&self) -> &Arc<About>;
    fn dispatch<'a>(&'a self, context: &'a Context, request: R) -> BoxFuture<'a, Result<R::Response, Error>>;
    /// As `dispatch`, in the box of the one before if that is of the right size.
    fn dispatch_in<'a>(&'a self, place: &mut Reused<'a, R>, context: &'a Context, request: R);
}

/// The future of one dispatch after another.
pub(crate) type Reused<'a, R> = Option<ReusableBoxFuture<'a, Result<<R as Request>::Response, Error>>>;

pub(crate) struct Route<S> {
    pub(crate) about: Arc<About>,
    pub(crate) stage: S,
}

impl<R: Request, S: Stage<R>> Dispatch<R> for Route<S> {
    fn about(&self) -> &Arc<About> {
        &self.about
    }

    #[inline]
    fn dispatch<'a>(&'a self, context: &'a Context, request: R) -> BoxFuture<'a, Result<R::Response, Error>> {
        in_place(|| self.run(context, request))
    }

    fn dispatch_in<'a>(&'a self, place: &mut Reused<'a, R>, context: &'a Context, request: R) {
        let run = self.run(context, request);
        match place {
            Some(place) => place.set(run),
            None => *place = Some(ReusableBoxFuture::new(run)),
        }
    }
}

/// A future in a box that was there before it: one that is made first, and might have to be dropped if there were no memory,
/// is copied into its box as a whole, also that which it does not hold yet.
#[inline]
pub(crate) fn in_place<F>(make: impl FnOnce() -> F) -> Pin<Box<F>> {
    Box::into_pin(Box::write(Box::new_uninit(), make()))
}

impl<S> Route<S> {
    #[expect(clippy::manual_async_fn, reason = "an async function's future would hold the request twice")]
    #[inline]
    fn run<'a, R: Request>(
        &'a self,
        context: &'a Context,
        request: R,
    ) -> impl Future<Output = Result<R::Response, Error>> + Send + 'a
    where
        S: Stage<R>,
    {
        async move {
            let call = Call::new(&self.about, context);
            // The handler's panics are caught where it is called, so that behaviours see them; these are the behaviours' own.
            match Catching(pin!(self.stage.run(&call, request))).await {
                Ok(ended) => ended,
                Err(payload) => Err(panicked(&call, payload)),
            }
        }
    }
}

/// What most calls are given along.
static NOTHING: Context = Context::new();

impl Mediator {
    fn route<R: Request>(&self) -> Result<&Arc<dyn Dispatch<R>>, Error> {
        let entry = self.0.requests.get(&TypeId::of::<R>());
        entry.and_then(|entry| entry.downcast_ref()).ok_or_else(|| unhandled(R::name()))
    }

    /// Sends a request to its handler, and answers with the response.
    ///
    /// It costs one allocation, for the future of handler and behaviours together. [`handle`](Mediator::handle) spares the
    /// look into the table too.
    ///
    /// # Errors
    /// [`ErrorKind`] says which. A handler's panic is an error like any other.
    ///
    /// # Cancel safety
    /// Dropping the future drops the handler's at the await where it is, and whatever behaviours held for it (a permit of a
    /// bulkhead, a trial of a breaker) is given back.
    #[inline]
    pub async fn send<R: Request>(&self, request: R) -> Result<R::Response, Error> {
        self.route::<R>()?.dispatch(&NOTHING, request).await
    }

    /// As [`send`](Mediator::send), with what behaviours and handler shall know of the caller.
    ///
    /// # Errors
    /// As [`send`](Mediator::send).
    pub async fn send_in<R: Request>(&self, context: &Context, request: R) -> Result<R::Response, Error> {
        self.route::<R>()?.dispatch(context, request).await
    }

    /// The way to one handler, found once.
    ///
    /// # Errors
    /// [`ErrorKind::NoHandler`].
    pub fn handle<R: Request>(&self) -> Result<Handle<R>, Error> {
        Ok(Handle(self.route::<R>()?.clone()))
    }

    /// Publishes a notification to all of its handlers and subscribers, and answers with what became of it at each; how
    /// is declared by [`Publish`](crate::Publish).
    ///
    /// A handler that fails is an outcome, not an error of this call. A notification of a type without handlers reaches
    /// nobody, which [`Published::is_empty`] says.
    ///
    /// # Cancel safety
    /// Dropping the future drops the handlers that were called and have not ended, but for those that are declared as detached;
    /// the others are not called.
    pub async fn publish<N: Notification>(&self, notification: N) -> Published {
        self.publish_in(&NOTHING, notification).await
    }

    /// As [`publish`](Mediator::publish), with what behaviours and handlers shall know of the caller.
    pub async fn publish_in<N: Notification>(&self, context: &Context, notification: N) -> Published {
        match self.topic::<N>() {
            Some(topic) => topic.publish(context, notification, &self.0.supervisor).await,
            None => Published::nobody(),
        }
    }

    fn topic<N: Notification>(&self) -> Option<&Topic<N>> {
        self.0.topics.get(&TypeId::of::<N>()).and_then(|entry| entry.downcast_ref())
    }

    /// A flow of the notifications of one type that are published from now on, through a buffer of its own; it ends with the
    /// mediator, or when it is dropped.
    ///
    /// # Errors
    /// [`ErrorKind::NoHandler`] if the type was neither given a handler nor
    /// [declared](crate::Builder::declare_notification): nobody knows of it.
    pub fn subscribe<N: Notification>(&self, subscribe: Subscribe) -> Result<Notifications<N>, Error> {
        let topic = self.topic::<N>().ok_or_else(|| unhandled(N::name()))?;
        Ok(topic.subscribe(subscribe))
    }

    /// Opens a stream: its handler is called, and answers with a flow from which nothing has been taken yet.
    ///
    /// # Errors
    /// As [`send`](Mediator::send). What fails later is the last item of the flow.
    ///
    /// # Backpressure
    /// The flow takes from its handler what is asked of it, and nothing ahead, but for the buffers that the request's options
    /// declare.
    ///
    /// # Cancel safety
    /// Dropping the flow drops the handler's, its tasks and its buffers.
    pub async fn stream<R: StreamRequest>(&self, request: R) -> Result<Streaming<R::Item>, Error> {
        self.stream_in(&NOTHING, request).await
    }

    /// As [`stream`](Mediator::stream), with what behaviours and handler shall know of the caller.
    ///
    /// # Errors
    /// As [`stream`](Mediator::stream).
    pub async fn stream_in<R: StreamRequest>(
        &self,
        context: &Context,
        request: R,
    ) -> Result<Streaming<R::Item>, Error> {
        let entry = self.0.streams.get(&TypeId::of::<R>());
        let route: &Arc<dyn Dispatch<Opening<R>>> =
            entry.and_then(|entry| entry.downcast_ref()).ok_or_else(|| unhandled(R::name()))?;
        route.dispatch(context, Opening(request)).await
    }

    /// Everything that is registered, to be printed as a table.
    pub fn describe(&self) -> &Description {
        &self.0.description
    }

    /// The numbers of all behaviours; [`Metrics::snapshot`] prints itself for Prometheus.
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// Waits for handlers of notifications that were [detached](crate::Publish::detached) to end, and lets no more begin: who
    /// waits for room to publish, in a detached handler of another mediator too, is told at once that none was called. It waits for
    /// as long as they take: for ever for one that never ends, or that calls this itself. See [`drain_within`](Mediator::drain_within).
    ///
    /// # Cancel safety
    /// Dropping it ends the waiting. No more begin all the same.
    pub async fn drain(&self) {
        self.0.supervisor.drain().await;
    }

    /// As [`drain`](Mediator::drain), up to a deadline. Detached handlers that are under way then are dropped where they wait, which is
    /// nobody's failure: it is neither counted nor told to [`undelivered`](crate::Builder::undelivered). Returns how many publishes
    /// that were, and logs it; 0 if all ended by themselves. One that blocks its thread cannot be stopped, and is waited for a
    /// second longer.
    ///
    /// ```
    /// # use millstream_flow::BoxError;
    /// # use millstream_mediator::{Mediator, Notification, Publish};
    /// # use std::sync::Arc;
    /// # use std::time::Duration;
    /// struct Placed;
    /// impl Notification for Placed {}
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let mediator = Mediator::builder()
    ///     .notification(async |_: Arc<Placed>| std::future::pending::<Result<(), BoxError>>().await)
    ///     .publish::<Placed>(Publish::detached())
    ///     .build()?;
    /// let _ = mediator.publish(Placed).await;
    /// assert_eq!(mediator.drain_within(Duration::from_secs(5)).await, 1);
    /// # Ok(()) }
    /// ```
    pub async fn drain_within(&self, deadline: Duration) -> usize {
        let left = self.0.supervisor.drain_within(deadline).await;
        if left > 0 {
            tracing::warn!(
                publishes = left,
                ?deadline,
                "detached handlers were dropped when draining took too long"
            );
        }
        left
    }
}

#[cold]
pub(crate) fn unhandled(name: Cow<'static, str>) -> Error {
    Error::unhandled(ErrorKind::NoHandler, name)
}

impl fmt::Debug for Mediator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { requests, streams, topics, .. } = &*self.0;
        f.debug_struct("Mediator")
            .field("requests", &requests.len())
            .field("streams", &streams.len())
            .field("notifications", &topics.len())
            .finish_non_exhaustive()
    }
}

/// The way to the handler of one type of request. See [`Mediator::handle`].
pub struct Handle<R: Request>(Arc<dyn Dispatch<R>>);

impl<R: Request> Handle<R> {
    /// As [`Mediator::send`].
    ///
    /// # Errors
    /// As [`Mediator::send`].
    #[inline]
    pub async fn send(&self, request: R) -> Result<R::Response, Error> {
        self.0.dispatch(&NOTHING, request).await
    }

    /// As [`Mediator::send_in`].
    ///
    /// # Errors
    /// As [`Mediator::send`].
    pub async fn send_in(&self, context: &Context, request: R) -> Result<R::Response, Error> {
        self.0.dispatch(context, request).await
    }

    /// What it leads to.
    pub fn about(&self) -> &About {
        self.0.about()
    }
}

impl<R: Request> Clone for Handle<R> {
    fn clone(&self) -> Self {
        Handle(self.0.clone())
    }
}

impl<R: Request> fmt::Debug for Handle<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Handle({})", self.about().name)
    }
}
