//! A timer that is made when it is first needed, and used again and again.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// Times that are added to a moment are at most this: longer than any flow lasts, and short enough for any clock.
const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// A user's time, bounded so that it can be added to a moment.
pub(crate) fn bounded(time: Duration) -> Duration {
    time.min(FAR)
}

/// Wakes at a moment that may change. Polled only while upstream has nothing more, so that a busy flow never touches it.
#[derive(Debug, Default)]
pub(crate) struct Timer(Option<Pin<Box<Sleep>>>);

impl Timer {
    /// Ready when `until` has come; else the task is woken then.
    pub(crate) fn poll_until(&mut self, cx: &mut Context<'_>, until: Instant) -> Poll<()> {
        let sleep = self.0.get_or_insert_with(|| Box::pin(sleep_until(until)));
        if sleep.deadline() != until {
            sleep.as_mut().reset(until);
        }
        sleep.as_mut().poll(cx)
    }
}
