//! What is asked.

use bytes::BufMut;
use millstream_message::StreamFrom;

use super::super::wire::{
    Pairs, Reader, WireError, pairs, pairs_if_any, put_array, put_bytes, put_pairs, put_text, put_texts,
    text, texts,
};
use super::*;

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
            StreamFrom::Timestamp(time) => OffsetSpec::Timestamp(super::super::chunk::millis(time)),
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
    CreateSuperStream {
        super_stream: String,
        partitions: Vec<String>,
        keys: Vec<String>,
        arguments: Pairs,
    },
    DeleteSuperStream {
        super_stream: String,
    },
}

pub(super) fn versions(input: &mut Reader<'_>) -> Result<Vec<Versions>, WireError> {
    input.array_of(6, |input| Ok(Versions { key: input.u16()?, least: input.u16()?, most: input.u16()? }))
}

pub(super) fn put_versions(out: &mut Vec<u8>, commands: &[Versions]) {
    put_array(out, commands, |out, versions| {
        out.put_u16(versions.key);
        out.put_u16(versions.least);
        out.put_u16(versions.most);
    });
}

impl OffsetSpec {
    pub(super) fn read(input: &mut Reader<'_>) -> Result<Option<OffsetSpec>, WireError> {
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

    pub(super) fn put(from: Option<OffsetSpec>, out: &mut Vec<u8>) {
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
            Request::CreateSuperStream { .. } => CREATE_SUPER_STREAM,
            Request::DeleteSuperStream { .. } => DELETE_SUPER_STREAM,
        }
    }

    pub(super) fn read(key: u16, version: u16, input: &mut Reader<'_>) -> Result<Request, WireError> {
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
            CREATE_SUPER_STREAM => Request::CreateSuperStream {
                super_stream: text(input)?,
                partitions: texts(input)?,
                keys: texts(input)?,
                arguments: pairs(input)?,
            },
            DELETE_SUPER_STREAM => Request::DeleteSuperStream { super_stream: text(input)? },
            _ => return Err(WireError::Command(key, version)),
        })
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
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
            Request::Partitions { super_stream } | Request::DeleteSuperStream { super_stream } => {
                put_text(out, super_stream);
            }
            Request::CreateSuperStream { super_stream, partitions, keys, arguments } => {
                put_text(out, super_stream);
                put_texts(out, partitions);
                put_texts(out, keys);
                put_pairs(out, arguments);
            }
            Request::ConsumerUpdate { subscription, active } => {
                out.put_slice(&[*subscription, u8::from(*active)]);
            }
            Request::ExchangeVersions { commands } => put_versions(out, commands),
        }
    }
}
