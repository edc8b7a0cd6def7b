//! The commands of the stream protocol, as of RabbitMQ 3.10, with those of 3.11 that a client answers or asks.

use bytes::{BufMut, Bytes};
use millstream_message::StreamFrom;

use super::wire::{Reader, WireError, put_array, put_bytes, put_text};

pub(crate) const DECLARE_PUBLISHER: u16 = 1;
pub(crate) const PUBLISH: u16 = 2;
pub(crate) const PUBLISH_CONFIRM: u16 = 3;
pub(crate) const PUBLISH_ERROR: u16 = 4;
pub(crate) const QUERY_PUBLISHER_SEQUENCE: u16 = 5;
pub(crate) const DELETE_PUBLISHER: u16 = 6;
pub(crate) const SUBSCRIBE: u16 = 7;
pub(crate) const DELIVER: u16 = 8;
pub(crate) const CREDIT: u16 = 9;
pub(crate) const STORE_OFFSET: u16 = 10;
pub(crate) const QUERY_OFFSET: u16 = 11;
pub(crate) const UNSUBSCRIBE: u16 = 12;
pub(crate) const CREATE: u16 = 13;
pub(crate) const DELETE: u16 = 14;
pub(crate) const METADATA: u16 = 15;
pub(crate) const METADATA_UPDATE: u16 = 16;
pub(crate) const PEER_PROPERTIES: u16 = 17;
pub(crate) const SASL_HANDSHAKE: u16 = 18;
pub(crate) const SASL_AUTHENTICATE: u16 = 19;
pub(crate) const TUNE: u16 = 20;
pub(crate) const OPEN: u16 = 21;
pub(crate) const CLOSE: u16 = 22;
pub(crate) const HEARTBEAT: u16 = 23;
pub(crate) const ROUTE: u16 = 24;
pub(crate) const PARTITIONS: u16 = 25;
pub(crate) const CONSUMER_UPDATE: u16 = 26;
pub(crate) const EXCHANGE_VERSIONS: u16 = 27;
pub(crate) const STREAM_STATS: u16 = 28;

/// Set in the key of a response.
const RESPONSE: u16 = 0x8000;

/// What the server answers, as numbers.
pub(crate) mod code {
    pub(crate) const OK: u16 = 1;
    pub(crate) const NO_STREAM: u16 = 2;
    pub(crate) const NO_SUBSCRIPTION: u16 = 4;
    pub(crate) const STREAM_EXISTS: u16 = 5;
    pub(crate) const STREAM_NOT_AVAILABLE: u16 = 6;
    pub(crate) const AUTHENTICATION_FAILURE: u16 = 8;
    pub(crate) const SASL_CHALLENGE: u16 = 10;
    pub(crate) const LOOPBACK_ONLY: u16 = 11;
    pub(crate) const NO_VHOST: u16 = 12;
    pub(crate) const ACCESS_REFUSED: u16 = 16;
    pub(crate) const PRECONDITION_FAILED: u16 = 17;
    pub(crate) const NO_PUBLISHER: u16 = 18;
    pub(crate) const NO_OFFSET: u16 = 19;

    /// A code in words.
    pub(crate) fn words(code: u16) -> &'static str {
        match code {
            OK => "ok",
            NO_STREAM => "the stream does not exist",
            3 => "the subscription's number is taken",
            NO_SUBSCRIPTION => "the subscription does not exist",
            STREAM_EXISTS => "the stream exists",
            STREAM_NOT_AVAILABLE => "the stream is not available",
            7 => "the way of logging in is not supported",
            AUTHENTICATION_FAILURE => "the name or the password is wrong",
            9 => "the log-in failed",
            SASL_CHALLENGE => "more is asked to log in",
            LOOPBACK_ONLY => "this user may connect only from the broker's own machine",
            NO_VHOST => "the virtual host does not exist, or this user may not use it",
            13 => "the command is unknown",
            14 => "the frame is too large",
            15 => "the broker failed",
            ACCESS_REFUSED => "this user may not do that",
            PRECONDITION_FAILED => "a condition is not met",
            NO_PUBLISHER => "the publisher does not exist",
            NO_OFFSET => "no offset is stored",
            _ => "the broker refused",
        }
    }
}

/// Names with values.
pub(crate) type Pairs = Vec<(String, String)>;

