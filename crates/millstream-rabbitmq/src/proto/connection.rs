//! One connection: the handshake, frames, channels, contents in pieces, heartbeats.

use std::mem;
use std::time::Duration;

use bytes::{BufMut, Bytes};
use millstream_message::{Headers, Message, Properties, Value};

use super::method::Method;
use super::properties;
use super::wire::{Reader, WireError, put_shortstr, put_table};

const FRAME_METHOD: u8 = 1;
const FRAME_HEADER: u8 = 2;
const FRAME_BODY: u8 = 3;
const FRAME_HEARTBEAT: u8 = 8;
const FRAME_END: u8 = 0xce;
/// What a frame has around its payload: type, channel and length before it, a mark behind it.
pub(crate) const FRAME_EXTRA: usize = 8;
/// Both sides must take frames of this size, before they have agreed on another (specification, section 2.3.5).
const FRAME_MIN: usize = 4096;
/// What RabbitMQ offers unless told otherwise.
const FRAME_USUAL: u32 = 131_072;
/// "AMQP", and version 0-9-1.
const HELLO: &[u8; 8] = b"AMQP\x00\x00\x09\x01";
/// Class and method of what carries a message.
const BASIC: u16 = 60;
const PUBLISH: u16 = 40;
const RETURN: u16 = 50;
const DELIVER: u16 = 60;
const ACK: u16 = 80;
const NACK: u16 = 120;

// Reply codes of the specification, section 1.2.
const FRAME_ERROR: u16 = 501;
const SYNTAX_ERROR: u16 = 502;
const COMMAND_INVALID: u16 = 503;
const CHANNEL_ERROR: u16 = 504;
const UNEXPECTED_FRAME: u16 = 505;
const RESOURCE_ERROR: u16 = 506;

/// How to prove who one is.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Login {
    /// Name and password (RFC 4616).
    Plain(String, String),
    /// The same as a table, as AMQP 0-8 has it.
    Amqplain(String, String),
    /// By the certificate of the TLS connection.
    External,
}

impl Login {
    fn mechanism(&self) -> &'static str {
        match self {
            Login::Plain(..) => "PLAIN",
            Login::Amqplain(..) => "AMQPLAIN",
            Login::External => "EXTERNAL",
        }
    }

    fn response(&self) -> Vec<u8> {
        match self {
            Login::Plain(name, password) => format!("\0{name}\0{password}").into_bytes(),
            Login::Amqplain(name, password) => {
                let table = Headers::from([
                    ("LOGIN".to_owned(), Value::from(name.as_str())),
                    ("PASSWORD".to_owned(), Value::from(password.as_str())),
                ]);
                let mut out = Vec::new();
                put_table(&mut out, &table);
                // Without its length, which is that of the field around it.
                out.split_off(4)
            }
            Login::External => Vec::new(),
        }
    }
}

/// What this side wants of a connection.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) login: Login,
    pub(crate) vhost: String,
    /// Shown by the broker's management.
    pub(crate) name: String,
    /// The largest frame; 0 leaves it to the broker.
    pub(crate) frame_max: u32,
    /// The most channels; 0 leaves it to the broker.
    pub(crate) channel_max: u16,
    /// How long the other side may be silent, about; zero switches heartbeats off.
    pub(crate) heartbeat: Duration,
    /// The largest body that is taken.
    pub(crate) body_max: u64,
}

/// What the server says of itself, and what was agreed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Server {
    pub(crate) product: String,
    pub(crate) version: String,
    pub(crate) frame_max: u32,
    pub(crate) channel_max: u16,
    pub(crate) heartbeat: Duration,
}

/// The other side broke the protocol, or fell silent. The connection is no longer of use; what is in the output tells the
/// other side why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text} ({code})")]
pub(crate) struct ProtocolError {
    pub(crate) code: u16,
    pub(crate) text: String,
}

impl ProtocolError {
    fn new(code: u16, text: impl Into<String>) -> ProtocolError {
        ProtocolError { code, text: text.into() }
    }
}

impl From<WireError> for ProtocolError {
    fn from(error: WireError) -> ProtocolError {
        let code = if matches!(error, WireError::Method(..)) { COMMAND_INVALID } else { SYNTAX_ERROR };
        ProtocolError::new(code, error.to_string())
    }
}

