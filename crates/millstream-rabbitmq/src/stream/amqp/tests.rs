use std::time::Duration;

use bytes::{BufMut, Bytes};
use millstream_message::{Headers, Message, Properties, Value};

use super::super::chunk::time;
use super::encode::put_compound;
use super::input::Input;
use super::*;
use proptest::prelude::*;

use super::super::fuzz::cases;

/// Any header value, nested a little. No floats that are not equal to themselves.
fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(Value::Int),
        (-1e9..1e9).prop_map(Value::Float),
        ".{0,8}".prop_map(Value::Text),
        prop::collection::vec(any::<u8>(), 0..300).prop_map(|bytes| Value::Bytes(bytes.into())),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::List),
            prop::collection::btree_map(".{0,8}", inner, 0..4).prop_map(Value::Map),
        ]
    })
}

fn tables() -> impl Strategy<Value = Headers> {
    prop::collection::btree_map(".{0,12}", values(), 0..5)
}

fn read(bytes: &Bytes) -> Result<(Message, Option<Mark>), AmqpError> {
    decode(bytes, bytes)
}

pub(crate) fn encoded(message: &Message, mark: Option<&Mark>) -> Bytes {
    let mut out = Vec::new();
    encode(message, mark, &mut out);
    out.into()
}

pub(crate) fn properties() -> impl Strategy<Value = Properties> {
    let text = || prop::option::of(".{0,300}");
    let span = || prop::option::of((0..10_000_000_000_u64).prop_map(Duration::from_millis));
    let texts = (text(), text(), text(), text(), text());
    let times =
        (prop::option::of((-4_000_000_000_000..4_000_000_000_000_i64).prop_map(time)), span(), span());
    (tables(), texts, times, any::<u8>(), any::<bool>()).prop_map(
        |(headers, texts, times, priority, persistent)| {
            let (content_type, content_encoding, message_id, correlation_id, reply_to) = texts;
            let (timestamp, ttl, delay) = times;
            Properties {
                headers,
                content_type,
                content_encoding,
                message_id,
                correlation_id,
                reply_to,
                timestamp,
                ttl,
                delay,
                priority,
                persistent,
            }
        },
    )
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn every_message_comes_back(
        body in prop::collection::vec(any::<u8>(), 0..400),
        properties in prop::option::of(properties()),
        mark in prop::option::of(any::<Mark>()),
    ) {
        let message = match properties {
            Some(properties) => Message::from_parts(body.into(), properties),
            None => Message::new(body),
        };
        let bytes = encoded(&message, mark.as_ref());
        prop_assert_eq!(read(&bytes), Ok((message, mark)));
    }

    #[test]
    fn any_bytes_are_a_message_or_an_error(mut bytes in prop::collection::vec(any::<u8>(), 0..100), section in 0x70..0x79_u8) {
        let _ = read(&bytes.clone().into());
        bytes.splice(0..0, [0, 0x53, section]);
        let _ = read(&bytes.into());
    }

    #[test]
    fn any_change_of_a_message_is_a_message_or_an_error(
        properties in properties(), at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = encoded(&Message::from_parts(Bytes::from("body"), properties), None).to_vec();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let _ = read(&bytes.clone().into());
        bytes.truncate(cut.index(bytes.len()));
        let _ = read(&bytes.into());
    }
}

#[test]
fn a_body_alone_is_one_section_and_shares_its_bytes() {
    for len in [0_usize, 1, 255, 256, 70_000] {
        let message = Message::new(vec![7; len]);
        let bytes = encoded(&message, None);
        assert_eq!(bytes.len(), len + if len < 256 { 5 } else { 8 });
        assert!(bytes.len() <= size_hint(&message));
        let (read, _) = read(&bytes).expect("reads");
        assert_eq!(read, message);
        assert!(len == 0 || bytes.as_ptr_range().contains(&read.body().as_ptr()));
    }
}