/// Where a subscription begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OffsetSpec {
    First,
    Last,
    Next,
    Offset(u64),
    /// Milliseconds since 1970.
    Timestamp(i64),
}

impl From<StreamFrom> for OffsetSpec {
    fn from(from: StreamFrom) -> OffsetSpec {
        match from {
            StreamFrom::First => OffsetSpec::First,
            StreamFrom::Next => OffsetSpec::Next,
            StreamFrom::Last => OffsetSpec::Last,
            StreamFrom::Offset(offset) => OffsetSpec::Offset(offset),
            StreamFrom::Timestamp(time) => OffsetSpec::Timestamp(super::chunk::millis(time)),
        }
    }
}

/// A range of versions of one command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Versions {
    pub(crate) key: u16,
    pub(crate) least: u16,
    pub(crate) most: u16,
}

/// What is asked and answered.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Request {
    /// An empty reference is none: no deduplication.
    DeclarePublisher {
        publisher: u8,
        reference: String,
        stream: String,
    },
    QueryPublisherSequence {
        reference: String,
        stream: String,
    },
    DeletePublisher {
        publisher: u8,
    },
    Subscribe {
        subscription: u8,
        stream: String,
        from: OffsetSpec,
        credit: u16,
        properties: Pairs,
    },
    QueryOffset {
        reference: String,
        stream: String,
    },
    Unsubscribe {
        subscription: u8,
    },
    Create {
        stream: String,
        arguments: Pairs,
    },
    Delete {
        stream: String,
    },
    Metadata {
        streams: Vec<String>,
    },
    PeerProperties {
        properties: Pairs,
    },
    SaslHandshake,
    SaslAuthenticate {
        mechanism: String,
        data: Option<Vec<u8>>,
    },
    Open {
        vhost: String,
    },
    Close {
        code: u16,
        reason: String,
    },
    Route {
        key: String,
        super_stream: String,
    },
    Partitions {
        super_stream: String,
    },
    /// Asked by the server: whether this consumer is now the active one, and where it then begins.
    ConsumerUpdate {
        subscription: u8,
        active: bool,
    },
    ExchangeVersions {
        commands: Vec<Versions>,
    },
    StreamStats {
        stream: String,
    },
}

/// An answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Response {
    /// Of the request.
    pub(crate) key: u16,
    pub(crate) code: u16,
    pub(crate) body: Body,
}

/// What an answer says besides its code.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Body {
    Empty,
    /// Of a publisher, or an offset.
    Number(u64),
    Metadata {
        brokers: Vec<Broker>,
        streams: Vec<StreamMetadata>,
    },
    Properties(Pairs),
    Names(Vec<String>),
    Challenge(Vec<u8>),
    Versions(Vec<Versions>),
    Stats(Vec<(String, i64)>),
    From(Option<OffsetSpec>),
}

/// A node of the cluster, with a number that is good for one answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Broker {
    pub(crate) reference: u16,
    pub(crate) host: String,
    pub(crate) port: u32,
}

/// Where a stream is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct StreamMetadata {
    pub(crate) stream: String,
    pub(crate) code: u16,
    pub(crate) leader: u16,
    pub(crate) replicas: Vec<u16>,
}

/// Publishing ids of a confirm, still in their frame.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Ids<'a>(&'a [u8]);

impl<'a> Ids<'a> {
    /// Over whole big-endian numbers.
    #[cfg(test)]
    pub(crate) fn new(bytes: &'a [u8]) -> Ids<'a> {
        Ids(bytes)
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = u64> + 'a {
        let (numbers, _) = self.0.as_chunks();
        numbers.iter().map(|number| u64::from_be_bytes(*number))
    }
}

/// A frame's content.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Command<'a> {
    Request(u32, Request),
    Response(u32, Response),
    /// The messages as they are in the frame.
    Publish {
        publisher: u8,
        count: u32,
        messages: &'a [u8],
    },
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
        committed: Option<u64>,
        chunk: &'a [u8],
    },
    Credit {
        subscription: u8,
        credit: u16,
    },
    /// Answered only when something is wrong.
    CreditError {
        code: u16,
        subscription: u8,
    },
    StoreOffset {
        reference: String,
        stream: String,
        offset: u64,
    },
    MetadataUpdate {
        code: u16,
        stream: String,
    },
    Tune {
        frame_max: u32,
        heartbeat: u32,
    },
    Heartbeat,
}