/// Why the server closed a channel or the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Closed {
    pub(crate) code: u16,
    pub(crate) text: String,
    /// Class and method of what it did not like; 0 if it was nothing in particular.
    pub(crate) cause: (u16, u16),
}

/// A message that came, whole.
#[derive(Debug, PartialEq)]
pub(crate) struct Content {
    /// `None` for a message of which nothing is said but that it is persistent.
    pub(crate) properties: Option<Properties>,
    pub(crate) body: Bytes,
}

impl Content {
    pub(crate) fn into_message(self) -> Message {
        match self.properties {
            None => Message::new(self.body),
            Some(properties) => Message::from_parts(self.body, properties),
        }
    }
}

/// What came.
#[derive(Debug, PartialEq)]
pub(crate) enum Event<'a> {
    /// The handshake is over: channels can be opened.
    Opened(Server),
    /// The server reads nothing more until it has memory and disk again.
    Blocked(String),
    Unblocked,
    /// The answer to a method, `ChannelOpenOk` among them.
    Reply(u16, Method),
    Deliver {
        channel: u16,
        tag: u64,
        redelivered: bool,
        exchange: &'a str,
        key: &'a str,
        content: Content,
    },
    Returned {
        channel: u16,
        reason: &'a str,
        exchange: &'a str,
        key: &'a str,
        content: Content,
    },
    Ack {
        channel: u16,
        tag: u64,
        multiple: bool,
    },
    Nack {
        channel: u16,
        tag: u64,
        multiple: bool,
    },
    /// The server ended a consumer: its queue was deleted, or moved.
    Cancelled {
        channel: u16,
        consumer: String,
    },
    ChannelClosed(u16, Closed),
    /// The server closed the connection. It was answered; nothing more comes.
    Closed(Closed),
    /// The server agrees that it is over.
    CloseOk,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Start,
    Tune,
    Open,
    Ready,
    /// We asked to close.
    Closing,
    Over,
}

/// A channel as this side sees it.
#[derive(Debug, Default)]
struct Channel {
    /// We asked to close it: what comes before the answer is not looked at.
    closing: bool,
    content: Assembly,
}

/// A message on its way in, whose frames come one after the other.
#[derive(Debug, Default)]
struct Assembly {
    awaited: Awaited,
    is_return: bool,
    tag: u64,
    redelivered: bool,
    exchange: String,
    key: String,
    reason: String,
    properties: Option<Properties>,
    body: Vec<u8>,
    body_len: usize,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Awaited {
    #[default]
    Method,
    Header,
    Body,
}

/// One connection's state. See the module [`proto`](super).
pub(crate) struct Connection {
    settings: Settings,
    phase: Phase,
    server: Server,
    channels: Vec<Option<Box<Channel>>>,
    out: Vec<u8>,
    /// How often the output was given away; to know whether something was sent.
    sent_at: Duration,
    received_at: Duration,
}

impl Connection {
    /// A connection whose first bytes are in the output.
    pub(crate) fn new(settings: Settings, now: Duration) -> Connection {
        Connection {
            server: Server {
                product: String::new(),
                version: String::new(),
                frame_max: FRAME_USUAL.max(settings.frame_max),
                channel_max: 0,
                heartbeat: settings.heartbeat,
            },
            settings,
            phase: Phase::Start,
            channels: Vec::new(),
            out: HELLO.to_vec(),
            sent_at: now,
            received_at: now,
        }
    }

    /// What is agreed, once it is.
    pub(crate) fn server(&self) -> &Server {
        &self.server
    }

    /// Bytes that wait to be sent.
    pub(crate) fn output(&self) -> &[u8] {
        &self.out
    }

    /// Gives the bytes that are to be sent, for an empty buffer.
    pub(crate) fn swap_output(&mut self, empty: &mut Vec<u8>, now: Duration) {
        debug_assert!(empty.is_empty(), "what was to be sent would be lost");
        self.sent_at = now;
        mem::swap(&mut self.out, empty);
    }

