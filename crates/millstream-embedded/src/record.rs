//! The records of a broker's log: their kinds and bodies.
//!
//! `docs/format.md` lists them. What a record says is idempotent, because recovery may see records whose effect its
//! checkpoint has already.

use std::ops::Range;

use bytes::Bytes;
use millstream_message::{Address, Binding, Exchange, Message, Publish, Queue as Spec, StreamSpec};
use serde::{Deserialize, Serialize};

use crate::core::NewPosition;
use crate::wire::{Input, Malformed, put_bytes, put_i64, put_properties, put_u64};

/// What this log is, and in which version. The first record of a log, so that no message is at position 0.
pub(crate) const META: u8 = 1;
/// A message and the queues that store it.
pub(crate) const PUBLISH: u8 = 2;
/// Messages of a queue that are off it for good.
pub(crate) const SETTLED: u8 = 3;
/// Messages of a queue that were delivered or given back: how often, and when they are due again.
pub(crate) const MARKED: u8 = 4;
/// A declaration, as JSON.
pub(crate) const TOPOLOGY: u8 = 5;
/// A position.
pub(crate) const POSITION: u8 = 6;
/// A message of a queue, copied forward so that its old segment can be given free.
pub(crate) const MOVED: u8 = 7;
/// Messages of a stream.
pub(crate) const APPENDED: u8 = 8;

/// The body of [`META`].
pub(crate) const FORMAT: &[u8] = br#"{"format":"millstream-broker","version":1}"#;

/// A declaration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Declaration {
    Exchange(Exchange),
    DeleteExchange(String),
    Queue { id: u32, queue: Spec },
    DeleteQueue(u32),
    Stream { id: u32, stream: StreamSpec },
    DeleteStream(u32),
    Bind(Binding),
    Unbind(Binding),
}

/// A message as its record has it: everything but its body, which is the rest of the record.
pub(crate) fn put_publish(
    out: &mut Vec<u8>,
    targets: impl ExactSizeIterator<Item = (u32, u64)>,
    publish: &Publish,
) {
    put_u64(out, targets.len() as u64);
    for (queue, seq) in targets {
        put_u64(out, queue.into());
        put_u64(out, seq);
    }
    put_bytes(out, publish.to.exchange().as_bytes());
    put_bytes(out, publish.to.key().as_bytes());
    let properties = (!publish.message.is_plain()).then(|| publish.message.properties());
    put_properties(out, properties);
}

/// What [`put_publish`] wrote, and where the body begins.
pub(crate) struct Published<'a> {
    pub(crate) targets: Vec<(u32, u64)>,
    pub(crate) exchange: &'a str,
    pub(crate) key: &'a str,
    pub(crate) message: Message,
    /// Bytes of the message's body; the message above has none.
    pub(crate) body_at: usize,
}

pub(crate) fn read_publish(record: &[u8]) -> Result<Published<'_>, Malformed> {
    let mut input = Input(record);
    let count = input.count()?;
    let targets = (0..count).map(|_| Ok((input.u32()?, input.u64()?))).collect::<Result<_, Malformed>>()?;
    let (exchange, key) = (input.text()?, input.text()?);
    let message = match input.properties()? {
        None => Message::default(),
        Some(properties) => Message::from_parts(Bytes::new(), properties),
    };
    Ok(Published { targets, exchange, key, message, body_at: record.len() - input.0.len() })
}

/// The message of a [`PUBLISH`] or [`MOVED`] record; shares its bytes and, when it is the same, the last address.
pub(crate) fn publish_of(record: Bytes, last: &mut Option<Address>) -> Result<Publish, Malformed> {
    let read = read_publish(&record)?;
    let to = match last {
        Some(address) if address.exchange() == read.exchange && address.key() == read.key => address.clone(),
        _ => last.insert(Address::new(read.exchange, read.key)).clone(),
    };
    let (message, body_at) = (read.message, read.body_at);
    Ok(Publish { to, message: message.with_body(record.slice(body_at..)) })
}

pub(crate) fn put_settled(out: &mut Vec<u8>, queue: u32, ranges: &[Range<u64>]) {
    put_u64(out, queue.into());
    let mut last = 0;
    for range in ranges {
        // Mostly small steps forward; backward when an old message is settled late.
        put_i64(out, range.start.wrapping_sub(last) as i64);
        put_u64(out, range.end - range.start);
        last = range.end;
    }
}

