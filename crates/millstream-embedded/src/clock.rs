//! The broker's clock: wall time that tests can pause.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// Milliseconds since 1970, read from the system once and carried on by tokio's clock: it never jumps while the
/// broker is open, and a test that pauses the runtime's clock moves TTLs, delays and leases with it.
#[derive(Debug, Clone)]
pub(crate) struct Clock {
    base: u64,
    start: Instant,
}

/// A time that never comes.
pub(crate) const NEVER: u64 = u64::MAX;

impl Clock {
    #[expect(
        clippy::disallowed_methods,
        reason = "due times outlive the process: the one place that reads wall time"
    )]
    pub(crate) fn start() -> Clock {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Clock { base: millis(now), start: Instant::now() }
    }

    /// Milliseconds since 1970.
    pub(crate) fn now(&self) -> u64 {
        self.base.saturating_add(millis(self.start.elapsed()))
    }

    /// The runtime's instant at which [`now`](Clock::now) reaches `time`; far away for [`NEVER`].
    pub(crate) fn instant(&self, time: u64) -> Instant {
        // Thirty years: tokio's own notion of far away.
        let ahead = time.saturating_sub(self.base).min(86_400_000 * 365 * 30);
        self.start + Duration::from_millis(ahead)
    }
}

/// Whole milliseconds, saturating.
pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Milliseconds since 1970 of a system time; 0 for earlier ones.
pub(crate) fn unix_millis(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, millis)
}

/// The system time of milliseconds since 1970.
pub(crate) fn system_time(unix_millis: u64) -> SystemTime {
    UNIX_EPOCH.checked_add(Duration::from_millis(unix_millis)).unwrap_or(UNIX_EPOCH)
}
