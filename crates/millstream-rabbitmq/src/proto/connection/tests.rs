//! The protocol against a server that is a script: bytes in, bytes and events out.

use std::time::Duration;

use millstream_message::{Headers, Message, Value};
use proptest::prelude::*;

use super::words::{COMMAND_INVALID, RESOURCE_ERROR, SYNTAX_ERROR, UNEXPECTED_FRAME};
use super::*;
use crate::proto::method::Method;

const SECOND: Duration = Duration::from_secs(1);

/// What RabbitMQ 3.10.8 says first, as it was recorded.
const START: &[u8] = include_bytes!("../fixtures/rabbitmq-3.10.8-start.bin");

fn settings() -> Settings {
    Settings {
        login: Login::Plain("ada".to_owned(), "secret".to_owned()),
        vhost: "/".to_owned(),
        name: "test".to_owned(),
        frame_max: 0,
        channel_max: 0,
        heartbeat: 10 * SECOND,
        body_max: 1 << 20,
    }
}

fn framed(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![kind];
    out.put_u16(channel);
    out.put_u32(payload.len() as u32);
    out.put_slice(payload);
    out.put_u8(FRAME_END);
    out
}

fn said(channel: u16, method: &Method) -> Vec<u8> {
    let mut payload = Vec::new();
    method.put(&mut payload);
    framed(FRAME_METHOD, channel, &payload)
}

fn header(channel: u16, size: u64, message: &Message) -> Vec<u8> {
    let mut payload = Vec::new();
    payload.put_u16(BASIC);
    payload.put_u16(0);
    payload.put_u64(size);
    properties::put(&mut payload, message);
    framed(FRAME_HEADER, channel, &payload)
}

fn deliver(channel: u16, tag: u64) -> Vec<u8> {
    let deliver = Method::BasicDeliver {
        consumer_tag: "c".to_owned(),
        delivery_tag: tag,
        redelivered: [true],
        exchange: "ex".to_owned(),
        routing_key: "key".to_owned(),
    };
    said(channel, &deliver)
}

/// The methods in what a connection wants to send, and the channels they are for.
fn sent(connection: &mut Connection) -> Vec<(u16, Method)> {
    let mut out = Vec::new();
    connection.swap_output(&mut out, Duration::ZERO);
    let mut rest = out.strip_prefix(HELLO).unwrap_or(&out);
    let mut methods = Vec::new();
    while !rest.is_empty() {
        let (kind, channel) = (rest[0], u16::from_be_bytes([rest[1], rest[2]]));
        let length = u32::from_be_bytes(rest[3..7].try_into().expect("four bytes")) as usize;
        assert_eq!(rest[7 + length], FRAME_END);
        if kind == FRAME_METHOD {
            methods.push((channel, Method::read(&rest[7..7 + length]).expect("it can be read")));
        }
        rest = &rest[8 + length..];
    }
    methods
}

/// Feeds bytes, and gives what came of them, as text.
fn feed(connection: &mut Connection, bytes: &[u8]) -> Result<Vec<String>, ProtocolError> {
    let mut events = Vec::new();
    let used = connection.receive(bytes, Duration::ZERO, &mut |event| events.push(format!("{event:?}")))?;
    assert_eq!(used, bytes.len(), "whole frames are taken");
    Ok(events)
}

fn tune(channel_max: u16, frame_max: u32, heartbeat: u16) -> Vec<u8> {
    said(0, &Method::ConnectionTune { channel_max, frame_max, heartbeat })
}

fn open_ok() -> Vec<u8> {
    said(0, &Method::ConnectionOpenOk { reserved_1: String::new() })
}

/// An open connection with a channel, number 1.
fn open(settings: Settings) -> Connection {
    let mut connection = Connection::new(settings, Duration::ZERO);
    let hello = [START, &tune(2047, 4096, 60), &open_ok()].concat();
    feed(&mut connection, &hello).expect("a good handshake");
    assert_eq!(connection.open_channel(), Some(1));
    feed(&mut connection, &said(1, &Method::ChannelOpenOk { reserved_1: Vec::new() })).expect("it is open");
    sent(&mut connection);
    connection
}

