//! What a stream has done so far: written by its flow, a few plain stores a quantum, and read by those who watch it.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use millstream_flow::{Flow, Step};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::StreamError;
use crate::call::{Call, Context as CallContext, Detached};
use crate::error::ErrorKind;
use crate::message::About;

/// The numbers of one stream.
#[derive(Debug)]
pub struct Progress {
    opened: Instant,
    asked: OnceLock<Instant>,
    items: AtomicU64,
    errors: AtomicU64,
    /// Since when an item is waited for, in nanoseconds since it was opened, and 1 more; 0 while nobody waits.
    waiting: AtomicU64,
    /// Nanoseconds of waiting for items that have come.
    waited: AtomicU64,
}

impl Progress {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Progress {
            opened: Instant::now(),
            asked: OnceLock::new(),
            items: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
            waited: AtomicU64::new(0),
        })
    }

    pub(crate) fn opened(&self) -> Instant {
        self.opened
    }
    /// When the first item was asked for.
    pub(crate) fn asked(&self) -> Option<Instant> {
        self.asked.get().copied()
    }
    pub(crate) fn elapsed(&self) -> Duration {
        self.opened.elapsed()
    }
    /// Items that have passed.
    pub(crate) fn items(&self) -> u64 {
        self.items.load(Ordering::Relaxed)
    }
    /// Items that have failed while the stream went on.
    pub(crate) fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }
    /// Since when somebody waits for an item, if anybody does.
    pub(crate) fn waiting_since(&self) -> Option<Instant> {
        let waiting = self.waiting.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.opened + Duration::from_nanos(waiting))
    }
    /// How long items that have come were waited for.
    pub(crate) fn waited(&self) -> Duration {
        Duration::from_nanos(self.waited.load(Ordering::Relaxed))
    }
    /// How long items have been waited for up to now, also for the one that has not come.
    pub(crate) fn waited_until(&self, now: Instant) -> Duration {
        let waits = self.waiting_since().map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        self.waited() + waits
    }
    /// Items a second since it was opened.
    pub(crate) fn rate(&self) -> f64 {
        per_second(self.items(), self.elapsed())
    }
}

/// How many items a handler's end has left out so far: with how many have passed, the handler's position for whoever stands
/// behind it in the same task. Where items came again it is less than nothing, so that sums with it wrap. It goes with the
/// call's context.
#[derive(Debug, Clone, Default)]
pub(crate) struct LeftOut(Arc<Places>);

#[derive(Debug, Default)]
struct Places {
    left_out: AtomicU64,
    /// The position of the first item that is counted here, among all of the stream.
    base: AtomicU64,
}

impl LeftOut {
    /// The count beside a call, or a new one.
    pub(crate) fn of(call: &Call<'_>) -> LeftOut {
        // A handler may give its context along to a stream of its own, whose count is another.
        let beside = call.context().get::<Beside>().filter(|beside| Arc::ptr_eq(&beside.about, call.about()));
        beside.map(|beside| beside.count.clone()).unwrap_or_default()
    }

    /// The call with this count beside it.
    pub(crate) fn beside(&self, call: &Call<'_>) -> Detached {
        call.detach_with(Beside { about: call.about().clone(), count: self.clone() })
    }

    /// The context with this count in it, for calls of this type.
    pub(crate) fn within(&self, context: &CallContext, about: &Arc<About>) -> CallContext {
        context.clone().with(Beside { about: about.clone(), count: self.clone() })
    }

    pub(crate) fn set(&self, items: u64) {
        self.0.left_out.store(items, Ordering::Relaxed);
    }

    pub(crate) fn items(&self) -> u64 {
        self.0.left_out.load(Ordering::Relaxed)
    }

    pub(crate) fn begin_at(&self, base: u64) {
        self.0.base.store(base, Ordering::Relaxed);
    }

    pub(crate) fn base(&self) -> u64 {
        self.0.base.load(Ordering::Relaxed)
    }
}

/// A count and whose it is, in a call's context.
struct Beside {
    about: Arc<About>,
    count: LeftOut,
}

/// 0 if it took no time.
pub(crate) fn per_second(items: u64, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { items as f64 / time.as_secs_f64() }
}

/// How a stream ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    Well,
    /// Its last item was an error.
    Failed(ErrorKind, String),
    /// Its reader has dropped it.
    Dropped,
}

