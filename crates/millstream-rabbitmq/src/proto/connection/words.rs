//! What a connection is given and what it tells: how to log in, what was agreed, what came, and what went wrong.

use std::time::Duration;

use bytes::Bytes;
use millstream_message::{Headers, Message, Properties, Value};

use crate::proto::method::Method;
use crate::proto::wire::{WireError, put_table};

// Reply codes of the specification, section 1.2.
pub(super) const FRAME_ERROR: u16 = 501;
pub(super) const SYNTAX_ERROR: u16 = 502;
pub(super) const COMMAND_INVALID: u16 = 503;
pub(super) const CHANNEL_ERROR: u16 = 504;
pub(super) const UNEXPECTED_FRAME: u16 = 505;
pub(super) const RESOURCE_ERROR: u16 = 506;

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
    /// The user's name, if it is not the server that reads it from a certificate.
    pub(crate) fn user(&self) -> Option<&str> {
        match self {
            Login::Plain(name, _) | Login::Amqplain(name, _) => Some(name),
            Login::External => None,
        }
    }

    pub(super) fn mechanism(&self) -> &'static str {
        match self {
            Login::Plain(..) => "PLAIN",
            Login::Amqplain(..) => "AMQPLAIN",
            Login::External => "EXTERNAL",
        }
    }

    pub(super) fn response(&self) -> Vec<u8> {
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
    pub(super) fn new(code: u16, text: impl Into<String>) -> ProtocolError {
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

impl Closed {
    /// Whether what was asked for is there, on a node of the cluster that is not: `NOT_FOUND - home node 'rabbit@b' of durable queue
    /// 'q' in vhost '/' is down or inaccessible`.
    pub(crate) fn is_down(&self) -> bool {
        self.code == 404 && self.text.ends_with("is down or inaccessible")
    }
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
