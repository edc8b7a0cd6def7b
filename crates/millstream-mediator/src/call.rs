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

    /// One that belongs to this correlation. Without it, each call has an identifier of its own.
    pub fn correlation(mut self, id: impl Into<Correlation>) -> Self {
        self.correlation = Some(id.into());
        self
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

    /// What the caller gave along.
    pub fn context(&self) -> &'a Context {
        self.context
    }

    /// The correlation that the caller gave, or one of this call's own.
    pub fn correlation(&self) -> Correlation {
        let own = || self.context.correlation.unwrap_or_else(|| Correlation(fastrand::u64(..)));
        *self.correlation.get_or_init(own)
    }

    /// The same call for whoever outlives this one: a retry of a stream, a task of its own.
    pub fn detach(&self) -> Detached {
        let context = self.context.clone().correlation(self.correlation());
        Detached { about: self.about.clone(), context }
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

    /// The call.
    pub fn call(&self) -> Call<'_> {
        Call::new(&self.about, &self.context)
    }
}
