//! Bytes of messages and records: what `docs/format.md` calls the bodies of the broker's records.
//!
//! Numbers are LEB128 varints, texts and bytes have their length before them. Decoding never trusts a length: it
//! takes slices of what is there and fails otherwise.

use std::time::Duration;

use bytes::Bytes;
use millstream_message::{Headers, Properties, Value};

use crate::clock::{millis, system_time, unix_millis};

/// The bytes are not what they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

/// How deep header values may nest, so that hostile bytes cannot exhaust the stack.
const DEPTH_MAX: u32 = 64;

// --- Writing ---------------------------------------------------------------------------------------------------

pub(crate) fn put_u64(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

pub(crate) fn put_i64(out: &mut Vec<u8>, number: i64) {
    put_u64(out, ((number << 1) ^ (number >> 63)) as u64);
}

pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_u64(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Which optional fields follow.
mod field {
    pub(super) const HEADERS: u64 = 1;
    pub(super) const CONTENT_TYPE: u64 = 1 << 1;
    pub(super) const CONTENT_ENCODING: u64 = 1 << 2;
    pub(super) const MESSAGE_ID: u64 = 1 << 3;
    pub(super) const CORRELATION_ID: u64 = 1 << 4;
    pub(super) const REPLY_TO: u64 = 1 << 5;
    pub(super) const TIMESTAMP: u64 = 1 << 6;
    pub(super) const TTL: u64 = 1 << 7;
    pub(super) const DELAY: u64 = 1 << 8;
    pub(super) const PRIORITY: u64 = 1 << 9;
    pub(super) const TRANSIENT: u64 = 1 << 10;
    pub(super) const ALL: u64 = (1 << 11) - 1;
}

/// Writes the properties; `None` is one byte.
pub(crate) fn put_properties(out: &mut Vec<u8>, properties: Option<&Properties>) {
    let Some(p) = properties else { return put_u64(out, 0) };
    let has = |present: bool, bit: u64| if present { bit } else { 0 };
    let fields = has(!p.headers.is_empty(), field::HEADERS)
        | has(p.content_type.is_some(), field::CONTENT_TYPE)
        | has(p.content_encoding.is_some(), field::CONTENT_ENCODING)
        | has(p.message_id.is_some(), field::MESSAGE_ID)
        | has(p.correlation_id.is_some(), field::CORRELATION_ID)
        | has(p.reply_to.is_some(), field::REPLY_TO)
        | has(p.timestamp.is_some(), field::TIMESTAMP)
        | has(p.ttl.is_some(), field::TTL)
        | has(p.delay.is_some(), field::DELAY)
        | has(p.priority != 0, field::PRIORITY)
        | has(!p.persistent, field::TRANSIENT);
    put_u64(out, fields);
    if !p.headers.is_empty() {
        put_headers(out, &p.headers);
    }
    let texts = [&p.content_type, &p.content_encoding, &p.message_id, &p.correlation_id, &p.reply_to];
    for text in texts.into_iter().flatten() {
        put_bytes(out, text.as_bytes());
    }
    if let Some(time) = p.timestamp {
        put_u64(out, unix_millis(time));
    }
    for time in [p.ttl, p.delay].into_iter().flatten() {
        put_u64(out, millis(time));
    }
    if p.priority != 0 {
        out.push(p.priority);
    }
}

fn put_headers(out: &mut Vec<u8>, headers: &Headers) {
    put_u64(out, headers.len() as u64);
    for (name, value) in headers {
        put_bytes(out, name.as_bytes());
        put_value(out, value);
    }
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Null => out.push(0),
        Value::Bool(false) => out.push(1),
        Value::Bool(true) => out.push(2),
        Value::Int(number) => {
            out.push(3);
            put_i64(out, *number);
        }
        Value::Float(number) => {
            out.push(4);
            out.extend_from_slice(&number.to_bits().to_le_bytes());
        }
        Value::Text(text) => {
            out.push(5);
            put_bytes(out, text.as_bytes());
        }
        Value::Bytes(bytes) => {
            out.push(6);
            put_bytes(out, bytes);
        }
        Value::List(list) => {
            out.push(7);
            put_u64(out, list.len() as u64);
            list.iter().for_each(|value| put_value(out, value));
        }
        Value::Map(map) => {
            out.push(8);
            put_headers(out, map);
        }
    }
}

/// How deep a value nests: what cannot be read back must not be written.
pub(crate) fn too_deep(headers: &Headers) -> bool {
    fn depth(value: &Value) -> u32 {
        match value {
            Value::List(list) => 1 + list.iter().map(depth).max().unwrap_or(0),
            Value::Map(map) => 1 + map.values().map(depth).max().unwrap_or(0),
            _ => 1,
        }
    }
    headers.values().any(|value| depth(value) >= DEPTH_MAX)
}

// --- Reading ---------------------------------------------------------------------------------------------------

/// Reads from the front of some bytes.
pub(crate) struct Input<'a>(pub(crate) &'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        let (&first, rest) = self.0.split_first().ok_or(Malformed)?;
        self.0 = rest;
        Ok(first)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let part = u64::from(byte & 0x7f);
            if shift == 63 && part > 1 {
                return Err(Malformed);
            }
            number |= part << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(Malformed)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        u32::try_from(self.u64()?).map_err(|_| Malformed)
    }

    pub(crate) fn i64(&mut self) -> Result<i64, Malformed> {
        let number = self.u64()?;
        Ok((number >> 1) as i64 ^ -((number & 1) as i64))
    }

    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let len = usize::try_from(self.u64()?).map_err(|_| Malformed)?;
        let (bytes, rest) = self.0.split_at_checked(len).ok_or(Malformed)?;
        self.0 = rest;
        Ok(bytes)
    }

    pub(crate) fn text(&mut self) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Malformed)
    }

    /// A number of things that take at least one byte each: more than there are bytes is a lie.
    pub(crate) fn count(&mut self) -> Result<usize, Malformed> {
        let count = usize::try_from(self.u64()?).map_err(|_| Malformed)?;
        if count > self.0.len() { Err(Malformed) } else { Ok(count) }
    }

    pub(crate) fn properties(&mut self) -> Result<Option<Properties>, Malformed> {
        let fields = self.u64()?;
        if fields == 0 {
            return Ok(None);
        }
        if fields & !field::ALL != 0 {
            return Err(Malformed);
        }
        let has = |bit: u64| fields & bit != 0;
        let mut p = Properties::default();
        if has(field::HEADERS) {
            p.headers = self.headers(0)?;
        }
        let texts = [
            (field::CONTENT_TYPE, &mut p.content_type),
            (field::CONTENT_ENCODING, &mut p.content_encoding),
            (field::MESSAGE_ID, &mut p.message_id),
            (field::CORRELATION_ID, &mut p.correlation_id),
            (field::REPLY_TO, &mut p.reply_to),
        ];
        for (bit, text) in texts {
            if has(bit) {
                *text = Some(self.text()?.to_owned());
            }
        }
        if has(field::TIMESTAMP) {
            p.timestamp = Some(system_time(self.u64()?));
        }
        if has(field::TTL) {
            p.ttl = Some(Duration::from_millis(self.u64()?));
        }
        if has(field::DELAY) {
            p.delay = Some(Duration::from_millis(self.u64()?));
        }
        if has(field::PRIORITY) {
            p.priority = self.u8()?;
        }
        p.persistent = !has(field::TRANSIENT);
        Ok(Some(p))
    }

    fn headers(&mut self, depth: u32) -> Result<Headers, Malformed> {
        let mut headers = Headers::new();
        for _ in 0..self.count()? {
            let name = self.text()?.to_owned();
            headers.insert(name, self.value(depth)?);
        }
        Ok(headers)
    }

    fn value(&mut self, depth: u32) -> Result<Value, Malformed> {
        if depth >= DEPTH_MAX {
            return Err(Malformed);
        }
        Ok(match self.u8()? {
            0 => Value::Null,
            1 => Value::Bool(false),
            2 => Value::Bool(true),
            3 => Value::Int(self.i64()?),
            4 => {
                let (bits, rest) = self.0.split_first_chunk().ok_or(Malformed)?;
                self.0 = rest;
                Value::Float(f64::from_bits(u64::from_le_bytes(*bits)))
            }
            5 => Value::Text(self.text()?.to_owned()),
            6 => Value::Bytes(Bytes::copy_from_slice(self.bytes()?)),
            7 => {
                let count = self.count()?;
                Value::List((0..count).map(|_| self.value(depth + 1)).collect::<Result<_, _>>()?)
            }
            8 => Value::Map(self.headers(depth + 1)?),
            _ => return Err(Malformed),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn round(properties: Option<&Properties>) -> Option<Properties> {
        let mut out = Vec::new();
        put_properties(&mut out, properties);
        let mut input = Input(&out);
        let read = input.properties().expect("what was written is read");
        assert!(input.is_empty());
        read
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            any::<i64>().prop_map(Value::Int),
            (-1e300..1e300_f64).prop_map(Value::Float),
            "[a-zé]{0,5}".prop_map(Value::Text),
            proptest::collection::vec(any::<u8>(), 0..5).prop_map(|bytes| Value::Bytes(bytes.into())),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::List),
                proptest::collection::btree_map("[a-z]{1,3}", inner, 0..4).prop_map(Value::Map),
            ]
        })
    }

    prop_compose! {
        fn properties()(
            headers in proptest::collection::btree_map("[a-z]{1,6}", value(), 0..4),
            texts in proptest::array::uniform5(proptest::option::of("[a-z/]{0,8}")),
            times in proptest::array::uniform3(proptest::option::of(0..u64::from(u32::MAX))),
            priority in any::<u8>(),
            persistent in any::<bool>(),
        ) -> Properties {
            let [content_type, content_encoding, message_id, correlation_id, reply_to] = texts;
            let [timestamp, ttl, delay] = times;
            Properties {
                headers, content_type, content_encoding, message_id, correlation_id, reply_to,
                timestamp: timestamp.map(system_time),
                ttl: ttl.map(Duration::from_millis),
                delay: delay.map(Duration::from_millis),
                priority, persistent,
            }
        }
    }

    proptest! {
        #[test]
        fn properties_come_back_as_they_were(p in properties()) {
            let expected = (p != Properties::default()).then(|| p.clone());
            prop_assert_eq!(round(Some(&p)), expected);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Input(&bytes).properties();
        }

        #[test]
        fn numbers_come_back(number in any::<u64>(), signed in any::<i64>()) {
            let mut out = Vec::new();
            put_u64(&mut out, number);
            put_i64(&mut out, signed);
            let mut input = Input(&out);
            prop_assert_eq!(input.u64(), Ok(number));
            prop_assert_eq!(input.i64(), Ok(signed));
        }
    }

    #[test]
    fn a_message_without_properties_costs_one_byte() {
        let mut out = Vec::new();
        put_properties(&mut out, None);
        assert_eq!(out.len(), 1);
        assert_eq!(round(None), None);
    }

    #[test]
    fn hostile_lengths_and_depths_are_refused() {
        assert_eq!(Input(&[0xff; 20]).u64(), Err(Malformed));
        assert_eq!(Input(&[0xff, 0xff, 0xff, 0x7f, 1]).bytes(), Err(Malformed));
        let mut deep = vec![1, 1, 1, b'x'];
        deep.extend([7, 1].repeat(100_000));
        assert_eq!(Input(&deep).properties(), Err(Malformed));
    }
}
