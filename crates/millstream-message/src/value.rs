//! Typed header values.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Headers of a message, ordered by name so that two equal maps encode to equal bytes.
pub type Headers = BTreeMap<String, Value>;

/// One header value. The set is what AMQP's field tables and JSON have in common, so that a message keeps its
/// headers across every backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    /// No value.
    Null,
    /// True or false.
    Bool(bool),
    /// A signed 64-bit integer.
    Int(i64),
    /// A 64-bit float.
    Float(f64),
    /// Text.
    Text(String),
    /// Values in order.
    List(Vec<Value>),
    /// Values by name.
    Map(Headers),
    /// Raw bytes. In JSON they look like a list of numbers.
    Bytes(Bytes),
}

impl Value {
    /// The text, when this is [`Value::Text`].
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The number, when this is [`Value::Int`].
    pub fn as_int(&self) -> Option<i64> {
        match self {
            Value::Int(number) => Some(*number),
            _ => None,
        }
    }

    /// The members, when this is [`Value::List`].
    pub fn as_list(&self) -> Option<&[Value]> {
        match self {
            Value::List(list) => Some(list),
            _ => None,
        }
    }

    /// The members, when this is [`Value::Map`].
    pub fn as_map(&self) -> Option<&Headers> {
        match self {
            Value::Map(map) => Some(map),
            _ => None,
        }
    }

    /// About how many bytes this value keeps in memory, for budgets and limits.
    pub fn size(&self) -> usize {
        match self {
            Value::Null | Value::Bool(_) | Value::Int(_) | Value::Float(_) => 8,
            Value::Text(text) => text.len() + 8,
            Value::Bytes(bytes) => bytes.len() + 8,
            Value::List(list) => 8 + list.iter().map(Value::size).sum::<usize>(),
            Value::Map(map) => {
                8 + map.iter().map(|(name, value)| name.len() + 8 + value.size()).sum::<usize>()
            }
        }
    }
}

/// What an allocator adds to a block, about.
pub(crate) const BLOCK: usize = 16;

/// Entries of a node of a `BTreeMap`, for which each node has room.
const NODE: usize = 11;

/// About how many bytes of memory the entries of a map keep.
pub(crate) fn footprint(map: &Headers) -> usize {
    if map.is_empty() {
        return 0;
    }
    // Nodes are on average a little more than half full.
    let nodes = if map.len() <= NODE { 1 } else { map.len().div_ceil(NODE / 2) };
    let entries = map.iter().map(|(name, value)| name.capacity() + BLOCK + value.kept()).sum::<usize>();
    nodes * (NODE * size_of::<(String, Value)>() + 2 * BLOCK) + entries
}

impl Value {
    /// Memory that belongs to the value besides itself.
    fn kept(&self) -> usize {
        match self {
            Value::Null | Value::Bool(_) | Value::Int(_) | Value::Float(_) => 0,
            Value::Text(text) => text.capacity() + BLOCK,
            Value::Bytes(bytes) => bytes.len() + 3 * BLOCK,
            Value::List(list) => {
                list.capacity() * size_of::<Value>() + BLOCK + list.iter().map(Value::kept).sum::<usize>()
            }
            Value::Map(map) => footprint(map),
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Value {
        Value::Text(text)
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Value {
        Value::Int(number)
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Value {
        Value::Int(number.into())
    }
}

impl From<f64> for Value {
    fn from(number: f64) -> Value {
        Value::Float(number)
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Value {
        Value::Bool(flag)
    }
}

impl From<Bytes> for Value {
    fn from(bytes: Bytes) -> Value {
        Value::Bytes(bytes)
    }
}

impl From<Vec<Value>> for Value {
    fn from(list: Vec<Value>) -> Value {
        Value::List(list)
    }
}

impl From<Headers> for Value {
    fn from(map: Headers) -> Value {
        Value::Map(map)
    }
}
