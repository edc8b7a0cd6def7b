//! The properties of a message (specification, section 4.2.6.1), to and from ours.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::BufMut;
use millstream_message::{Headers, Message, Properties, Value};

use super::wire::{Reader, WireError, put_shortstr, put_table};

/// AMQP's `type`, `user-id` and `app-id` have no place of their own in a message: they are these headers.
pub const TYPE: &str = "amqp-type";
/// See [`TYPE`].
///
/// RabbitMQ takes a message only from the user that this names. One that somebody else had published is moved to dead letters, or given
/// back with a delay, with that name in [`FORMER_USER_ID`].
pub const USER_ID: &str = "amqp-user-id";
/// The header with the `user-id` that a message had before another user moved it.
pub const FORMER_USER_ID: &str = "amqp-former-user-id";
/// See [`TYPE`].
pub const APP_ID: &str = "amqp-app-id";

/// Properties whose bytes are kept in headers of their own when they are no text.
const RAW: [(u16, &str); 3] =
    [(CORRELATION_ID, "amqp-correlation-id"), (MESSAGE_ID, "amqp-message-id"), (REPLY_TO, "amqp-reply-to")];

/// Bits that say which properties are there, from the highest.
const CONTENT_TYPE: u16 = 1 << 15;
const CONTENT_ENCODING: u16 = 1 << 14;
const HEADERS: u16 = 1 << 13;
const DELIVERY_MODE: u16 = 1 << 12;
const PRIORITY: u16 = 1 << 11;
const CORRELATION_ID: u16 = 1 << 10;
const REPLY_TO: u16 = 1 << 9;
const EXPIRATION: u16 = 1 << 8;
const MESSAGE_ID: u16 = 1 << 7;
const TIMESTAMP: u16 = 1 << 6;
const KIND: u16 = 1 << 5;
const USER: u16 = 1 << 4;
const APP: u16 = 1 << 3;
const CLUSTER: u16 = 1 << 2;
/// Another word of bits follows. No property is that far.
const MORE: u16 = 1;

const TRANSIENT: u8 = 1;
const PERSISTENT: u8 = 2;

/// Writes flags and properties of a message. Its delay is not among them: whoever publishes it sees to that.
pub(crate) fn put(out: &mut Vec<u8>, message: &Message) {
    if message.is_plain() {
        out.put_u16(DELIVERY_MODE);
        out.put_u8(PERSISTENT);
        return;
    }
    let Properties {
        headers,
        content_type,
        content_encoding,
        message_id,
        correlation_id,
        reply_to,
        timestamp,
        ttl,
        delay: _,
        priority,
        persistent,
    } = message.properties();
    let own = |name: &str| headers.get(name).and_then(Value::as_text);
    let (kind, user, app) = (own(TYPE), own(USER_ID), own(APP_ID));
    let apart = usize::from(kind.is_some()) + usize::from(user.is_some()) + usize::from(app.is_some());
    let headers_left = headers.len() > apart;

    let at = out.len();
    out.put_u16(0);
    let mut flags = DELIVERY_MODE;
    let mut text = |out: &mut Vec<u8>, flag: u16, text: Option<&str>| {
        if let Some(text) = text {
            flags |= flag;
            put_shortstr(out, text);
        }
    };
    text(out, CONTENT_TYPE, content_type.as_deref());
    text(out, CONTENT_ENCODING, content_encoding.as_deref());
    if headers_left && apart == 0 {
        put_table(out, headers);
    } else if headers_left {
        let is_apart = |name: &str| [TYPE, USER_ID, APP_ID].contains(&name) && own(name).is_some();
        let rest = headers.iter().filter(|(name, _)| !is_apart(name));
        put_table(out, &rest.map(|(name, value)| (name.clone(), value.clone())).collect());
    }
    out.put_u8(if *persistent { PERSISTENT } else { TRANSIENT });
    if *priority > 0 {
        out.put_u8(*priority);
    }
    text(out, CORRELATION_ID, correlation_id.as_deref());
    text(out, REPLY_TO, reply_to.as_deref());
    text(out, EXPIRATION, ttl.map(|ttl| ttl.as_millis().to_string()).as_deref());
    text(out, MESSAGE_ID, message_id.as_deref());
    let seconds =
        timestamp.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).map(|since| since.as_secs());
    if let Some(seconds) = seconds {
        out.put_u64(seconds);
    }
    text(out, KIND, kind);
    text(out, USER, user);
    text(out, APP, app);
    flags |= if headers_left { HEADERS } else { 0 };
    flags |= if *priority > 0 { PRIORITY } else { 0 };
    flags |= if seconds.is_some() { TIMESTAMP } else { 0 };
    out[at..at + 2].copy_from_slice(&flags.to_be_bytes());
}

