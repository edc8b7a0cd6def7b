//! Times that are added to a moment, and moments that are looked up only when needed.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::time::Duration;

use tokio::time::Instant;

/// Longer than any program runs, and short enough for any clock.
const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// A user's time, bounded so that it can be added to a moment.
pub fn bounded(time: Duration) -> Duration {
    time.min(FAR)
}

/// The moment so much later, or later than any program runs.
pub fn later(now: Instant, time: Duration) -> Instant {
    now + bounded(time)
}

/// Waits for `future`, and notes in `began` when it first had to wait: what is ready at once has taken no time, and costs no
/// look at the clock.
pub async fn noting<F: Future>(began: &mut Option<Instant>, mut future: Pin<&mut F>) -> F::Output {
    poll_fn(|cx| {
        let poll = future.as_mut().poll(cx);
        if poll.is_pending() {
            began.get_or_insert_with(Instant::now);
        }
        poll
    })
    .await
}
