//! All sagas of a process.

use std::any::TypeId;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::Serialize;
use tokio::time::{sleep, timeout};

use super::builder::SagasBuilder;
use super::change::{Ending, SagaChange, Why, heard};
use super::definition::{Definition, TOO_DEEP, is_deep};
use super::driver::{HEARD_MAX, read};
use super::error::{BeginError, SagaError};
use super::running::{Reserved, Running};
use super::{SagaStatus, SagaView, later, millis, names, stream};
use crate::event::{Event, new_id};
use crate::store::{AppendError, EventStore, Expected, StoreError};

/// How often who waits for an end looks whether there can be one.
const LOOK: Duration = Duration::from_secs(1);

/// How sagas went since the process began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SagasStatistics {
    /// Sagas that are on their way now.
    pub active: u64,
    /// Sagas begun by this process.
    pub begun: u64,
    /// Steps done.
    pub steps: u64,
    /// Attempts that failed, at steps and at undoing them.
    pub failures: u64,
    /// Steps undone.
    pub undone: u64,
    /// Sagas that were completed.
    pub completed: u64,
    /// Sagas that were undone.
    pub compensated: u64,
    /// Sagas that were undone since they did not end in time.
    pub timed_out: u64,
    /// Sagas that were told to stop.
    pub aborted: u64,
    /// Sagas that could not be undone.
    pub failed: u64,
}

/// Runs sagas. A handle, cheap to clone; when the last one is gone, what is under way is given up, and goes on when sagas are started
/// again.
///
/// Everything that happens to a saga is an event of its stream, stored before the next step is begun, and nothing else is kept: a
/// process that was killed begins again where its sagas were. A step that was under way is begun again, so steps are done at least
/// once. Let one process at a time run the sagas of a store; if two do, both may do a step, and one of them stores that it is done.
///
/// ```
/// use millstream_events::{EventStore, Saga, SagaStatus, Sagas, Step};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
/// struct Trip { city: String, flight: bool, hotel: bool }
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let broker = millstream_embedded::open(&"memory:".parse()?).await?;
/// let book = Saga::<Trip>::new("trip")
///     .step(
///         Step::new("flight", |trip: Trip, _| async move { Ok(Trip { flight: true, ..trip }) })
///             .undo(|trip: Trip, _| async move { Ok(Trip { flight: false, ..trip }) }),
///     )
///     .step(Step::new("hotel", |trip: Trip, _| async move {
///         if trip.city == "Oz" {
///             return Err("there is no hotel".into());
///         }
///         Ok(Trip { hotel: true, ..trip })
///     }));
/// let sagas = Sagas::builder(EventStore::open(broker, "trips").await?).saga(book).start().await?;
///
/// for (id, city) in [("1", "Rome"), ("2", "Oz")] {
///     sagas.begin("trip", id, &Trip { city: city.into(), flight: false, hotel: false }).await?;
/// }
/// assert_eq!(sagas.ended("trip", "1").await?.status, SagaStatus::Completed);
/// let oz = sagas.ended("trip", "2").await?;
/// assert_eq!((oz.status, oz.undone), (SagaStatus::Compensated, vec!["flight".to_owned()]));
/// assert_eq!(oz.reason.unwrap(), "step `hotel` failed for good: there is no hotel");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Sagas(pub(super) Arc<Running>);

impl fmt::Debug for Sagas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&String> = self.0.definitions.keys().collect();
        f.debug_struct("Sagas").field("definitions", &names).finish_non_exhaustive()
    }
}

impl Sagas {
    /// Sagas whose streams are in this store: none of them yet.
    pub fn builder(store: EventStore) -> SagasBuilder {
        SagasBuilder::new(store)
    }

