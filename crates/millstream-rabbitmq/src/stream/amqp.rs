//! Messages as AMQP 1.0 encodes them, which is how clients of streams write theirs.
//!
//! | ours | AMQP 1.0 |
//! |---|---|
//! | body | one `data` section |
//! | content type and encoding, message and correlation id, reply-to, timestamp | `properties` |
//! | persistent, priority, TTL | `header` |
//! | headers of simple types | `application-properties` |
//! | headers that are lists or maps, delay, a TTL beyond 49 days | `message-annotations`, named `x-opt-millstream-…` |
//!
//! What others wrote is read as far as it has a place here: several `data` sections are one body, a text or bytes as
//! `amqp-value` are the body, annotations are headers.

mod decode;
mod encode;
mod input;
#[cfg(test)]
pub(crate) mod tests;

pub(crate) use self::decode::decode;
pub(crate) use self::encode::{encode, size_hint};

/// What is wrong with bytes that should have been a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AmqpError {
    #[error("a value goes beyond its message")]
    Short,
    #[error("{0:#04x} is no type of a value")]
    Type(u8),
    #[error("{0:#x} is no section of a message")]
    Section(u64),
    #[error("an `amqp-sequence` has no place in a body of bytes")]
    Sequence,
    #[error("an `amqp-value` that is neither text nor bytes has no place in a body of bytes")]
    NotBytes,
    #[error("a section that is a list has something else")]
    NotList,
    #[error("a text is not UTF-8")]
    Utf8,
    #[error("values are nested more than {DEPTH_MAX} deep")]
    Depth,
    #[error("a count of {0} values does not fit into its message")]
    Count(u32),
}

const DEPTH_MAX: u32 = 32;

const HEADER: u64 = 0x70;
const DELIVERY_ANNOTATIONS: u64 = 0x71;
const MESSAGE_ANNOTATIONS: u64 = 0x72;
const PROPERTIES: u64 = 0x73;
const APPLICATION_PROPERTIES: u64 = 0x74;
const DATA: u64 = 0x75;
const SEQUENCE: u64 = 0x76;
const VALUE: u64 = 0x77;
const FOOTER: u64 = 0x78;

/// Before a header that is a list or a map.
const ANNOTATION_HEADER: &str = "x-opt-millstream-header-";
const ANNOTATION_DELAY: &str = "x-opt-millstream-delay";
const ANNOTATION_TTL: &str = "x-opt-millstream-ttl";
/// Marks the first message of an append, whose offset is then looked for. Never shown.
const ANNOTATION_MARK: &str = "x-opt-millstream-append";

/// Names one append, so that it is known again when it is read back.
pub(crate) type Mark = [u8; 16];
