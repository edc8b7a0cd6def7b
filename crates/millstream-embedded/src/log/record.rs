//! Records: how one is laid out, encoded, and recognised again.
//!
//! ```text
//!  0        4        8                16                24       28       32
//!  ┌────────┬────────┬────────────────┬────────────────┬────────┬────────┬──────────────┬─────────┐
//!  │ crc    │ len    │ position       │ kind flags time│ epoch  │ lag    │ body (len)   │ 0 to 8n │
//!  └────────┴────────┴────────────────┴────────────────┴────────┴────────┴──────────────┴─────────┘
//! ```
//! The checksum runs over the body first and the header (from `len` on) last, so that the expensive part is
//! done before the position is known, outside the lock that hands positions out.

use std::fmt;

use bytes::Bytes;

/// Bytes of a record before its body.
pub(crate) const HEADER: usize = 32;

/// Records begin at multiples of this, in the file and in positions.
pub(crate) const ALIGN: u64 = 8;

/// Set on every record of an atomic batch but the last.
pub(crate) const FLAG_JOINED: u8 = 1;

/// Where a record is: a byte position in the whole history of a log. Stable for the record's life, growing
/// from record to record, not dense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Position(u64);

impl Position {
    /// Before everything.
    pub const ZERO: Self = Self(0);

    /// The position of this number, as [`get`](Self::get) gave it.
    pub const fn new(position: u64) -> Self {
        Self(position)
    }

    /// The number, for storing it elsewhere.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A record to append. Its body is `head` followed by `body`, so that an envelope needs no copy of what it
/// envelops.
#[derive(Debug, Clone, Copy, Default)]
pub struct Entry<'a> {
    /// What the record is, in the terms of whoever writes the log.
    pub kind: u8,
    /// Unix time in milliseconds (48 bits are kept). The log reads no clock.
    pub time: u64,
    /// First part of the body.
    pub head: &'a [u8],
    /// Second part of the body.
    pub body: &'a [u8],
}

impl Entry<'_> {
    pub(crate) fn body_len(&self) -> usize {
        self.head.len() + self.body.len()
    }
}

/// A record that was read, borrowed from the buffer it was read into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordRef<'a> {
    /// Where it is.
    pub position: Position,
    /// What it is, in the terms of whoever wrote it.
    pub kind: u8,
    /// Unix time in milliseconds, as given when it was appended.
    pub time: u64,
    /// The body: the entry's `head` and `body` in one.
    pub body: &'a [u8],
}

impl RecordRef<'_> {
    /// Where the next record begins, unless a segment was given up in between.
    pub fn end(&self) -> Position {
        Position(self.position.0 + stored_len(self.body.len()) as u64)
    }
}

/// A record that was read, on its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Where it is.
    pub position: Position,
    /// What it is, in the terms of whoever wrote it.
    pub kind: u8,
    /// Unix time in milliseconds, as given when it was appended.
    pub time: u64,
    /// The body: the entry's `head` and `body` in one.
    pub body: Bytes,
}

/// Bytes that a record with a body of `body_len` bytes takes in the log.
pub const fn stored_len(body_len: usize) -> usize {
    (HEADER + body_len).next_multiple_of(ALIGN as usize)
}

/// The checksum of an entry's body, to be continued over its header. `salt` is the log's own.
pub(crate) fn body_crc(salt: u32, entry: &Entry<'_>) -> u32 {
    let mut crc = crc32fast::Hasher::new_with_initial(salt);
    crc.update(entry.head);
    crc.update(entry.body);
    crc.finalize()
}

/// The fields of a record's header. Decoding one never looks beyond its 32 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) crc: u32,
    pub(crate) len: u32,
    pub(crate) position: u64,
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) time: u64,
    /// Counts the openings of the log; never falls from one record to the next.
    pub(crate) epoch: u32,
    /// `position` − what was known durable when the record was encoded: a later record proves that earlier
    /// ones had been durable.
    pub(crate) lag: u32,
}

