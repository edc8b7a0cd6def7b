//! Events: facts with a type, a body and what is said about them.

use std::collections::BTreeMap;

use millstream_message::{Codec, CodecError, Json, Message};
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

/// A type of values that are events: what they are called where they are stored and sent.
///
/// The names are a contract with everything that was ever stored: give a type another name when its form changes, and say by
/// [`Upcasters`](crate::Upcasters) how the old form becomes the new one.
///
/// ```
/// use millstream_events::EventData;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct InvoiceSent { number: u64 }
///
/// impl EventData for InvoiceSent {
///     const TYPES: &'static [&'static str] = &["invoice-sent"];
/// }
///
/// /// All that can happen to an order.
/// #[derive(Serialize, Deserialize)]
/// enum OrderEvent { Placed { pieces: u32 }, Paid }
///
/// impl EventData for OrderEvent {
///     const TYPES: &'static [&'static str] = &["order-placed", "order-paid"];
///
///     fn event_type(&self) -> &'static str {
///         match self {
///             OrderEvent::Placed { .. } => "order-placed",
///             OrderEvent::Paid => "order-paid",
///         }
///     }
/// }
/// assert_eq!(InvoiceSent { number: 7 }.event_type(), "invoice-sent");
/// assert_eq!(OrderEvent::Paid.event_type(), "order-paid");
/// ```
pub trait EventData: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Every name that a value of this type can have, at least one.
    const TYPES: &'static [&'static str];

    /// This value's name; the first of [`TYPES`](Self::TYPES) unless said otherwise.
    fn event_type(&self) -> &'static str {
        Self::TYPES[0]
    }
}

/// Something that happened: to be [appended](crate::EventStore::append) to a stream, or [published](crate::EventBus::publish).
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Event {
    /// Its name, unique. A UUID of version 7 (RFC 9562) unless said otherwise.
    pub id: String,
    /// What happened, as `order-placed`.
    pub event_type: String,
    /// The body, with the content type and the encoding that its codec declared. Nothing else of the message is stored.
    pub data: Message,
    /// What it belongs to: the same for all that one request has caused.
    pub correlation_id: Option<String>,
    /// What caused it: the id of a command or of another event.
    pub causation_id: Option<String>,
    /// Whatever else is to be known.
    pub metadata: BTreeMap<String, String>,
}

impl Event {
    /// An event of a value, written as JSON.
    ///
    /// # Errors
    /// If the value cannot be written: a map whose keys are no text, or more than 16 MiB.
    pub fn of<E: EventData>(value: &E) -> Result<Event, CodecError> {
        Event::encoded(value.event_type(), value, &Json)
    }

    /// An event of this type with a value that `codec` writes.
    ///
    /// # Errors
    /// If it cannot.
    pub fn encoded<T, C: Codec<T>>(
        event_type: impl Into<String>,
        value: &T,
        codec: &C,
    ) -> Result<Event, CodecError> {
        Ok(Event::new(event_type, codec.encode(value)?))
    }

    /// An event of this type with this body; of the message its content type and encoding are kept.
    pub fn new(event_type: impl Into<String>, data: Message) -> Event {
        Event {
            id: new_id(),
            event_type: event_type.into(),
            data,
            correlation_id: None,
            causation_id: None,
            metadata: BTreeMap::new(),
        }
    }

    /// Gives it a name of one's own: the same event, made twice, has it twice.
    #[must_use]
    pub fn with_id(mut self, id: impl Into<String>) -> Event {
        self.id = id.into();
        self
    }

    /// Says what it belongs to.
    #[must_use]
    pub fn with_correlation_id(mut self, id: impl Into<String>) -> Event {
        self.correlation_id = Some(id.into());
        self
    }

    /// Says what caused it.
    #[must_use]
    pub fn with_causation_id(mut self, id: impl Into<String>) -> Event {
        self.causation_id = Some(id.into());
        self
    }

    /// Says that `cause` caused it: that event's id, and what that belongs to, or that event itself.
    #[must_use]
    pub fn caused_by(self, cause: &Event) -> Event {
        let correlation = cause.correlation_id.as_ref().unwrap_or(&cause.id).clone();
        self.with_causation_id(&cause.id).with_correlation_id(correlation)
    }

    /// Adds or replaces what is said under a name.
    #[must_use]
    pub fn with_metadata(mut self, name: impl Into<String>, value: impl Into<String>) -> Event {
        self.metadata.insert(name.into(), value.into());
        self
    }

    /// The value, read as JSON. What was stored under older names is read through [`Upcasters`](crate::Upcasters).
    ///
    /// # Errors
    /// If the body is no JSON, or another type's.
    pub fn decode<E: EventData>(&self) -> Result<E, CodecError> {
        Json.decode(&self.data)
    }

    /// The value, read by `codec`.
    ///
    /// # Errors
    /// If it is not what the codec reads.
    pub fn decode_with<T, C: Codec<T>>(&self, codec: &C) -> Result<T, CodecError> {
        codec.decode(&self.data)
    }
}

/// A name that nothing else has. In the order of time, to the millisecond.
pub(crate) fn new_id() -> String {
    Uuid::now_v7().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_event_causes_belongs_to_what_that_belongs_to() {
        let first = Event::new("a", Message::new("")).with_id("1");
        let second = Event::new("b", Message::new("")).with_id("2").caused_by(&first);
        let third = Event::new("c", Message::new("")).caused_by(&second);
        let said = |event: &Event| (event.causation_id.clone(), event.correlation_id.clone());
        assert_eq!(said(&second), (Some("1".to_owned()), Some("1".to_owned())));
        assert_eq!(said(&third), (Some("2".to_owned()), Some("1".to_owned())));
    }

    #[test]
    fn ids_differ_and_come_in_the_order_of_time() {
        let ids: Vec<String> = (0..1000).map(|_| new_id()).collect();
        assert!(ids.is_sorted());
        assert_eq!(ids.iter().collect::<std::collections::HashSet<_>>().len(), 1000);
    }
}
