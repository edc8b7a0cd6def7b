//! Notifications: to every handler and every subscriber, with an outcome for each.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use futures_util::stream::{FuturesUnordered, StreamExt};
use millstream_flow::{Panicked, chain};

use crate::call::Context;
use crate::error::Error;
use crate::handler::Notified;
use crate::mediator::Dispatch;
use crate::message::Notification;
use crate::metrics::Counter;
use crate::supervise::{Room, Supervisor};

mod subscribe;

use subscribe::Subscribers;
pub use subscribe::{Full, Notifications, Subscribe};

/// How a notification goes to its handlers. Given with [`Builder::publish`](crate::Builder::publish) for one type, with
/// [`Builder::publish_default`](crate::Builder::publish_default) for those without their own.
///
/// ```
/// use millstream_mediator::Publish;
/// let in_turn = Publish::sequential().stop_on_first(); // the next handler only if this one succeeded
/// let at_once = Publish::parallel(8); // up to eight in the caller's task, all of them, whatever fails
/// let later = Publish::detached(); // the caller goes on at once
/// # let _ = (in_turn, at_once, later);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Publish {
    mode: Mode,
    stop: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Sequential,
    Parallel(usize),
    Detached,
}

impl Publish {
    /// One handler after the other, in the order in which they were registered.
    pub const fn sequential() -> Self {
        Publish { mode: Mode::Sequential, stop: false }
    }

    /// Up to so many handlers at once, begun in their order, in the task of who publishes.
    ///
    /// # Panics
    /// If `handlers` is 0.
    pub const fn parallel(handlers: usize) -> Self {
        assert!(handlers > 0, "with no handler at once none is ever called");
        Publish { mode: Mode::Parallel(handlers), stop: false }
    }

    /// All handlers in one task that the caller does not wait for. The mediator does: it bounds
    /// [how many there are](crate::Builder::detached_max), logs and counts what fails, [drains](crate::Mediator::drain) them,
    /// and ends them with itself. Publishing waits while as many as may are under way, but not in the task of such a handler, which
    /// then calls the handlers itself: it would wait for the room that it takes. In the task of another mediator's it waits: two
    /// that are full and publish to each other wait until there is room, or one of them is drained.
    pub const fn detached() -> Self {
        Publish { mode: Mode::Detached, stop: false }
    }

    /// Calls no further handler once one has failed. Without it all are called.
    pub const fn stop_on_first(mut self) -> Self {
        self.stop = true;
        self
    }
}

impl Default for Publish {
    fn default() -> Self {
        Publish::sequential()
    }
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mode {
            Mode::Sequential => f.write_str("sequential")?,
            Mode::Parallel(handlers) => write!(f, "parallel {handlers}")?,
            Mode::Detached => f.write_str("detached")?,
        }
        f.write_str(if self.stop { ", stop on first" } else { "" })
    }
}

/// The handlers and subscribers of one type.
pub(crate) struct Topic<N: Notification> {
    pub(crate) route: Arc<Handlers<N>>,
    subscribers: Subscribers<N>,
    published: Counter,
}

pub(crate) struct Handlers<N: Notification> {
    handlers: Vec<Arc<dyn Dispatch<Notified<N>>>>,
    names: Arc<[Arc<str>]>,
    publish: Publish,
    failed: Counter,
    undelivered: Option<Tell<N>>,
}

/// Whom a handler's failure is told.
pub(crate) type Tell<N> = Box<dyn Fn(Undelivered<'_, N>) + Send + Sync>;

/// A notification that one of its handlers failed to take. Told to [`Builder::undelivered`](crate::Builder::undelivered).
#[non_exhaustive]
pub struct Undelivered<'a, N> {
    /// The notification.
    pub notification: &'a Arc<N>,
    /// The handler's name.
    pub handler: &'a str,
    /// Why, after all that behaviours could do about it.
    pub error: &'a Error,
    /// What the publisher gave along.
    pub context: &'a Context,
}

