//! Stream requests: handlers that answer with flows, and what stands around them.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::future::Future;

use futures_util::future::BoxFuture;
use millstream_flow::flows::{BoxFlow, Either};
use millstream_flow::{BoxError, Flow, Pipe};

use crate::behaviour::{Around, Inside, Shared, Stage};
use crate::call::Call;
use crate::error::{Error, ErrorKind};
use crate::memory::Memory;
use crate::message::{About, Kind, Request, StreamRequest};

pub(crate) mod contained;
mod defaults;
mod end;
mod options;
pub(crate) mod progress;
mod written;

use contained::{Contained, Reached};
use progress::LeftOut;

pub(crate) use defaults::{StreamDefaults, Taken};
pub(crate) use end::Source;
pub use end::{Failing, Guarded};
pub use options::{ItemErrors, StreamOptions};
pub(crate) use written::written;

/// What a stream request is answered with: a flow of items, of which the last is an error if the stream did not end well.
pub type Streaming<T> = Pipe<BoxFlow<Result<T, StreamError>>>;

/// Where a stream is, and why it broke, or an item did.
pub struct StreamError(Box<Broken>);

struct Broken {
    error: Error,
    position: u64,
    delivered: u64,
    last: bool,
}

impl StreamError {
    pub(crate) fn new(error: Error, position: u64, last: bool) -> Self {
        StreamError(Box::new(Broken { error, position, delivered: position, last }))
    }

    /// The how-manieth item of the handler failed or was to come next, counted from 0.
    pub fn position(&self) -> u64 {
        self.0.position
    }

    /// How many items were delivered before: fewer than the position if some were skipped or dropped, and of a stream that
    /// was opened anew those of all its tries.
    pub fn delivered(&self) -> u64 {
        self.0.delivered
    }

    /// Why.
    pub fn error(&self) -> &Error {
        &self.0.error
    }

    /// Whether the stream ends with it. False for a single item that failed where
    /// [`ItemErrors::pass`] lets the stream go on.
    pub fn is_last(&self) -> bool {
        self.0.last
    }

    pub(crate) fn delivered_in_all(mut self, delivered: u64) -> Self {
        self.0.delivered = delivered;
        self
    }

    pub(crate) fn at(mut self, position: u64) -> Self {
        self.0.position = position;
        self
    }
}

impl fmt::Display for StreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Broken { error, position, delivered, .. } = &*self.0;
        write!(f, "{} at item {position}, {delivered} delivered", error.message())
    }
}

impl fmt::Debug for StreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Broken { error, position, delivered, last } = &*self.0;
        f.debug_struct("StreamError")
            .field("error", error)
            .field("position", position)
            .field("delivered", delivered)
            .field("last", last)
            .finish()
    }
}

impl StdError for StreamError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.0.error)
    }
}

/// What flows between the behaviours of a stream.
pub trait ItemFlow<T>: Flow<Item = Result<T, StreamError>, Token = ()> + Send + 'static {}

impl<T, F: Flow<Item = Result<T, StreamError>, Token = ()> + Send + 'static> ItemFlow<T> for F {}

/// Answers one type of stream request, for handlers that are types. Async functions and closures need no more than
/// [`Builder::stream`](crate::Builder::stream).
pub trait StreamHandler<R: StreamRequest>: Send + Sync + 'static {
    /// What opening fails with.
    type Error: Into<BoxError>;
    /// What an item fails with.
    type ItemError: Into<BoxError>;
    /// What it answers with: [`BoxFlow`] if the flow's type cannot be named, by [`Pipe::boxed`].
    type Flow: Flow<Item = Result<R::Item, Self::ItemError>, Token = ()> + Send + 'static;

    /// Opens the stream. Nothing of it runs before it is asked for an item.
    fn open(
        &self,
        request: R,
        call: &Call<'_>,
    ) -> impl Future<Output = Result<Pipe<Self::Flow>, Self::Error>> + Send;
}

/// A handler of streams with the behaviours around it.
pub trait StreamStage<R: StreamRequest>: Send + Sync + 'static {
    /// What flows out of it.
    type Flow: ItemFlow<R::Item>;

    /// Opens the stream.
    fn open(
        &self,
        call: &Call<'_>,
        request: R,
    ) -> impl Future<Output = Result<Pipe<Self::Flow>, Error>> + Send;

    /// Whether it is a handler without behaviours, which catches its panics itself.
    fn is_bare(&self) -> bool {
        false
    }
}

