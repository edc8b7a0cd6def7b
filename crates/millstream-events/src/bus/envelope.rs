//! An event as a message: the payload is the body, what is said about it travels in properties and headers.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use millstream_message::{Headers, Message, Value};

use crate::Event;

/// What happened: text.
pub const EVENT_TYPE: &str = "millstream-event-type";
/// Who published it: text.
pub const EVENT_SOURCE: &str = "millstream-event-source";
/// What caused it: text, the id of an event or of a command.
pub const CAUSATION_ID: &str = "millstream-causation-id";
/// Whatever else is said of an event: a map of texts.
pub const EVENT_METADATA: &str = "millstream-event-metadata";
/// Of which type the thing is that the event happened to: text.
pub const AGGREGATE_TYPE: &str = "millstream-aggregate-type";
/// Which one of its type: text.
pub const AGGREGATE_ID: &str = "millstream-aggregate-id";
/// Which of its events this one is: an integer.
pub const AGGREGATE_VERSION: &str = "millstream-aggregate-version";

/// What an event happened to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AggregateFacts {
    /// Of which type it is, as `order`.
    pub kind: String,
    /// Which one of that type.
    pub id: String,
    /// Its version with this event. Above 2⁶³ - 1 it travels as that.
    pub version: u64,
}

/// An event on its way, and what is known of it besides.
///
/// | of the event | in the message |
/// |---|---|
/// | id | `message_id` |
/// | correlation id | `correlation_id` |
/// | when it was published | `timestamp` |
/// | type, source, causation id, metadata, aggregate | headers: [`EVENT_TYPE`], [`EVENT_SOURCE`], [`CAUSATION_ID`], [`EVENT_METADATA`], [`AGGREGATE_TYPE`], [`AGGREGATE_ID`], [`AGGREGATE_VERSION`] |
/// | data | body, content type and encoding |
///
/// ```
/// use millstream_events::{Envelope, Event};
/// use millstream_message::Message;
///
/// let event = Event::new("orders.placed", Message::new("{}").with_content_type("application/json"));
/// let envelope = Envelope::new(event, "shop");
/// let message = envelope.to_message();
/// assert_eq!(message.body(), "{}", "the payload is plain");
/// assert_eq!(Envelope::from_message(&message)?, envelope);
///
/// let error = Envelope::from_message(&Message::new("{}").with_message_id("7")).unwrap_err();
/// assert_eq!(error.to_string(), "the message is no event: it has no header `millstream-event-type`");
/// # Ok::<(), millstream_events::EnvelopeError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Envelope {
    /// What happened.
    pub event: Event,
    /// Who published it: a service.
    pub source: String,
    /// When it was published, to the millisecond; `None` if whoever did has not said.
    pub published: Option<SystemTime>,
    /// What it happened to.
    pub aggregate: Option<AggregateFacts>,
}

/// Why a message is no event.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EnvelopeError {
    /// Something that every event has is not there.
    #[error("the message is no event: it has no {0}")]
    Missing(EnvelopePart),
    /// Something is of another kind than it is to be.
    #[error("the message is no event: its {0} is not {1}")]
    Malformed(EnvelopePart, &'static str),
    /// It is an event, but not of a type that is handled here.
    #[error("the event is a `{declared}`, {wanted} is wanted")]
    Type {
        /// What the message says. Cut off after 255 bytes.
        declared: String,
        /// What is wanted; several are divided by commas.
        wanted: String,
    },
}

/// A part of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EnvelopePart {
    /// The property of this name.
    Property(&'static str),
    /// The header of this name.
    Header(&'static str),
}

impl std::fmt::Display for EnvelopePart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            EnvelopePart::Property(name) => write!(f, "{name}"),
            EnvelopePart::Header(name) => write!(f, "header `{name}`"),
        }
    }
}

impl Envelope {
    /// This event from this service.
    pub fn new(event: Event, source: impl Into<String>) -> Envelope {
        Envelope { event, source: source.into(), published: None, aggregate: None }
    }

    /// The message that carries it.
    pub fn to_message(&self) -> Message {
        self.message_with(Headers::new())
    }

