//! The commands of the stream protocol, as of RabbitMQ 3.10, with those of 3.11 and 3.13 that a client answers or asks.

pub(crate) mod code;
mod request;
mod response;
#[cfg(test)]
pub(crate) mod tests;

use bytes::{BufMut, Bytes};

pub(crate) use self::request::{OffsetSpec, Request, Versions};
pub(crate) use self::response::{Body, Response};
#[cfg(test)]
pub(crate) use self::response::{Broker, StreamMetadata};
use super::wire::{Reader, WireError, put_array, put_text};

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
pub(crate) const CREATE_SUPER_STREAM: u16 = 29;
pub(crate) const DELETE_SUPER_STREAM: u16 = 30;

/// Set in the key of a response.
const RESPONSE: u16 = 0x8000;

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
