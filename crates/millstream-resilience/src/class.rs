//! What an error says about trying again.

use std::convert::Infallible;
use std::error::Error;
use std::fmt;
use std::io;
use std::time::Duration;

use crate::{BoxError, Full, Limited, Open, TimedOut, Tried};

/// What an error says about the next attempt. Retries, breakers and budgets decide by nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// It may well go better next time: a lost connection, a timeout.
    Transient,
    /// It will end the same way each time: the input is refused, the target does not exist. The callee answered, so a circuit
    /// breaker counts it as a success.
    Permanent,
    /// The callee has too much to do, and may have said for how long it wants to be left alone.
    Throttled {
        /// How long to wait at least.
        retry_after: Option<Duration>,
    },
    /// Nobody wants the result any more. It is never tried again, and says nothing about the callee.
    Cancelled,
}

impl Class {
    /// Whether another attempt can help.
    pub fn is_retryable(self) -> bool {
        matches!(self, Class::Transient | Class::Throttled { .. })
    }

    /// How long the callee asked to be left alone.
    pub fn retry_after(self) -> Option<Duration> {
        match self {
            Class::Throttled { retry_after } => retry_after,
            _ => None,
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Class::Transient => "another attempt may succeed",
            Class::Permanent => "another attempt would end the same way",
            Class::Throttled { .. } => "another attempt may succeed later",
            Class::Cancelled => "nobody wants another attempt",
        })
    }
}

/// The last link of a chain of errors that have no other cause, and know their class: [`class_of`] finds it there.
impl Error for Class {}

/// Errors that know their class.
///
/// ```
/// use millstream_resilience::{Class, Classify};
///
/// enum Refusal {
///     Busy,
///     NoSuchOrder,
/// }
///
/// impl Classify for Refusal {
///     fn class(&self) -> Class {
///         match self {
///             Refusal::Busy => Class::Throttled { retry_after: None },
///             Refusal::NoSuchOrder => Class::Permanent,
///         }
///     }
/// }
/// assert!(Refusal::Busy.class().is_retryable() && !Refusal::NoSuchOrder.class().is_retryable());
/// ```
pub trait Classify {
    /// The class of this error.
    fn class(&self) -> Class;
}

/// Who says what class an error is of: [`ByTrait`], [`AllTransient`], or any `Fn(&E) -> Class`.
pub trait Classifier<E: ?Sized> {
    /// The class of `error`.
    fn classify(&self, error: &E) -> Class;
}

/// Errors are of the class that they say themselves ([`Classify`]).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ByTrait;

/// Every error is worth another attempt, and counts as a failure.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AllTransient;

impl<E: Classify + ?Sized> Classifier<E> for ByTrait {
    fn classify(&self, error: &E) -> Class {
        error.class()
    }
}

impl<E: ?Sized> Classifier<E> for AllTransient {
    fn classify(&self, _error: &E) -> Class {
        Class::Transient
    }
}

impl<E: ?Sized, F: Fn(&E) -> Class> Classifier<E> for F {
    fn classify(&self, error: &E) -> Class {
        self(error)
    }
}

/// An error with a class, for whoever passes on errors of a type that has none: it is found again in any chain of sources.
///
/// ```
/// use millstream_resilience::{Class, Classified, class_of};
/// let error = Classified::new(Class::Permanent, "no such table");
/// let wrapped = std::io::Error::other(error);
/// assert_eq!(class_of(&wrapped), Some(Class::Permanent));
/// ```
#[derive(Debug)]
pub struct Classified {
    class: Class,
    error: BoxError,
}

impl Classified {
    /// Says that `error` is of this class.
    pub fn new(class: Class, error: impl Into<BoxError>) -> Self {
        Classified { class, error: error.into() }
    }

    /// The error that was classified.
    pub fn error(&self) -> &(dyn Error + 'static) {
        &*self.error
    }

    /// The same, without the rest.
    pub fn into_inner(self) -> BoxError {
        self.error
    }
}

impl fmt::Display for Classified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl Error for Classified {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.error.source()
    }
}

impl Classify for Classified {
    fn class(&self) -> Class {
        self.class
    }
}

/// The class of an error of unknown type: that of the outermost error in its chain of sources that has one. Known are
/// [`Classified`], this crate's own errors (an [`Error`](crate::Error) by what it holds), [`io::Error`] (by its kind), tokio's, and a
/// [`Class`] itself. It is looked for in the first thousand errors of the chain.
pub fn class_of(error: &(dyn Error + 'static)) -> Option<Class> {
    let chain = std::iter::successors(Some(error), |&error| error.source());
    chain.take(LINKS_MAX).find_map(known)
}

/// How deep a class is looked for: a chain that a broken retry has made longer and longer must not cost ever more.
const LINKS_MAX: usize = 1000;

fn known(error: &(dyn Error + 'static)) -> Option<Class> {
    fn one<T: Error + Classify + 'static>(error: &(dyn Error + 'static)) -> Option<Class> {
        error.downcast_ref::<T>().map(T::class)
    }
    if let Some(error) = error.downcast_ref::<io::Error>() {
        return of_io(error);
    }
    if let Some(class) = error.downcast_ref::<Class>() {
        return Some(*class);
    }
    one::<Classified>(error)
        .or_else(|| one::<TimedOut>(error))
        .or_else(|| one::<Open>(error))
        .or_else(|| one::<Full>(error))
        .or_else(|| one::<Limited>(error))
        .or_else(|| one::<Tried>(error))
        .or_else(|| one::<tokio::time::error::Elapsed>(error))
        .or_else(|| one::<tokio::task::JoinError>(error))
}

fn of_io(error: &io::Error) -> Option<Class> {
    use io::ErrorKind::*;
    match error.kind() {
        ConnectionRefused | ConnectionReset | ConnectionAborted | NotConnected | BrokenPipe
        | HostUnreachable | NetworkUnreachable | NetworkDown | TimedOut | Interrupted | WouldBlock
        | UnexpectedEof | ResourceBusy | Deadlock => Some(Class::Transient),
        // An error of the system that has no kind yet (its number is known, its meaning is not), or somebody else's error.
        Other => error.get_ref().and_then(|inner| class_of(inner)),
        _ if error.raw_os_error().is_some() || error.get_ref().is_none() => Some(Class::Permanent),
        // Somebody else's error under a kind: what it says itself goes before.
        _ => error.get_ref().and_then(|inner| class_of(inner)).or(Some(Class::Permanent)),
    }
}

impl Classify for io::Error {
    fn class(&self) -> Class {
        of_io(self).unwrap_or(Class::Transient)
    }
}

/// By [`class_of`]; transient if that knows nothing, since attempts are bounded and a lost item may not come again.
impl Classify for dyn Error + Send + Sync + 'static {
    fn class(&self) -> Class {
        class_of(self).unwrap_or(Class::Transient)
    }
}

/// As what is in the box.
impl Classify for BoxError {
    fn class(&self) -> Class {
        (**self).class()
    }
}

/// Too late, so transient.
impl Classify for tokio::time::error::Elapsed {
    fn class(&self) -> Class {
        Class::Transient
    }
}

/// A task that was aborted is cancelled; one that panicked would do so again.
impl Classify for tokio::task::JoinError {
    fn class(&self) -> Class {
        if self.is_cancelled() { Class::Cancelled } else { Class::Permanent }
    }
}

impl Classify for Infallible {
    fn class(&self) -> Class {
        match *self {}
    }
}