    /// What comes is left where it is: that nothing is heard says nothing about the other side.
    pub(crate) fn not_listening(&mut self, now: Duration) {
        self.received_at = now;
    }

    /// Sends a heartbeat if it is time, and says when to ask again; `None` if there are no heartbeats.
    ///
    /// # Errors
    /// If nothing has come for twice the time agreed.
    pub(crate) fn tick(&mut self, now: Duration) -> Result<Option<Duration>, ProtocolError> {
        let heartbeat = self.server.heartbeat;
        if heartbeat.is_zero() || self.phase == Phase::Over {
            return Ok(None);
        }
        let silent_until = self.received_at + 2 * heartbeat;
        if silent_until <= now {
            return Err(ProtocolError::new(
                CHANNEL_ERROR,
                format!("nothing came for {:?}, twice the heartbeat", 2 * heartbeat),
            ));
        }
        let half = heartbeat / 2;
        if self.sent_at + half <= now && self.out.is_empty() && self.phase == Phase::Ready {
            self.out.extend_from_slice(&[FRAME_HEARTBEAT, 0, 0, 0, 0, 0, 0, FRAME_END]);
        }
        let beat =
            if self.phase == Phase::Ready { (self.sent_at + half).max(now + half / 4) } else { silent_until };
        Ok(Some(silent_until.min(beat)))
    }

    /// A number for a new channel, whose opening is in the output. `None` if there are as many as may be.
    pub(crate) fn open_channel(&mut self) -> Option<u16> {
        let most = if self.server.channel_max == 0 { u16::MAX } else { self.server.channel_max };
        let free = self.channels.iter().position(Option::is_none).unwrap_or(self.channels.len());
        let number = u16::try_from(free + 1).ok().filter(|number| *number <= most)?;
        if free == self.channels.len() {
            self.channels.push(None);
        }
        self.channels[free] = Some(Box::default());
        self.send(number, &Method::ChannelOpen { reserved_1: String::new() });
        Some(number)
    }

    /// Asks to close a channel. The answer is a `Reply`, after which the number may be used again.
    pub(crate) fn close_channel(&mut self, channel: u16) {
        let Some(Some(open)) = self.channels.get_mut(usize::from(channel).wrapping_sub(1)) else { return };
        if !mem::replace(&mut open.closing, true) {
            let text = "Goodbye".to_owned();
            self.send(channel, &Method::ChannelClose { code: 200, text, class: 0, method: 0 });
        }
    }

    /// Asks to close the connection: the answer is `CloseOk`.
    pub(crate) fn close(&mut self) {
        if !matches!(self.phase, Phase::Closing | Phase::Over) {
            self.phase = Phase::Closing;
            let text = "Goodbye".to_owned();
            self.send(0, &Method::ConnectionClose { code: 200, text, class: 0, method: 0 });
        }
    }

    /// Writes a method.
    pub(crate) fn send(&mut self, channel: u16, method: &Method) {
        let at = self.begin_frame(FRAME_METHOD, channel);
        method.put(&mut self.out);
        self.end_frame(at);
    }

    /// Writes an ack, which is sent too often to make a [`Method`] of it.
    pub(crate) fn ack(&mut self, channel: u16, tag: u64, multiple: bool) {
        let at = self.begin_frame(FRAME_METHOD, channel);
        self.out.put_u16(BASIC);
        self.out.put_u16(ACK);
        self.out.put_u64(tag);
        self.out.put_u8(multiple.into());
        self.end_frame(at);
    }

    /// Writes a message, which asks to come back if no queue wants it. The caller has checked names and properties.
    pub(crate) fn publish(&mut self, channel: u16, exchange: &str, key: &str, message: &Message) {
        let body = message.body();
        self.out.reserve(body.len() + exchange.len() + key.len() + 96);
        let at = self.begin_frame(FRAME_METHOD, channel);
        self.out.put_u16(BASIC);
        self.out.put_u16(PUBLISH);
        self.out.put_u16(0);
        put_shortstr(&mut self.out, exchange);
        put_shortstr(&mut self.out, key);
        const MANDATORY: u8 = 1;
        self.out.put_u8(MANDATORY);
        self.end_frame(at);
        let at = self.begin_frame(FRAME_HEADER, channel);
        self.out.put_u16(BASIC);
        self.out.put_u16(0);
        self.out.put_u64(body.len() as u64);
        properties::put(&mut self.out, message);
        self.end_frame(at);
        for piece in body.chunks(self.payload_max()) {
            let at = self.begin_frame(FRAME_BODY, channel);
            self.out.put_slice(piece);
            self.end_frame(at);
        }
    }

