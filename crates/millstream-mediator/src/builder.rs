//! How a mediator is put together, and refused if it cannot work.

use std::fmt;
use std::sync::Arc;

use crate::behaviour::{Bare, Behaviour, Behaviours, Boxed, Inside, Placed, Scope};
use crate::describe::Description;
use crate::json::Doors;
use crate::mediator::{Inner, Mediator, Table};
use crate::message::{Kind, Request};
use crate::stream::{StreamBehaviour, StreamBehaviours};
use crate::supervise::Supervisor;
use crate::typed::{BehaviourOf, Only};

mod error;
mod handlers;
mod open;
mod parts;
mod streams;

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
        parts.cannot_work(&behaviour.name(), behaviour.problem());
        let placed = Placed::new(scope);
        Builder { behaviours: Inside { outer: behaviours, behaviour, placed }, stream_behaviours, parts }
    }

    /// Stands a behaviour around one type of request which it knows: also around each handler of a notification, as
    /// [`Notified<N>`](crate::Notified), and the opening of a stream, as [`Opening<R>`](crate::Opening).
    ///
    /// ```
    /// use millstream_flow::BoxError;
    /// use millstream_mediator::{Check, Mediator, Notification, Notified};
    /// use std::sync::Arc;
    ///
    /// struct Paid { cents: u64 }
    /// impl Notification for Paid {}
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), BoxError> {
    /// let mediator = Mediator::builder()
    ///     .behaviour_of(Check::valid(|paid: &Notified<Paid>| match paid.0.cents {
    ///         0 => Err("nothing was paid".into()),
    ///         _ => Ok(()),
    ///     }))
    ///     .notification(async |_: Arc<Paid>| Ok::<_, BoxError>(()))
    ///     .build()?;
    /// assert!(mediator.publish(Paid { cents: 5 }).await.into_result().is_ok());
    /// assert!(mediator.publish(Paid { cents: 0 }).await.into_result().is_err());
    /// # Ok(()) }
    /// ```
    pub fn behaviour_of<R: Request, X: BehaviourOf<R>>(
        self,
        behaviour: X,
    ) -> Builder<Inside<B, Only<R, X>>, S> {
        self.behaviour_for(Scope::dispatched::<R>(), Only::new(behaviour))
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
    pub fn stream_behaviour<X: StreamBehaviour>(self, behaviour: X) -> Builder<B, Inside<S, X>> {
        self.stream_behaviour_for(Scope::streams(), behaviour)
    }

    /// Stands a behaviour around the streams that a scope chooses.
    pub fn stream_behaviour_for<X: StreamBehaviour>(
        self,
        scope: Scope,
        behaviour: X,
    ) -> Builder<B, Inside<S, X>> {
        let Builder { behaviours, stream_behaviours, mut parts } = self;
        parts.after_handlers(&behaviour.name());
        parts.cannot_work(&behaviour.name(), behaviour.problem());
        let placed = Placed::new(scope);
        let stream_behaviours = Inside { outer: stream_behaviours, behaviour, placed };
        Builder { behaviours, stream_behaviours, parts }
    }
}

impl<B: Behaviours, S: StreamBehaviours> Builder<B, S> {
    /// The mediator.
    ///
    /// # Errors
    /// If a message has two handlers or two messages one name, if a declared one has none, if a behaviour stands around nothing
    /// it was meant for (those for all requests or all streams may) or where it cannot work, or options are where they have no effect: all of it, with what to do.
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
        parts.stream_defaults.unread(&mut parts.problems);
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
}

impl<B: Behaviours, S: StreamBehaviours> fmt::Debug for Builder<B, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("handlers", &self.parts.lines.len()).finish_non_exhaustive()
    }
}
