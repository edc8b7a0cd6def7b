use super::super::wire::Pairs;
use super::*;
use proptest::prelude::*;

use super::super::fuzz::cases;

fn name() -> impl Strategy<Value = String> {
    "[a-zà-ÿ.-]{1,12}"
}

fn pairs_of() -> impl Strategy<Value = Pairs> {
    prop::collection::vec((name(), name()), 0..4)
}

fn names() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec(name(), 0..4)
}

fn places() -> impl Strategy<Value = OffsetSpec> {
    prop_oneof![
        Just(OffsetSpec::First),
        Just(OffsetSpec::Last),
        Just(OffsetSpec::Next),
        any::<u64>().prop_map(OffsetSpec::Offset),
        any::<i64>().prop_map(OffsetSpec::Timestamp),
    ]
}

fn versions_of() -> impl Strategy<Value = Vec<Versions>> {
    let one = any::<[u16; 3]>().prop_map(|[key, least, most]| Versions { key, least, most });
    prop::collection::vec(one, 0..4)
}

pub(crate) fn requests() -> impl Strategy<Value = Request> {
    let two = || (name(), name());
    prop_oneof![
        (any::<u8>(), two()).prop_map(|(publisher, (reference, stream))| {
            Request::DeclarePublisher { publisher, reference, stream }
        }),
        two().prop_map(|(reference, stream)| Request::QueryPublisherSequence { reference, stream }),
        any::<u8>().prop_map(|publisher| Request::DeletePublisher { publisher }),
        (any::<u8>(), name(), places(), any::<u16>(), pairs_of()).prop_map(
            |(subscription, stream, from, credit, properties)| {
                Request::Subscribe { subscription, stream, from, credit, properties }
            }
        ),
        two().prop_map(|(reference, stream)| Request::QueryOffset { reference, stream }),
        any::<u8>().prop_map(|subscription| Request::Unsubscribe { subscription }),
        (name(), pairs_of()).prop_map(|(stream, arguments)| Request::Create { stream, arguments }),
        name().prop_map(|stream| Request::Delete { stream }),
        names().prop_map(|streams| Request::Metadata { streams }),
        pairs_of().prop_map(|properties| Request::PeerProperties { properties }),
        Just(Request::SaslHandshake),
        (name(), prop::option::of(prop::collection::vec(any::<u8>(), 0..9)))
            .prop_map(|(mechanism, data)| Request::SaslAuthenticate { mechanism, data }),
        name().prop_map(|vhost| Request::Open { vhost }),
        (any::<u16>(), name()).prop_map(|(code, reason)| Request::Close { code, reason }),
        two().prop_map(|(key, super_stream)| Request::Route { key, super_stream }),
        name().prop_map(|super_stream| Request::Partitions { super_stream }),
        (any::<u8>(), any::<bool>())
            .prop_map(|(subscription, active)| Request::ConsumerUpdate { subscription, active }),
        versions_of().prop_map(|commands| Request::ExchangeVersions { commands }),
        name().prop_map(|stream| Request::StreamStats { stream }),
        (name(), names(), names(), pairs_of()).prop_map(|(super_stream, partitions, keys, arguments)| {
            Request::CreateSuperStream { super_stream, partitions, keys, arguments }
        }),
        name().prop_map(|super_stream| Request::DeleteSuperStream { super_stream }),
    ]
}

pub(crate) fn responses() -> impl Strategy<Value = Response> {
    let plain = prop::sample::select(vec![
        DECLARE_PUBLISHER,
        DELETE_PUBLISHER,
        SUBSCRIBE,
        UNSUBSCRIBE,
        CREATE,
        DELETE,
        CLOSE,
        CREATE_SUPER_STREAM,
        DELETE_SUPER_STREAM,
    ]);
    let brokers = (any::<u16>(), name(), any::<u32>()).prop_map(|(reference, host, port)| Broker {
        reference,
        host,
        port,
    });
    let streams = (name(), any::<u16>(), any::<u16>(), prop::collection::vec(any::<u16>(), 0..4))
        .prop_map(|(stream, code, leader, replicas)| StreamMetadata { stream, code, leader, replicas });
    let metadata = (prop::collection::vec(brokers, 0..4), prop::collection::vec(streams, 0..4))
        .prop_map(|(brokers, streams)| Body::Metadata { brokers, streams });
    let of = |keys: &[u16], body: BoxedStrategy<Body>| {
        (prop::sample::select(keys.to_vec()), body).prop_map(|(key, body)| Response {
            key,
            code: code::OK,
            body,
        })
    };
    prop_oneof![
        (plain, any::<u16>()).prop_map(|(key, code)| Response { key, code, body: Body::Empty }),
        (prop::sample::select(vec![OPEN, QUERY_OFFSET, ROUTE, STREAM_STATS]), 2..30_u16)
            .prop_map(|(key, code)| Response { key, code, body: Body::Empty }),
        of(&[QUERY_PUBLISHER_SEQUENCE, QUERY_OFFSET], any::<u64>().prop_map(Body::Number).boxed()),
        of(&[METADATA], metadata.boxed()),
        of(&[PEER_PROPERTIES, OPEN], pairs_of().prop_map(Body::Properties).boxed()),
        of(&[SASL_HANDSHAKE, ROUTE, PARTITIONS], names().prop_map(Body::Names).boxed()),
        of(&[SASL_AUTHENTICATE], prop::collection::vec(any::<u8>(), 0..9).prop_map(Body::Challenge).boxed()),
        of(&[EXCHANGE_VERSIONS], versions_of().prop_map(Body::Versions).boxed()),
        of(
            &[STREAM_STATS],
            prop::collection::vec((name(), any::<i64>()), 0..4).prop_map(Body::Stats).boxed()
        ),
        of(&[CONSUMER_UPDATE], prop::option::of(places()).prop_map(Body::From).boxed()),
    ]
}

