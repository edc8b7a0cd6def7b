//! When a run has let go of what it held.
//!
//! A write that is under way on a thread for blocking work cannot be cancelled: it ends after the task that began it
//! was dropped. Until then the files and their locks are in use, and a next run would be refused.

use std::convert::Infallible;
use tokio::sync::mpsc;

/// Held by what keeps a file locked, for as long as it does.
#[derive(Debug, Clone)]
pub(crate) struct Hold(#[expect(dead_code, reason = "its drop is what counts")] mpsc::Sender<Infallible>);

/// Waits for every [`Hold`] of a run.
#[derive(Debug)]
pub(crate) struct Released(mpsc::Receiver<Infallible>);

pub(crate) fn hold() -> (Hold, Released) {
    let (sender, receiver) = mpsc::channel(1);
    (Hold(sender), Released(receiver))
}

impl Released {
    /// Returns when the last hold is dropped.
    pub(crate) async fn wait(&mut self) {
        // Nothing is ever sent: it ends when all senders are gone.
        let None = self.0.recv().await;
    }
}
