//! Messages as AMQP 1.0 encodes them, which is how clients of streams write theirs.
//!
//! | ours | AMQP 1.0 |
//! |---|---|
//! | body | one `data` section |
//! | content type and encoding, message and correlation id, reply-to, timestamp | `properties` |
//! | persistent, priority, TTL | `header` |
//! | headers of simple types | `application-properties` |
//! | headers that are lists or maps, delay, a TTL beyond 49 days | `message-annotations`, named `x-opt-millstream-…` |
//!
//! What others wrote is read as far as it has a place here: several `data` sections are one body, a text or bytes as
//! `amqp-value` are the body, annotations are headers.

use std::time::Duration;

use bytes::{BufMut, Bytes};
use millstream_message::{Headers, Message, Properties, Value};

use super::chunk::{millis, time};

/// What is wrong with bytes that should have been a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AmqpError {
    #[error("a value goes beyond its message")]
    Short,
    #[error("{0:#04x} is no type of a value")]
    Type(u8),
    #[error("{0:#x} is no section of a message")]
    Section(u64),
    #[error("an `amqp-sequence` has no place in a body of bytes")]
    Sequence,
    #[error("an `amqp-value` that is neither text nor bytes has no place in a body of bytes")]
    NotBytes,
    #[error("a section that is a list has something else")]
    NotList,
    #[error("a text is not UTF-8")]
    Utf8,
    #[error("values are nested more than {DEPTH_MAX} deep")]
    Depth,
    #[error("a count of {0} values does not fit into its message")]
    Count(u32),
}

const DEPTH_MAX: u32 = 32;

const HEADER: u64 = 0x70;
const DELIVERY_ANNOTATIONS: u64 = 0x71;
const MESSAGE_ANNOTATIONS: u64 = 0x72;
const PROPERTIES: u64 = 0x73;
const APPLICATION_PROPERTIES: u64 = 0x74;
const DATA: u64 = 0x75;
const SEQUENCE: u64 = 0x76;
const VALUE: u64 = 0x77;
const FOOTER: u64 = 0x78;

/// Before a header that is a list or a map.
const ANNOTATION_HEADER: &str = "x-opt-millstream-header-";
const ANNOTATION_DELAY: &str = "x-opt-millstream-delay";
const ANNOTATION_TTL: &str = "x-opt-millstream-ttl";
/// Marks the first message of an append, whose offset is then looked for. Never shown.
const ANNOTATION_MARK: &str = "x-opt-millstream-append";

