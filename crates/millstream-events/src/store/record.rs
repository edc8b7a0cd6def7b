//! What stands in the log: one message a commit, a line of JSON with what is said and then the bodies, one after the other.
//!
//! The first line can be read by anyone (`docs/events.md` has its fields), the bodies are as their codecs wrote them. Everything that
//! belongs together is one message, so that a broker stores all of it or nothing.

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use millstream_message::Message;
use serde::{Deserialize, Serialize};

use super::expected::Expected;
use crate::event::Event;

/// The content type of what this store writes.
pub(crate) const CONTENT_TYPE: &str = "application/vnd.millstream.commit";

/// The version of the form. A newer one is not read.
const FORM: u8 = 1;

/// One entry of the log, without the bodies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Head<'a> {
    /// The version of the form.
    pub(crate) v: u8,
    #[serde(borrow)]
    pub(crate) stream: Cow<'a, str>,
    /// The name of the commit.
    #[serde(borrow)]
    pub(crate) commit: Cow<'a, str>,
    #[serde(borrow, rename = "do")]
    pub(crate) change: Change<'a>,
}

/// What an entry does to its stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Change<'a> {
    Append {
        expect: Expected,
        #[serde(borrow)]
        events: Vec<EventHead<'a>>,
    },
    /// Events before this version are no longer read.
    Truncate {
        before: u64,
    },
    Delete {
        expect: Expected,
        forever: bool,
    },
    /// The state after all events before `next`.
    Snapshot {
        next: u64,
        #[serde(borrow)]
        state: BodyHead<'a>,
    },
}

/// What is said about a body that follows.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct BodyHead<'a> {
    pub(crate) len: usize,
    #[serde(borrow, default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub(crate) content_type: Option<Cow<'a, str>>,
    #[serde(borrow, default, rename = "encoding", skip_serializing_if = "Option::is_none")]
    pub(crate) content_encoding: Option<Cow<'a, str>>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct EventHead<'a> {
    #[serde(borrow)]
    pub(crate) id: Cow<'a, str>,
    #[serde(borrow)]
    pub(crate) event: Cow<'a, str>,
    #[serde(borrow)]
    pub(crate) data: BodyHead<'a>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub(crate) correlation: Option<Cow<'a, str>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub(crate) causation: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) meta: BTreeMap<String, String>,
}

