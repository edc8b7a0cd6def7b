//! Handlers of streams, with what is declared of their types.

use std::any::{TypeId, type_name};
use std::future::Future;
use std::sync::Arc;

use millstream_flow::{BoxError, Capacity, Concurrency, Flow, Pipe};

use super::Builder;
use super::handlers::MakeRoute;
use crate::behaviour::Behaviours;
use crate::describe::Line;
use crate::mediator::Dispatch;
use crate::message::{Kind, StreamRequest, handler_name};
use crate::stream::{
    Open, Opening, Source, StreamBehaviours, StreamFunction, StreamHandler, StreamOptions, Taken,
};

/// Handlers of streams.
impl<B: Behaviours, S: StreamBehaviours> Builder<B, S> {
    /// An async function or closure that opens one type of stream.
    ///
    /// ```
    /// use millstream_flow::{BoxError, Pipe};
    /// use millstream_mediator::{Error, Mediator, StreamRequest};
    ///
    /// struct CountTo(u64);
    /// impl StreamRequest for CountTo { type Item = u64; }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), BoxError> {
    /// let mediator = Mediator::builder()
    ///     .stream(async |to: CountTo| Ok::<_, Error>(Pipe::from_iter(1..=to.0).map(Ok::<_, Error>)))
    ///     .build()?;
    /// let (sum, _) = mediator.stream(CountTo(100)).await?.fold(0, |sum, n| *sum += n.unwrap_or(0)).await?;
    /// assert_eq!(sum, 5050);
    /// # Ok(()) }
    /// ```
    pub fn stream<R, F, Fut, G, E, I>(self, handler: F) -> Self
    where
        R: StreamRequest,
        F: Fn(R) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Pipe<G>, E>> + Send,
        G: Flow<Item = Result<R::Item, I>, Token = ()> + Send + 'static,
        E: Into<BoxError>,
        I: Into<BoxError> + Send + 'static,
    {
        self.add_stream(StreamFunction(handler), handler_name(type_name::<F>()))
    }

    /// As [`stream`](Builder::stream), of a function with a state before the request, which is cloned for each call.
    pub fn stream_with<R, T, F, Fut, G, E, I>(self, state: T, handler: F) -> Self
    where
        R: StreamRequest,
        T: Clone + Send + Sync + 'static,
        F: Fn(T, R) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Pipe<G>, E>> + Send,
        G: Flow<Item = Result<R::Item, I>, Token = ()> + Send + 'static,
        E: Into<BoxError>,
        I: Into<BoxError> + Send + 'static,
    {
        let name = handler_name(type_name::<F>());
        self.add_stream(StreamFunction(move |request| handler(state.clone(), request)), name)
    }

    /// As [`stream`](Builder::stream), of a handler that is a type.
    pub fn stream_handler<R: StreamRequest, H: StreamHandler<R>>(self, handler: H) -> Self
    where
        H::ItemError: Send + 'static,
    {
        self.add_stream(handler, handler_name(type_name::<H>()))
    }

    fn add_stream<R: StreamRequest, H: StreamHandler<R>>(mut self, handler: H, name: String) -> Self
    where
        H::ItemError: Send + 'static,
    {
        let parts = &mut self.parts;
        let about = parts.about::<R, Opening<R>>(R::name(), Kind::Stream, name);
        if parts.names_twice::<R>(true, &about) || parts.handled_twice::<R>(false, &about) {
            return self;
        }
        let options = parts.options.remove(&TypeId::of::<R>());
        let options = options.and_then(|options| options.downcast::<StreamOptions<R::Item>>().ok());
        let options = options.map(|options| *options).unwrap_or_default();
        let options = parts.stream_defaults.fill(options);
        if options.retry.is_some() {
            let remedy = "say what is done with each item by `each`, or remove it";
            parts.problems.push(format!("`retry_each` of {} has no effect: {remedy}", R::name()));
        }
        if options.each.as_ref().is_some_and(|(concurrency, _)| !concurrency.is_ordered()) {
            let mut names = Vec::new();
            self.stream_behaviours.needing_order(&about, &mut names);
            parts.problems.extend(names.iter().map(|name| {
                format!(
                    "the behaviour `{name}` goes on at the handler's position, which is not known where `each` of {} works on items out of \
                     order; make that `Concurrency::ordered`, or resume by `Restart` or `Dedupe`",
                    R::name()
                )
            }));
        }
        let dropped = crate::metrics::stream_dropped(&about, "item_error");
        self.stream_behaviours.waiting(&about, &mut Vec::new(), &mut parts.problems);
        let source = Source { handler, options, dropped };
        let stage = self.stream_behaviours.around::<R, _>(&about, source);
        let route: Arc<dyn Dispatch<Opening<R>>> = self.behaviours.route(&about, Open(stage));
        self.line(&about, |names, behaviours, stream_behaviours| {
            behaviours.names(&about, names);
            stream_behaviours.names(&about, names);
        });
        self.parts.streams.insert(TypeId::of::<R>(), Box::new(route));
        self
    }

    /// Runs the handlers of all streams that are registered after it in tasks of their own, so many items ahead of who reads,
    /// unless the [options](StreamOptions::buffer) of their type say otherwise. Each open stream may hold that many.
    ///
    /// # Panics
    /// If the capacity is 0 items.
    pub fn stream_buffer(mut self, capacity: impl Into<Capacity>) -> Self {
        self.before_streams("stream_buffer");
        self.parts.stream_defaults.buffer = Some(Taken::new(capacity.into()));
        self
    }

    /// How many items of a stream are in flight at once where [`StreamOptions::each_item`] does something with each, for all
    /// streams that are registered after it; one if it is not said.
    pub fn stream_concurrency(mut self, concurrency: impl Into<Concurrency>) -> Self {
        self.before_streams("stream_concurrency");
        self.parts.stream_defaults.concurrency = Some(Taken::new(concurrency.into()));
        self
    }

    fn before_streams(&mut self, what: &str) {
        if let Some(Line { message, .. }) = self.parts.lines.iter().find(|line| line.kind == Kind::Stream) {
            let problem =
                format!("`{what}` comes after the handler of {message}; give it before all streams");
            self.parts.problems.push(problem);
        }
    }

    /// What is declared of one type of stream, whose handler is registered after it.
    pub fn stream_options<R: StreamRequest>(mut self, options: StreamOptions<R::Item>) -> Self {
        let parts = &mut self.parts;
        let name = R::name();
        if parts.streams.contains_key(&TypeId::of::<R>()) {
            parts.problems.push(format!("the options of {name} come after its handler; give them before it"));
        } else if parts.options.insert(TypeId::of::<R>(), Box::new(options)).is_some() {
            parts.problems.push(format!("the options of {name} are given twice; remove one of them"));
        }
        self
    }
}
