//! Bytes on their way between two sides.

use bytes::Bytes;

use crate::pool::{BufferPool, Lease};

/// Bytes on their way: a part of a leased buffer, or shared ones.
#[derive(Debug)]
pub(crate) enum Chunk {
    Leased { lease: Lease, start: usize, end: usize },
    Shared(Bytes),
}

impl Chunk {
    pub(crate) fn len(&self) -> usize {
        match self {
            Chunk::Leased { start, end, .. } => end - start,
            Chunk::Shared(bytes) => bytes.len(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets the first `count` bytes.
    pub(crate) fn advance(&mut self, count: usize) {
        match self {
            Chunk::Leased { start, .. } => *start += count,
            Chunk::Shared(bytes) => drop(bytes.split_to(count)),
        }
    }

    /// The bytes as shared ones.
    pub(crate) fn freeze(self) -> Bytes {
        match self {
            Chunk::Leased { lease, start, end } => lease.freeze().slice(start..end),
            Chunk::Shared(bytes) => bytes,
        }
    }

    /// Forgets the first `sent` bytes and moves the rest to the smallest buffer that holds it. True if it did.
    pub(crate) fn shrink(&mut self, sent: usize, pool: &BufferPool) -> bool {
        let left = self.len() - sent;
        match self {
            Chunk::Leased { lease, start, end } if left * 2 <= lease.capacity() => {
                let mut smaller = pool.lease_or_smaller(left);
                if smaller.capacity() >= lease.capacity() || smaller.capacity() < left {
                    return false;
                }
                smaller.extend(&lease[*start + sent..*end]);
                (*lease, *start, *end) = (smaller, 0, left);
                true
            }
            _ => false,
        }
    }
}

impl std::ops::Deref for Chunk {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Chunk::Leased { lease, start, end } => &lease[*start..*end],
            Chunk::Shared(bytes) => bytes,
        }
    }
}