impl<'a> Command<'a> {
    /// Reads a frame without its length.
    pub(crate) fn read(frame: &'a [u8]) -> Result<Command<'a>, WireError> {
        let mut reader = Reader::new(frame);
        let input = &mut reader;
        let (key, version) = (input.u16()?, input.u16()?);
        let unknown = Err(WireError::Command(key, version));
        if version != 1 && !(version == 2 && key == DELIVER) {
            return unknown;
        }
        let command = match key {
            PUBLISH => {
                let (publisher, count) = (input.u8()?, input.count(12)? as u32);
                Command::Publish { publisher, count, messages: input.rest() }
            }
            PUBLISH_CONFIRM => {
                let (publisher, count) = (input.u8()?, input.count(8)?);
                Command::Confirm { publisher, ids: Ids(input.take(8 * count)?) }
            }
            PUBLISH_ERROR => Command::PublishError {
                publisher: input.u8()?,
                errors: input.array_of(10, |input| Ok((input.u64()?, input.u16()?)))?,
            },
            DELIVER => Command::Deliver {
                subscription: input.u8()?,
                committed: if version == 2 { Some(input.u64()?) } else { None },
                chunk: input.rest(),
            },
            CREDIT => Command::Credit { subscription: input.u8()?, credit: input.u16()? },
            STORE_OFFSET => Command::StoreOffset {
                reference: input.text()?.to_owned(),
                stream: input.text()?.to_owned(),
                offset: input.u64()?,
            },
            METADATA_UPDATE => {
                Command::MetadataUpdate { code: input.u16()?, stream: input.text()?.to_owned() }
            }
            HEARTBEAT => Command::Heartbeat,
            _ if key & !RESPONSE == TUNE => {
                Command::Tune { frame_max: input.u32()?, heartbeat: input.u32()? }
            }
            _ if key == CREDIT | RESPONSE => {
                Command::CreditError { code: input.u16()?, subscription: input.u8()? }
            }
            _ if key & RESPONSE != 0 => {
                Command::Response(input.u32()?, Response::read(key & !RESPONSE, version, input)?)
            }
            // RabbitMQ 3.10 answers these two without the mark of an answer. Nobody asks a client for them.
            ROUTE | PARTITIONS => {
                let correlation = input.u32()?;
                let mut answer = *input;
                match Response::read(key, version, &mut answer) {
                    Ok(response) if answer.is_empty() => {
                        input.rest();
                        Command::Response(correlation, response)
                    }
                    _ => Command::Request(correlation, Request::read(key, version, input)?),
                }
            }
            _ => Command::Request(input.u32()?, Request::read(key, version, input)?),
        };
        reader.end()?;
        Ok(command)
    }

    /// Appends the whole frame.
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        put_frame(out, |out| self.put_content(out));
    }

    /// The whole frame.
    pub(crate) fn frame(&self) -> Bytes {
        let mut out = Vec::new();
        self.put(&mut out);
        out.into()
    }

    fn put_content(&self, out: &mut Vec<u8>) {
        let head = |out: &mut Vec<u8>, key: u16| {
            out.put_u16(key);
            out.put_u16(1);
        };
        match self {
            Command::Request(correlation, request) => {
                head(out, request.key());
                out.put_u32(*correlation);
                request.put(out);
            }
            Command::Response(correlation, response) => {
                head(out, response.key | RESPONSE);
                out.put_u32(*correlation);
                response.put(out);
            }
            Command::Publish { publisher, count, messages } => {
                head(out, PUBLISH);
                out.put_u8(*publisher);
                out.put_u32(*count);
                out.put_slice(messages);
            }
            Command::Confirm { publisher, ids } => {
                head(out, PUBLISH_CONFIRM);
                out.put_u8(*publisher);
                out.put_u32((ids.0.len() / 8) as u32);
                out.put_slice(ids.0);
            }
            Command::PublishError { publisher, errors } => {
                head(out, PUBLISH_ERROR);
                out.put_u8(*publisher);
                put_array(out, errors, |out, (id, code)| {
                    out.put_u64(*id);
                    out.put_u16(*code);
                });
            }
            Command::Deliver { subscription, committed, chunk } => {
                out.put_u16(DELIVER);
                out.put_u16(if committed.is_some() { 2 } else { 1 });
                out.put_u8(*subscription);
                committed.iter().for_each(|committed| out.put_u64(*committed));
                out.put_slice(chunk);
            }
            Command::Credit { subscription, credit } => {
                head(out, CREDIT);
                out.put_u8(*subscription);
                out.put_u16(*credit);
            }
            Command::CreditError { code, subscription } => {
                head(out, CREDIT | RESPONSE);
                out.put_u16(*code);
                out.put_u8(*subscription);
            }
            Command::StoreOffset { reference, stream, offset } => {
                head(out, STORE_OFFSET);
                put_text(out, reference);
                put_text(out, stream);
                out.put_u64(*offset);
            }
            Command::MetadataUpdate { code, stream } => {
                head(out, METADATA_UPDATE);
                out.put_u16(*code);
                put_text(out, stream);
            }
            Command::Tune { frame_max, heartbeat } => {
                head(out, TUNE);
                out.put_u32(*frame_max);
                out.put_u32(*heartbeat);
            }
            Command::Heartbeat => head(out, HEARTBEAT),
        }
    }
}

