//! How many calls there are, how they end, and how long they take.

use std::borrow::Cow;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use millstream_flow::Tick;
use tokio::time::{Instant, sleep};

use crate::behaviour::{Behaviour, Next};
use crate::call::Call;
use crate::error::Error;
use crate::error::ErrorKind;
use crate::message::{About, Request};
use crate::metrics::{Counter, Histogram, MetricKind};

/// Counts calls by how they end, those that are under way, and how long they take; warns while one is slow, before it ends.
///
/// Calls that fail and calls that are dropped are measured like others. A call that never waits is timed by the
/// processor's clock, one that waits by tokio's, which tests can pause.
///
/// ```
/// use millstream_mediator::{Mediator, Timing};
/// use std::time::Duration;
///
/// let builder = Mediator::builder().behaviour(Timing::new().slow(Duration::from_millis(500)));
/// # let _ = builder;
/// ```
#[derive(Clone)]
pub struct Timing {
    slow: Option<Duration>,
    bounds: Arc<[Duration]>,
    one_in: u64,
    stats: Option<Arc<Stats>>,
}

struct Stats {
    begun: Counter,
    ok: Counter,
    failed: [Counter; ErrorKind::WORDS.len()],
    cancelled: Counter,
    slow: Counter,
    durations: Histogram,
}

impl Stats {
    /// All that have ended.
    fn ended(&self) -> u64 {
        let failed: u64 = self.failed.iter().map(Counter::value).sum();
        self.ok.value() + failed + self.cancelled.value()
    }
}

impl Timing {
    /// Times every call, without a warning.
    pub fn new() -> Self {
        Timing { slow: None, bounds: Arc::new(Histogram::BOUNDS), one_in: 1, stats: None }
    }

    /// Warns of a call that takes longer, at that moment if it waits then, else at its end.
    #[must_use]
    pub fn slow(mut self, longer_than: Duration) -> Self {
        self.slow = Some(longer_than);
        self
    }

    /// The histogram's bounds; [`Histogram::BOUNDS`] if they are not said.
    ///
    /// # Panics
    /// If they do not ascend.
    #[must_use]
    pub fn bounds(mut self, bounds: &[Duration]) -> Self {
        assert!(bounds.is_sorted_by(|a, b| a < b), "the bounds of a histogram ascend");
        self.bounds = bounds.into();
        self
    }

    /// Times one in so many of those calls that never wait, which spares two readings of the clock; each stands for so many in
    /// the histogram. All are counted, and those that wait are all timed.
    ///
    /// # Panics
    /// If it is 0.
    #[must_use]
    pub fn sample(mut self, one_in: u64) -> Self {
        assert!(one_in > 0, "one in none is none");
        self.one_in = one_in;
        self
    }
}

impl Default for Timing {
    fn default() -> Self {
        Timing::new()
    }
}

/// Counts a call that is dropped.
struct Underway<'a>(Option<&'a Stats>);

impl Drop for Underway<'_> {
    fn drop(&mut self) {
        if let Some(stats) = self.0 {
            stats.cancelled.add(1);
        }
    }
}

impl Behaviour for Timing {
    fn name(&self) -> Cow<'static, str> {
        match self.slow {
            Some(slow) => format!("timing, slow above {slow:?}").into(),
            None => "timing".into(),
        }
    }

    fn of(&self, about: &About) -> Self {
        let metrics = about.metrics();
        let count = |status| {
            let help = "Calls that have ended, by how.";
            let labels = [("type", about.label()), ("status", status), ("kind", about.kind.word())];
            metrics.counter("mediator_requests_total", help, &labels)
        };
        let labels = [("type", about.label())];
        let help = "How long calls take.";
        let durations = metrics.histogram("mediator_request_duration_seconds", help, &labels, &self.bounds);
        let help = "Calls that took longer than they should.";
        let stats = Arc::new(Stats {
            begun: Counter::default(),
            ok: count("ok"),
            failed: ErrorKind::WORDS.map(count),
            cancelled: count("cancelled"),
            slow: metrics.counter("mediator_slow_requests_total", help, &labels),
            durations,
        });
        let read = stats.clone();
        let help = "Calls that are under way.";
        metrics.read("mediator_active_requests", help, MetricKind::Gauge, &labels, move || {
            read.begun.value().saturating_sub(read.ended()) as f64
        });
        Timing { stats: Some(stats), ..self.clone() }
    }

    #[inline]
    async fn call<R: Request, N: Next<R>>(
        &self,
        call: &Call<'_>,
        request: R,
        next: &N,
    ) -> Result<R::Response, Error> {
        let Some(stats) = self.stats.as_deref() else { return next.call(call, request).await };
        let number = stats.begun.number();
        let timed = self.one_in == 1 || number.is_multiple_of(self.one_in);
        let mut underway = Underway(Some(stats));
        let began = timed.then(Tick::now);
        let mut calling = pin!(next.call(call, request));
        let first = poll_fn(|cx| Poll::Ready(calling.as_mut().poll(cx))).await;
        let (ended, elapsed, stands_for) = match first {
            Poll::Ready(ended) => {
                let elapsed = began.map(|began| Tick::now().since(began));
                // It has blocked its thread, and nobody could warn meanwhile.
                if let (Some(slow), Some(elapsed)) = (self.slow, elapsed)
                    && elapsed > slow
                {
                    warn(call, stats, elapsed);
                }
                (ended, elapsed, self.one_in)
            }
            Poll::Pending => {
                let before = began.map(|began| Tick::now().since(began)).unwrap_or_default();
                let since = Instant::now();
                if let Some(slow) = self.slow {
                    tokio::select! {
                        biased;
                        ended = calling.as_mut() => {
                            underway.0 = None;
                            return stats.end(ended, Some(before + since.elapsed()), 1);
                        }
                        () = sleep(slow.saturating_sub(before)) => warn(call, stats, slow),
                    }
                }
                (calling.await, Some(before + since.elapsed()), 1)
            }
        };
        underway.0 = None;
        stats.end(ended, elapsed, stands_for)
    }
}

impl Stats {
    #[inline]
    fn end<T>(&self, ended: Result<T, Error>, elapsed: Option<Duration>, calls: u64) -> Result<T, Error> {
        match &ended {
            Ok(_) => self.ok.add(1),
            Err(error) => self.failed[error.kind().index()].add(1),
        }
        if let Some(elapsed) = elapsed {
            self.durations.observe_many(elapsed, calls);
        }
        ended
    }
}

#[cold]
fn warn(call: &Call<'_>, stats: &Stats, elapsed: Duration) {
    stats.slow.add(1);
    let About { name, handler, .. } = &**call.about();
    tracing::warn!(message_type = %name, %handler, correlation = %call.correlation(), ?elapsed, "a call is slow");
}

impl fmt::Debug for Timing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timing")
            .field("slow", &self.slow)
            .field("one_in", &self.one_in)
            .finish_non_exhaustive()
    }
}