#[test]
fn the_handshake_says_who_and_agrees_on_limits() {
    let mut connection = Connection::new(settings(), Duration::ZERO);
    assert_eq!(connection.output(), HELLO);
    feed(&mut connection, START).expect("RabbitMQ's own words");
    let [(0, Method::ConnectionStartOk { client_properties, mechanism, response, .. })] =
        &sent(&mut connection)[..]
    else {
        panic!("it answers")
    };
    assert_eq!((mechanism.as_str(), &response[..]), ("PLAIN", &b"\0ada\0secret"[..]));
    assert_eq!(client_properties["connection_name"], "test".into());
    let Value::Map(capabilities) = &client_properties["capabilities"] else { panic!("a map") };
    assert_eq!(capabilities["connection.blocked"], Value::Bool(true));

    feed(&mut connection, &tune(2047, 131_072, 60)).expect("good");
    let answers = sent(&mut connection);
    assert_eq!(
        answers[0].1,
        Method::ConnectionTuneOk { channel_max: 2047, frame_max: 131_072, heartbeat: 10 }
    );
    assert!(matches!(&answers[1].1, Method::ConnectionOpen { vhost, .. } if vhost == "/"));
    let events = feed(&mut connection, &open_ok()).expect("good");
    assert!(events[0].contains("Opened") && events[0].contains("3.10.8"), "{events:?}");
}

#[test]
fn the_lower_limit_counts_and_none_is_none() {
    let agreed = |ours: (u16, u32, u64), theirs: (u16, u32, u16)| {
        let ours = Settings {
            channel_max: ours.0,
            frame_max: ours.1,
            heartbeat: Duration::from_secs(ours.2),
            ..settings()
        };
        let mut connection = Connection::new(ours, Duration::ZERO);
        feed(&mut connection, &[START, &tune(theirs.0, theirs.1, theirs.2)].concat()).expect("good");
        let server = connection.server().clone();
        (server.channel_max, server.frame_max, server.heartbeat.as_secs())
    };
    assert_eq!(agreed((10, 8192, 30), (2047, 131_072, 60)), (10, 8192, 30));
    assert_eq!(agreed((0, 0, 90), (2047, 131_072, 60)), (2047, 131_072, 60));
    assert_eq!(agreed((10, 8192, 30), (0, 0, 0)), (10, 8192, 30));
    assert_eq!(agreed((0, 0, 0), (0, 0, 60)), (0, FRAME_USUAL, 0), "who wants no heartbeat has none");
}

#[test]
fn a_server_that_cannot_be_talked_to_is_told_apart() {
    let refuse = |bytes: &[u8], settings: Settings| {
        let mut connection = Connection::new(settings, Duration::ZERO);
        connection.receive(bytes, Duration::ZERO, &mut |_| {}).expect_err("it is refused").to_string()
    };
    let other = refuse(b"AMQP\x00\x01\x00\x00", settings());
    assert!(other.contains("no AMQP 0-9-1"), "{other}");
    let http = refuse(b"HTTP/1.1 400 Bad Request\r\n", settings());
    assert!(!http.is_empty());
    let external = refuse(START, Settings { login: Login::External, ..settings() });
    assert!(
        external.contains("PLAIN") && external.contains("EXTERNAL"),
        "it says what is offered: {external}"
    );
    let small = refuse(&[START, &tune(0, 100, 0)].concat(), settings());
    assert!(small.contains("4096"), "{small}");
}

#[test]
fn the_other_logins_are_as_the_specification_says() {
    let amqplain = Login::Amqplain("ada".to_owned(), "pw".to_owned());
    assert_eq!(amqplain.response(), b"\x05LOGINS\0\0\0\x03ada\x08PASSWORDS\0\0\0\x02pw");
    assert_eq!((Login::External.mechanism(), Login::External.response().len()), ("EXTERNAL", 0));
}

#[test]
fn a_message_comes_whole_in_however_many_frames() {
    let mut connection = open(settings());
    let message = Message::new("").with_header("n", 7_i64).with_message_id("id");
    let body: Vec<u8> = (0..10_000_u32).map(|n| n as u8).collect();
    let mut bytes = [deliver(1, 5), header(1, 10_000, &message)].concat();
    for piece in body.chunks(4000) {
        bytes.extend(framed(FRAME_BODY, 1, piece));
    }
    bytes.extend([deliver(1, 6), header(1, 0, &Message::new(""))].concat());
    let mut seen = Vec::new();
    let used = connection.receive(&bytes, Duration::ZERO, &mut |event| {
        let Event::Deliver { channel: 1, tag, redelivered: true, exchange: "ex", key: "key", content } =
            event
        else {
            panic!("{event:?}")
        };
        seen.push((tag, content.into_message()));
    });
    assert_eq!(used, Ok(bytes.len()));
    assert_eq!(seen, [(5, message.with_body(body)), (6, Message::new(""))]);
}