impl<N> fmt::Debug for Undelivered<'_, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Undelivered { handler, error, .. } = self;
        f.debug_struct("Undelivered").field("handler", handler).field("error", error).finish_non_exhaustive()
    }
}

impl<N: Notification> Topic<N> {
    pub(crate) fn new(
        handlers: Vec<Arc<dyn Dispatch<Notified<N>>>>,
        publish: Publish,
        published: Counter,
        failed: Counter,
        dropped: Counter,
        undelivered: Option<Tell<N>>,
    ) -> Self {
        let names = handlers.iter().map(|handler| handler.about().handler.clone()).collect();
        let route = Arc::new(Handlers { handlers, names, publish, failed, undelivered });
        Topic { route, subscribers: Subscribers::new(dropped), published }
    }

    pub(crate) fn subscribe(&self, subscribe: Subscribe) -> Notifications<N> {
        self.subscribers.add(subscribe)
    }

    pub(crate) async fn publish(
        &self,
        context: &Context,
        notification: N,
        supervisor: &Supervisor,
    ) -> Published {
        self.published.add(1);
        let notification = Arc::new(notification);
        let subscribers =
            if self.subscribers.is_empty() { 0 } else { self.subscribers.tell(&notification).await };
        let handlers = &self.route;
        let mut published = Published { subscribers, ..Published::of(handlers) };
        // One handler's call may make its own; several belong together.
        let own = if handlers.handlers.len() > 1 { context.correlated() } else { None };
        let context = own.as_ref().unwrap_or(context);
        match handlers.publish.mode {
            _ if handlers.handlers.is_empty() => {}
            Mode::Sequential => handlers.in_turn(context, notification, &mut published).await,
            Mode::Parallel(limit) => handlers.at_once(context, notification, limit, &mut published).await,
            Mode::Detached => {
                let room = match supervisor.room().await {
                    Room::Own(room) => room,
                    Room::Here => {
                        handlers.in_turn(context, notification, &mut published).await;
                        return published;
                    }
                    // While it drains nothing begins, and nothing counts as called.
                    Room::Closed => return published,
                };
                published.detached = true;
                let (handlers, context) = (handlers.clone(), context.clone());
                supervisor.spawn(room, async move {
                    let mut published = Published::of(&handlers);
                    handlers.in_turn(&context, notification, &mut published).await;
                    for (handler, error) in published.failures() {
                        tracing::warn!(handler, error = chain(error), "a detached handler failed");
                    }
                });
            }
        }
        published
    }
}

impl<N: Notification> Handlers<N> {
    async fn in_turn(&self, context: &Context, notification: Arc<N>, published: &mut Published) {
        // The last one need not share, unless somebody is told of what it cannot take.
        let last = if self.undelivered.is_some() { self.handlers.len() } else { self.handlers.len() - 1 };
        let mut notification = Some(notification);
        let mut place = None;
        for (at, handler) in self.handlers.iter().enumerate() {
            let given = if at == last { notification.take() } else { notification.clone() };
            let Some(given) = given else { return };
            published.called = at + 1;
            handler.dispatch_in(&mut place, context, Notified(given));
            let Some(dispatched) = &mut place else { unreachable!("something was dispatched") };
            if let Err(error) = dispatched.await {
                self.failure(context, notification.as_ref(), at, &error);
                published.failed.push((at, error));
                if self.publish.stop {
                    return;
                }
            }
        }
    }