#[test]
fn messages_of_others_are_read() {
    let read = |bytes: &'static [u8]| read(&Bytes::from_static(bytes)).map(|(message, _)| message);
    let two = read(b"\0\x53\x75\xa0\x02ab\0\x53\x75\xa0\x01c").expect("two sections");
    assert_eq!(two, Message::new("abc"));
    let long = read(b"\0\x80\0\0\0\0\0\0\0\x75\xa0\x01a").expect("a long descriptor");
    assert_eq!(long, Message::new("a"));
    assert_eq!(read(b"\0\x53\x77\xa1\x02hi").expect("text"), Message::new("hi"));
    assert_eq!(read(b"\0\x53\x77\x40").expect("null"), Message::new(""));
    assert_eq!(read(b"\0\x53\x77\x41"), Err(AmqpError::NotBytes));
    assert_eq!(read(b"\0\x53\x76\x45"), Err(AmqpError::Sequence));
    // A number as message id, a map with small sizes, an annotation of the broker's.
    let full = read(
        b"\0\x53\x72\xc1\x08\x02\xa3\x03x-k\x54\x09\0\x53\x73\xc0\x03\x01\x53\x2a\0\x53\x74\xc1\x05\x02\xa1\x01h\x41\0\x53\x75\xa0\x01b",
    )
    .expect("a full message");
    assert_eq!(full.properties().message_id.as_deref(), Some("42"));
    assert_eq!(full.header("h"), Some(&Value::Bool(true)));
    assert_eq!(full.header("x-k"), Some(&Value::Int(9)));
    assert!(full.properties().persistent);
    assert_eq!(full.body(), "b");
}

#[test]
fn every_type_of_a_value_is_read() {
    let uuid = b"\x98\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff";
    let values: &[(&[u8], Value)] = &[
        (b"\x40", Value::Null),
        (b"\x56\x01", Value::Bool(true)),
        (b"\x43", Value::Int(0)),
        (b"\x50\xff", Value::Int(255)),
        (b"\x51\xff", Value::Int(-1)),
        (b"\x60\x01\x00", Value::Int(256)),
        (b"\x61\xff\xff", Value::Int(-1)),
        (b"\x70\0\0\0\x05", Value::Int(5)),
        (b"\x71\xff\xff\xff\xff", Value::Int(-1)),
        (b"\x72\x3f\xc0\0\0", Value::Float(1.5)),
        (b"\x73\0\0\0A", "A".into()),
        (b"\x80\0\0\0\0\0\0\0\x05", Value::Int(5)),
        (b"\x83\0\0\0\0\0\0\0\x05", Value::Int(5)),
        (uuid, "00112233-4455-6677-8899-aabbccddeeff".into()),
        (b"\xa3\x01s", "s".into()),
        (b"\xb1\0\0\0\x01s", "s".into()),
        (b"\xc0\x03\x02\x41\x42", Value::List(vec![true.into(), false.into()])),
        (b"\xe0\x04\x02\x50\x01\x02", Value::List(vec![Value::Int(1), Value::Int(2)])),
        (b"\0\xa3\x01d\x41", true.into()),
    ];
    for (bytes, value) in values {
        let whole = Bytes::from_static(bytes);
        let mut input = Input { rest: bytes, whole: &whole };
        assert_eq!(input.value(4).as_ref(), Ok(value), "{bytes:02x?}");
        assert!(input.rest.is_empty(), "{bytes:02x?}");
    }
}

#[test]
fn values_within_values_end_somewhere() {
    let mut bytes = vec![0x40];
    for _ in 0..1000 {
        let mut outer = Vec::new();
        put_compound(&mut outer, 0xd0, 1, |out| out.put_slice(&bytes));
        bytes = outer;
    }
    bytes.splice(0..0, [0, 0x53, 0x78]);
    assert_eq!(read(&bytes.into()), Err(AmqpError::Depth));
    // An array of things that take no room claims no more than there are bytes.
    let many = b"\0\x53\x78\xf0\0\0\0\x05\xff\xff\xff\xff\x40";
    assert_eq!(read(&Bytes::from_static(many)), Err(AmqpError::Count(u32::MAX)));
}
