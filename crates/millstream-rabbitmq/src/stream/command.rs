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
