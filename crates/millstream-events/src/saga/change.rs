//! What happens to sagas, as their streams say it.

use std::borrow::Cow;

use millstream_message::{Codec, CodecError, Json, Message};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Millis;
use crate::event::Event;
use crate::store::RecordedEvent;

/// What the types of a saga's own events begin with. Others in its stream are those that its steps have emitted.
pub(super) const PREFIX: &str = "saga.";

/// The type of an event that holds another one.
const HEARD: &str = "saga.heard";

/// Why a saga is undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Why {
    /// A step failed for good.
    StepFailed,
    /// It, or an event that it waited for, took too long.
    TimedOut,
    /// Somebody asked for it.
    Asked,
}

/// How a saga has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Ending {
    /// All steps are done.
    Completed,
    /// What was done is undone.
    Compensated,
    /// The same, since it did not end in time.
    TimedOut,
    /// It was told to stop.
    Aborted,
    /// A step cannot be undone.
    Failed,
}

/// Something that has happened to a saga: an event of its stream. Times are milliseconds since 1970.
///
/// Every change is stored before the next one is begun, so whoever [subscribes](crate::EventStore::subscribe) to the streams that begin
/// with [`SAGA_STREAMS`](super::SAGA_STREAMS) hears all of them.
///
/// ```
/// # use millstream_events::{EventStore, Filter, SAGA_STREAMS, SagaChange};
/// # async fn example(store: EventStore) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// let sagas = store.subscribe("saga log").filter(Filter::all().streams(SAGA_STREAMS)).open().await?;
/// let run = sagas.flow().for_each(|event| {
///     if let Some(SagaChange::Compensating { reason, .. }) = SagaChange::of(&event) {
///         // tell somebody
///         # let _ = reason;
///     }
/// }).start();
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum SagaChange {
    /// It has begun.
    #[serde(rename = "saga.begun")]
    Begun {
        /// Its state, as JSON.
        state: Value,
        /// By which events find it.
        correlation_id: String,
        /// When it must be done, if it must.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        deadline: Option<Millis>,
    },
    /// An attempt at a step has failed.
    #[serde(rename = "saga.step-failed")]
    StepFailed {
        /// The step.
        step: String,
        /// Which attempt, from 1.
        attempt: u32,
        /// Why, with its causes.
        error: String,
        /// When it is tried again; `None` if it is not.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        again: Option<Millis>,
    },
    /// A step is done.
    #[serde(rename = "saga.step-done")]
    StepDone {
        /// The step.
        step: String,
        /// The state after it.
        state: Value,
        /// The id of the event that it waited for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        event: Option<String>,
    },
    /// It waits for an event.
    #[serde(rename = "saga.waiting")]
    Waiting {
        /// The step.
        step: String,
        /// How long, if not for ever.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        until: Option<Millis>,
    },
    /// It has heard of an event that one of its steps waits for, or will.
    #[serde(rename = "saga.heard")]
    Heard {
        /// The event's id.
        id: String,
        /// Its type.
        event_type: String,
    },
    /// Steps are undone from now on, the last one first.
    #[serde(rename = "saga.compensating")]
    Compensating {
        /// The step that was under way when somebody asked for it: that is done first, and undone with the others.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        under_way: Option<String>,
        /// Why.
        why: Why,
        /// In words.
        reason: String,
    },
    /// An attempt to undo a step has failed.
    #[serde(rename = "saga.undo-failed")]
    UndoFailed {
        /// The step.
        step: String,
        /// Which attempt, from 1.
        attempt: u32,
        /// Why, with its causes.
        error: String,
        /// When it is tried again; `None` if it is not.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        again: Option<Millis>,
    },
    /// A step is undone.
    #[serde(rename = "saga.undone")]
    Undone {
        /// The step.
        step: String,
        /// The state after that.
        state: Value,
    },
    /// It has ended.
    #[serde(rename = "saga.ended")]
    Ended {
        /// How.
        how: Ending,
        /// Why, if not well.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
}

impl SagaChange {
    /// What an event of a saga's stream says; `None` if it is one that a step has emitted, or of another stream.
    pub fn of(event: &RecordedEvent) -> Option<SagaChange> {
        super::names(&event.stream)?;
        SagaChange::read(&event.event)?.ok()
    }

    fn event_type(&self) -> &'static str {
        match self {
            SagaChange::Begun { .. } => "saga.begun",
            SagaChange::StepFailed { .. } => "saga.step-failed",
            SagaChange::StepDone { .. } => "saga.step-done",
            SagaChange::Waiting { .. } => "saga.waiting",
            SagaChange::Heard { .. } => HEARD,
            SagaChange::Compensating { .. } => "saga.compensating",
            SagaChange::UndoFailed { .. } => "saga.undo-failed",
            SagaChange::Undone { .. } => "saga.undone",
            SagaChange::Ended { .. } => "saga.ended",
        }
    }

    /// As an event; not for [`Heard`](Self::Heard), which has another one's body.
    pub(super) fn event(&self) -> Event {
        debug_assert!(!matches!(self, SagaChange::Heard { .. }), "it is made by `heard`");
        // Values of JSON and texts: this cannot fail but by its length, of which the store tells.
        let body = serde_json::to_vec(self).expect("JSON can be written as JSON");
        Event::new(self.event_type(), Message::new(body).with_content_type("application/json"))
    }

    /// `None` if it is no event of a saga's own.
    pub(super) fn read(event: &Event) -> Option<Result<SagaChange, CodecError>> {
        if event.event_type == HEARD {
            let said = |name: &str| event.metadata.get(name).cloned().unwrap_or_default();
            return Some(Ok(SagaChange::Heard { id: said("id"), event_type: said("type") }));
        }
        event.event_type.starts_with(PREFIX).then(|| Json.decode(&event.data))
    }
}

/// An event that a saga has heard of, as one of its stream.
pub(super) fn heard(event: &Event) -> Event {
    let mut heard = Event::new(HEARD, event.data.clone());
    heard.metadata.insert("id".to_owned(), event.id.clone());
    heard.metadata.insert("type".to_owned(), event.event_type.clone());
    heard.caused_by(event)
}

/// The event that was heard of.
pub(super) fn unheard(heard: &Event) -> Event {
    let said = |name: &str| Cow::Borrowed(heard.metadata.get(name).map_or("", String::as_str));
    let mut event = Event::new(said("type"), heard.data.clone()).with_id(said("id"));
    event.correlation_id.clone_from(&heard.correlation_id);
    event
}