/// Appends a length and what `put` writes behind it.
pub(crate) fn put_frame(out: &mut Vec<u8>, put: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.put_u32(0);
    put(out);
    let len = (out.len() - at - 4) as u32;
    out[at..at + 4].copy_from_slice(&len.to_be_bytes());
}

fn text(input: &mut Reader<'_>) -> Result<String, WireError> {
    Ok(input.text()?.to_owned())
}

fn texts(input: &mut Reader<'_>) -> Result<Vec<String>, WireError> {
    input.array_of(2, text)
}

fn pairs(input: &mut Reader<'_>) -> Result<Pairs, WireError> {
    input.array_of(4, |input| Ok((text(input)?, text(input)?)))
}

/// Pairs that are left out when there are none, as servers and clients do.
fn pairs_if_any(input: &mut Reader<'_>) -> Result<Pairs, WireError> {
    if input.is_empty() { Ok(Pairs::new()) } else { pairs(input) }
}

fn versions(input: &mut Reader<'_>) -> Result<Vec<Versions>, WireError> {
    input.array_of(6, |input| Ok(Versions { key: input.u16()?, least: input.u16()?, most: input.u16()? }))
}

fn put_texts(out: &mut Vec<u8>, texts: &[String]) {
    put_array(out, texts, |out, text| put_text(out, text));
}

fn put_pairs(out: &mut Vec<u8>, pairs: &Pairs) {
    put_array(out, pairs, |out, (name, value)| {
        put_text(out, name);
        put_text(out, value);
    });
}

fn put_versions(out: &mut Vec<u8>, commands: &[Versions]) {
    put_array(out, commands, |out, versions| {
        out.put_u16(versions.key);
        out.put_u16(versions.least);
        out.put_u16(versions.most);
    });
}

impl OffsetSpec {
    fn read(input: &mut Reader<'_>) -> Result<Option<OffsetSpec>, WireError> {
        Ok(Some(match input.u16()? {
            0 => return Ok(None),
            1 => OffsetSpec::First,
            2 => OffsetSpec::Last,
            3 => OffsetSpec::Next,
            4 => OffsetSpec::Offset(input.u64()?),
            5 => OffsetSpec::Timestamp(input.i64()?),
            other => return Err(WireError::OffsetType(other)),
        }))
    }

    fn put(from: Option<OffsetSpec>, out: &mut Vec<u8>) {
        match from {
            None => out.put_u16(0),
            Some(OffsetSpec::First) => out.put_u16(1),
            Some(OffsetSpec::Last) => out.put_u16(2),
            Some(OffsetSpec::Next) => out.put_u16(3),
            Some(OffsetSpec::Offset(offset)) => {
                out.put_u16(4);
                out.put_u64(offset);
            }
            Some(OffsetSpec::Timestamp(time)) => {
                out.put_u16(5);
                out.put_i64(time);
            }
        }
    }
}

