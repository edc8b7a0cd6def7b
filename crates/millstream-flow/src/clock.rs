//! The two clocks of the engine, and the only places that read them.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// Wall-clock time that advances with tokio's clock, so that tests which pause time see their own time in
/// failures and reports.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    wall: SystemTime,
    start: Instant,
}

impl Clock {
    /// A clock that reads the system's time once, now, and counts on from there.
    pub fn system() -> Self {
        #[expect(clippy::disallowed_methods, reason = "this is the clock component")]
        let wall = SystemTime::now();
        Clock { wall, start: Instant::now() }
    }

    /// A clock that shows `wall` now, and counts on from there.
    pub fn starting_at(wall: SystemTime) -> Self {
        Clock { wall, start: Instant::now() }
    }

    /// The wall-clock time.
    pub fn now(&self) -> SystemTime {
        self.wall + self.start.elapsed()
    }

    /// How long ago the clock was made.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
}

/// Processor time for pacing: how long a quantum really took, also where tokio's clock is paused. It decides
/// when to yield and feeds the stage's busy time, and nothing that a user's test could observe.
///
/// A stage reads it twice a turn, so that what a reading costs shows in every hop: 23 ns by the system's call, 10 by the
/// processor's own counter. That one is used where Linux itself keeps time by it (it has found it steady then, and the
/// same on all processors); everywhere else the system is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tick(u64);

/// Nanoseconds a tick, in units of 2^-32. 0 until it is known.
static SCALE: AtomicU64 = AtomicU64::new(0);

/// The scale of ticks that are nanoseconds.
const NANOSECONDS: u64 = 1 << 32;

impl Tick {
    /// The time now.
    #[inline]
    pub fn now() -> Self {
        match SCALE.load(Ordering::Relaxed) {
            NANOSECONDS => Tick(nanoseconds()),
            0 => first(),
            _ => Tick(counter::read()),
        }
    }

    /// As a number that is not 0, for whoever keeps it where nothing else fits.
    #[inline]
    pub(crate) fn raw(self) -> u64 {
        self.0.max(1)
    }

    /// Of such a number; `None` for 0.
    pub(crate) fn of_raw(raw: u64) -> Option<Self> {
        (raw != 0).then_some(Tick(raw))
    }

    /// How long it is after `earlier`; no time if it is before.
    #[inline]
    pub fn since(self, earlier: Tick) -> Duration {
        Duration::from_nanos(self.nanoseconds_since(earlier))
    }

    /// The same in nanoseconds.
    #[inline]
    pub fn nanoseconds_since(self, earlier: Tick) -> u64 {
        let ticks = self.0.saturating_sub(earlier.0);
        ((u128::from(ticks) * u128::from(SCALE.load(Ordering::Relaxed))) >> 32) as u64
    }
}

/// The system's steady clock.
fn system() -> std::time::Instant {
    #[expect(clippy::disallowed_methods, reason = "a paused clock must not stop a stage from yielding")]
    std::time::Instant::now()
}

/// Nanoseconds since the first reading.
#[cold]
fn nanoseconds() -> u64 {
    static ORIGIN: OnceLock<std::time::Instant> = OnceLock::new();
    let origin = *ORIGIN.get_or_init(system);
    u64::try_from(system().saturating_duration_since(origin).as_nanos()).unwrap_or(u64::MAX)
}

/// The first reading: finds out which clock to read.
#[cold]
fn first() -> Tick {
    static FOUND: OnceLock<u64> = OnceLock::new();
    // All threads take the same scale, whoever was first.
    SCALE.store(*FOUND.get_or_init(|| counter::scale().unwrap_or(NANOSECONDS)), Ordering::Relaxed);
    Tick::now()
}

#[cfg(all(target_arch = "x86_64", target_os = "linux", not(miri)))]
mod counter {
    //! The time-stamp counter (Intel SDM volume 3, 19.17; AMD APM volume 2, 13.2.4).

    use std::time::{Duration, Instant};

    /// How long the counter is watched to learn its rate. Each end is read to some 30 ns: a part in a thousand.
    const WATCHED: Duration = Duration::from_micros(100);

    #[inline(always)]
    #[expect(unsafe_code, reason = "an instruction that only reads")]
    pub(super) fn read() -> u64 {
        // SAFETY: every x86-64 processor has the instruction. An operating system may forbid it; Linux, which keeps its own
        // clock by it where `scale` has let us come here, does so only for programs that ask for it (PR_SET_TSC).
        unsafe { std::arch::x86_64::_rdtsc() }
    }

    /// Nanoseconds a tick in units of 2^-32, if the counter can be trusted.
    pub(super) fn scale() -> Option<u64> {
        let source =
            std::fs::read_to_string("/sys/devices/system/clocksource/clocksource0/current_clocksource");
        if source.ok()?.trim() != "tsc" {
            return None;
        }
        let (began, from) = both();
        let (ended, to) = loop {
            let now = both();
            if now.0 - began >= WATCHED {
                break now;
            }
        };
        let (nanoseconds, ticks) = ((ended - began).as_nanos(), u128::from(to.checked_sub(from)?));
        let scale = u64::try_from((nanoseconds << 32).checked_div(ticks)?).ok()?;
        // From 100 MHz to 100 GHz; what lies without is no counter of time.
        (1 << 25..10 << 32).contains(&scale).then_some(scale).filter(|scale| *scale != super::NANOSECONDS)
    }

    /// Both clocks at the same moment: the closest of a few readings, in case this thread was interrupted.
    fn both() -> (Instant, u64) {
        let readings = [(); 3].map(|()| {
            let before = super::system();
            let ticks = read();
            (super::system() - before, before, ticks)
        });
        let [first, rest @ ..] = readings;
        let (_, moment, ticks) =
            rest.into_iter().fold(first, |best, next| if next.0 < best.0 { next } else { best });
        (moment, ticks)
    }
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux", not(miri))))]
mod counter {
    //! No counter that is known to be steady.

    pub(super) fn read() -> u64 {
        super::nanoseconds()
    }

    pub(super) fn scale() -> Option<u64> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_as_long_as_the_system_says() {
        // This thread may be interrupted between any two readings: each tick is between two of the system's.
        let before = system();
        let tick = Tick::now();
        let began = system();
        while began.elapsed() < Duration::from_millis(20) {}
        let (shortest, ticks) = (began.elapsed(), Tick::now().since(tick));
        let longest = before.elapsed();
        assert!(
            ticks > shortest * 9 / 10 && ticks < longest * 11 / 10,
            "{shortest:?}, {ticks:?}, {longest:?}"
        );
        assert_eq!(tick.since(Tick::now()), Duration::ZERO, "time does not run backwards");
    }
}
