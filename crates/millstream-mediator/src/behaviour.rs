//! What stands around handlers, and how it is put together: at build time, into one future a call.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::{BoxFuture, Either};

use crate::call::Call;
use crate::error::Error;
use crate::mediator::in_place;
use crate::message::{About, Kind, Request};

/// What a behaviour calls to go on: the behaviours inside it, and at last the handler. It may be called any number of
/// times, and clones lead to the same handler.
pub trait Next<R: Request>: Clone + Send + Sync + 'static {
    /// Goes on with this request.
    fn call(&self, call: &Call<'_>, request: R) -> impl Future<Output = Result<R::Response, Error>> + Send;
}

/// A handler with the behaviours around it. Made by [`Behaviours`].
pub trait Stage<R: Request>: Send + Sync + 'static {
    /// Answers this request.
    fn run(&self, call: &Call<'_>, request: R) -> impl Future<Output = Result<R::Response, Error>> + Send;
}

/// A stage as what comes next.
pub struct Shared<S>(pub(crate) Arc<S>);

impl<S> Clone for Shared<S> {
    fn clone(&self) -> Self {
        Shared(self.0.clone())
    }
}

impl<R: Request, S: Stage<R>> Next<R> for Shared<S> {
    #[inline]
    fn call(&self, call: &Call<'_>, request: R) -> impl Future<Output = Result<R::Response, Error>> + Send {
        self.0.run(call, request)
    }
}

/// What stands around the handlers of many types of requests.
///
/// Written once for all requests, it is compiled into each one's call: no box, no table, nothing where it does not apply.
///
/// ```
/// use millstream_mediator::{About, Behaviour, Call, Error, Mediator, Next, Request};
/// use std::borrow::Cow;
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicU64, Ordering};
///
/// #[derive(Clone, Default)]
/// struct Counting(Arc<AtomicU64>);
///
/// impl Behaviour for Counting {
///     fn name(&self) -> Cow<'static, str> { "counting".into() }
///     fn of(&self, _: &About) -> Self { self.clone() } // one count for all types
///     async fn call<R: Request, N: Next<R>>(
///         &self, call: &Call<'_>, request: R, next: &N,
///     ) -> Result<R::Response, Error> {
///         self.0.fetch_add(1, Ordering::Relaxed);
///         next.call(call, request).await
///     }
/// }
///
/// struct Ping;
/// impl Request for Ping { type Response = &'static str; }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), millstream_flow::BoxError> {
/// let counting = Counting::default();
/// let mediator = Mediator::builder()
///     .behaviour(counting.clone())
///     .request(async |_: Ping| Ok::<_, Error>("pong"))
///     .build()?;
/// assert_eq!(mediator.send(Ping).await?, "pong");
/// assert_eq!(counting.0.load(Ordering::Relaxed), 1);
/// # Ok(()) }
/// ```
pub trait Behaviour: Sized + Send + Sync + 'static {
    /// What it is and how it is set, in a few words, as [`describe`](crate::Mediator::describe) shows it.
    fn name(&self) -> Cow<'static, str>;

    /// The one for this type of message and this handler. State that types shall not share is made here.
    fn of(&self, about: &About) -> Self;

    /// What is wrong with how it is set, with a remedy: a mediator with such a behaviour is not built.
    fn problem(&self) -> Option<String> {
        None
    }

    /// The names of messages for which something is set apart from others: if it stands around no handler of one of them, the
    /// mediator is not built.
    fn meant_for(&self) -> Vec<Cow<'static, str>> {
        Vec::new()
    }

    /// Does what it does around `next`.
    ///
    /// # Cancel safety
    /// It may be dropped at any await, when the caller has lost interest.
    fn call<R: Request, N: Next<R>>(
        &self,
        call: &Call<'_>,
        request: R,
        next: &N,
    ) -> impl Future<Output = Result<R::Response, Error>> + Send;
}

/// For which messages a behaviour stands around the handlers.
///
/// ```
/// use millstream_mediator::{Kind, Scope};
/// let reads = Scope::kind(Kind::Query);
/// let reports = Scope::when("reports", |about| about.name.ends_with("Report"));
/// # let _ = (reads, reports);
/// ```
#[derive(Clone)]
pub struct Scope {
    words: Cow<'static, str>,
    /// Whether it is a mistake if nothing is in it.
    particular: bool,
    holds: Arc<dyn Fn(&About) -> bool + Send + Sync>,
}

