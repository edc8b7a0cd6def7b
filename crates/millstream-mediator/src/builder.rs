//! How a mediator is put together, and refused if it cannot work.

use std::any::{TypeId, type_name};
use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;

use millstream_flow::{BoxError, Flow, Pipe};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::behaviour::{Bare, Behaviour, Behaviours, Boxed, Inside, Placed, Scope};
use crate::describe::{Description, Line};
use crate::handler::{End, Function, Handler, Notified, Stateful};
use crate::json::{Doors, ToRequest, ToStream, ToTopic};
use crate::mediator::{Dispatch, Inner, Mediator, Route, Table};
use crate::message::{About, Kind, Notification, Request, StreamRequest, handler_name};
use crate::notify::Publish;
use crate::stream::{
    Open, Opening, Source, StreamBehaviour, StreamBehaviours, StreamFunction, StreamHandler, StreamInside,
    StreamOptions,
};
use crate::supervise::Supervisor;
use crate::typed::{BehaviourOf, Only};

mod error;
mod parts;

pub use error::BuildError;
use parts::{Parts, Tables};

/// Puts a mediator together: first behaviours, outermost first, then handlers.
///
/// What is wrong is collected, and [`build`](Builder::build) tells all of it.
#[must_use = "a builder does nothing until it is built"]
pub struct Builder<B = Bare, S = Bare> {
    behaviours: B,
    stream_behaviours: S,
    parts: Parts,
}

/// How many detached publishes are under way at once, unless it is said.
const DETACHED_MAX: usize = 1024;

impl Builder {
    pub(crate) fn new() -> Self {
        Builder { behaviours: Bare, stream_behaviours: Bare, parts: Parts::default() }
    }
}

impl Mediator {
    /// A builder without behaviours or handlers.
    pub fn builder() -> Builder {
        Builder::new()
    }
}

/// Behaviours. The first one that is added is outermost: it sees a request first, and its response last.
impl<B: Behaviours, S: StreamBehaviours> Builder<B, S> {
    /// Stands a behaviour around all requests, inside of those that were added before.
    pub fn behaviour<X: Behaviour>(self, behaviour: X) -> Builder<Inside<B, X>, S> {
        self.behaviour_for(Scope::requests(), behaviour)
    }

    /// Stands a behaviour around what a scope chooses: queries, one type, the handlers of notifications, the opening of
    /// streams.
    ///
    /// ```
    /// # use millstream_mediator::{Kind, Mediator, Scope, Timeout};
    /// # use std::time::Duration;
    /// let builder = Mediator::builder()
    ///     .behaviour_for(Scope::kind(Kind::Query), Timeout::new(Duration::from_secs(1)))
    ///     .behaviour_for(Scope::kind(Kind::Notification), Timeout::new(Duration::from_secs(30)));
    /// # let _ = builder;
    /// ```
    pub fn behaviour_for<X: Behaviour>(self, scope: Scope, behaviour: X) -> Builder<Inside<B, X>, S> {
        let Builder { behaviours, stream_behaviours, mut parts } = self;
        parts.after_handlers(&behaviour.name());
        let placed = Placed::new(scope);
        Builder { behaviours: Inside { outer: behaviours, behaviour, placed }, stream_behaviours, parts }
    }

    /// Stands a behaviour around one type of request which it knows.
    pub fn behaviour_of<R: Request, X: BehaviourOf<R>>(
        self,
        behaviour: X,
    ) -> Builder<Inside<B, Only<R, X>>, S> {
        self.behaviour_for(Scope::of::<R>(), Only::new(behaviour))
    }

    /// Puts a box between the behaviours of requests so far and those that follow, which costs a call one allocation more.
    ///
    /// A builder's type holds all of its behaviours, and the compiler gives up on types that lie too deep ("queries overflow the
    /// depth limit"), which a dozen behaviours around one handler may reach. This, in the middle of them, is the remedy.
    pub fn boxed(self) -> Builder<Boxed<B>, S> {
        let Builder { behaviours, stream_behaviours, parts } = self;
        Builder { behaviours: Boxed(behaviours), stream_behaviours, parts }
    }

