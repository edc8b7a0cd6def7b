//! The calls that a breaker judges by, counted: adding one costs the same however many there are, and allocates nothing.

use std::time::Duration;

use tokio::time::Instant;

use super::settings::Window;

/// How many calls ended, and how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) calls: u64,
    pub(super) failures: u64,
    pub(super) slow: u64,
}

impl Tally {
    fn add(&mut self, call: Call) {
        self.calls += 1;
        self.failures += u64::from(call.failed);
        self.slow += u64::from(call.slow);
    }

    fn remove(&mut self, other: Tally) {
        self.calls -= other.calls;
        self.failures -= other.failures;
        self.slow -= other.slow;
    }
}

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) failed: bool,
    pub(super) slow: bool,
}

pub(super) struct Calls {
    total: Tally,
    kept: Kept,
}

#[expect(clippy::large_enum_variant, reason = "a breaker has one, and looks at it with every call")]
enum Kept {
    Time(Parts),
    Last { ring: Box<[Call]>, next: usize },
}

/// A window of time is this many parts, of which the oldest is forgotten at a time.
const PARTS: usize = 10;

struct Parts {
    length: Duration,
    parts: [Tally; PARTS],
    /// The part that counts now, and since when.
    newest: usize,
    began: Instant,
}

impl Calls {
    pub(super) fn new(window: Window, now: Instant) -> Self {
        let kept = match window {
            Window::Time(time) => Kept::Time(Parts {
                length: (time / PARTS as u32).max(Duration::from_nanos(1)),
                parts: [Tally::default(); PARTS],
                newest: 0,
                began: now,
            }),
            Window::Count(calls) => {
                let ring = vec![Call { failed: false, slow: false }; calls as usize].into();
                Kept::Last { ring, next: 0 }
            }
        };
        Calls { total: Tally::default(), kept }
    }

    pub(super) fn clear(&mut self) {
        self.total = Tally::default();
        match &mut self.kept {
            Kept::Time(parts) => parts.parts = [Tally::default(); PARTS],
            Kept::Last { next, .. } => *next = 0,
        }
    }

    /// What counts at this time.
    pub(super) fn at(&mut self, now: Instant) -> Tally {
        if let Kept::Time(parts) = &mut self.kept {
            parts.turn(now, &mut self.total);
        }
        self.total
    }

    pub(super) fn add(&mut self, call: Call, now: Instant) -> Tally {
        match &mut self.kept {
            Kept::Time(parts) => {
                parts.turn(now, &mut self.total);
                parts.parts[parts.newest].add(call);
            }
            Kept::Last { ring, next } => {
                let length = ring.len();
                let place = &mut ring[*next % length];
                if *next >= length {
                    let mut oldest = Tally::default();
                    oldest.add(*place);
                    self.total.remove(oldest);
                }
                *place = call;
                *next += 1;
            }
        }
        self.total.add(call);
        self.total
    }
}

impl Parts {
    /// Forgets what is too long ago.
    #[inline]
    fn turn(&mut self, now: Instant, total: &mut Tally) {
        let age = now.saturating_duration_since(self.began);
        if age >= self.length {
            self.forget(age, now, total);
        }
    }

    #[cold]
    fn forget(&mut self, age: Duration, now: Instant, total: &mut Tally) {
        let passed = age.as_nanos() / self.length.as_nanos();
        for _ in 0..passed.min(PARTS as u128) {
            self.newest = (self.newest + 1) % PARTS;
            total.remove(std::mem::take(&mut self.parts[self.newest]));
        }
        // The parts keep their rhythm, unless so much time has passed that nobody could tell.
        self.began = match u32::try_from(passed).ok().and_then(|passed| self.length.checked_mul(passed)) {
            Some(time) => self.began + time,
            None => now,
        };
    }
}
