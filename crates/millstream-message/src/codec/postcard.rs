//! Postcard.

use std::error::Error;

use postcard::Deserializer;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{BODY_MAX, Codec, CodecError, body, bound, declared, invalid};
use crate::message::Message;

/// Postcard by serde, `application/vnd.millstream.postcard`: small and quick, for programs that share the Rust type.
///
/// The bytes say nothing about themselves: only the type they were made of can read them, and a field more is another
/// schema, which [`Typed`](super::Typed) can name. `Postcard` by itself is the codec for bodies of up to 16 MiB,
/// nested up to 128 deep:
///
/// ```
/// use millstream_message::codec::{Codec, Postcard};
///
/// let message = Postcard.encode(&("a".to_owned(), 300_u32))?;
/// assert_eq!(message.body(), &[1, b'a', 0xac, 2][..]);
/// # Ok::<(), millstream_message::codec::CodecError>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Postcard {
    max: usize,
}

/// Postcard for bodies of up to 16 MiB.
#[expect(non_upper_case_globals, reason = "it is the codec with its defaults, and reads like one")]
pub const Postcard: Postcard = Postcard { max: BODY_MAX };

impl Postcard {
    /// Limits bodies, written and read, to this many bytes.
    #[must_use]
    pub const fn max_bytes(mut self, bytes: usize) -> Postcard {
        self.max = bytes;
        self
    }
}

impl Default for Postcard {
    fn default() -> Postcard {
        Postcard
    }
}

pub(super) const CONTENT_TYPE: &str = "application/vnd.millstream.postcard";

pub(super) fn reads(media: &str) -> bool {
    media.eq_ignore_ascii_case(CONTENT_TYPE)
}

