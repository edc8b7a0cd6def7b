//! JSON.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{BODY_MAX, Codec, CodecError, body, declared, invalid};
use crate::message::Message;

/// JSON by serde, `application/json`. Reads also any `…+json` and parameters such as `; charset=utf-8`, nested up to
/// 128 deep.
///
/// `Json` by itself is the codec for bodies of up to 16 MiB:
///
/// ```
/// use millstream_message::codec::{Codec, Json};
///
/// let message = Json.encode(&[1, 2, 3])?;
/// assert_eq!(message.body(), "[1,2,3]");
/// let small = Json.max_bytes(4);
/// assert!(Codec::<Vec<u32>>::decode(&small, &message).is_err());
/// # Ok::<(), millstream_message::codec::CodecError>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Json {
    max: usize,
}

/// JSON for bodies of up to 16 MiB.
#[expect(non_upper_case_globals, reason = "it is the codec with its defaults, and reads like one")]
pub const Json: Json = Json { max: BODY_MAX };

impl Json {
    /// Limits bodies, written and read, to this many bytes.
    #[must_use]
    pub const fn max_bytes(mut self, bytes: usize) -> Json {
        self.max = bytes;
        self
    }
}

impl Default for Json {
    fn default() -> Json {
        Json
    }
}

pub(super) const CONTENT_TYPE: &str = "application/json";

pub(super) fn reads(media: &str) -> bool {
    const SUFFIX: &str = "+json";
    let suffix = media.len().checked_sub(SUFFIX.len()).and_then(|at| media.get(at..));
    media.eq_ignore_ascii_case(CONTENT_TYPE)
        || suffix.is_some_and(|suffix| suffix.eq_ignore_ascii_case(SUFFIX))
}

impl<T: Serialize + DeserializeOwned> Codec<T> for Json {
    fn content_type(&self) -> &'static str {
        CONTENT_TYPE
    }

    fn encode(&self, value: &T) -> Result<Message, CodecError> {
        let body = serde_json::to_vec(value).map_err(|source| invalid::<T>("JSON", source))?;
        declared(body, CONTENT_TYPE, self.max)
    }

    fn decode(&self, message: &Message) -> Result<T, CodecError> {
        let body = body(message, CONTENT_TYPE, reads, self.max)?;
        serde_json::from_slice(body).map_err(|source| invalid::<T>("JSON", source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(message: &Message) -> Result<serde_json::Value, CodecError> {
        Json.decode(message)
    }

    fn json(body: impl Into<bytes::Bytes>) -> Message {
        Message::new(body).with_content_type("application/json")
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
        let kinds = ["application/json", "application/json; charset=utf-8", "application/geo+json"];
        for declared in kinds.into_iter().chain(["Application/JSON", "application/X+JSON ;v=1"]) {
            assert_eq!(read(&Message::new("5").with_content_type(declared)).expect(declared), 5);
        }
        for declared in ["", "json", "text/json", "application/jsonx", "é+son", "+jso"] {
            assert!(read(&Message::new("5").with_content_type(declared)).is_err(), "{declared}");
        }
    }

    #[test]
    fn a_compressed_body_is_refused_not_misread() {
        assert!(
            read(&json("5").with_content_encoding("gzip")).expect_err("gzip").to_string().contains("`gzip`")
        );
    }

    #[test]
    fn input_is_bounded_in_length_and_depth() {
        assert!(matches!(read(&json(vec![b' '; BODY_MAX + 1])), Err(CodecError::TooLarge { .. })));
        assert!(matches!(read(&json("[".repeat(100_000))), Err(CodecError::Invalid { .. })));
    }

    #[test]
    fn the_length_is_what_the_codec_was_told() {
        let small = Json.max_bytes(5);
        let written = small.encode(&"abc".to_owned()).expect("five bytes");
        assert_eq!(Codec::<String>::decode(&small, &written).expect("five bytes"), "abc");
        let refused = small.encode(&"abcd".to_owned());
        assert!(matches!(refused, Err(CodecError::TooLarge { len: 6, max: 5 })), "{refused:?}");
        assert!(Codec::<String>::decode(&small, &json("\"abcd\"")).is_err());
        let large = Json.max_bytes(BODY_MAX + 100);
        assert!(Codec::<u8>::decode(&large, &json([vec![b' '; BODY_MAX], b"5".to_vec()].concat())).is_ok());
    }

    #[test]
    fn what_is_no_json_names_the_type_and_the_place() {
        let error = Codec::<u8>::decode(&Json, &json("[1")).expect_err("a list");
        assert_eq!(error.to_string(), "not valid JSON for `u8`");
        assert!(std::error::Error::source(&error).expect("the parser's").to_string().contains("column"));
        assert!(Codec::<u8>::decode(&Json, &json("5 6")).is_err(), "something follows");
    }

    proptest! {
        #[test]
        fn decoding_any_bytes_never_panics(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&json(body));
        }
    }
}
