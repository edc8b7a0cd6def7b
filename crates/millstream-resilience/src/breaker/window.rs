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
    #[inline]
    fn add(&mut self, call: Call) {
        self.calls += 1;
        if call.failed || call.slow {
            self.failures += u64::from(call.failed);
            self.slow += u64::from(call.slow);
        }
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
    Last { ring: Box<[Call]>, next: Place },
}

/// A window of time is this many parts, of which the oldest is forgotten at a time.
const PARTS: usize = 10;
/// From so many calls in one part on, the clock is looked at for every sixteenth good call only: it takes longer than all the rest.
/// The fifteen others count in the part of the last look, so that up to fifteen of more than a thousand may be forgotten early.
const MANY: u64 = 1024;
const BETWEEN_LOOKS: u32 = 15;

/// Where the next call goes, and whether there is one already.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    at: usize,
    full: bool,
}

struct Parts {
    length: Duration,
    parts: [Tally; PARTS],
    /// The part that counts now, and since when.
    newest: usize,
    began: Instant,
    /// Calls since the last look at the clock.
    undated: u32,
}

impl Calls {
    pub(super) fn new(window: Window, now: Instant) -> Self {
        let kept = match window {
            Window::Time(time) => Kept::Time(Parts {
                length: (time / PARTS as u32).max(Duration::from_nanos(1)),
                parts: [Tally::default(); PARTS],
                newest: 0,
                began: now,
                undated: 0,
            }),
            Window::Count(calls) => {
                let ring = vec![Call { failed: false, slow: false }; calls as usize].into();
                Kept::Last { ring, next: Place::default() }
            }
        };
        Calls { total: Tally::default(), kept }
    }

    pub(super) fn clear(&mut self) {
        self.total = Tally::default();
        match &mut self.kept {
            Kept::Time(parts) => parts.parts = [Tally::default(); PARTS],
            Kept::Last { next, .. } => *next = Place::default(),
        }
    }

    /// What counts at this time.
    pub(super) fn at(&mut self, now: Instant) -> Tally {
        if let Kept::Time(parts) = &mut self.kept {
            parts.turn(now, &mut self.total);
        }
        self.total
    }

    /// Adds a call that has ended `now`, if that matters.
    #[inline]
    pub(super) fn add(&mut self, call: Call, now: impl Fn() -> Instant) -> Tally {
        match &mut self.kept {
            Kept::Time(parts) => {
                if parts.must_look(call) {
                    parts.turn(now(), &mut self.total);
                }
                parts.parts[parts.newest].add(call);
            }
            Kept::Last { ring, next } => turn_ring(ring, next, call, &mut self.total),
        }
        self.total.add(call);
        self.total
    }
}

/// Puts a call in the place of the oldest.
fn turn_ring(ring: &mut [Call], next: &mut Place, call: Call, total: &mut Tally) {
    let oldest = std::mem::replace(&mut ring[next.at], call);
    if next.full {
        let mut gone = Tally::default();
        gone.add(oldest);
        total.remove(gone);
    }
    next.at += 1;
    if next.at == ring.len() {
        *next = Place { at: 0, full: true };
    }
}

impl Parts {
    #[inline]
    fn must_look(&mut self, call: Call) -> bool {
        let many = self.parts[self.newest].calls >= MANY;
        self.undated += 1;
        !many || self.undated > BETWEEN_LOOKS || call.failed || call.slow
    }

    /// Forgets what is too long ago.
    #[inline]
    fn turn(&mut self, now: Instant, total: &mut Tally) {
        self.undated = 0;
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