    /// Stands a behaviour around all streams as long as they flow, inside of those that were added before.
    pub fn stream_behaviour<X: StreamBehaviour>(self, behaviour: X) -> Builder<B, StreamInside<S, X>> {
        self.stream_behaviour_for(Scope::kind(Kind::Stream), behaviour)
    }

    /// Stands a behaviour around the streams that a scope chooses.
    pub fn stream_behaviour_for<X: StreamBehaviour>(
        self,
        scope: Scope,
        behaviour: X,
    ) -> Builder<B, StreamInside<S, X>> {
        let Builder { behaviours, stream_behaviours, mut parts } = self;
        parts.after_handlers(&behaviour.name());
        let placed = Placed::new(scope);
        let stream_behaviours = StreamInside { outer: stream_behaviours, behaviour, placed };
        Builder { behaviours, stream_behaviours, parts }
    }
}

/// Handlers.
impl<B: Behaviours, S: StreamBehaviours> Builder<B, S> {
    /// An async function or closure that handles one type of request.
    pub fn request<R, F, Fut, E>(self, handler: F) -> Self
    where
        R: Request,
        F: Fn(R) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R::Response, E>> + Send,
        E: Into<BoxError>,
    {
        self.add_request(Function(handler), handler_name(type_name::<F>()))
    }

    /// As [`request`](Builder::request), of a function with a state before the request, which is cloned for each call: an
    /// `Arc`, a pool of connections.
    pub fn request_with<R, T, F, Fut, E>(self, state: T, handler: F) -> Self
    where
        R: Request,
        T: Clone + Send + Sync + 'static,
        F: Fn(T, R) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R::Response, E>> + Send,
        E: Into<BoxError>,
    {
        self.add_request(Stateful(state, handler), handler_name(type_name::<F>()))
    }

    /// As [`request`](Builder::request), of a handler that is a type.
    pub fn request_handler<R: Request, H: Handler<R>>(self, handler: H) -> Self {
        self.add_request(handler, handler_name(type_name::<H>()))
    }

    fn add_request<R: Request, H: Handler<R>>(mut self, handler: H, name: String) -> Self {
        let parts = &mut self.parts;
        let about = parts.about::<R>(R::name(), R::KIND, name);
        if parts.names_twice::<R>(true, &about) || parts.handled_twice::<R>(true, &about) {
            return self;
        }
        let route: Arc<dyn Dispatch<R>> = self.behaviours.route(&about, End(handler));
        self.line(&about, |names, behaviours, _| behaviours.names(&about, names));
        self.parts.requests.insert(TypeId::of::<R>(), Box::new(route));
        self
    }

    /// An async function or closure that handles one type of notification, beside others.
    pub fn notification<N, F, Fut, E>(self, handler: F) -> Self
    where
        N: Notification,
        F: Fn(Arc<N>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), E>> + Send,
        E: Into<BoxError>,
    {
        let name = handler_name(type_name::<F>());
        let known = known::<F>();
        self.add_notification::<N, _>(Function(move |notified: Notified<N>| handler(notified.0)), name, known)
    }

    /// As [`notification`](Builder::notification), of a function with a state before the notification, which is cloned for
    /// each call.
    pub fn notification_with<N, T, F, Fut, E>(self, state: T, handler: F) -> Self
    where
        N: Notification,
        T: Clone + Send + Sync + 'static,
        F: Fn(T, Arc<N>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), E>> + Send,
        E: Into<BoxError>,
    {
        let name = handler_name(type_name::<F>());
        let handler = move |state, notified: Notified<N>| handler(state, notified.0);
        self.add_notification::<N, _>(Stateful(state, handler), name, None)
    }

