//! Turning values into messages and back.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::message::Message;

/// Turns values of type `T` into messages and back.
///
/// Encoding declares the content type; decoding trusts it and never guesses from the bytes, because a JSON `5` is
/// also a valid number in other formats. Decoding bounds its input and never makes a type named by the message.
pub trait Codec<T> {
    /// The media type that this codec writes and accepts.
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

/// Why a message could not be encoded or decoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// The message says that it is something else.
    #[error("the message is declared `{declared}`, this codec reads `{expected}`")]
    ContentType {
        /// What the message declares; `nothing` when it declares none.
        declared: String,
        /// What the codec reads.
        expected: &'static str,
    },
    /// The body is compressed, and a codec is not where that is undone.
    #[error("the body is encoded as `{encoding}`; decompress it first")]
    ContentEncoding {
        /// What the message declares.
        encoding: String,
    },
    /// Longer than the codec accepts.
    #[error("the body is {len} bytes, this codec reads at most {max}")]
    TooLarge {
        /// Length in bytes.
        len: usize,
        /// Limit in bytes.
        max: usize,
    },
    /// Not what the type wants, or not the format at all.
    #[error("not valid {format} for `{wanted}`")]
    Invalid {
        /// The format.
        format: &'static str,
        /// The wanted type.
        wanted: &'static str,
        /// What the parser says, with line and column.
        #[source]
        source: serde_json::Error,
    },
}

/// The longest body that [`Json`] reads: 16 MiB.
const JSON_MAX: usize = 16 << 20;

/// JSON by serde, `application/json`. Reads also any `…+json` and parameters such as `; charset=utf-8`, bodies up to
/// 16 MiB, nested up to 128 deep.
#[derive(Clone, Copy, Debug, Default)]
pub struct Json;

impl<T: Serialize + DeserializeOwned> Codec<T> for Json {
    fn content_type(&self) -> &'static str {
        "application/json"
    }

    fn encode(&self, value: &T) -> Result<Message, CodecError> {
        let body = serde_json::to_vec(value).map_err(|source| invalid::<T>(source))?;
        check_length(body.len())?;
        Ok(Message::new(body).with_content_type("application/json"))
    }

    fn decode(&self, message: &Message) -> Result<T, CodecError> {
        plain_encoding(message)?;
        let declared = message.content_type().unwrap_or("nothing");
        let media = declared.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        if media != "application/json" && !media.ends_with("+json") {
            let declared = declared.to_owned();
            return Err(CodecError::ContentType { declared, expected: "application/json" });
        }
        check_length(message.body().len())?;
        serde_json::from_slice(message.body()).map_err(|source| invalid::<T>(source))
    }
}

fn invalid<T>(source: serde_json::Error) -> CodecError {
    CodecError::Invalid { format: "JSON", wanted: std::any::type_name::<T>(), source }
}

fn check_length(len: usize) -> Result<(), CodecError> {
    if len > JSON_MAX { Err(CodecError::TooLarge { len, max: JSON_MAX }) } else { Ok(()) }
}

fn plain_encoding(message: &Message) -> Result<(), CodecError> {
    match message.properties().content_encoding.as_deref() {
        None | Some("identity") => Ok(()),
        Some(encoding) => Err(CodecError::ContentEncoding { encoding: encoding.to_owned() }),
    }
}

/// Bytes as they are, `application/octet-stream`. Decoding accepts any content type, because any body is bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Raw;

impl Codec<Bytes> for Raw {
    fn content_type(&self) -> &'static str {
        "application/octet-stream"
    }

    fn encode(&self, value: &Bytes) -> Result<Message, CodecError> {
        Ok(Message::new(value.clone()).with_content_type("application/octet-stream"))
    }

    fn decode(&self, message: &Message) -> Result<Bytes, CodecError> {
        Ok(message.body().clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(message: &Message) -> Result<serde_json::Value, CodecError> {
        Json.decode(message)
    }

    #[test]
    fn a_mismatch_names_both_content_types() {
        let error = read(&Message::new("5").with_content_type("application/msgpack")).expect_err("mismatch");
        let text = error.to_string();
        assert!(text.contains("application/msgpack") && text.contains("application/json"), "{text}");
        assert!(read(&Message::new("5")).expect_err("undeclared").to_string().contains("`nothing`"));
    }

    #[test]
    fn json_kinds_and_parameters_are_read() {
        for declared in ["application/json", "application/json; charset=utf-8", "application/geo+json"] {
            assert_eq!(read(&Message::new("5").with_content_type(declared)).expect(declared), 5);
        }
    }

    #[test]
    fn a_compressed_body_is_refused_not_misread() {
        let message = Message::new("5").with_content_type("application/json").with_content_encoding("gzip");
        assert!(read(&message).expect_err("compressed").to_string().contains("`gzip`"));
    }

    #[test]
    fn input_is_bounded_in_length_and_depth() {
        let long = Message::new(vec![b' '; JSON_MAX + 1]).with_content_type("application/json");
        assert!(matches!(read(&long), Err(CodecError::TooLarge { .. })));
        let deep = Message::new("[".repeat(100_000)).with_content_type("application/json");
        assert!(matches!(read(&deep), Err(CodecError::Invalid { .. })));
    }

    #[test]
    fn raw_bytes_are_not_touched() {
        let body = Bytes::from_static(&[0, 255, 1]);
        let message = Raw.encode(&body).expect("bytes");
        assert_eq!(Raw.decode(&message).expect("bytes").as_ptr(), body.as_ptr());
    }

    proptest! {
        #[test]
        fn decoding_any_bytes_never_panics(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&Message::new(body).with_content_type("application/json"));
        }
    }
}
