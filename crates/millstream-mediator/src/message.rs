//! What is dispatched: requests, notifications and stream requests, by types that say what answers them.

use std::any::{TypeId, type_name};
use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use crate::metrics::Metrics;

/// What one handler answers with one response.
///
/// ```
/// use millstream_mediator::{Kind, Request};
///
/// #[derive(Clone)]
/// struct PriceOf { article: u32 }
///
/// impl Request for PriceOf {
///     type Response = u64;
///     const KIND: Kind = Kind::Query;
///     fn repeat(&self) -> Option<Self> { Some(self.clone()) }
/// }
/// assert_eq!(PriceOf::name(), "PriceOf");
/// ```
pub trait Request: Sized + Send + Sync + 'static {
    /// What the handler answers; `()` if it only does something.
    type Response: Send + 'static;

    /// Whether it asks or changes something: what behaviours, scopes and metrics can tell apart.
    const KIND: Kind = Kind::Command;

    /// What it is called in errors, metrics, logs and calls by name: the type's name without its path.
    fn name() -> Cow<'static, str> {
        short_name(type_name::<Self>())
    }

    /// The same request once more, if it may be handled more than once: only then is it retried, hedged, or handled
    /// anew for a second caller. By default it may not.
    fn repeat(&self) -> Option<Self> {
        None
    }
}

/// What has happened, for any number of handlers.
pub trait Notification: Send + Sync + 'static {
    /// What it is called in errors, metrics, logs and publishes by name: the type's name without its path.
    fn name() -> Cow<'static, str> {
        short_name(type_name::<Self>())
    }
}

/// What one handler answers with a flow of items.
pub trait StreamRequest: Sized + Send + Sync + 'static {
    /// What flows.
    type Item: Send + 'static;

    /// What it is called in errors, metrics, logs and calls by name: the type's name without its path.
    fn name() -> Cow<'static, str> {
        short_name(type_name::<Self>())
    }

    /// The same request once more, if it may be asked again: only then can a stream that broke be opened anew.
    fn repeat(&self) -> Option<Self> {
        None
    }

    /// The request for what comes after the first `position` items, if the handler can go on from there. See
    /// [`Resume::Position`](crate::Resume::Position).
    fn resume(&self, position: u64) -> Option<Self> {
        let _ = position;
        None
    }

    /// What tells an item from others, if something does. See [`Resume::Dedupe`](crate::Resume::Dedupe) and
    /// [`Strategy::Latest`](crate::Strategy::Latest).
    fn key(item: &Self::Item) -> Option<u64> {
        let _ = item;
        None
    }

    /// How much an item matters where one must be dropped. See [`Strategy::DropLowest`](crate::Strategy::DropLowest).
    fn priority(item: &Self::Item) -> u8 {
        let _ = item;
        0
    }

    /// How many bytes an item points to, beside its own size: of a `String` its capacity. By this buffers count that are
    /// [bounded in bytes](crate::Backpressure::bytes_max) or in a [budget of memory](crate::Backpressure::memory); it must say the same
    /// of an item each time.
    fn heap_bytes(item: &Self::Item) -> usize {
        let _ = item;
        0
    }
}

/// What a message is to the mediator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A request that asks.
    Query,
    /// A request that changes something.
    Command,
    /// A notification, on its way to one of its handlers.
    Notification,
    /// A stream request, being opened.
    Stream,
}

impl Kind {
    /// The kind in one word, as metrics and logs show it.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Query => "query",
            Kind::Command => "command",
            Kind::Notification => "notification",
            Kind::Stream => "stream",
        }
    }
}

