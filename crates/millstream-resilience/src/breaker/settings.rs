//! When a circuit breaker opens, for how long, and what closes it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::Backoff;

/// When a [`CircuitBreaker`](super::CircuitBreaker) opens, for how long, and what closes it.
///
/// By default it opens when half of at least 20 calls of the last ten seconds have failed, is open for 30 s, and closes when
/// three calls have succeeded after that.
#[derive(Debug, Clone, PartialEq)]
pub struct BreakerSettings {
    pub(super) name: Arc<str>,
    pub(super) failure_rate: f64,
    pub(super) slow: Option<Slow>,
    pub(super) calls_min: u32,
    pub(super) window: Window,
    pub(super) pause: Backoff,
    pub(super) probes: u32,
    pub(super) probe_time: Option<Duration>,
}

/// Which calls are slow, and how many may be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Slow {
    pub(super) longer_than: Duration,
    pub(super) rate: f64,
}

/// Which calls count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Window {
    /// Those that ended in the last so-and-so long, which is forgotten a tenth at a time. Where more than a thousand fall into one
    /// tenth, up to fifteen good ones may be forgotten a little early, for the sake of fewer looks at the clock.
    Time(Duration),
    /// The last so many.
    Count(u32),
}

/// The longest window of calls: what it remembers takes a byte each.
const COUNT_MAX: u32 = 1 << 20;

impl Default for BreakerSettings {
    fn default() -> Self {
        BreakerSettings {
            name: "circuit breaker".into(),
            failure_rate: 0.5,
            slow: None,
            calls_min: 20,
            window: Window::Time(Duration::from_secs(10)),
            pause: Backoff::fixed(Duration::from_secs(30)),
            probes: 3,
            probe_time: None,
        }
    }
}

fn check_rate(rate: f64) {
    assert!(rate > 0.0 && rate <= 1.0, "a rate of calls is above 0 and at most 1, not {rate}");
}

impl BreakerSettings {
    /// What errors and events call it.
    #[must_use]
    pub fn name(mut self, name: impl Into<Arc<str>>) -> Self {
        self.name = name.into();
        self
    }

    /// Opens when this part of the calls has failed; 0.5 by default.
    ///
    /// # Panics
    /// If `rate` is not above 0 and at most 1.
    #[must_use]
    pub fn failure_rate(mut self, rate: f64) -> Self {
        check_rate(rate);
        self.failure_rate = rate;
        self
    }

    /// Opens also when this part of the calls, whether they failed or not, took longer than that; and again when this part of the probes did. By
    /// default none is too slow.
    /// The clock is read for it once more a call.
    ///
    /// # Panics
    /// If `rate` is not above 0 and at most 1.
    #[must_use]
    pub fn slow_rate(mut self, rate: f64, longer_than: Duration) -> Self {
        check_rate(rate);
        self.slow = Some(Slow { longer_than, rate });
        self
    }

    /// Opens only when there are so many calls to judge by; 20 by default.
    ///
    /// # Panics
    /// If `calls` is 0.
    #[must_use]
    pub fn calls_min(mut self, calls: u32) -> Self {
        assert!(calls > 0, "of no calls none has failed");
        self.calls_min = calls;
        self
    }

    /// Judges by the calls of so long; ten seconds by default.
    ///
    /// # Panics
    /// If `window` is zero.
    #[must_use]
    pub fn time_window(mut self, window: Duration) -> Self {
        assert!(!window.is_zero(), "in no time nothing fails");
        self.window = Window::Time(window);
        self
    }

    /// Judges by the last so many calls.
    ///
    /// # Panics
    /// If `calls` is 0, or above 1,048,576.
    #[must_use]
    pub fn count_window(mut self, calls: u32) -> Self {
        assert!((1..=COUNT_MAX).contains(&calls), "a window is of 1 to {COUNT_MAX} calls, not {calls}");
        self.window = Window::Count(calls);
        self
    }

    /// How long it is open before it tries again; 30 s by default.
    ///
    /// # Panics
    /// If `pause` is zero.
    #[must_use]
    pub fn pause(mut self, pause: Duration) -> Self {
        assert!(!pause.is_zero(), "a pause of no time is none");
        self.pause = Backoff::fixed(pause);
        self
    }

    /// The same, longer each time that a try has failed.
    ///
    /// # Panics
    /// If the first is zero.
    #[must_use]
    pub fn pauses(mut self, pauses: Backoff) -> Self {
        assert!(!pauses.nominal(1).is_zero(), "a pause of no time is none");
        self.pause = pauses;
        self
    }

    /// How many calls it tries after a pause, at most so many at once, all of which must succeed; 3 by default. One that fails
    /// begins the next pause.
    ///
    /// # Panics
    /// If `probes` is 0.
    #[must_use]
    pub fn probes(mut self, probes: u32) -> Self {
        assert!(probes > 0, "without a try nobody knows");
        self.probes = probes;
        self
    }

    /// How long those calls may take, from when the first of them began, before it counts as failed that they have not ended; as
    /// long as the first pause by default.
    ///
    /// # Panics
    /// If `time` is zero.
    #[must_use]
    pub fn probe_time(mut self, time: Duration) -> Self {
        assert!(!time.is_zero(), "nothing can be tried in no time");
        self.probe_time = Some(time);
        self
    }
}

/// `opens at 50% failures of at least 20 calls in 10s; 30s each time, then 3 probes`
impl fmt::Display for BreakerSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "opens at {}% failures", self.failure_rate * 100.0)?;
        if let Some(Slow { longer_than, rate }) = self.slow {
            write!(f, " or {}% calls above {longer_than:?}", rate * 100.0)?;
        }
        // A window of fewer calls never has more.
        let least = match self.window {
            Window::Count(calls) => self.calls_min.min(calls),
            _ => self.calls_min,
        };
        write!(f, " of at least {least} ")?;
        match self.window {
            Window::Time(time) => write!(f, "in {time:?}")?,
            Window::Count(calls) => write!(f, "of the last {calls}")?,
        }
        write!(f, "; open {}, then {} probes", self.pause, self.probes)
    }
}
