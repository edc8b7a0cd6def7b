//! Why a call did not succeed.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use millstream_flow::{BoxError, Panicked};
use millstream_resilience::{Class, Classified, Classify, class_of};

use crate::message::About;

mod policies;

/// Why a call did not succeed: a kind to act upon, the message's name, and the cause as it was.
///
/// The handler's own error is the [`source`](StdError::source), never wrapped by behaviours, so that whoever classifies
/// errors sees the root.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    message: Arc<str>,
    handler: Option<Arc<str>>,
    /// The class of its kind; as the last link of the chain where there is no cause.
    verdict: Option<Class>,
    source: Option<BoxError>,
    /// The source is in a [`Classified`] of this error's own, with the class of its kind.
    wrapped: bool,
}

/// How many causes are looked at.
const CAUSES_MAX: usize = 1000;

/// What kind of failure it is. Each is one that a caller would act on in another way.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Nobody handles this type of message. Declare what you send with [`Builder::declare`](crate::Builder::declare), and
    /// this is found when the mediator is built.
    NoHandler,
    /// The handler answered with an error, which is the source.
    Failed,
    /// The handler, or a behaviour, panicked. The process and later calls are unharmed. It is not retried; breakers count it
    /// as a failure.
    Panicked,
    /// It took longer than a timeout allows. The handler was dropped at that moment.
    TimedOut {
        /// What was allowed.
        limit: Duration,
    },
    /// A circuit breaker lets no calls through; the handler was not called.
    CircuitOpen {
        /// When the next call may be let through, if that is known.
        retry_after: Option<Duration>,
    },
    /// A bulkhead is full and so is its queue; the handler was not called.
    Full,
    /// Over the rate that is allowed; the handler was not called.
    Throttled {
        /// When the next call is allowed.
        retry_after: Duration,
    },
    /// Refused because memory is short; the handler was not called.
    Shed,
    /// The message was found invalid; the handler was not called.
    Invalid,
    /// The caller may not do this; the handler was not called.
    Denied,
    /// The same message was handled before; the handler was not called.
    Duplicate,
    /// JSON that is not this message, or a response that cannot be written as JSON.
    Malformed,
}

impl ErrorKind {
    /// All words that [`word`](ErrorKind::word) gives: the values of the label `status`, beside `ok` and `cancelled`.
    pub const WORDS: [&'static str; 12] = [
        "no_handler",
        "failed",
        "panicked",
        "timed_out",
        "circuit_open",
        "full",
        "throttled",
        "shed",
        "invalid",
        "denied",
        "duplicate",
        "malformed",
    ];

    /// How what does not end well ends: by the kind of its error, or because who waits for it has gone.
    pub(crate) const ENDS: [&'static str; Self::WORDS.len() + 1] = {
        let mut words = ["cancelled"; Self::WORDS.len() + 1];
        let (kinds, _) = words.split_at_mut(Self::WORDS.len());
        kinds.copy_from_slice(&Self::WORDS);
        words
    };
    /// Where among [`ENDS`](Self::ENDS) that stands.
    pub(crate) const CANCELLED: usize = Self::WORDS.len();

    /// The kind in one word, as metrics and logs show it.
    pub fn word(&self) -> &'static str {
        Self::WORDS[self.index()]
    }

    pub(crate) fn index(&self) -> usize {
        match self {
            ErrorKind::NoHandler => 0,
            ErrorKind::Failed => 1,
            ErrorKind::Panicked => 2,
            ErrorKind::TimedOut { .. } => 3,
            ErrorKind::CircuitOpen { .. } => 4,
            ErrorKind::Full => 5,
            ErrorKind::Throttled { .. } => 6,
            ErrorKind::Shed => 7,
            ErrorKind::Invalid => 8,
            ErrorKind::Denied => 9,
            ErrorKind::Duplicate => 10,
            ErrorKind::Malformed => 11,
        }
    }

    /// When it is worth trying again, if somebody said so.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            ErrorKind::CircuitOpen { retry_after } => *retry_after,
            ErrorKind::Throttled { retry_after } => Some(*retry_after),
            _ => None,
        }
    }
}

impl Error {
    /// An error of this call, for behaviours of one's own.
    #[cold]
    pub fn new(about: &About, kind: ErrorKind) -> Self {
        let handler = Some(about.handler.clone());
        let (verdict, message) = (verdict(&kind), about.name.clone());
        Error(Box::new(Inner { kind, message, handler, verdict, source: None, wrapped: false }))
    }

    #[cold]
    pub(crate) fn unhandled(kind: ErrorKind, message: Cow<'static, str>) -> Self {
        let verdict = verdict(&kind);
        let message = message.into();
        Error(Box::new(Inner { kind, message, handler: None, verdict, source: None, wrapped: false }))
    }