/// Whether all that is said about a message fits into one frame, as it must.
pub(crate) fn fits(message: &Message, frame_max: usize) -> bool {
    let mut out = Vec::new();
    put(&mut out, message);
    // Class, weight and size of the body stand before it, type, channel, length and end around it.
    out.len() + 12 + 8 <= frame_max
}

/// The names among the properties that are too long for the wire, if one is.
pub(crate) fn too_long(message: &Message) -> Option<&'static str> {
    if message.is_plain() {
        return None;
    }
    let properties = message.properties();
    let long = |text: &Option<String>| text.as_ref().is_some_and(|text| text.len() > 255);
    let own =
        |name: &str| properties.headers.get(name).and_then(Value::as_text).is_some_and(|t| t.len() > 255);
    [
        ("content_type", long(&properties.content_type)),
        ("content_encoding", long(&properties.content_encoding)),
        ("message_id", long(&properties.message_id)),
        ("correlation_id", long(&properties.correlation_id)),
        ("reply_to", long(&properties.reply_to)),
        (TYPE, own(TYPE)),
        (USER_ID, own(USER_ID)),
        (APP_ID, own(APP_ID)),
        ("a header's name", names_too_long(&properties.headers)),
    ]
    .into_iter()
    .find_map(|(name, long)| long.then_some(name))
}

fn names_too_long(headers: &Headers) -> bool {
    fn within(value: &Value) -> bool {
        match value {
            Value::Map(map) => names_too_long(map),
            Value::List(list) => list.iter().any(within),
            _ => false,
        }
    }
    headers.iter().any(|(name, value)| name.len() > 255 || within(value))
}