    /// A handler has failed.
    #[cold]
    fn failure(&self, context: &Context, notification: Option<&Arc<N>>, at: usize, error: &Error) {
        self.failed.add(1);
        if let (Some(tell), Some(notification)) = (&self.undelivered, notification) {
            let undelivered = Undelivered { notification, handler: &self.names[at], error, context };
            // A panic of whoever is told is no reason to keep the notification from the other handlers.
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| tell(undelivered))) {
                let panicked = Panicked::new(payload);
                tracing::error!(handler = %self.names[at], %panicked, "who is told of undelivered notifications panicked");
            }
        }
    }

    async fn at_once(
        &self,
        context: &Context,
        notification: Arc<N>,
        limit: usize,
        published: &mut Published,
    ) {
        let mut calls = self.handlers.iter().enumerate().map(|(at, handler)| {
            let notified = Notified(notification.clone());
            async move { (at, handler.dispatch(context, notified).await) }
        });
        let mut running: FuturesUnordered<_> = calls.by_ref().take(limit).collect();
        published.called = running.len();
        while let Some((at, ended)) = running.next().await {
            if let Err(error) = ended {
                self.failure(context, Some(&notification), at, &error);
                published.failed.push((at, error));
            }
            if self.publish.stop && !published.failed.is_empty() {
                continue; // those that were begun end, no other begins
            }
            if let Some(call) = calls.next() {
                published.called += 1;
                running.push(call);
            }
        }
        published.failed.sort_by_key(|(at, _)| *at);
    }
}

/// What became of a notification at each of its handlers.
#[derive(Debug)]
#[must_use = "handlers that failed are only told here"]
pub struct Published {
    handlers: Arc<[Arc<str>]>,
    /// Handlers that were called: the first so many.
    called: usize,
    failed: Vec<(usize, Error)>,
    detached: bool,
    subscribers: usize,
}

/// What became of a notification at one handler.
#[derive(Debug, Clone, Copy)]
pub enum Outcome<'a> {
    /// It succeeded.
    Done,
    /// It failed.
    Failed(&'a Error),
    /// It was not called, because another failed before it or because the mediator drains.
    NotCalled,
    /// It is under way, supervised by the mediator.
    Detached,
}

impl Published {
    fn of<N: Notification>(handlers: &Handlers<N>) -> Self {
        let handlers = handlers.names.clone();
        Published { handlers, called: 0, failed: Vec::new(), detached: false, subscribers: 0 }
    }

    pub(crate) fn nobody() -> Self {
        Published { handlers: Arc::new([]), called: 0, failed: Vec::new(), detached: false, subscribers: 0 }
    }

    /// Each handler's name with what became of it there, in the order in which they were registered.
    pub fn outcomes(&self) -> impl Iterator<Item = (&str, Outcome<'_>)> {
        self.handlers.iter().enumerate().map(|(at, name)| {
            let failed = self.failed.iter().find(|(failed, _)| *failed == at);
            let outcome = match failed {
                Some((_, error)) => Outcome::Failed(error),
                None if self.detached => Outcome::Detached,
                None if at < self.called => Outcome::Done,
                None => Outcome::NotCalled,
            };
            (&**name, outcome)
        })
    }

    /// The handlers that failed, with their errors.
    pub fn failures(&self) -> impl Iterator<Item = (&str, &Error)> {
        self.failed.iter().map(|(at, error)| (&*self.handlers[*at], error))
    }

    /// To how many subscribers it went whose subscription has not ended, also such as had no room for it.
    pub fn subscribers(&self) -> usize {
        self.subscribers
    }

    /// Whether it went to nobody: there is neither handler nor subscriber.
    pub fn is_empty(&self) -> bool {
        self.handlers.is_empty() && self.subscribers == 0
    }

    /// All failures as one error.
    ///
    /// # Errors
    /// If a handler failed.
    pub fn into_result(self) -> Result<(), PublishError> {
        if self.failed.is_empty() {
            return Ok(());
        }
        let failed = self.failed.into_iter().map(|(_, error)| error).collect();
        Err(PublishError { failed, handlers: self.handlers.len() })
    }
}

/// Some of a notification's handlers failed. The first one's error is the source.
#[derive(Debug)]
pub struct PublishError {
    failed: Vec<Error>,
    handlers: usize,
}

impl PublishError {
    /// The errors, in the order of the handlers.
    pub fn errors(&self) -> &[Error] {
        &self.failed
    }
}

impl fmt::Display for PublishError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} handlers failed", self.failed.len(), self.handlers)
    }
}

impl std::error::Error for PublishError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.failed.first().map(|error| error as _)
    }
}
