//! A timer that is made when it is first needed, and used again and again.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

pub(crate) use millstream_resilience::{bounded, later};
use tokio::time::{Instant, Sleep, sleep_until};

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
