use std::borrow::Cow;
use std::collections::BTreeMap;

use proptest::prelude::*;

use super::form::{self, FormError, Mark, PART, Reader, Writer};
use crate::store::expected::Expected;
use crate::store::fold::Fold;
use crate::store::record::{BodyHead, Change, EventHead, Head};
use millstream_message::Message;

/// What an entry does, of which stream, under which name.
type Said = (u8, Change<'static>, u8);

fn said() -> impl Strategy<Value = Said> {
    let event = EventHead {
        id: "e".into(),
        event: "t".into(),
        data: BodyHead::default(),
        correlation: None,
        causation: None,
        meta: BTreeMap::new(),
    };
    let expect = prop_oneof![
        6 => Just(Expected::Any),
        1 => Just(Expected::NoStream),
        1 => Just(Expected::Exists),
        2 => (0..6_u64).prop_map(Expected::Version),
    ];
    let change = prop_oneof![
        12 => (expect, 1..4_usize)
            .prop_map(move |(expect, events)| Change::Append { expect, events: vec![event.clone(); events] }),
        2 => (0..9_u64).prop_map(|before| Change::Truncate { before }),
        1 => any::<bool>().prop_map(|forever| Change::Delete { expect: Expected::Any, forever }),
        2 => (1..9_u64).prop_map(|next| Change::Snapshot { next, state: BodyHead::default() }),
    ];
    (0..7_u8, change, 0..40_u8)
}

fn fold(fold: &mut Fold, offset: u64, (stream, change, commit): &Said) {
    // Some are not of a store, and some names come again.
    if *commit == 0 {
        return fold.pass(offset);
    }
    let commit = if *commit == 1 { "again".to_owned() } else { offset.to_string() };
    let stream = format!("s{stream}");
    let head = Head { v: 1, stream: Cow::Owned(stream), commit: Cow::Owned(commit), change: change.clone() };
    fold.fold(offset, &head);
}

fn mark(offset: u64) -> Mark {
    Mark::of(offset, &Message::new("entry"))
}

fn read(parts: &[Message]) -> Result<Fold, FormError> {
    let (of, ..) = parts.iter().rev().find_map(form::end).ok_or(FormError::Missing)?;
    let mut reader = Reader::new(of);
    for part in parts {
        if !reader.message(part)? {
            break;
        }
    }
    reader.end()
}

/// The whole of a fold that stands still.
fn written(fold: &mut Fold) -> Vec<Message> {
    let mut writer =
        Writer::new("w".to_owned(), &fold.begin_taking(), mark(fold.next_offset.saturating_sub(1)));
    while fold.take(|name, entry| writer.stream(name, entry)) {}
    writer.end();
    fold.end_taking();
    writer.ready()
}

fn same(one: &Fold, other: &Fold) {
    assert_eq!(format!("{:?}", one.streams), format!("{:?}", other.streams));
    let rest = |fold: &Fold| {
        let Fold { next_offset, applied, events, conflicts, snapshots, foreign, gaps, .. } = fold;
        [*next_offset, *applied, *events, *conflicts, *snapshots, *foreign, *gaps]
    };
    assert_eq!(rest(one), rest(other));
    assert_eq!(one.remembered(), other.remembered());
    for offset in 0..one.next_offset {
        assert_eq!(one.counts(offset), other.counts(offset));
    }
}

proptest! {
    /// However the log goes on while a checkpoint is taken: it says what was known when it began, and who goes on from it
    /// comes to know the same.
    #[test]
    fn a_checkpoint_says_what_was_known_when_it_began(
        log in proptest::collection::vec(said(), 1..120),
        at in any::<prop::sample::Index>(),
        steps in proptest::collection::vec(0..4_usize, 1..20),
    ) {
        let at = at.index(log.len());
        let (mut all, mut then) = (Fold::default(), Fold::default());
        for (offset, said) in log[..at].iter().enumerate() {
            fold(&mut all, offset as u64, said);
            fold(&mut then, offset as u64, said);
        }
        let mut writer = Writer::new("w".to_owned(), &all.begin_taking(), mark(7));
        let mut rest = log[at..].iter().enumerate();
        let mut steps = steps.into_iter().cycle();
        loop {
            // Some entries, and some streams.
            for (index, said) in rest.by_ref().take(steps.next().unwrap_or(1)) {
                fold(&mut all, (at + index) as u64, said);
            }
            let mut left = steps.next().unwrap_or(1);
            let more = all.take(|name, entry| {
                writer.stream(name, entry);
                left = left.saturating_sub(1);
                left > 0
            });
            if !more {
                break;
            }
        }
        writer.end();
        all.end_taking();
        for (index, said) in rest {
            fold(&mut all, (at + index) as u64, said);
        }
        let mut restored = read(&writer.ready()).expect("it is whole");
        same(&restored, &then);
        for (index, said) in log[at..].iter().enumerate() {
            fold(&mut restored, (at + index) as u64, said);
        }
        same(&restored, &all);
    }

    /// Bytes that somebody changed or cut are an error, or say something else; never a panic.
    #[test]
    fn damaged_checkpoints_are_no_panic(
        log in proptest::collection::vec(said(), 1..30),
        which in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        cut in any::<bool>(),
    ) {
        let mut all = Fold::default();
        log.iter().enumerate().for_each(|(offset, said)| fold(&mut all, offset as u64, said));
        let mut parts = written(&mut all);
        let part = which.get_mut(&mut parts);
        let mut body = part.body().to_vec();
        let at = at.index(body.len());
        if cut { body.truncate(at) } else { body[at] = byte }
        *part = part.clone().with_body(body);
        let _ = read(&parts);
    }

    #[test]
    fn foreign_bytes_are_no_checkpoint(body in proptest::collection::vec(any::<u8>(), 0..200)) {
        let message = Message::new(body).with_content_type("application/vnd.millstream.checkpoint");
        let mut reader = Reader::new(String::new());
        prop_assert!(reader.message(&message).is_err() || reader.end().is_err() || form::end(&message).is_some());
    }
}

fn append(stream: &str, offset: u64) -> Head<'_> {
    let event = EventHead {
        id: "e".into(),
        event: "t".into(),
        data: BodyHead::default(),
        correlation: None,
        causation: None,
        meta: BTreeMap::new(),
    };
    let change = Change::Append { expect: Expected::Any, events: vec![event; 2] };
    Head { v: 1, stream: Cow::Borrowed(stream), commit: Cow::Owned(format!("commit {offset}")), change }
}

