//! Whatever a server sends, through all that reads it: events, messages, or an error that says what is wrong.

use bytes::{BufMut, Bytes};
use millstream_message::Message;
use proptest::prelude::*;
use proptest::sample::Index;

use super::chunk::tests::{Made, all, chunk, entries};
use super::chunk::{Chunk, HEADER};
use super::command::tests::{requests, responses};
use super::command::{Command, Ids};
use super::session::tests::{feed, now, open};
use super::{amqp, session};

/// How many cases each of this protocol's properties is tried with: many more where there is time for them.
pub(crate) fn cases() -> ProptestConfig {
    ProptestConfig {
        cases: if std::env::var_os("MILLSTREAM_SOAK").is_some() { 2_000_000 } else { 256 },
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// What a server may send, and what only clients do, as frames.
fn frames() -> impl Strategy<Value = Vec<u8>> {
    let bytes = |most| prop::collection::vec(any::<u8>(), 0..most);
    prop_oneof![
        (any::<u32>(), requests()).prop_map(|(number, request)| Command::Request(number, request).frame()),
        (0..8_u32, responses()).prop_map(|(number, response)| Command::Response(number, response).frame()),
        (any::<u8>(), bytes(10)).prop_map(|(publisher, numbers)| {
            let ids: Vec<u8> = numbers.iter().flat_map(|number| u64::from(*number).to_be_bytes()).collect();
            Command::Confirm { publisher, ids: Ids::new(&ids) }.frame()
        }),
        (any::<u8>(), prop::collection::vec(any::<(u64, u16)>(), 0..4))
            .prop_map(|(publisher, errors)| Command::PublishError { publisher, errors }.frame()),
        (any::<u8>(), prop::option::of(any::<u64>()), entries()).prop_map(
            |(subscription, committed, entries)| {
                Command::Deliver { subscription, committed, chunk: &chunk(7, 7, &entries) }.frame()
            }
        ),
        any::<(u16, u8)>()
            .prop_map(|(code, subscription)| Command::CreditError { code, subscription }.frame()),
        any::<(u32, u32)>().prop_map(|(frame_max, heartbeat)| Command::Tune { frame_max, heartbeat }.frame()),
        Just(Command::Heartbeat.frame()),
        // Some key, some version, something behind it.
        (0..40_u16, any::<bool>(), 0..3_u16, bytes(40)).prop_map(|(key, answer, version, content)| {
            let mut frame = Vec::new();
            frame.put_u32(4 + content.len() as u32);
            frame.put_u16(if answer { key | 0x8000 } else { key });
            frame.put_u16(version);
            frame.put_slice(&content);
            frame.into()
        }),
    ]
    .prop_map(|frame: Bytes| frame.to_vec())
}

/// Other bytes in some places, and perhaps an early end.
fn spoil(bytes: &mut Vec<u8>, places: &[(Index, u8)], end: Option<Index>) {
    for (at, byte) in places.iter().filter(|_| !bytes.is_empty()).copied().collect::<Vec<_>>() {
        let at = at.index(bytes.len());
        bytes[at] = byte;
    }
    if let Some(end) = end {
        bytes.truncate(end.index(bytes.len() + 1));
    }
}

fn spoils() -> impl Strategy<Value = (Vec<(Index, u8)>, Option<Index>)> {
    (prop::collection::vec(any::<(Index, u8)>(), 0..4), prop::option::of(any::<Index>()))
}

/// All messages of a chunk, read as far as they can be.
fn read(bytes: Bytes, skip: u64) {
    let Ok(chunk) = Chunk::read(bytes) else { return };
    let mut later = chunk.clone().entries();
    let _ = later.skip_to(skip);
    for (_, message) in all(chunk.entries()).into_iter().flatten() {
        let _ = amqp::decode(&message, &message);
    }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn whatever_a_server_sends_is_events_or_an_error(
        frames in prop::collection::vec(frames(), 0..12), (places, end) in spoils(), opened in any::<bool>(),
    ) {
        let mut bytes = frames.concat();
        spoil(&mut bytes, &places, end);
        let mut session = if opened { open("3.13.0") } else { session::tests::new() };
        for number in 0..4 {
            if opened {
                session.request(super::command::Request::Delete { stream: number.to_string() });
            }
        }
        let _ = feed(&mut session, &bytes, now());
        let _ = session.tick(now());
    }

    #[test]
    fn whatever_a_chunk_holds_is_messages_or_an_error(
        properties in amqp::tests::properties(), batched in any::<bool>(), (places, end) in spoils(),
        right in any::<bool>(), skip in 0..40_u64,
    ) {
        let message = Message::from_parts(Bytes::from_static(b"body"), properties);
        let messages = vec![amqp::tests::encoded(&message, None).to_vec(); 3];
        let entries = if batched {
            vec![Made::Gzip(messages.clone()), Made::Batch(messages)]
        } else {
            messages.into_iter().map(Made::One).collect()
        };
        let mut bytes = chunk(7, 7, &entries).to_vec();
        spoil(&mut bytes, &places, end);
        if right && bytes.len() > HEADER {
            // As a server with a mistake would make it, and not the way to it.
            let data = u32::try_from(bytes.len() - HEADER).expect("small");
            let checksum = crc32fast::hash(&bytes[HEADER..]);
            bytes[0] = 0x50;
            bytes[32..36].copy_from_slice(&checksum.to_be_bytes());
            bytes[36..40].copy_from_slice(&data.to_be_bytes());
        }
        read(bytes.into(), skip);
    }
}
