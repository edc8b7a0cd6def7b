//! What comes on a channel: answers, and messages in pieces.

use std::mem;

use millstream_message::Properties;

use super::words::{
    CHANNEL_ERROR, COMMAND_INVALID, Closed, Content, Event, FRAME_ERROR, ProtocolError, RESOURCE_ERROR,
    UNEXPECTED_FRAME,
};
use super::{ACK, BASIC, Connection, FRAME_USUAL, Phase};
use crate::proto::method::Method;
use crate::proto::properties;
use crate::proto::wire::Reader;

/// Methods of class [`BASIC`] that carry a message, or come too often to make a [`Method`] of each.
const RETURN: u16 = 50;
const DELIVER: u16 = 60;
const NACK: u16 = 120;

/// A channel as this side sees it.
#[derive(Debug, Default)]
pub(super) struct Channel {
    /// We asked to close it: what comes before the answer is not looked at.
    pub(super) closing: bool,
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

impl Connection {
    fn channel(&mut self, number: u16) -> Result<&mut Channel, ProtocolError> {
        let channel =
            self.channels.get_mut(usize::from(number).wrapping_sub(1)).and_then(Option::as_deref_mut);
        channel.ok_or_else(|| {
            ProtocolError::new(CHANNEL_ERROR, format!("a frame on channel {number}, which is not open"))
        })
    }

    pub(super) fn channel_method(
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
                    content.expect(false, reader.short_bytes()?, reader.short_bytes()?);
                }
                RETURN => {
                    reader.u16()?;
                    content.reason.clear();
                    content.reason.push_str(reader.shortstr()?);
                    content.expect(true, reader.short_bytes()?, reader.short_bytes()?);
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

    pub(super) fn header(
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

    pub(super) fn body(
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
    fn expect(&mut self, is_return: bool, exchange: &[u8], key: &[u8]) {
        self.is_return = is_return;
        // Mostly the names of the message before, which were looked at then.
        for (name, bytes) in [(&mut self.exchange, exchange), (&mut self.key, key)] {
            if name.as_bytes() != bytes {
                name.clear();
                // RabbitMQ takes any bytes as a key.
                name.push_str(&String::from_utf8_lossy(bytes));
            }
        }
        self.awaited = Awaited::Header;
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