impl Kind {
    pub(crate) fn plural(self) -> &'static str {
        match self {
            Kind::Query => "queries",
            Kind::Command => "commands",
            Kind::Notification => "notifications",
            Kind::Stream => "streams",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// A type of message and the handler that takes it: what a behaviour is told when it is made for them, and what a
/// [`Scope`](crate::Scope) chooses by.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct About {
    /// What the message is called.
    pub name: Arc<str>,
    /// Whether it is a query, a command, a notification or a stream.
    pub kind: Kind,
    /// What the handler is called.
    pub handler: Arc<str>,
    /// The message's type.
    pub message: TypeId,
    /// The request as which it is dispatched: of a notification to one of its handlers, or a stream request being opened,
    /// another type than the message's.
    dispatched: TypeId,
    label: Arc<str>,
    metrics: Metrics,
    /// Metrics of which there may be only one for this handler.
    taken: Arc<Mutex<Vec<&'static str>>>,
}

impl About {
    pub(crate) fn new<M: 'static, R: Request>(
        name: Cow<'static, str>,
        kind: Kind,
        handler: Arc<str>,
        metrics: &Metrics,
    ) -> Self {
        let name: Arc<str> = name.into();
        let label = match kind {
            // Each handler's calls are counted for themselves.
            Kind::Notification => format!("{name} > {handler}").into(),
            Kind::Query | Kind::Command | Kind::Stream => name.clone(),
        };
        let (message, dispatched) = (TypeId::of::<M>(), TypeId::of::<R>());
        let (metrics, taken) = (metrics.clone(), Arc::default());
        About { name, kind, handler, message, dispatched, label, metrics, taken }
    }

    /// True for the first behaviour around the handler that asks for this metric: two would count each call twice.
    pub(crate) fn takes(&self, metric: &'static str) -> bool {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let first = !taken.contains(&metric);
        if first {
            taken.push(metric);
        }
        first
    }

    /// Whether it is about this type of message, which may also be said as [`Notified`](crate::Notified) or
    /// [`Opening`](crate::Opening) of it.
    pub fn is<M: 'static>(&self) -> bool {
        self.message == TypeId::of::<M>() || self.dispatched == TypeId::of::<M>()
    }

    /// Whether it is dispatched as this type of request.
    pub(crate) fn is_dispatched<R: Request>(&self) -> bool {
        self.dispatched == TypeId::of::<R>()
    }

    /// The value of the label `type` in metrics: the name, and for one of a notification's handlers that handler's too.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Where to register numbers of one's own; see [`Metrics`].
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }
}

/// `Page<User>` of `shop::page::Page<shop::user::User>`.
pub(crate) fn short_name(full: &'static str) -> Cow<'static, str> {
    if !full.contains("::") {
        return Cow::Borrowed(full);
    }
    if !full.contains(['<', '(', '[', '&', '{']) {
        return Cow::Borrowed(full.rsplit("::").next().unwrap_or(full));
    }
    let mut short = String::with_capacity(full.len());
    let mut word = 0;
    let mut rest = full;
    while let Some(c) = rest.chars().next() {
        if rest.starts_with("::") {
            short.truncate(word);
            rest = &rest[2..];
            continue;
        }
        short.push(c);
        rest = &rest[c.len_utf8()..];
        if !c.is_alphanumeric() && !matches!(c, '_' | '{' | '}' | '#') {
            word = short.len();
        }
    }
    Cow::Owned(short)
}

/// What a handler is called whose type is `full`: a function by its name, a closure by the function it is in.
pub(crate) fn handler_name(full: &'static str) -> String {
    let mut function = full;
    while let Some(outer) = function.strip_suffix("::{{closure}}") {
        function = outer;
    }
    let name = short_name(function);
    if function.len() < full.len() { format!("closure in {name}") } else { name.into_owned() }
}

#[cfg(test)]
mod tests {
    use super::{handler_name, short_name};

    #[test]
    fn names_lose_their_paths_inside_of_brackets_too() {
        for (full, short) in [
            ("GetUser", "GetUser"),
            ("shop::user::GetUser", "GetUser"),
            ("shop::Page<shop::User, alloc::vec::Vec<u8>>", "Page<User, Vec<u8>>"),
            ("(a::B, &c::D)", "(B, &D)"),
        ] {
            assert_eq!(short_name(full), short);
        }
    }

    #[test]
    fn a_closure_is_called_after_the_function_it_is_in() {
        assert_eq!(handler_name("shop::orders::create"), "create");
        assert_eq!(handler_name("shop::main::{{closure}}::create"), "create");
        assert_eq!(handler_name("shop::main::{{closure}}"), "closure in main");
        assert_eq!(handler_name("shop::main::{{closure}}::{{closure}}"), "closure in main");
    }
}
