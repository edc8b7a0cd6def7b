//! From ours to theirs.

use std::time::Duration;

use bytes::BufMut;
use millstream_message::{Headers, Message, Properties, Value};

use super::super::chunk::millis;
use super::{
    ANNOTATION_DELAY, ANNOTATION_HEADER, ANNOTATION_MARK, ANNOTATION_TTL, APPLICATION_PROPERTIES, DATA,
    HEADER, MESSAGE_ANNOTATIONS, Mark, PROPERTIES,
};

/// About how many bytes [`encode`] writes, never less for a message without properties.
pub(crate) fn size_hint(message: &Message) -> usize {
    let extra = if message.is_plain() { 8 } else { 128 };
    message.size() + extra
}

/// Appends a message.
pub(crate) fn encode(message: &Message, mark: Option<&Mark>, out: &mut Vec<u8>) {
    if message.is_plain() {
        if let Some(mark) = mark {
            put_annotations(&NO_PROPERTIES, Some(mark), out);
        }
    } else {
        put_properties(message.properties(), mark, out);
    }
    let body = message.body();
    if let Ok(len) = u8::try_from(body.len()) {
        out.put_slice(&[0, 0x53, DATA as u8, 0xa0, len]);
    } else {
        out.put_slice(&[0, 0x53, DATA as u8, 0xb0]);
        out.put_u32(body.len() as u32);
    }
    out.put_slice(body);
}

static NO_PROPERTIES: Properties = Properties {
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
};

/// Milliseconds of a TTL, when they fit where AMQP has them.
fn short_ttl(ttl: Duration) -> Option<u32> {
    u32::try_from(ttl.as_millis()).ok()
}

fn is_nested(value: &Value) -> bool {
    matches!(value, Value::List(_) | Value::Map(_))
}

fn put_properties(properties: &Properties, mark: Option<&Mark>, out: &mut Vec<u8>) {
    let Properties { persistent, priority, ttl, .. } = *properties;
    let ttl = ttl.and_then(short_ttl);
    if !persistent || priority != 0 || ttl.is_some() {
        put_section(out, HEADER);
        put_compound(out, 0xd0, if ttl.is_some() { 3 } else { 2 }, |out| {
            out.put_u8(if persistent { 0x41 } else { 0x42 });
            out.put_slice(&[0x50, priority]);
            if let Some(ttl) = ttl {
                out.put_u8(0x70);
                out.put_u32(ttl);
            }
        });
    }
    put_annotations(properties, mark, out);
    // Also when it says nothing: so a message that is not plain stays so.
    put_section(out, PROPERTIES);
    put_fields(properties, out);
    let simple = || properties.headers.iter().filter(|(_, value)| !is_nested(value));
    let count = simple().count() as u32;
    if count > 0 {
        put_section(out, APPLICATION_PROPERTIES);
        put_compound(out, 0xd1, 2 * count, |out| {
            for (name, value) in simple() {
                put_text(out, name);
                put_value(out, value);
            }
        });
    }
}

/// The `properties` section's list, up to the last field that is there.
fn put_fields(properties: &Properties, out: &mut Vec<u8>) {
    let Properties {
        content_type, content_encoding, message_id, correlation_id, reply_to, timestamp, ..
    } = properties;
    // Their places (part 3.2.4): 0 message-id, 1 user-id, 2 to, 3 subject, 4 reply-to, 5 correlation-id,
    // 6 content-type, 7 content-encoding, 8 absolute-expiry-time, 9 creation-time.
    let fields = [message_id, &None, &None, &None, reply_to, correlation_id, content_type, content_encoding];
    let count = if timestamp.is_some() {
        10
    } else {
        fields.iter().rposition(|field| field.is_some()).map_or(0, |last| last + 1)
    };
    if count == 0 {
        out.put_u8(0x45);
        return;
    }
    put_compound(out, 0xd0, count as u32, |out| {
        for (place, field) in fields.iter().take(count).enumerate() {
            match field {
                Some(text) if place >= 6 => put_symbol(out, text),
                Some(text) => put_text(out, text),
                None => out.put_u8(0x40),
            }
        }
        if let Some(timestamp) = timestamp {
            out.put_slice(&[0x40, 0x83]);
            out.put_i64(millis(*timestamp));
        }
    });
}

fn put_annotations(properties: &Properties, mark: Option<&Mark>, out: &mut Vec<u8>) {
    let nested = || properties.headers.iter().filter(|(_, value)| is_nested(value));
    let ttl = properties.ttl.filter(|ttl| short_ttl(*ttl).is_none());
    let times = [(ANNOTATION_DELAY, properties.delay), (ANNOTATION_TTL, ttl)];
    let times = || times.iter().filter_map(|(name, time)| Some((name, (*time)?)));
    let count = nested().count() + times().count() + usize::from(mark.is_some());
    if count == 0 {
        return;
    }
    put_section(out, MESSAGE_ANNOTATIONS);
    put_compound(out, 0xd1, 2 * count as u32, |out| {
        if let Some(mark) = mark {
            put_symbol(out, ANNOTATION_MARK);
            put_sized(out, 0xa0, mark);
        }
        for (name, time) in times() {
            put_symbol(out, name);
            out.put_u8(0x80);
            out.put_u64(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        }
        for (name, value) in nested() {
            put_symbol(out, &format!("{ANNOTATION_HEADER}{name}"));
            put_value(out, value);
        }
    });
}

fn put_section(out: &mut Vec<u8>, section: u64) {
    out.put_slice(&[0, 0x53, section as u8]);
}

/// A list or a map: type, bytes behind the size, count, elements.
pub(super) fn put_compound(out: &mut Vec<u8>, code: u8, count: u32, put: impl FnOnce(&mut Vec<u8>)) {
    out.put_u8(code);
    let at = out.len();
    out.put_u32(0);
    out.put_u32(count);
    put(out);
    let len = (out.len() - at - 4) as u32;
    out[at..at + 4].copy_from_slice(&len.to_be_bytes());
}

/// Bytes behind their size: `code` for a size of one byte, 16 more for one of four.
fn put_sized(out: &mut Vec<u8>, code: u8, bytes: &[u8]) {
    match u8::try_from(bytes.len()) {
        Ok(len) => out.put_slice(&[code, len]),
        Err(_) => {
            out.put_u8(code + 0x10);
            out.put_u32(bytes.len() as u32);
        }
    }
    out.put_slice(bytes);
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_sized(out, 0xa1, text.as_bytes());
}

fn put_symbol(out: &mut Vec<u8>, text: &str) {
    put_sized(out, 0xa3, text.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Null => out.put_u8(0x40),
        Value::Bool(true) => out.put_u8(0x41),
        Value::Bool(false) => out.put_u8(0x42),
        Value::Int(number) => match i8::try_from(*number) {
            Ok(short) => out.put_slice(&[0x55, short.cast_unsigned()]),
            Err(_) => {
                out.put_u8(0x81);
                out.put_i64(*number);
            }
        },
        Value::Float(number) => {
            out.put_u8(0x82);
            out.put_f64(*number);
        }
        Value::Text(text) => put_text(out, text),
        Value::Bytes(bytes) => put_sized(out, 0xa0, bytes),
        Value::List(list) => {
            put_compound(out, 0xd0, list.len() as u32, |out| {
                list.iter().for_each(|value| put_value(out, value))
            });
        }
        Value::Map(map) => put_compound(out, 0xd1, 2 * map.len() as u32, |out| {
            for (name, value) in map {
                put_text(out, name);
                put_value(out, value);
            }
        }),
    }
}
