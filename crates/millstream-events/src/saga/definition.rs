//! What a saga is made of.

mod erased;

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use millstream_flow::{BoxError, Retry};
use millstream_message::BoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub(super) use self::erased::{Definition, Info, Kind, TOO_DEEP, is_deep};
use crate::event::{Event, EventData};
use crate::upcast::Upcasters;

/// Why a step is not done. Every error becomes one by `?`, and the step is tried again by its rule.
#[derive(Debug)]
pub struct StepError {
    pub(super) error: BoxError,
    pub(super) permanent: bool,
}

impl StepError {
    /// No attempt will ever do it.
    pub fn permanent(error: impl Into<BoxError>) -> Self {
        StepError { error: error.into(), permanent: true }
    }
}

impl<E: Into<BoxError>> From<E> for StepError {
    fn from(error: E) -> Self {
        StepError { error: error.into(), permanent: false }
    }
}

/// What a step knows of its saga.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StepContext {
    /// The name of the saga's definition.
    pub saga: Arc<str>,
    /// The saga's id.
    pub id: Arc<str>,
    /// The step's name.
    pub step: Arc<str>,
    /// Which attempt this is, from 1, as far as failures are stored.
    pub attempt: u32,
    /// By which events find the saga.
    pub correlation_id: Arc<str>,
    emitted: Arc<Mutex<Vec<Event>>>,
}

impl StepContext {
    pub(super) fn new(saga: &str, id: &str, step: &str, attempt: u32, correlation_id: &str) -> Self {
        StepContext {
            saga: saga.into(),
            id: id.into(),
            step: step.into(),
            attempt,
            correlation_id: correlation_id.into(),
            emitted: Arc::default(),
        }
    }

    /// A name for what this step does, the same in every attempt, also after a crash: give it to whoever is called, so that he does it
    /// once. Undoing has another.
    pub fn key(&self) -> String {
        format!("{}/{}/{}", self.saga, self.id, self.step)
    }

    /// Stores an event with the word that the step is done, in the saga's stream: both or neither. An
    /// [outbox](crate::Outbox) publishes it. Of an attempt that fails nothing is stored. An event without a type, or with one that begins
    /// with `saga.`, has the step fail for good.
    pub fn emit(&self, event: Event) {
        let event = match event.correlation_id {
            Some(_) => event,
            None => event.with_correlation_id(&*self.correlation_id),
        };
        self.emitted.lock().unwrap_or_else(PoisonError::into_inner).push(event);
    }

    pub(super) fn take_emitted(&self) -> Vec<Event> {
        std::mem::take(&mut *self.emitted.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

type Act<S> = Arc<dyn Fn(S, StepContext) -> BoxFuture<'static, Result<S, StepError>> + Send + Sync>;

/// A step that does something.
///
/// It is told done once its state is stored; a process that dies before that does it again. See [`StepContext::key`].
#[must_use = "a step belongs into a saga"]
pub struct Step<S> {
    name: String,
    act: Act<S>,
    undo: Option<Act<S>>,
    retry: Retry,
    undo_retry: Retry,
}

/// As the configuration of the systems that this grew from has it: three attempts, after one second and two.
fn three_times() -> Retry {
    Retry::attempts(3).expect("it is not 0").first_delay(Duration::from_secs(1))
}

/// Undoing is given up late: somebody would have to do it by hand.
fn for_long() -> Retry {
    Retry::attempts(20)
        .expect("it is not 0")
        .first_delay(Duration::from_secs(1))
        .max_delay(Duration::from_secs(60))
}

impl<S> Step<S> {
    /// A step of this name that does `act`, which gets the saga's state and gives the next one. It is tried three times, a second and
    /// then two seconds apart, without a limit of time, and leaves nothing to undo.
    pub fn new<F, Fut>(name: impl Into<String>, act: F) -> Self
    where
        F: Fn(S, StepContext) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<S, StepError>> + Send + 'static,
    {
        let act: Act<S> = Arc::new(move |state, context| Box::pin(act(state, context)));
        Step { name: name.into(), act, undo: None, retry: three_times(), undo_retry: for_long() }
    }

    /// How what it has done is undone, should a later step fail. Of a step that fails itself nothing is undone: its last attempt
    /// leaves nothing behind, or a step before it, of its own, has what undoes it.
    pub fn undo<F, Fut>(mut self, undo: F) -> Self
    where
        F: Fn(S, StepContext) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<S, StepError>> + Send + 'static,
    {
        self.undo = Some(Arc::new(move |state, context| Box::pin(undo(state, context))));
        self
    }

    /// How often and after which delays it is tried again, for which errors, and how long [one attempt](Retry::timeout) may take.
    /// The delays outlast the process, so that what counts in memory has no effect here: the rule's budget, its whole time, its jitter and
    /// `on_retry`.
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// The same for undoing it. Without this: twenty times, after one second and up to one minute.
    pub fn undo_retry(mut self, retry: Retry) -> Self {
        self.undo_retry = retry;
        self
    }
}

impl<S> fmt::Debug for Step<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Step").field("name", &self.name).finish_non_exhaustive()
    }
}

type Hear<S> = Arc<dyn Fn(S, &Event) -> Result<S, StepError> + Send + Sync>;

/// A step that waits for an event.
#[must_use = "a step belongs into a saga"]
pub struct Wait<S> {
    name: String,
    types: Arc<[String]>,
    hear: Hear<S>,
    timeout: Option<Duration>,
    go_on: bool,
}

impl<S> Wait<S> {
    /// A step of this name that waits for an event of type `E` with the saga's correlation id, and makes the next state of both. One
    /// that comes before it is waited for is kept until then. If `take` fails, the saga is undone.
    pub fn new<E: EventData>(
        name: impl Into<String>,
        take: impl Fn(S, E) -> Result<S, StepError> + Send + Sync + 'static,
    ) -> Self {
        Wait::upcast(name, Upcasters::new(), take)
    }

