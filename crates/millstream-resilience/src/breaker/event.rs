//! What a circuit breaker tells about itself.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::{Class, Classify};

/// What a circuit breaker does with calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BreakerState {
    /// They are made.
    Closed,
    /// They are not.
    Open,
    /// A few are made, to see how it goes.
    HalfOpen,
}

/// Who decides what a circuit breaker does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// The calls' results.
    Automatic,
    /// Somebody has opened it; it stays open.
    ForcedOpen,
    /// Somebody has closed it; it counts, and stays closed.
    ForcedClosed,
    /// Somebody has switched it off: it is closed and does not count.
    Disabled,
}

/// A circuit breaker has changed its state.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BreakerEvent {
    /// The breaker's name.
    pub name: Arc<str>,
    /// Its state before.
    pub from: BreakerState,
    /// Its state now.
    pub to: BreakerState,
    /// Why.
    pub cause: Cause,
}

/// Why a circuit breaker has changed its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// Too many calls have failed.
    FailureRate {
        /// How many have failed,
        failures: u64,
        /// of how many.
        calls: u64,
    },
    /// Too many calls were too slow.
    SlowRate {
        /// How many were too slow,
        slow: u64,
        /// of how many.
        calls: u64,
    },
    /// It has been open for long enough.
    PauseOver,
    /// A probe has failed.
    ProbeFailed,
    /// The probes have not ended in their time.
    ProbesHung,
    /// All probes have succeeded.
    ProbesSucceeded,
    /// Somebody wanted it so.
    Manual,
}

impl fmt::Display for BreakerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BreakerState::Closed => "closed",
            BreakerState::Open => "open",
            BreakerState::HalfOpen => "half-open",
        })
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::FailureRate { failures, calls } => write!(f, "{failures} of {calls} calls failed"),
            Cause::SlowRate { slow, calls } => write!(f, "{slow} of {calls} calls were too slow"),
            Cause::PauseOver => f.write_str("the pause is over"),
            Cause::ProbeFailed => f.write_str("a probe failed"),
            Cause::ProbesHung => f.write_str("probes did not end in their time"),
            Cause::ProbesSucceeded => f.write_str("all probes succeeded"),
            Cause::Manual => f.write_str("by hand"),
        }
    }
}

/// `orders: closed to open, 7 of 10 calls failed`
impl fmt::Display for BreakerEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let BreakerEvent { name, from, to, cause } = self;
        write!(f, "{name}: {from} to {to}, {cause}")
    }
}

/// What a circuit breaker has counted and decided, at one moment.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct BreakerSnapshot {
    /// The breaker's name.
    pub name: Arc<str>,
    /// What it does with calls.
    pub state: BreakerState,
    /// Who decides that.
    pub mode: Mode,
    /// How long it has been in this state.
    pub age: Duration,
    /// How long it will be open, if it is, and not by hand.
    pub retry_after: Option<Duration>,
    /// The calls in its window.
    pub calls: u64,
    /// Those of them that failed.
    pub failures: u64,
    /// Those of them that were too slow.
    pub slow: u64,
    /// How often it has opened.
    pub opened: u64,
    /// How many calls it has not let through; those that waited are not counted.
    pub rejected: u64,
}

impl BreakerSnapshot {
    /// The part of the calls in the window that failed; 0 if there are none.
    pub fn failure_rate(&self) -> f64 {
        self.failures as f64 / self.calls.max(1) as f64
    }

    /// The part of the calls in the window that were too slow; 0 if there are none.
    pub fn slow_rate(&self) -> f64 {
        self.slow as f64 / self.calls.max(1) as f64
    }
}

/// The error of a call that a circuit breaker did not let through.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Open {
    /// The breaker's name.
    pub name: Arc<str>,
    /// Whether it is open or half-open with all probes under way.
    pub state: BreakerState,
    /// How long that will last at most; `None` until somebody closes it.
    pub retry_after: Option<Duration>,
}

impl fmt::Display for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Open { name, state, retry_after } = self;
        match (state, retry_after) {
            (BreakerState::HalfOpen, _) => write!(f, "{name} is half-open and all its probes are under way"),
            (_, Some(after)) => write!(f, "{name} is open for another {after:?}"),
            (_, None) => write!(f, "{name} was opened by hand"),
        }
    }
}

impl Error for Open {}

impl Classify for Open {
    fn class(&self) -> Class {
        Class::Throttled { retry_after: self.retry_after }
    }
}