    fn payload_max(&self) -> usize {
        self.server.frame_max as usize - FRAME_EXTRA
    }

    fn begin_frame(&mut self, kind: u8, channel: u16) -> usize {
        self.out.put_u8(kind);
        self.out.put_u16(channel);
        self.out.put_u32(0);
        self.out.len()
    }

    fn end_frame(&mut self, at: usize) {
        let len = (self.out.len() - at) as u32;
        self.out[at - 4..at].copy_from_slice(&len.to_be_bytes());
        self.out.put_u8(FRAME_END);
    }

    /// Takes the whole frames at the front of the input, and says how many bytes they were. What is left is to be given again,
    /// with more behind it.
    ///
    /// # Errors
    /// If the other side broke the protocol. The output says so to it; nothing more can be done.
    pub(crate) fn receive(
        &mut self,
        input: &[u8],
        now: Duration,
        on: &mut impl FnMut(Event<'_>),
    ) -> Result<usize, ProtocolError> {
        if !input.is_empty() {
            self.received_at = now;
        }
        let mut used = 0;
        loop {
            let rest = &input[used..];
            let taken = match self.frame(rest, on) {
                Ok(0) => return Ok(used),
                Ok(taken) => taken,
                Err(error) => {
                    let text: String = error.text.chars().take(200).collect();
                    let close = Method::ConnectionClose { code: error.code, text, class: 0, method: 0 };
                    self.send(0, &close);
                    self.phase = Phase::Over;
                    return Err(error);
                }
            };
            used += taken;
            if self.phase == Phase::Over {
                return Ok(input.len());
            }
        }
    }

    /// Takes one frame, if a whole one is there.
    fn frame(&mut self, input: &[u8], on: &mut impl FnMut(Event<'_>)) -> Result<usize, ProtocolError> {
        let Some((head, rest)) = input.split_first_chunk::<7>() else { return Ok(0) };
        let [kind, c0, c1, length @ ..] = *head;
        if kind == b'A' && self.phase == Phase::Start {
            let text =
                format!("this is no AMQP 0-9-1: the other side answers {:?}", String::from_utf8_lossy(head));
            return Err(ProtocolError::new(FRAME_ERROR, text));
        }
        let (channel, length) = (u16::from_be_bytes([c0, c1]), u32::from_be_bytes(length) as usize);
        if length > self.payload_max().max(FRAME_MIN) {
            let text = format!("a frame of {length} bytes, where {} are agreed", self.server.frame_max);
            return Err(ProtocolError::new(FRAME_ERROR, text));
        }
        if rest.len() <= length {
            return Ok(0);
        }
        let (payload, end) = (&rest[..length], rest[length]);
        if end != FRAME_END {
            return Err(ProtocolError::new(FRAME_ERROR, format!("a frame ends with {end}, not with 206")));
        }
        match kind {
            FRAME_METHOD if channel == 0 => self.connection_method(Method::read(payload)?, on)?,
            FRAME_METHOD => self.channel_method(channel, payload, on)?,
            FRAME_HEADER => self.header(channel, payload, on)?,
            FRAME_BODY => self.body(channel, payload, on)?,
            FRAME_HEARTBEAT if channel == 0 && payload.is_empty() => {}
            FRAME_HEARTBEAT => {
                return Err(ProtocolError::new(FRAME_ERROR, "a heartbeat on a channel, or with a payload"));
            }
            _ => return Err(ProtocolError::new(FRAME_ERROR, format!("{kind} is no type of a frame"))),
        }
        Ok(7 + length + 1)
    }

    fn connection_method(
        &mut self,
        method: Method,
        on: &mut impl FnMut(Event<'_>),
    ) -> Result<(), ProtocolError> {
        match (self.phase, method) {
            (
                Phase::Start,
                Method::ConnectionStart {
                    version_major, version_minor, server_properties, mechanisms, ..
                },
            ) => {
                if (version_major, version_minor) != (0, 9) {
                    let text = format!("the server speaks version {version_major}.{version_minor}, not 0.9");
                    return Err(ProtocolError::new(COMMAND_INVALID, text));
                }
                self.start(&server_properties, &String::from_utf8_lossy(&mechanisms))
            }
            // Mechanisms that go on do so here; ours have said all.
            (Phase::Tune, Method::ConnectionSecure { .. }) => {
                self.send(0, &Method::ConnectionSecureOk { response: Vec::new() });
                Ok(())
            }
            (Phase::Tune, Method::ConnectionTune { channel_max, frame_max, heartbeat }) => {
                self.tune(channel_max, frame_max, heartbeat)
            }
            (Phase::Open, Method::ConnectionOpenOk { .. }) => {
                self.phase = Phase::Ready;
                on(Event::Opened(self.server.clone()));
                Ok(())
            }
            (Phase::Ready | Phase::Closing, Method::ConnectionBlocked { reason }) => {
                on(Event::Blocked(reason));
                Ok(())
            }
            (Phase::Ready | Phase::Closing, Method::ConnectionUnblocked {}) => {
                on(Event::Unblocked);
                Ok(())
            }
            (_, Method::ConnectionClose { code, text, class, method }) => {
                self.send(0, &Method::ConnectionCloseOk {});
                self.phase = Phase::Over;
                on(Event::Closed(Closed { code, text, cause: (class, method) }));
                Ok(())
            }
            (Phase::Closing, Method::ConnectionCloseOk {}) => {
                self.phase = Phase::Over;
                on(Event::CloseOk);
                Ok(())
            }
            (phase, method) => {
                let text = format!("{} has no place on a connection in state {phase:?}", method.name());
                Err(ProtocolError::new(COMMAND_INVALID, text))
            }
        }
    }

    fn start(&mut self, server: &Headers, mechanisms: &str) -> Result<(), ProtocolError> {
        let text = |name: &str| server.get(name).and_then(Value::as_text).unwrap_or_default().to_owned();
        (self.server.product, self.server.version) = (text("product"), text("version"));
        let mechanism = self.settings.login.mechanism();
        if !mechanisms.split_ascii_whitespace().any(|offered| offered == mechanism) {
            let text = format!("the server offers {mechanisms} to log in, not {mechanism}");
            return Err(ProtocolError::new(403, text));
        }
        let capabilities = [
            "publisher_confirms",
            "exchange_exchange_bindings",
            "basic.nack",
            "consumer_cancel_notify",
            "connection.blocked",
            "authentication_failure_close",
        ];
        let capabilities: Headers = capabilities.map(|name| (name.to_owned(), Value::Bool(true))).into();
        let client_properties = Headers::from([
            ("product".to_owned(), "Millstream".into()),
            ("version".to_owned(), env!("CARGO_PKG_VERSION").into()),
            ("platform".to_owned(), "Rust".into()),
            ("connection_name".to_owned(), self.settings.name.as_str().into()),
            ("capabilities".to_owned(), Value::Map(capabilities)),
        ]);
        let start = Method::ConnectionStartOk {
            client_properties,
            mechanism: mechanism.to_owned(),
            response: self.settings.login.response(),
            locale: "en_US".to_owned(),
        };
        self.send(0, &start);
        self.phase = Phase::Tune;
        Ok(())
    }

    fn tune(&mut self, channel_max: u16, frame_max: u32, heartbeat: u16) -> Result<(), ProtocolError> {
        /// The smaller of two limits of which 0 is none.
        fn lower<N: Ord + Default + Copy>(a: N, b: N) -> N {
            if a == N::default() || b == N::default() { a.max(b) } else { a.min(b) }
        }
        let channel_max = lower(channel_max, self.settings.channel_max);
        let frame_max = lower(frame_max, self.settings.frame_max);
        let frame_max = if frame_max == 0 { FRAME_USUAL } else { frame_max };
        if (frame_max as usize) < FRAME_MIN {
            let text = format!("frames of {frame_max} bytes are below AMQP's least, {FRAME_MIN}");
            return Err(ProtocolError::new(SYNTAX_ERROR, text));
        }
        let ours = u16::try_from(self.settings.heartbeat.as_secs_f64().ceil() as u64).unwrap_or(u16::MAX);
        // Whoever wants none has none; RabbitMQ does as the client says.
        let heartbeat = if ours == 0 { 0 } else { lower(heartbeat, ours) };
        self.server.channel_max = channel_max;
        self.server.frame_max = frame_max;
        self.server.heartbeat = Duration::from_secs(heartbeat.into());
        self.send(0, &Method::ConnectionTuneOk { channel_max, frame_max, heartbeat });
        let vhost = self.settings.vhost.clone();
        let open = Method::ConnectionOpen { vhost, reserved_1: String::new(), reserved_2: [false] };
        self.send(0, &open);
        self.phase = Phase::Open;
        Ok(())
    }

    fn channel(&mut self, number: u16) -> Result<&mut Channel, ProtocolError> {
        let channel =
            self.channels.get_mut(usize::from(number).wrapping_sub(1)).and_then(Option::as_deref_mut);
        channel.ok_or_else(|| {
            ProtocolError::new(CHANNEL_ERROR, format!("a frame on channel {number}, which is not open"))
        })
    }

    fn channel_method(
        &mut self,
        number: u16,
        payload: &[u8],
        on: &mut impl FnMut(Event<'_>),
    ) -> Result<(), ProtocolError> {
        if !matches!(self.phase, Phase::Ready | Phase::Closing) {
            return Err(ProtocolError::new(
                COMMAND_INVALID,
                "a channel's method before the connection is open",
            ));
        }
        let channel = self.channel(number)?;
        let closing = channel.closing;
        if channel.content.awaited != Awaited::Method && !closing {
            let text = format!("a method on channel {number} in the middle of a message");
            return Err(ProtocolError::new(UNEXPECTED_FRAME, text));
        }
        let mut reader = Reader::new(payload);
        let (class, id) = (reader.u16()?, reader.u16()?);
        if class == BASIC && matches!(id, RETURN | DELIVER | ACK | NACK) {
            let content = &mut channel.content;
            match id {
                DELIVER => {
                    // The consumer's tag: a channel has one consumer.
                    reader.short_bytes()?;
                    content.tag = reader.u64()?;
                    content.redelivered = reader.u8()? & 1 != 0;
                    content.expect(false, reader.short_bytes()?, reader.short_bytes()?)?;
                }
                RETURN => {
                    reader.u16()?;
                    content.reason.clear();
                    content.reason.push_str(reader.shortstr()?);
                    content.expect(true, reader.short_bytes()?, reader.short_bytes()?)?;
                }
                _ => {
                    let (tag, bits) = (reader.u64()?, reader.u8()?);
                    let multiple = bits & 1 != 0;
                    if !closing {
                        on(match id {
                            ACK => Event::Ack { channel: number, tag, multiple },
                            _ => Event::Nack { channel: number, tag, multiple },
                        });
                    }
                }
            }
            return Ok(reader.end()?);
        }
        match Method::read(payload)? {
            Method::ChannelClose { code, text, class, method } => {
                self.send(number, &Method::ChannelCloseOk {});
                self.channels[usize::from(number) - 1] = None;
                on(Event::ChannelClosed(number, Closed { code, text, cause: (class, method) }));
            }
            Method::ChannelCloseOk {} if closing => {
                self.channels[usize::from(number) - 1] = None;
                on(Event::Reply(number, Method::ChannelCloseOk {}));
            }
            _ if closing => {}
            Method::BasicCancel { consumer_tag, nowait: [nowait] } => {
                if !nowait {
                    self.send(number, &Method::BasicCancelOk { consumer_tag: consumer_tag.clone() });
                }
                on(Event::Cancelled { channel: number, consumer: consumer_tag });
            }
            // RabbitMQ does not send it any more. Confirms are what holds publishers back.
            Method::ChannelFlow { active } => self.send(number, &Method::ChannelFlowOk { active }),
            reply @ (Method::ChannelOpenOk { .. }
            | Method::ExchangeDeclareOk {}
            | Method::ExchangeDeleteOk {}
            | Method::ExchangeBindOk {}
            | Method::ExchangeUnbindOk {}
            | Method::QueueDeclareOk { .. }
            | Method::QueueBindOk {}
            | Method::QueuePurgeOk { .. }
            | Method::QueueDeleteOk { .. }
            | Method::QueueUnbindOk {}
            | Method::BasicQosOk {}
            | Method::BasicConsumeOk { .. }
            | Method::BasicCancelOk { .. }
            | Method::BasicRecoverOk {}
            | Method::ConfirmSelectOk {}) => on(Event::Reply(number, reply)),
            method => {
                let text = format!("{} is nothing that a server sends on a channel", method.name());
                return Err(ProtocolError::new(COMMAND_INVALID, text));
            }
        }
        Ok(())
    }

    fn header(
        &mut self,
        number: u16,
        payload: &[u8],
        on: &mut impl FnMut(Event<'_>),
    ) -> Result<(), ProtocolError> {
        let body_max = self.settings.body_max;
        let channel = self.channel(number)?;
        if channel.closing {
            return Ok(());
        }
        let content = &mut channel.content;
        if content.awaited != Awaited::Header {
            let text = format!("a header on channel {number} without a message before it");
            return Err(ProtocolError::new(UNEXPECTED_FRAME, text));
        }
        let mut reader = Reader::new(payload);
        let (class, _weight, size) = (reader.u16()?, reader.u16()?, reader.u64()?);
        if class != BASIC {
            return Err(ProtocolError::new(FRAME_ERROR, format!("a header of class {class}")));
        }
        if size > body_max {
            let text = format!("a body of {size} bytes, where {body_max} are taken");
            return Err(ProtocolError::new(RESOURCE_ERROR, text));
        }
        content.properties = properties::read(&payload[12..])?;
        content.body_len = size as usize;
        // No more than a frame beforehand: a size is easily claimed.
        content.body = Vec::with_capacity(content.body_len.min(FRAME_USUAL as usize));
        content.awaited = Awaited::Body;
        if size == 0 {
            content.finish(number, on);
        }
        Ok(())
    }

    fn body(
        &mut self,
        number: u16,
        payload: &[u8],
        on: &mut impl FnMut(Event<'_>),
    ) -> Result<(), ProtocolError> {
        let channel = self.channel(number)?;
        if channel.closing {
            return Ok(());
        }
        let content = &mut channel.content;
        if content.awaited != Awaited::Body {
            let text = format!("a piece of a body on channel {number} without a header before it");
            return Err(ProtocolError::new(UNEXPECTED_FRAME, text));
        }
        if content.body.len() + payload.len() > content.body_len {
            let text = format!("a body of more than the {} bytes announced", content.body_len);
            return Err(ProtocolError::new(FRAME_ERROR, text));
        }
        content.body.extend_from_slice(payload);
        if content.body.len() == content.body_len {
            content.finish(number, on);
        }
        Ok(())
    }
}

impl Assembly {
    fn expect(&mut self, is_return: bool, exchange: &[u8], key: &[u8]) -> Result<(), WireError> {
        self.is_return = is_return;
        // Mostly the names of the message before, which were looked at then.
        for (name, bytes) in [(&mut self.exchange, exchange), (&mut self.key, key)] {
            if name.as_bytes() != bytes {
                name.clear();
                name.push_str(std::str::from_utf8(bytes).map_err(|_| WireError::Utf8)?);
            }
        }
        self.awaited = Awaited::Header;
        Ok(())
    }

    fn finish(&mut self, channel: u16, on: &mut impl FnMut(Event<'_>)) {
        self.awaited = Awaited::Method;
        let content = Content { properties: self.properties.take(), body: mem::take(&mut self.body).into() };
        let (exchange, key) = (self.exchange.as_str(), self.key.as_str());
        on(if self.is_return {
            Event::Returned { channel, reason: &self.reason, exchange, key, content }
        } else {
            let Assembly { tag, redelivered, .. } = *self;
            Event::Deliver { channel, tag, redelivered, exchange, key, content }
        });
    }
}

#[cfg(test)]
mod tests;
