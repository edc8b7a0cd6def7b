//! What a handler says that has not done its job.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use millstream_flow::BoxError;

/// Why a handler has not done its job, and what is to happen with the message. Every error becomes one by `?`, and is tried
/// again by the rule of [`Work::retry`](super::Work::retry).
#[derive(Debug)]
pub struct Failure {
    pub(super) error: BoxError,
    pub(super) then: Then,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Then {
    ByRule,
    After(Duration),
    Dead,
    GiveBack,
}

impl Failure {
    /// No attempt will ever do it: a dead letter at once.
    pub fn permanent(error: impl Into<BoxError>) -> Self {
        Failure { error: error.into(), then: Then::Dead }
    }

    /// Try again after this time, whatever the rule's delay would be: for a service that says when it will be back. The rule
    /// still bounds the number of attempts.
    pub fn retry_after(error: impl Into<BoxError>, delay: Duration) -> Self {
        Failure { error: error.into(), then: Then::After(delay) }
    }

    /// Not here and not now: back to its place in the queue at once, for whoever takes it next. It counts as a redelivery, not
    /// as an attempt.
    pub fn give_back(why: impl Into<BoxError>) -> Self {
        Failure { error: why.into(), then: Then::GiveBack }
    }
}

impl<E: Into<BoxError>> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure { error: error.into(), then: Then::ByRule }
    }
}

/// A failure on its way through the engine, to which it is an error like others.
#[derive(Debug)]
pub(super) struct Verdict(pub(super) Failure);

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.error.fmt(f)
    }
}

impl Error for Verdict {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.error.source()
    }
}
