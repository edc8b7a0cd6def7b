//! Values: what an item carries, read from and written as JSON.
//!
//! The type is jq's own, so that `map` needs no conversion on the way in or out; objects keep the order of
//! their keys, and a clone of a value shares its contents.

mod exact;

use bytes::Bytes;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use std::cell::Cell;
use std::fmt;
use std::io::Write as _;

use exact::has_long_number;
pub use jaq_json::Val as Value;
pub(crate) use jaq_json::{Map, Num, Rc};

/// Why bytes are not one JSON value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} at {}column {column}", line_of(*.line))]
pub struct JsonError {
    message: String,
    line: usize,
    column: usize,
}

/// A text of one line needs no number for it.
fn line_of(line: usize) -> String {
    if line == 1 { String::new() } else { format!("line {line}, ") }
}

impl JsonError {
    /// The line of the byte that is wrong, from 1.
    pub fn line(&self) -> usize {
        self.line
    }

    /// The column of the byte that is wrong in its line, from 1.
    pub fn column(&self) -> usize {
        self.column
    }

    /// What is wrong, without the place.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// The same in words that say what to do, where the parser's do not.
    fn in_words(mut self) -> Self {
        if self.message.ends_with("hex escape") {
            self.message =
                "a `\\u` escape is half of a pair, and no character; write both, as in `\\ud83d\\ude00`"
                    .into();
        }
        self
    }
}

/// Reads exactly one JSON value. Nesting is bounded at 128.
///
/// # Errors
///
/// Says what is wrong, on which line and at which column.
pub fn parse_json(text: &[u8]) -> Result<Value, JsonError> {
    parse(text, None)
}

/// Like [`parse_json`], with the texts of the value sharing the bytes they were read from.
pub(crate) fn parse_shared(text: &Bytes) -> Result<Value, JsonError> {
    parse(text, Some(text))
}

fn parse(text: &[u8], shared: Option<&Bytes>) -> Result<Value, JsonError> {
    let fail = |error: serde_json::Error| {
        // serde_json appends the place to its message; it is ours to tell.
        let message = error.to_string();
        let message = message.split(" at line ").next().unwrap_or(&message).to_owned();
        JsonError { message, line: error.line().max(1), column: error.column().max(1) }
    };
    let mut reader = serde_json::Deserializer::from_slice(text);
    let expected = ENTRIES.get();
    let value =
        AsValue { shared, expected }.deserialize(&mut reader).map_err(|error| fail(error).in_words())?;
    reader.end().map_err(fail)?;
    if has_long_number(text)
        && let Ok(exact) = jaq_json::read::parse_single(text)
    {
        return Ok(exact);
    }
    if let Value::Obj(map) = &value
        && map.len() != expected
    {
        ENTRIES.set(map.len().min(ENTRIES_MAX));
    }
    Ok(value)
}

/// The most entries that room is made for before they come.
const ENTRIES_MAX: usize = 256;

thread_local! {
    /// How many entries the last object had: the next will mostly have as many, and is not moved while it grows.
    static ENTRIES: Cell<usize> = const { Cell::new(0) };
    /// The object without entries, which all such share: each of its own would take thirty times its text.
    static EMPTY: Rc<Map> = Rc::default();
}

/// Builds a value; with the bytes that are read, texts refer into them instead of being copied.
#[derive(Clone, Copy)]
struct AsValue<'b> {
    shared: Option<&'b Bytes>,
    /// Entries to make room for, if it is an object.
    expected: usize,
}

impl AsValue<'_> {
    /// For what lies within.
    fn inner(self) -> Self {
        AsValue { expected: 0, ..self }
    }
}

