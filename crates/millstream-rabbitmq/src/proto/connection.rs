//! One connection: frames in both directions, heartbeats; below it the handshake and what comes on channels.

mod channels;
mod handshake;
mod words;

use std::mem;
use std::time::Duration;

use bytes::BufMut;
use millstream_message::Message;

use self::channels::Channel;
use self::words::{CHANNEL_ERROR, FRAME_ERROR};
pub(crate) use self::words::{Closed, Content, Event, Login, ProtocolError, Server, Settings};
use super::method::Method;
use super::properties;
use super::wire::put_shortstr;

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
const ACK: u16 = 80;

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
        if self.phase == Phase::Start && head.starts_with(b"HTTP") {
            let text = "this is no AMQP, the other side speaks HTTP: port 15672 is for the management, AMQP has 5672";
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
}

#[cfg(test)]
mod tests;