/// What stands around a stream as long as it flows. Around its opening stand [`Behaviour`](crate::Behaviour)s whose
/// [`Scope`](crate::Scope) is [`Kind::Stream`].
///
/// ```
/// use millstream_flow::{Pipe, flows::{BoxFlow}};
/// use millstream_mediator::{About, Call, Error, StreamBehaviour, StreamError, StreamNext, StreamRequest};
/// use std::borrow::Cow;
///
/// /// No more than so many items of any stream.
/// #[derive(Clone)]
/// struct First(u64);
///
/// impl StreamBehaviour for First {
///     type Flow<R: StreamRequest, N: StreamNext<R>> = BoxFlow<Result<R::Item, StreamError>>;
///
///     fn name(&self) -> Cow<'static, str> { format!("first {}", self.0).into() }
///     fn of(&self, _: &About) -> Self { self.clone() }
///     async fn open<R: StreamRequest, N: StreamNext<R>>(
///         &self, call: &Call<'_>, request: R, next: &N,
///     ) -> Result<Pipe<Self::Flow<R, N>>, Error> {
///         Ok(next.open(call, request).await?.take(self.0 as usize).boxed())
///     }
/// }
/// ```
pub trait StreamBehaviour: Sized + Send + Sync + 'static {
    /// What flows out of it.
    type Flow<R: StreamRequest, N: StreamNext<R>>: ItemFlow<R::Item>;

    /// What it is and how it is set, in a few words.
    fn name(&self) -> Cow<'static, str>;

    /// The one for this type of stream and this handler. State that types shall not share is made here.
    fn of(&self, about: &About) -> Self;

    /// What is wrong with how it is set, with a remedy: a mediator with such a behaviour is not built.
    fn problem(&self) -> Option<String> {
        None
    }

    /// Whether it takes the items that come for the handler's, in the handler's order. Around items that are worked on
    /// [out of order](StreamOptions::each) that would lose some: such a mediator is not built.
    fn needs_order(&self) -> bool {
        false
    }

    /// The budget that it waits for, and takes nothing from what is inside of it meanwhile. Around what
    /// [fills](StreamBehaviour::fills) the same budget that would be for ever: such a mediator is not built.
    fn waits_for(&self) -> Option<&Memory> {
        None
    }

    /// The budget in which the items count that it holds for who reads.
    fn fills(&self) -> Option<&Memory> {
        None
    }

    /// Opens what comes next, and does what it does around it.
    fn open<R: StreamRequest, N: StreamNext<R>>(
        &self,
        call: &Call<'_>,
        request: R,
        next: &N,
    ) -> impl Future<Output = Result<Pipe<Self::Flow<R, N>>, Error>> + Send;
}

/// What a stream's behaviour opens: the behaviours inside it, and at last the handler's stream.
pub trait StreamNext<R: StreamRequest>: Clone + Send + Sync + 'static {
    /// What flows out of it.
    type Flow: ItemFlow<R::Item>;

    /// Opens it. It may be opened any number of times.
    fn open(
        &self,
        call: &Call<'_>,
        request: R,
    ) -> impl Future<Output = Result<Pipe<Self::Flow>, Error>> + Send;
}

impl<R: StreamRequest, S: StreamStage<R>> StreamNext<R> for Shared<S> {
    type Flow = S::Flow;

    async fn open(&self, call: &Call<'_>, request: R) -> Result<Pipe<S::Flow>, Error> {
        // A box for each behaviour and opening: next to what flows then it is nothing, and types stay shallow.
        let opening: BoxFuture<'_, _> = Box::pin(self.0.open(call, request));
        opening.await
    }
}

