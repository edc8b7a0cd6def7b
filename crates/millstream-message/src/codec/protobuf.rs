//! Protocol Buffers.

use super::{BODY_MAX, Codec, CodecError, body, check_length, invalid, other_type, shown};
use crate::message::Message;

/// Protocol Buffers by prost, `application/x-protobuf`, for types that derive `prost::Message`. Reads also
/// `application/protobuf`, nested up to 100 deep.
///
/// The bytes do not say which message they are. Give the codec its [name](Protobuf::message) to declare and check it,
/// or wrap it in [`Typed`](super::Typed). `Protobuf` by itself is the codec for bodies of up to 16 MiB:
///
/// ```
/// use millstream_message::codec::{Codec, Protobuf};
///
/// // prost's form of `google.protobuf.StringValue`.
/// let codec = Protobuf.message("google.protobuf.StringValue");
/// let message = codec.encode(&"hi".to_owned())?;
/// assert_eq!(message.content_type(), Some("application/x-protobuf; messageType=google.protobuf.StringValue"));
/// assert_eq!(message.body(), &[0x0a, 2, b'h', b'i'][..]);
/// # Ok::<(), millstream_message::codec::CodecError>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Protobuf {
    max: usize,
    message: Option<&'static str>,
}

/// Protocol Buffers for bodies of up to 16 MiB, of whichever message.
#[expect(non_upper_case_globals, reason = "it is the codec with its defaults, and reads like one")]
pub const Protobuf: Protobuf = Protobuf { max: BODY_MAX, message: None };

impl Protobuf {
    /// Limits bodies, written and read, to this many bytes.
    #[must_use]
    pub const fn max_bytes(mut self, bytes: usize) -> Protobuf {
        self.max = bytes;
        self
    }

    /// Declares the message by this full name, as `shop.v1.Order`, in the content type's parameter `messageType`. A
    /// message that is declared by another name, there or in the parameter `proto`, is then refused; one that is
    /// declared by none is read.
    #[must_use]
    pub const fn message(mut self, name: &'static str) -> Protobuf {
        self.message = Some(name);
        self
    }

    fn check_name(&self, declared: &str) -> Result<(), CodecError> {
        let Some(wanted) = self.message else { return Ok(()) };
        let name = parameter(declared, "messageType").or_else(|| parameter(declared, "proto"));
        match name {
            Some(name) if name != wanted => {
                Err(CodecError::Schema { declared: shown(name), wanted: wanted.to_owned() })
            }
            _ => Ok(()),
        }
    }
}

impl Default for Protobuf {
    fn default() -> Protobuf {
        Protobuf
    }
}

const CONTENT_TYPE: &str = "application/x-protobuf";

fn reads(media: &str) -> bool {
    [CONTENT_TYPE, "application/protobuf"].iter().any(|known| media.eq_ignore_ascii_case(known))
}

/// A parameter of a media type, without the quotes that it may have.
fn parameter<'a>(declared: &'a str, name: &str) -> Option<&'a str> {
    declared.split(';').skip(1).find_map(|parameter| {
        let (key, value) = parameter.split_once('=')?;
        key.trim().eq_ignore_ascii_case(name).then(|| value.trim().trim_matches('"'))
    })
}

