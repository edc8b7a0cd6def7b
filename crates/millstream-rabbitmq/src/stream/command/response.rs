//! What is answered.

use bytes::BufMut;

use super::super::wire::{
    Pairs, Reader, WireError, pairs_if_any, put_array, put_pairs, put_text, put_texts, text, texts,
};
use super::request::{put_versions, versions};
use super::*;

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

impl Response {
    pub(super) fn read(key: u16, version: u16, input: &mut Reader<'_>) -> Result<Response, WireError> {
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
            DECLARE_PUBLISHER | DELETE_PUBLISHER | SUBSCRIBE | UNSUBSCRIBE | CREATE | DELETE | CLOSE
            | CREATE_SUPER_STREAM | DELETE_SUPER_STREAM => Body::Empty,
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

    pub(super) fn put(&self, out: &mut Vec<u8>) {
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