impl Request {
    pub(crate) fn key(&self) -> u16 {
        match self {
            Request::DeclarePublisher { .. } => DECLARE_PUBLISHER,
            Request::QueryPublisherSequence { .. } => QUERY_PUBLISHER_SEQUENCE,
            Request::DeletePublisher { .. } => DELETE_PUBLISHER,
            Request::Subscribe { .. } => SUBSCRIBE,
            Request::QueryOffset { .. } => QUERY_OFFSET,
            Request::Unsubscribe { .. } => UNSUBSCRIBE,
            Request::Create { .. } => CREATE,
            Request::Delete { .. } => DELETE,
            Request::Metadata { .. } => METADATA,
            Request::PeerProperties { .. } => PEER_PROPERTIES,
            Request::SaslHandshake => SASL_HANDSHAKE,
            Request::SaslAuthenticate { .. } => SASL_AUTHENTICATE,
            Request::Open { .. } => OPEN,
            Request::Close { .. } => CLOSE,
            Request::Route { .. } => ROUTE,
            Request::Partitions { .. } => PARTITIONS,
            Request::ConsumerUpdate { .. } => CONSUMER_UPDATE,
            Request::ExchangeVersions { .. } => EXCHANGE_VERSIONS,
            Request::StreamStats { .. } => STREAM_STATS,
        }
    }

    fn read(key: u16, version: u16, input: &mut Reader<'_>) -> Result<Request, WireError> {
        Ok(match key {
            DECLARE_PUBLISHER => Request::DeclarePublisher {
                publisher: input.u8()?,
                reference: text(input)?,
                stream: text(input)?,
            },
            QUERY_PUBLISHER_SEQUENCE => {
                Request::QueryPublisherSequence { reference: text(input)?, stream: text(input)? }
            }
            DELETE_PUBLISHER => Request::DeletePublisher { publisher: input.u8()? },
            SUBSCRIBE => Request::Subscribe {
                subscription: input.u8()?,
                stream: text(input)?,
                from: OffsetSpec::read(input)?.ok_or(WireError::OffsetType(0))?,
                credit: input.u16()?,
                properties: pairs_if_any(input)?,
            },
            QUERY_OFFSET => Request::QueryOffset { reference: text(input)?, stream: text(input)? },
            UNSUBSCRIBE => Request::Unsubscribe { subscription: input.u8()? },
            CREATE => Request::Create { stream: text(input)?, arguments: pairs(input)? },
            DELETE => Request::Delete { stream: text(input)? },
            METADATA => Request::Metadata { streams: texts(input)? },
            PEER_PROPERTIES => Request::PeerProperties { properties: pairs(input)? },
            SASL_HANDSHAKE => Request::SaslHandshake,
            SASL_AUTHENTICATE => Request::SaslAuthenticate {
                mechanism: text(input)?,
                data: input.bytes()?.map(<[u8]>::to_vec),
            },
            OPEN => Request::Open { vhost: text(input)? },
            CLOSE => Request::Close { code: input.u16()?, reason: text(input)? },
            ROUTE => Request::Route { key: text(input)?, super_stream: text(input)? },
            PARTITIONS => Request::Partitions { super_stream: text(input)? },
            CONSUMER_UPDATE => {
                Request::ConsumerUpdate { subscription: input.u8()?, active: input.u8()? != 0 }
            }
            EXCHANGE_VERSIONS => Request::ExchangeVersions { commands: versions(input)? },
            STREAM_STATS => Request::StreamStats { stream: text(input)? },
            _ => return Err(WireError::Command(key, version)),
        })
    }

    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Request::DeclarePublisher { publisher, reference, stream } => {
                out.put_u8(*publisher);
                put_text(out, reference);
                put_text(out, stream);
            }
            Request::QueryPublisherSequence { reference, stream }
            | Request::QueryOffset { reference, stream } => {
                put_text(out, reference);
                put_text(out, stream);
            }
            Request::DeletePublisher { publisher: number }
            | Request::Unsubscribe { subscription: number } => {
                out.put_u8(*number);
            }
            Request::Subscribe { subscription, stream, from, credit, properties } => {
                out.put_u8(*subscription);
                put_text(out, stream);
                OffsetSpec::put(Some(*from), out);
                out.put_u16(*credit);
                if !properties.is_empty() {
                    put_pairs(out, properties);
                }
            }
            Request::Create { stream, arguments } => {
                put_text(out, stream);
                put_pairs(out, arguments);
            }
            Request::Delete { stream } | Request::StreamStats { stream } => put_text(out, stream),
            Request::Metadata { streams } => put_texts(out, streams),
            Request::PeerProperties { properties } => put_pairs(out, properties),
            Request::SaslHandshake => {}
            Request::SaslAuthenticate { mechanism, data } => {
                put_text(out, mechanism);
                put_bytes(out, data.as_deref());
            }
            Request::Open { vhost } => put_text(out, vhost),
            Request::Close { code, reason } => {
                out.put_u16(*code);
                put_text(out, reason);
            }
            Request::Route { key, super_stream } => {
                put_text(out, key);
                put_text(out, super_stream);
            }
            Request::Partitions { super_stream } => put_text(out, super_stream),
            Request::ConsumerUpdate { subscription, active } => {
                out.put_slice(&[*subscription, u8::from(*active)]);
            }
            Request::ExchangeVersions { commands } => put_versions(out, commands),
        }
    }
}

