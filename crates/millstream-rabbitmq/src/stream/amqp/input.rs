//! The values of AMQP 1.0 (part 1 of its specification), as far as ours can hold them.

use bytes::Bytes;
use millstream_message::{Headers, Value};

use super::{AmqpError, DEPTH_MAX};

/// Takes values off the front of a message.
pub(super) struct Input<'a> {
    pub(super) rest: &'a [u8],
    /// What `rest` is a part of, to share.
    pub(super) whole: &'a Bytes,
}

impl<'a> Input<'a> {
    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8], AmqpError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(AmqpError::Short)?;
        self.rest = rest;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], AmqpError> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(AmqpError::Short)?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(super) fn byte(&mut self) -> Result<u8, AmqpError> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn len32(&mut self) -> Result<usize, AmqpError> {
        Ok(u32::from_be_bytes(self.array()?) as usize)
    }

    /// What kind of section follows.
    pub(super) fn descriptor(&mut self) -> Result<u64, AmqpError> {
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

    pub(super) fn binary(&mut self) -> Result<Bytes, AmqpError> {
        let len = match self.byte()? {
            0xa0 => self.byte()?.into(),
            0xb0 => self.len32()?,
            other => return Err(AmqpError::Type(other)),
        };
        Ok(self.whole.slice_ref(self.take(len)?))
    }

    pub(super) fn body_value(&mut self) -> Result<Bytes, AmqpError> {
        match *self.rest.first().ok_or(AmqpError::Short)? {
            0xa0 | 0xb0 => self.binary(),
            _ => match self.value(DEPTH_MAX)? {
                Value::Text(text) => Ok(text.into()),
                Value::Null => Ok(Bytes::new()),
                _ => Err(AmqpError::NotBytes),
            },
        }
    }

    pub(super) fn list(&mut self, depth: u32) -> Result<Vec<Value>, AmqpError> {
        match self.value(depth)? {
            Value::List(list) => Ok(list),
            Value::Null => Ok(Vec::new()),
            _ => Err(AmqpError::NotList),
        }
    }

    pub(super) fn map(&mut self, depth: u32, each: impl FnMut(String, Value)) -> Result<(), AmqpError> {
        let code = self.byte()?;
        self.entries_of(code, depth, each)
    }

    /// A map's entries; keys that are not text are written as such.
    pub(super) fn entries_of(
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

    pub(super) fn compound8(&mut self) -> Result<(Input<'a>, u32), AmqpError> {
        let len = self.byte()?.into();
        let mut inner = Input { rest: self.take(len)?, whole: self.whole };
        let count = inner.byte()?.into();
        inner.counted(count)
    }

    pub(super) fn compound32(&mut self) -> Result<(Input<'a>, u32), AmqpError> {
        let len = self.len32()?;
        let mut inner = Input { rest: self.take(len)?, whole: self.whole };
        let count = u32::from_be_bytes(inner.array()?);
        inner.counted(count)
    }

    /// No value is smaller than a byte, but for those of an array, which may have none.
    pub(super) fn counted(self, count: u32) -> Result<(Input<'a>, u32), AmqpError> {
        if count as usize > self.rest.len() { Err(AmqpError::Count(count)) } else { Ok((self, count)) }
    }

    pub(super) fn value(&mut self, depth: u32) -> Result<Value, AmqpError> {
        let code = self.byte()?;
        self.value_of(code, depth)
    }

    /// A value of this type (part 1.6). Types that our values do not have become the nearest they have.
    pub(super) fn value_of(&mut self, code: u8, depth: u32) -> Result<Value, AmqpError> {
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
    pub(super) fn elements(mut self, count: u32, of: Option<u8>, depth: u32) -> Result<Value, AmqpError> {
        let list = (0..count).map(|_| match of {
            Some(code) => self.value_of(code, depth),
            None => self.value(depth),
        });
        list.collect::<Result<_, _>>().map(Value::List)
    }

    pub(super) fn shared(&mut self, len: usize) -> Result<Bytes, AmqpError> {
        // Copied, so that a small header does not keep a large chunk.
        Ok(Bytes::copy_from_slice(self.take(len)?))
    }

    pub(super) fn text(&mut self, len: usize) -> Result<Value, AmqpError> {
        let text = std::str::from_utf8(self.take(len)?).map_err(|_| AmqpError::Utf8)?;
        Ok(Value::Text(text.to_owned()))
    }

    pub(super) fn hex(&mut self, len: usize) -> Result<String, AmqpError> {
        Ok(self.take(len)?.iter().map(|byte| format!("{byte:02x}")).collect())
    }
}
