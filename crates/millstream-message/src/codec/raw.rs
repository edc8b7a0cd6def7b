//! Bytes as they are.

use bytes::Bytes;

use super::{Codec, CodecError, check_plain};
use crate::message::Message;

/// Bytes as they are, `application/octet-stream`. Decoding accepts any content type, because any body is bytes, and
/// any length, because nothing is copied. It refuses a compressed body: its bytes are not those that were meant.
#[derive(Clone, Copy, Debug, Default)]
pub struct Raw;

const CONTENT_TYPE: &str = "application/octet-stream";

impl Codec<Bytes> for Raw {
    fn content_type(&self) -> &'static str {
        CONTENT_TYPE
    }

    fn encode(&self, value: &Bytes) -> Result<Message, CodecError> {
        Ok(Message::new(value.clone()).with_content_type(CONTENT_TYPE))
    }

    fn decode(&self, message: &Message) -> Result<Bytes, CodecError> {
        check_plain(message)?;
        Ok(message.body().clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_bytes_are_not_touched() {
        let body = Bytes::from_static(&[0, 255, 1]);
        let message = Raw.encode(&body).expect("bytes");
        assert_eq!(message.content_type(), Some("application/octet-stream"));
        assert_eq!(Raw.decode(&message).expect("bytes").as_ptr(), body.as_ptr());
        assert_eq!(Raw.decode(&Message::new("x").with_content_type("text/plain")).expect("any type"), "x");
    }

    #[test]
    fn a_compressed_body_is_not_what_was_meant() {
        let error = Raw.decode(&Message::new("x").with_content_encoding("zstd")).expect_err("compressed");
        assert!(matches!(error, CodecError::ContentEncoding { .. }), "{error}");
    }
}