/// Whether a command comes back from its frame.
fn comes_back(command: &Command<'_>) {
    let frame = command.frame();
    let len = u32::from_be_bytes(*frame.first_chunk().expect("a length")) as usize;
    assert_eq!(len, frame.len() - 4);
    assert_eq!(Command::read(&frame[4..]).as_ref(), Ok(command));
    // Cut anywhere it is an error, but where what follows may be left out, or reaches to the end.
    for end in 0..len {
        let _ = Command::read(&frame[4..4 + end]);
    }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn every_request_comes_back(correlation in any::<u32>(), request in requests()) {
        comes_back(&Command::Request(correlation, request));
    }

    #[test]
    fn every_response_comes_back(correlation in any::<u32>(), response in responses()) {
        comes_back(&Command::Response(correlation, response));
    }

    #[test]
    fn every_other_command_comes_back(
        number in any::<u8>(), word in any::<u16>(), long in any::<u64>(), names in (name(), name()),
        bytes in prop::collection::vec(any::<u8>(), 0..40), errors in prop::collection::vec(any::<(u64, u16)>(), 0..4),
    ) {
        let ids: Vec<u8> = bytes.iter().flat_map(|byte| u64::from(*byte).to_be_bytes()).collect();
        let (reference, stream) = names;
        for command in [
            Command::Publish { publisher: number, count: bytes.len() as u32 / 12, messages: &bytes },
            Command::Confirm { publisher: number, ids: Ids::new(&ids) },
            Command::PublishError { publisher: number, errors },
            Command::Deliver { subscription: number, committed: None, chunk: &bytes },
            Command::Deliver { subscription: number, committed: Some(long), chunk: &bytes },
            Command::Credit { subscription: number, credit: word },
            Command::CreditError { code: word, subscription: number },
            Command::StoreOffset { reference, stream: stream.clone(), offset: long },
            Command::MetadataUpdate { code: word, stream },
            Command::Tune { frame_max: long as u32, heartbeat: word.into() },
            Command::Heartbeat,
        ] {
            comes_back(&command);
        }
    }

    #[test]
    fn any_bytes_are_a_command_or_an_error(
        bytes in prop::collection::vec(any::<u8>(), 0..100), key in 0..40_u16, answer in any::<bool>(),
    ) {
        let _ = Command::read(&bytes);
        let mut framed = (key | if answer { RESPONSE } else { 0 }).to_be_bytes().to_vec();
        framed.extend([0, 1]);
        framed.extend(bytes);
        let _ = Command::read(&framed);
    }
}

#[test]
fn a_count_claims_no_more_than_there_is() {
    let mut frame = vec![0x80, PARTITIONS as u8, 0, 1, 0, 0, 0, 1, 0, 1];
    frame.put_u32(u32::MAX);
    assert_eq!(Command::read(&frame), Err(WireError::Count(u32::MAX)));
    let mut confirm = vec![0, PUBLISH_CONFIRM as u8, 0, 1, 0];
    confirm.put_u32(0x2000_0000);
    assert_eq!(Command::read(&confirm), Err(WireError::Count(0x2000_0000)));
    assert_eq!(Command::read(&[0, 99, 0, 1, 0, 0, 0, 0]), Err(WireError::Command(99, 1)));
    assert_eq!(Command::read(&[0, 23, 0, 7]), Err(WireError::Command(23, 7)));
    assert_eq!(Command::read(&[0, 23, 0, 1, 0]), Err(WireError::Trailing));
}

#[test]
fn answers_of_3_10_without_the_mark_of_an_answer_are_answers() {
    let response = Response { key: PARTITIONS, code: code::OK, body: Body::Names(vec!["a-0".to_owned()]) };
    let mut frame = Command::Response(7, response.clone()).frame()[4..].to_vec();
    frame[0] = 0;
    assert_eq!(Command::read(&frame), Ok(Command::Response(7, response)));
}
