//! Trying an output again.

use std::time::Duration;

use millstream_resilience::{Attempts, Backoff, Class, Retry};

use crate::file::model;

/// The longest wait between two tries.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// How often a write is tried; counts the tries of one write.
#[derive(Debug, Clone)]
pub(crate) struct Tries {
    retry: Retry,
    attempts: Attempts,
}

impl Tries {
    pub(crate) fn new(retry: Option<model::Retry>) -> Self {
        let retry = retry.map_or_else(Retry::never, |retry| {
            let backoff = Backoff::exponential(retry.backoff).max(WAIT_MAX);
            Retry::new(retry.attempts).backoff(backoff).retry_after_max(WAIT_MAX)
        });
        Tries { attempts: retry.attempts(None), retry }
    }

    /// After a failed try: waits and says true, or says false when it was the last. `at_least` is a wait that
    /// the other side asked for; it is honoured up to a minute.
    pub(crate) async fn again(&mut self, at_least: Option<Duration>) -> bool {
        let class = Class::Throttled { retry_after: at_least.map(|wait| wait.min(WAIT_MAX)) };
        let Ok(delay) = self.attempts.failed(&self.retry, class) else { return false };
        tokio::time::sleep(delay).await;
        true
    }

    pub(crate) fn made(&self) -> u32 {
        self.attempts.made()
    }
}
