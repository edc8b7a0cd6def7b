use super::super::command::OffsetSpec;
use super::*;
use proptest::prelude::*;

use super::super::fuzz::cases;

fn settings() -> Settings {
    Settings {
        user: "guest".to_owned(),
        password: "secret".to_owned(),
        external: false,
        vhost: "/".to_owned(),
        name: "test".to_owned(),
        frame_max: 0,
        heartbeat: Duration::from_secs(10),
        chunk_bytes_max: 1000,
    }
}

fn pair(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

fn answer(correlation: u32, key: u16, code: u16, body: Body) -> Bytes {
    Command::Response(correlation, Response { key, code, body }).frame()
}

/// What a server of this version says until the connection is open.
fn greeting(version: &str) -> Vec<Bytes> {
    let mut frames = vec![
        answer(1, key::PEER_PROPERTIES, code::OK, Body::Properties(vec![pair("version", version)])),
        answer(2, key::SASL_HANDSHAKE, code::OK, Body::Names(vec!["PLAIN".to_owned()])),
        answer(3, key::SASL_AUTHENTICATE, code::OK, Body::Challenge(Vec::new())),
        Command::Tune { frame_max: 4096, heartbeat: 60 }.frame(),
        answer(
            4,
            key::OPEN,
            code::OK,
            Body::Properties(vec![pair("advertised_host", "node"), pair("advertised_port", "5552")]),
        ),
    ];
    if version >= "3.11" {
        let commands = vec![Versions { key: key::STREAM_STATS, least: 1, most: 1 }];
        frames.push(answer(5, key::EXCHANGE_VERSIONS, code::OK, Body::Versions(commands)));
    }
    frames
}

pub(crate) fn feed(session: &mut Session, bytes: &[u8], now: Instant) -> Result<Vec<String>, BrokerError> {
    let mut seen = Vec::new();
    let mut input = BytesMut::from(bytes);
    session.receive(&mut input, now, &mut |_, event| seen.push(format!("{event:?}")))?;
    Ok(seen)
}

pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// A connection that has said its first word.
pub(crate) fn new() -> Session {
    Session::new(settings(), now())
}

pub(crate) fn open(version: &str) -> Session {
    let mut session = Session::new(settings(), now());
    let seen = feed(&mut session, &greeting(version).concat(), now()).expect("opens");
    assert_eq!(seen, ["Opened"]);
    session
}

#[test]
fn a_connection_opens_step_by_step() {
    let session = open("3.10.8");
    assert!(session.is_ready());
    assert_eq!(session.server.frame_max, 4096);
    assert_eq!(session.server.heartbeat, Duration::from_secs(10));
    assert!(!session.server.knows(key::STREAM_STATS) && !session.server.has_single_active());
    let mut asked = Vec::new();
    let mut out = &session.out[..];
    while let Some(head) = out.first_chunk::<4>() {
        let (frame, rest) = out[4..].split_at(u32::from_be_bytes(*head) as usize);
        asked.push(match Command::read(frame).expect("reads") {
            Command::Request(_, Request::SaslAuthenticate { data, .. }) => {
                assert_eq!(data.as_deref(), Some(&b"\0guest\0secret"[..]));
                key::SASL_AUTHENTICATE
            }
            Command::Request(_, request) => request.key(),
            Command::Tune { .. } => key::TUNE,
            other => panic!("{other:?}"),
        });
        out = rest;
    }
    let expected = [key::PEER_PROPERTIES, key::SASL_HANDSHAKE, key::SASL_AUTHENTICATE, key::TUNE, key::OPEN];
    assert_eq!(asked, expected);
    let newer = open("3.11.0").server;
    assert!(newer.knows(key::STREAM_STATS) && newer.has_single_active());
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn however_the_bytes_are_cut_the_events_are_the_same(cuts in prop::collection::vec(1..40_usize, 1..60)) {
        let mut bytes = greeting("3.11.0").concat();
        let chunk = [7; 200];
        let ids: Vec<u8> = (1..=5_u64).flat_map(u64::to_be_bytes).collect();
        for command in [
            Command::Heartbeat,
            Command::Confirm { publisher: 1, ids: Ids::new(&ids) },
            Command::Deliver { subscription: 2, committed: Some(9), chunk: &chunk },
            Command::PublishError { publisher: 1, errors: vec![(6, code::NO_PUBLISHER)] },
            Command::Request(1, Request::ConsumerUpdate { subscription: 2, active: true }),
            Command::MetadataUpdate { code: 6, stream: "s".to_owned() },
        ] {
            bytes.extend(command.frame());
        }
        let whole = feed(&mut Session::new(settings(), now()), &bytes, now()).expect("all of it");
        prop_assert_eq!(whole.len(), 6);
        let mut session = Session::new(settings(), now());
        let (mut seen, mut input, mut rest) = (Vec::new(), BytesMut::new(), &bytes[..]);
        for cut in cuts.iter().cycle() {
            let (taken, behind) = rest.split_at(rest.len().min(*cut));
            rest = behind;
            input.extend_from_slice(taken);
            let wanted = session
                .receive(&mut input, now(), &mut |_, event| seen.push(format!("{event:?}")))
                .expect("torn");
            prop_assert!(wanted == 0 || wanted > input.len());
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(seen, whole);
    }

    #[test]
    fn any_bytes_end_in_an_error_or_wait_for_more(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = feed(&mut open("3.10.8"), &bytes, now());
        let _ = feed(&mut Session::new(settings(), now()), &bytes, now());
    }
}

fn complaint(session: &mut Session, bytes: &[u8]) -> String {
    feed(session, bytes, now()).expect_err("refused").to_string()
}

#[test]
fn what_has_no_place_is_refused() {
    let frame = |len: u32, key: u16| [&len.to_be_bytes()[..], &key.to_be_bytes()].concat();
    assert!(complaint(&mut open("3.10.8"), &frame(4097, 3)).contains("4096 are taken"));
    assert!(complaint(&mut open("3.10.8"), &frame(1001, key::DELIVER)).contains("chunk_max"));
    assert!(complaint(&mut open("3.10.8"), &frame(3, 3)).contains("too short"));
    assert!(complaint(&mut Session::new(settings(), now()), b"AMQP\0\0\x09\x01").contains("AMQP"));
    assert!(
        complaint(&mut Session::new(settings(), now()), b"HTTP/1.1 400 No")
            .contains("speaks HTTP: port 15672")
    );
    let unasked = answer(99, key::CREATE, code::OK, Body::Empty);
    assert!(complaint(&mut open("3.10.8"), &unasked).contains("under 99"));
    let mut session = open("3.10.8");
    let number = session.request(Request::Delete { stream: "s".to_owned() });
    let other = answer(number, key::CREATE, code::OK, Body::Empty);
    assert!(complaint(&mut session, &other).contains("was asked"));
    let early = Command::Deliver { subscription: 1, committed: None, chunk: b"" }.frame();
    assert!(complaint(&mut Session::new(settings(), now()), &early).contains("no place"));
    let open_asked = Command::Request(1, Request::Open { vhost: "/".to_owned() }).frame();
    assert!(complaint(&mut open("3.10.8"), &open_asked).contains("no client answers"));
    assert!(
        complaint(&mut open("3.10.8"), &Command::Credit { subscription: 1, credit: 1 }.frame())
            .contains("only clients")
    );
}

#[test]
fn a_refusal_names_the_remedy() {
    let refuse = |upto: usize, last: Bytes| {
        let mut frames = greeting("3.10.8");
        frames.truncate(upto);
        frames.push(last);
        let error = feed(&mut Session::new(settings(), now()), &frames.concat(), now()).expect_err("refused");
        assert_eq!(error.kind(), BrokerErrorKind::Invalid);
        error.to_string()
    };
    let login = answer(3, key::SASL_AUTHENTICATE, code::AUTHENTICATION_FAILURE, Body::Empty);
    assert!(refuse(2, login).contains("the password"));
    let vhost = answer(4, key::OPEN, code::NO_VHOST, Body::Empty);
    assert!(refuse(4, vhost).contains("`/%2f`"));
}

#[test]
fn the_way_to_log_in_is_one_that_both_have() {
    let external = || Session::new(Settings { external: true, ..settings() }, now());
    let mut session = external();
    let mechanisms = answer(2, key::SASL_HANDSHAKE, code::OK, Body::Names(vec!["EXTERNAL".to_owned()]));
    let frames = [greeting("3.10.8").swap_remove(0), mechanisms.clone()].concat();
    session.out.clear();
    feed(&mut session, &frames, now()).expect("taken");
    let login = Request::SaslAuthenticate { mechanism: "EXTERNAL".to_owned(), data: Some(Vec::new()) };
    assert!(session.out.ends_with(&Command::Request(3, login).frame()));
    let plain = complaint(&mut Session::new(settings(), now()), &frames);
    assert!(plain.contains("EXTERNAL") && plain.contains("not PLAIN"), "{plain}");
    let missing = complaint(&mut external(), &greeting("3.10.8")[..2].concat());
    assert!(missing.contains("rabbitmq_auth_mechanism_ssl"), "{missing}");
}

#[test]
fn heartbeats_are_sent_and_missed() {
    let mut session = open("3.10.8");
    let begun = now();
    session.sent(begun);
    feed(&mut session, &Command::Heartbeat.frame(), begun).expect("taken");
    session.out.clear();
    let next = session.tick(begun).expect("alive").expect("again");
    assert_eq!(next, begun + Duration::from_secs(5));
    assert!(session.out.is_empty());
    session.tick(next).expect("alive");
    assert_eq!(session.out, Command::Heartbeat.frame());
    let error = session.tick(begun + Duration::from_secs(20)).expect_err("silent");
    assert!(error.to_string().contains("20 s"), "{error}");
}

#[test]
fn an_election_is_answered_with_a_place() {
    let mut session = open("3.11.0");
    session.out.clear();
    session.activate(7, Some(OffsetSpec::Offset(42)));
    let body = Body::From(Some(OffsetSpec::Offset(42)));
    assert_eq!(session.out, answer(7, key::CONSUMER_UPDATE, code::OK, body));
}

#[test]
fn both_sides_may_close() {
    let mut session = open("3.10.8");
    session.close();
    let done = answer(5, key::CLOSE, code::OK, Body::Empty);
    assert_eq!(feed(&mut session, &done, now()).expect("closes"), ["CloseOk"]);
    let mut session = open("3.10.8");
    let close = Command::Request(1, Request::Close { code: 13, reason: "why not".to_owned() }).frame();
    let seen = feed(&mut session, &close, now()).expect("closes");
    assert!(seen[0].contains("why not"), "{seen:?}");
}