#[test]
fn messages_of_two_channels_may_be_interleaved() {
    let mut connection = open(settings());
    assert_eq!(connection.open_channel(), Some(2));
    let plain = Message::new("");
    let bytes = [
        said(2, &Method::ChannelOpenOk { reserved_1: Vec::new() }),
        deliver(1, 1),
        deliver(2, 1),
        header(2, 3, &plain),
        header(1, 3, &plain),
        framed(FRAME_BODY, 1, b"one"),
        framed(FRAME_BODY, 2, b"two"),
    ];
    let events = feed(&mut connection, &bytes.concat()).expect("good");
    assert!(events[1].contains("channel: 1") && events[1].contains("one"), "{events:?}");
    assert!(events[2].contains("channel: 2") && events[2].contains("two"), "{events:?}");
}

#[test]
fn what_is_published_can_be_read_again() {
    let mut connection = open(settings());
    let message = Message::new(vec![7_u8; 9000]).with_header("h", "x").transient();
    connection.publish(1, "ex", "key", &message);
    let mut out = Vec::new();
    connection.swap_output(&mut out, Duration::ZERO);
    // As a server would: what is published is a delivery but for its method.
    let method = 8 + u32::from_be_bytes(out[3..7].try_into().expect("four bytes")) as usize;
    let published = Method::read(&out[7..method - 1]).expect("it can be read");
    let Method::BasicPublish { exchange, routing_key, flags: [true, false], .. } = published else {
        panic!("{published:?}")
    };
    assert_eq!((exchange.as_str(), routing_key.as_str()), ("ex", "key"));
    let bytes = [&deliver(1, 1), &out[method..]].concat();
    let mut seen = None;
    connection
        .receive(&bytes, Duration::ZERO, &mut |event| {
            let Event::Deliver { content, .. } = event else { panic!("{event:?}") };
            seen = Some(content.into_message());
        })
        .expect("good");
    assert_eq!(seen, Some(message));
    assert!(out.len() > 9000 + 3 * FRAME_EXTRA, "in frames of at most 4096 bytes");
}

#[test]
fn a_channel_that_the_server_closes_can_be_opened_again() {
    let mut connection = open(settings());
    let close = Method::ChannelClose { code: 404, text: "NOT_FOUND".to_owned(), class: 50, method: 10 };
    let events = feed(&mut connection, &said(1, &close)).expect("good");
    assert!(events[0].contains("ChannelClosed(1") && events[0].contains("404"), "{events:?}");
    assert_eq!(sent(&mut connection), [(1, Method::ChannelCloseOk {})]);
    assert_eq!(connection.open_channel(), Some(1));
}

#[test]
fn what_comes_on_a_channel_that_is_being_closed_is_not_looked_at() {
    let mut connection = open(settings());
    connection.close_channel(1);
    connection.close_channel(1);
    assert_eq!(sent(&mut connection).len(), 1, "it is closed once");
    let late = [deliver(1, 1), header(1, 3, &Message::new("")), framed(FRAME_BODY, 1, b"abc"), deliver(1, 2)];
    assert_eq!(feed(&mut connection, &late.concat()), Ok(Vec::new()));
    let events = feed(&mut connection, &said(1, &Method::ChannelCloseOk {})).expect("good");
    assert!(events[0].contains("Reply(1"), "{events:?}");
    assert!(feed(&mut connection, &deliver(1, 3)).is_err(), "now it is not open");
}

#[test]
fn as_many_channels_are_open_as_may_be() {
    let mut connection = open(Settings { channel_max: 3, ..settings() });
    assert_eq!(
        [connection.open_channel(), connection.open_channel(), connection.open_channel()],
        [Some(2), Some(3), None]
    );
}

