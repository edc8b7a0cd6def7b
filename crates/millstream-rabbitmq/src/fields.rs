//! What the fields of both protocols are made of: numbers with their highest byte first, and runs of bytes.

use std::marker::PhantomData;

/// Takes fields off the front of bytes. Each protocol adds its own kinds of fields, and says what is wrong in its own words.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fields<'a, E> {
    rest: &'a [u8],
    error: PhantomData<E>,
}

/// A field goes beyond its frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Short;

impl<'a, E: From<Short>> Fields<'a, E> {
    pub(crate) fn new(bytes: &'a [u8]) -> Fields<'a, E> {
        Fields { rest: bytes, error: PhantomData }
    }

    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], E> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(Short)?;
        self.rest = rest;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], E> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(Short)?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, E> {
        self.array().map(u8::from_be_bytes)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, E> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, E> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, E> {
        self.array().map(u64::from_be_bytes)
    }

    pub(crate) fn i64(&mut self) -> Result<i64, E> {
        self.array().map(i64::from_be_bytes)
    }

    pub(crate) fn len(&self) -> usize {
        self.rest.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// All that is left.
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }
}

/// As much of a text as fits into so many bytes, in whole characters.
pub(crate) fn cut(text: &str, most: usize) -> &str {
    let mut end = most.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
