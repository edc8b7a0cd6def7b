//! Chunks: what a stream is stored and delivered in (the format of osiris, RabbitMQ's log).
//!
//! ```text
//!  0  magic 5, version 0 (half a byte each)     24  offset of the first message (8)
//!  1  kind: 0 messages, else tracking           32  CRC-32 of the data (4)
//!  2  entries (2)                               36  bytes of data (4)
//!  4  messages (4)                              40  bytes of trailer (4)
//!  8  time, ms since 1970 (8)                   44  reserved (4)
//! 16  epoch (8)                                 48  data, trailer
//! ```
//! An entry is one message behind 31 bits of length, or a batch: a set bit, three bits of compression, four unused, the
//! number of messages (2), the bytes before and after compression (4 each), and messages behind 32 bits of length.

use std::io::Read;
use std::time::{Duration, SystemTime};

use bytes::{Buf, BufMut, Bytes};

use super::wire::{Reader, WireError};

/// Bytes before the data.
pub(crate) const HEADER: usize = 48;
const MAGIC: u8 = 0x50;
const KIND_MESSAGES: u8 = 0;
/// The first bit of an entry that is a batch.
const BATCH: u8 = 0x80;
/// What a batch has before its messages.
pub(crate) const BATCH_HEADER: usize = 11;
/// The most that a compressed batch may grow to.
const BATCH_BYTES_MAX: usize = 64 << 20;

/// What is wrong with a chunk.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ChunkError {
    #[error("a chunk begins with {0:#04x}, not with 0x50")]
    Magic(u8),
    #[error("a chunk's checksum is {found:#010x}, its data's is {computed:#010x}")]
    Checksum { found: u32, computed: u32 },
    #[error("a chunk cannot be read")]
    Malformed(#[from] WireError),
    #[error("a chunk ends before its {0} entries")]
    Entries(u16),
    #[error("a batch is compressed with {0}; read are batches that are not compressed, or with gzip")]
    Compression(&'static str),
    #[error("a batch of {0} bytes does not unpack to {1}")]
    Unpack(usize, usize),
}

/// A chunk whose checksum is right.
#[derive(Clone, Debug)]
pub(crate) struct Chunk {
    /// Offset of its first message.
    first: u64,
    /// When it was written, in milliseconds since 1970.
    pub(crate) time: i64,
    entries: u16,
    kind: u8,
    data: Bytes,
}

impl Chunk {
    /// Reads the header and checks the data.
    pub(crate) fn read(bytes: Bytes) -> Result<Chunk, ChunkError> {
        let mut input = Reader::new(&bytes);
        let magic = input.u8()?;
        if magic != MAGIC {
            return Err(ChunkError::Magic(magic));
        }
        let (kind, entries, _messages) = (input.u8()?, input.u16()?, input.u32()?);
        let (time, _epoch, first) = (input.i64()?, input.u64()?, input.u64()?);
        let (found, len, _trailer, _reserved) = (input.u32()?, input.u32()?, input.u32()?, input.u32()?);
        input.take(len as usize)?;
        let data = bytes.slice(HEADER..HEADER + len as usize);
        let computed = crc32fast::hash(&data);
        if found != computed {
            return Err(ChunkError::Checksum { found, computed });
        }
        Ok(Chunk { first, time, entries, kind, data })
    }

    /// First offset and number of messages, without a look at the rest.
    pub(crate) fn range(bytes: &[u8]) -> Option<(u64, u32)> {
        let mut input = Reader::new(bytes);
        input.take(4).ok()?;
        let messages = input.u32().ok()?;
        input.take(16).ok()?;
        Some((input.u64().ok()?, messages))
    }

    /// Its messages with their offsets. What is not messages has none.
    pub(crate) fn entries(self) -> Entries {
        let entries = if self.kind == KIND_MESSAGES { self.entries } else { 0 };
        Entries { offset: self.first, left: entries, data: self.data, batch: Bytes::new(), batched: 0 }
    }
}

/// The messages of a chunk, one after the other. Each shares the chunk's bytes.
#[derive(Debug)]
pub(crate) struct Entries {
    offset: u64,
    left: u16,
    data: Bytes,
    /// What is left of the batch at hand.
    batch: Bytes,
    batched: u16,
}

impl Entries {
    /// The next message and its offset.
    pub(crate) fn next(&mut self) -> Result<Option<(u64, Bytes)>, ChunkError> {
        loop {
            if self.batched > 0 {
                self.batched -= 1;
                let message = message(&mut self.batch)?;
                return Ok(Some((self.advance(1), message)));
            }
            if self.left == 0 {
                return Ok(None);
            }
            match self.data.first() {
                Some(first) if first & BATCH == 0 => {
                    self.left -= 1;
                    let message = message(&mut self.data)?;
                    return Ok(Some((self.advance(1), message)));
                }
                Some(_) => {
                    self.left -= 1;
                    self.open_batch()?;
                }
                None => return Err(ChunkError::Entries(self.left)),
            }
        }
    }

    /// Passes over what lies before this offset, by whole entries where it can.
    pub(crate) fn skip_to(&mut self, offset: u64) -> Result<(), ChunkError> {
        while self.offset < offset {
            if self.batched == 0 && self.left > 0 && self.data.first().is_some_and(|first| first & BATCH != 0)
            {
                let mut head = Reader::new(&self.data);
                let (_, messages, _, len) = (head.u8()?, head.u16()?, head.u32()?, head.u32()?);
                head.take(len as usize)?;
                if self.offset.saturating_add(messages.into()) <= offset {
                    self.left -= 1;
                    self.data.advance(BATCH_HEADER + len as usize);
                    self.advance(messages.into());
                    continue;
                }
            }
            if self.next()?.is_none() {
                break;
            }
        }
        Ok(())
    }

    fn advance(&mut self, by: u64) -> u64 {
        let at = self.offset;
        self.offset = at.saturating_add(by);
        at
    }

    fn open_batch(&mut self) -> Result<(), ChunkError> {
        let mut head = Reader::new(&self.data);
        let (kind, messages, unpacked, len) = (head.u8()?, head.u16()?, head.u32()?, head.u32()?);
        head.take(len as usize)?;
        self.data.advance(BATCH_HEADER);
        let body = self.data.split_to(len as usize);
        self.batch = match kind >> 4 & 7 {
            0 => body,
            1 => gunzip(&body, unpacked as usize)?,
            2 => return Err(ChunkError::Compression("Snappy")),
            3 => return Err(ChunkError::Compression("LZ4")),
            4 => return Err(ChunkError::Compression("Zstandard")),
            _ => return Err(ChunkError::Compression("something unknown")),
        };
        self.batched = messages;
        Ok(())
    }
}

/// Takes one message off the front.
fn message(data: &mut Bytes) -> Result<Bytes, ChunkError> {
    let Some(head) = data.first_chunk() else { return Err(WireError::Short.into()) };
    let len = (u32::from_be_bytes(*head) & 0x7fff_ffff) as usize;
    if len > data.len() - 4 {
        return Err(WireError::Short.into());
    }
    data.advance(4);
    Ok(data.split_to(len))
}

fn gunzip(packed: &[u8], unpacked: usize) -> Result<Bytes, ChunkError> {
    let fail = || ChunkError::Unpack(packed.len(), unpacked);
    if unpacked > BATCH_BYTES_MAX {
        return Err(fail());
    }
    // Room grows with what is there: a size is easily claimed.
    let mut out = Vec::new();
    let read = flate2::read::GzDecoder::new(packed).take(unpacked as u64 + 1).read_to_end(&mut out);
    if read.is_err() || out.len() != unpacked {
        return Err(fail());
    }
    Ok(out.into())
}

/// Writes the head of a batch that is not compressed.
pub(crate) fn put_batch_header(out: &mut Vec<u8>, messages: u16, bytes: u32) {
    out.put_u8(BATCH);
    out.put_u16(messages);
    out.put_u32(bytes);
    out.put_u32(bytes);
}

/// Milliseconds since 1970; what does not fit is as near as it gets.
pub(crate) fn millis(time: SystemTime) -> i64 {
    let clamp = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => clamp(since),
        Err(before) => -clamp(before.duration()),
    }
}

