//! One call on its way through the behaviours.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, OnceLock};

use crate::message::About;

/// What a caller gives along with a message: who he is, which correlation his work belongs to, values of any type.
///
/// ```
/// use millstream_mediator::Context;
///
/// struct Principal(&'static str);
/// let context = Context::new().correlation(7).with(Principal("ada"));
/// assert_eq!(context.get::<Principal>().map(|p| p.0), Some("ada"));
/// assert!(context.get::<u32>().is_none());
/// ```
#[derive(Clone, Default)]
pub struct Context {
    correlation: Option<Correlation>,
    values: Option<Arc<Value>>,
}

/// A list from the newest value to the oldest; contexts that were made of one share what they have in common.
struct Value {
    value: Box<dyn Any + Send + Sync>,
    next: Option<Arc<Value>>,
}

impl Context {
    /// One without anything.
    pub const fn new() -> Self {
        Context { correlation: None, values: None }
    }

    /// One that belongs to this correlation. Without it, each call has an identifier of its own; a publish has one for all
    /// handlers.
    pub fn correlation(mut self, id: impl Into<Correlation>) -> Self {
        self.correlation = Some(id.into());
        self
    }

    /// The same with a correlation, if it has none.
    pub(crate) fn correlated(&self) -> Option<Self> {
        self.correlation.is_none().then(|| self.clone().correlation(Correlation::new()))
    }

    /// Adds a value, in front of another of the same type.
    pub fn with<T: Send + Sync + 'static>(mut self, value: T) -> Self {
        self.values = Some(Arc::new(Value { value: Box::new(value), next: self.values.take() }));
        self
    }

    /// The value of this type that was added last.
    pub fn get<T: 'static>(&self) -> Option<&T> {
        let mut at = self.values.as_deref();
        while let Some(value) = at {
            if let Some(found) = value.value.downcast_ref() {
                return Some(found);
            }
            at = value.next.as_deref();
        }
        None
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("correlation", &self.correlation).finish_non_exhaustive()
    }
}

/// What ties together the calls of one piece of work: shown as 16 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Correlation(pub u64);

impl Correlation {
    fn new() -> Self {
        Correlation(fastrand::u64(..))
    }
}

impl From<u64> for Correlation {
    fn from(id: u64) -> Self {
        Correlation(id)
    }
}

impl fmt::Display for Correlation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// One call: what it is about, and what the caller gave along.
#[derive(Debug)]
pub struct Call<'a> {
    about: &'a Arc<About>,
    context: &'a Context,
    correlation: OnceLock<Correlation>,
}

impl<'a> Call<'a> {
    pub(crate) fn new(about: &'a Arc<About>, context: &'a Context) -> Self {
        Call { about, context, correlation: OnceLock::new() }
    }

    /// The message's type and its handler.
    pub fn about(&self) -> &'a Arc<About> {
        self.about
    }

    /// What the caller gave along. It has no correlation if he gave none: what is sent because of this call goes with
    /// [`onward`](Call::onward).
    pub fn context(&self) -> &'a Context {
        self.context
    }

    /// The context for what is sent because of this call: what the caller gave along, with this call's correlation.
    ///
    /// ```
    /// use millstream_flow::BoxError;
    /// use millstream_mediator::{Call, Correlation, Handler, Mediator, Request};
    ///
    /// struct Outer;
    /// impl Request for Outer { type Response = (Correlation, Correlation); }
    /// struct Inner;
    /// impl Request for Inner { type Response = Correlation; }
    ///
    /// struct Told;
    /// impl Handler<Inner> for Told {
    ///     type Error = BoxError;
    ///     async fn handle(&self, _: Inner, call: &Call<'_>) -> Result<Correlation, BoxError> { Ok(call.correlation()) }
    /// }
    ///
    /// struct Asking(Mediator);
    /// impl Handler<Outer> for Asking {
    ///     type Error = BoxError;
    ///     async fn handle(&self, _: Outer, call: &Call<'_>) -> Result<(Correlation, Correlation), BoxError> {
    ///         Ok((call.correlation(), self.0.send_in(&call.onward(), Inner).await?))
    ///     }
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), BoxError> {
    /// let inner = Mediator::builder().request_handler(Told).build()?;
    /// let outer = Mediator::builder().request_handler(Asking(inner)).build()?;
    /// let (own, of_inner) = outer.send(Outer).await?;
    /// assert_eq!(own, of_inner);
    /// # Ok(()) }
    /// ```
    pub fn onward(&self) -> Context {
        self.context.clone().correlation(self.correlation())
    }

    /// The correlation that the caller gave, or one of this call's own.
    pub fn correlation(&self) -> Correlation {
        let own = || self.context.correlation.unwrap_or_else(Correlation::new);
        *self.correlation.get_or_init(own)
    }

    /// The same call for whoever outlives this one: a retry of a stream, a task of its own.
    pub fn detach(&self) -> Detached {
        Detached { about: self.about.clone(), context: self.onward() }
    }

    /// The same with a value more for those inside.
    pub(crate) fn detach_with<T: Send + Sync + 'static>(&self, value: T) -> Detached {
        let Detached { about, context } = self.detach();
        Detached { about, context: context.with(value) }
    }
}

/// A call that can be kept. See [`Call::detach`].
#[derive(Debug, Clone)]
pub struct Detached {
    about: Arc<About>,
    context: Context,
}

impl Detached {
    pub(crate) fn of(about: Arc<About>, context: Context) -> Self {
        Detached { about, context }
    }

    #[cfg(feature = "tower")]
    pub(crate) fn about(&self) -> &About {
        &self.about
    }

    /// The call.
    pub fn call(&self) -> Call<'_> {
        Call::new(&self.about, &self.context)
    }
}