impl Response {
    fn read(key: u16, version: u16, input: &mut Reader<'_>) -> Result<Response, WireError> {
        if key == METADATA {
            let brokers = input.array_of(8, |input| {
                Ok(Broker { reference: input.u16()?, host: text(input)?, port: input.u32()? })
            })?;
            let streams = input.array_of(10, |input| {
                Ok(StreamMetadata {
                    stream: text(input)?,
                    code: input.u16()?,
                    leader: input.u16()?,
                    replicas: input.array_of(2, Reader::u16)?,
                })
            })?;
            return Ok(Response { key, code: code::OK, body: Body::Metadata { brokers, streams } });
        }
        let code = input.u16()?;
        let body = match key {
            DECLARE_PUBLISHER | DELETE_PUBLISHER | SUBSCRIBE | UNSUBSCRIBE | CREATE | DELETE | CLOSE => {
                Body::Empty
            }
            // Whatever the command: an error may be the code alone.
            _ if input.is_empty() && code != code::OK => Body::Empty,
            QUERY_PUBLISHER_SEQUENCE | QUERY_OFFSET => Body::Number(input.u64()?),
            PEER_PROPERTIES | OPEN => Body::Properties(pairs_if_any(input)?),
            SASL_HANDSHAKE | ROUTE | PARTITIONS => Body::Names(texts(input)?),
            SASL_AUTHENTICATE => Body::Challenge(input.rest().to_vec()),
            CONSUMER_UPDATE => Body::From(OffsetSpec::read(input)?),
            EXCHANGE_VERSIONS => Body::Versions(versions(input)?),
            STREAM_STATS => Body::Stats(input.array_of(10, |input| Ok((text(input)?, input.i64()?)))?),
            _ => return Err(WireError::Command(key | RESPONSE, version)),
        };
        Ok(Response { key, code, body })
    }

    fn put(&self, out: &mut Vec<u8>) {
        if self.key != METADATA {
            out.put_u16(self.code);
        }
        match &self.body {
            Body::Empty => {}
            Body::Number(number) => out.put_u64(*number),
            Body::Metadata { brokers, streams } => {
                put_array(out, brokers, |out, broker| {
                    out.put_u16(broker.reference);
                    put_text(out, &broker.host);
                    out.put_u32(broker.port);
                });
                put_array(out, streams, |out, stream| {
                    put_text(out, &stream.stream);
                    out.put_u16(stream.code);
                    out.put_u16(stream.leader);
                    put_array(out, &stream.replicas, |out, replica| out.put_u16(*replica));
                });
            }
            Body::Properties(pairs) => put_pairs(out, pairs),
            Body::Names(names) => put_texts(out, names),
            Body::Challenge(bytes) => out.put_slice(bytes),
            Body::Versions(commands) => put_versions(out, commands),
            Body::Stats(stats) => put_array(out, stats, |out, (name, value)| {
                put_text(out, name);
                out.put_i64(*value);
            }),
            Body::From(from) => OffsetSpec::put(*from, out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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

    fn requests() -> impl Strategy<Value = Request> {
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
        ]
    }

    fn responses() -> impl Strategy<Value = Response> {
        let plain = prop::sample::select(vec![
            DECLARE_PUBLISHER,
            DELETE_PUBLISHER,
            SUBSCRIBE,
            UNSUBSCRIBE,
            CREATE,
            DELETE,
            CLOSE,
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
            of(
                &[SASL_AUTHENTICATE],
                prop::collection::vec(any::<u8>(), 0..9).prop_map(Body::Challenge).boxed()
            ),
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
        let response =
            Response { key: PARTITIONS, code: code::OK, body: Body::Names(vec!["a-0".to_owned()]) };
        let mut frame = Command::Response(7, response.clone()).frame()[4..].to_vec();
        frame[0] = 0;
        assert_eq!(Command::read(&frame), Ok(Command::Response(7, response)));
    }
}