#[test]
fn heartbeats_are_sent_in_silence_and_missed_ones_are_noticed() {
    let mut connection = open(settings());
    assert_eq!(connection.tick(SECOND), Ok(Some(5 * SECOND)));
    assert!(connection.output().is_empty());
    connection.tick(5 * SECOND).expect("alive");
    let mut out = Vec::new();
    connection.swap_output(&mut out, 5 * SECOND);
    assert_eq!(out, [8, 0, 0, 0, 0, 0, 0, 0xce]);
    connection.receive(&out, 15 * SECOND, &mut |_| {}).expect("theirs is the same");
    assert!(connection.tick(34 * SECOND).is_ok());
    let error = connection.tick(35 * SECOND).expect_err("twenty seconds of silence");
    assert!(error.to_string().contains("heartbeat"), "{error}");
    let mut silent = open(Settings { heartbeat: Duration::ZERO, ..settings() });
    assert_eq!(silent.tick(1000 * SECOND), Ok(None));
}

#[test]
fn a_connection_that_the_server_closes_is_over() {
    let mut connection = open(settings());
    let close =
        Method::ConnectionClose { code: 320, text: "CONNECTION_FORCED".to_owned(), class: 0, method: 0 };
    let events = feed(&mut connection, &[said(0, &close), deliver(1, 1)].concat()).expect("good");
    assert!(events.len() == 1 && events[0].contains("320"), "{events:?}");
    assert_eq!(sent(&mut connection), [(0, Method::ConnectionCloseOk {})]);
}

#[test]
fn the_server_may_block_and_ask_and_cancel() {
    let mut connection = open(settings());
    let bytes = [
        said(0, &Method::ConnectionBlocked { reason: "low on memory".to_owned() }),
        said(0, &Method::ConnectionUnblocked {}),
        said(1, &Method::ChannelFlow { active: [false] }),
        said(1, &Method::BasicCancel { consumer_tag: "c".to_owned(), nowait: [false] }),
        said(1, &Method::BasicAck { delivery_tag: 3, multiple: [true] }),
        said(1, &Method::BasicNack { delivery_tag: 4, flags: [false, false] }),
    ];
    let events = feed(&mut connection, &bytes.concat()).expect("good");
    assert_eq!(events.len(), 5);
    assert!(events[0].contains("low on memory") && events[1].contains("Unblocked"));
    assert!(
        events[2].contains("Cancelled") && events[3].contains("Ack { channel: 1, tag: 3, multiple: true")
    );
    let answers = sent(&mut connection);
    assert_eq!(answers[0].1, Method::ChannelFlowOk { active: [false] });
    assert_eq!(answers[1].1, Method::BasicCancelOk { consumer_tag: "c".to_owned() });
}

#[test]
fn frames_that_break_the_protocol_end_the_connection_with_the_right_code() {
    let plain = Message::new("");
    let mut unknown = 60_u16.to_be_bytes().to_vec();
    unknown.extend(999_u16.to_be_bytes());
    let mut table = Vec::new();
    Method::QueueDeclareOk { queue: "q".to_owned(), messages: 1, consumers: 1 }.put(&mut table);
    table.truncate(table.len() - 2);
    let other_end = {
        let mut frame = framed(FRAME_METHOD, 1, b"xxxx");
        *frame.last_mut().expect("its end") = 0;
        frame
    };
    let other_class = {
        let mut frame = header(1, 0, &plain);
        frame[8] = 61;
        frame
    };
    let hostile: &[(&str, u16, Vec<u8>)] = &[
        ("larger than agreed", FRAME_ERROR, framed(FRAME_METHOD, 1, &[0; 5000])),
        ("claims to be huge", FRAME_ERROR, vec![1, 0, 1, 0xff, 0xff, 0xff, 0xff]),
        ("ends otherwise", FRAME_ERROR, other_end),
        ("of no known type", FRAME_ERROR, framed(9, 1, b"")),
        ("a heartbeat with words", FRAME_ERROR, framed(FRAME_HEARTBEAT, 0, b"x")),
        ("on a channel that is not open", CHANNEL_ERROR, deliver(7, 1)),
        ("a body without a header", UNEXPECTED_FRAME, framed(FRAME_BODY, 1, b"x")),
        ("a header without a method", UNEXPECTED_FRAME, header(1, 0, &plain)),
        ("a method in mid-message", UNEXPECTED_FRAME, [deliver(1, 1), deliver(1, 2)].concat()),
        (
            "more than announced",
            FRAME_ERROR,
            [deliver(1, 1), header(1, 2, &plain), framed(FRAME_BODY, 1, b"abc")].concat(),
        ),
        ("a body over the limit", RESOURCE_ERROR, [deliver(1, 1), header(1, 2 << 20, &plain)].concat()),
        ("a header of another class", FRAME_ERROR, [deliver(1, 1), other_class].concat()),
        ("a method that is none", COMMAND_INVALID, framed(FRAME_METHOD, 1, &unknown)),
        ("a method cut short", SYNTAX_ERROR, framed(FRAME_METHOD, 1, &table)),
        ("a method of clients", COMMAND_INVALID, said(1, &Method::ConfirmSelect { nowait: [false] })),
        ("a channel's method on the connection", COMMAND_INVALID, said(0, &Method::BasicQosOk {})),
        ("the handshake once more", COMMAND_INVALID, tune(1, 5000, 1)),
        ("an answer to what nobody asked", COMMAND_INVALID, said(1, &Method::ChannelCloseOk {})),
    ];
    for (what, code, bytes) in hostile {
        let mut connection = open(settings());
        let error = connection.receive(bytes, Duration::ZERO, &mut |_| {}).expect_err(what);
        assert_eq!(error.code, *code, "{what}: {error}");
        let told = sent(&mut connection);
        assert!(
            matches!(&told[..], [(0, Method::ConnectionClose { code: told, .. })] if told == code),
            "{what}: the server is told: {told:?}"
        );
    }
}

