//! How many calls there are, how they end, and how long they take.

use std::borrow::Cow;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use millstream_flow::Tick;
use tokio::time::{Instant, sleep};

use crate::behaviour::{Behaviour, Next};
use crate::call::Call;
use crate::error::{Error, ErrorKind};
use crate::message::{About, Request};
use crate::metrics::{Calls, Counter, Histogram, MetricKind, Rare, nanoseconds};

/// Counts calls by how they end, those that are under way, and how long they take; warns while one is slow, before it ends.
///
/// Calls that fail and calls that are dropped are measured like others. A call that never waits is timed by the
/// processor's clock, one that waits by tokio's, which tests can pause. Of several around one handler the innermost is shown;
/// the others only warn.
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
    calls: Arc<Calls>,
    /// By how they ended: most handlers know one or two ways to fail.
    otherwise: Rare<{ ErrorKind::ENDS.len() }>,
    slow: Counter,
}

impl Stats {
    fn new(about: &About, bounds: &[Duration]) -> Self {
        let (metrics, labels) = (about.metrics(), [("type", about.label())]);
        let help = "Calls that took longer than they should.";
        let slow = metrics.counter("mediator_slow_requests_total", help, &labels);
        let (name, help) = ("mediator_requests_total", "Calls that have ended, by how.");
        if !about.takes(name) {
            // What it counts is shown already.
            return Stats { calls: Arc::new(Calls::new(bounds)), otherwise: Rare::default(), slow };
        }
        let ended = |status| [("type", about.label()), ("status", status), ("kind", about.kind.word())];
        let otherwise = metrics.rare(name, help, &ended(""), "status", ErrorKind::ENDS);
        let duration = ("mediator_request_duration_seconds", "How long calls take.");
        let calls = metrics.calls(duration.0, duration.1, &labels, bounds);
        // The calls alone: what reads them belongs to the metrics, which belong to the rest.
        let (ok, active) = (calls.clone(), calls.clone());
        metrics.read(name, help, MetricKind::Counter, &ended("ok"), move || ok.ok() as f64);
        let help = "Calls that are under way.";
        metrics.read("mediator_active_requests", help, MetricKind::Gauge, &labels, move || {
            active.underway() as f64
        });
        Stats { calls, otherwise, slow }
    }

    #[inline]
    fn end<T>(&self, ended: &Result<T, Error>, took: Option<u64>, stands_for: u64) {
        self.calls.end(ended.is_ok(), took, stands_for);
        if let Err(error) = ended {
            self.otherwise.add(error.kind().index(), 1);
        }
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

/// Counts a call that is dropped, also by its own panic.
struct Underway<'a> {
    stats: &'a Stats,
    /// The call is at work, and not another one of its thread.
    inside: bool,
}

impl Underway<'_> {
    #[inline]
    fn poll<F: Future>(&mut self, call: Pin<&mut F>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.inside = true;
        let polled = call.poll(cx);
        self.inside = false;
        polled
    }
}

impl Drop for Underway<'_> {
    fn drop(&mut self) {
        self.stats.calls.cancel();
        // What a behaviour panics with comes by here, and is an error further out.
        let how = if self.inside { ErrorKind::Panicked.index() } else { ErrorKind::CANCELLED };
        self.stats.otherwise.add(how, 1);
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
        Timing { stats: Some(Arc::new(Stats::new(about, &self.bounds))), ..self.clone() }
    }

    #[expect(
        clippy::manual_async_fn,
        reason = "an async function's future moves all that it is given once more"
    )]
    #[inline]
    fn call<R: Request, N: Next<R>>(
        &self,
        call: &Call<'_>,
        request: R,
        next: &N,
    ) -> impl Future<Output = Result<R::Response, Error>> + Send {
        async move {
            let Some(stats) = self.stats.as_deref() else { return next.call(call, request).await };
            let number = stats.calls.begin();
            let mut underway = Underway { stats, inside: false };
            let began = (self.one_in == 1 || number.is_multiple_of(self.one_in)).then(Tick::now);
            underway.inside = true;
            let mut calling = pin!(next.call(call, request));
            underway.inside = false;
            let first = poll_fn(|cx| Poll::Ready(underway.poll(calling.as_mut(), cx))).await;
            let took = began.map(|began| Tick::now().nanoseconds_since(began));
            let ended = match first {
                Poll::Ready(ended) => {
                    // It has blocked its thread, and nobody could warn meanwhile.
                    if let (Some(slow), Some(took)) = (self.slow, took)
                        && u128::from(took) > slow.as_nanos()
                    {
                        warn(call, stats, Duration::from_nanos(took));
                    }
                    stats.end(&ended, took, self.one_in);
                    ended
                }
                Poll::Pending => {
                    let (before, since) = (Duration::from_nanos(took.unwrap_or(0)), Instant::now());
                    // In a box, so that calls that never wait need no room for it.
                    let mut late = self.slow.map(|slow| Box::pin(sleep(slow.saturating_sub(before))));
                    let ended = poll_fn(|cx| {
                        let poll = underway.poll(calling.as_mut(), cx);
                        if poll.is_pending()
                            && let Some(sleeping) = &mut late
                            && sleeping.as_mut().poll(cx).is_ready()
                        {
                            late = None;
                            warn(call, stats, before + since.elapsed());
                        }
                        poll
                    });
                    let ended = ended.await;
                    let took = before + since.elapsed();
                    // It came when it was late already, and nobody has looked since it waited.
                    if late.is_some() && self.slow.is_some_and(|slow| took > slow) {
                        warn(call, stats, took);
                    }
                    stats.end(&ended, Some(nanoseconds(took)), 1);
                    ended
                }
            };
            std::mem::forget(underway);
            ended
        }
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