impl<T: Serialize + DeserializeOwned> Codec<T> for Postcard {
    fn content_type(&self) -> &'static str {
        CONTENT_TYPE
    }

    fn encode(&self, value: &T) -> Result<Message, CodecError> {
        let body = postcard::to_stdvec(value).map_err(|source| invalid::<T>("Postcard", source))?;
        declared(body, CONTENT_TYPE, self.max)
    }

    fn decode(&self, message: &Message) -> Result<T, CodecError> {
        let body = body(message, CONTENT_TYPE, reads, self.max)?;
        read(body).map_err(|source| invalid::<T>("Postcard", source))
    }
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Box<dyn Error + Send + Sync>> {
    let mut from = Deserializer::from_bytes(body);
    let value = bound::read(&mut from, body.len())?;
    match from.finalize()?.len() {
        0 => Ok(value),
        left => Err(format!("{left} bytes follow the value").into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::bound::samples::{Sample, Tree, Unit, deep, sample};
    use proptest::prelude::*;
    use serde::Deserialize;

    fn of(body: impl Into<bytes::Bytes>) -> Message {
        Message::new(body).with_content_type("application/vnd.millstream.postcard")
    }

    fn read<T: Serialize + DeserializeOwned>(body: impl Into<bytes::Bytes>) -> Result<T, CodecError> {
        Postcard.decode(&of(body))
    }

    fn reason<T: Serialize + DeserializeOwned>(body: impl Into<bytes::Bytes>) -> String {
        match read::<T>(body) {
            Err(CodecError::Invalid { format: "Postcard", source, .. }) => source.to_string(),
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("it was read"),
        }
    }

    #[test]
    fn the_bytes_are_those_of_the_specification() {
        // postcard.jamesmunns.com/wire-format: a varint of 65535, zigzag of -1, a string, an option, an enum's number.
        let value = (65_535_u32, -1_i32, "hi".to_owned(), Some(true), Tree::Value(1));
        let bytes = [0xff, 0xff, 0x03, 0x01, 2, b'h', b'i', 1, 1, 1, 2];
        let message = Postcard.encode(&value).expect("a value");
        assert_eq!((&message.body()[..], message.content_type()), (&bytes[..], Some(CONTENT_TYPE)));
        assert_eq!(
            Codec::<(u32, i32, String, Option<bool>, Tree)>::decode(&Postcard, &message).expect("it"),
            value
        );
    }

    #[test]
    fn only_postcard_is_read() {
        let json = of("5").with_content_type("application/json");
        let error = Codec::<u8>::decode(&Postcard, &json).expect_err("JSON").to_string();
        assert!(error.contains("`application/json`") && error.contains(CONTENT_TYPE), "{error}");
        assert!(Codec::<u8>::decode(&Postcard, &of("\x05").with_content_encoding("lz4")).is_err());
    }

    #[test]
    fn all_bytes_are_wanted() {
        assert_eq!(read::<u8>("\x05").expect("one byte"), 5);
        assert_eq!(reason::<u8>("\x05\x06\x07"), "2 bytes follow the value");
        assert!(read::<(u8, u8)>("\x05").is_err());
    }

    #[test]
    fn input_is_bounded_in_depth() {
        assert_eq!(
            read::<Tree>(Postcard.encode(&deep(127)).expect("a tree").into_body()).expect("127"),
            deep(127)
        );
        // One byte a level: the second variant but one.
        assert_eq!(reason::<Tree>(vec![2; 500_000]), "nested more than 128 deep");

        /// Only newtypes and options, which take no byte or one.
        #[derive(Debug, Serialize, Deserialize)]
        struct Chain(Option<Box<Chain>>);
        assert_eq!(reason::<Chain>(vec![1; 500_000]), "nested more than 128 deep");
    }

    #[test]
    fn input_is_bounded_in_elements() {
        #[derive(Default, Serialize, Deserialize)]
        struct Nothing {
            #[serde(skip)]
            large: [u64; 8],
        }
        // Ten bytes that ask for 2^64 - 1 elements of no bytes.
        let many = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        let why = "more elements than the body has bytes";
        assert_eq!(reason::<Vec<()>>(many.to_vec()), why);
        assert_eq!(reason::<Vec<Nothing>>(many.to_vec()), why);
        assert_eq!(reason::<std::collections::BTreeMap<Nested, ()>>(many.to_vec()), why);
        assert_eq!(read::<Vec<Nothing>>("\x02").expect("two")[1].large, [0; 8]);
        assert_eq!(read::<Vec<Unit>>("\x05").expect("five").len(), 5, "a few are well");
        // The parts of a tuple are as many as the type has.
        let tuples = vec![((), (), (), 1_u8); 3000];
        let message = Postcard.encode(&tuples).expect("tuples");
        assert_eq!(Codec::<Vec<((), (), (), u8)>>::decode(&Postcard, &message).expect("tuples"), tuples);
        assert!(read::<Vec<u64>>(many.to_vec()).is_err());
        assert!(read::<String>(many.to_vec()).is_err());
    }

    #[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
    struct Nested(());

    /// Types that believe the hint reserve no more than the body can fill.
    #[test]
    fn a_hint_promises_no_more_than_the_body() {
        #[derive(Serialize)]
        struct Hint(usize);
        impl<'de> Deserialize<'de> for Hint {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Hint, D::Error> {
                struct See;
                impl<'de> serde::de::Visitor<'de> for See {
                    type Value = Hint;
                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str("a map")
                    }
                    fn visit_map<A: serde::de::MapAccess<'de>>(self, access: A) -> Result<Hint, A::Error> {
                        Ok(Hint(access.size_hint().unwrap_or(0)))
                    }
                }
                from.deserialize_map(See)
            }
        }
        assert_eq!(read::<Hint>(vec![0xff, 0xff, 0xff, 0xff, 0x0f]).map(|hint| hint.0).ok(), Some(1024));
    }

    #[test]
    fn input_is_bounded_in_length() {
        let long = of(vec![0; BODY_MAX + 1]);
        assert!(matches!(Codec::<u8>::decode(&Postcard, &long), Err(CodecError::TooLarge { .. })));
        let small = Postcard.max_bytes(3);
        assert!(small.encode(&"ab".to_owned()).is_ok());
        assert!(matches!(small.encode(&"abc".to_owned()), Err(CodecError::TooLarge { len: 4, max: 3 })));
        assert!(Codec::<String>::decode(&small, &of("\x03abc")).is_err());
    }

    proptest! {
        #[test]
        fn any_value_comes_back(value in sample()) {
            let message = Postcard.encode(&value).expect("a value");
            prop_assert_eq!(Codec::<Sample>::decode(&Postcard, &message).expect("the same"), value);
        }

        #[test]
        fn decoding_any_bytes_never_panics(
            body in proptest::collection::vec(any::<u8>(), 0..200),
            value in sample(),
            hits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            let _ = read::<Sample>(body.clone());
            let _ = read::<Vec<Tree>>(body);
            let mut damaged = Postcard.encode(&value).expect("a value").into_body().to_vec();
            for (at, byte) in hits {
                let at = at.index(damaged.len());
                damaged[at] = byte;
            }
            let _ = read::<Sample>(damaged);
        }
    }
}
