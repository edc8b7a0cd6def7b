//! From theirs to ours.

use std::time::Duration;

use bytes::Bytes;
use millstream_message::{Headers, Message, Properties, Value};

use super::super::chunk::time;
use super::input::Input;
use super::{
    ANNOTATION_DELAY, ANNOTATION_HEADER, ANNOTATION_MARK, ANNOTATION_TTL, APPLICATION_PROPERTIES, AmqpError,
    DATA, DELIVERY_ANNOTATIONS, DEPTH_MAX, FOOTER, HEADER, MESSAGE_ANNOTATIONS, Mark, PROPERTIES, SEQUENCE,
    VALUE,
};

/// A message that is a part of these bytes, and the mark of the append that it begins. The body shares the whole.
pub(crate) fn decode(bytes: &[u8], whole: &Bytes) -> Result<(Message, Option<Mark>), AmqpError> {
    if let Some(body) = lone_data(bytes) {
        return Ok((Message::new(whole.slice_ref(body)), None));
    }
    decode_all(Input { rest: bytes, whole })
}

fn decode_all(mut input: Input<'_>) -> Result<(Message, Option<Mark>), AmqpError> {
    let mut properties = None;
    let mut foreign = Headers::new();
    let mut mark = None;
    let mut body = Bytes::new();
    while !input.rest.is_empty() {
        match input.descriptor()? {
            HEADER => read_header(&mut input, properties.get_or_insert_default())?,
            MESSAGE_ANNOTATIONS => {
                input.map(DEPTH_MAX, |name, value| {
                    read_annotation(name, value, &mut properties, &mut foreign, &mut mark);
                })?;
            }
            PROPERTIES => read_fields(&mut input, properties.get_or_insert_default())?,
            APPLICATION_PROPERTIES => {
                let headers = &mut properties.get_or_insert_default().headers;
                input.map(DEPTH_MAX, |name, value| _ = headers.insert(name, value))?;
            }
            DATA => {
                let data = input.binary()?;
                body = if body.is_empty() { data } else { [&body[..], &data].concat().into() };
            }
            VALUE => body = input.body_value()?,
            SEQUENCE => return Err(AmqpError::Sequence),
            DELIVERY_ANNOTATIONS | FOOTER => _ = input.value(DEPTH_MAX)?,
            other => return Err(AmqpError::Section(other)),
        }
    }
    if !foreign.is_empty() {
        let headers = &mut properties.get_or_insert_default().headers;
        for (name, value) in foreign {
            headers.entry(name).or_insert(value);
        }
    }
    let message = match properties {
        Some(properties) => Message::from_parts(body, properties),
        None => Message::new(body),
    };
    Ok((message, mark))
}

/// The body of a message that is one `data` section and nothing else, as nearly all are.
fn lone_data(bytes: &[u8]) -> Option<&[u8]> {
    match *bytes {
        [0, 0x53, 0x75, 0xa0, len, ref body @ ..] if body.len() == usize::from(len) => Some(body),
        [0, 0x53, 0x75, 0xb0, a, b, c, d, ref body @ ..]
            if body.len() == u32::from_be_bytes([a, b, c, d]) as usize =>
        {
            Some(body)
        }
        _ => None,
    }
}

/// durable, priority, ttl; what follows is about queues.
fn read_header(input: &mut Input<'_>, properties: &mut Properties) -> Result<(), AmqpError> {
    for (place, value) in input.list(DEPTH_MAX)?.into_iter().enumerate() {
        match (place, value) {
            (0, Value::Bool(durable)) => properties.persistent = durable,
            (1, Value::Int(priority)) => properties.priority = u8::try_from(priority).unwrap_or(u8::MAX),
            (2, Value::Int(ttl)) => properties.ttl = Some(Duration::from_millis(ttl.cast_unsigned())),
            _ => {}
        }
    }
    Ok(())
}

fn read_fields(input: &mut Input<'_>, properties: &mut Properties) -> Result<(), AmqpError> {
    for (place, value) in input.list(DEPTH_MAX)?.into_iter().enumerate() {
        match place {
            0 => properties.message_id = text_of(value),
            4 => properties.reply_to = text_of(value),
            5 => properties.correlation_id = text_of(value),
            6 => properties.content_type = text_of(value),
            7 => properties.content_encoding = text_of(value),
            9 => properties.timestamp = value.as_int().map(time),
            _ => {}
        }
    }
    Ok(())
}

/// Ids may be numbers and bytes, too; they become text that is as good a name.
fn text_of(value: Value) -> Option<String> {
    match value {
        Value::Text(text) => Some(text),
        Value::Int(number) => Some(number.cast_unsigned().to_string()),
        Value::Bytes(bytes) => Some(bytes.iter().map(|byte| format!("{byte:02x}")).collect()),
        _ => None,
    }
}

fn read_annotation(
    name: String,
    value: Value,
    properties: &mut Option<Properties>,
    foreign: &mut Headers,
    mark: &mut Option<Mark>,
) {
    let time = |value: &Value| value.as_int().map(|millis| Duration::from_millis(millis.cast_unsigned()));
    match (name.as_str(), &value) {
        (ANNOTATION_MARK, Value::Bytes(bytes)) => *mark = bytes[..].try_into().ok(),
        (ANNOTATION_DELAY, _) => properties.get_or_insert_default().delay = time(&value),
        (ANNOTATION_TTL, _) => properties.get_or_insert_default().ttl = time(&value),
        _ => match name.strip_prefix(ANNOTATION_HEADER) {
            Some(header) => {
                _ = properties.get_or_insert_default().headers.insert(header.to_owned(), value);
            }
            None => _ = foreign.insert(name, value),
        },
    }
}