impl<'de> DeserializeSeed<'de> for AsValue<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for AsValue<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }
    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Num(Num::from_integral(value)))
    }
    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Num(Num::from_integral(value)))
    }
    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Num(Num::Float(value)))
    }
    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(text(value))
    }
    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Value, E> {
        Ok(match self.shared {
            Some(shared) => Value::utf8_str(shared.slice_ref(value.as_bytes())),
            None => text(value),
        })
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self.inner())? {
            list.push(item);
        }
        // Room for four is made for the first: an item of many lists with an entry each would take twice as much.
        if list.capacity() > 2 * list.len() {
            list.shrink_to_fit();
        }
        Ok(Value::Arr(list.into()))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let Some(first) = entries.next_key_seed(AsText(self.inner()))? else {
            return Ok(Value::Obj(EMPTY.with(Rc::clone)));
        };
        let mut map = Map::with_capacity_and_hasher(self.expected, Default::default());
        map.insert(first, entries.next_value_seed(self.inner())?);
        while let Some(key) = entries.next_key_seed(AsText(self.inner()))? {
            map.insert(key, entries.next_value_seed(self.inner())?);
        }
        if map.capacity() > 2 * map.len() && self.expected == 0 {
            map.shrink_to_fit();
        }
        Ok(Value::obj(map))
    }
}

/// The keys of an object: texts only.
struct AsText<'b>(AsValue<'b>);

impl<'de> DeserializeSeed<'de> for AsText<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_str(self.0)
    }
}

/// A text value.
pub(crate) fn text(text: &str) -> Value {
    Value::utf8_str(Bytes::copy_from_slice(text.as_bytes()))
}

/// An object with this field too, or instead of the one there is; `None` for anything else.
pub(crate) fn with_field(value: Value, name: &str, field: Value) -> Option<Value> {
    let Value::Obj(map) = value else { return None };
    let mut map = Rc::unwrap_or_clone(map);
    map.insert(text(name), field);
    Some(Value::obj(map))
}

/// The field `name` of an object; `None` for anything else.
pub(crate) fn field<'v>(value: &'v Value, name: &Value) -> Option<&'v Value> {
    match value {
        Value::Obj(map) => map.get(name),
        _ => None,
    }
}

/// Writes a value as compact JSON on one line.
pub fn write_json(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Num(number) => write_number(out, number),
        Value::TStr(text) | Value::BStr(text) => write_text(out, text),
        Value::Arr(items) => {
            out.push(b'[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write_json(out, item);
            }
            out.push(b']');
        }
        Value::Obj(map) => {
            out.push(b'{');
            for (index, (key, item)) in map.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                match key {
                    Value::TStr(text) | Value::BStr(text) => write_text(out, text),
                    // jq knows keys that are not text; JSON does not.
                    other => {
                        let mut inner = Vec::new();
                        write_json(&mut inner, other);
                        write_text(out, &inner);
                    }
                }
                out.push(b':');
                write_json(out, item);
            }
            out.push(b'}');
        }
    }
}

fn write_number(out: &mut Vec<u8>, number: &Num) {
    match number {
        Num::Int(int) => {
            let mut buffer = itoa::Buffer::new();
            out.extend_from_slice(buffer.format(*int).as_bytes());
        }
        // JSON has no word for what is not a finite number; jq writes null too.
        Num::Float(float) if !float.is_finite() => out.extend_from_slice(b"null"),
        Num::Float(float) => {
            // A `Vec` takes every write.
            let _ = serde_json::to_writer(out, float);
        }
        Num::BigInt(_) | Num::Dec(_) => {
            let _ = write!(out, "{number}");
        }
    }
}

/// Writes `text` as a JSON string; what is not UTF-8 becomes the replacement character.
pub(crate) fn write_text(out: &mut Vec<u8>, text: &[u8]) {
    match std::str::from_utf8(text) {
        Ok(text) => escape(out, text),
        Err(_) => escape(out, &String::from_utf8_lossy(text)),
    }
}

fn escape(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let bytes = text.as_bytes();
    let mut written = 0;
    for (index, &byte) in bytes.iter().enumerate() {
        if byte >= 0x20 && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.extend_from_slice(&bytes[written..index]);
        written = index + 1;
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            other => {
                let _ = write!(out, "\\u{other:04x}");
            }
        }
    }
    out.extend_from_slice(&bytes[written..]);
    out.push(b'"');
}

