//! Whether streams are well, found out by the clock.

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use millstream_flow::Pipe;

use crate::call::Call;
use crate::error::Error;
use crate::memory::Memory;
use crate::message::{About, StreamRequest};
use crate::stream::progress::{Ended, Progress, Task, Watch, Watched};
use crate::stream::{StreamBehaviour, StreamNext};

mod board;
mod check;
mod found;

pub use board::HealthBoard;
use check::{Check, panicked};
pub use found::{Severity, StreamHealth, Warning};

type Report = dyn Fn(StreamHealth) -> BoxFuture<'static, ()> + Send + Sync;
type OnEnd = dyn Fn(&StreamHealth) + Send + Sync;

/// Checks each stream by the clock, whether items come or not, and reports when its severity changes.
///
/// A check is made by a task beside the stream, which also calls the reporters, each for an interval at most: a slow one delays
/// the next check and never the stream, and one that panics is logged. A severity is taken back when so many checks in a row have found a lower one.
///
/// ```
/// use millstream_mediator::{Health, HealthBoard, Mediator};
/// use std::time::Duration;
///
/// let board = HealthBoard::default();
/// let health = Health::new(Duration::from_secs(10))
///     .stall(Duration::from_secs(30))
///     .throughput(1.0)
///     .error_rate(0.1)
///     .board(&board);
/// let builder = Mediator::builder().stream_behaviour(health);
/// assert!(board.is_ready());
/// # let _ = builder;
/// ```
#[derive(Clone)]
pub struct Health {
    interval: Duration,
    stall: Option<Duration>,
    throughput: Option<f64>,
    error_rate: Option<f64>,
    slowdown: Option<f64>,
    growth: Option<(Memory, u64)>,
    memory: Option<Memory>,
    recover: u32,
    report: Option<Arc<Report>>,
    on_end: Option<Arc<OnEnd>>,
    board: Option<HealthBoard>,
}

impl Health {
    /// A check each so long; what it looks for is added.
    ///
    /// # Panics
    /// If `interval` is zero.
    pub fn new(interval: Duration) -> Self {
        assert!(!interval.is_zero(), "a check needs time between two");
        Health {
            interval,
            stall: None,
            throughput: None,
            error_rate: None,
            slowdown: None,
            growth: None,
            memory: None,
            recover: 2,
            report: None,
            on_end: None,
            board: None,
        }
    }

    /// Unhealthy when somebody has waited so long for an item.
    #[must_use]
    pub fn stall(mut self, after: Duration) -> Self {
        self.stall = Some(after);
        self
    }

    /// Degraded when somebody waits for more, and fewer items a second came since the last check in the time in which somebody waited, if
    /// that was at least half of it.
    #[must_use]
    pub fn throughput(mut self, items_per_second: f64) -> Self {
        self.throughput = Some(items_per_second);
        self
    }

    /// Degraded when fewer items a second came, counted as for [`throughput`](Self::throughput), than this part of the most there was.
    ///
    /// # Panics
    /// If `part` is not between 0 and 1.
    #[must_use]
    pub fn slowdown(mut self, part: f64) -> Self {
        assert!((0.0..=1.0).contains(&part), "a part of the best rate is between 0 and 1, not {part}");
        self.slowdown = Some(part);
        self
    }

    /// Unhealthy while this budget is [short](Memory::is_short).
    #[must_use]
    pub fn memory(mut self, memory: &Memory) -> Self {
        self.memory = Some(memory.clone());
        self
    }

    /// Unhealthy when a larger part of the items since the last check has failed; with 0, when any has. Items fail one by one where
    /// [`ItemErrors::pass`](crate::ItemErrors::pass) is declared.
    #[must_use]
    pub fn error_rate(mut self, part: f64) -> Self {
        self.error_rate = Some(part);
        self
    }

    /// Degraded when so many bytes more than at its opening are used of this budget.
    #[must_use]
    pub fn memory_growth(mut self, memory: &Memory, bytes: u64) -> Self {
        self.growth = Some((memory.clone(), bytes));
        self
    }