    /// As [`new`](Self::new), for events that may be of an older form.
    pub fn upcast<E: EventData>(
        name: impl Into<String>,
        upcasters: Upcasters,
        take: impl Fn(S, E) -> Result<S, StepError> + Send + Sync + 'static,
    ) -> Self {
        let types = upcasters.names(E::TYPES).into();
        let hear: Hear<S> = Arc::new(move |state, event| take(state, upcasters.decode::<E>(event)?));
        Wait { name: name.into(), types, hear, timeout: None, go_on: false }
    }

    /// How long it waits. Then the saga is undone.
    pub fn timeout(mut self, time: Duration) -> Self {
        self.timeout = Some(time);
        self.go_on = false;
        self
    }

    /// How long it waits. Then the saga goes on without the event, with the state as it is.
    pub fn or_go_on_after(mut self, time: Duration) -> Self {
        self.timeout = Some(time);
        self.go_on = true;
        self
    }
}

impl<S> fmt::Debug for Wait<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wait").field("name", &self.name).field("types", &self.types).finish_non_exhaustive()
    }
}

enum Part<S> {
    Step(Box<Step<S>>),
    Wait(Wait<S>),
}

/// What a saga does: steps, one after the other, over a state that is stored after each.
///
/// If a step fails for good, or the saga takes too long, the steps that are done are undone, the last one first. What it is and was
/// is in the event store alone: a process that begins again goes on where it was, also with delays and times of waiting. Steps are found
/// by their names, so a new version of a program may add some, and may not rename those that running sagas have done.
///
/// ```
/// use std::time::Duration;
/// use millstream_events::{EventData, Saga, Step, StepError, Wait};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Clone, Serialize, Deserialize)]
/// struct Order { lamps: u32, shelf: Option<String>, paid: bool }
///
/// #[derive(Serialize, Deserialize)]
/// struct Paid { amount: u32 }
/// impl EventData for Paid {
///     const TYPES: &'static [&'static str] = &["paid"];
/// }
///
/// # async fn reserve(_: &str, _: u32) -> Result<String, std::io::Error> { Ok("7b".into()) }
/// # async fn release(_: &str) -> Result<(), std::io::Error> { Ok(()) }
/// # async fn ship(_: &Order) -> Result<(), std::io::Error> { Ok(()) }
/// let saga = Saga::<Order>::new("order")
///     .step(
///         Step::new("reserve", |mut order: Order, step| async move {
///             order.shelf = Some(reserve(&step.key(), order.lamps).await?);
///             Ok(order)
///         })
///         .undo(|mut order, step| async move {
///             release(&step.key()).await?;
///             order.shelf = None;
///             Ok(order)
///         }),
///     )
///     .wait(
///         Wait::new("payment", |order: Order, paid: Paid| match paid.amount {
///             0 => Err(StepError::permanent("nothing was paid")),
///             _ => Ok(Order { paid: true, ..order }),
///         })
///         .timeout(Duration::from_secs(3 * 86_400)),
///     )
///     .step(Step::new("ship", |order: Order, _| async move {
///         ship(&order).await?;
///         Ok(order)
///     }));
/// # drop(saga);
/// ```
#[must_use = "a saga that nobody runs does nothing"]
pub struct Saga<S> {
    name: String,
    parts: Vec<Part<S>>,
    timeout: Option<Duration>,
}

impl<S> Saga<S>
where
    S: Serialize + DeserializeOwned + Send + 'static,
{
    /// A saga of this name, without steps.
    pub fn new(name: impl Into<String>) -> Self {
        Saga { name: name.into(), parts: Vec::new(), timeout: None }
    }

    /// How long it may take, from its beginning until its last step is done. Then it is undone: a step under way is dropped where it waits, and,
    /// like one that has failed, is not undone itself. Without this, as long as it likes.
    pub fn timeout(mut self, time: Duration) -> Self {
        self.timeout = Some(time);
        self
    }

    /// Does this next.
    pub fn step(mut self, step: Step<S>) -> Self {
        self.parts.push(Part::Step(Box::new(step)));
        self
    }

    /// Waits for this next.
    pub fn wait(mut self, wait: Wait<S>) -> Self {
        self.parts.push(Part::Wait(wait));
        self
    }
}

impl<S> fmt::Debug for Saga<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Saga").field("name", &self.name).finish_non_exhaustive()
    }
}
