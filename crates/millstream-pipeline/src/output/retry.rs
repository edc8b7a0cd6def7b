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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    fn tries(attempts: u32, backoff: Duration) -> Tries {
        Tries::new(Some(model::Retry { attempts, backoff, at: crate::file::place::At::START }))
    }

    /// How long each of the waits of one write takes.
    async fn waits(mut tries: Tries, asked: Option<Duration>) -> Vec<Duration> {
        let mut waits = Vec::new();
        loop {
            let began = Instant::now();
            if !tries.again(asked).await {
                return waits;
            }
            waits.push(began.elapsed());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn waits_grow_from_the_backoff_on() {
        let backoff = Duration::from_secs(1);
        let mut sums = [Duration::ZERO; 4];
        for _ in 0..100 {
            let waits = waits(tries(5, backoff), None).await;
            assert_eq!(waits.len(), 4, "one try more than waits");
            sums.iter_mut().zip(waits).for_each(|(sum, wait)| *sum += wait);
        }
        // Each is chance's to a part.
        assert!(sums[0] <= 110 * backoff, "{sums:?}");
        assert!(sums.windows(2).all(|pair| pair[1] > pair[0] * 3 / 2), "{sums:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_other_side_asks_for_is_waited_up_to_a_minute() {
        for (asked, least) in [(20, 20), (600, 60)] {
            let waits = waits(tries(2, Duration::from_millis(1)), Some(Duration::from_secs(asked))).await;
            let least = Duration::from_secs(least);
            assert!(waits[0] >= least && waits[0] < 2 * least, "{waits:?}");
        }
    }
}