/// Reads flags and properties. `None` stands for those of a message about which nothing is said but that it is
/// persistent.
pub(crate) fn read(bytes: &[u8]) -> Result<Option<Properties>, WireError> {
    let mut reader = Reader::new(bytes);
    let flags = reader.u16()?;
    if flags & MORE != 0 {
        return Err(WireError::Trailing);
    }
    if flags == DELIVERY_MODE && bytes == [(DELIVERY_MODE >> 8) as u8, 0, PERSISTENT] {
        return Ok(None);
    }
    let has = |flag: u16| flags & flag != 0;
    let mut raw = Vec::new();
    let mut text = |reader: &mut Reader<'_>, flag: u16| -> Result<Option<String>, WireError> {
        if !has(flag) {
            return Ok(None);
        }
        // Nobody checks that it is text: some put the bytes of a UUID here.
        let bytes = reader.short_bytes()?;
        let text = String::from_utf8_lossy(bytes).into_owned();
        let name = RAW.iter().find(|(raw, _)| *raw == flag).filter(|_| text.as_bytes() != bytes);
        raw.extend(name.map(|(_, name)| ((*name).to_owned(), Value::Bytes(bytes.to_vec().into()))));
        Ok(Some(text))
    };
    let content_type = text(&mut reader, CONTENT_TYPE)?;
    let content_encoding = text(&mut reader, CONTENT_ENCODING)?;
    let mut headers = if has(HEADERS) { reader.table()? } else { Headers::new() };
    let persistent = has(DELIVERY_MODE) && reader.u8()? == PERSISTENT;
    let priority = if has(PRIORITY) { reader.u8()? } else { 0 };
    let correlation_id = text(&mut reader, CORRELATION_ID)?;
    let reply_to = text(&mut reader, REPLY_TO)?;
    let ttl = text(&mut reader, EXPIRATION)?.and_then(|text| text.parse().ok()).map(Duration::from_millis);
    let message_id = text(&mut reader, MESSAGE_ID)?;
    let seconds = if has(TIMESTAMP) { Some(reader.u64()?) } else { None };
    // A time that cannot be is none.
    let timestamp = seconds.and_then(|s| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(s)));
    for (flag, name) in [(KIND, TYPE), (USER, USER_ID), (APP, APP_ID)] {
        if let Some(text) = text(&mut reader, flag)? {
            headers.insert(name.to_owned(), Value::Text(text));
        }
    }
    headers.extend(raw);
    if has(CLUSTER) {
        reader.short_bytes()?;
    }
    reader.end()?;
    Ok(Some(Properties {
        headers,
        content_type,
        content_encoding,
        message_id,
        correlation_id,
        reply_to,
        timestamp,
        ttl,
        delay: None,
        priority,
        persistent,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::wire::tests::tables;
    use bytes::Bytes;
    use proptest::prelude::*;

    fn there_and_back(message: &Message) -> Message {
        let mut out = Vec::new();
        put(&mut out, message);
        match read(&out).expect("it can be read") {
            None => Message::new(message.body().clone()),
            Some(properties) => Message::from_parts(message.body().clone(), properties),
        }
    }

    fn text() -> impl Strategy<Value = Option<String>> {
        prop::option::of("\\PC{0,20}")
    }

    prop_compose! {
        fn messages()(
            headers in tables(), texts in (text(), text(), text(), text(), text()),
            seconds in prop::option::of(0..1u64 << 40), ttl in prop::option::of(0..1u64 << 40),
            priority in any::<u8>(), persistent in any::<bool>(),
        ) -> Message {
            let (content_type, content_encoding, message_id, correlation_id, reply_to) = texts;
            let properties = Properties {
                headers, content_type, content_encoding, message_id, correlation_id, reply_to,
                timestamp: seconds.map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds)),
                ttl: ttl.map(Duration::from_millis),
                delay: None, priority, persistent,
            };
            Message::from_parts(Bytes::from_static(b"body"), properties)
        }
    }

    proptest! {
        #[test]
        fn properties_come_back(message in messages()) {
            prop_assert_eq!(there_and_back(&message), message);
        }

        #[test]
        fn any_bytes_are_properties_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = read(&bytes);
        }
    }

    #[test]
    fn what_amqp_has_beyond_a_message_is_in_headers_of_its_own() {
        let message =
            Message::new("x").with_header(TYPE, "order").with_header(APP_ID, "shop").with_header("n", 1_i64);
        assert_eq!(there_and_back(&message), message);
        let mut out = Vec::new();
        put(&mut out, &message);
        assert_ne!(out[1] & 0b0010_1000, 0, "as properties");
        // A foreign header of that name that is no text stays what it is.
        let odd = Message::new("x").with_header(TYPE, 5_i64);
        assert_eq!(there_and_back(&odd), odd);
    }

    #[test]
    fn what_is_no_text_is_read_as_well_as_it_can_be() {
        // A header `\xff`, and `\xfe` as correlation id.
        let flags = (HEADERS | CORRELATION_ID).to_be_bytes();
        let bytes = [&flags[..], b"\0\0\0\x03\x01\xffV", b"\x02\xfeA"].concat();
        let read = read(&bytes).expect("it can be read").expect("there is something");
        assert_eq!(read.correlation_id.as_deref(), Some("\u{fffd}A"));
        assert_eq!(read.headers["amqp-correlation-id"], Value::Bytes(Bytes::from_static(b"\xfeA")));
        assert_eq!(read.headers["\u{fffd}"], Value::Null);
    }

    #[test]
    fn a_plain_message_is_three_bytes() {
        let mut out = Vec::new();
        put(&mut out, &Message::new("x"));
        assert_eq!(out, [0x10, 0, 2]);
        assert_eq!(read(&out), Ok(None));
    }

    #[test]
    fn names_that_are_too_long_are_found() {
        let long = "x".repeat(256);
        assert_eq!(too_long(&Message::new("")), None);
        assert_eq!(too_long(&Message::new("").with_message_id("x".repeat(255))), None);
        assert_eq!(too_long(&Message::new("").with_message_id(&long)), Some("message_id"));
        let nested = Value::List(vec![Value::Map(Headers::from([(long.clone(), Value::Null)]))]);
        assert_eq!(too_long(&Message::new("").with_header("h", nested)), Some("a header's name"));
    }
}