/// What a server says until a channel can be opened, and what it may say then.
fn conversation() -> [Vec<u8>; 2] {
    let table = Value::Map(Headers::from([("n".to_owned(), Value::Null)]));
    let message = Message::new("").with_header("table", table);
    let handshake = [
        START.to_vec(),
        tune(2047, 4096, 60),
        open_ok(),
        said(0, &Method::ConnectionBlocked { reason: "disk".to_owned() }),
        framed(FRAME_HEARTBEAT, 0, b""),
        said(0, &Method::ConnectionUnblocked {}),
    ];
    let deliveries = [
        said(1, &Method::ChannelOpenOk { reserved_1: Vec::new() }),
        deliver(1, 1),
        header(1, 6, &message),
        framed(FRAME_BODY, 1, b"abc"),
        framed(FRAME_BODY, 1, b"def"),
        said(1, &Method::BasicAck { delivery_tag: 9, multiple: [true] }),
    ];
    [handshake.concat(), deliveries.concat()]
}

/// What comes of the conversation when it is read in these pieces, and then in single bytes.
fn read_in(mut pieces: impl Iterator<Item = usize>) -> Vec<String> {
    let mut connection = Connection::new(settings(), Duration::ZERO);
    let mut events = Vec::new();
    for bytes in conversation() {
        let (mut from, mut to) = (0, 0);
        while to < bytes.len() {
            to = (to + pieces.next().unwrap_or(1)).min(bytes.len());
            let mut on = |event: Event<'_>| events.push(format!("{event:?}"));
            from += connection.receive(&bytes[from..to], Duration::ZERO, &mut on).expect("good");
        }
        assert_eq!(from, bytes.len());
        connection.open_channel();
    }
    events
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if std::env::var_os("MILLSTREAM_SOAK").is_some() { 2_000_000 } else { 500 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// However the bytes are torn and put together, the same comes of them.
    #[test]
    fn reads_may_be_torn_anywhere(cuts in prop::collection::vec(1..200usize, 1..60)) {
        prop_assert_eq!(read_in(cuts.into_iter()), read_in(std::iter::repeat(usize::MAX / 2)));
    }

    /// Nothing that anybody sends makes it panic, or take memory that was not sent.
    #[test]
    fn any_bytes_are_events_or_an_error(
        kinds in prop::collection::vec((0..10u8, 0..4u16, prop::collection::vec(any::<u8>(), 0..60)), 0..20),
        spoiled in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let mut connection = open(settings());
        let mut bytes: Vec<u8> = kinds.iter().flat_map(|(kind, channel, payload)| match kind {
            0..5 => framed(*kind, *channel, payload),
            5 => deliver(*channel, 1),
            6 => header(*channel, payload.len() as u64, &Message::new("").with_priority(3)),
            7 => framed(FRAME_BODY, *channel, payload),
            8 => said(*channel, &Method::BasicAck { delivery_tag: 1, multiple: [true] }),
            _ => payload.clone(),
        }).collect();
        for (at, byte) in spoiled {
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
        }
        let _ = connection.receive(&bytes, Duration::ZERO, &mut |event| _ = format!("{event:?}"));
    }
}