#[test]
fn a_large_checkpoint_is_in_parts_that_a_broker_takes() {
    let mut all = Fold::default();
    for offset in 0..150_000_u64 {
        // One long stream between many short ones, and some that do not count.
        let stream = if offset % 2 == 0 { "long".to_owned() } else { format!("{:08x}", offset / 4) };
        match offset % 50 {
            7 => all.pass(offset),
            _ => drop(all.fold(offset, &append(&stream, offset))),
        }
    }
    let parts = written(&mut all);
    assert!(parts.len() > 20, "{} parts", parts.len());
    let largest = parts.iter().map(|part| part.size()).max().expect("there are some");
    assert!(largest < 2 * PART, "{largest} bytes");
    let bytes: usize = parts.iter().map(|part| part.size()).sum();
    assert!(bytes < 150_000 * 30, "{bytes} bytes for 150,000 entries with 65,536 names");
    same(&read(&parts).expect("it is whole"), &all);
}

#[test]
fn parts_that_are_missing_are_told_and_those_of_others_passed_over() {
    let mut all = Fold::default();
    for offset in 0..3000 {
        all.fold(offset, &append(&format!("stream {offset}"), offset));
    }
    let parts = written(&mut all);
    assert!(parts.len() > 4);
    for missing in 0..parts.len() {
        let mut some = parts.clone();
        some.remove(missing);
        assert!(matches!(read(&some), Err(FormError::Missing)), "without part {missing}");
    }
    let mut writer = Writer::new("other".to_owned(), &Fold::default().begin_taking(), mark(0));
    writer.end();
    let others = writer.ready();
    let mixed: Vec<_> =
        parts.iter().flat_map(|part| [others[0].clone(), others[1].clone(), part.clone()]).collect();
    same(&read(&mixed).expect("it is whole"), &all);
}

#[test]
fn a_mark_tells_entries_apart() {
    let mark = Mark::of(3, &Message::new("a"));
    assert_eq!(mark, Mark::of(3, &Message::new("a")));
    assert_ne!(mark, Mark::of(4, &Message::new("a")));
    assert_ne!(mark, Mark::of(3, &Message::new("b")));
    assert_ne!(mark, Mark::of(3, &Message::new("a").with_message_id("m")));
}
