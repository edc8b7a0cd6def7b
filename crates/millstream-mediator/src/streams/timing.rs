//! How fast streams flow.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use millstream_flow::Pipe;
use millstream_resilience::later;
use tokio::time::{Instant, sleep_until};

use crate::call::Call;
use crate::error::{Error, ErrorKind};
use crate::message::{About, StreamRequest};
use crate::metrics::{Counter, Histogram, MetricKind, Metrics, Rare, nanoseconds};
use crate::stream::progress::{Ended, Progress, Task, Watch, Watched, per_second};
use crate::stream::{StreamBehaviour, StreamNext};

mod window;

use window::Window;

/// Counts streams, items and how they end, and shows throughput and latency of each interval; warns by the clock, whether
/// items come or not, of a first item that is late, a throughput that is low, and a stream that takes too long.
///
/// Throughput and latency are those of all open streams of a type together, in the last interval, and 0 once an interval has passed
/// without any; the latency is the mean time that an item was waited for. The last stream to end shows what there was of its
/// interval, so that streams that are shorter are seen, too. Time before a stream's first item is asked for is nobody's. Of
/// several around one type the innermost is shown; the others only warn.
///
/// ```
/// use millstream_mediator::{Mediator, StreamTiming};
/// use std::time::Duration;
///
/// let timing = StreamTiming::new()
///     .first_item(Duration::from_secs(5))
///     .throughput(10.0)
///     .interval(Duration::from_secs(30))
///     .total(Duration::from_secs(300))
///     .item_bounds(&[Duration::from_millis(1), Duration::from_millis(10), Duration::from_secs(1)]);
/// let builder = Mediator::builder().stream_behaviour(timing);
/// # let _ = builder;
/// ```
#[derive(Debug, Clone)]
pub struct StreamTiming {
    first_item: Option<Duration>,
    throughput: Option<f64>,
    interval: Duration,
    total: Option<Duration>,
    bounds: Arc<[Duration]>,
    item_bounds: Arc<[Duration]>,
    stats: Option<Arc<Stats>>,
}

#[derive(Debug)]
struct Stats {
    opened: Counter,
    items: Counter,
    ok: Counter,
    otherwise: Rare<{ ErrorKind::ENDS.len() }>,
    /// Nanoseconds of waiting for items.
    waited: Counter,
    window: Window,
    durations: Histogram,
    first_items: Histogram,
    waits: Histogram,
    warnings: [Counter; 3],
}

const WARNINGS: [&str; 3] = ["first_item", "throughput", "total"];

impl StreamTiming {
    /// No warnings, and an interval of 10 s.
    pub fn new() -> Self {
        StreamTiming {
            first_item: None,
            throughput: None,
            interval: Duration::from_secs(10),
            total: None,
            bounds: Arc::new(Histogram::LONG_BOUNDS),
            item_bounds: Arc::new(Histogram::BOUNDS),
            stats: None,
        }
    }

    /// Warns if the first item takes longer, from when somebody asks for it.
    #[must_use]
    pub fn first_item(mut self, within: Duration) -> Self {
        self.first_item = Some(within);
        self
    }

    /// Warns of an interval with fewer items a second, in which somebody waited for items at its end.
    #[must_use]
    pub fn throughput(mut self, items_per_second: f64) -> Self {
        self.throughput = Some(items_per_second);
        self
    }

    /// How long the intervals are of which throughput and latency are shown; 10 s if it is not said.
    ///
    /// # Panics
    /// If it is zero.
    #[must_use]
    pub fn interval(mut self, interval: Duration) -> Self {
        assert!(!interval.is_zero(), "in no time nothing flows");
        self.interval = interval;
        self
    }

    /// Warns if the stream takes longer.
    #[must_use]
    pub fn total(mut self, within: Duration) -> Self {
        self.total = Some(within);
        self
    }

    /// The bounds of the histogram of whole streams; [`Histogram::LONG_BOUNDS`] if they are not said.
    ///
    /// # Panics
    /// If they do not ascend.
    #[must_use]
    pub fn bounds(mut self, bounds: &[Duration]) -> Self {
        self.bounds = ascending(bounds);
        self
    }

