//! MessagePack.

use rmp_serde::decode::{Deserializer, Error};
use serde::Serialize;
use serde::de::{Deserialize, DeserializeOwned};

use super::{BODY_MAX, Codec, CodecError, body, bound, declared, invalid};
use crate::message::Message;

/// MessagePack by serde, `application/msgpack`. Reads also `application/x-msgpack` and `application/vnd.msgpack`,
/// nested up to 128 deep.
///
/// Structs are written as maps with the names of their fields, so that programs in other languages can read them and
/// fields can be added. `Msgpack` by itself is the codec for bodies of up to 16 MiB:
///
/// ```
/// use millstream_message::codec::{Codec, Msgpack};
///
/// let message = Msgpack.encode(&("a".to_owned(), 1))?;
/// assert_eq!(message.body(), &[0x92, 0xa1, b'a', 1][..]);
/// # Ok::<(), millstream_message::codec::CodecError>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Msgpack {
    max: usize,
}

/// MessagePack for bodies of up to 16 MiB.
#[expect(non_upper_case_globals, reason = "it is the codec with its defaults, and reads like one")]
pub const Msgpack: Msgpack = Msgpack { max: BODY_MAX };

impl Msgpack {
    /// Limits bodies, written and read, to this many bytes.
    #[must_use]
    pub const fn max_bytes(mut self, bytes: usize) -> Msgpack {
        self.max = bytes;
        self
    }
}

impl Default for Msgpack {
    fn default() -> Msgpack {
        Msgpack
    }
}

pub(super) const CONTENT_TYPE: &str = "application/msgpack";

pub(super) fn reads(media: &str) -> bool {
    [CONTENT_TYPE, "application/x-msgpack", "application/vnd.msgpack"]
        .iter()
        .any(|known| media.eq_ignore_ascii_case(known))
}

