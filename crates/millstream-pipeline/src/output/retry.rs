//! Trying an output again.

use crate::file::model::Retry;
use std::time::Duration;

/// The longest wait between two tries.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// How often a write is tried; counts the tries of one write.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tries {
    attempts: u32,
    backoff: Duration,
    made: u32,
}

impl Tries {
    pub(crate) fn new(retry: Option<Retry>) -> Self {
        let (attempts, backoff) = retry.map_or((1, Duration::ZERO), |retry| (retry.attempts, retry.backoff));
        Tries { attempts, backoff, made: 0 }
    }

    /// After a failed try: waits and says true, or says false when it was the last. `at_least` is a wait that
    /// the other side asked for; it is honoured up to a minute.
    pub(crate) async fn again(&mut self, at_least: Option<Duration>) -> bool {
        self.made += 1;
        if self.made >= self.attempts {
            return false;
        }
        let doubled = self.backoff.saturating_mul(1 << (self.made - 1).min(16));
        tokio::time::sleep(doubled.max(at_least.unwrap_or_default()).min(WAIT_MAX)).await;
        true
    }

    pub(crate) fn made(&self) -> u32 {
        self.made
    }
}
