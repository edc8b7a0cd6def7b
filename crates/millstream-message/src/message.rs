//! The message: a body and what is said about it.

use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::value::{BLOCK, Headers, Value, footprint};

/// What is published and stored: a body and its [`Properties`].
///
/// A clone costs two reference counts, whatever the size: the body is [`Bytes`] and the properties are shared
/// until one side changes them. A message without properties carries none and allocates nothing for them. Where it
/// goes (exchange and key) is not part of it but of its [`Address`](crate::Address).
///
/// ```
/// use std::time::Duration;
/// use millstream_message::{Message, Value};
///
/// let message = Message::new("hello").with_header("attempt", 1_i64).with_ttl(Duration::from_secs(60));
/// assert_eq!(message.body(), "hello");
/// assert_eq!(message.header("attempt"), Some(&Value::Int(1)));
/// assert!(message.properties().persistent, "messages are persistent unless someone says otherwise");
/// ```
#[derive(Clone, Default)]
pub struct Message {
    body: Bytes,
    properties: Option<Arc<Properties>>,
}

/// What is said about a body. Every field is kept by every backend and comes back as it was published.
#[derive(Clone, Debug, PartialEq)]
pub struct Properties {
    /// Typed headers. Names that begin with `millstream-` are Millstream's own (see [`dead`](crate::dead) and
    /// [`SCHEMA`](crate::codec::SCHEMA)).
    pub headers: Headers,
    /// The media type of the body. [`Codec`](crate::Codec)s trust it and never guess.
    pub content_type: Option<String>,
    /// How the body is compressed, as in HTTP; `None` means not at all.
    pub content_encoding: Option<String>,
    /// The publisher's name for this message, for deduplication and tracing. Never invented by a broker.
    pub message_id: Option<String>,
    /// Which request this message belongs to.
    pub correlation_id: Option<String>,
    /// Where an answer is expected: the name of a queue.
    pub reply_to: Option<String>,
    /// When the publisher made the message. Kept to the millisecond.
    pub timestamp: Option<SystemTime>,
    /// How long the message may wait in a queue before it is expired. The queue's own limit also counts: the shorter
    /// wins. Kept to the millisecond. It expires when it has come to the head of its queue, as on RabbitMQ: behind messages that
    /// wait for longer it stays, and counts, until they are gone.
    pub ttl: Option<Duration>,
    /// How long the message stays invisible after it was stored. Kept to the millisecond.
    pub delay: Option<Duration>,
    /// Higher goes first, in a queue that declared priorities; capped at the queue's maximum.
    pub priority: u8,
    /// Whether a durable queue keeps the message over a restart. True unless someone says otherwise.
    pub persistent: bool,
}

impl Default for Properties {
    fn default() -> Properties {
        Properties {
            headers: Headers::new(),
            content_type: None,
            content_encoding: None,
            message_id: None,
            correlation_id: None,
            reply_to: None,
            timestamp: None,
            ttl: None,
            delay: None,
            priority: 0,
            persistent: true,
        }
    }
}

/// Those are equal that say the same, whether they say it or leave it out.
impl PartialEq for Message {
    fn eq(&self, other: &Message) -> bool {
        self.body == other.body && self.properties() == other.properties()
    }
}

/// What a shared part costs besides itself: its counts, and for a body where its bytes begin and end.
const SHARED: usize = 32 + BLOCK;

static NONE: LazyLock<Properties> = LazyLock::new(Properties::default);

impl Message {
    /// A persistent message with this body and nothing said about it.
    pub fn new(body: impl Into<Bytes>) -> Message {
        Message { body: body.into(), properties: None }
    }

    /// A message of these two parts.
    pub fn from_parts(body: Bytes, properties: Properties) -> Message {
        Message { body, properties: Some(Arc::new(properties)) }
    }

    /// The body.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// The body alone.
    pub fn into_body(self) -> Bytes {
        self.body
    }

    /// The same properties around another body.
    #[must_use]
    pub fn with_body(mut self, body: impl Into<Bytes>) -> Message {
        self.body = body.into();
        self
    }

    /// What is said about the body.
    pub fn properties(&self) -> &Properties {
        self.properties.as_deref().unwrap_or(&NONE)
    }

    /// True when nothing was said about the body, so that an encoder can skip all of it.
    pub fn is_plain(&self) -> bool {
        self.properties.is_none()
    }

    /// The properties, to change. Copies them when another clone of the message shares them.
    pub fn properties_mut(&mut self) -> &mut Properties {
        Arc::make_mut(self.properties.get_or_insert_default())
    }

    /// One header.
    pub fn header(&self, name: &str) -> Option<&Value> {
        self.properties.as_ref().and_then(|properties| properties.headers.get(name))
    }

    /// The declared media type.
    pub fn content_type(&self) -> Option<&str> {
        self.properties.as_ref().and_then(|properties| properties.content_type.as_deref())
    }

    /// About how many bytes the message takes, body, headers and names together. This is the size that byte limits
    /// of queues, prefetch and budgets count.
    pub fn size(&self) -> usize {
        let Some(properties) = &self.properties else { return self.body.len() };
        let text = |field: &Option<String>| field.as_ref().map_or(0, String::len);
        self.body.len()
            + properties.headers.iter().map(|(name, value)| name.len() + value.size()).sum::<usize>()
            + text(&properties.content_type)
            + text(&properties.content_encoding)
            + text(&properties.message_id)
            + text(&properties.correlation_id)
            + text(&properties.reply_to)
    }

