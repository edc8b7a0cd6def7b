//! The fields of AMQP 0-9-1 (specification, section 4.2.5), read and written.

use bytes::BufMut;
use millstream_message::{Headers, Value};

use crate::fields::{Fields, Short, cut};

/// What is wrong with bytes that should have been fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WireError {
    #[error("a field goes beyond its frame")]
    Short,
    #[error("bytes are left over after the last field")]
    Trailing,
    #[error("a name is not UTF-8")]
    Utf8,
    #[error("`{0}` is no type of a field")]
    FieldType(u8),
    #[error("no method {0}.{1} is known")]
    Method(u16, u16),
}

/// How deep tables and lists may be nested: what is deeper is left as bytes, so that nobody fills a stack.
const DEPTH_MAX: u32 = 32;

impl From<Short> for WireError {
    fn from(Short: Short) -> WireError {
        WireError::Short
    }
}

/// Takes fields off the front of a frame.
pub(crate) type Reader<'a> = Fields<'a, WireError>;

impl<'a> Reader<'a> {
    /// A name: up to 255 bytes.
    pub(crate) fn shortstr(&mut self) -> Result<&'a str, WireError> {
        std::str::from_utf8(self.short_bytes()?).map_err(|_| WireError::Utf8)
    }

    /// The bytes of a name, which may not be text.
    pub(crate) fn short_bytes(&mut self) -> Result<&'a [u8], WireError> {
        let len = self.u8()?;
        self.take(len.into())
    }

    pub(crate) fn longstr(&mut self) -> Result<&'a [u8], WireError> {
        let len = self.u32()?;
        self.take(len as usize)
    }

    pub(crate) fn table(&mut self) -> Result<Headers, WireError> {
        table(self.longstr()?, DEPTH_MAX - 1)
    }

    /// A value with its type. Types that our values do not have become the nearest they have: all whole numbers are
    /// 64 bits wide, a decimal is a float, a time is seconds since 1970.
    fn value(&mut self, depth: u32) -> Result<Value, WireError> {
        Ok(match self.u8()? {
            b't' => Value::Bool(self.u8()? != 0),
            b'b' => Value::Int(i8::from_be_bytes(self.array()?).into()),
            b'B' => Value::Int(self.u8()?.into()),
            // RabbitMQ's and most clients' reading; the specification has `U` here and `s` for short strings.
            b's' | b'U' => Value::Int(i16::from_be_bytes(self.array()?).into()),
            b'u' => Value::Int(self.u16()?.into()),
            b'I' => Value::Int(i32::from_be_bytes(self.array()?).into()),
            b'i' => Value::Int(self.u32()?.into()),
            b'l' | b'L' => Value::Int(i64::from_be_bytes(self.array()?)),
            b'T' => Value::Int(self.u64()?.cast_signed()),
            b'f' => Value::Float(f32::from_be_bytes(self.array()?).into()),
            b'd' => Value::Float(f64::from_be_bytes(self.array()?)),
            b'D' => {
                let scale = i32::from(self.u8()?);
                Value::Float(f64::from(i32::from_be_bytes(self.array()?)) / 10_f64.powi(scale))
            }
            // Text by the specification; some put bytes into it.
            b'S' => {
                let bytes = self.longstr()?;
                match std::str::from_utf8(bytes) {
                    Ok(text) => Value::Text(text.to_owned()),
                    Err(_) => Value::Bytes(bytes.to_vec().into()),
                }
            }
            b'x' => Value::Bytes(self.longstr()?.to_vec().into()),
            kind @ (b'A' | b'F') => {
                let bytes = self.longstr()?;
                match depth.checked_sub(1) {
                    None => Value::Bytes(bytes.to_vec().into()),
                    Some(depth) if kind == b'F' => Value::Map(table(bytes, depth)?),
                    Some(depth) => {
                        let mut inner = Reader::new(bytes);
                        let mut list = Vec::new();
                        while !inner.is_empty() {
                            list.push(inner.value(depth)?);
                        }
                        Value::List(list)
                    }
                }
            }
            b'V' => Value::Null,
            other => return Err(WireError::FieldType(other)),
        })
    }

    /// Nothing may be left.
    pub(crate) fn end(self) -> Result<(), WireError> {
        if self.is_empty() { Ok(()) } else { Err(WireError::Trailing) }
    }
}

fn table(bytes: &[u8], depth: u32) -> Result<Headers, WireError> {
    let mut inner = Reader::new(bytes);
    let mut table = Headers::new();
    while !inner.is_empty() {
        // Nobody checks that a name is text. One that is not is no reason to lose the connection.
        let name = String::from_utf8_lossy(inner.short_bytes()?).into_owned();
        table.insert(name, inner.value(depth)?);
    }
    Ok(table)
}

/// Writes a name. Whoever takes names from users has checked that it has at most 255 bytes; a longer one is cut, at a
/// character.
pub(crate) fn put_shortstr(out: &mut Vec<u8>, text: &str) {
    debug_assert!(text.len() <= 255, "a name of {} bytes", text.len());
    let text = cut(text, 255);
    out.put_u8(text.len() as u8);
    out.put_slice(text.as_bytes());
}

pub(crate) fn put_longstr(out: &mut Vec<u8>, bytes: &[u8]) {
    put_sized(out, |out| out.put_slice(bytes));
}