    fn add_notification<N: Notification, H: Handler<Notified<N>>>(
        mut self,
        handler: H,
        name: String,
        known: Option<TypeId>,
    ) -> Self {
        let gathering = self.parts.topic::<N>();
        if let Some(known) = known {
            if gathering.known.contains(&known) {
                let notification = N::name();
                let problem =
                    format!("the handler `{name}` of {notification} is registered twice; remove one of them");
                self.parts.problems.push(problem);
                return self;
            }
            gathering.known.push(known);
        }
        // Two closures of one function are told apart by a number.
        let same = |about: &About| {
            let rest = about.handler.strip_prefix(&*name);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(" #"))
        };
        let before = gathering.handlers.iter().filter(|handler| same(handler.about())).count();
        let name = if before == 0 { name } else { format!("{name} #{}", before + 1) };
        let about = self.parts.about::<N>(N::name(), Kind::Notification, name);
        if self.parts.names_twice::<N>(false, &about) {
            return self;
        }
        let route: Arc<dyn Dispatch<Notified<N>>> = self.behaviours.route(&about, End(handler));
        self.line(&about, |names, behaviours, _| behaviours.names(&about, names));
        self.parts.topic::<N>().handlers.push(route);
        self
    }

    /// How notifications of one type go to their handlers.
    pub fn publish<N: Notification>(mut self, publish: Publish) -> Self {
        self.parts.topic::<N>().publish = Some(publish);
        self
    }

    /// How notifications of other types go to their handlers; [`Publish::sequential`] if it is not said.
    pub fn publish_default(mut self, publish: Publish) -> Self {
        self.parts.publish_default = publish;
        self
    }

    /// How many [detached](Publish::detached) publishes may be under way at once; 1,024 if it is not said.
    pub fn detached_max(mut self, publishes: usize) -> Self {
        self.parts.detached_max = Some(publishes);
        if publishes == 0 {
            self.parts
                .problems
                .push("detached_max is 0: no detached publish could ever begin; give at least 1".into());
        }
        self
    }

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
        let about = parts.about::<R>(R::name(), Kind::Stream, name);
        if parts.names_twice::<R>(true, &about) || parts.handled_twice::<R>(false, &about) {
            return self;
        }
        let options = parts.options.remove(&TypeId::of::<R>());
        let options = options.and_then(|options| options.downcast::<StreamOptions<R::Item>>().ok());
        let options = options.map(|options| *options).unwrap_or_default();
        let dropped = crate::metrics::stream_dropped(&about, "item_error");
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

/// What must be there, and what is open to JSON.
impl<B: Behaviours, S: StreamBehaviours> Builder<B, S> {
    /// Says that this request is sent: without a handler for it the mediator is not built.
    pub fn declare<R: Request>(mut self) -> Self {
        self.parts.declared.push((TypeId::of::<R>(), R::name(), "request"));
        self
    }

    /// Says that this stream request is sent: without a handler for it the mediator is not built.
    pub fn declare_stream<R: StreamRequest>(mut self) -> Self {
        self.parts.declared.push((TypeId::of::<R>(), R::name(), "stream"));
        self
    }

    /// Says that this notification is published: it may then be subscribed to, and counts, also if no handler takes it.
    pub fn declare_notification<N: Notification>(mut self) -> Self {
        self.parts.topic::<N>();
        self
    }

    /// Opens a request to [calls by name](Mediator::send_json).
    pub fn json<R>(mut self) -> Self
    where
        R: Request + DeserializeOwned,
        R::Response: Serialize,
    {
        self.parts.doors.push(Box::new(|tables, doors| {
            let route = tables.requests.get(&TypeId::of::<R>());
            let route: Option<&Arc<dyn Dispatch<R>>> = route.and_then(|route| route.downcast_ref());
            let name = R::name();
            let route = route.ok_or_else(|| no_handler_for_json("request", &name))?.clone();
            doors.requests.insert(name.into_owned(), Arc::new(ToRequest(route)));
            Ok(())
        }));
        self
    }

    /// Opens a notification to [publishes by name](Mediator::publish_json).
    pub fn json_notification<N: Notification + DeserializeOwned>(mut self) -> Self {
        self.parts.doors.push(Box::new(|tables, doors| {
            let name = N::name();
            if !tables.topics.contains_key(&TypeId::of::<N>()) {
                return Err(no_handler_for_json("notification", &name));
            }
            doors.notifications.insert(name.into_owned(), Arc::new(ToTopic::<N>(PhantomData)));
            Ok(())
        }));
        self
    }