/// Behaviours of streams, outermost first. Made by [`Builder`](crate::Builder).
pub trait StreamBehaviours: Send + Sync + 'static {
    /// What they make of a handler.
    type Around<R: StreamRequest, S: StreamStage<R>>: StreamStage<R>;

    /// Stands them around a handler.
    fn around<R: StreamRequest, S: StreamStage<R>>(&self, about: &About, end: S) -> Self::Around<R, S>;

    /// Adds the names of those that are around this.
    fn names(&self, about: &About, names: &mut Vec<Cow<'static, str>>);

    /// Adds the names of those around this that need the handler's order.
    fn needing_order(&self, about: &About, names: &mut Vec<Cow<'static, str>>);

    /// Adds those around this that wait for a budget, and what is wrong with their places.
    fn waiting<'a>(&'a self, about: &About, waiting: &mut Vec<Waiting<'a>>, problems: &mut Vec<String>);

    /// Adds what is wrong with those that nothing reaches.
    fn unreached(&self, problems: &mut Vec<String>);
}

/// A behaviour by its name, and the budget that it waits for.
pub(crate) type Waiting<'a> = (Cow<'static, str>, &'a Memory);

impl StreamBehaviours for crate::behaviour::Bare {
    type Around<R: StreamRequest, S: StreamStage<R>> = S;

    fn around<R: StreamRequest, S: StreamStage<R>>(&self, _: &About, end: S) -> S {
        end
    }
    fn names(&self, _: &About, _: &mut Vec<Cow<'static, str>>) {}
    fn needing_order(&self, _: &About, _: &mut Vec<Cow<'static, str>>) {}
    fn waiting<'a>(&'a self, _: &About, _: &mut Vec<Waiting<'a>>, _: &mut Vec<String>) {}
    fn unreached(&self, _: &mut Vec<String>) {}
}

impl<O: StreamBehaviours, B: StreamBehaviour> StreamBehaviours for Inside<O, B> {
    type Around<R: StreamRequest, S: StreamStage<R>> = O::Around<R, Around<B, S>>;

    fn around<R: StreamRequest, S: StreamStage<R>>(&self, about: &About, end: S) -> Self::Around<R, S> {
        self.outer.around(about, self.stand(about, end, |behaviour| behaviour.of(about)))
    }

    fn names(&self, about: &About, names: &mut Vec<Cow<'static, str>>) {
        self.outer.names(about, names);
        names.extend(self.placed.scope.holds(about).then(|| self.behaviour.name()));
    }

    fn needing_order(&self, about: &About, names: &mut Vec<Cow<'static, str>>) {
        self.outer.needing_order(about, names);
        let needs = self.placed.scope.holds(about) && self.behaviour.needs_order();
        names.extend(needs.then(|| self.behaviour.name()));
    }

    fn waiting<'a>(&'a self, about: &About, waiting: &mut Vec<Waiting<'a>>, problems: &mut Vec<String>) {
        self.outer.waiting(about, waiting, problems);
        if !self.placed.scope.holds(about) {
            return;
        }
        let name = self.behaviour.name();
        let fills = self.behaviour.fills();
        problems.extend(waiting.iter().filter(|(_, memory)| fills.is_some_and(|fills| fills.is(memory))).map(
            |(outer, _)| {
                let stream = &about.name;
                format!(
                    "around the stream {stream} the behaviour `{outer}` waits for the memory in which what is in `{name}` counts, \
                     and would keep it from being read for ever; add it after `{name}`"
                )
            },
        ));
        waiting.extend(self.behaviour.waits_for().map(|memory| (name, memory)));
    }

    fn unreached(&self, problems: &mut Vec<String>) {
        self.outer.unreached(problems);
        self.placed.unreached(&self.behaviour.name(), &[], problems);
    }
}

/// Where a behaviour does not apply, the flow inside of it is boxed: a virtual call a quantum. Its type as it is beside the
/// behaviour's, which holds it too, would double the type with each behaviour.
impl<R: StreamRequest, B: StreamBehaviour, S: StreamStage<R>> StreamStage<R> for Around<B, S> {
    type Flow = Either<B::Flow<R, Shared<S>>, BoxFlow<Result<R::Item, StreamError>>>;

    async fn open(&self, call: &Call<'_>, request: R) -> Result<Pipe<Self::Flow>, Error> {
        Ok(match &self.behaviour {
            Some(behaviour) => {
                let pipe = behaviour.open(call, request, &self.inner).await?;
                pipe.via("behaviour", Either::Left)
            }
            None => self.inner.open(call, request).await?.boxed().via("bare", Either::Right),
        })
    }

    fn is_bare(&self) -> bool {
        self.behaviour.is_none() && self.inner.0.is_bare()
    }
}

/// A stream request that is being opened: to behaviours a request like any other.
pub struct Opening<R>(pub R);

impl<R: StreamRequest> Request for Opening<R> {
    type Response = Streaming<R::Item>;
    const KIND: Kind = Kind::Stream;

    fn name() -> Cow<'static, str> {
        R::name()
    }
    fn repeat(&self) -> Option<Self> {
        self.0.repeat().map(Opening)
    }
}

/// The end of the chain of an opening: the beginning of the stream's.
pub(crate) struct Open<S>(pub(crate) S);

impl<R: StreamRequest, S: StreamStage<R>> Stage<Opening<R>> for Open<S> {
    async fn run(&self, call: &Call<'_>, request: Opening<R>) -> Result<Streaming<R::Item>, Error> {
        if self.0.is_bare() {
            let opening: BoxFuture<'_, _> = Box::pin(self.0.open(call, request.0));
            return Ok(opening.await?.boxed());
        }
        let left_out = LeftOut::of(call);
        let reached = Reached::new(left_out.beside(call), left_out);
        let pipe = {
            let call = reached.call();
            let opening: BoxFuture<'_, _> = Box::pin(self.0.open(&call, request.0));
            opening.await?
        };
        Ok(pipe.via("stream", |upstream| Contained::new(upstream, reached)).boxed())
    }
}

/// An async function as a handler of streams.
pub(crate) struct StreamFunction<F>(pub(crate) F);

impl<R, Fn_, Fut, F, E, I> StreamHandler<R> for StreamFunction<Fn_>
where
    R: StreamRequest,
    Fn_: Fn(R) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Pipe<F>, E>> + Send,
    F: Flow<Item = Result<R::Item, I>, Token = ()> + Send + 'static,
    E: Into<BoxError>,
    I: Into<BoxError>,
{
    type Error = E;
    type ItemError = I;
    type Flow = F;

    fn open(&self, request: R, _: &Call<'_>) -> impl Future<Output = Result<Pipe<F>, E>> + Send {
        (self.0)(request)
    }
}

pub(crate) fn opening_failed(call: &Call<'_>, error: impl Into<BoxError>) -> Error {
    Error::new(call.about(), ErrorKind::Failed).because(error)
}
