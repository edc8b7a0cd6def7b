//! Rate limits that somebody has waited for.

use std::time::Duration;

use millstream_resilience::{Rate, RateLimiter};
use tokio::time::{sleep, timeout};

#[tokio::test(start_paused = true)]
async fn a_wait_that_was_given_up_leaves_nothing_beyond_the_burst() {
    let limiter = RateLimiter::new(Rate::new(100_000, Duration::from_secs(1)));
    limiter.acquire(300_000).await.unwrap(); // owed for three seconds
    assert!(
        timeout(Duration::from_millis(10), limiter.acquire(1)).await.is_err(),
        "somebody waits for a while"
    );
    sleep(Duration::from_secs(3600)).await;
    assert_eq!((0..1000).filter(|_| limiter.try_acquire(1).is_ok()).count(), 1);
}
