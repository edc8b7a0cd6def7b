//! One connection without a socket and without a clock: the handshake, frames, correlation, heartbeats. Bytes and the
//! time go in, bytes and events come out.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use hashbrown::HashMap;
use millstream_message::{BrokerError, BrokerErrorKind};

use super::command::{self as key, Body, Command, Ids, Pairs, Request, Response, Versions, code};
use super::wire::WireError;

/// A frame's length, and the key that is behind it.
const HEAD: usize = 6;
/// Frames before the sizes are agreed are no larger.
const FRAME_MAX_BEFORE: u32 = 64 << 10;
/// The first version with commands to tell which others there are.
const EXCHANGES_VERSIONS: (u32, u32) = (3, 11);

/// What this side wants of a connection.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) user: String,
    pub(crate) password: String,
    pub(crate) vhost: String,
    /// Shown by the broker's management.
    pub(crate) name: String,
    /// The largest frame; 0 leaves it to the broker.
    pub(crate) frame_max: u32,
    /// How long the other side may be silent, about; zero switches heartbeats off.
    pub(crate) heartbeat: Duration,
    /// The largest chunk that is taken. Chunks go beyond the size of other frames.
    pub(crate) chunk_bytes_max: u32,
}

/// What the server says of itself, and what was agreed.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Server {
    pub(crate) version: String,
    pub(crate) frame_max: u32,
    pub(crate) heartbeat: Duration,
    /// Known from 3.11 on.
    commands: Vec<Versions>,
}

impl Server {
    /// Whether it knows a command that not all servers know.
    pub(crate) fn knows(&self, key: u16) -> bool {
        self.commands.iter().any(|versions| versions.key == key)
    }
}

/// What happened.
#[derive(Debug)]
pub(crate) enum Event<'a> {
    Opened,
    Response(u32, Response),
    Confirm {
        publisher: u8,
        ids: Ids<'a>,
    },
    PublishError {
        publisher: u8,
        errors: Vec<(u64, u16)>,
    },
    Deliver {
        subscription: u8,
        chunk: Bytes,
    },
    MetadataUpdate {
        stream: String,
    },
    /// Asked by the server; to be answered by [`Session::activate`].
    ConsumerUpdate {
        correlation: u32,
        subscription: u8,
        active: bool,
    },
    /// Closed by the server, for this reason.
    Closed(BrokerError),
    /// Closed as this side asked.
    CloseOk,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Properties,
    Mechanisms,
    Login,
    Tune,
    Open,
    Versions,
    Ready,
    Closing,
    Over,
}

/// One connection.
pub(crate) struct Session {
    settings: Settings,
    phase: Phase,
    pub(crate) server: Server,
    correlation: u32,
    /// Keys of what was asked and is not answered.
    asked: HashMap<u32, u16>,
    /// To be written.
    pub(crate) out: Vec<u8>,
    received: Instant,
    sent: Instant,
}

fn broken(text: impl Into<String>) -> BrokerError {
    BrokerError::new(BrokerErrorKind::Unavailable, text)
}

fn malformed(error: WireError) -> BrokerError {
    BrokerError::with_source(BrokerErrorKind::Unavailable, "the other side sends what is no command", error)
}

impl Session {
    pub(crate) fn new(settings: Settings, now: Instant) -> Session {
        let mut session = Session {
            settings,
            phase: Phase::Properties,
            server: Server::default(),
            correlation: 0,
            asked: HashMap::new(),
            out: Vec::new(),
            received: now,
            sent: now,
        };
        let property = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let properties = vec![
            property("product", "Millstream"),
            property("version", env!("CARGO_PKG_VERSION")),
            property("platform", "Rust"),
            property("connection_name", &session.settings.name),
        ];
        session.request(Request::PeerProperties { properties });
        session
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.phase == Phase::Ready
    }

    /// Asks; the answer carries the number that is returned.
    pub(crate) fn request(&mut self, request: Request) -> u32 {
        self.correlation = self.correlation.wrapping_add(1);
        self.asked.insert(self.correlation, request.key());
        Command::Request(self.correlation, request).put(&mut self.out);
        self.correlation
    }

    /// Answers an [`Event::ConsumerUpdate`]: where the consumer begins, or nowhere.
    pub(crate) fn activate(&mut self, correlation: u32, from: Option<key::OffsetSpec>) {
        let response = Response { key: key::CONSUMER_UPDATE, code: code::OK, body: Body::From(from) };
        Command::Response(correlation, response).put(&mut self.out);
    }

