//! Dead letters of items that came from no queue: published with their reason.

use crate::item::{Failure, ItemError, Letter};
use millstream_flow::{BoxError, Clock, chain};
use millstream_message::dead::{DeadReason, Death, letter};
use millstream_message::{Address, Broker, Message, PublishOutcome};
use std::sync::Arc;
use std::time::SystemTime;

/// Where dead letters go.
#[derive(Clone)]
pub(crate) struct Letters {
    broker: Arc<dyn Broker>,
    to: Address,
    clock: Clock,
}

/// A dead letter that could not be stored: the run ends, so that the item is not lost.
#[derive(Debug, thiserror::Error)]
#[error("cannot store a dead letter in {to}: {reason}")]
struct LetterError {
    to: Address,
    reason: String,
}

impl Letters {
    pub(crate) fn new(broker: Arc<dyn Broker>, queue: &str, clock: Clock) -> Self {
        Letters { broker, to: Address::queue(queue), clock }
    }

    /// Stores a failed item.
    pub(crate) async fn send_failure(self, failure: Failure) -> Result<(), BoxError> {
        let reason = failure.error.downcast_ref::<ItemError>().map(ToString::to_string);
        let reason = reason.unwrap_or_else(|| failure.error.to_string());
        self.send(*failure.input, &reason, &failure.stage).await
    }

    /// Stores what is kept of an item, with the reason why it is dead.
    pub(crate) async fn send(&self, kept: Letter, reason: &str, stage: &str) -> Result<(), BoxError> {
        let Letter { body, content_type, place, trace } = kept;
        let time = self.clock.now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let mut message = Message::new(body).with_content_type(content_type);
        if !place.is_empty() {
            message = message.with_message_id(place);
        }
        if let Some(trace) = trace {
            message = message.with_trace(&trace);
        }
        let death = Death {
            reason: DeadReason::Rejected,
            detail: Some(reason),
            stage: Some(stage),
            queue: "",
            address: &Address::queue(""),
            time: u64::try_from(time.as_millis()).unwrap_or(u64::MAX),
        };
        let failed = |reason: String| Err(LetterError { to: self.to.clone(), reason }.into());
        match self.broker.publish(&self.to, letter(message, &death)).await? {
            PublishOutcome::Confirmed => Ok(()),
            PublishOutcome::Unroutable(returned) => failed(returned.reason),
            PublishOutcome::Refused(refusal) => failed(chain(&refusal)),
            PublishOutcome::Unconfirmed(error) => Err(error.into()),
        }
    }
}