    /// Opens a stream request to [calls by name](Mediator::stream_json).
    pub fn json_stream<R>(mut self) -> Self
    where
        R: StreamRequest + DeserializeOwned,
        R::Item: Serialize,
    {
        self.parts.doors.push(Box::new(|tables, doors| {
            let route = tables.streams.get(&TypeId::of::<R>());
            let route: Option<&Arc<dyn Dispatch<Opening<R>>>> = route.and_then(|route| route.downcast_ref());
            let name = R::name();
            let route = route.ok_or_else(|| no_handler_for_json("stream", &name))?.clone();
            doors.streams.insert(name.into_owned(), Arc::new(ToStream(route)));
            Ok(())
        }));
        self
    }

    /// The mediator.
    ///
    /// # Errors
    /// If a message has two handlers or two messages one name, if a declared one has none, if a behaviour stands around nothing
    /// it was meant for, or options are where they have no effect: all of it, with what to do.
    pub fn build(self) -> Result<Mediator, BuildError> {
        let Builder { behaviours, stream_behaviours, mut parts } = self;
        behaviours.unreached(&mut parts.problems);
        stream_behaviours.unreached(&mut parts.problems);
        for (id, name, what) in std::mem::take(&mut parts.declared) {
            let table = if what == "stream" { &parts.streams } else { &parts.requests };
            if !table.contains_key(&id) {
                parts
                    .problems
                    .push(format!("the {what} {name} is declared and has no handler; register one"));
            }
        }
        if !parts.options.is_empty() {
            let count = parts.options.len();
            parts
                .problems
                .push(format!("options are given for {count} streams without handlers; register them"));
        }
        let topics = std::mem::take(&mut parts.topics);
        let topics: Table = topics.into_values().map(|gathered| gathered.finish(&mut parts)).collect();
        let mut doors = Doors::default();
        let tables = Tables { requests: &parts.requests, streams: &parts.streams, topics: &topics };
        for open in std::mem::take(&mut parts.doors) {
            parts.problems.extend(open(&tables, &mut doors).err());
        }
        if !parts.problems.is_empty() {
            return Err(BuildError { problems: parts.problems });
        }
        let Parts { requests, streams, mut lines, metrics, detached_max, .. } = parts;
        for line in &mut lines {
            line.by_name = match line.kind {
                Kind::Query | Kind::Command => doors.requests.contains_key(&*line.message),
                Kind::Notification => doors.notifications.contains_key(&*line.message),
                Kind::Stream => doors.streams.contains_key(&*line.message),
            };
        }
        lines.sort_by(|a, b| (&a.message, &a.handler).cmp(&(&b.message, &b.handler)));
        Ok(Mediator(Arc::new(Inner {
            requests,
            streams,
            topics,
            doors,
            description: Description { lines },
            metrics,
            supervisor: Supervisor::new(detached_max.unwrap_or(DETACHED_MAX)),
        })))
    }

    fn line(&mut self, about: &Arc<About>, names: impl FnOnce(&mut Vec<Cow<'static, str>>, &B, &S)) {
        let mut behaviours = Vec::new();
        names(&mut behaviours, &self.behaviours, &self.stream_behaviours);
        let (message, handler) = (about.name.clone(), about.handler.clone());
        self.parts.lines.push(Line { message, kind: about.kind, handler, by_name: false, behaviours });
    }
}

fn no_handler_for_json(what: &str, name: &str) -> String {
    format!("the {what} {name} is opened to JSON and has no handler; register one")
}

/// What tells two handlers of one notification to be the same: the type of a function, which has no state.
fn known<F: 'static>() -> Option<TypeId> {
    let closure = type_name::<F>().contains("{{closure}}");
    (size_of::<F>() == 0 && !closure).then(TypeId::of::<F>)
}

trait MakeRoute: Behaviours {
    fn route<R: Request, E: crate::behaviour::Stage<R>>(
        &self,
        about: &Arc<About>,
        end: E,
    ) -> Arc<dyn Dispatch<R>> {
        Arc::new(Route { about: about.clone(), stage: self.around(about, end) })
    }
}

impl<B: Behaviours> MakeRoute for B {}

impl<B: Behaviours, S: StreamBehaviours> fmt::Debug for Builder<B, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("handlers", &self.parts.lines.len()).finish_non_exhaustive()
    }
}