    /// Says farewell; over when [`Event::CloseOk`] comes.
    pub(crate) fn close(&mut self) {
        if self.phase == Phase::Ready {
            self.request(Request::Close { code: code::OK, reason: "done".to_owned() });
            self.phase = Phase::Closing;
        }
    }

    /// Something was written now.
    pub(crate) fn sent(&mut self, now: Instant) {
        self.sent = now;
    }

    /// Lets time pass; returns when to call again.
    pub(crate) fn tick(&mut self, now: Instant) -> Result<Option<Instant>, BrokerError> {
        let heartbeat = self.server.heartbeat;
        if heartbeat.is_zero() {
            return Ok(None);
        }
        let deadline = self.received + 2 * heartbeat;
        if now >= deadline {
            let text =
                format!("the broker was silent for {} s, twice the heartbeat", 2 * heartbeat.as_secs());
            return Err(broken(text));
        }
        if now >= self.sent + heartbeat / 2 && self.phase == Phase::Ready {
            Command::Heartbeat.put(&mut self.out);
            self.sent = now;
        }
        Ok(Some(deadline.min(self.sent + heartbeat / 2)))
    }

    /// Takes whole frames off the front of the input; returns how many bytes the next needs in all, when it is known.
    pub(crate) fn receive(
        &mut self,
        input: &mut BytesMut,
        now: Instant,
        on: &mut impl FnMut(&mut Session, Event<'_>),
    ) -> Result<usize, BrokerError> {
        self.received = now;
        while self.phase != Phase::Over {
            let Some(head) = input.first_chunk::<4>() else { return Ok(0) };
            if head == b"AMQP" {
                return Err(broken(
                    "this is AMQP's port; the stream protocol's is 5552 unless it was changed",
                ));
            }
            let len = u32::from_be_bytes(*head);
            if len < 4 {
                return Err(broken(format!("a frame of {len} bytes is too short for a command")));
            }
            let Some([.., k0, k1]) = input.first_chunk::<HEAD>() else { return Ok(0) };
            let frame_key = u16::from_be_bytes([*k0, *k1]);
            let most = match frame_key {
                key::DELIVER => self.settings.chunk_bytes_max,
                _ if self.server.frame_max == 0 => FRAME_MAX_BEFORE,
                _ => self.server.frame_max,
            };
            if len > most {
                let remedy = if frame_key == key::DELIVER { "; raise `chunk_max` in the URL" } else { "" };
                return Err(broken(format!("a frame of {len} bytes, where {most} are taken{remedy}")));
            }
            let end = 4 + len as usize;
            if input.len() < end {
                return Ok(end);
            }
            if frame_key == key::DELIVER {
                let frame = input.split_to(end).freeze();
                match Command::read(&frame[4..]).map_err(malformed)? {
                    Command::Deliver { subscription, chunk, .. } if self.phase != Phase::Closing => {
                        let chunk = frame.slice_ref(chunk);
                        self.ready("Deliver")?;
                        on(self, Event::Deliver { subscription, chunk });
                    }
                    _ => {}
                }
            } else {
                // Taken out for as long as events borrow from it.
                let frame = input.split_to(end);
                self.command(Command::read(&frame[4..]).map_err(malformed)?, on)?;
            }
        }
        input.clear();
        Ok(0)
    }

    fn ready(&self, what: &str) -> Result<(), BrokerError> {
        match self.phase {
            Phase::Ready | Phase::Closing => Ok(()),
            phase => Err(broken(format!("{what} has no place on a connection in state {phase:?}"))),
        }
    }

    fn command(
        &mut self,
        command: Command<'_>,
        on: &mut impl FnMut(&mut Session, Event<'_>),
    ) -> Result<(), BrokerError> {
        match command {
            Command::Confirm { publisher, ids } => {
                self.ready("PublishConfirm")?;
                on(self, Event::Confirm { publisher, ids });
            }
            Command::PublishError { publisher, errors } => {
                self.ready("PublishError")?;
                on(self, Event::PublishError { publisher, errors });
            }
            Command::MetadataUpdate { stream, .. } => {
                self.ready("MetadataUpdate")?;
                on(self, Event::MetadataUpdate { stream });
            }
            Command::Heartbeat => {}
            // About a subscription that is gone: its last chunk and our last word crossed.
            Command::CreditError { .. } => {}
            Command::Tune { frame_max, heartbeat } => self.tune(frame_max, heartbeat)?,
            Command::Response(correlation, response) => self.response(correlation, response, on)?,
            Command::Request(correlation, Request::Close { code, reason }) => {
                let response = Response { key: key::CLOSE, code: code::OK, body: Body::Empty };
                Command::Response(correlation, response).put(&mut self.out);
                self.phase = Phase::Over;
                let text = format!("the broker closed the connection: {reason} ({})", code::words(code));
                on(self, Event::Closed(broken(text)));
            }
            Command::Request(correlation, Request::ConsumerUpdate { subscription, active }) => {
                self.ready("ConsumerUpdate")?;
                on(self, Event::ConsumerUpdate { correlation, subscription, active });
            }
            Command::Request(_, request) => {
                return Err(broken(format!(
                    "the broker asks {:#06x}, which no client answers",
                    request.key()
                )));
            }
            Command::Publish { .. }
            | Command::Deliver { .. }
            | Command::Credit { .. }
            | Command::StoreOffset { .. } => return Err(broken("the broker sends what only clients send")),
        }
        Ok(())
    }

    fn response(
        &mut self,
        correlation: u32,
        response: Response,
        on: &mut impl FnMut(&mut Session, Event<'_>),
    ) -> Result<(), BrokerError> {
        match self.asked.remove(&correlation) {
            Some(key) if key == response.key => {}
            asked => {
                let text = format!(
                    "an answer to {:#06x} under {correlation}, where {asked:?} was asked",
                    response.key
                );
                return Err(broken(text));
            }
        }
        match (self.phase, response.key) {
            (Phase::Ready, _) => on(self, Event::Response(correlation, response)),
            (Phase::Closing, key::CLOSE) => {
                self.phase = Phase::Over;
                on(self, Event::CloseOk);
            }
            (Phase::Closing, _) => {}
            _ => self.handshake(response, on)?,
        }
        Ok(())
    }

    fn handshake(
        &mut self,
        response: Response,
        on: &mut impl FnMut(&mut Session, Event<'_>),
    ) -> Result<(), BrokerError> {
        let Settings { user, vhost, .. } = &self.settings;
        let refused = match (response.key, response.code) {
            (_, code::OK) => None,
            (key::SASL_AUTHENTICATE, code::AUTHENTICATION_FAILURE) => {
                Some(format!("the broker refuses user `{user}`: check the name and the password in the URL"))
            }
            (key::SASL_AUTHENTICATE, code::LOOPBACK_ONLY) => Some(format!(
                "user `{user}` may connect only from the broker's own machine: make another user for this one"
            )),
            (key::OPEN, code::NO_VHOST) => Some(format!(
                "the virtual host `{vhost}` does not exist, or user `{user}` may not use it: check the path of the URL \
                 (`/%2f`, or nothing, for the default one)"
            )),
            (_, other) => Some(format!("the broker refuses the connection: {}", code::words(other))),
        };
        if let Some(text) = refused {
            return Err(BrokerError::new(BrokerErrorKind::Invalid, text));
        }
        match (self.phase, response.body) {
            (Phase::Properties, Body::Properties(properties)) => {
                self.server.version = find(&properties, "version").unwrap_or_default();
                self.request(Request::SaslHandshake);
                self.phase = Phase::Mechanisms;
            }
            (Phase::Mechanisms, Body::Names(mechanisms)) => {
                if !mechanisms.iter().any(|mechanism| mechanism == "PLAIN") {
                    let text = format!("the broker offers {mechanisms:?} to log in, not PLAIN");
                    return Err(BrokerError::new(BrokerErrorKind::Unsupported, text));
                }
                let data = format!("\0{user}\0{}", self.settings.password).into_bytes();
                self.request(Request::SaslAuthenticate { mechanism: "PLAIN".to_owned(), data: Some(data) });
                self.phase = Phase::Login;
            }
            (Phase::Login, Body::Challenge(_)) => self.phase = Phase::Tune,
            (Phase::Open, Body::Properties(_)) => {
                if version(&self.server.version) < EXCHANGES_VERSIONS {
                    self.phase = Phase::Ready;
                    on(self, Event::Opened);
                } else {
                    let commands = (key::DECLARE_PUBLISHER..=key::STREAM_STATS).map(|key| {
                        let most = if key == key::DELIVER { 2 } else { 1 };
                        Versions { key, least: 1, most }
                    });
                    self.request(Request::ExchangeVersions { commands: commands.collect() });
                    self.phase = Phase::Versions;
                }
            }
            (Phase::Versions, Body::Versions(commands)) => {
                self.server.commands = commands;
                self.phase = Phase::Ready;
                on(self, Event::Opened);
            }
            (phase, _) => {
                let text = format!("an answer to {:#06x} on a connection in state {phase:?}", response.key);
                return Err(broken(text));
            }
        }
        Ok(())
    }

    fn tune(&mut self, frame_max: u32, heartbeat: u32) -> Result<(), BrokerError> {
        /// The smaller of two limits of which 0 is none.
        fn lower(a: u32, b: u32) -> u32 {
            if a == 0 || b == 0 { a.max(b) } else { a.min(b) }
        }
        if self.phase != Phase::Tune {
            return Err(broken(format!("Tune has no place on a connection in state {:?}", self.phase)));
        }
        let frame_max = match lower(frame_max, self.settings.frame_max) {
            0 => u32::MAX,
            frame_max if frame_max < 1024 => {
                return Err(broken(format!("frames of {frame_max} bytes are too small to work with")));
            }
            frame_max => frame_max,
        };
        let ours = u32::try_from(self.settings.heartbeat.as_secs_f64().ceil() as u64).unwrap_or(u32::MAX);
        let heartbeat = if ours == 0 { 0 } else { lower(heartbeat, ours) };
        self.server.frame_max = frame_max;
        self.server.heartbeat = Duration::from_secs(heartbeat.into());
        Command::Tune { frame_max, heartbeat }.put(&mut self.out);
        let vhost = self.settings.vhost.clone();
        self.request(Request::Open { vhost });
        self.phase = Phase::Open;
        Ok(())
    }
}

fn find(properties: &Pairs, name: &str) -> Option<String> {
    properties.iter().find(|(found, _)| found == name).map(|(_, value)| value.clone())
}

/// The first two numbers of a version.
fn version(text: &str) -> (u32, u32) {
    let mut parts = text.split('.').map(|part| {
        let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        part[..digits].parse().unwrap_or(0)
    });
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::super::command::OffsetSpec;
    use super::*;
    use proptest::prelude::*;

    fn settings() -> Settings {
        Settings {
            user: "guest".to_owned(),
            password: "secret".to_owned(),
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
            let commands = vec![Versions { key: key::CONSUMER_UPDATE, least: 1, most: 1 }];
            frames.push(answer(5, key::EXCHANGE_VERSIONS, code::OK, Body::Versions(commands)));
        }
        frames
    }

    fn feed(session: &mut Session, bytes: &[u8], now: Instant) -> Result<Vec<String>, BrokerError> {
        let mut seen = Vec::new();
        let mut input = BytesMut::from(bytes);
        session.receive(&mut input, now, &mut |_, event| seen.push(format!("{event:?}")))?;
        Ok(seen)
    }

    fn now() -> Instant {
        tokio::time::Instant::now().into_std()
    }

    fn open(version: &str) -> Session {
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
        assert!(!session.server.knows(key::CONSUMER_UPDATE));
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
        let expected =
            [key::PEER_PROPERTIES, key::SASL_HANDSHAKE, key::SASL_AUTHENTICATE, key::TUNE, key::OPEN];
        assert_eq!(asked, expected);
        assert!(open("3.11.0").server.knows(key::CONSUMER_UPDATE));
    }

    proptest! {
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
            let error =
                feed(&mut Session::new(settings(), now()), &frames.concat(), now()).expect_err("refused");
            assert_eq!(error.kind(), BrokerErrorKind::Invalid);
            error.to_string()
        };
        let login = answer(3, key::SASL_AUTHENTICATE, code::AUTHENTICATION_FAILURE, Body::Empty);
        assert!(refuse(2, login).contains("the password"));
        let vhost = answer(4, key::OPEN, code::NO_VHOST, Body::Empty);
        assert!(refuse(4, vhost).contains("`/%2f`"));
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
}
