use std::io::Write;

use super::*;
use proptest::prelude::*;

use super::super::fuzz::cases;

/// An entry of a chunk to be made.
#[derive(Clone, Debug)]
pub(crate) enum Made {
    One(Vec<u8>),
    Batch(Vec<Vec<u8>>),
    Gzip(Vec<Vec<u8>>),
}

impl Made {
    fn messages(&self) -> &[Vec<u8>] {
        match self {
            Made::One(message) => std::slice::from_ref(message),
            Made::Batch(messages) | Made::Gzip(messages) => messages,
        }
    }
}

/// A chunk as the server makes it.
pub(crate) fn chunk(first: u64, time: i64, entries: &[Made]) -> Bytes {
    let mut data = Vec::new();
    for entry in entries {
        let mut inner = Vec::new();
        for message in entry.messages() {
            inner.put_u32(message.len() as u32);
            inner.put_slice(message);
        }
        match entry {
            Made::One(_) => {}
            Made::Batch(messages) => {
                put_batch_header(&mut data, messages.len() as u16, inner.len() as u32);
            }
            Made::Gzip(messages) => {
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

pub(crate) fn all(mut entries: Entries) -> Result<Vec<(u64, Bytes)>, ChunkError> {
    let mut out = Vec::new();
    while let Some(entry) = entries.next()? {
        out.push((entry.offset, entry.whole.slice_ref(entry.message)));
    }
    Ok(out)
}

pub(crate) fn entries() -> impl Strategy<Value = Vec<Made>> {
    let message = || prop::collection::vec(any::<u8>(), 0..20);
    let messages = move || prop::collection::vec(message(), 0..5);
    let entry = prop_oneof![
        message().prop_map(Made::One),
        messages().prop_map(Made::Batch),
        messages().prop_map(Made::Gzip),
    ];
    prop::collection::vec(entry, 0..6)
}

proptest! {
    #![proptest_config(cases())]

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
        let mut bytes = chunk(0, 7, &[Made::One(vec![7; 96])]).to_vec();
        bytes[HEADER + at] ^= 1_u8 << bit;
        let seen = matches!(Chunk::read(bytes.into()), Err(ChunkError::Checksum { .. }));
        prop_assert!(seen);
    }
}

#[test]
fn messages_share_their_chunk() {
    let bytes = chunk(0, 7, &[Made::One(vec![1; 10]), Made::Batch(vec![vec![2; 10]])]);
    for (_, message) in all(Chunk::read(bytes.clone()).expect("reads").entries()).expect("reads") {
        assert!(bytes.as_ptr_range().contains(&message.as_ptr()));
    }
}

#[test]
fn what_cannot_be_unpacked_is_named() {
    for (kind, name) in [(0xa0_u8, "Snappy"), (0xb0, "LZ4"), (0xc0, "Zstandard"), (0xf0, "unknown")] {
        let mut bytes = chunk(0, 7, &[Made::Batch(vec![vec![1]])]).to_vec();
        bytes[HEADER] = kind;
        let crc = crc32fast::hash(&bytes[HEADER..]);
        bytes[32..36].copy_from_slice(&crc.to_be_bytes());
        let error = all(Chunk::read(bytes.into()).expect("reads").entries()).expect_err(name);
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn a_batch_that_unpacks_to_more_than_it_says_is_refused() {
    let mut bytes = chunk(0, 7, &[Made::Gzip(vec![vec![0; 100_000]])]).to_vec();
    bytes[HEADER + 3..HEADER + 7].copy_from_slice(&10_u32.to_be_bytes());
    let crc = crc32fast::hash(&bytes[HEADER..]);
    bytes[32..36].copy_from_slice(&crc.to_be_bytes());
    let error = all(Chunk::read(bytes.into()).expect("reads").entries()).expect_err("too much");
    assert!(matches!(error, ChunkError::Unpack(_, 10)), "{error}");
}
