//! The time of day.

use std::time::SystemTime;

use tokio::time::Instant;

/// The time of day, as it goes on by tokio's clock: a test that pauses that pauses this.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    at: Instant,
    time: SystemTime,
}

impl Clock {
    pub(crate) fn new() -> Clock {
        #[expect(clippy::disallowed_methods, reason = "this is the clock component of this crate")]
        let time = SystemTime::now();
        Clock { at: Instant::now(), time }
    }

    pub(crate) fn now(&self) -> SystemTime {
        self.time + self.at.elapsed()
    }
}
