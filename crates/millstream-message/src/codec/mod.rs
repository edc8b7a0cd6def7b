//! Turning values into messages and back.
//!
//! A [`Codec`] writes a value's body and declares what it is; reading trusts what is declared and never guesses from
//! the bytes, because a JSON `5` is also a valid number in other formats. A message never chooses the type that is
//! made of it: that is the reader's.
//!
//! | codec | content type | feature |
//! |---|---|---|
//! | [`Json`](struct@Json) | `application/json`, reads any `…+json` | |
//! | [`Raw`] | `application/octet-stream`, reads anything | |
//! | `Msgpack` | `application/msgpack` | `msgpack` |
//! | `Postcard` | `application/vnd.millstream.postcard` | `postcard` |
//! | `Protobuf` | `application/x-protobuf` | `protobuf` |
//!
//! Around a codec go [`Compressed`] (gzip, zstd and LZ4, each a feature of that name) and [`Typed`], which names the
//! schema; [`Codecs`] reads several formats, those it was given and no other.
//!
//! ```
//! use millstream_message::codec::{Codec, CodecError, Codecs, Compressed, Compression, Json, Typed};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Debug, PartialEq, Serialize, Deserialize)]
//! struct Order {
//!     id: u64,
//! }
//!
//! # fn main() -> Result<(), CodecError> {
//! # #[cfg(feature = "zstd")] {
//! // JSON of at most 1 MiB, compressed where that pays off, with the schema's name in a header.
//! let codec = Typed::new(Compressed::new(Json.max_bytes(1 << 20), Compression::zstd()), "order.v2");
//! let message = codec.encode(&Order { id: 7 })?;
//! assert_eq!(message.content_type(), Some("application/json"));
//! let order: Order = codec.decode(&message)?;
//! assert_eq!(order, Order { id: 7 });
//! # }
//!
//! // Another schema's message is refused, by both names.
//! let first: Typed<Json> = Typed::new(Json, "order.v1");
//! let second: Typed<Json> = Typed::new(Json, "order.v2");
//! let refused: Result<Order, CodecError> = second.decode(&first.encode(&Order { id: 7 })?);
//! assert_eq!(refused.unwrap_err().to_string(), "the message's schema is `order.v1`, `order.v2` is wanted");
//! # Ok(())
//! # }
//! ```
//!
//! # What is bounded
//! The formats but [`Raw`], which copies nothing, read bodies of at most 16 MiB unless told otherwise (`max_bytes`),
//! nested at most 128 deep (Protobuf: 100), and refuse what comes after the value. Decompression ends with an error
//! before it makes more than its bound, 64 MiB. A value can take more memory than its body: three bytes of JSON may
//! become a struct of hundreds, so choose `max_bytes` by the type.

mod any;
#[cfg(any(feature = "msgpack", feature = "postcard"))]
mod bound;
mod compress;
mod json;
#[cfg(feature = "msgpack")]
mod msgpack;
#[cfg(feature = "postcard")]
mod postcard;
#[cfg(feature = "protobuf")]
mod protobuf;
mod raw;
mod typed;

use std::error::Error;

use bytes::Bytes;

use crate::message::Message;

pub use any::{Codecs, Format};
pub use compress::{Compressed, Compression, ENCODINGS_MAX, compress, decompress};
pub use json::Json;
#[cfg(feature = "msgpack")]
pub use msgpack::Msgpack;
#[cfg(feature = "postcard")]
pub use postcard::Postcard;
#[cfg(feature = "protobuf")]
pub use protobuf::Protobuf;
pub use raw::Raw;
pub use typed::{SCHEMA, Typed};

/// Turns values of type `T` into messages and back.
///
/// Encoding declares the content type; decoding trusts it and never guesses from the bytes. Decoding bounds its input
/// and never makes a type named by the message.
pub trait Codec<T> {
    /// The media type that this codec writes.
    fn content_type(&self) -> &'static str;

    /// A message with the value as its body and the content type declared.
    ///
    /// # Errors
    /// When the value has no form in this format, or is too large.
    fn encode(&self, value: &T) -> Result<Message, CodecError>;

    /// The value in the message's body.
    ///
    /// # Errors
    /// When another content type is declared, the body is too large, or it is not what the type wants.
    fn decode(&self, message: &Message) -> Result<T, CodecError>;
}