/// Writes a length of four bytes and, behind it, what `put` writes.
fn put_sized(out: &mut Vec<u8>, put: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.put_u32(0);
    put(out);
    let len = (out.len() - at - 4) as u32;
    out[at..at + 4].copy_from_slice(&len.to_be_bytes());
}

pub(crate) fn put_table(out: &mut Vec<u8>, table: &Headers) {
    put_sized(out, |out| {
        for (name, value) in table {
            put_shortstr(out, name);
            put_value(out, value);
        }
    });
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Null => out.put_u8(b'V'),
        Value::Bool(flag) => out.put_slice(&[b't', u8::from(*flag)]),
        Value::Int(number) => {
            out.put_u8(b'l');
            out.put_i64(*number);
        }
        Value::Float(number) => {
            out.put_u8(b'd');
            out.put_f64(*number);
        }
        Value::Text(text) => {
            out.put_u8(b'S');
            put_longstr(out, text.as_bytes());
        }
        Value::Bytes(bytes) => {
            out.put_u8(b'x');
            put_longstr(out, bytes);
        }
        Value::List(list) => {
            out.put_u8(b'A');
            put_sized(out, |out| list.iter().for_each(|value| put_value(out, value)));
        }
        Value::Map(map) => {
            out.put_u8(b'F');
            put_table(out, map);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Any value, nested a little. No floats that are not equal to themselves.
    pub(crate) fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            any::<i64>().prop_map(Value::Int),
            (-1e9..1e9).prop_map(Value::Float),
            ".{0,8}".prop_map(Value::Text),
            // Bytes that are text would be the same on the way back, too, but for those in an `S`.
            prop::collection::vec(any::<u8>(), 0..8).prop_map(|bytes| Value::Bytes(bytes.into())),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::List),
                prop::collection::btree_map("[a-z]{1,8}", inner, 0..4).prop_map(Value::Map),
            ]
        })
    }

    pub(crate) fn tables() -> impl Strategy<Value = Headers> {
        prop::collection::btree_map("[a-z-]{1,12}", values(), 0..5)
    }

    proptest! {
        #[test]
        fn tables_come_back(table in tables()) {
            let mut out = Vec::new();
            put_table(&mut out, &table);
            let mut reader = Reader::new(&out);
            prop_assert_eq!(reader.table(), Ok(table));
            prop_assert_eq!(reader.end(), Ok(()));
        }

        #[test]
        fn any_bytes_are_a_table_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut framed = (bytes.len() as u32).to_be_bytes().to_vec();
            framed.extend(&bytes);
            let _ = Reader::new(&framed).table();
        }
    }

    #[test]
    fn every_type_of_the_wire_is_read() {
        let fields: &[(&[u8], Value)] = &[
            (b"t\x01", Value::Bool(true)),
            (b"b\xff", Value::Int(-1)),
            (b"B\xff", Value::Int(255)),
            (b"s\xff\xfe", Value::Int(-2)),
            (b"U\xff\xfe", Value::Int(-2)),
            (b"u\xff\xfe", Value::Int(65_534)),
            (b"I\xff\xff\xff\xff", Value::Int(-1)),
            (b"i\xff\xff\xff\xff", Value::Int(4_294_967_295)),
            (b"l\xff\xff\xff\xff\xff\xff\xff\xff", Value::Int(-1)),
            (b"L\0\0\0\0\0\0\0\x05", Value::Int(5)),
            (b"T\0\0\0\0\0\0\0\x05", Value::Int(5)),
            (b"f\x3f\xc0\0\0", Value::Float(1.5)),
            (b"d\x3f\xf8\0\0\0\0\0\0", Value::Float(1.5)),
            (b"D\x02\0\0\0\x7d", Value::Float(1.25)),
            (b"S\0\0\0\x02hi", "hi".into()),
            (b"S\0\0\0\x01\xff", Value::Bytes(vec![255].into())),
            (b"x\0\0\0\x02hi", Value::Bytes(b"hi".to_vec().into())),
            (b"A\0\0\0\x03VVV", Value::List(vec![Value::Null; 3])),
            (b"F\0\0\0\x03\x01aV", Value::Map(Headers::from([("a".to_owned(), Value::Null)]))),
            (b"V", Value::Null),
        ];
        for (bytes, value) in fields {
            let mut reader = Reader::new(bytes);
            assert_eq!(reader.value(4).as_ref(), Ok(value), "{bytes:?}");
            assert_eq!(reader.end(), Ok(()), "{bytes:?}");
        }
        assert_eq!(Reader::new(b"Z").value(4), Err(WireError::FieldType(b'Z')));
        assert_eq!(Reader::new(b"l\0").value(4), Err(WireError::Short));
        assert_eq!(Reader::new(b"\x01\xff").shortstr(), Err(WireError::Utf8));
    }

    #[test]
    fn tables_within_tables_end_somewhere() {
        let mut bytes = Vec::new();
        for _ in 0..1000 {
            let mut outer = vec![1, b'a', b'F'];
            outer.put_u32(bytes.len() as u32);
            outer.extend(&bytes);
            bytes = outer;
        }
        let mut framed = (bytes.len() as u32).to_be_bytes().to_vec();
        framed.extend(&bytes);
        let table = Reader::new(&framed).table().expect("what is too deep is left as it is");
        let mut depth = 1;
        let mut inner = &table["a"];
        while let Value::Map(map) = inner {
            inner = &map["a"];
            depth += 1;
        }
        assert!(matches!(inner, Value::Bytes(bytes) if bytes.len() > 900) && depth == DEPTH_MAX, "{depth}");
    }
}
