//! SIGINT, SIGTERM and SIGHUP.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::failure::Failure;

/// The signals that ask a process to end. Once listened to, they no longer end it by themselves.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// `None` when a SIGHUP is not for this.
    hangup: Option<Signal>,
}

impl Signals {
    /// SIGINT, SIGTERM, and SIGHUP, by which a terminal or a connection says that it has gone; under `nohup` that is to change
    /// nothing, and does not.
    pub(crate) fn new() -> Result<Signals, Failure> {
        let hangup = if hangup_is_ignored() { None } else { Some(listen(SignalKind::hangup())?) };
        Ok(Signals { hangup, ..Signals::without_hangup()? })
    }

    /// SIGINT and SIGTERM, where a SIGHUP means something else: see [`Hangups`].
    pub(crate) fn without_hangup() -> Result<Signals, Failure> {
        Ok(Signals {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: None,
        })
    }

    /// The number of the next signal. A SIGHUP counts only as the first of all: a terminal that goes sends one, the shell in it
    /// another, and the second signal is one that somebody means.
    ///
    /// # Cancel safety
    /// A signal that comes while nobody waits is kept for the next call.
    pub(crate) async fn next(&mut self) -> u8 {
        let number = tokio::select! {
            Some(()) = self.interrupt.recv() => 2,
            Some(()) = self.terminate.recv() => 15,
            Some(()) = received(&mut self.hangup) => 1,
            else => std::future::pending().await,
        };
        // Still listened to, by the process: it is not ended by the next one.
        self.hangup = None;
        number
    }
}

async fn received(signal: &mut Option<Signal>) -> Option<()> {
    signal.as_mut()?.recv().await
}

/// SIGHUP, the signal that asks a process to read its configuration again. Once listened to, it no longer ends the process.
pub(crate) struct Hangups(Signal);

impl Hangups {
    pub(crate) fn new() -> Result<Hangups, Failure> {
        listen(SignalKind::hangup()).map(Hangups)
    }

    /// Waits for the next one. Of several that come while nobody waits the last is kept.
    ///
    /// # Cancel safety
    /// None is lost.
    pub(crate) async fn next(&mut self) {
        if self.0.recv().await.is_none() {
            std::future::pending().await
        }
    }
}

fn listen(kind: SignalKind) -> Result<Signal, Failure> {
    signal(kind).map_err(|error| Failure::of("cannot listen to signals", &error))
}

/// Whether who started this process had it ignore SIGHUP, as `nohup` does. Linux tells; elsewhere it is not known.
fn hangup_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    // A bit for each signal, from 1.
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}