    /// Begins the saga of this id, whose correlation id is its id. Returns when that is stored: it goes on whatever happens to
    /// the process.
    ///
    /// # Errors
    /// If it was begun before, or cannot be.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it begun or not.
    pub async fn begin<S: Serialize + 'static>(
        &self,
        saga: &str,
        id: &str,
        state: &S,
    ) -> Result<(), BeginError> {
        self.begin_correlated(saga, id, id, state).await
    }

    /// As [`begin`](Self::begin), for a saga that events find by another id than its own.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Cancel safety
    /// As there.
    pub async fn begin_correlated<S: Serialize + 'static>(
        &self,
        saga: &str,
        id: &str,
        correlation_id: &str,
        state: &S,
    ) -> Result<(), BeginError> {
        let definition = self.definition(saga).map_err(BeginError::Invalid)?;
        if definition.state_type() != TypeId::of::<S>() {
            let text = format!("the state of saga `{saga}` is not a `{}`", std::any::type_name::<S>());
            return Err(BeginError::Invalid(text));
        }
        let common = &self.0.common;
        if common.stop.is_cancelled() {
            return Err(BeginError::Invalid("the sagas have been shut down".to_owned()));
        }
        let state = serde_json::to_value(state).map_err(BeginError::State)?;
        if is_deep(&state) {
            return Err(BeginError::Invalid(TOO_DEEP.to_owned()));
        }
        // A place before it is stored, so that no more are begun than may be.
        let place = Reserved::of(&self.0, saga, id, correlation_id)?;
        let now = millis(common.clock.now());
        let deadline = definition.timeout().map(|time| later(now, time));
        let correlation_id = correlation_id.to_owned();
        let begun = SagaChange::Begun { state, correlation_id, deadline }.event();
        match common.store.append_as(&new_id(), &stream(saga, id), Expected::NoStream, [begun]).await {
            Ok(_) => {
                common.counted.begun.fetch_add(1, Ordering::Relaxed);
                place.drive(definition);
                Ok(())
            }
            Err(AppendError::Conflict(_)) => {
                Err(BeginError::Begun { saga: saga.to_owned(), id: id.to_owned() })
            }
            Err(error) => Err(BeginError::Store(error)),
        }
    }

    /// Tells the sagas of its correlation id of an event, and returns how many of them wait for one of its type, now or later. It is
    /// stored then, and whoever told it may forget it. A saga that has heard of an event of this id before is not told again.
    ///
    /// # Errors
    /// If it was not stored for one of them: tell it again. A saga keeps up to 64 events that no step has taken, and one that its next step
    /// takes at once. `Stopped` after [`shutdown`](Self::shutdown).
    ///
    /// # Cancel safety
    /// Dropping the future leaves some of the sagas told.
    pub async fn tell(&self, event: &Event) -> Result<usize, SagaError> {
        let Some(correlation_id) = &event.correlation_id else { return Ok(0) };
        let stop = &self.0.common.stop;
        let named: Vec<(String, String)> = {
            let active = self.0.active();
            let of = active.iter().filter(|(_, active)| active.correlation_id == *correlation_id);
            of.map(|(name, _)| name.clone()).collect()
        };
        // Those that leave now are found by nobody, and still wait for the event.
        if stop.is_cancelled() {
            return Err(SagaError::Stopped);
        }
        let (mut told, mut failed) = (0, None);
        for (saga, id) in named {
            let Ok(definition) = self.definition(&saga) else { continue };
            let heard = self.change(&saga, &id, |progress| {
                if !progress.wants(definition.steps(), event) {
                    return Ok(None);
                }
                let kept = progress.heard.len();
                if kept >= HEARD_MAX && !progress.takes_now(definition.steps(), event) {
                    return Err(SagaError::Full { saga: saga.clone(), id: id.clone(), heard: kept });
                }
                Ok(Some(heard(event)))
            });
            match heard.await {
                Ok(stored) => told += usize::from(stored),
                // It has ended meanwhile.
                Err(SagaError::Unknown { .. } | SagaError::Ended { .. }) => {}
                // The others hear of it all the same.
                Err(error) => _ = failed.get_or_insert(error),
            }
        }
        failed.map_or(Ok(told), Err)
    }

    /// How a saga stands.
    ///
    /// # Errors
    /// If there is none, or it cannot be read.
    pub async fn view(&self, saga: &str, id: &str) -> Result<SagaView, SagaError> {
        let steps = self.definition(saga).map(|definition| definition.steps().to_vec()).unwrap_or_default();
        let progress = read(&self.0.common.store, saga, id, None).await?;
        let progress = progress.ok_or_else(|| unknown(saga, id))?;
        Ok(progress.view(saga, id, &steps))
    }

    /// Waits until a saga has ended, and says how it stands then.
    ///
    /// # Errors
    /// As [`view`](Self::view); if the store has failed; `Stopped` if it has not ended when the sagas are shut down.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub async fn ended(&self, saga: &str, id: &str) -> Result<SagaView, SagaError> {
        let (common, mut changed) = (&self.0.common, self.0.changed.subscribe());
        loop {
            changed.mark_unchanged();
            let view = self.view(saga, id).await?;
            let has_place = || self.0.active().contains_key(&(saga.to_owned(), id.to_owned()));
            // Then its place is free, too, but for one that was stopped in a step which goes on.
            if view.status.is_ended() && (view.status == SagaStatus::Aborted || !has_place()) {
                return Ok(view);
            }
            // Those that were left keep their places for ever.
            if common.stop.is_cancelled() && (!has_place() || self.0.tasks.is_empty()) {
                return Err(SagaError::Stopped);
            }
            tokio::select! {
                // The sender is in `self`.
                _ = changed.changed() => {}
                // Nobody tells of these.
                () = sleep(LOOK) => common.store.check()?,
            }
        }
    }

    /// The names and ids of the sagas on their way, in order.
    pub fn active(&self) -> Vec<(String, String)> {
        let mut active: Vec<_> = self.0.active().keys().cloned().collect();
        active.sort_unstable();
        active
    }

    /// Undoes a saga: the step under way is finished first, and undone with the others.
    ///
    /// # Errors
    /// If there is none, or it has ended, or it is not stored. One that is being undone already is left so.
    pub async fn compensate(&self, saga: &str, id: &str, reason: &str) -> Result<(), SagaError> {
        let stored = self.change(saga, id, |progress| {
            if progress.is_undoing() {
                return Ok(None);
            }
            let under_way = self.0.acting(saga, id).filter(|step| !progress.done.contains(step));
            let reason = reason.to_owned();
            let change = SagaChange::Compensating { why: Why::Asked, reason, under_way };
            Ok(Some(change.event()))
        });
        stored.await.map(drop)
    }

    /// Stops a saga where it is, and undoes nothing. A step under way is finished, and not known to be.
    ///
    /// # Errors
    /// If there is none, or it has ended, or it is not stored.
    pub async fn abort(&self, saga: &str, id: &str, reason: &str) -> Result<(), SagaError> {
        let ended = SagaChange::Ended { how: Ending::Aborted, reason: Some(reason.to_owned()) };
        let stored = self.change(saga, id, |_| Ok(Some(ended.event()))).await;
        if matches!(stored, Ok(true)) {
            self.0.common.counted.aborted.fetch_add(1, Ordering::Relaxed);
        }
        stored.map(drop)
    }

    /// Deletes what is known of a saga that has ended, and what its steps have emitted: an outbox that has not come to that does not
    /// publish it. Another saga of its id may be begun then.
    ///
    /// # Errors
    /// If there is none, or it has not ended, or its deletion is not stored.
    pub async fn forget(&self, saga: &str, id: &str) -> Result<(), SagaError> {
        let progress = read(&self.0.common.store, saga, id, None).await?;
        let progress = progress.ok_or_else(|| unknown(saga, id))?;
        if progress.ended.is_none() {
            return Err(SagaError::Active { saga: saga.to_owned(), id: id.to_owned() });
        }
        let expected = Expected::Version(progress.version);
        Ok(self.0.common.store.delete(&stream(saga, id), expected).await?)
    }

    /// How sagas went.
    pub fn statistics(&self) -> SagasStatistics {
        let counted = &self.0.common.counted;
        let of = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        SagasStatistics {
            active: self.0.active().len() as u64,
            begun: of(&counted.begun),
            steps: of(&counted.steps),
            failures: of(&counted.failures),
            undone: of(&counted.undone),
            completed: of(&counted.completed),
            compensated: of(&counted.compensated),
            timed_out: of(&counted.timed_out),
            aborted: of(&counted.aborted),
            failed: of(&counted.failed),
        }
    }

    /// Begins no further step, and waits for those under way. False if some were not done by the deadline: they are given up where they
    /// wait, and done again when sagas are started again.
    pub async fn shutdown(&self, deadline: Duration) -> bool {
        self.0.common.stop.cancel();
        self.0.tasks.close();
        let done = timeout(deadline, self.0.tasks.wait()).await.is_ok();
        if !done {
            // Steps are dropped where they wait; one that blocks its thread goes on until it waits.
            self.0.common.abandon.cancel();
        }
        done
    }

    fn definition(&self, saga: &str) -> Result<Arc<dyn Definition>, String> {
        let unknown = || {
            let names: Vec<String> = self.0.definitions.keys().map(|name| format!("`{name}`")).collect();
            format!("there is no saga `{saga}`, but {}", names.join(", "))
        };
        self.0.definitions.get(saga).cloned().ok_or_else(unknown)
    }

    /// Appends what `decide` says to a saga's stream, whoever else does. False if it said nothing.
    async fn change(
        &self,
        saga: &str,
        id: &str,
        mut decide: impl FnMut(&super::progress::Progress) -> Result<Option<Event>, SagaError>,
    ) -> Result<bool, SagaError> {
        let store = &self.0.common.store;
        let commit = new_id();
        let mut progress = None;
        loop {
            let now = read(store, saga, id, progress.take()).await?;
            let now = now.ok_or_else(|| unknown(saga, id))?;
            if now.ended.is_some() {
                return Err(SagaError::Ended { saga: saga.to_owned(), id: id.to_owned() });
            }
            let Some(event) = decide(&now)? else { return Ok(false) };
            let expected = Expected::Version(now.version);
            match store.append_as(&commit, &stream(saga, id), expected, [event]).await {
                Ok(_) => {
                    self.0.wake(saga, id);
                    return Ok(true);
                }
                Err(AppendError::Conflict(_)) => progress = Some(now),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Goes on with all that have not ended.
    pub(super) async fn resume(&self) -> Result<(), StoreError> {
        let store = &self.0.common.store;
        for name in self.0.definitions.keys() {
            for found in store.streams(&stream(name, "")) {
                // That it has ended is the last word of a saga.
                let last = store.read(&found).backward().limit(1).collect().await?;
                let ended = last.first().is_none_or(|last| last.event.event_type == "saga.ended");
                if let Some((saga, id)) = names(&found).filter(|_| !ended) {
                    let begun = store.read(&found).limit(1).collect().await?;
                    let change = begun.first().and_then(SagaChange::of);
                    if let Some(SagaChange::Begun { correlation_id, .. }) = change {
                        self.0.take_up(saga, id, &correlation_id);
                    }
                }
            }
        }
        Ok(())
    }
}

fn unknown(saga: &str, id: &str) -> SagaError {
    SagaError::Unknown { saga: saga.to_owned(), id: id.to_owned() }
}
