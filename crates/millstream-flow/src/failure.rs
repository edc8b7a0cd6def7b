//! Failed items: errors as data.

use std::any::Any;
use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

pub use millstream_resilience::BoxError;

/// An item that failed, with everything needed to decide what happens next: try it again, repair it, or hand it
/// to somebody who will.
#[derive(Debug)]
#[non_exhaustive]
pub struct Failed<T> {
    /// The item that failed: the *input* of the function that failed, not its output.
    pub input: T,
    /// Why. The chain of sources is intact.
    pub error: BoxError,
    /// The operator that failed.
    pub stage: Arc<str>,
    /// The how-manieth item this was for the operator, counted from 0.
    pub position: u64,
    /// How often it was tried; 1 without retry.
    pub attempts: u32,
    /// When it failed for the last time.
    pub at: SystemTime,
    history: History,
}

/// How earlier attempts at an item ended. Nothing is allocated before there is one.
#[derive(Debug, Clone, Default)]
#[expect(clippy::box_collection, reason = "it is part of every item that may fail, and nearly always empty")]
pub(crate) struct History(Option<Box<Vec<Failure>>>);

impl History {
    /// The most that is kept, of the newest.
    const MAX: usize = 16;

    pub(crate) fn add(&mut self, failure: Failure) {
        let failures = self.0.get_or_insert_default();
        if failures.len() == Self::MAX {
            failures.remove(0);
        }
        failures.push(failure);
    }
}

impl<T> Failed<T> {
    /// A failure outside of the operators that make them, tried once.
    pub fn new(input: T, error: impl Into<BoxError>, stage: impl Into<Arc<str>>, at: SystemTime) -> Self {
        Failed {
            input,
            error: error.into(),
            stage: stage.into(),
            position: 0,
            attempts: 1,
            at,
            history: History::default(),
        }
    }

    /// How the attempts before the last one ended, oldest first: the newest sixteen of them.
    pub fn history(&self) -> &[Failure] {
        self.history.0.as_ref().map_or(&[], |failures| failures.as_slice())
    }

    pub(crate) fn counted(mut self, position: u64, attempts: u32) -> Self {
        (self.position, self.attempts) = (position, attempts);
        self
    }

    pub(crate) fn with_history(mut self, history: History) -> Self {
        self.history = history;
        self
    }

    /// The same failure without its input, as it goes into reports and to the source's settler.
    pub fn failure(&self) -> Failure {
        Failure {
            stage: self.stage.clone(),
            reason: chain(&*self.error),
            panicked: self.error.is::<Panicked>(),
            position: self.position,
            attempts: self.attempts,
            at: self.at,
        }
    }

    /// The same failure of another form of the input.
    pub fn map_input<U>(self, f: impl FnOnce(T) -> U) -> Failed<U> {
        let Failed { input, error, stage, position, attempts, at, history } = self;
        Failed { input: f(input), error, stage, position, attempts, at, history }
    }
}

impl<T> fmt::Display for Failed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} failed at item {}", self.stage, self.position)?;
        if self.attempts > 1 {
            write!(f, " after {} attempts", self.attempts)?;
        }
        Ok(())
    }
}

impl<T: fmt::Debug> Error for Failed<T> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.error)
    }
}

/// Why an item is dead: [`Failed`] without the item.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Failure {
    /// The operator or stage that failed.
    pub stage: Arc<str>,
    /// The error and its causes, joined by `: `.
    pub reason: String,
    /// Whether the user's function panicked rather than returned an error.
    pub panicked: bool,
    /// The how-manieth item this was for the operator, counted from 0.
    pub position: u64,
    /// How often it was tried.
    pub attempts: u32,
    /// When it failed for the last time.
    pub at: SystemTime,
}

impl Failure {
    /// A failure outside of an operator that counts, for example in a sink or a decoder.
    pub fn new(stage: impl Into<Arc<str>>, error: &(dyn Error + 'static), at: SystemTime) -> Self {
        Failure {
            stage: stage.into(),
            reason: chain(error),
            panicked: error.is::<Panicked>(),
            position: 0,
            attempts: 1,
            at,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.stage, self.reason)
    }
}

/// The error of an item whose function panicked. The process goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Panicked {
    message: String,
}

impl Panicked {
    /// Of what a panic was caught with.
    pub fn new(payload: Box<dyn Any + Send>) -> Self {
        let message = match payload.downcast::<&'static str>() {
            Ok(text) => (*text).to_owned(),
            Err(payload) => match payload.downcast::<String>() {
                Ok(text) => *text,
                Err(_) => "a value that is not text".to_owned(),
            },
        };
        Panicked { message }
    }

    /// What the function panicked with.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Panicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "panicked: {}", self.message)
    }
}

impl Error for Panicked {}

/// How many causes [`chain`] tells.
const CAUSES_MAX: usize = 100;

/// An error and its causes on one line: of more than a hundred causes the first hundred, and an ellipsis.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    let mut told = 0;
    while let Some(error) = cause {
        if told == CAUSES_MAX {
            text.push_str(": …");
            break;
        }
        told += 1;
        let next = error.to_string();
        // Wrappers that print their source themselves would otherwise say everything twice.
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}