impl<T: prost::Message + Default> Codec<T> for Protobuf {
    fn content_type(&self) -> &'static str {
        CONTENT_TYPE
    }

    fn encode(&self, value: &T) -> Result<Message, CodecError> {
        check_length(value.encoded_len(), self.max)?;
        let message = Message::new(value.encode_to_vec());
        Ok(match self.message {
            None => message.with_content_type(CONTENT_TYPE),
            Some(name) => message.with_content_type(format!("{CONTENT_TYPE}; messageType={name}")),
        })
    }

    fn decode(&self, message: &Message) -> Result<T, CodecError> {
        let body = body(message, CONTENT_TYPE, reads, self.max)?;
        let declared = message.content_type().unwrap_or_default();
        // A row of messages with their lengths, which could be misread as one.
        if parameter(declared, "encoding").is_some_and(|how| how.eq_ignore_ascii_case("delimited")) {
            return Err(other_type(message, CONTENT_TYPE));
        }
        self.check_name(declared)?;
        T::decode(body.clone()).map_err(|source| invalid::<T>("Protobuf", source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, PartialEq, prost::Message)]
    struct Node {
        #[prost(string, tag = "1")]
        name: String,
        #[prost(sint64, repeated, tag = "2")]
        numbers: Vec<i64>,
        #[prost(message, repeated, tag = "3")]
        children: Vec<Node>,
    }

    fn read(message: &Message) -> Result<Node, CodecError> {
        Protobuf.decode(message)
    }

    fn of(declared: &str) -> Message {
        Message::new(vec![0x0a, 1, b'a']).with_content_type(declared)
    }

    #[test]
    fn the_bytes_are_those_of_the_specification() {
        // From the encoding guide of protobuf.dev: field 2 as a string, here as field 1, and zigzag of -2 and 150.
        let bytes = [&b"\x0a\x07testing"[..], &[0x12, 3, 3, 0xac, 2]].concat();
        let node = Node { name: "testing".into(), numbers: vec![-2, 150], children: vec![] };
        let message = Protobuf.encode(&node).expect("a message");
        assert_eq!(
            (message.body(), message.content_type()),
            (&bytes.clone().into(), Some("application/x-protobuf"))
        );
        assert_eq!(read(&message).expect("a message"), node);
        assert_eq!(Codec::<Node>::content_type(&Protobuf), "application/x-protobuf");
    }

    #[test]
    fn only_protobuf_is_read() {
        for declared in ["application/x-protobuf", "application/protobuf", "Application/Protobuf; v=1"] {
            assert_eq!(read(&of(declared)).expect(declared).name, "a");
        }
        for declared in ["application/json", "application/x-protobuf; encoding=delimited"] {
            let error = read(&of(declared)).expect_err(declared).to_string();
            assert!(error.contains(declared) && error.contains("`application/x-protobuf`"), "{error}");
        }
    }

    #[test]
    fn the_declared_message_is_compared() {
        let codec = Protobuf.message("shop.Order");
        let message = codec.encode(&Node::default()).expect("a message");
        assert_eq!(message.content_type(), Some("application/x-protobuf; messageType=shop.Order"));
        assert!(Codec::<Node>::decode(&codec, &message).is_ok());
        for same in ["application/protobuf", "application/protobuf; proto=\"shop.Order\""] {
            assert!(Codec::<Node>::decode(&codec, &of(same)).is_ok(), "{same}");
        }
        for other in
            ["messageType=shop.Invoice", " MessageType = \"shop.Invoice\" ", "a=b;proto=shop.Invoice"]
        {
            let message = of(&format!("application/x-protobuf;{other}"));
            let error = Codec::<Node>::decode(&codec, &message).expect_err(other);
            let CodecError::Schema { declared, wanted } = &error else { panic!("{error}") };
            assert_eq!((&**declared, &**wanted), ("shop.Invoice", "shop.Order"));
            assert!(read(&message).is_ok(), "a codec without a name compares none");
        }
    }

    #[test]
    fn input_is_bounded_in_length_and_depth() {
        let nested = |depth| {
            (0..depth).fold(Node::default(), |node, _| Node { children: vec![node], ..Node::default() })
        };
        assert_eq!(read(&Protobuf.encode(&nested(50)).expect("a message")).expect("50 deep"), nested(50));
        let error = read(&Protobuf.encode(&nested(200)).expect("a message")).expect_err("200 deep");
        assert_eq!(error.to_string(), format!("not valid Protobuf for `{}`", std::any::type_name::<Node>()));

        let long = Message::new(vec![0; BODY_MAX + 1]).with_content_type(CONTENT_TYPE);
        assert!(matches!(read(&long), Err(CodecError::TooLarge { .. })));
        let small = Protobuf.max_bytes(3);
        assert!(Codec::<Node>::decode(&small, &of(CONTENT_TYPE)).is_ok());
        assert!(Codec::<Node>::decode(&small.max_bytes(2), &of(CONTENT_TYPE)).is_err());
        let name = |name: &str| Node { name: name.into(), ..Node::default() };
        assert!(small.encode(&name("a")).is_ok());
        assert!(matches!(small.encode(&name("ab")), Err(CodecError::TooLarge { len: 4, max: 3 })));
    }

    #[test]
    fn a_compressed_or_truncated_body_is_an_error() {
        let zipped = of(CONTENT_TYPE).with_content_encoding("gzip");
        assert!(matches!(read(&zipped), Err(CodecError::ContentEncoding { .. })));
        assert!(matches!(
            read(&of(CONTENT_TYPE).with_body(vec![0x0a, 5, b'a'])),
            Err(CodecError::Invalid { .. })
        ));
    }

    fn node() -> impl Strategy<Value = Node> {
        let leaf = (any::<String>(), proptest::collection::vec(any::<i64>(), 0..5))
            .prop_map(|(name, numbers)| Node { name, numbers, children: Vec::new() });
        leaf.prop_recursive(5, 30, 4, |inner| {
            (any::<String>(), proptest::collection::vec(inner, 0..4)).prop_map(|(name, children)| Node {
                name,
                numbers: Vec::new(),
                children,
            })
        })
    }

    proptest! {
        #[test]
        fn any_value_comes_back(node in node()) {
            prop_assert_eq!(read(&Protobuf.encode(&node).expect("a message")).expect("the same"), node);
        }

        #[test]
        fn decoding_any_bytes_never_panics(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&Message::new(body).with_content_type(CONTENT_TYPE));
        }
    }
}
