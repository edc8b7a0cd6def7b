//! What is told of streams.

use std::borrow::Cow;
use std::time::Duration;

use millstream_flow::Pipe;
use millstream_resilience::bounded;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tracing::Level;

use crate::behaviours::log;
use crate::call::{Call, Correlation};
use crate::error::Error;
use crate::message::{About, StreamRequest};
use crate::stream::progress::{Ended, Progress, Task, Watch, Watched, per_second};
use crate::stream::{StreamBehaviour, StreamNext};

/// Tells when a stream opens, how it gets on by items and by time, and how it ends: with items, items a second, time to the
/// first item from when somebody asked for it, and the correlation of its call. By time also when nothing comes.
///
/// Target is `millstream_mediator::stream`.
///
/// ```
/// use millstream_mediator::{Mediator, StreamLogging};
/// use std::time::Duration;
///
/// let logging = StreamLogging::new().every_items(10_000).every(Duration::from_secs(30));
/// let builder = Mediator::builder().stream_behaviour(logging);
/// # let _ = builder;
/// ```
#[derive(Debug, Clone)]
pub struct StreamLogging {
    every_items: u64,
    every: Option<Duration>,
    level: Level,
    progress: Level,
}

impl StreamLogging {
    /// Beginnings and ends at `INFO`, failures at `WARN`, progress at `DEBUG`, and that not before it is asked for.
    pub fn new() -> Self {
        StreamLogging { every_items: 0, every: None, level: Level::INFO, progress: Level::DEBUG }
    }

    /// Progress each so many items; 0 for none.
    #[must_use]
    pub fn every_items(mut self, items: u64) -> Self {
        self.every_items = items;
        self
    }

    /// Progress each so long.
    ///
    /// # Panics
    /// If it is zero.
    #[must_use]
    pub fn every(mut self, time: Duration) -> Self {
        assert!(!time.is_zero(), "in no time there is no progress");
        self.every = Some(time);
        self
    }

    /// At which level beginnings and good ends are told.
    #[must_use]
    pub fn level(mut self, level: Level) -> Self {
        self.level = level;
        self
    }

    /// At which level progress is told.
    #[must_use]
    pub fn progress(mut self, level: Level) -> Self {
        self.progress = level;
        self
    }
}

impl Default for StreamLogging {
    fn default() -> Self {
        StreamLogging::new()
    }
}

/// What stands beside one stream.
pub struct Logger {
    stream: Names,
    every_items: u64,
    level: Level,
    progress: Level,
    told: u64,
    first: Option<Duration>,
}

#[derive(Clone)]
struct Names {
    name: std::sync::Arc<str>,
    correlation: Correlation,
}

fn tell_progress(level: Level, stream: &Names, progress: &Progress, lately: Option<f64>) {
    let (name, correlation) = (&stream.name, stream.correlation);
    let (items, rate) = (progress.items(), progress.rate());
    match lately {
        Some(lately) => {
            log!(level, "millstream_mediator::stream", stream = %name, %correlation, items, rate, lately, "a stream flows");
        }
        None => {
            log!(level, "millstream_mediator::stream", stream = %name, %correlation, items, rate, "a stream flows")
        }
    }
}

impl Watch for Logger {
    fn passed(&mut self, progress: &Progress) {
        let items = progress.items();
        if items > 0 && self.first.is_none() {
            self.first = progress.asked().map(|asked| asked.elapsed());
        }
        if self.every_items > 0 && items / self.every_items > self.told {
            self.told = items / self.every_items;
            tell_progress(self.progress, &self.stream, progress, None);
        }
    }

    fn ended(&mut self, progress: &Progress, how: &Ended) {
        let Names { name, correlation } = &self.stream;
        let (items, rate, elapsed, first) =
            (progress.items(), progress.rate(), progress.elapsed(), self.first);
        let outcome = how.word();
        match how {
            Ended::Failed(_, why) => tracing::warn!(
                target: "millstream_mediator::stream",
                stream = %name, %correlation, outcome, items, rate, ?elapsed, ?first, error = why, "a stream has failed",
            ),
            Ended::Well | Ended::Dropped => {
                log!(self.level, "millstream_mediator::stream", stream = %name, %correlation, outcome, items, rate, ?elapsed, ?first, "a stream has ended");
            }
        }
    }
}

impl StreamBehaviour for StreamLogging {
    type Flow<R: StreamRequest, N: StreamNext<R>> = Watched<N::Flow, Logger>;

    fn name(&self) -> Cow<'static, str> {
        let mut name = String::from("logging");
        if self.every_items > 0 {
            name += &format!(" each {} items", self.every_items);
        }
        if let Some(every) = self.every {
            name += &format!(" each {every:?}");
        }
        name.into()
    }

    fn of(&self, _: &About) -> Self {
        self.clone()
    }

    async fn open<R: StreamRequest, N: StreamNext<R>>(
        &self,
        call: &Call<'_>,
        request: R,
        next: &N,
    ) -> Result<Pipe<Self::Flow<R, N>>, Error> {
        let stream = Names { name: call.about().name.clone(), correlation: call.correlation() };
        let Names { name, correlation } = &stream;
        let pipe = match next.open(call, request).await {
            Ok(pipe) => pipe,
            Err(error) => {
                let why = millstream_flow::chain(&error);
                tracing::warn!(target: "millstream_mediator::stream", stream = %name, %correlation, error = why, "a stream was not opened");
                return Err(error);
            }
        };
        log!(self.level, "millstream_mediator::stream", stream = %name, %correlation, "a stream is open");
        let progress = Progress::new();
        let task = self.every.map(|every| {
            let (stream, progress, level) = (stream.clone(), progress.clone(), self.progress);
            Task::spawn(async move {
                let every = bounded(every);
                let mut ticks = interval_at(progress.opened() + every, every);
                ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
                let (mut before, mut told) = (0, progress.opened());
                loop {
                    ticks.tick().await;
                    let (items, now) = (progress.items(), Instant::now());
                    let lately = per_second(items - before, now - told);
                    (before, told) = (items, now);
                    tell_progress(level, &stream, &progress, Some(lately));
                }
            })
        });
        let StreamLogging { every_items, level, progress: progress_level, .. } = *self;
        let logger = Logger { stream, every_items, level, progress: progress_level, told: 0, first: None };
        Ok(pipe.via("logging", |flow| Watched::new(flow, progress, logger, task)))
    }
}
