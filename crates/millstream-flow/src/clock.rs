//! The two clocks of the engine, and the only places that read them.

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
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tick(std::time::Instant);

impl Tick {
    #[inline]
    pub(crate) fn now() -> Self {
        #[expect(clippy::disallowed_methods, reason = "a paused clock must not stop a stage from yielding")]
        Tick(std::time::Instant::now())
    }

    #[inline]
    pub(crate) fn since(self, earlier: Tick) -> Duration {
        self.0.saturating_duration_since(earlier.0)
    }
}