/// A value as text in a path or a csv field: text as it is, anything else as JSON, null as nothing.
pub(crate) fn write_plain(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Null => {}
        Value::TStr(text) | Value::BStr(text) => out.extend_from_slice(text),
        other => write_json(out, other),
    }
}

/// About how many bytes a value holds in memory; what buffers and batches count.
pub(crate) fn footprint(value: &Value) -> usize {
    // 16 bytes a value; what a text, a list or an object is kept in, as the allocator gives it, and the first entries' index; 24 more
    // for an entry's hash and place in an object.
    16 + match value {
        Value::TStr(text) | Value::BStr(text) => 48 + text.len(),
        Value::Arr(items) => 48 + items.iter().map(footprint).sum::<usize>(),
        Value::Obj(map) if map.is_empty() => 96,
        Value::Obj(map) => {
            let entries = map.iter().map(|(key, value)| 24 + footprint(key) + footprint(value));
            96 + 64 + entries.sum::<usize>()
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn round_trip(json: &str) -> String {
        let mut out = Vec::new();
        write_json(&mut out, &parse_json(json.as_bytes()).expect("valid JSON"));
        String::from_utf8(out).expect("JSON is UTF-8")
    }

    #[test]
    fn numbers_that_64_bits_do_not_hold_come_back_digit_by_digit() {
        for number in [
            "123456789012345678901234567890",
            "-18446744073709551616",
            "0.1234567890123456789012",
            "3.14159265358979323846264338327950288",
            "9007199254740993",
            "0.30000000000000004",
            "12345678901234567.5",
            "-12345678901234567.5",
            "1234567890123456.75",
            "0.10000000000000001",
            "9223372036854775807",
            "9999999999999999999",
            "-9999999999999999999",
            "-9223372036854775808",
            "1234567.123456789012345678",
        ] {
            for padding in 0..25 {
                let json = format!("{{\"{}\":{number},\"n\":[{number}]}}", "x".repeat(padding));
                assert_eq!(round_trip(&json), json);
            }
        }
        let id = "{\"id\":\"12345678901234567890123 .5\",\"n\":1}";
        assert_eq!(round_trip(id), id, "a text of digits is a text");
        assert!(parse_json(b"[123456789012345678901234567890,]").is_err());
    }

    #[test]
    fn json_comes_back_as_it_was_with_its_keys_in_order() {
        let json = r#"{"z":1,"a":[true,null,-2.5,"é\"\\\n\u0001"],"big":18446744073709551615}"#;
        assert_eq!(round_trip(json), json);
    }

    #[test]
    fn half_of_a_pair_of_surrogates_is_told_as_that() {
        for json in [r#"{"a":"\ud800"}"#, r#"{"a":"\ud800x"}"#, r#"{"a":"\udc00"}"#, r#"{"\ud800\ud800":1}"#]
        {
            let error = parse_json(json.as_bytes()).expect_err("no character").to_string();
            assert!(error.contains("half of a pair") && error.contains("column"), "{json}: {error}");
        }
        assert!(parse_json(br#""\ud83d\ude00""#).is_ok());
    }

    #[test]
    fn bad_json_names_its_column() {
        assert_eq!(parse_json(b"{\"a\": nope}").expect_err("not JSON").column(), 8);
        let error = parse_json(b"{\n  \"a\": nope\n}").expect_err("not JSON");
        assert_eq!((error.line(), error.column()), (2, 9));
        assert!(error.to_string().ends_with(" at line 2, column 9"), "{error}");
        assert!(parse_json(b"1 2").expect_err("two values").to_string().contains("trailing"));
        assert!(parse_json(&vec![b'['; 100_000]).is_err(), "deep nesting is refused, not a stack overflow");
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_value_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = parse_json(&bytes);
        }

        #[test]
        fn any_text_survives(s in any::<String>()) {
            let mut out = Vec::new();
            write_json(&mut out, &text(&s));
            prop_assert_eq!(serde_json::from_slice::<String>(&out).expect("JSON"), s);
        }
    }
}
