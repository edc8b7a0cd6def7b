//! The real clocks: the one place of this crate that reads them.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// Set for contestants whose instructions are counted: their time is nobody's concern.
pub(crate) const COUNTING: &str = "MILLSTREAM_BENCH_COUNTING";

/// A moment of real time.
#[inline]
pub(crate) fn now() -> Instant {
    #[expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
    Instant::now()
}

/// Lets real time go on, where another process is waited for that tells nobody when it is ready.
#[expect(clippy::disallowed_methods, reason = "other processes are measured by the real clock")]
pub(crate) fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// The processor time of the whole process so far.
///
/// Contestants that keep one thread busy from end to end are measured by it: on an idle machine it equals real
/// time, and on a shared one the others' turns do not count.
pub(crate) fn cpu() -> Duration {
    // What reads the clock here finds the kernel's page by itself, which valgrind hides.
    if std::env::var_os(COUNTING).is_some() {
        return Duration::ZERO;
    }
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Which clock a contestant is measured with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    /// Processor time.
    Cpu,
    /// Real time.
    Wall,
}

/// A clock that runs.
pub(crate) struct Watch {
    by: By,
    wall: Instant,
    cpu: Duration,
}

impl Watch {
    pub(crate) fn start(by: By) -> Self {
        Watch { by, wall: now(), cpu: cpu() }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        match self.by {
            By::Cpu => cpu().saturating_sub(self.cpu),
            By::Wall => now() - self.wall,
        }
    }
}