impl<'a> BodyHead<'a> {
    pub(crate) fn of(message: &'a Message) -> BodyHead<'a> {
        let properties = message.properties();
        let text = |field: &'a Option<String>| field.as_deref().map(Cow::Borrowed);
        BodyHead {
            len: message.body().len(),
            content_type: text(&properties.content_type),
            content_encoding: text(&properties.content_encoding),
        }
    }

    fn message(&self, body: Bytes) -> Message {
        let mut message = Message::new(body);
        if self.content_type.is_some() || self.content_encoding.is_some() {
            let text = |field: &Option<Cow<'_, str>>| field.as_deref().map(str::to_owned);
            let properties = message.properties_mut();
            properties.content_type = text(&self.content_type);
            properties.content_encoding = text(&self.content_encoding);
        }
        message
    }
}

impl<'a> EventHead<'a> {
    pub(crate) fn of(event: &'a Event) -> EventHead<'a> {
        EventHead {
            id: Cow::Borrowed(&event.id),
            event: Cow::Borrowed(&event.event_type),
            data: BodyHead::of(&event.data),
            correlation: event.correlation_id.as_deref().map(Cow::Borrowed),
            causation: event.causation_id.as_deref().map(Cow::Borrowed),
            meta: event.metadata.clone(),
        }
    }

    fn event(self, body: Bytes) -> Event {
        let data = self.data.message(body);
        Event {
            id: self.id.into_owned(),
            event_type: self.event.into_owned(),
            data,
            correlation_id: self.correlation.map(Cow::into_owned),
            causation_id: self.causation.map(Cow::into_owned),
            metadata: self.meta,
        }
    }
}

/// Why an entry of the log cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("it has no line that says what it is")]
    NoHead,
    #[error("its first line is not what this store writes")]
    Head(#[from] serde_json::Error),
    #[error("it is written in form {0}, and this program reads {FORM}: use a newer one")]
    Form(u8),
    #[error("its bodies are {there} bytes, and it says {said}")]
    Bodies { there: usize, said: usize },
}

/// An entry as a message. `bodies` are those that its head names, in that order; `attempt` names the message, since a commit may be
/// written more than once.
pub(crate) fn write<'b>(
    stream: &str,
    commit: &str,
    attempt: &str,
    change: Change<'_>,
    bodies: impl Iterator<Item = &'b Bytes> + Clone,
) -> Message {
    let head = Head { v: FORM, stream: Cow::Borrowed(stream), commit: Cow::Borrowed(commit), change };
    let head = serde_json::to_vec(&head).expect("texts and numbers can be written as JSON");
    let len = head.len() + 1 + bodies.clone().map(Bytes::len).sum::<usize>();
    let mut body = BytesMut::with_capacity(len);
    body.extend_from_slice(&head);
    body.extend_from_slice(b"\n");
    bodies.for_each(|part| body.extend_from_slice(part));
    Message::new(body.freeze()).with_content_type(CONTENT_TYPE).with_message_id(attempt)
}

/// Whether this store wrote it. Anybody can append to a stream; what is not ours is passed over.
pub(crate) fn is_ours(message: &Message) -> bool {
    message.content_type() == Some(CONTENT_TYPE)
}

/// What an entry says, without its bodies.
pub(crate) fn head(message: &Message) -> Result<Head<'_>, RecordError> {
    Ok(split(message)?.0)
}

/// What an entry says, and where its bodies begin.
pub(crate) fn split(message: &Message) -> Result<(Head<'_>, usize), RecordError> {
    let body: &[u8] = message.body();
    let end = body.iter().position(|byte| *byte == b'\n').ok_or(RecordError::NoHead)?;
    // Of a newer form nothing but its number can be relied upon.
    #[derive(Deserialize)]
    struct Form {
        v: u8,
    }
    let head: Head<'_> = match serde_json::from_slice(&body[..end]) {
        Ok(head) => head,
        Err(error) => match serde_json::from_slice(&body[..end]) {
            Ok(Form { v }) if v != FORM => return Err(RecordError::Form(v)),
            _ => return Err(error.into()),
        },
    };
    if head.v != FORM {
        return Err(RecordError::Form(head.v));
    }
    let there = body.len() - end - 1;
    let said = match &head.change {
        Change::Append { events, .. } => {
            events.iter().fold(0_usize, |sum, event| sum.saturating_add(event.data.len))
        }
        Change::Snapshot { state, .. } => state.len,
        Change::Truncate { .. } | Change::Delete { .. } => 0,
    };
    if there != said {
        return Err(RecordError::Bodies { there, said });
    }
    Ok((head, end + 1))
}

/// The events of an append. They share the memory of the message. Empty of what is none.
pub(crate) fn events(message: &Message) -> Result<Vec<Event>, RecordError> {
    let (head, at) = split(message)?;
    Ok(bodied(message, head, at).collect())
}

/// The events of an append whose bodies begin there.
pub(crate) fn bodied<'a>(
    message: &'a Message,
    head: Head<'a>,
    mut at: usize,
) -> impl Iterator<Item = Event> + 'a {
    let events = if let Change::Append { events, .. } = head.change { events } else { Vec::new() };
    events.into_iter().map(move |head| {
        let body = message.body().slice(at..at + head.data.len);
        at += body.len();
        head.event(body)
    })
}

