//! Errors of policies that stand around calls, rather than among the behaviours of a mediator.

use std::borrow::Cow;

use millstream_resilience::{FromRetry, Full, Limited, Open, RetryError, TimedOut};

use super::{Error, ErrorKind};

/// What such a policy knows of the message.
const A_CALL: &str = "a call";

impl Error {
    fn of_policy(kind: ErrorKind) -> Self {
        Error::unhandled(kind, Cow::Borrowed(A_CALL))
    }

    /// The same, of this call if nobody has said of which.
    #[cfg(feature = "tower")]
    pub(crate) fn of(mut self, about: &crate::message::About) -> Self {
        if self.0.handler.is_none() && &*self.0.message == A_CALL {
            self.0.message = about.name.clone();
            self.0.handler = Some(about.handler.clone());
        }
        self
    }
}

/// Of a [`Timeout`](millstream_resilience::Timeout) around a call of a mediator.
impl From<TimedOut> for Error {
    fn from(out: TimedOut) -> Self {
        Error::of_policy(ErrorKind::TimedOut { limit: out.limit })
    }
}

/// Of a [`CircuitBreaker`](millstream_resilience::CircuitBreaker) around a call of a mediator.
impl From<Open> for Error {
    fn from(open: Open) -> Self {
        Error::of_policy(ErrorKind::CircuitOpen { retry_after: open.retry_after }).because(open)
    }
}

/// Of a [`Bulkhead`](millstream_resilience::Bulkhead) around a call of a mediator.
impl From<Full> for Error {
    fn from(full: Full) -> Self {
        Error::of_policy(ErrorKind::Full).because(full)
    }
}

/// Of a [`RateLimiter`](millstream_resilience::RateLimiter) around a call of a mediator.
impl From<Limited> for Error {
    fn from(limited: Limited) -> Self {
        Error::of_policy(ErrorKind::Throttled { retry_after: limited.retry_after }).because(limited)
    }
}

/// Of a [`Retry`](millstream_resilience::Retry) around a call of a mediator: the last attempt's, as with
/// [`Retries`](crate::Retries).
impl FromRetry for Error {
    fn from_retry(error: RetryError<Self>) -> Self {
        error.into_error()
    }
}