    /// How many checks in a row must find less wrong before the severity is taken back; 2 if it is not said.
    ///
    /// # Panics
    /// If it is 0.
    #[must_use]
    pub fn recover_after(mut self, checks: u32) -> Self {
        assert!(checks > 0, "without a check nobody knows");
        self.recover = checks;
        self
    }

    /// Told when the severity of a stream changes while it flows; changes are logged in any case. How streams ended is on the
    /// [board](Health::board).
    #[must_use]
    pub fn report<F, Fut>(mut self, report: F) -> Self
    where
        F: Fn(StreamHealth) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.report = Some(Arc::new(move |health| Box::pin(report(health))));
        self
    }

    /// Told how each stream ended, with what its last check found and its numbers in all. It is called in the stream's task, also while
    /// that is dropped, and must not block; a panic of it is logged.
    #[must_use]
    pub fn on_end(mut self, tell: impl Fn(&StreamHealth) + Send + Sync + 'static) -> Self {
        self.on_end = Some(Arc::new(tell));
        self
    }

    /// Shows each stream's last check on a board, for an endpoint.
    #[must_use]
    pub fn board(mut self, board: &HealthBoard) -> Self {
        self.board = Some(board.clone());
        self
    }
}

impl StreamBehaviour for Health {
    type Flow<R: StreamRequest, N: StreamNext<R>> = Watched<N::Flow, Entry>;

    fn name(&self) -> Cow<'static, str> {
        let mut name = format!("health each {:?}", self.interval);
        if let Some(stall) = self.stall {
            name += &format!(", stall {stall:?}");
        }
        if let Some(rate) = self.throughput {
            name += &format!(", at least {rate} items/s");
        }
        if let Some(rate) = self.error_rate {
            name += &format!(", errors {}%", rate * 100.0);
        }
        if let Some(part) = self.slowdown {
            name += &format!(", slowdown to {}%", part * 100.0);
        }
        if let Some((_, bytes)) = &self.growth {
            name += &format!(", growth {} MiB", bytes >> 20);
        }
        if let Some(memory) = &self.memory {
            name += &format!(", short of {} MiB", memory.limit() >> 20);
        }
        name.into()
    }

    fn of(&self, _: &About) -> Self {
        self.clone()
    }

    fn problem(&self) -> Option<String> {
        let memories = self.growth.iter().map(|(memory, _)| memory).chain(&self.memory);
        memories.filter_map(Memory::problem).next()
    }

    async fn open<R: StreamRequest, N: StreamNext<R>>(
        &self,
        call: &Call<'_>,
        request: R,
        next: &N,
    ) -> Result<Pipe<Self::Flow<R, N>>, Error> {
        let pipe = next.open(call, request).await?;
        let progress = Progress::new();
        let check = Check {
            rule: self.clone(),
            stream: call.about().name.clone(),
            correlation: call.correlation(),
            progress: progress.clone(),
            found: Arc::default(),
        };
        let entry = Entry {
            place: self.board.as_ref().map(|board| (board.clone(), board.place())),
            check: check.clone(),
        };
        let place = entry.place.clone();
        let task = Task::spawn(check.run(place));
        Ok(pipe.via("health", |flow| Watched::new(flow, progress, entry, Some(task))))
    }
}

/// What stands beside one stream.
pub struct Entry {
    place: Option<(HealthBoard, u64)>,
    check: Check,
}

impl Watch for Entry {
    fn ended(&mut self, progress: &Progress, how: &Ended) {
        let last = self.check.found.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).last.take();
        let (severity, warnings) = match (how, last) {
            (Ended::Failed(..), last) => {
                (Severity::Unhealthy, last.map(|last| last.warnings).unwrap_or_default())
            }
            (_, Some(last)) => (last.severity, last.warnings),
            (_, None) => (Severity::Healthy, Vec::new()),
        };
        let health = self.check.health(severity, warnings, progress.rate(), Some(how.word()));
        if let Some(tell) = &self.check.rule.on_end
            && let Err(payload) = catch_unwind(AssertUnwindSafe(|| tell(&health)))
        {
            panicked(&health.stream, payload);
        }
        if let Some((board, place)) = self.place.take() {
            board.end(place, health);
        }
    }
}
