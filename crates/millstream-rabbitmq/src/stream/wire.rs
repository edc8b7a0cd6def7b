//! The fields of the stream protocol, read and written: big-endian numbers, texts behind two bytes of length, bytes behind
//! four, arrays behind four bytes of count.

use bytes::BufMut;

use crate::fields::{Fields, Short, cut};

/// What is wrong with bytes that should have been a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WireError {
    #[error("a field goes beyond its frame")]
    Short,
    #[error("bytes are left over after the last field")]
    Trailing,
    #[error("a text is not UTF-8")]
    Utf8,
    #[error("a count of {0} elements does not fit into its frame")]
    Count(u32),
    #[error("no command {0:#06x} of version {1} is known")]
    Command(u16, u16),
    #[error("`{0}` is no place to begin in a stream")]
    OffsetType(u16),
}

impl From<Short> for WireError {
    fn from(Short: Short) -> WireError {
        WireError::Short
    }
}

/// Takes fields off the front of a frame.
pub(crate) type Reader<'a> = Fields<'a, WireError>;

impl<'a> Reader<'a> {
    /// A text; a length of -1 is none, which is read as empty.
    pub(crate) fn text(&mut self) -> Result<&'a str, WireError> {
        let len = match self.u16()? {
            u16::MAX => 0,
            len => len,
        };
        std::str::from_utf8(self.take(len.into())?).map_err(|_| WireError::Utf8)
    }

    /// Bytes behind four bytes of length; -1 is none.
    pub(crate) fn bytes(&mut self) -> Result<Option<&'a [u8]>, WireError> {
        match self.u32()? {
            u32::MAX => Ok(None),
            len => self.take(len as usize).map(Some),
        }
    }

    /// A count of elements, each of at least `least` bytes: whoever makes room for so many makes no more room than the
    /// frame has bytes.
    pub(crate) fn count(&mut self, least: usize) -> Result<usize, WireError> {
        let count = self.u32()?;
        let bytes = (count as usize).checked_mul(least);
        if bytes.is_none_or(|bytes| bytes > self.len()) {
            return Err(WireError::Count(count));
        }
        Ok(count as usize)
    }

    pub(crate) fn array_of<T>(
        &mut self,
        least: usize,
        mut element: impl FnMut(&mut Reader<'a>) -> Result<T, WireError>,
    ) -> Result<Vec<T>, WireError> {
        (0..self.count(least)?).map(|_| element(self)).collect()
    }

    /// Nothing may be left.
    pub(crate) fn end(self) -> Result<(), WireError> {
        if self.is_empty() { Ok(()) } else { Err(WireError::Trailing) }
    }
}

/// Writes a text. Whoever takes texts from users has checked their length; a longer one is cut, at a character.
pub(crate) fn put_text(out: &mut Vec<u8>, text: &str) {
    let text = cut(text, i16::MAX as usize);
    out.put_u16(text.len() as u16);
    out.put_slice(text.as_bytes());
}

pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    match bytes {
        Some(bytes) => {
            out.put_u32(bytes.len() as u32);
            out.put_slice(bytes);
        }
        None => out.put_i32(-1),
    }
}

pub(crate) fn put_array<T>(out: &mut Vec<u8>, elements: &[T], mut put: impl FnMut(&mut Vec<u8>, &T)) {
    out.put_u32(elements.len() as u32);
    elements.iter().for_each(|element| put(out, element));
}

/// Names with values.
pub(crate) type Pairs = Vec<(String, String)>;

pub(crate) fn text(input: &mut Reader<'_>) -> Result<String, WireError> {
    Ok(input.text()?.to_owned())
}

pub(crate) fn texts(input: &mut Reader<'_>) -> Result<Vec<String>, WireError> {
    input.array_of(2, text)
}

pub(crate) fn pairs(input: &mut Reader<'_>) -> Result<Pairs, WireError> {
    input.array_of(4, |input| Ok((text(input)?, text(input)?)))
}

/// Pairs that are left out when there are none, as servers and clients do.
pub(crate) fn pairs_if_any(input: &mut Reader<'_>) -> Result<Pairs, WireError> {
    if input.is_empty() { Ok(Pairs::new()) } else { pairs(input) }
}

pub(crate) fn put_texts(out: &mut Vec<u8>, texts: &[String]) {
    put_array(out, texts, |out, text| put_text(out, text));
}

pub(crate) fn put_pairs(out: &mut Vec<u8>, pairs: &Pairs) {
    put_array(out, pairs, |out, (name, value)| {
        put_text(out, name);
        put_text(out, value);
    });
}