    /// As [`to_message`](Envelope::to_message), with further headers. The envelope's own win.
    pub(super) fn message_with(&self, more: Headers) -> Message {
        let Event { id, event_type, data, correlation_id, causation_id, metadata } = &self.event;
        let mut message = plain(data);
        let properties = message.properties_mut();
        properties.message_id = Some(id.clone());
        properties.correlation_id.clone_from(correlation_id);
        properties.timestamp = self.published;
        let mut headers = more;
        // What is not said is not said by somebody else's header either.
        for name in [CAUSATION_ID, EVENT_METADATA, AGGREGATE_TYPE, AGGREGATE_ID, AGGREGATE_VERSION] {
            headers.remove(name);
        }
        let mut set = |name: &str, value: Value| headers.insert(name.to_owned(), value);
        set(EVENT_TYPE, event_type.as_str().into());
        set(EVENT_SOURCE, self.source.as_str().into());
        if let Some(cause) = causation_id {
            set(CAUSATION_ID, cause.as_str().into());
        }
        if !metadata.is_empty() {
            let text = metadata.iter().map(|(name, value)| (name.clone(), value.as_str().into()));
            set(EVENT_METADATA, Value::Map(text.collect()));
        }
        if let Some(aggregate) = &self.aggregate {
            set(AGGREGATE_TYPE, aggregate.kind.as_str().into());
            set(AGGREGATE_ID, aggregate.id.as_str().into());
            set(AGGREGATE_VERSION, Value::Int(i64::try_from(aggregate.version).unwrap_or(i64::MAX)));
        }
        properties.headers = headers;
        message
    }

    /// The event that a message carries.
    ///
    /// # Errors
    /// If it carries none; says which part is missing, or is not what it is to be. Nothing is guessed.
    pub fn from_message(message: &Message) -> Result<Envelope, EnvelopeError> {
        let properties = message.properties();
        let id = properties.message_id.clone();
        let id = id.ok_or(EnvelopeError::Missing(EnvelopePart::Property("message id")))?;
        let event = Event {
            event_type: required(message, EVENT_TYPE)?,
            data: plain(message),
            correlation_id: properties.correlation_id.clone(),
            causation_id: text(message, CAUSATION_ID)?,
            metadata: metadata(message)?,
            id,
        };
        Ok(Envelope {
            event,
            source: required(message, EVENT_SOURCE)?,
            published: properties.timestamp,
            aggregate: aggregate(message)?,
        })
    }
}

/// The body and what is said of it alone.
fn plain(message: &Message) -> Message {
    let mut plain = Message::new(message.body().clone());
    let (kind, encoding) = (message.content_type(), &message.properties().content_encoding);
    if kind.is_some() || encoding.is_some() {
        let properties = plain.properties_mut();
        properties.content_type = kind.map(str::to_owned);
        properties.content_encoding.clone_from(encoding);
    }
    plain
}

fn text(message: &Message, name: &'static str) -> Result<Option<String>, EnvelopeError> {
    match message.header(name) {
        None => Ok(None),
        Some(Value::Text(text)) => Ok(Some(text.clone())),
        Some(_) => Err(EnvelopeError::Malformed(EnvelopePart::Header(name), "text")),
    }
}

fn required(message: &Message, name: &'static str) -> Result<String, EnvelopeError> {
    text(message, name)?.ok_or(EnvelopeError::Missing(EnvelopePart::Header(name)))
}

fn metadata(message: &Message) -> Result<BTreeMap<String, String>, EnvelopeError> {
    let malformed = EnvelopeError::Malformed(EnvelopePart::Header(EVENT_METADATA), "a map of texts");
    let Some(value) = message.header(EVENT_METADATA) else { return Ok(BTreeMap::new()) };
    let texts = value.as_map().and_then(|map| {
        map.iter().map(|(name, value)| Some((name.clone(), value.as_text()?.to_owned()))).collect()
    });
    texts.ok_or(malformed)
}

