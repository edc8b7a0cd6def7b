//! A buffer in somebody's hands.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use bytes::buf::Limit;
use bytes::{BufMut, Bytes};

use super::{Shared, TIERS, local};

/// A buffer of a [`BufferPool`](crate::BufferPool), empty at first; dropping it returns it.
///
/// It dereferences to the bytes that were written into it. Its memory is not zeroed: only what was written can be read.
pub struct Lease {
    /// Taken when the lease is dropped, and never empty before.
    content: Option<Boxed>,
}

/// The buffer and where it belongs, which travel together: so a thread keeps an idle one without counting references, and what
/// moves is one word.
pub(super) struct Content {
    pub(super) buffer: Vec<u8>,
    pub(super) tier: usize,
    pub(super) home: Arc<Shared>,
}

/// What is moved about: one word.
pub(super) type Boxed = Box<Content>;

impl Lease {
    pub(super) fn new(content: Boxed) -> Self {
        Lease { content: Some(content) }
    }

    fn content(&self) -> &Content {
        self.content.as_ref().expect("a lease has its buffer until it is dropped")
    }

    fn content_mut(&mut self) -> &mut Content {
        self.content.as_mut().expect("a lease has its buffer until it is dropped")
    }

    /// How many bytes fit.
    pub fn capacity(&self) -> usize {
        TIERS[self.content().tier]
    }

    /// How many more bytes fit.
    pub fn room(&self) -> usize {
        self.capacity() - self.len()
    }

    /// Appends bytes.
    ///
    /// # Panics
    /// If they do not fit: a lease never grows.
    pub fn extend(&mut self, bytes: &[u8]) {
        assert!(bytes.len() <= self.room(), "{} bytes for {} bytes of room", bytes.len(), self.room());
        self.content_mut().buffer.extend_from_slice(bytes);
    }

    /// Where up to `max` more bytes can be written, uninitialised, for readers that take a [`BufMut`].
    pub fn spare(&mut self, max: usize) -> Limit<&mut Vec<u8>> {
        let room = self.room().min(max);
        (&mut self.content_mut().buffer).limit(room)
    }

    /// Forgets all but the first `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        let content = self.content_mut();
        if content.home.settings.scrub
            && let Some(forgotten) = content.buffer.get_mut(len..)
        {
            forgotten.fill(0);
        }
        content.buffer.truncate(len);
    }

    /// The bytes as shared ones; the buffer returns when the last of them is dropped.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Deref for Lease {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.content().buffer
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.content_mut().buffer
    }
}

impl AsRef<[u8]> for Lease {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Lease({} of {} bytes)", self.len(), self.capacity())
    }
}

impl Drop for Lease {
    #[inline]
    fn drop(&mut self) {
        if let Some(content) = self.content.take() {
            local::give(content);
        }
    }
}