/// Why a message could not be encoded or decoded. None of it is cured by trying again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// The message says that it is something else.
    #[error("the message is declared `{declared}`, this codec reads `{expected}`")]
    ContentType {
        /// What the message declares; `nothing` when it declares none. Cut off after 200 bytes.
        declared: String,
        /// What the codec reads; several are divided by commas.
        expected: String,
    },
    /// The message has another schema: see [`Typed`].
    #[error("the message's schema is `{declared}`, `{wanted}` is wanted")]
    Schema {
        /// What the message declares; `nothing` when it declares none. Cut off after 200 bytes.
        declared: String,
        /// What the codec was made for.
        wanted: String,
    },
    /// The body is compressed, and this codec is not where that is undone: [`Compressed`] is.
    #[error("the body is encoded as `{encoding}`; decompress it first")]
    ContentEncoding {
        /// What the message declares. Cut off after 200 bytes.
        encoding: String,
    },
    /// The body is compressed in a way that is not known, or not compiled in.
    #[error("the body is encoded as `{encoding}`, {}", remedy(*feature))]
    UnknownEncoding {
        /// What the message declares. Cut off after 200 bytes.
        encoding: String,
        /// The feature of `millstream-message` that knows it, if there is one.
        feature: Option<&'static str>,
    },
    /// More encodings on top of each other than are undone.
    #[error("the body is encoded {count} times over, at most {max} are undone")]
    TooManyEncodings {
        /// How many the message declares.
        count: usize,
        /// How many are undone.
        max: usize,
    },
    /// Longer than the codec accepts.
    #[error("the body is {len} bytes, this codec takes at most {max}")]
    TooLarge {
        /// Length in bytes.
        len: usize,
        /// Limit in bytes.
        max: usize,
    },
    /// Longer than is accepted once it is decompressed. How long is not known: decompression ended there.
    #[error("the body decompresses from {encoding} to more than {max} bytes")]
    Expands {
        /// How it is compressed.
        encoding: &'static str,
        /// Limit in bytes.
        max: usize,
    },
    /// Not what the encoding says: cut short, damaged, or followed by something else.
    #[error("not valid {encoding}")]
    Corrupt {
        /// How the body should be compressed.
        encoding: &'static str,
        /// What the decompressor says.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// Not what the type wants, or not the format at all.
    #[error("not valid {format} for `{wanted}`")]
    Invalid {
        /// The format.
        format: &'static str,
        /// The wanted type.
        wanted: &'static str,
        /// What the parser says; for JSON with line and column.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
}

fn remedy(feature: Option<&str>) -> String {
    match feature {
        Some(feature) => format!("which needs the feature `{feature}` of millstream-message"),
        None => "which is not known here".to_owned(),
    }
}

/// The longest body that is read unless a codec is told otherwise: 16 MiB.
const BODY_MAX: usize = 16 << 20;

/// How deep values may be nested, in formats that leave it to us. The same as serde_json's.
#[cfg(any(feature = "msgpack", feature = "postcard"))]
const DEPTH_MAX: usize = 128;

fn invalid<T>(format: &'static str, source: impl Into<Box<dyn Error + Send + Sync>>) -> CodecError {
    CodecError::Invalid { format, wanted: std::any::type_name::<T>(), source: source.into() }
}

fn check_length(len: usize, max: usize) -> Result<(), CodecError> {
    if len > max { Err(CodecError::TooLarge { len, max }) } else { Ok(()) }
}

/// The encoded body as a message, if it is not too long.
fn declared(body: Vec<u8>, content_type: &str, max: usize) -> Result<Message, CodecError> {
    check_length(body.len(), max)?;
    Ok(Message::new(body).with_content_type(content_type))
}

/// The message's body, if it is declared as something that `reads` knows, not compressed, and not too long.
fn body<'a>(
    message: &'a Message,
    expected: &str,
    reads: impl Fn(&str) -> bool,
    max: usize,
) -> Result<&'a Bytes, CodecError> {
    check_plain(message)?;
    if !message.content_type().is_some_and(|declared| reads(media(declared))) {
        return Err(other_type(message, expected));
    }
    check_length(message.body().len(), max)?;
    Ok(message.body())
}

fn other_type(message: &Message, expected: &str) -> CodecError {
    let declared = shown(message.content_type().unwrap_or("nothing"));
    CodecError::ContentType { declared, expected: expected.to_owned() }
}

fn check_plain(message: &Message) -> Result<(), CodecError> {
    match message.properties().content_encoding.as_deref() {
        None => Ok(()),
        Some(encoding) if is_plain(encoding) => Ok(()),
        Some(encoding) => Err(CodecError::ContentEncoding { encoding: shown(encoding) }),
    }
}

/// Whether a content encoding leaves a body as it is: `identity`, and what some clients declare by it that is none, as Python's kombu
/// does: `utf-8`, `us-ascii` and `binary`, in any case.
pub fn is_plain(encoding: &str) -> bool {
    const PLAIN: [&str; 6] = ["identity", "utf-8", "utf8", "us-ascii", "ascii", "binary"];
    PLAIN.iter().any(|plain| encoding.trim().eq_ignore_ascii_case(plain))
}

/// Whether a content type is that of JSON: `application/json`, any `…+json`, in any case, with any parameters.
pub fn is_json(content_type: &str) -> bool {
    json::reads(media(content_type))
}

/// A media type without its parameters.
fn media(declared: &str) -> &str {
    declared.split(';').next().unwrap_or_default().trim()
}

/// Text of a message as an error shows it: a hostile one must not fill the logs.
fn shown(text: &str) -> String {
    const MAX: usize = 200;
    if text.len() <= MAX {
        return text.to_owned();
    }
    let mut end = MAX;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_declaration_is_cut_off() {
        let message = Message::new("5").with_content_type("é".repeat(10_000));
        let error: CodecError = Codec::<u8>::decode(&Json, &message).expect_err("no JSON");
        let CodecError::ContentType { declared, .. } = error else { panic!("{error}") };
        assert_eq!(declared, format!("{}…", "é".repeat(100)));
    }

    #[test]
    fn identity_is_no_encoding() {
        for encoding in ["identity", "Identity"] {
            let message =
                Message::new("5").with_content_type("application/json").with_content_encoding(encoding);
            assert_eq!(Codec::<u8>::decode(&Json, &message).expect("plain"), 5);
        }
    }
}
