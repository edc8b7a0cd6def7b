//! The records of a stream's log: some messages each, with the offset of the first.

use bytes::Bytes;
use millstream_message::Message;

use crate::wire::{Input, Malformed, put_bytes, put_properties, put_u64};

/// A record holds messages of about this many bytes, or one that is larger. Whoever wants one message reads all of its record.
const RECORD_BYTES: usize = 32 << 10;

/// Encodes as many messages as one record takes, at least one.
pub(super) fn encode(first: u64, messages: &[Message]) -> (usize, Vec<u8>) {
    let mut bytes = 0;
    let mut count = 0;
    while count < messages.len() && (count == 0 || bytes + messages[count].size() <= RECORD_BYTES) {
        bytes += messages[count].size();
        count += 1;
    }
    let mut out = Vec::with_capacity(bytes + 8 * count + 16);
    put_u64(&mut out, first);
    put_u64(&mut out, count as u64);
    for message in &messages[..count] {
        put_properties(&mut out, (!message.is_plain()).then(|| message.properties()));
        put_bytes(&mut out, message.body());
    }
    (count, out)
}

/// The first offset of a record and how many messages it has.
pub(super) fn head(input: &mut Input<'_>) -> Result<(u64, u64), Malformed> {
    Ok((input.u64()?, input.count()? as u64))
}

/// Whether all of a record's messages are before this offset.
pub(crate) fn is_before(record: &[u8], offset: u64) -> bool {
    let head = head(&mut Input(record));
    head.is_ok_and(|(first, count)| count > 0 && first.checked_add(count).is_some_and(|end| end <= offset))
}

/// Reads a record's messages; bodies share its bytes.
pub(crate) fn decode(record: &Bytes, mut each: impl FnMut(u64, Message)) -> Result<(), Malformed> {
    let mut input = Input(record);
    let (first, count) = head(&mut input)?;
    for offset in first..first.checked_add(count).ok_or(Malformed)? {
        let properties = input.properties()?;
        let body = record.slice_ref(input.bytes()?);
        each(
            offset,
            match properties {
                None => Message::new(body),
                Some(properties) => Message::from_parts(body, properties),
            },
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut count: u32 = 0;
            let _ = decode(&Bytes::from(bytes), |_, _| count += 1);
            prop_assert!(count < 200);
        }
    }

    #[test]
    fn messages_come_back_and_share_their_record() {
        let messages = [Message::new("a"), Message::new("b").with_header("h", 1_i64)];
        let (count, record) = encode(7, &messages);
        let record = Bytes::from(record);
        let mut read = Vec::new();
        decode(&record, |offset, message| read.push((offset, message))).expect("reads back");
        assert_eq!((count, read.len()), (2, 2));
        assert_eq!(read[1], (8, messages[1].clone()));
        assert!(record.as_ptr_range().contains(&read[0].1.body().as_ptr()));
    }

    #[test]
    fn a_record_takes_one_large_message_or_many_small_ones() {
        let large = vec![Message::new(vec![0; 2 * RECORD_BYTES]), Message::new("x")];
        assert_eq!(encode(0, &large).0, 1);
        let small = vec![Message::new(vec![0; 1024]); 1000];
        assert_eq!(encode(0, &small).0, RECORD_BYTES / 1024);
    }
}