/// The time of so many milliseconds since 1970.
pub(crate) fn time(millis: i64) -> SystemTime {
    let distance = Duration::from_millis(millis.unsigned_abs());
    let time = if millis < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(distance)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(distance)
    };
    time.unwrap_or(SystemTime::UNIX_EPOCH)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;

    use super::*;
    use proptest::prelude::*;

    /// An entry of a chunk to be made.
    #[derive(Clone, Debug)]
    pub(crate) enum Entry {
        One(Vec<u8>),
        Batch(Vec<Vec<u8>>),
        Gzip(Vec<Vec<u8>>),
    }

    impl Entry {
        fn messages(&self) -> &[Vec<u8>] {
            match self {
                Entry::One(message) => std::slice::from_ref(message),
                Entry::Batch(messages) | Entry::Gzip(messages) => messages,
            }
        }
    }

    /// A chunk as the server makes it.
    pub(crate) fn chunk(first: u64, time: i64, entries: &[Entry]) -> Bytes {
        let mut data = Vec::new();
        for entry in entries {
            let mut inner = Vec::new();
            for message in entry.messages() {
                inner.put_u32(message.len() as u32);
                inner.put_slice(message);
            }
            match entry {
                Entry::One(_) => {}
                Entry::Batch(messages) => {
                    put_batch_header(&mut data, messages.len() as u16, inner.len() as u32);
                }
                Entry::Gzip(messages) => {
                    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                    gzip.write_all(&inner).expect("written");
                    let packed = gzip.finish().expect("packed");
                    data.put_u8(0x90);
                    data.put_u16(messages.len() as u16);
                    data.put_u32(inner.len() as u32);
                    data.put_u32(packed.len() as u32);
                    inner = packed;
                }
            }
            data.put_slice(&inner);
        }
        let mut out = vec![MAGIC, KIND_MESSAGES];
        out.put_u16(entries.len() as u16);
        out.put_u32(entries.iter().map(|entry| entry.messages().len() as u32).sum());
        out.put_i64(time);
        out.put_u64(1);
        out.put_u64(first);
        out.put_u32(crc32fast::hash(&data));
        out.put_u32(data.len() as u32);
        out.put_u64(0);
        out.put_slice(&data);
        out.into()
    }

    fn all(mut entries: Entries) -> Result<Vec<(u64, Bytes)>, ChunkError> {
        let mut out = Vec::new();
        while let Some(message) = entries.next()? {
            out.push(message);
        }
        Ok(out)
    }

    fn entries() -> impl Strategy<Value = Vec<Entry>> {
        let message = || prop::collection::vec(any::<u8>(), 0..20);
        let messages = move || prop::collection::vec(message(), 0..5);
        let entry = prop_oneof![
            message().prop_map(Entry::One),
            messages().prop_map(Entry::Batch),
            messages().prop_map(Entry::Gzip),
        ];
        prop::collection::vec(entry, 0..6)
    }

    proptest! {
        #[test]
        fn every_message_comes_back_with_its_offset(entries in entries(), first in 0..1_000_000_u64, skip in 0..30_u64) {
            let expected: Vec<Vec<u8>> = entries.iter().flat_map(|entry| entry.messages().to_vec()).collect();
            let bytes = chunk(first, 7, &entries);
            prop_assert_eq!(Chunk::range(&bytes), Some((first, expected.len() as u32)));
            let read = Chunk::read(bytes.clone()).expect("reads");
            let messages = all(read.clone().entries()).expect("reads");
            let expected: Vec<(u64, Bytes)> =
                (first..).zip(expected.into_iter().map(Bytes::from)).collect();
            prop_assert_eq!(&messages, &expected);
            let mut later = read.entries();
            later.skip_to(first + skip).expect("skips");
            let kept: Vec<_> = expected.into_iter().filter(|(offset, _)| *offset >= first + skip).collect();
            prop_assert_eq!(all(later).expect("reads"), kept);
        }

        #[test]
        fn any_bytes_are_a_chunk_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Chunk::read(bytes.clone().into()).and_then(|chunk| all(chunk.entries()));
            // With a right head, too.
            let mut chunk = vec![MAGIC, 0, 0, 200, 0, 0, 0, 200];
            chunk.put_bytes(0, 24);
            chunk.put_u32(crc32fast::hash(&bytes));
            chunk.put_u32(bytes.len() as u32);
            chunk.put_u64(0);
            chunk.put_slice(&bytes);
            let read = Chunk::read(chunk.into()).expect("its checksum is right");
            let _ = read.clone().entries().skip_to(50);
            let _ = all(read.entries());
        }

        #[test]
        fn a_flipped_bit_is_seen(at in 0..100_usize, bit in 0..8) {
            let mut bytes = chunk(0, 7, &[Entry::One(vec![7; 96])]).to_vec();
            bytes[HEADER + at] ^= 1_u8 << bit;
            let seen = matches!(Chunk::read(bytes.into()), Err(ChunkError::Checksum { .. }));
            prop_assert!(seen);
        }
    }

    #[test]
    fn messages_share_their_chunk() {
        let bytes = chunk(0, 7, &[Entry::One(vec![1; 10]), Entry::Batch(vec![vec![2; 10]])]);
        for (_, message) in all(Chunk::read(bytes.clone()).expect("reads").entries()).expect("reads") {
            assert!(bytes.as_ptr_range().contains(&message.as_ptr()));
        }
    }

    #[test]
    fn what_cannot_be_unpacked_is_named() {
        for (kind, name) in [(0xa0_u8, "Snappy"), (0xb0, "LZ4"), (0xc0, "Zstandard"), (0xf0, "unknown")] {
            let mut bytes = chunk(0, 7, &[Entry::Batch(vec![vec![1]])]).to_vec();
            bytes[HEADER] = kind;
            let crc = crc32fast::hash(&bytes[HEADER..]);
            bytes[32..36].copy_from_slice(&crc.to_be_bytes());
            let error = all(Chunk::read(bytes.into()).expect("reads").entries()).expect_err(name);
            assert!(error.to_string().contains(name), "{error}");
        }
    }

    #[test]
    fn a_batch_that_unpacks_to_more_than_it_says_is_refused() {
        let mut bytes = chunk(0, 7, &[Entry::Gzip(vec![vec![0; 100_000]])]).to_vec();
        bytes[HEADER + 3..HEADER + 7].copy_from_slice(&10_u32.to_be_bytes());
        let crc = crc32fast::hash(&bytes[HEADER..]);
        bytes[32..36].copy_from_slice(&crc.to_be_bytes());
        let error = all(Chunk::read(bytes.into()).expect("reads").entries()).expect_err("too much");
        assert!(matches!(error, ChunkError::Unpack(_, 10)), "{error}");
    }
}