impl Ended {
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Ended::Well => "ok",
            Ended::Failed(kind, _) => kind.word(),
            Ended::Dropped => "cancelled",
        }
    }
}

/// What stands beside a stream.
pub trait Watch: Send + 'static {
    /// Items have passed, or not, in a quantum.
    fn passed(&mut self, _progress: &Progress) {}
    /// The stream has ended; nothing comes after that.
    fn ended(&mut self, _progress: &Progress, _how: &Ended) {}
}

/// What passes in a quantum, counted also when a panic further down cuts it short.
struct Tally<'a> {
    items: u64,
    errors: u64,
    progress: &'a Progress,
}

impl Drop for Tally<'_> {
    fn drop(&mut self) {
        let Progress { items, errors, .. } = self.progress;
        // The only writer needs no read-modify-write.
        if self.items > 0 {
            items.store(items.load(Ordering::Relaxed) + self.items, Ordering::Relaxed);
        }
        if self.errors > 0 {
            errors.store(errors.load(Ordering::Relaxed) + self.errors, Ordering::Relaxed);
        }
    }
}

/// A flow that is watched.
pub struct Watched<F, W: Watch> {
    upstream: F,
    progress: Arc<Progress>,
    watch: W,
    since: Option<Instant>,
    asked: bool,
    over: bool,
    /// Ends with the stream.
    _task: Option<Task>,
}

impl<F, W: Watch> Watched<F, W> {
    pub(crate) fn new(upstream: F, progress: Arc<Progress>, watch: W, task: Option<Task>) -> Self {
        Watched { upstream, progress, watch, since: None, asked: false, over: false, _task: task }
    }

    fn end(&mut self, how: &Ended) {
        if !std::mem::replace(&mut self.over, true) {
            self._task = None;
            self.watch.ended(&self.progress, how);
        }
    }
}

impl<T, F, W> Flow for Watched<F, W>
where
    F: Flow<Item = Result<T, StreamError>, Token = ()>,
    W: Watch,
{
    type Item = Result<T, StreamError>;
    type Token = ();

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(Self::Item, ()) -> ControlFlow<()>,
    {
        if self.over {
            return Poll::Ready(Step::End);
        }
        if !std::mem::replace(&mut self.asked, true) {
            let _ = self.progress.asked.set(Instant::now());
        }
        let mut last = None;
        let mut tally = Tally { items: 0, errors: 0, progress: &self.progress };
        let step = self.upstream.poll_drive(cx, max, &mut |item, ()| {
            match &item {
                Ok(_) => tally.items += 1,
                Err(error) if error.is_last() => last = Some(failed(error)),
                Err(_) => tally.errors += 1,
            }
            sink(item, ())
        });
        let items = tally.items + tally.errors;
        drop(tally);
        if step.is_pending() {
            if items > 0 || self.since.is_none() {
                self.came();
                let since = Instant::now();
                self.since = Some(since);
                self.progress
                    .waiting
                    .store(nanos(since - self.progress.opened).saturating_add(1), Ordering::Relaxed);
            }
        } else if items > 0 || last.is_some() || step == Poll::Ready(Step::End) {
            // What was left out was not waited for.
            self.came();
        }
        self.watch.passed(&self.progress);
        if let Some(how) = last {
            self.end(&how);
        } else if step == Poll::Ready(Step::End) {
            self.end(&Ended::Well);
        }
        step
    }
}

impl<F, W: Watch> Watched<F, W> {
    /// What was waited for is there.
    fn came(&mut self) {
        if let Some(since) = self.since.take() {
            let waited = self.progress.waited() + since.elapsed();
            self.progress.waited.store(nanos(waited), Ordering::Relaxed);
            self.progress.waiting.store(0, Ordering::Relaxed);
        }
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cold]
fn failed(error: &StreamError) -> Ended {
    Ended::Failed(error.error().kind().clone(), millstream_flow::chain(error))
}

impl<F, W: Watch> Drop for Watched<F, W> {
    fn drop(&mut self) {
        self.end(&Ended::Dropped);
    }
}

/// A task that ends when this is dropped.
pub(crate) struct Task(JoinHandle<()>);

impl Task {
    pub(crate) fn spawn(task: impl Future<Output = ()> + Send + 'static) -> Self {
        Task(tokio::spawn(task))
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}