    /// The bounds of the histograms of first items, and of how long each item is waited for; [`Histogram::BOUNDS`] if they are
    /// not said.
    ///
    /// # Panics
    /// If they do not ascend.
    #[must_use]
    pub fn item_bounds(mut self, bounds: &[Duration]) -> Self {
        self.item_bounds = ascending(bounds);
        self
    }
}

fn ascending(bounds: &[Duration]) -> Arc<[Duration]> {
    assert!(bounds.is_sorted_by(|a, b| a < b), "the bounds of a histogram ascend");
    bounds.into()
}

impl Default for StreamTiming {
    fn default() -> Self {
        StreamTiming::new()
    }
}

/// What stands beside one stream.
pub struct Timer {
    stats: Option<Arc<Stats>>,
    counted: u64,
    waited: Duration,
    /// Items that nobody waited for, and that the histogram has not counted yet.
    ready: u64,
}

/// Items that were there at once are counted so many together: one by one they would cost more than they do.
const READY_MAX: u64 = 1024;

impl Watch for Timer {
    fn passed(&mut self, progress: &Progress) {
        let Some(stats) = &self.stats else { return };
        let items = progress.items();
        if items > self.counted {
            if self.counted == 0 {
                stats.first_items.observe(progress.asked().map_or(Duration::ZERO, |asked| asked.elapsed()));
            }
            stats.items.add(items - self.counted);
            self.ready += items - self.counted;
            self.counted = items;
            let waited = progress.waited();
            let wait = waited.saturating_sub(self.waited);
            if !wait.is_zero() {
                // The first of them was waited for; the others came with it.
                stats.waited.add(nanoseconds(wait));
                stats.waits.observe(wait);
                self.ready -= 1;
                self.waited = waited;
            }
            if self.ready >= READY_MAX {
                stats.waits.observe_many(Duration::ZERO, std::mem::take(&mut self.ready));
            }
        }
    }

    fn ended(&mut self, progress: &Progress, how: &Ended) {
        // A quantum that a panic cut short has not been looked at.
        self.passed(progress);
        let Some(stats) = &self.stats else { return };
        match how {
            Ended::Well => stats.ok.add(1),
            Ended::Failed(kind, _) => stats.otherwise.add(kind.index(), 1),
            Ended::Dropped => stats.otherwise.add(ErrorKind::CANCELLED, 1),
        }
        stats.durations.observe(progress.elapsed());
        stats.waits.observe_many(Duration::ZERO, std::mem::take(&mut self.ready));
        stats.window.end();
    }
}

impl Stats {
    /// Shows how fast streams flow.
    fn show(self: &Arc<Self>, about: &About) {
        let labels = [("type", about.label())];
        let show = |name, help, read: fn(&Window) -> f64| {
            let stats = self.clone();
            about.metrics().read(name, help, MetricKind::Gauge, &labels, move || read(&stats.window));
        };
        show("mediator_active_streams", "Streams that are open.", |window| window.open() as f64);
        let help = "Items a second, in the last interval.";
        show("mediator_stream_throughput", help, |window| window.shown().throughput);
        let help = "Milliseconds that an item was waited for, on average in the last interval.";
        show("mediator_stream_latency", help, |window| window.shown().latency);
    }

    fn warn(&self, about: &About, which: usize, progress: &Progress, limit: impl std::fmt::Debug) {
        self.warnings[which].add(1);
        let (items, elapsed) = (progress.items(), progress.elapsed());
        let warning = WARNINGS[which];
        tracing::warn!(target: "millstream_mediator::stream", stream = %about.name, warning, ?limit, items, ?elapsed, "a stream is slow");
    }
}