    /// The same with its cause. Unless the handler failed, the kind says the class, whatever that of the cause is.
    pub fn because(mut self, source: impl Into<BoxError>) -> Self {
        let source = source.into();
        // Those who know only chains of errors must find the kind's class there first.
        let class = self.0.verdict.filter(|class| class_of(&*source) != Some(*class));
        self.0.wrapped = class.is_some();
        self.0.source = Some(match class {
            Some(class) => Classified::new(class, source).into(),
            None => source,
        });
        self
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> &ErrorKind {
        &self.0.kind
    }

    /// The message's name.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The handler's name; `None` if there is none.
    pub fn handler(&self) -> Option<&str> {
        self.0.handler.as_deref()
    }

    /// The class by which breakers count: a panic, here or where the handler asked, is not tried again, and yet no answer of a
    /// callee that is well.
    #[cold]
    pub(crate) fn class_for_breakers(&self) -> Class {
        match self.class() {
            Class::Permanent if self.find::<Panicked>().is_some() => Class::Transient,
            class => class,
        }
    }

    /// The first error of this type among the causes, of which it looks at a thousand.
    pub fn find<E: StdError + 'static>(&self) -> Option<&E> {
        let causes = std::iter::successors(self.source(), |&error| {
            // A classified error is no source of its class: it stands in its place.
            let inside = error.downcast_ref().map(Classified::error);
            inside.or_else(|| error.source())
        });
        causes.take(CAUSES_MAX).find_map(|error| error.downcast_ref())
    }

    /// The cause itself, or this error if it has none.
    pub fn into_cause(self) -> BoxError {
        let wrapped = self.0.wrapped;
        match self.0.source {
            Some(source) if wrapped => match source.downcast::<Classified>() {
                Ok(classified) => classified.into_inner(),
                Err(source) => source,
            },
            Some(source) => source,
            None => self.into(),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { kind, message, handler, .. } = &*self.0;
        let handler = handler.as_deref().unwrap_or("nobody");
        match kind {
            ErrorKind::NoHandler => write!(f, "{message}: nobody handles it; register a handler"),
            ErrorKind::Failed => write!(f, "{message}: its handler `{handler}` failed"),
            ErrorKind::Panicked => write!(f, "{message}: its handler `{handler}` panicked"),
            ErrorKind::TimedOut { limit } if self.0.handler.is_none() => {
                write!(f, "{message}: took longer than {limit:?}")
            }
            ErrorKind::TimedOut { limit } => {
                write!(f, "{message}: its handler `{handler}` took longer than {limit:?}")
            }
            ErrorKind::CircuitOpen { retry_after: Some(after) } => {
                write!(f, "{message}: its circuit is open, for {after:?} more")
            }
            ErrorKind::CircuitOpen { retry_after: None } => write!(f, "{message}: its circuit is open"),
            ErrorKind::Full => write!(f, "{message}: too many calls are under way and waiting"),
            ErrorKind::Throttled { retry_after } => {
                write!(f, "{message}: too many calls; the next is allowed in {retry_after:?}")
            }
            ErrorKind::Shed => write!(f, "{message}: refused, memory is short"),
            ErrorKind::Invalid => write!(f, "{message}: invalid"),
            ErrorKind::Denied => write!(f, "{message}: not allowed"),
            ErrorKind::Duplicate => write!(f, "{message}: handled before"),
            ErrorKind::Malformed => write!(f, "{message}: its JSON does not fit"),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { kind, message, handler, source, .. } = &*self.0;
        f.debug_struct("Error")
            .field("kind", kind)
            .field("message", message)
            .field("handler", handler)
            .field("source", source)
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match &self.0.source {
            Some(source) => Some(&**source),
            None => self.0.verdict.as_ref().map(|class| class as _),
        }
    }
}

/// What retries and breakers decide by. A handler's error is of the class that it says itself, by
/// [`Classify`] of a [`Classified`] error or a known one anywhere in its chain, and transient
/// if nobody says anything. [`class_of`] finds the same in a chain with this error in it: the class goes through other mediators,
/// flows and queues.
impl Classify for Error {
    fn class(&self) -> Class {
        match (self.0.verdict, &self.0.source) {
            (Some(class), _) => class,
            (None, Some(source)) => source.class(),
            (None, None) => Class::Transient,
        }
    }
}

/// The class that a kind has by itself, if it has one other than transient.
fn verdict(kind: &ErrorKind) -> Option<Class> {
    match kind {
        ErrorKind::Failed | ErrorKind::TimedOut { .. } => None,
        ErrorKind::CircuitOpen { .. } | ErrorKind::Full | ErrorKind::Throttled { .. } | ErrorKind::Shed => {
            Some(Class::Throttled { retry_after: kind.retry_after() })
        }
        ErrorKind::NoHandler
        | ErrorKind::Panicked
        | ErrorKind::Invalid
        | ErrorKind::Denied
        | ErrorKind::Duplicate
        | ErrorKind::Malformed => Some(Class::Permanent),
    }
}

/// Who says what class an error is of, instead of the error.
pub(crate) type ClassOf = dyn Fn(&Error) -> Class + Send + Sync;

/// The word of a class in metrics' labels.
pub(crate) fn class_word(class: Class) -> &'static str {
    match class {
        Class::Transient => "transient",
        Class::Permanent => "permanent",
        Class::Throttled { .. } => "throttled",
        Class::Cancelled => "cancelled",
    }
}
