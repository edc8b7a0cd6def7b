//! Reading several formats.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Codec, CodecError, Json, json, media, other_type};
#[cfg(feature = "msgpack")]
use super::{Msgpack, msgpack};
#[cfg(feature = "postcard")]
use super::{Postcard, postcard};
use crate::message::Message;

/// Reads the formats that it was given, by the content type that a message declares; writes the first of them.
///
/// ```
/// # #[cfg(feature = "msgpack")] {
/// use millstream_message::codec::{Codec, Codecs, Json, Msgpack};
///
/// let codecs = Codecs::new(Msgpack).or(Json);
/// let from_browser = Json.encode(&17_u64)?;
/// assert_eq!(Codec::<u64>::decode(&codecs, &from_browser)?, 17);
/// assert_eq!(codecs.encode(&17_u64)?.content_type(), Some("application/msgpack"));
/// # }
/// # Ok::<(), millstream_message::codec::CodecError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Codecs {
    /// Never empty.
    formats: Vec<Format>,
}

/// A format that [`Codecs`] can have: one that serves every type of serde's.
#[derive(Clone, Copy, Debug)]
pub struct Format(Kind);

#[derive(Clone, Copy, Debug)]
enum Kind {
    Json(Json),
    #[cfg(feature = "msgpack")]
    Msgpack(Msgpack),
    #[cfg(feature = "postcard")]
    Postcard(Postcard),
}

impl From<Json> for Format {
    fn from(codec: Json) -> Format {
        Format(Kind::Json(codec))
    }
}

#[cfg(feature = "msgpack")]
impl From<Msgpack> for Format {
    fn from(codec: Msgpack) -> Format {
        Format(Kind::Msgpack(codec))
    }
}

#[cfg(feature = "postcard")]
impl From<Postcard> for Format {
    fn from(codec: Postcard) -> Format {
        Format(Kind::Postcard(codec))
    }
}

impl Codecs {
    /// Writes and reads this format.
    pub fn new(first: impl Into<Format>) -> Codecs {
        Codecs { formats: vec![first.into()] }
    }

    /// Reads also this one. Of two that read the same content type, the earlier does.
    #[must_use]
    pub fn or(mut self, other: impl Into<Format>) -> Codecs {
        self.formats.push(other.into());
        self
    }
}

impl Format {
    fn content_type(self) -> &'static str {
        match self.0 {
            Kind::Json(_) => json::CONTENT_TYPE,
            #[cfg(feature = "msgpack")]
            Kind::Msgpack(_) => msgpack::CONTENT_TYPE,
            #[cfg(feature = "postcard")]
            Kind::Postcard(_) => postcard::CONTENT_TYPE,
        }
    }

    fn reads(self, media: &str) -> bool {
        match self.0 {
            Kind::Json(_) => json::reads(media),
            #[cfg(feature = "msgpack")]
            Kind::Msgpack(_) => msgpack::reads(media),
            #[cfg(feature = "postcard")]
            Kind::Postcard(_) => postcard::reads(media),
        }
    }
}

impl<T: Serialize + DeserializeOwned> Codec<T> for Codecs {
    fn content_type(&self) -> &'static str {
        self.formats[0].content_type()
    }

    fn encode(&self, value: &T) -> Result<Message, CodecError> {
        match self.formats[0].0 {
            Kind::Json(codec) => codec.encode(value),
            #[cfg(feature = "msgpack")]
            Kind::Msgpack(codec) => codec.encode(value),
            #[cfg(feature = "postcard")]
            Kind::Postcard(codec) => codec.encode(value),
        }
    }

    fn decode(&self, message: &Message) -> Result<T, CodecError> {
        let declared = message.content_type().map(media);
        let format = declared.and_then(|media| self.formats.iter().find(|format| format.reads(media)));
        let Some(format) = format else {
            let known: Vec<&str> = self.formats.iter().map(|format| format.content_type()).collect();
            return Err(other_type(message, &known.join(", ")));
        };
        match format.0 {
            Kind::Json(codec) => codec.decode(message),
            #[cfg(feature = "msgpack")]
            Kind::Msgpack(codec) => codec.decode(message),
            #[cfg(feature = "postcard")]
            Kind::Postcard(codec) => codec.decode(message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_given_is_read() {
        let codecs = Codecs::new(Json);
        let declared = Message::new("5").with_content_type("application/msgpack");
        assert!(matches!(Codec::<u8>::decode(&codecs, &declared), Err(CodecError::ContentType { .. })));
        assert!(Codec::<u8>::decode(&codecs, &Message::new("5")).is_err(), "undeclared");
        assert_eq!(Codec::<u8>::decode(&codecs, &Json.encode(&5).expect("a number")).expect("JSON"), 5);
    }

    #[test]
    #[cfg(all(feature = "msgpack", feature = "postcard"))]
    fn the_declared_format_is_read_and_the_first_is_written() {
        let value = ("a".to_owned(), vec![1_u32, 2]);
        let codecs = Codecs::new(Postcard).or(Msgpack).or(Json);
        for message in [Json.encode(&value), Msgpack.encode(&value), Postcard.encode(&value)] {
            let read: (String, Vec<u32>) = codecs.decode(&message.expect("a value")).expect("one of three");
            assert_eq!(read, value);
        }
        assert_eq!(codecs.encode(&value).expect("a value"), Postcard.encode(&value).expect("a value"));
        assert_eq!(Codec::<u8>::content_type(&codecs), "application/vnd.millstream.postcard");

        let xml = Message::new("<a/>").with_content_type("text/xml");
        let error = Codec::<u8>::decode(&codecs, &xml).expect_err("XML").to_string();
        let known = "`application/vnd.millstream.postcard, application/msgpack, application/json`";
        assert!(error.contains("`text/xml`") && error.contains(known), "{error}");
    }

    #[test]
    fn each_format_keeps_its_own_limit_and_the_earlier_goes_first() {
        let codecs = Codecs::new(Json.max_bytes(2)).or(Json);
        let message = Json.encode(&123).expect("a number");
        let error = Codec::<u8>::decode(&codecs, &message).expect_err("three bytes");
        assert!(matches!(error, CodecError::TooLarge { len: 3, max: 2 }), "{error}");
        assert!(codecs.encode(&123).is_err());
    }
}
