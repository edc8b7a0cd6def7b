//! Old forms of events as new ones.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use millstream_flow::BoxError;
use millstream_message::{Codec, CodecError, Json};
use serde_json::Value;

use crate::event::{Event, EventData};

type Change = dyn Fn(Value) -> Result<Value, BoxError> + Send + Sync;

/// How events that were stored under older names become those of today. What is stored stays as it is.
///
/// ```
/// use millstream_events::{Event, EventData, Upcasters};
/// use millstream_message::{Json, Message};
/// use serde::{Deserialize, Serialize};
/// use serde_json::json;
///
/// #[derive(Debug, PartialEq, Serialize, Deserialize)]
/// struct Placed { pieces: u32, gift: bool }
/// impl EventData for Placed {
///     const TYPES: &'static [&'static str] = &["placed.v3"];
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let upcasters = Upcasters::new()
///     .add("placed", "placed.v2", |old| Ok(json!({ "pieces": old["count"] })))
///     .add("placed.v2", "placed.v3", |mut old| {
///         old["gift"] = false.into();
///         Ok(old)
///     });
/// let old = Event::encoded("placed", &json!({ "count": 3 }), &Json)?;
/// assert_eq!(upcasters.decode::<Placed>(&old)?, Placed { pieces: 3, gift: false });
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
pub struct Upcasters(BTreeMap<String, (String, Arc<Change>)>);

impl fmt::Debug for Upcasters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.0.iter().map(|(from, (to, _))| (from, to))).finish()
    }
}

/// Why the value of an event cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// It is of another type.
    #[error("it is of type `{there}`, and {} is wanted", Types(wanted))]
    Type {
        /// The type that it has, once it is of today's form.
        there: String,
        /// Those that are wanted.
        wanted: &'static [&'static str],
    },
    /// Its body is not what its type says.
    #[error("its body is not that of `{event_type}`")]
    Body {
        /// The type.
        event_type: String,
        /// Why.
        #[source]
        error: CodecError,
    },
    /// An old form cannot become the next one.
    #[error("`{from}` does not become `{to}`")]
    Upcast {
        /// The old name.
        from: String,
        /// The new one.
        to: String,
        /// Why.
        #[source]
        error: BoxError,
    },
}

struct Types<'a>(&'a [&'a str]);

impl fmt::Display for Types<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, name) in self.0.iter().enumerate() {
            write!(f, "{}`{name}`", if index == 0 { "" } else { " or " })?;
        }
        Ok(())
    }
}

impl Upcasters {
    /// None: every name is of today.
    pub fn new() -> Upcasters {
        Upcasters::default()
    }

    /// Events of the type `from` become such of the type `to` by `change`, which gets and gives the value as JSON. They go on from there,
    /// until no further one is found.
    ///
    /// # Panics
    /// If `from` was added before, or leads back to itself: reading it would never end.
    #[must_use]
    pub fn add(
        mut self,
        from: impl Into<String>,
        to: impl Into<String>,
        change: impl Fn(Value) -> Result<Value, BoxError> + Send + Sync + 'static,
    ) -> Upcasters {
        let (from, to) = (from.into(), to.into());
        assert!(!self.0.contains_key(&from), "`{from}` has two ways to become something else");
        self.0.insert(from.clone(), (to, Arc::new(change)));
        let mut at = &from;
        while let Some((next, _)) = self.0.get(at) {
            assert!(*next != from, "`{from}` becomes itself again");
            at = next;
        }
        self
    }

    /// The names of today, and the older ones that become one of them.
    pub(crate) fn names(&self, today: &[&str]) -> Vec<String> {
        let becomes = |from: &String| {
            let mut name = from;
            while let Some((to, _)) = self.0.get(name) {
                name = to;
            }
            today.contains(&name.as_str())
        };
        let older = self.0.keys().filter(|from| becomes(from)).cloned();
        today.iter().map(|name| (*name).to_owned()).chain(older).collect()
    }

    /// The value of an event, in today's form.
    ///
    /// # Errors
    /// If it is of another type, or cannot be read.
    pub fn decode<E: EventData>(&self, event: &Event) -> Result<E, DecodeError> {
        let (mut name, mut data) = (&event.event_type, None);
        let body = |name: &String, error| DecodeError::Body { event_type: name.clone(), error };
        while let Some((to, change)) = self.0.get(name) {
            let value = match data.take() {
                Some(value) => value,
                None => Json.decode(&event.data).map_err(|error| body(name, error))?,
            };
            let changed = change(value);
            data = Some(changed.map_err(|error| DecodeError::Upcast {
                from: name.clone(),
                to: to.clone(),
                error,
            })?);
            name = to;
        }
        if !E::TYPES.contains(&name.as_str()) {
            return Err(DecodeError::Type { there: name.clone(), wanted: E::TYPES });
        }
        let decoded = match data {
            None => Json.decode(&event.data),
            Some(value) => Json.encode(&value).and_then(|message| Json.decode(&message)),
        };
        decoded.map_err(|error| body(name, error))
    }
}

#[cfg(test)]
mod tests {
    use millstream_message::Message;
    use serde::{Deserialize, Serialize};

    use super::*;

    #[derive(Debug, Serialize, Deserialize)]
    struct Two {
        b: u32,
    }

    impl EventData for Two {
        const TYPES: &'static [&'static str] = &["two", "zwei"];
    }

    #[test]
    fn what_cannot_be_read_is_told_with_both_names() {
        let upcasters =
            Upcasters::new()
                .add("one", "two", |_| Err("there is no a".into()))
                .add("none", "two", |_| Ok(Value::Null));
        let read = |event_type: &str| {
            let event = Event::encoded(event_type, &serde_json::json!({ "b": 7 }), &Json).expect("JSON");
            upcasters.decode::<Two>(&event).map(|two| two.b).map_err(|error| error.to_string())
        };
        assert_eq!(read("zwei"), Ok(7));
        assert_eq!(read("three"), Err("it is of type `three`, and `two` or `zwei` is wanted".to_owned()));
        assert_eq!(read("one"), Err("`one` does not become `two`".to_owned()));
        assert_eq!(read("none"), Err("its body is not that of `two`".to_owned()));
        let raw = Event::new("two", Message::new("7"));
        assert!(matches!(upcasters.decode::<Two>(&raw), Err(DecodeError::Body { .. })));
    }

    #[test]
    #[should_panic(expected = "`b` becomes itself again")]
    fn a_circle_is_refused_where_it_is_made() {
        let _ = Upcasters::new().add("a", "b", Ok).add("b", "a", Ok);
    }

    #[test]
    #[should_panic(expected = "`a` has two ways")]
    fn a_second_way_is_refused_where_it_is_made() {
        let _ = Upcasters::new().add("a", "b", Ok).add("a", "c", Ok);
    }
}