impl Scope {
    /// All requests, queries and commands, if there are some. What [`Builder::behaviour`](crate::Builder::behaviour) uses.
    pub fn requests() -> Self {
        let holds = |about: &About| matches!(about.kind, Kind::Query | Kind::Command);
        Scope { words: "requests".into(), particular: false, holds: Arc::new(holds) }
    }

    /// All messages of a kind. [`Kind::Notification`] is each handler of each notification for itself, [`Kind::Stream`]
    /// the opening of streams. A mediator without a handler for such is not built.
    pub fn kind(kind: Kind) -> Self {
        let holds = move |about: &About| about.kind == kind;
        Scope { words: kind.plural().into(), particular: true, holds: Arc::new(holds) }
    }

    /// All streams, if there are some.
    pub(crate) fn streams() -> Self {
        Scope { particular: false, ..Scope::kind(Kind::Stream) }
    }

    /// Messages of one type: `N` or [`Notified<N>`](crate::Notified) are the handlers of a notification, `R` or
    /// [`Opening<R>`](crate::Opening) the opening of a stream. A mediator without a handler for it is not built.
    pub fn of<M: 'static>() -> Self {
        let words = crate::message::short_name(std::any::type_name::<M>());
        Scope { words, particular: true, holds: Arc::new(|about| about.is::<M>()) }
    }

    /// What is dispatched as this type of request, and nothing else.
    pub(crate) fn dispatched<R: Request>() -> Self {
        let words = crate::message::short_name(std::any::type_name::<R>());
        Scope { words, particular: true, holds: Arc::new(|about| about.is_dispatched::<R>()) }
    }

    /// Messages that a function chooses, asked for each handler when the mediator is built. One that chooses none is an
    /// error then; `words` say which it was.
    pub fn when(
        words: impl Into<Cow<'static, str>>,
        holds: impl Fn(&About) -> bool + Send + Sync + 'static,
    ) -> Self {
        Scope { words: words.into(), particular: true, holds: Arc::new(holds) }
    }

    /// Everything that this scope holds and `other` does not.
    pub fn except(self, other: Scope) -> Self {
        let words = format!("{} except {}", self.words, other.words).into();
        let holds = move |about: &About| (self.holds)(about) && !(other.holds)(about);
        Scope { words, particular: self.particular, holds: Arc::new(holds) }
    }

    pub(crate) fn holds(&self, about: &About) -> bool {
        (self.holds)(about)
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scope({})", self.words)
    }
}

/// Around whose handlers a behaviour stands, and for whom it was meant.
pub(crate) struct Placed {
    pub(crate) scope: Scope,
    /// The names of their messages.
    taken: Mutex<BTreeSet<Arc<str>>>,
}

impl Placed {
    pub(crate) fn new(scope: Scope) -> Self {
        Placed { scope, taken: Mutex::default() }
    }

    fn taken(&self) -> MutexGuard<'_, BTreeSet<Arc<str>>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn takes(&self, about: &About) -> bool {
        let holds = self.scope.holds(about);
        if holds {
            self.taken().insert(about.name.clone());
        }
        holds
    }

    /// Adds what is wrong with a behaviour that nothing reaches, or not all that something is set for.
    pub(crate) fn unreached(&self, name: &str, meant_for: &[Cow<'static, str>], problems: &mut Vec<String>) {
        let (taken, words) = (self.taken(), &self.scope.words);
        if self.scope.particular && taken.is_empty() {
            problems.push(format!(
                "the behaviour `{name}` is for {words}, and no handler of such is registered; register one or remove it"
            ));
        }
        problems.extend(meant_for.iter().filter(|message| !taken.contains(&***message)).map(|message| {
            format!(
                "the behaviour `{name}` is set for {message}, around no handler of which it stands; correct the name, or remove it"
            )
        }));
    }
}

/// Behaviours, outermost first. Made by [`Builder`](crate::Builder).
pub trait Behaviours: Send + Sync + 'static {
    /// What they make of a handler.
    type Around<R: Request, N: Stage<R>>: Stage<R>;

    /// Stands them around a handler.
    fn around<R: Request, N: Stage<R>>(&self, about: &About, end: N) -> Self::Around<R, N>;

    /// Adds the names of those that are around this.
    fn names(&self, about: &About, names: &mut Vec<Cow<'static, str>>);

    /// Adds what is wrong with those that nothing reaches.
    fn unreached(&self, problems: &mut Vec<String>);
}