/// The state of a snapshot, and the version of the event that follows it.
pub(crate) fn snapshot(message: &Message) -> Result<Option<(u64, Message)>, RecordError> {
    let (head, at) = split(message)?;
    let Change::Snapshot { next, state } = head.change else { return Ok(None) };
    Ok(Some((next, state.message(message.body().slice(at..)))))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event() -> impl Strategy<Value = Event> {
        let text = || proptest::option::of(".{0,20}");
        let said = (text(), text(), text(), text());
        let meta = proptest::collection::btree_map(".{0,8}", ".{0,8}", 0..3);
        let body = proptest::collection::vec(any::<u8>(), 0..60);
        (".{0,12}", ".{0,12}", body, said, meta).prop_map(|(id, event_type, body, said, metadata)| {
            let (content_type, encoding, correlation_id, causation_id) = said;
            let mut data = Message::new(body);
            if content_type.is_some() || encoding.is_some() {
                data.properties_mut().content_type = content_type;
                data.properties_mut().content_encoding = encoding;
            }
            Event { id, event_type, data, correlation_id, causation_id, metadata }
        })
    }

    fn appended(events: &[Event]) -> Message {
        let heads = events.iter().map(EventHead::of).collect();
        let change = Change::Append { expect: Expected::Version(3), events: heads };
        write("order-7", "c", "1", change, events.iter().map(|event| event.data.body()))
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(written in proptest::collection::vec(event(), 1..5)) {
            let message = appended(&written);
            prop_assert!(is_ours(&message));
            prop_assert_eq!(&head(&message).expect("a head").stream, "order-7");
            prop_assert_eq!(events(&message).expect("events"), written);
        }

        /// Bytes that somebody changed or cut are an error or something else that is whole; never a panic.
        #[test]
        fn damaged_entries_are_no_panic(
            written in proptest::collection::vec(event(), 1..3),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
            cut in any::<bool>(),
        ) {
            let message = appended(&written);
            let mut body = message.body().to_vec();
            let at = at.index(body.len());
            if cut { body.truncate(at) } else { body[at] = byte }
            let damaged = message.with_body(body);
            let _ = (head(&damaged), events(&damaged), snapshot(&damaged));
            if cut {
                prop_assert!(events(&damaged).is_err());
            }
        }

        #[test]
        fn foreign_bytes_are_no_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let message = Message::new(body).with_content_type(CONTENT_TYPE);
            let _ = (head(&message), events(&message), snapshot(&message));
        }
    }

    #[test]
    fn the_form_is_what_the_documentation_shows() {
        let event = Event::new("order-placed", Message::new("{}").with_content_type("application/json"))
            .with_id("e1")
            .with_correlation_id("r9");
        let message = appended(&[event]);
        let expected = concat!(
            r#"{"v":1,"stream":"order-7","commit":"c","do":{"append":{"expect":3,"events":"#,
            r#"[{"id":"e1","event":"order-placed","data":{"len":2,"type":"application/json"},"correlation":"r9"}]}}}"#,
            "\n{}"
        );
        assert_eq!(message.body(), expected.as_bytes());
    }

    #[test]
    fn a_newer_form_is_told_from_damage() {
        let message = Message::new("{\"v\":2,\"something\":\"else\"}\n").with_content_type(CONTENT_TYPE);
        assert!(matches!(head(&message), Err(RecordError::Form(2))));
        let message = Message::new("{\"v\":1,\"something\":\"else\"}\n");
        assert!(matches!(head(&message), Err(RecordError::Head(_))));
    }

    #[test]
    fn lengths_that_do_not_fit_are_refused() {
        let event = Event::new("e", Message::new("12"));
        let message = appended(&[event]);
        let body = [message.body(), &b"3"[..]].concat();
        let error = events(&message.with_body(body)).expect_err("a byte too many");
        assert_eq!(error.to_string(), "its bodies are 3 bytes, and it says 2");
        let huge = format!(
            r#"{{"v":1,"stream":"s","commit":"c","do":{{"snapshot":{{"next":1,"state":{{"len":{}}}}}}}}}"#,
            u64::MAX
        ) + "\n";
        assert!(matches!(snapshot(&Message::new(huge)), Err(RecordError::Bodies { there: 0, .. })));
    }
}