impl<T: Serialize + DeserializeOwned> Codec<T> for Msgpack {
    fn content_type(&self) -> &'static str {
        CONTENT_TYPE
    }

    fn encode(&self, value: &T) -> Result<Message, CodecError> {
        let body = rmp_serde::to_vec_named(value).map_err(|source| invalid::<T>("MessagePack", source))?;
        declared(body, CONTENT_TYPE, self.max)
    }

    fn decode(&self, message: &Message) -> Result<T, CodecError> {
        let body = body(message, CONTENT_TYPE, reads, self.max)?;
        read(body).map_err(|source| invalid::<T>("MessagePack", source))
    }
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Box<dyn std::error::Error + Send + Sync>> {
    let mut from = Deserializer::from_read_ref(body);
    // Its own bound on depth leaves out enums.
    let value = bound::read(&mut from, body.len())?;
    // The deserializer does not tell what it has left, but a bool, which is one byte, must find that nothing is.
    match bool::deserialize(&mut from) {
        Err(Error::InvalidMarkerRead(_)) => Ok(value),
        _ => Err("something follows the value".into()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::codec::bound::samples::{Sample, Tree, deep, sample};
    use proptest::prelude::*;
    use serde::Deserialize;

    fn of(body: impl Into<bytes::Bytes>) -> Message {
        Message::new(body).with_content_type("application/msgpack")
    }

    fn read<T: Serialize + DeserializeOwned>(body: impl Into<bytes::Bytes>) -> Result<T, CodecError> {
        Msgpack.decode(&of(body))
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Site {
        compact: bool,
        schema: u32,
    }

    #[test]
    fn the_bytes_are_those_of_the_specification() {
        // The example on msgpack.org, which any implementation writes: {"compact":true,"schema":0}.
        let bytes = b"\x82\xa7compact\xc3\xa6schema\x00";
        let site = Site { compact: true, schema: 0 };
        let message = Msgpack.encode(&site).expect("a struct");
        assert_eq!(
            (message.body(), message.content_type()),
            (&bytes[..].into(), Some("application/msgpack"))
        );
        assert_eq!(read::<Site>(&bytes[..]).expect("a struct"), site);
        // Another order, another width of the number (uint 16), and a field that is not known.
        let other = b"\x83\xa6schema\xcd\x01\x00\xa1x\x92\xc0\xcb\x3f\xf0\0\0\0\0\0\0\xa7compact\xc2";
        assert_eq!(read::<Site>(&other[..]).expect("a struct"), Site { compact: false, schema: 256 });
        // str 8, array 16, bin 8, map 16, int 8, float 32, nil and ext are known, too.
        assert_eq!(read::<String>(&b"\xd9\x02hi"[..]).expect("str 8"), "hi");
        assert_eq!(read::<Vec<i8>>(&b"\xdc\0\x02\xd0\x80\xff"[..]).expect("array 16"), [-128, -1]);
        assert_eq!(read::<bytes::Bytes>(&b"\xc4\x02\0\xff"[..]).expect("bin 8"), &[0, 255][..]);
        let map = read::<BTreeMap<u8, Option<f32>>>(&b"\xde\0\x02\x01\xca\x3f\x80\0\0\x02\xc0"[..])
            .expect("map 16");
        assert_eq!(map, BTreeMap::from([(1, Some(1.0)), (2, None)]));
    }

    #[test]
    fn all_three_names_are_read_and_no_other() {
        for declared in ["application/msgpack", "application/x-msgpack", "application/vnd.msgpack; v=5"] {
            assert_eq!(
                Codec::<u8>::decode(&Msgpack, &of("\x05").with_content_type(declared)).expect(declared),
                5
            );
        }
        let json = of("5").with_content_type("application/json");
        let error = Codec::<u8>::decode(&Msgpack, &json).expect_err("JSON").to_string();
        assert!(error.contains("`application/json`") && error.contains("`application/msgpack`"), "{error}");
        assert!(Codec::<u8>::decode(&Msgpack, &of("\x05").with_content_encoding("gzip")).is_err());
    }

    #[test]
    fn input_is_bounded_in_depth() {
        assert_eq!(
            read::<Tree>(Msgpack.encode(&deep(127)).expect("a tree").into_body()).expect("127"),
            deep(127)
        );
        // Enums, which rmp-serde itself would follow to the end of the stack; lists; maps.
        let enums: &[u8] = b"\x81\xa4Node";
        for level in [enums, b"\x91", b"\x81\xa1a"] {
            let bomb = level.repeat(500_000);
            let error = if level == enums {
                read::<Tree>(bomb).expect_err("deep")
            } else {
                read::<serde_json::Value>(bomb).expect_err("deep")
            };
            let CodecError::Invalid { format: "MessagePack", source, .. } = error else { panic!("{error}") };
            assert_eq!(source.to_string(), "nested more than 128 deep");
        }
        assert!(
            read::<Site>([b"\x81\xa1x".to_vec(), vec![0x91; 500_000]].concat()).is_err(),
            "in an unknown field"
        );
    }

    #[test]
    fn input_is_bounded_in_length() {
        let written = of(vec![0x00; BODY_MAX + 1]);
        assert!(matches!(Codec::<u8>::decode(&Msgpack, &written), Err(CodecError::TooLarge { .. })));
        let small = Msgpack.max_bytes(3);
        assert!(small.encode(&"ab".to_owned()).is_ok());
        assert!(matches!(small.encode(&"abc".to_owned()), Err(CodecError::TooLarge { len: 4, max: 3 })));
        assert!(Codec::<String>::decode(&small, &of("\u{a3}abc")).is_err());
        // Lengths that are not there cost nothing.
        for huge in [&b"\xdd\xff\xff\xff\xff"[..], b"\xdb\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff"] {
            assert!(read::<serde_json::Value>(huge).is_err());
            assert!(read::<Vec<u64>>(huge).is_err());
        }
    }

    #[test]
    fn what_follows_the_value_is_an_error() {
        for behind in ["\x01", "\x00\x00", "\u{91}"] {
            let error = read::<u8>(format!("\x05{behind}")).expect_err("something follows");
            assert!(matches!(error, CodecError::Invalid { .. }), "{error}");
        }
        assert!(read::<Vec<u8>>(&b"\x91\x05\x91"[..]).is_err(), "the beginning of another list");
    }

    proptest! {
        #[test]
        fn any_value_comes_back(value in sample()) {
            let message = Msgpack.encode(&value).expect("a value");
            prop_assert_eq!(Codec::<Sample>::decode(&Msgpack, &message).expect("the same"), value);
        }

        #[test]
        fn decoding_any_bytes_never_panics(
            body in proptest::collection::vec(any::<u8>(), 0..200),
            value in sample(),
            hits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            let _ = read::<Sample>(body.clone());
            let _ = read::<serde_json::Value>(body);
            let mut damaged = Msgpack.encode(&value).expect("a value").into_body().to_vec();
            for (at, byte) in hits {
                let at = at.index(damaged.len());
                damaged[at] = byte;
            }
            let _ = read::<Sample>(damaged.clone());
            let _ = read::<serde_json::Value>(damaged);
        }
    }
}
