//! The errors of a run's items: counted, the last ones kept, and the run ended when they are too many.

use millstream_flow::Clock;
use serde::Serialize;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

/// How many of the last errors are kept.
const KEPT: usize = 16;
/// Below this many items a share says little.
const ITEMS_MIN: u64 = 100;

/// An item's error, as reports show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ItemFailure {
    /// The step that failed.
    pub stage: String,
    /// What was wrong.
    pub reason: String,
    /// Where the item came from, as `file:line`; empty where that is unknown.
    pub place: String,
    /// When, in milliseconds since 1970.
    pub at_millis: u64,
}

#[derive(Debug)]
pub(crate) struct Trouble {
    failed: AtomicU64,
    rate_max: Option<f64>,
    last: Mutex<VecDeque<ItemFailure>>,
    /// Why nothing is accepted now, though the run goes on.
    refusing: Mutex<Option<String>>,
    clock: Clock,
}

impl Trouble {
    pub(crate) fn new(rate_max: Option<f64>, clock: Clock) -> Self {
        Trouble {
            failed: AtomicU64::new(0),
            rate_max,
            last: Mutex::default(),
            refusing: Mutex::default(),
            clock,
        }
    }

    pub(crate) fn note(&self, stage: &str, reason: &str, place: &str) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        let at = self.clock.now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.len() == KEPT {
            last.pop_front();
        }
        last.push_back(ItemFailure {
            stage: stage.to_owned(),
            reason: reason.to_owned(),
            place: place.to_owned(),
            at_millis: u64::try_from(at.as_millis()).unwrap_or(u64::MAX),
        });
    }

    /// Remembers why what is sent is refused now, or that it is accepted.
    pub(crate) fn refuse(&self, why: Option<String>) {
        *self.refusing.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    pub(crate) fn refusing(&self) -> Option<String> {
        self.refusing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The last errors, the oldest first.
    pub(crate) fn last(&self) -> Vec<ItemFailure> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Says so when more items have failed than the goal allows.
    pub(crate) fn exceeds(&self, received: u64) -> Option<TooMany> {
        let max = self.rate_max?;
        let failed = self.failed.load(Ordering::Relaxed);
        if received < ITEMS_MIN || failed as f64 <= received as f64 * max {
            return None;
        }
        let reason = self.last().pop().map(|last| format!("; the last: {}: {}", last.stage, last.reason));
        Some(TooMany(format!(
            "{failed} of {received} items failed, more than `goals.max_error_rate` {}% allows{}",
            max * 100.0,
            reason.unwrap_or_default()
        )))
    }
}

/// More items have failed than the goal allows. It ends the source, whose fault it is not.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct TooMany(String);