/// All of the three headers, or none.
fn aggregate(message: &Message) -> Result<Option<AggregateFacts>, EnvelopeError> {
    let names = [AGGREGATE_TYPE, AGGREGATE_ID, AGGREGATE_VERSION];
    if names.iter().all(|name| message.header(name).is_none()) {
        return Ok(None);
    }
    let part = EnvelopePart::Header(AGGREGATE_VERSION);
    let version = message.header(AGGREGATE_VERSION).ok_or(EnvelopeError::Missing(part))?;
    let version = version.as_int().and_then(|version| u64::try_from(version).ok());
    Ok(Some(AggregateFacts {
        kind: required(message, AGGREGATE_TYPE)?,
        id: required(message, AGGREGATE_ID)?,
        version: version.ok_or(EnvelopeError::Malformed(part, "a number from 0"))?,
    }))
}

/// As exact as it travels.
pub(super) fn to_the_millisecond(time: SystemTime) -> SystemTime {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let millis = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    SystemTime::UNIX_EPOCH + Duration::from_millis(millis)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::{btree_map, vec};
    use proptest::option::of;
    use proptest::prelude::*;

    fn envelopes() -> impl Strategy<Value = Envelope> {
        let data = (vec(any::<u8>(), 0..20), of(".{0,8}"), of(".{0,8}"));
        let said = (of(".{0,8}"), of(".{0,8}"), btree_map(".{0,8}", ".{0,8}", 0..4));
        let more = (of(0..u64::from(u32::MAX)), of((".{0,8}", ".{0,8}", 0..=i64::MAX as u64)));
        (".{0,8}", ".{0,8}", ".{0,8}", data, said, more).prop_map(|(id, kind, source, data, said, more)| {
            let mut body = Message::new(data.0);
            body.properties_mut().content_type = data.1;
            body.properties_mut().content_encoding = data.2;
            let mut event = Event::new(kind, body).with_id(id);
            (event.correlation_id, event.causation_id, event.metadata) = said;
            let mut envelope = Envelope::new(event, source);
            envelope.published = more.0.map(|millis| SystemTime::UNIX_EPOCH + Duration::from_millis(millis));
            envelope.aggregate = more.1.map(|(kind, id, version)| AggregateFacts { kind, id, version });
            envelope
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(envelope in envelopes()) {
            let message = envelope.to_message();
            prop_assert_eq!(message.body(), envelope.event.data.body());
            prop_assert_eq!(Envelope::from_message(&message), Ok(envelope));
        }

        /// What a message says besides is not the event's, and the envelope's own headers are nobody else's.
        #[test]
        fn further_headers_change_nothing(envelope in envelopes(), names in vec(0..8_usize, 0..8)) {
            let all = [EVENT_TYPE, EVENT_SOURCE, CAUSATION_ID, EVENT_METADATA, AGGREGATE_TYPE, AGGREGATE_ID,
                AGGREGATE_VERSION, "other"];
            let more = names.into_iter().map(|at| (all[at].to_owned(), Value::Bool(true))).collect();
            prop_assert_eq!(Envelope::from_message(&envelope.message_with(more)), Ok(envelope));
        }

        /// A message without one of its parts, or with something else there, is refused by that part's name.
        #[test]
        fn a_part_that_is_not_what_it_is_to_be_is_named(envelope in envelopes(), at in 0..8_usize, gone: bool) {
            let mut envelope = envelope;
            envelope.aggregate = Some(AggregateFacts { kind: "a".into(), id: "b".into(), version: 1 });
            let mut message = envelope.to_message();
            let all = [EVENT_TYPE, EVENT_SOURCE, AGGREGATE_TYPE, AGGREGATE_ID, AGGREGATE_VERSION, CAUSATION_ID,
                EVENT_METADATA];
            let Some(name) = all.get(at) else {
                message.properties_mut().message_id = None;
                let error = Envelope::from_message(&message).expect_err("without a name");
                prop_assert!(error.to_string().contains("no message id"));
                return Ok(());
            };
            if gone {
                message.properties_mut().headers.remove(*name);
            } else {
                message.properties_mut().headers.insert((*name).to_owned(), Value::Float(1.5));
            }
            let read = Envelope::from_message(&message);
            if gone && at > 4 {
                prop_assert!(read.is_ok(), "nobody needs it");
            } else {
                let text = read.expect_err("refused").to_string();
                prop_assert!(text.contains(*name), "{}", text);
            }
        }
    }
}