pub(crate) fn read_settled(record: &[u8]) -> Result<(u32, Vec<Range<u64>>), Malformed> {
    let mut input = Input(record);
    let queue = input.u32()?;
    let mut ranges = Vec::new();
    let mut last: u64 = 0;
    while !input.is_empty() {
        let start = last.wrapping_add(input.i64()? as u64);
        last = start.checked_add(input.u64()?).ok_or(Malformed)?;
        ranges.push(start..last);
    }
    Ok((queue, ranges))
}

/// Messages that were delivered or given back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) seqs: Range<u64>,
    pub(crate) deliveries: u32,
    /// When they are due again; 0: they are not delayed.
    pub(crate) due: u64,
}

pub(crate) fn put_marked(out: &mut Vec<u8>, queue: u32, marks: &[Mark]) {
    put_u64(out, queue.into());
    for mark in marks {
        put_u64(out, mark.seqs.start);
        put_u64(out, mark.seqs.end - mark.seqs.start);
        put_u64(out, mark.deliveries.into());
        put_u64(out, mark.due);
    }
}

pub(crate) fn read_marked(record: &[u8]) -> Result<(u32, Vec<Mark>), Malformed> {
    let mut input = Input(record);
    let queue = input.u32()?;
    let mut marks = Vec::new();
    while !input.is_empty() {
        let start = input.u64()?;
        let end = start.checked_add(input.u64()?).ok_or(Malformed)?;
        marks.push(Mark { seqs: start..end, deliveries: input.u32()?, due: input.u64()? });
    }
    Ok((queue, marks))
}

pub(crate) fn put_position(out: &mut Vec<u8>, (name, value): &NewPosition) {
    put_bytes(out, name.as_bytes());
    match value {
        None => out.push(0),
        Some(value) => {
            out.push(1);
            out.extend_from_slice(value);
        }
    }
}

pub(crate) fn read_position(record: &[u8]) -> Result<NewPosition, Malformed> {
    let mut input = Input(record);
    let name = input.text()?.to_owned();
    match input.u8()? {
        0 => Ok((name, None)),
        1 => Ok((name, Some(Bytes::copy_from_slice(input.0)))),
        _ => Err(Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn settled_and_marked_come_back(
            queue in any::<u32>(),
            ranges in proptest::collection::vec((any::<u32>(), 0..100_u64, any::<u32>(), any::<u64>()), 0..20),
        ) {
            let settled: Vec<_> = ranges.iter().map(|r| u64::from(r.0)..u64::from(r.0) + r.1).collect();
            let mut out = Vec::new();
            put_settled(&mut out, queue, &settled);
            prop_assert_eq!(read_settled(&out), Ok((queue, settled.clone())));
            let marks: Vec<_> = settled.into_iter().zip(ranges)
                .map(|(seqs, (_, _, deliveries, due))| Mark { seqs, deliveries, due }).collect();
            out.clear();
            put_marked(&mut out, queue, &marks);
            prop_assert_eq!(read_marked(&out), Ok((queue, marks)));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read_settled(&bytes);
            let _ = read_marked(&bytes);
            let _ = read_position(&bytes);
            let _ = publish_of(bytes.into(), &mut None);
        }
    }

    #[test]
    fn a_message_comes_back_with_its_targets_and_shares_the_record() {
        let message = Message::new("body").with_header("h", 1_i64);
        let publish = Publish { to: Address::new("ex", "key"), message };
        let mut out = Vec::new();
        put_publish(&mut out, [(1, 5), (2, 1 << 40)].into_iter(), &publish);
        out.extend_from_slice(publish.message.body());
        let record = Bytes::from(out);
        assert_eq!(read_publish(&record).map(|read| read.targets), Ok(vec![(1, 5), (2, 1 << 40)]));
        let read = publish_of(record.clone(), &mut None).expect("read");
        assert_eq!(read, publish);
        assert!(record.as_ptr_range().contains(&read.message.body().as_ptr()));
    }

    #[test]
    fn positions_come_back() {
        for value in [None, Some(Bytes::new()), Some(Bytes::from_static(b"abc"))] {
            let mut out = Vec::new();
            put_position(&mut out, &("name".to_owned(), value.clone()));
            assert_eq!(read_position(&out), Ok(("name".to_owned(), value)));
        }
    }
}
