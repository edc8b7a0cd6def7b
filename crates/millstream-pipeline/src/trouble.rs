//! The errors of a run's items: counted, the last ones kept, and the run ended when they are too many.

use millstream_flow::Clock;
use serde::Serialize;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// How many of the last errors are kept.
const KEPT: usize = 16;
/// Below this many items a share says little.
const ITEMS_MIN: u64 = 100;
/// After a refusal the run counts as refusing for so long. Whoever sends it nothing while it does (a load balancer) would never
/// learn that there is room again, so the next item is let in to find out.
const REFUSING: Duration = Duration::from_secs(10);

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
    /// When an item was refused last, and why, though the run goes on; `None` once one was accepted.
    refused: Mutex<Option<(Instant, String)>>,
    clock: Clock,
}

impl Trouble {
    pub(crate) fn new(rate_max: Option<f64>, clock: Clock) -> Self {
        Trouble {
            failed: AtomicU64::new(0),
            rate_max,
            last: Mutex::default(),
            refused: Mutex::default(),
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

    /// Remembers why an item was refused, or that one was accepted.
    pub(crate) fn refuse(&self, why: Option<String>) {
        let refused = why.map(|why| (Instant::now(), why));
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = refused;
    }

    /// Why items were refused lately, and none was accepted since.
    pub(crate) fn refusing(&self) -> Option<String> {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.as_ref().filter(|(at, _)| at.elapsed() < REFUSING).map(|(_, why)| why.clone())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_refusal_lapses_so_that_something_is_sent_again() {
        let trouble = Trouble::new(None, Clock::system());
        assert_eq!(trouble.refusing(), None);
        trouble.refuse(Some("full".into()));
        tokio::time::advance(REFUSING - Duration::from_millis(1)).await;
        assert_eq!(trouble.refusing().as_deref(), Some("full"));
        // Who tries in vain begins the time anew.
        trouble.refuse(Some("still full".into()));
        tokio::time::advance(REFUSING - Duration::from_millis(1)).await;
        assert_eq!(trouble.refusing().as_deref(), Some("still full"));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(trouble.refusing(), None);
        trouble.refuse(Some("full".into()));
        trouble.refuse(None);
        assert_eq!(trouble.refusing(), None, "one was accepted");
    }
}
