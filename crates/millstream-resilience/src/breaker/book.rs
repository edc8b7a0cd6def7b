//! What a breaker knows and decides, without a clock: the time goes in, changes come out.

use std::time::Duration;

use tokio::time::Instant;

use super::event::{BreakerState, Cause, Mode};
use super::settings::{BreakerSettings, Slow, Window};
use super::window::{Call, Calls, Tally};
use crate::backoff::Delays;
use crate::clock::later;

pub(super) struct Book {
    pub(super) settings: BreakerSettings,
    pub(super) mode: Mode,
    phase: Phase,
    /// Which of its phases it is in, counted: results of calls of another do not count.
    pub(super) era: u64,
    pub(super) since: Instant,
    calls: Calls,
    /// Of the pauses since it was closed.
    pauses: Delays,
    pub(super) opened: u64,
    pub(super) rejected: u64,
    /// All calls that ended, and those of them that failed.
    pub(super) ended: u64,
    pub(super) failed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Closed,
    Open {
        until: Option<Instant>,
    },
    HalfOpen {
        running: u32,
        succeeded: u32,
        /// Those of them that took too long.
        slow: u32,
        /// When it counts as failed that those that run have not ended.
        until: Instant,
    },
}

/// Whether a call may be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    /// Yes; its result is of this era.
    Now(u64),
    /// No: ask again at this time, or when something has changed.
    NotBefore(Option<Instant>),
}

/// How a call ended that was admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    Counted(Call),
    /// It says nothing.
    Ignored,
}

/// What has happened, for whoever has to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// It is in another state now.
    State { from: BreakerState, cause: Cause },
    /// A place for a probe is free again.
    Place,
}

impl Book {
    pub(super) fn new(mut settings: BreakerSettings, now: Instant) -> Self {
        if let Window::Count(calls) = settings.window {
            settings.calls_min = settings.calls_min.min(calls);
        }
        Book {
            calls: Calls::new(settings.window, now),
            pauses: settings.pause.delays(),
            settings,
            mode: Mode::Automatic,
            phase: Phase::Closed,
            era: 0,
            since: now,
            opened: 0,
            rejected: 0,
            ended: 0,
            failed: 0,
        }
    }

    pub(super) fn state(&self) -> BreakerState {
        match self.phase {
            Phase::Closed => BreakerState::Closed,
            Phase::Open { .. } => BreakerState::Open,
            Phase::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    /// How long it stays open, if it is.
    pub(super) fn opens_in(&self, now: Instant) -> Option<Duration> {
        match self.phase {
            Phase::Open { until } => until.map(|until| until.saturating_duration_since(now)),
            _ => None,
        }
    }

    pub(super) fn tally(&mut self, now: Instant) -> Tally {
        self.calls.at(now)
    }

    pub(super) fn admit(&mut self, now: Instant) -> (Admission, Option<Change>) {
        let mut change = None;
        match self.phase {
            Phase::Open { until: Some(until) } if until <= now => {
                let phase = Phase::HalfOpen { running: 0, succeeded: 0, slow: 0, until: now };
                change = Some(self.turn(phase, Cause::PauseOver, now));
            }
            Phase::HalfOpen { running, until, .. } if until <= now && running > 0 => {
                change = Some(self.open(Cause::ProbesHung, now));
            }
            _ => {}
        }
        (self.place(now), change)
    }

    fn place(&mut self, now: Instant) -> Admission {
        let (era, probes) = (self.era, self.settings.probes);
        let probe_time = self.settings.probe_time.unwrap_or(self.settings.pause.nominal(1));
        match &mut self.phase {
            Phase::Closed => Admission::Now(era),
            Phase::HalfOpen { running, succeeded, until, .. } if *running + *succeeded < probes => {
                if *running == 0 {
                    *until = later(now, probe_time);
                }
                *running += 1;
                Admission::Now(era)
            }
            Phase::HalfOpen { until, .. } => Admission::NotBefore(Some(*until)),
            Phase::Open { until } => Admission::NotBefore(*until),
        }
    }

    /// A call that was admitted in that era has ended.
    #[inline]
    pub(super) fn end(&mut self, era: u64, ended: Ended, now: impl Fn() -> Instant) -> Option<Change> {
        if let Ended::Counted(call) = ended {
            self.ended += 1;
            self.failed += u64::from(call.failed);
        }
        if era != self.era {
            return None;
        }
        match (&mut self.phase, ended) {
            (Phase::Closed, Ended::Counted(call)) => self.count(call, now),
            _ => self.end_other(ended, now()),
        }
    }

    #[cold]
    fn end_other(&mut self, ended: Ended, now: Instant) -> Option<Change> {
        match (&mut self.phase, ended) {
            (Phase::HalfOpen { .. }, Ended::Counted(call)) if call.failed => {
                Some(self.open(Cause::ProbeFailed, now))
            }
            (Phase::HalfOpen { running, succeeded, slow, .. }, Ended::Counted(call)) => {
                *running -= 1;
                *succeeded += 1;
                *slow += u32::from(call.slow);
                let (calls, slow) = (u64::from(*succeeded), u64::from(*slow));
                if *succeeded < self.settings.probes {
                    return None;
                }
                Some(match self.settings.slow {
                    Some(Slow { rate, .. }) if slow as f64 >= rate * calls as f64 => {
                        self.open(Cause::SlowRate { slow, calls }, now)
                    }
                    _ => self.close(Cause::ProbesSucceeded, now),
                })
            }
            (Phase::HalfOpen { running, .. }, Ended::Ignored) => {
                *running -= 1;
                Some(Change::Place)
            }
            (Phase::Closed | Phase::Open { .. }, _) => None,
        }
    }

    #[inline]
    fn count(&mut self, call: Call, now: impl Fn() -> Instant) -> Option<Change> {
        if self.mode == Mode::Disabled {
            return None;
        }
        let Tally { calls, failures, slow } = self.calls.add(call, &now);
        if failures + slow == 0 || self.mode != Mode::Automatic || calls < u64::from(self.settings.calls_min)
        {
            return None;
        }
        if failures as f64 >= self.settings.failure_rate * calls as f64 {
            return Some(self.open(Cause::FailureRate { failures, calls }, now()));
        }
        match self.settings.slow {
            Some(Slow { rate, .. }) if slow as f64 >= rate * calls as f64 => {
                Some(self.open(Cause::SlowRate { slow, calls }, now()))
            }
            _ => None,
        }
    }

    pub(super) fn open(&mut self, cause: Cause, now: Instant) -> Change {
        let pause = self.pauses.next_delay();
        self.turn(Phase::Open { until: Some(later(now, pause)) }, cause, now)
    }

    fn close(&mut self, cause: Cause, now: Instant) -> Change {
        self.pauses.reset();
        self.turn(Phase::Closed, cause, now)
    }

    /// By hand.
    pub(super) fn set(&mut self, mode: Mode, now: Instant) -> Change {
        self.mode = mode;
        match mode {
            Mode::ForcedOpen => self.turn(Phase::Open { until: None }, Cause::Manual, now),
            Mode::Automatic | Mode::ForcedClosed | Mode::Disabled => self.close(Cause::Manual, now),
        }
    }

    fn turn(&mut self, phase: Phase, cause: Cause, now: Instant) -> Change {
        let from = self.state();
        self.phase = phase;
        self.era += 1;
        self.since = now;
        self.calls.clear();
        self.opened += u64::from(self.state() == BreakerState::Open);
        Change::State { from, cause }
    }
}
