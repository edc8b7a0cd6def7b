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

use bytes::{BufMut, Bytes};

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
        Entries {
            offset: self.first,
            left: entries,
            data: self.data,
            at: 0,
            batch: Bytes::new(),
            batch_at: 0,
            batched: 0,
        }
    }
}

/// The messages of a chunk, one after the other.
#[derive(Debug)]
pub(crate) struct Entries {
    offset: u64,
    left: u16,
    data: Bytes,
    /// What of the data is read.
    at: usize,
    /// The batch at hand, unpacked if it was packed.
    batch: Bytes,
    batch_at: usize,
    batched: u16,
}

/// A message as it is in its chunk: whoever keeps a part of it shares the bytes of the whole.
#[derive(Debug)]
pub(crate) struct Entry<'a> {
    pub(crate) offset: u64,
    pub(crate) message: &'a [u8],
    pub(crate) whole: &'a Bytes,
}

impl Entries {
    /// The next message.
    #[inline]
    pub(crate) fn next(&mut self) -> Result<Option<Entry<'_>>, ChunkError> {
        let offset = self.offset;
        while self.batched == 0 {
            if self.left == 0 {
                return Ok(None);
            }
            let first = *self.data.get(self.at).ok_or(ChunkError::Entries(self.left))?;
            self.left -= 1;
            if first & BATCH == 0 {
                let message = message(&self.data, &mut self.at)?;
                self.offset = offset.saturating_add(1);
                return Ok(Some(Entry { offset, message, whole: &self.data }));
            }
            self.open_batch()?;
        }
        self.batched -= 1;
        let message = message(&self.batch, &mut self.batch_at)?;
        self.offset = offset.saturating_add(1);
        Ok(Some(Entry { offset, message, whole: &self.batch }))
    }

    /// Passes over what lies before this offset, by whole entries where it can.
    pub(crate) fn skip_to(&mut self, offset: u64) -> Result<(), ChunkError> {
        while self.offset < offset {
            let rest = self.data.get(self.at..).unwrap_or_default();
            if self.batched == 0 && self.left > 0 && rest.first().is_some_and(|first| first & BATCH != 0) {
                let mut head = Reader::new(rest);
                let (_, messages, _, len) = (head.u8()?, head.u16()?, head.u32()?, head.u32()?);
                head.take(len as usize)?;
                let behind = self.offset.saturating_add(messages.into());
                if behind <= offset {
                    self.left -= 1;
                    self.at += BATCH_HEADER + len as usize;
                    self.offset = behind;
                    continue;
                }
            }
            if self.next()?.is_none() {
                break;
            }
        }
        Ok(())
    }

    fn open_batch(&mut self) -> Result<(), ChunkError> {
        let mut head = Reader::new(&self.data[self.at..]);
        let (kind, messages, unpacked, len) = (head.u8()?, head.u16()?, head.u32()?, head.u32()?);
        head.take(len as usize)?;
        let begin = self.at + BATCH_HEADER;
        self.at = begin + len as usize;
        let body = self.data.slice(begin..self.at);
        self.batch = match kind >> 4 & 7 {
            0 => body,
            1 => gunzip(&body, unpacked as usize)?,
            2 => return Err(ChunkError::Compression("Snappy")),
            3 => return Err(ChunkError::Compression("LZ4")),
            4 => return Err(ChunkError::Compression("Zstandard")),
            _ => return Err(ChunkError::Compression("something unknown")),
        };
        (self.batch_at, self.batched) = (0, messages);
        Ok(())
    }
}

/// The message that begins here, and the place behind it.
fn message<'a>(data: &'a [u8], at: &mut usize) -> Result<&'a [u8], WireError> {
    let rest = data.get(*at..).ok_or(WireError::Short)?;
    let (head, rest) = rest.split_first_chunk().ok_or(WireError::Short)?;
    let len = (u32::from_be_bytes(*head) & 0x7fff_ffff) as usize;
    let message = rest.get(..len).ok_or(WireError::Short)?;
    *at += head.len() + len;
    Ok(message)
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
pub(crate) mod tests;
