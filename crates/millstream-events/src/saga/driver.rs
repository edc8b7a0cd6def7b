//! What brings one saga from step to step.

use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use millstream_flow::{Clock, Panicked, TimedOut, chain};
use millstream_resilience::bounded;
use serde_json::Value;
use tokio::sync::{Notify, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::acting::Acting;
use super::change::{Ending, PREFIX, SagaChange};
use super::definition::{Definition, Info, Kind, StepContext, StepError};
use super::error::SagaError;
use super::progress::{Next, Progress};
use super::{Millis, millis, stream};
use crate::event::{Event, new_id};
use crate::store::{AppendError, EventStore, Expected};

/// The first and the longest pause before a store that does not answer is asked again.
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// How many of an error's words are stored.
const ERROR_MAX: usize = 2048;

/// What all sagas of a process share.
pub(super) struct Common {
    pub(super) store: EventStore,
    pub(super) clock: Clock,
    /// How many steps may be under way at once.
    pub(super) steps: Semaphore,
    /// Nothing new is begun any more.
    pub(super) stop: CancellationToken,
    /// What is under way is given up.
    pub(super) abandon: CancellationToken,
    pub(super) counted: Counted,
}

/// What has happened since the process began.
#[derive(Default)]
pub(super) struct Counted {
    pub(super) begun: AtomicU64,
    pub(super) steps: AtomicU64,
    pub(super) failures: AtomicU64,
    pub(super) undone: AtomicU64,
    pub(super) completed: AtomicU64,
    pub(super) compensated: AtomicU64,
    pub(super) timed_out: AtomicU64,
    pub(super) aborted: AtomicU64,
    pub(super) failed: AtomicU64,
}

impl Counted {
    fn count(&self, change: &SagaChange) {
        let counter = match change {
            SagaChange::StepDone { .. } => &self.steps,
            SagaChange::StepFailed { .. } | SagaChange::UndoFailed { .. } => &self.failures,
            SagaChange::Undone { .. } => &self.undone,
            SagaChange::Ended { how, .. } => match how {
                Ending::Completed => &self.completed,
                Ending::Compensated => &self.compensated,
                Ending::TimedOut => &self.timed_out,
                Ending::Aborted => &self.aborted,
                Ending::Failed => &self.failed,
            },
            _ => return,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Reads a saga's stream from the event after `progress`, or from its beginning; `None` if nothing is there, or it was deleted. One
/// that was begun again since is another saga.
pub(super) async fn read(
    store: &EventStore,
    saga: &str,
    id: &str,
    progress: Option<Progress>,
) -> Result<Option<Progress>, SagaError> {
    if store.version(&stream(saga, id)).is_none() {
        return Ok(None);
    }
    let from = progress.as_ref().map_or(0, |progress| progress.version + 1);
    let mut progress = progress;
    let mut events = store.read(&stream(saga, id)).from(from).events();
    while let Some(recorded) = events.next().await {
        let recorded = recorded?;
        let change = SagaChange::read(&recorded.event).transpose();
        let change = change.map_err(|error| SagaError::Change {
            saga: saga.to_owned(),
            id: id.to_owned(),
            version: recorded.version,
            error,
        })?;
        progress.get_or_insert_default().apply(recorded.version, change, &recorded.event);
    }
    Ok(progress)
}

/// A saga on its way.
pub(super) struct Driver {
    pub(super) common: Arc<Common>,
    pub(super) definition: Arc<dyn Definition>,
    pub(super) id: String,
    /// Something may have been stored by somebody else.
    pub(super) wake: Arc<Notify>,
    /// The step that it is doing.
    pub(super) acting: Acting,
}

/// Why a driver leaves its saga as it is.
enum Leave {
    /// The program ends.
    Stopped,
    /// It cannot be read, now or ever.
    Broken(SagaError),
    /// What the program says of it panics, outside of its steps.
    Panicked(Panicked),
}

impl From<SagaError> for Leave {
    fn from(error: SagaError) -> Self {
        Leave::Broken(error)
    }
}

impl Driver {
    /// Goes on until the saga has ended or the program ends. True if it is left before.
    pub(super) async fn drive(self) -> bool {
        let (saga, id) = (self.definition.name(), &self.id);
        let went = AssertUnwindSafe(self.go()).catch_unwind().await;
        let error = match went.unwrap_or_else(|panic| Err(Leave::Panicked(Panicked::new(panic)))) {
            Ok(()) | Err(Leave::Stopped) => return false,
            Err(Leave::Broken(error)) => chain(&error),
            Err(Leave::Panicked(panicked)) => chain(&panicked),
        };
        tracing::error!(saga, id, error, "a saga is left as it is until the program begins again");
        true
    }

    async fn go(&self) -> Result<(), Leave> {
        let steps = self.definition.steps();
        let stop = &self.common.stop;
        let mut progress = self.reread(None, stop).await?;
        loop {
            if stop.is_cancelled() {
                return Err(Leave::Stopped);
            }
            let now = self.now();
            progress = match progress.next(steps, now) {
                Next::Nothing => return Ok(()),
                Next::Wait(until) => {
                    self.wait(until.map(|until| Duration::from_millis(until - now))).await?;
                    self.reread(Some(progress), stop).await?
                }
                Next::Store(change) => self.store(progress, change, Vec::new()).await?,
                Next::Hear { step, event } => {
                    let name = steps[step].name.clone();
                    let change = match self.definition.hear(step, &progress.state, &event) {
                        Ok(state) => {
                            SagaChange::StepDone { step: name, state, event: Some(event.id.clone()) }
                        }
                        Err(error) => SagaChange::StepFailed {
                            step: name,
                            attempt: 1,
                            error: words(&error),
                            again: None,
                        },
                    };
                    self.store(progress, change, Vec::new()).await?
                }
                Next::Act { step, undo, attempt } => self.act(progress, step, undo, attempt).await?,
            };
        }
    }

    async fn act(&self, progress: Progress, at: usize, undo: bool, attempt: u32) -> Result<Progress, Leave> {
        let step = &self.definition.steps()[at];
        let name = self.definition.name();
        let stop = &self.common.stop;
        let permit = tokio::select! {
            permit = self.common.steps.acquire() => permit.expect("it is never closed"),
            // It may have been told to stop.
            () = self.wake.notified() => return self.reread(Some(progress), stop).await,
            () = stop.cancelled() => return Err(Leave::Stopped),
        };
        // Its time may have come while it waited for its turn.
        let timed = !undo && !progress.is_undoing();
        if timed && progress.deadline.is_some_and(|deadline| deadline <= self.now()) {
            return Ok(progress);
        }
        // Told before it looks, so that whoever has all undone knows of it, or is seen.
        let _doing = (!undo).then(|| self.acting.begin(&step.name));
        if self.common.store.version(&stream(name, &self.id)) != Some(progress.version) {
            // What was decided upon is not so any more.
            drop(permit);
            return self.reread(Some(progress), stop).await;
        }
        let context = StepContext::new(name, &self.id, &step.name, attempt, &progress.correlation_id);
        let span =
            tracing::info_span!("saga step", saga = name, id = self.id, step = step.name, undo, attempt);
        let acted = self.definition.act(at, undo, &progress.state, context.clone()).instrument(span);
        // What is undone has no deadline any more. Rounded up, so that it has passed then.
        let deadline = progress.deadline.filter(|_| timed);
        let rounded = |deadline: u64| deadline.saturating_sub(self.now()).saturating_add(1);
        let left = deadline.map(|deadline| Duration::from_millis(rounded(deadline)));
        let limit = retry(step, undo).limit().into_iter().chain(left).min();
        let limit = bounded(limit.unwrap_or(Duration::MAX));
        let acted = tokio::select! {
            acted = timeout(limit, acted) => acted.unwrap_or_else(|_| Err(TimedOut { limit }.into())),
            () = self.common.abandon.cancelled() => return Err(Leave::Stopped),
        };
        drop(permit);
        let emitted = context.take_emitted();
        let reserved = |event: &&Event| event.event_type.is_empty() || event.event_type.starts_with(PREFIX);
        let acted = acted.and_then(|state| match emitted.iter().find(reserved) {
            None => Ok(state),
            Some(event) => {
                let text =
                    format!("it emits an event of type `{}`, which is not for steps", event.event_type);
                Err(StepError::permanent(text))
            }
        });
        let (change, emitted) = match acted {
            Ok(state) => (done(step, undo, state), emitted),
            Err(error) => (self.failed(step, undo, attempt, &error), Vec::new()),
        };
        self.store(progress, change, emitted).await
    }

    fn failed(&self, step: &Info, undo: bool, attempt: u32, error: &StepError) -> SagaChange {
        // Both may ask the program: whether to try again, and what the error says.
        let asked = catch_unwind(AssertUnwindSafe(|| {
            let delay = match error.permanent {
                true => None,
                false => retry(step, undo).next_delay(attempt, &*error.error),
            };
            (delay, words(error))
        }));
        let (delay, error) = asked.unwrap_or_else(|panic| (None, chain(&Panicked::new(panic))));
        let again = delay.map(|delay| super::later(self.now(), delay));
        let step = step.name.clone();
        match undo {
            true => SagaChange::UndoFailed { step, attempt, error, again },
            false => SagaChange::StepFailed { step, attempt, error, again },
        }
    }

    /// Stores what has happened. If others have stored something meanwhile, it comes behind that, unless it means nothing then.
    async fn store(
        &self,
        mut progress: Progress,
        mut change: SagaChange,
        emitted: Vec<Event>,
    ) -> Result<Progress, Leave> {
        // What was done is stored as long as there is time for it.
        let (begun, abandon) = (progress.begun, &self.common.abandon);
        let mut commit = new_id();
        let stream = stream(self.definition.name(), &self.id);
        let mut events = vec![change.event()];
        events.extend(emitted);
        let mut pause = PAUSE;
        loop {
            let expected = Expected::Version(progress.version);
            match self.common.store.append_as(&commit, &stream, expected, events.clone()).await {
                Ok(_) => {
                    self.common.counted.count(&change);
                    return self.reread(Some(progress), &self.common.stop).await;
                }
                Err(AppendError::Conflict(_)) => {
                    progress = self.reread(Some(progress), abandon).await?;
                    if progress.begun != begun {
                        // Forgotten, and begun again: that is another one's.
                        return Err(Leave::Stopped);
                    }
                    if !still_means_something(&progress, &change, self.definition.steps()) {
                        return Ok(progress);
                    }
                }
                Err(error @ (AppendError::TooLarge { .. } | AppendError::Invalid(_))) => {
                    // What a step has made cannot be stored: it has failed, and would the next time.
                    change = cannot_be_stored(&change, &progress, &error).ok_or(SagaError::Append(error))?;
                    events = vec![change.event()];
                    commit = new_id();
                }
                // Deleted: nobody wants it any more.
                Err(AppendError::Gone { .. }) => return Err(Leave::Stopped),
                // Under the same name it is stored once, however often it is tried.
                Err(error) => self.pause(&mut pause, &error, abandon).await?,
            }
        }
    }

    /// Reads what is there since; tries until it is told to give up.
    async fn reread(&self, progress: Option<Progress>, until: &CancellationToken) -> Result<Progress, Leave> {
        let name = self.definition.name();
        let mut pause = PAUSE;
        loop {
            match read(&self.common.store, name, &self.id, progress.clone()).await {
                Ok(Some(progress)) => return Ok(progress),
                // Forgotten.
                Ok(None) => return Err(Leave::Stopped),
                Err(SagaError::Store(error)) => self.pause(&mut pause, &error, until).await?,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits until there may be something to do.
    async fn wait(&self, time: Option<Duration>) -> Result<(), Leave> {
        let time = async {
            match time {
                Some(time) => sleep(bounded(time)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.wake.notified() => Ok(()),
            () = time => Ok(()),
            () = self.common.stop.cancelled() => Err(Leave::Stopped),
        }
    }

    async fn pause(
        &self,
        pause: &mut Duration,
        error: &(dyn Error + Send + Sync + 'static),
        until: &CancellationToken,
    ) -> Result<(), Leave> {
        // It may be one for ever.
        self.common.store.check().map_err(SagaError::Store)?;
        let (saga, id, error) = (self.definition.name(), &self.id, chain(error));
        tracing::warn!(saga, id, error, "the store does not answer a saga, and is asked again");
        tokio::select! {
            () = sleep(*pause) => {}
            () = until.cancelled() => return Err(Leave::Stopped),
        }
        *pause = (*pause * 2).min(PAUSE_MAX);
        Ok(())
    }

    fn now(&self) -> Millis {
        millis(self.common.clock.now().max(SystemTime::UNIX_EPOCH))
    }
}

fn retry(step: &Info, undo: bool) -> millstream_flow::Retry {
    match &step.kind {
        Kind::Step(retries) if undo => retries.undo.clone(),
        Kind::Step(retries) => retries.act.clone(),
        Kind::Wait { .. } => millstream_flow::Retry::never(),
    }
}

fn done(step: &Info, undo: bool, state: Value) -> SagaChange {
    let step = step.name.clone();
    match undo {
        true => SagaChange::Undone { step, state },
        false => SagaChange::StepDone { step, state, event: None },
    }
}

/// The failure instead of a step that is done, or undone, and cannot be said to be.
fn cannot_be_stored(change: &SagaChange, progress: &Progress, error: &AppendError) -> Option<SagaChange> {
    let error = format!("what it has made cannot be stored: {}", chain(error));
    let failed = |step: &String| (step.clone(), progress.attempt(step));
    match change {
        SagaChange::StepDone { step, .. } => {
            let (step, attempt) = failed(step);
            Some(SagaChange::StepFailed { step, attempt, error, again: None })
        }
        SagaChange::Undone { step, .. } => {
            let (step, attempt) = failed(step);
            Some(SagaChange::UndoFailed { step, attempt, error, again: None })
        }
        _ => None,
    }
}

/// Whether a change is still one, after others.
fn still_means_something(progress: &Progress, change: &SagaChange, steps: &[Info]) -> bool {
    let acts =
        |name: &String| steps.iter().any(|step| step.name == *name && matches!(step.kind, Kind::Step(_)));
    progress.ended.is_none()
        && match change {
            // What was done is done, and is to be undone if the saga is by now. A wait decides again, upon what was heard meanwhile.
            SagaChange::StepDone { step, .. } => acts(step) && !progress.done.contains(step),
            SagaChange::StepFailed { step, .. } => {
                let wanted = !progress.is_undoing() || progress.is_under_way(step);
                acts(step) && wanted && !progress.done.contains(step)
            }
            SagaChange::UndoFailed { step, .. } | SagaChange::Undone { step, .. } => {
                progress.is_to_be_undone(step)
            }
            // Decided upon what was known: what is known now decides again.
            _ => false,
        }
}

/// An error with its causes, as much of it as is stored.
fn words(error: &StepError) -> String {
    let mut words = chain(&*error.error);
    if words.len() > ERROR_MAX {
        let end = (0..=ERROR_MAX).rev().find(|end| words.is_char_boundary(*end)).unwrap_or(0);
        words.truncate(end);
    }
    words
}

/// What waits to be heard of by a saga, at most.
pub(super) const HEARD_MAX: usize = 64;
