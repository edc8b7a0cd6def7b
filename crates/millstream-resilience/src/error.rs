//! The errors of all policies together.

use std::error::Error as StdError;
use std::fmt;

use crate::{Class, Classifier, Classify, FromRetry, Full, Limited, Open, RetryError, TimedOut};

/// How a call behind policies failed: with an error of its own, or because a policy did not let it be made or finished.
///
/// Every policy returns errors of any type that can be made of its own ([`TimedOut`], [`Open`], [`Full`], [`Limited`]): a type of
/// yours with `From`, a box, or this one.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error<E> {
    /// The call's own error.
    Failed(E),
    /// It took too long.
    TimedOut(TimedOut),
    /// The circuit breaker is open: it was not made.
    Open(Open),
    /// Too many calls are running and waiting: it was not made.
    Full(Full),
    /// Too many calls were made lately: it was not made.
    Limited(Limited),
    /// It was made several times.
    Tried(RetryError<Error<E>>),
}

impl<E> Error<E> {
    /// The call's own error, if its last attempt had one.
    pub fn failure(&self) -> Option<&E> {
        match self {
            Error::Failed(error) => Some(error),
            Error::Tried(tried) => tried.error().failure(),
            _ => None,
        }
    }

    /// The same, without the rest.
    pub fn into_failure(self) -> Option<E> {
        match self {
            Error::Failed(error) => Some(error),
            Error::Tried(tried) => tried.into_error().into_failure(),
            _ => None,
        }
    }

    /// How often it was tried to make the call, if a retry was among the policies; else 1.
    pub fn attempts(&self) -> u32 {
        match self {
            Error::Tried(tried) => tried.attempts(),
            _ => 1,
        }
    }

    /// Its class, when `classifier` knows that of the call's own errors.
    pub fn class_by(&self, classifier: &impl Classifier<E>) -> Class {
        match self {
            Error::Failed(error) => classifier.classify(error),
            Error::TimedOut(error) => error.class(),
            Error::Open(error) => error.class(),
            Error::Full(error) => error.class(),
            Error::Limited(error) => error.class(),
            Error::Tried(error) => error.class(),
        }
    }
}

impl<E> fmt::Display for Error<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Failed(_) => f.write_str("the call failed"),
            Error::TimedOut(error) => error.fmt(f),
            Error::Open(error) => error.fmt(f),
            Error::Full(error) => error.fmt(f),
            Error::Limited(error) => error.fmt(f),
            Error::Tried(error) => error.fmt(f),
        }
    }
}

impl<E: StdError + 'static> StdError for Error<E> {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Error::Failed(error) => Some(error),
            Error::Tried(error) => error.source(),
            // The policy's own error, though it says the same: `class_of` and whoever looks for it find it nowhere else.
            Error::TimedOut(error) => Some(error),
            Error::Open(error) => Some(error),
            Error::Full(error) => Some(error),
            Error::Limited(error) => Some(error),
        }
    }
}

impl<E: Classify> Classify for Error<E> {
    fn class(&self) -> Class {
        self.class_by(&crate::ByTrait)
    }
}

impl<E> From<TimedOut> for Error<E> {
    fn from(error: TimedOut) -> Self {
        Error::TimedOut(error)
    }
}

impl<E> From<Open> for Error<E> {
    fn from(error: Open) -> Self {
        Error::Open(error)
    }
}

impl<E> From<Full> for Error<E> {
    fn from(error: Full) -> Self {
        Error::Full(error)
    }
}

impl<E> From<Limited> for Error<E> {
    fn from(error: Limited) -> Self {
        Error::Limited(error)
    }
}

/// An error that was not repeated stays as it is.
impl<E> FromRetry for Error<E> {
    fn from_retry(error: RetryError<Self>) -> Self {
        if error.attempts() == 1 { error.into_error() } else { Error::Tried(error) }
    }
}

/// Classifies the calls' own errors by another classifier, and the policies' by what they are.
pub(crate) struct Within<'a, C>(pub(crate) &'a C);

impl<E, C: Classifier<E>> Classifier<Error<E>> for Within<'_, C> {
    fn classify(&self, error: &Error<E>) -> Class {
        error.class_by(self.0)
    }
}
