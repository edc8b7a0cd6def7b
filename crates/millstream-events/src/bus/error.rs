//! What the bus says that has not done what it was asked.

use millstream_flow::{Report, RunError};
use millstream_message::{BrokerError, BrokerErrorKind, BrokerUrl, CodecError, Refusal};

/// Why the bus has not done what it was asked. Of an event that was to be published it says where that is now.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BusError {
    /// No event can have this type. It was not handed to the broker.
    #[error("`{event_type}` is no type of events: {reason}")]
    EventType {
        /// The type. Cut off after 255 bytes.
        event_type: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The value cannot be written.
    #[error("the event cannot be written")]
    Codec(#[source] CodecError),
    /// The broker has not stored it, or not for every subscriber that wants it. On RabbitMQ a queue that is full and rejects refuses it for
    /// itself alone; `memory:` and `embedded:` store it for all or for none.
    #[error("the event was refused")]
    Refused(#[source] Refusal),
    /// It may be stored or not. To publish it again is safe where subscribers have an [`Inbox`](crate::Inbox), as it keeps its id.
    #[error("it is not known whether the event is stored")]
    Unconfirmed(#[source] BrokerError),
    /// The broker is closed, or has none of what the bus needs, or what is there is otherwise declared. An event was not
    /// handed over.
    #[error("the broker does not do it")]
    Broker(#[source] BrokerError),
    /// A subscription to several types, or to a pattern, has no name to call its queue by.
    #[error("a subscription to {0} needs a name: `Subscribe::name` gives it one")]
    Unnamed(String),
    /// The subscription's run has failed, or was not done by its deadline.
    #[error("the subscription did not end well")]
    Run(#[source] RunError),
}

impl BusError {
    /// The account of the run that did not end well.
    pub fn report(&self) -> Option<&Report> {
        match self {
            BusError::Run(error) => Some(error.report()),
            _ => None,
        }
    }
}

/// What a broker of streams alone says.
pub(super) fn no_queues(broker: &BrokerUrl) -> BrokerError {
    let text = format!("an event bus needs queues and exchanges, and `{broker}` has streams alone");
    BrokerError::new(BrokerErrorKind::Unsupported, text)
}