impl Header {
    /// Encodes the header, its `crc` computed from `body_crc`.
    pub(crate) fn encode(&self, body_crc: u32) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[4..8].copy_from_slice(&self.len.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.position.to_le_bytes());
        let tagged = u64::from(self.kind) | u64::from(self.flags) << 8 | self.time << 16;
        bytes[16..24].copy_from_slice(&tagged.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.lag.to_le_bytes());
        let crc = header_crc(body_crc, &bytes);
        bytes[..4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads the fields from the first 32 bytes of `bytes`; nothing is checked. `None`: fewer bytes.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; HEADER] = bytes.first_chunk()?;
        let tagged = u64_at(bytes, 16);
        Some(Self {
            crc: u32_at(bytes, 0),
            len: u32_at(bytes, 4),
            position: u64_at(bytes, 8),
            kind: tagged as u8,
            flags: (tagged >> 8) as u8,
            time: tagged >> 16,
            epoch: u32_at(bytes, 24),
            lag: u32_at(bytes, 28),
        })
    }

    /// Bytes of the record, header and padding included.
    pub(crate) fn stored_len(&self) -> u64 {
        (HEADER as u64 + u64::from(self.len)).next_multiple_of(ALIGN)
    }

    /// What was durable when the record was encoded, at least.
    pub(crate) fn durable_before(&self) -> u64 {
        self.position.saturating_sub(u64::from(self.lag))
    }

    pub(crate) fn joined(&self) -> bool {
        self.flags & FLAG_JOINED != 0
    }
}

/// Whether `bytes` (a whole record: header and body, padding not needed) has the checksum it claims.
pub(crate) fn crc_matches(salt: u32, header: &Header, bytes: &[u8]) -> bool {
    let Some(head) = bytes.first_chunk::<HEADER>() else { return false };
    let Some(body) = bytes.get(HEADER..HEADER + header.len as usize) else { return false };
    let mut crc = crc32fast::Hasher::new_with_initial(salt);
    crc.update(body);
    header_crc(crc.finalize(), head) == header.crc
}

fn header_crc(body_crc: u32, header: &[u8; HEADER]) -> u32 {
    let mut crc = crc32fast::Hasher::new_with_initial(body_crc);
    crc.update(&header[4..]);
    crc.finalize()
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*bytes[at..].first_chunk().expect("callers index inside fixed-size headers"))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*bytes[at..].first_chunk().expect("callers index inside fixed-size headers"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn whole(header: &Header, salt: u32, body: &[u8]) -> Vec<u8> {
        let entry = Entry { body, ..Entry::default() };
        let mut bytes = header.encode(body_crc(salt, &entry)).to_vec();
        bytes.extend_from_slice(body);
        bytes
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_encoded_is_decoded(
            position: u64, kind: u8, flags: u8, time in 0..1_u64 << 48, epoch: u32, lag: u32, salt: u32,
            body in proptest::collection::vec(any::<u8>(), 0..300)
        ) {
            let header =
                Header { crc: 0, len: body.len() as u32, position, kind, flags, time, epoch, lag };
            let bytes = whole(&header, salt, &body);
            let decoded = Header::decode(&bytes).expect("is long enough");
            prop_assert_eq!(Header { crc: 0, ..decoded }, header);
            prop_assert!(crc_matches(salt, &decoded, &bytes));
            prop_assert!(!crc_matches(salt ^ 1, &decoded, &bytes), "another log's record does not pass");
        }

        #[test]
        fn a_changed_byte_is_noticed(at in 0_usize..132, change in 1_u8.., body: [u8; 100]) {
            let header =
                Header { crc: 0, len: 100, position: 4096, kind: 1, flags: 0, time: 7, epoch: 1, lag: 0 };
            let mut bytes = whole(&header, 5, &body);
            bytes[at] ^= change;
            let decoded = Header::decode(&bytes).expect("is long enough");
            prop_assert!(!crc_matches(5, &decoded, &bytes));
        }

        #[test]
        fn arbitrary_bytes_are_decoded_without_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..200), salt: u32
        ) {
            match Header::decode(&bytes) {
                Some(header) => prop_assert!(!crc_matches(salt, &header, &bytes)),
                None => prop_assert!(bytes.len() < HEADER),
            }
        }
    }

    #[test]
    fn splitting_the_body_changes_nothing() {
        let crc = |head: &'static [u8], body| body_crc(9, &Entry { head, body, ..Entry::default() });
        assert_eq!(crc(b"", b"abcdef"), crc(b"abc", b"def"));
        assert_eq!(crc(b"abcdef", b""), crc(b"abc", b"def"));
    }
}
