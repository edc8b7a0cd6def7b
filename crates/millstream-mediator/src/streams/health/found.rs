//! What a check finds.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

/// How well a stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Nothing is wrong.
    Healthy,
    /// Something is not as it should be, and the stream flows.
    Degraded,
    /// It does not flow, or does harm: it stalls, too many items fail, or several things are wrong at once.
    Unhealthy,
}

/// What is wrong with a stream, with what was found and what was declared.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Warning {
    /// Somebody has waited so long for an item.
    Stalled {
        /// For how many seconds.
        seconds: f64,
    },
    /// Fewer items a second than declared, while somebody waited for them.
    LowThroughput {
        /// Items a second since the last check.
        rate: f64,
        /// What was declared.
        least: f64,
    },
    /// More of the items fail than declared.
    HighErrorRate {
        /// The part that failed since the last check.
        rate: f64,
        /// What was declared.
        most: f64,
    },
    /// Memory has grown by more than declared since the stream was opened.
    MemoryGrowth {
        /// By so many bytes.
        bytes: u64,
        /// What was declared.
        most: u64,
    },
    /// Fewer items a second than the declared part of the most there was, while somebody waited for them.
    Slowdown {
        /// Items a second since the last check, of the time in which somebody waited for them.
        rate: f64,
        /// The most of that there was before.
        rate_max: f64,
    },
    /// The budget of memory is short.
    ShortMemory {
        /// Bytes that are used of it.
        used: u64,
        /// How many there are.
        limit: u64,
    },
}

impl Warning {
    pub(super) fn is_critical(&self) -> bool {
        matches!(self, Warning::Stalled { .. } | Warning::HighErrorRate { .. } | Warning::ShortMemory { .. })
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Warning::Stalled { seconds } => write!(f, "no item for {seconds:.1} s"),
            Warning::LowThroughput { rate, least } => write!(f, "{rate:.1} items/s, fewer than {least}"),
            Warning::HighErrorRate { rate, most } => {
                write!(f, "{:.1} % of the items fail, more than {} %", rate * 100.0, most * 100.0)
            }
            Warning::MemoryGrowth { bytes, most } => {
                write!(f, "memory grew by {bytes} bytes, more than {most}")
            }
            Warning::Slowdown { rate, rate_max } => {
                write!(f, "{rate:.1} items/s, after {rate_max:.1} at best")
            }
            Warning::ShortMemory { used, limit } => {
                write!(f, "memory is short, {used} of {limit} bytes are used")
            }
        }
    }
}

/// What is known of a stream's health at one check.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct StreamHealth {
    /// The stream's name.
    pub stream: Arc<str>,
    /// The correlation of its call.
    pub correlation: String,
    /// How well it is.
    pub severity: Severity,
    /// What is wrong now.
    pub warnings: Vec<Warning>,
    /// Items delivered so far.
    pub items: u64,
    /// Items that failed so far.
    pub errors: u64,
    /// Items a second since the check before.
    pub rate: f64,
    /// The most of that there was.
    pub rate_max: f64,
    /// Seconds since it was opened.
    pub seconds: f64,
    /// How it ended, in a word; `None` while it flows.
    pub ended: Option<&'static str>,
}