/// Names one append, so that it is known again when it is read back.
pub(crate) type Mark = [u8; 16];

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
fn put_compound(out: &mut Vec<u8>, code: u8, count: u32, put: impl FnOnce(&mut Vec<u8>)) {
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

/// A message, and the mark of the append that it begins. The body shares the bytes.
pub(crate) fn decode(bytes: &Bytes) -> Result<(Message, Option<Mark>), AmqpError> {
    if let Some(body) = lone_data(bytes) {
        return Ok((Message::new(bytes.slice(bytes.len() - body..)), None));
    }
    let mut input = Input { rest: bytes, whole: bytes };
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

/// The length of the body of a message that is one `data` section and nothing else, as nearly all are.
fn lone_data(bytes: &[u8]) -> Option<usize> {
    match *bytes {
        [0, 0x53, 0x75, 0xa0, len, ref body @ ..] if body.len() == usize::from(len) => Some(body.len()),
        [0, 0x53, 0x75, 0xb0, a, b, c, d, ref body @ ..]
            if body.len() == u32::from_be_bytes([a, b, c, d]) as usize =>
        {
            Some(body.len())
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

/// Takes values off the front of a message.
struct Input<'a> {
    rest: &'a [u8],
    /// What `rest` is a part of, to share.
    whole: &'a Bytes,
}

impl<'a> Input<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], AmqpError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(AmqpError::Short)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], AmqpError> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(AmqpError::Short)?;
        self.rest = rest;
        Ok(*taken)
    }

    fn byte(&mut self) -> Result<u8, AmqpError> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn len32(&mut self) -> Result<usize, AmqpError> {
        Ok(u32::from_be_bytes(self.array()?) as usize)
    }

    /// What kind of section follows.
    fn descriptor(&mut self) -> Result<u64, AmqpError> {
        match self.byte()? {
            0 => {}
            other => return Err(AmqpError::Type(other)),
        }
        match self.byte()? {
            0x53 => self.byte().map(u64::from),
            0x80 => self.array().map(u64::from_be_bytes),
            other => Err(AmqpError::Type(other)),
        }
    }

    fn binary(&mut self) -> Result<Bytes, AmqpError> {
        let len = match self.byte()? {
            0xa0 => self.byte()?.into(),
            0xb0 => self.len32()?,
            other => return Err(AmqpError::Type(other)),
        };
        Ok(self.whole.slice_ref(self.take(len)?))
    }

    fn body_value(&mut self) -> Result<Bytes, AmqpError> {
        match *self.rest.first().ok_or(AmqpError::Short)? {
            0xa0 | 0xb0 => self.binary(),
            _ => match self.value(DEPTH_MAX)? {
                Value::Text(text) => Ok(text.into()),
                Value::Null => Ok(Bytes::new()),
                _ => Err(AmqpError::NotBytes),
            },
        }
    }

    fn list(&mut self, depth: u32) -> Result<Vec<Value>, AmqpError> {
        match self.value(depth)? {
            Value::List(list) => Ok(list),
            Value::Null => Ok(Vec::new()),
            _ => Err(AmqpError::NotList),
        }
    }

    fn map(&mut self, depth: u32, each: impl FnMut(String, Value)) -> Result<(), AmqpError> {
        let code = self.byte()?;
        self.entries_of(code, depth, each)
    }

    /// A map's entries; keys that are not text are written as such.
    fn entries_of(
        &mut self,
        code: u8,
        depth: u32,
        mut each: impl FnMut(String, Value),
    ) -> Result<(), AmqpError> {
        let depth = depth.checked_sub(1).ok_or(AmqpError::Depth)?;
        let (mut inner, count) = match code {
            0xc1 => self.compound8()?,
            0xd1 => self.compound32()?,
            0x40 => return Ok(()),
            other => return Err(AmqpError::Type(other)),
        };
        for _ in 0..count / 2 {
            let name = match inner.value(depth)? {
                Value::Text(name) => name,
                Value::Int(number) => number.to_string(),
                other => format!("{other:?}"),
            };
            each(name, inner.value(depth)?);
        }
        Ok(())
    }

    fn compound8(&mut self) -> Result<(Input<'a>, u32), AmqpError> {
        let len = self.byte()?.into();
        let mut inner = Input { rest: self.take(len)?, whole: self.whole };
        let count = inner.byte()?.into();
        inner.counted(count)
    }

    fn compound32(&mut self) -> Result<(Input<'a>, u32), AmqpError> {
        let len = self.len32()?;
        let mut inner = Input { rest: self.take(len)?, whole: self.whole };
        let count = u32::from_be_bytes(inner.array()?);
        inner.counted(count)
    }

    /// No value is smaller than a byte, but for those of an array, which may have none.
    fn counted(self, count: u32) -> Result<(Input<'a>, u32), AmqpError> {
        if count as usize > self.rest.len() { Err(AmqpError::Count(count)) } else { Ok((self, count)) }
    }

    fn value(&mut self, depth: u32) -> Result<Value, AmqpError> {
        let code = self.byte()?;
        self.value_of(code, depth)
    }

    /// A value of this type (part 1.6). Types that our values do not have become the nearest they have.
    fn value_of(&mut self, code: u8, depth: u32) -> Result<Value, AmqpError> {
        let inside = || depth.checked_sub(1).ok_or(AmqpError::Depth);
        Ok(match code {
            // What a described value is described as is of no use here.
            0x00 => {
                let depth = inside()?;
                self.value(depth)?;
                self.value(depth)?
            }
            0x40 => Value::Null,
            0x41 => Value::Bool(true),
            0x42 => Value::Bool(false),
            0x43 | 0x44 => Value::Int(0),
            0x45 => Value::List(Vec::new()),
            0x50 | 0x52 | 0x53 => Value::Int(self.byte()?.into()),
            0x51 | 0x54 | 0x55 => Value::Int(i8::from_be_bytes(self.array()?).into()),
            0x56 => Value::Bool(self.byte()? != 0),
            0x60 => Value::Int(u16::from_be_bytes(self.array()?).into()),
            0x61 => Value::Int(i16::from_be_bytes(self.array()?).into()),
            0x70 => Value::Int(u32::from_be_bytes(self.array()?).into()),
            0x71 => Value::Int(i32::from_be_bytes(self.array()?).into()),
            0x72 => Value::Float(f32::from_be_bytes(self.array()?).into()),
            0x73 => {
                let code = u32::from_be_bytes(self.array()?);
                Value::Text(char::from_u32(code).ok_or(AmqpError::Utf8)?.to_string())
            }
            // A ulong, a long, a time.
            0x80 | 0x81 | 0x83 => Value::Int(i64::from_be_bytes(self.array()?)),
            0x82 => Value::Float(f64::from_be_bytes(self.array()?)),
            // Decimals: nothing here can count with them.
            0x74 => Value::Bytes(self.shared(4)?),
            0x84 => Value::Bytes(self.shared(8)?),
            0x94 => Value::Bytes(self.shared(16)?),
            0x98 => {
                let [a, b, c, d, e] = [self.hex(4)?, self.hex(2)?, self.hex(2)?, self.hex(2)?, self.hex(6)?];
                Value::Text(format!("{a}-{b}-{c}-{d}-{e}"))
            }
            0xa0 => {
                let len = self.byte()?.into();
                Value::Bytes(self.shared(len)?)
            }
            0xb0 => {
                let len = self.len32()?;
                Value::Bytes(self.shared(len)?)
            }
            0xa1 | 0xa3 => {
                let len = self.byte()?.into();
                self.text(len)?
            }
            0xb1 | 0xb3 => {
                let len = self.len32()?;
                self.text(len)?
            }
            0xc0 => {
                let (inner, count) = self.compound8()?;
                inner.elements(count, None, inside()?)?
            }
            0xd0 => {
                let (inner, count) = self.compound32()?;
                inner.elements(count, None, inside()?)?
            }
            0xc1 | 0xd1 => {
                let mut map = Headers::new();
                self.entries_of(code, depth, |name, value| _ = map.insert(name, value))?;
                Value::Map(map)
            }
            0xe0 => {
                let (mut inner, count) = self.compound8()?;
                let of = inner.byte()?;
                inner.elements(count, Some(of), inside()?)?
            }
            0xf0 => {
                let (mut inner, count) = self.compound32()?;
                let of = inner.byte()?;
                inner.elements(count, Some(of), inside()?)?
            }
            other => return Err(AmqpError::Type(other)),
        })
    }

    /// The elements of a list, or of an array, which has one type for all.
    fn elements(mut self, count: u32, of: Option<u8>, depth: u32) -> Result<Value, AmqpError> {
        let list = (0..count).map(|_| match of {
            Some(code) => self.value_of(code, depth),
            None => self.value(depth),
        });
        list.collect::<Result<_, _>>().map(Value::List)
    }

    fn shared(&mut self, len: usize) -> Result<Bytes, AmqpError> {
        // Copied, so that a small header does not keep a large chunk.
        Ok(Bytes::copy_from_slice(self.take(len)?))
    }

    fn text(&mut self, len: usize) -> Result<Value, AmqpError> {
        let text = std::str::from_utf8(self.take(len)?).map_err(|_| AmqpError::Utf8)?;
        Ok(Value::Text(text.to_owned()))
    }

    fn hex(&mut self, len: usize) -> Result<String, AmqpError> {
        Ok(self.take(len)?.iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Any header value, nested a little. No floats that are not equal to themselves.
    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            any::<i64>().prop_map(Value::Int),
            (-1e9..1e9).prop_map(Value::Float),
            ".{0,8}".prop_map(Value::Text),
            prop::collection::vec(any::<u8>(), 0..300).prop_map(|bytes| Value::Bytes(bytes.into())),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::List),
                prop::collection::btree_map(".{0,8}", inner, 0..4).prop_map(Value::Map),
            ]
        })
    }

    fn tables() -> impl Strategy<Value = Headers> {
        prop::collection::btree_map(".{0,12}", values(), 0..5)
    }

    fn encoded(message: &Message, mark: Option<&Mark>) -> Bytes {
        let mut out = Vec::new();
        encode(message, mark, &mut out);
        out.into()
    }

    fn properties() -> impl Strategy<Value = Properties> {
        let text = || prop::option::of(".{0,300}");
        let span = || prop::option::of((0..10_000_000_000_u64).prop_map(Duration::from_millis));
        let texts = (text(), text(), text(), text(), text());
        let times =
            (prop::option::of((-4_000_000_000_000..4_000_000_000_000_i64).prop_map(time)), span(), span());
        (tables(), texts, times, any::<u8>(), any::<bool>()).prop_map(
            |(headers, texts, times, priority, persistent)| {
                let (content_type, content_encoding, message_id, correlation_id, reply_to) = texts;
                let (timestamp, ttl, delay) = times;
                Properties {
                    headers,
                    content_type,
                    content_encoding,
                    message_id,
                    correlation_id,
                    reply_to,
                    timestamp,
                    ttl,
                    delay,
                    priority,
                    persistent,
                }
            },
        )
    }

    proptest! {
        #[test]
        fn every_message_comes_back(
            body in prop::collection::vec(any::<u8>(), 0..400),
            properties in prop::option::of(properties()),
            mark in prop::option::of(any::<Mark>()),
        ) {
            let message = match properties {
                Some(properties) => Message::from_parts(body.into(), properties),
                None => Message::new(body),
            };
            let bytes = encoded(&message, mark.as_ref());
            prop_assert_eq!(decode(&bytes), Ok((message, mark)));
        }

        #[test]
        fn any_bytes_are_a_message_or_an_error(mut bytes in prop::collection::vec(any::<u8>(), 0..100), section in 0x70..0x79_u8) {
            let _ = decode(&bytes.clone().into());
            bytes.splice(0..0, [0, 0x53, section]);
            let _ = decode(&bytes.into());
        }

        #[test]
        fn any_change_of_a_message_is_a_message_or_an_error(
            properties in properties(), at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = encoded(&Message::from_parts(Bytes::from("body"), properties), None).to_vec();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = decode(&bytes.clone().into());
            bytes.truncate(cut.index(bytes.len()));
            let _ = decode(&bytes.into());
        }
    }

    #[test]
    fn a_body_alone_is_one_section_and_shares_its_bytes() {
        for len in [0_usize, 1, 255, 256, 70_000] {
            let message = Message::new(vec![7; len]);
            let bytes = encoded(&message, None);
            assert_eq!(bytes.len(), len + if len < 256 { 5 } else { 8 });
            assert!(bytes.len() <= size_hint(&message));
            let (read, _) = decode(&bytes).expect("reads");
            assert_eq!(read, message);
            assert!(len == 0 || bytes.as_ptr_range().contains(&read.body().as_ptr()));
        }
    }

    #[test]
    fn messages_of_others_are_read() {
        let read = |bytes: &'static [u8]| decode(&Bytes::from_static(bytes)).map(|(message, _)| message);
        let two = read(b"\0\x53\x75\xa0\x02ab\0\x53\x75\xa0\x01c").expect("two sections");
        assert_eq!(two, Message::new("abc"));
        let long = read(b"\0\x80\0\0\0\0\0\0\0\x75\xa0\x01a").expect("a long descriptor");
        assert_eq!(long, Message::new("a"));
        assert_eq!(read(b"\0\x53\x77\xa1\x02hi").expect("text"), Message::new("hi"));
        assert_eq!(read(b"\0\x53\x77\x40").expect("null"), Message::new(""));
        assert_eq!(read(b"\0\x53\x77\x41"), Err(AmqpError::NotBytes));
        assert_eq!(read(b"\0\x53\x76\x45"), Err(AmqpError::Sequence));
        // A number as message id, a map with small sizes, an annotation of the broker's.
        let full = read(
            b"\0\x53\x72\xc1\x08\x02\xa3\x03x-k\x54\x09\0\x53\x73\xc0\x03\x01\x53\x2a\0\x53\x74\xc1\x05\x02\xa1\x01h\x41\0\x53\x75\xa0\x01b",
        )
        .expect("a full message");
        assert_eq!(full.properties().message_id.as_deref(), Some("42"));
        assert_eq!(full.header("h"), Some(&Value::Bool(true)));
        assert_eq!(full.header("x-k"), Some(&Value::Int(9)));
        assert!(full.properties().persistent);
        assert_eq!(full.body(), "b");
    }

    #[test]
    fn every_type_of_a_value_is_read() {
        let uuid = b"\x98\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff";
        let values: &[(&[u8], Value)] = &[
            (b"\x40", Value::Null),
            (b"\x56\x01", Value::Bool(true)),
            (b"\x43", Value::Int(0)),
            (b"\x50\xff", Value::Int(255)),
            (b"\x51\xff", Value::Int(-1)),
            (b"\x60\x01\x00", Value::Int(256)),
            (b"\x61\xff\xff", Value::Int(-1)),
            (b"\x70\0\0\0\x05", Value::Int(5)),
            (b"\x71\xff\xff\xff\xff", Value::Int(-1)),
            (b"\x72\x3f\xc0\0\0", Value::Float(1.5)),
            (b"\x73\0\0\0A", "A".into()),
            (b"\x80\0\0\0\0\0\0\0\x05", Value::Int(5)),
            (b"\x83\0\0\0\0\0\0\0\x05", Value::Int(5)),
            (uuid, "00112233-4455-6677-8899-aabbccddeeff".into()),
            (b"\xa3\x01s", "s".into()),
            (b"\xb1\0\0\0\x01s", "s".into()),
            (b"\xc0\x03\x02\x41\x42", Value::List(vec![true.into(), false.into()])),
            (b"\xe0\x04\x02\x50\x01\x02", Value::List(vec![Value::Int(1), Value::Int(2)])),
            (b"\0\xa3\x01d\x41", true.into()),
        ];
        for (bytes, value) in values {
            let whole = Bytes::from_static(bytes);
            let mut input = Input { rest: bytes, whole: &whole };
            assert_eq!(input.value(4).as_ref(), Ok(value), "{bytes:02x?}");
            assert!(input.rest.is_empty(), "{bytes:02x?}");
        }
    }

    #[test]
    fn values_within_values_end_somewhere() {
        let mut bytes = vec![0x40];
        for _ in 0..1000 {
            let mut outer = Vec::new();
            put_compound(&mut outer, 0xd0, 1, |out| out.put_slice(&bytes));
            bytes = outer;
        }
        bytes.splice(0..0, [0, 0x53, 0x78]);
        assert_eq!(decode(&bytes.into()), Err(AmqpError::Depth));
        // An array of things that take no room claims no more than there are bytes.
        let many = b"\0\x53\x78\xf0\0\0\0\x05\xff\xff\xff\xff\x40";
        assert_eq!(decode(&Bytes::from_static(many)), Err(AmqpError::Count(u32::MAX)));
    }
}
