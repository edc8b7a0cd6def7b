//! One connection without a socket and without a clock: the handshake, frames, correlation, heartbeats. Bytes and the
//! time go in, bytes and events come out.

mod handshake;

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use hashbrown::HashMap;
use millstream_message::{BrokerError, BrokerErrorKind};

use super::command::{self as key, Body, Command, Ids, Request, Response, Versions, code};
use super::wire::WireError;

/// A frame's length, and the key that is behind it.
const HEAD: usize = 6;
/// Frames before the sizes are agreed are no larger.
const FRAME_MAX_BEFORE: u32 = 64 << 10;

/// The first version with single active consumers.
const SINGLE_ACTIVE: (u32, u32) = (3, 11);

/// What this side wants of a connection.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) user: String,
    pub(crate) password: String,
    /// Whether the certificate of the connection says who this is.
    pub(crate) external: bool,
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
    /// Whether it knows a command that not all servers know, and that clients send.
    pub(crate) fn knows(&self, key: u16) -> bool {
        self.commands.iter().any(|versions| versions.key == key)
    }

    /// Whether it has single active consumers. Its list of commands has only what clients send, and so not the question
    /// that belongs to them.
    pub(crate) fn has_single_active(&self) -> bool {
        handshake::version(&self.version) >= SINGLE_ACTIVE
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
            if head == b"HTTP" {
                let text = "the other side speaks HTTP: port 15672 is for the management, streams have 5552";
                return Err(broken(text.to_owned()));
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
}

#[cfg(test)]
pub(crate) mod tests;
