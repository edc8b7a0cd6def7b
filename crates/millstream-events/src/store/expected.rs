//! What a writer takes for granted about a stream.

use std::fmt;

use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What must hold of a stream for an append to count: optimistic concurrency.
///
/// Versions count a stream's events from 0, and a stream's version is that of its last event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Nothing.
    Any,
    /// It has no events: it never had any, or was deleted.
    NoStream,
    /// It has events.
    Exists,
    /// Its last event has this version: nobody has appended since that was read.
    Version(u64),
}

impl Expected {
    /// What is expected by one who has read up to this version; of `None`, that there is nothing.
    pub fn after(version: Option<u64>) -> Expected {
        version.map_or(Expected::NoStream, Expected::Version)
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Expected::Any => f.write_str("any version"),
            Expected::NoStream => f.write_str("no stream"),
            Expected::Exists => f.write_str("a stream"),
            Expected::Version(version) => write!(f, "version {version}"),
        }
    }
}

impl Serialize for Expected {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Expected::Any => serializer.serialize_str("any"),
            Expected::NoStream => serializer.serialize_str("none"),
            Expected::Exists => serializer.serialize_str("some"),
            Expected::Version(version) => serializer.serialize_u64(*version),
        }
    }
}

impl<'de> Deserialize<'de> for Expected {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Form;
        impl Visitor<'_> for Form {
            type Value = Expected;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a version, `any`, `none` or `some`")
            }

            fn visit_u64<E: Error>(self, version: u64) -> Result<Expected, E> {
                Ok(Expected::Version(version))
            }

            fn visit_str<E: Error>(self, word: &str) -> Result<Expected, E> {
                match word {
                    "any" => Ok(Expected::Any),
                    "none" => Ok(Expected::NoStream),
                    "some" => Ok(Expected::Exists),
                    other => Err(E::invalid_value(Unexpected::Str(other), &self)),
                }
            }
        }
        deserializer.deserialize_any(Form)
    }
}