impl StreamTiming {
    /// The numbers of a type of stream: those of warnings among its own, the others among these.
    fn stats(&self, about: &About, metrics: &Metrics) -> Stats {
        let labels = [("type", about.label())];
        let (name, help) = ("mediator_streams_total", "Streams that have ended, by how.");
        let ended = |status| [("type", about.label()), ("status", status)];
        let warn = |warning| {
            let help = "Warnings of slow streams.";
            let labels = [("type", about.label()), ("warning", warning)];
            about.metrics().counter("mediator_slow_streams_total", help, &labels)
        };
        let histogram = |name, help, bounds| metrics.histogram(name, help, &labels, bounds);
        let items =
            metrics.counter("mediator_stream_items_total", "Items that streams have delivered.", &labels);
        let waited = Counter::default();
        Stats {
            opened: metrics.counter("mediator_streams_opened_total", "Streams that were opened.", &labels),
            ok: metrics.counter(name, help, &ended("ok")),
            otherwise: metrics.rare(name, help, &ended(""), "status", ErrorKind::ENDS),
            window: Window::new(self.interval, items.clone(), waited.clone()),
            items,
            waited,
            durations: histogram("mediator_stream_duration_seconds", "How long streams flow.", &self.bounds),
            first_items: histogram(
                "mediator_stream_first_item_seconds",
                "How long the first item of a stream takes.",
                &self.item_bounds,
            ),
            waits: histogram(
                "mediator_stream_item_wait_seconds",
                "How long each item of a stream was waited for.",
                &self.item_bounds,
            ),
            warnings: WARNINGS.map(warn),
        }
    }

    /// Looks at a stream by the clock until it ends.
    async fn watch(self, stats: Arc<Stats>, about: Arc<About>, progress: Arc<Progress>) {
        let opened = progress.opened();
        // When to look for the first item, or whether somebody asks for it by now.
        let mut first = self.first_item.map(|limit| later(opened, limit));
        let mut total = self.total;
        let (mut items, mut looked, mut next) = (0, opened, later(opened, self.interval));
        loop {
            let due = [Some(next), first, total.map(|total| later(opened, total))];
            sleep_until(due.into_iter().flatten().min().unwrap_or(next)).await;
            let now = Instant::now();
            if progress.items() > 0 {
                first = None;
            }
            if let (Some(_), Some(limit)) = (first.filter(|first| *first <= now), self.first_item) {
                let due = later(progress.asked().unwrap_or(now), limit);
                first = Some(due).filter(|due| *due > now);
                if first.is_none() {
                    stats.warn(&about, 0, &progress, limit);
                }
            }
            if let Some(limit) = total.filter(|total| *total <= now - opened) {
                total = None;
                stats.warn(&about, 2, &progress, limit);
            }
            if next <= now {
                stats.window.look();
                let count = progress.items();
                let rate = per_second(count - items, now - looked);
                if let Some(limit) =
                    self.throughput.filter(|limit| rate < *limit && progress.waiting_since().is_some())
                {
                    stats.warn(&about, 1, &progress, limit);
                }
                (items, looked, next) = (count, now, later(now, self.interval));
            }
        }
    }
}

impl StreamBehaviour for StreamTiming {
    type Flow<R: StreamRequest, N: StreamNext<R>> = Watched<N::Flow, Timer>;

    fn name(&self) -> Cow<'static, str> {
        let mut name = String::from("timing");
        if let Some(first) = self.first_item {
            name += &format!(", first item within {first:?}");
        }
        if let Some(rate) = self.throughput {
            name += &format!(", at least {rate} items/s");
        }
        name += &format!(", each {:?}", self.interval);
        if let Some(total) = self.total {
            name += &format!(", done within {total:?}");
        }
        name.into()
    }

    fn of(&self, about: &About) -> Self {
        let first = about.takes("mediator_streams_total");
        // Of another one only the warnings are shown: the rest is shown already.
        let unseen = Metrics::default();
        let stats = Arc::new(self.stats(about, if first { about.metrics() } else { &unseen }));
        if first {
            stats.show(about);
        }
        StreamTiming { stats: Some(stats), ..self.clone() }
    }

    async fn open<R: StreamRequest, N: StreamNext<R>>(
        &self,
        call: &Call<'_>,
        request: R,
        next: &N,
    ) -> Result<Pipe<Self::Flow<R, N>>, Error> {
        let pipe = next.open(call, request).await?;
        let progress = Progress::new();
        let task = self.stats.clone().map(|stats| {
            stats.opened.add(1);
            stats.window.begin();
            Task::spawn(self.clone().watch(stats, call.about().clone(), progress.clone()))
        });
        let timer = Timer { stats: self.stats.clone(), counted: 0, waited: Duration::ZERO, ready: 0 };
        Ok(pipe.via("timing", |flow| Watched::new(flow, progress, timer, task)))
    }
}