    /// About how many bytes of memory this message keeps: what [`size`](Message::size) counts, and what it is kept in. For
    /// budgets of memory; limits of queues count the size. A clone shares nearly all of it.
    pub fn footprint(&self) -> usize {
        let body = if self.body.is_empty() { 0 } else { self.body.len() + BLOCK + SHARED };
        let properties = self.properties.as_ref().map_or(0, |properties| {
            let text = |field: &Option<String>| field.as_ref().map_or(0, |field| field.capacity() + BLOCK);
            size_of::<Properties>()
                + SHARED
                + footprint(&properties.headers)
                + text(&properties.content_type)
                + text(&properties.content_encoding)
                + text(&properties.message_id)
                + text(&properties.correlation_id)
                + text(&properties.reply_to)
        });
        size_of::<Message>() + body + properties
    }

    /// Adds or replaces one header.
    #[must_use]
    pub fn with_header(mut self, name: impl Into<String>, value: impl Into<Value>) -> Message {
        self.properties_mut().headers.insert(name.into(), value.into());
        self
    }

    /// Declares the media type of the body.
    #[must_use]
    pub fn with_content_type(mut self, content_type: impl Into<String>) -> Message {
        self.properties_mut().content_type = Some(content_type.into());
        self
    }

    /// Declares how the body is compressed.
    #[must_use]
    pub fn with_content_encoding(mut self, encoding: impl Into<String>) -> Message {
        self.properties_mut().content_encoding = Some(encoding.into());
        self
    }

    /// Names the message.
    #[must_use]
    pub fn with_message_id(mut self, id: impl Into<String>) -> Message {
        self.properties_mut().message_id = Some(id.into());
        self
    }

    /// Says which request the message belongs to.
    #[must_use]
    pub fn with_correlation_id(mut self, id: impl Into<String>) -> Message {
        self.properties_mut().correlation_id = Some(id.into());
        self
    }

    /// Says where an answer is expected.
    #[must_use]
    pub fn with_reply_to(mut self, queue: impl Into<String>) -> Message {
        self.properties_mut().reply_to = Some(queue.into());
        self
    }

    /// Says when the message was made.
    #[must_use]
    pub fn with_timestamp(mut self, at: SystemTime) -> Message {
        self.properties_mut().timestamp = Some(at);
        self
    }

    /// Limits how long the message may wait in a queue.
    #[must_use]
    pub fn with_ttl(mut self, ttl: Duration) -> Message {
        self.properties_mut().ttl = Some(ttl);
        self
    }

    /// Keeps the message invisible for this long after it was stored.
    #[must_use]
    pub fn with_delay(mut self, delay: Duration) -> Message {
        self.properties_mut().delay = Some(delay);
        self
    }

    /// Sets the priority.
    #[must_use]
    pub fn with_priority(mut self, priority: u8) -> Message {
        self.properties_mut().priority = priority;
        self
    }

    /// Says that a durable queue need not keep the message over a restart.
    #[must_use]
    pub fn transient(mut self) -> Message {
        self.properties_mut().persistent = false;
        self
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Message");
        match std::str::from_utf8(&self.body) {
            Ok(text) if text.len() <= 120 => out.field("body", &text),
            _ => out.field("body_bytes", &self.body.len()),
        };
        if let Some(properties) = &self.properties {
            out.field("properties", properties);
        }
        out.finish()
    }
}

impl From<Bytes> for Message {
    fn from(body: Bytes) -> Message {
        Message::new(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changing_a_clone_leaves_the_original_alone() {
        let first = Message::new("x").with_header("a", 1_i64);
        let second = first.clone().with_header("a", 2_i64);
        assert_eq!(first.header("a"), Some(&Value::Int(1)));
        assert_eq!(second.header("a"), Some(&Value::Int(2)));
    }

    #[test]
    fn messages_that_say_the_same_are_equal() {
        let said = Message::from_parts(Bytes::from_static(b"x"), Properties::default());
        assert_eq!(said, Message::new("x"));
        assert_ne!(said.clone().with_priority(1), said);
        assert_ne!(said, Message::new("y"));
    }

    #[test]
    fn size_counts_body_headers_and_names() {
        assert_eq!(Message::new(vec![0_u8; 100]).size(), 100);
        let message = Message::new("12345").with_content_type("ab").with_header("n", "xyz");
        assert_eq!(message.size(), 5 + 2 + 1 + (3 + 8));
    }

    #[test]
    fn a_footprint_counts_what_keeps_the_parts() {
        let plain = Message::new(vec![0_u8; 100]).footprint();
        assert!((180..220).contains(&plain), "{plain}");
        let one = Message::new(vec![0_u8; 100]).with_header("n", "xyz").footprint();
        // A map's node has room for eleven entries, however few there are.
        assert!(one > plain + size_of::<Properties>() + 11 * size_of::<(String, Value)>(), "{one}");
        let nested = Value::List(vec![Value::from("x".repeat(1000)); 3]);
        assert!(Message::new("").with_header("n", nested).footprint() > one + 2900);
    }

    #[test]
    fn a_long_body_is_not_printed() {
        assert!(format!("{:?}", Message::new(vec![b'x'; 5000])).len() < 100);
    }
}
