//! How a call ended whose attempts all failed.

use std::collections::VecDeque;
use std::error::Error;
use std::fmt;
use std::time::Duration;

use super::Attempts;
use crate::{BoxError, Class, Classify};

/// The error of the last attempt, with what was before it.
#[derive(Debug)]
pub struct RetryError<E>(Box<Ended<E>>);

#[derive(Debug)]
struct Ended<E> {
    error: E,
    class: Class,
    stop: Stop,
    attempts: u32,
    elapsed: Duration,
    earlier: VecDeque<Failure<E>>,
}

/// Why no further attempt was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stop {
    /// It would fail in the same way.
    Permanent,
    /// Nobody wants the result any more.
    Cancelled,
    /// As many were made as may be.
    Attempts,
    /// The next one would begin too late.
    Elapsed,
    /// The budget that many calls share is spent.
    Budget,
    /// The callee wants to be left alone for longer than anybody would wait.
    RetryAfter,
}

/// An attempt that was followed by another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure<E> {
    /// How it failed.
    pub error: E,
    /// The class of that error.
    pub class: Class,
    /// How long the next attempt was waited for.
    pub delay: Duration,
}

/// The most earlier attempts that are kept, of the newest.
const EARLIER_MAX: usize = 16;

pub(super) fn remember<E>(earlier: &mut VecDeque<Failure<E>>, failure: Failure<E>) {
    if earlier.len() == EARLIER_MAX {
        earlier.pop_front();
    }
    earlier.push_back(failure);
}

impl<E> RetryError<E> {
    pub(super) fn new(
        error: E,
        class: Class,
        stop: Stop,
        attempts: &Attempts,
        earlier: VecDeque<Failure<E>>,
    ) -> Self {
        let (attempts, elapsed) = (attempts.made(), attempts.elapsed());
        RetryError(Box::new(Ended { error, class, stop, attempts, elapsed, earlier }))
    }

    /// The last attempt's error.
    pub fn error(&self) -> &E {
        &self.0.error
    }

    /// The same, without the rest.
    pub fn into_error(self) -> E {
        self.0.error
    }

    /// The class of the last attempt's error.
    pub fn class(&self) -> Class {
        self.0.class
    }

    /// Why there was no further attempt.
    pub fn stop(&self) -> Stop {
        self.0.stop
    }

    /// How many attempts were made.
    pub fn attempts(&self) -> u32 {
        self.0.attempts
    }

    /// How long they took, with the delays.
    pub fn elapsed(&self) -> Duration {
        self.0.elapsed
    }

    /// The attempts before the last, oldest first: the newest sixteen of them.
    pub fn earlier(&self) -> impl ExactSizeIterator<Item = &Failure<E>> {
        self.0.earlier.iter()
    }

    /// The same with errors of another type.
    pub fn map<F>(self, mut map: impl FnMut(E) -> F) -> RetryError<F> {
        let Ended { error, class, stop, attempts, elapsed, earlier } = *self.0;
        let earlier = earlier
            .into_iter()
            .map(|Failure { error, class, delay }| Failure { error: map(error), class, delay })
            .collect();
        RetryError(Box::new(Ended { error: map(error), class, stop, attempts, elapsed, earlier }))
    }
}

impl<E> fmt::Display for RetryError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ended { stop, attempts, elapsed, class, .. } = &*self.0;
        match attempts {
            1 => f.write_str("the only attempt failed")?,
            n => write!(f, "{n} attempts failed in {elapsed:?}")?,
        }
        match stop {
            Stop::Attempts => Ok(()),
            Stop::Permanent => f.write_str(", and another would fail in the same way"),
            Stop::Cancelled => f.write_str(", and the call is cancelled"),
            Stop::Elapsed => f.write_str(", and there is no time for another"),
            Stop::Budget => f.write_str(", and the budget for retries is spent"),
            Stop::RetryAfter => {
                let asked = class.retry_after().unwrap_or_default();
                write!(f, ", and the next is wanted after {asked:?} only")
            }
        }
    }
}

impl<E: Error + 'static> Error for RetryError<E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.0.error)
    }
}

impl<E> Classify for RetryError<E> {
    fn class(&self) -> Class {
        self.0.class
    }
}

/// Errors that can say that a call was tried several times: [`Error`](crate::Error) and boxes.
///
/// [`From`] cannot be asked for it, since a box is made of any error by the standard library already.
pub trait FromRetry: Sized {
    /// The error of a call that was tried.
    fn from_retry(error: RetryError<Self>) -> Self;
}

/// A [`RetryError`] in a box, which has forgotten the errors of earlier attempts but for their text.
#[derive(Debug)]
pub struct Tried {
    message: String,
    last: BoxError,
    class: Class,
    attempts: u32,
    stop: Stop,
    earlier: Vec<String>,
}

impl Tried {
    /// How many attempts were made.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Why there was no further attempt.
    pub fn stop(&self) -> Stop {
        self.stop
    }

    /// What the attempts before the last failed with, oldest first: the newest sixteen of them.
    pub fn earlier(&self) -> &[String] {
        &self.earlier
    }
}

impl fmt::Display for Tried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Tried {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.last)
    }
}

impl Classify for Tried {
    fn class(&self) -> Class {
        self.class
    }
}

/// As [`Tried`]; an error that was not repeated stays as it is.
impl FromRetry for BoxError {
    fn from_retry(error: RetryError<Self>) -> Self {
        if error.attempts() == 1 {
            return error.into_error();
        }
        let message = error.to_string();
        let Ended { error, class, stop, attempts, earlier, .. } = *error.0;
        let earlier = earlier.iter().map(|failure| failure.error.to_string()).collect();
        Box::new(Tried { message, last: error, class, attempts, stop, earlier })
    }
}