/// No behaviours.
#[derive(Debug, Clone, Copy, Default)]
pub struct Bare;

impl Behaviours for Bare {
    type Around<R: Request, N: Stage<R>> = N;

    fn around<R: Request, N: Stage<R>>(&self, _: &About, end: N) -> N {
        end
    }
    fn names(&self, _: &About, _: &mut Vec<Cow<'static, str>>) {}
    fn unreached(&self, _: &mut Vec<String>) {}
}

/// Behaviours with one more inside: of requests or of streams, as the behaviour is.
pub struct Inside<O, B> {
    pub(crate) outer: O,
    pub(crate) behaviour: B,
    pub(crate) placed: Placed,
}

/// A behaviour around what comes inside of it; `None` where it does not apply.
pub struct Around<B, N> {
    pub(crate) behaviour: Option<B>,
    pub(crate) inner: Shared<N>,
}

impl<O, B> Inside<O, B> {
    /// What stands around this handler: the behaviour, made by `of`, or nothing of it.
    pub(crate) fn stand<N>(&self, about: &About, end: N, of: impl FnOnce(&B) -> B) -> Around<B, N> {
        let behaviour = self.placed.takes(about).then(|| of(&self.behaviour));
        Around { behaviour, inner: Shared(Arc::new(end)) }
    }
}

impl<O: Behaviours, B: Behaviour> Behaviours for Inside<O, B> {
    type Around<R: Request, N: Stage<R>> = O::Around<R, Around<B, N>>;

    fn around<R: Request, N: Stage<R>>(&self, about: &About, end: N) -> Self::Around<R, N> {
        self.outer.around(about, self.stand(about, end, |behaviour| behaviour.of(about)))
    }

    fn names(&self, about: &About, names: &mut Vec<Cow<'static, str>>) {
        self.outer.names(about, names);
        names.extend(self.placed.scope.holds(about).then(|| self.behaviour.name()));
    }

    fn unreached(&self, problems: &mut Vec<String>) {
        self.outer.unreached(problems);
        self.placed.unreached(&self.behaviour.name(), &self.behaviour.meant_for(), problems);
    }
}

impl<R: Request, B: Behaviour, N: Stage<R>> Stage<R> for Around<B, N> {
    // Not an async function: that would be one more type around each, and the compiler counts how deep they lie.
    #[inline]
    fn run(&self, call: &Call<'_>, request: R) -> impl Future<Output = Result<R::Response, Error>> + Send {
        match &self.behaviour {
            Some(behaviour) => Either::Left(behaviour.call(call, request, &self.inner)),
            None => Either::Right(self.inner.call(call, request)),
        }
    }
}

/// Behaviours with a box inside, see [`Builder::boxed`](crate::Builder::boxed).
pub struct Boxed<O>(pub(crate) O);

impl<O: Behaviours> Behaviours for Boxed<O> {
    type Around<R: Request, N: Stage<R>> = O::Around<R, BoxedStage<R>>;

    fn around<R: Request, N: Stage<R>>(&self, about: &About, end: N) -> Self::Around<R, N> {
        self.0.around(about, BoxedStage(Box::new(end)))
    }
    fn names(&self, about: &About, names: &mut Vec<Cow<'static, str>>) {
        self.0.names(about, names);
    }
    fn unreached(&self, problems: &mut Vec<String>) {
        self.0.unreached(problems);
    }
}

/// A stage whose type is forgotten, but for the request's.
pub struct BoxedStage<R: Request>(Box<dyn DynStage<R>>);

trait DynStage<R: Request>: Send + Sync {
    fn run_boxed<'a>(&'a self, call: &'a Call<'_>, request: R) -> BoxFuture<'a, Result<R::Response, Error>>;
}

impl<R: Request, S: Stage<R>> DynStage<R> for S {
    fn run_boxed<'a>(&'a self, call: &'a Call<'_>, request: R) -> BoxFuture<'a, Result<R::Response, Error>> {
        in_place(|| self.run(call, request))
    }
}

impl<R: Request> Stage<R> for BoxedStage<R> {
    async fn run(&self, call: &Call<'_>, request: R) -> Result<R::Response, Error> {
        self.0.run_boxed(call, request).await
    }
}
