//! Items on their way: as the source hands them over, and as the steps see them.

use crate::batch::trace_weight;
use crate::codec::{Decoder, Fault, Frame};
use crate::trouble::Trouble;
use crate::value::{self, Value};
use bytes::Bytes;
use millstream_flow::{Clock, Failed};
use millstream_message::codec::{is_json, is_plain};
use millstream_message::{Message, TraceContext};
use std::fmt;
use std::sync::Arc;

/// The header of a message whose body could not be read as an item, when the source stored it: why.
pub(crate) const FAULT: &str = "millstream-fault";

/// Bytes of a body that could not be read that are kept to show.
const SHOWN: usize = 4096;

/// An item as a source hands it over, not read yet, so that reading it can happen on several cores.
#[derive(Debug, Clone)]
pub(crate) enum Raw {
    /// A line or row, and what makes an item of it.
    Frame { frame: Frame, decoder: Arc<Decoder>, file: Arc<str> },
    /// A message of a queue.
    Message(Message),
    /// A value that is there already, and the trace of the request it came in.
    Value(Value, Option<Arc<TraceContext>>),
    /// Made up by a program that failed, or refused by the source otherwise.
    Fault { reason: String },
}

/// An item as the steps see it.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) value: Value,
    pub(crate) place: Place,
    /// The output it is routed to.
    pub(crate) output: usize,
    /// Bytes of its message, which count against the prefetch until it is settled.
    pub(crate) size: usize,
}

/// Where an item came from.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    /// Nowhere that has a name; perhaps in a request that belongs to a trace.
    Nowhere(Option<Arc<TraceContext>>),
    Line {
        file: Arc<str>,
        line: u64,
    },
    /// The message's id says it.
    Message(Message),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Nowhere(_) => Ok(()),
            Place::Line { file, line } => write!(f, "{file}:{line}"),
            Place::Message(message) => f.write_str(message.properties().message_id.as_deref().unwrap_or("")),
        }
    }
}

/// What is kept of an item that failed.
#[derive(Debug)]
pub(crate) struct Letter {
    pub(crate) body: Bytes,
    pub(crate) content_type: &'static str,
    pub(crate) place: String,
    pub(crate) trace: Option<Arc<TraceContext>>,
}

/// An error of one item.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub(crate) struct ItemError(pub(crate) String);

/// A failed item, ready for the policy that says what becomes of it.
pub(crate) type Failure = Failed<Box<Letter>>;

/// What the steps of a run share to make failures.
#[derive(Debug)]
pub(crate) struct Reporter {
    pub(crate) clock: Clock,
    pub(crate) trouble: Arc<Trouble>,
    /// Whether an error's text ends with the item's place: where the error ends the run, but not in a dead
    /// letter, which has the place of its own and is grouped by reason.
    pub(crate) show_place: bool,
}

impl Reporter {
    pub(crate) fn failure(&self, letter: Letter, reason: String, stage: &Arc<str>) -> Failure {
        self.trouble.note(stage, &reason, &letter.place);
        let reason = if self.show_place && !letter.place.is_empty() {
            format!("{reason} ({})", letter.place)
        } else {
            reason
        };
        Failed::new(Box::new(letter), ItemError(reason), stage.clone(), self.clock.now())
    }
}

impl Raw {
    /// Reads the item.
    pub(crate) fn read(self, stage: &Arc<str>, reporter: &Reporter) -> Result<Record, Failure> {
        match self {
            Raw::Value(value, trace) => {
                Ok(Record { value, place: Place::Nowhere(trace), output: 0, size: 0 })
            }
            Raw::Frame { frame, decoder, file } => {
                let line = frame.line();
                match decoder.value(frame) {
                    Ok(value) => Ok(Record { value, place: Place::Line { file, line }, output: 0, size: 0 }),
                    Err((fault, bytes)) => {
                        Err(reporter.failure(letter(bytes, &file, line, &fault), fault.to_string(), stage))
                    }
                }
            }
            Raw::Message(message) => read_message(message, stage, reporter),
            Raw::Fault { reason } => {
                let (body, place) = (Bytes::new(), String::new());
                let letter = Letter { body, content_type: "text/plain", place, trace: None };
                Err(reporter.failure(letter, reason, stage))
            }
        }
    }

    /// The item at once, for a source that refuses what cannot be read instead of handing it on.
    #[cfg(feature = "http")]
    pub(crate) fn parsed(self) -> Result<Value, String> {
        match self {
            Raw::Value(value, _) => Ok(value),
            Raw::Frame { frame, decoder, .. } => {
                let line = frame.line();
                decoder
                    .value(frame)
                    .map_err(|(fault, _)| format!("line {line}, column {}: {fault}", fault.column()))
            }
            Raw::Message(_) | Raw::Fault { .. } => Err("not an item of a request".to_owned()),
        }
    }

    /// The item as a message of the buffer's queue. What cannot be read is stored with the reason, so that
    /// the error policy meets it behind the queue like every other failure.
    pub(crate) fn into_message(self) -> Message {
        match self {
            Raw::Frame { frame, decoder, file } => {
                let mut body = Vec::with_capacity(frame.length() * 3 / 2 + 64);
                match decoder.write_json(&frame, &mut body) {
                    Ok(()) => Message::new(body)
                        .with_content_type("application/json")
                        .with_message_id(format!("{file}:{}", frame.line())),
                    Err(fault) => {
                        let line = frame.line();
                        let letter = letter(frame.shown(SHOWN), &file, line, &fault);
                        Message::new(letter.body)
                            .with_content_type(letter.content_type)
                            .with_message_id(letter.place)
                            .with_header(FAULT, fault.to_string())
                    }
                }
            }
            Raw::Message(message) => message,
            Raw::Value(value, trace) => {
                let mut body = Vec::new();
                value::write_json(&mut body, &value);
                let message = Message::new(body).with_content_type("application/json");
                match trace {
                    Some(trace) => message.with_trace(&trace),
                    None => message,
                }
            }
            Raw::Fault { reason } => {
                Message::new("").with_content_type("text/plain").with_header(FAULT, reason)
            }
        }
    }

    /// About how many bytes it holds.
    pub(crate) fn footprint(&self) -> usize {
        match self {
            Raw::Frame { frame, .. } => 64 + frame.length(),
            Raw::Message(message) => message.footprint(),
            Raw::Value(value, trace) => value::footprint(value) + trace.as_deref().map_or(0, trace_weight),
            Raw::Fault { reason } => reason.len(),
        }
    }
}

/// A message that a broker does not take, as one that it does: its begin, and why.
pub(crate) fn refused(message: &Message, why: String) -> Message {
    let shown = message.body().slice(..message.body().len().min(SHOWN));
    // A copy: what is shown must not keep the rest.
    let mut short = Message::new(Bytes::copy_from_slice(&shown)).with_content_type("text/plain");
    if let Some(place) = &message.properties().message_id {
        short = short.with_message_id(place.clone());
    }
    short.with_header(FAULT, why).with_trace_of(message)
}

fn letter(bytes: Bytes, file: &str, line: u64, fault: &Fault) -> Letter {
    let place = format!("{file}:{line}:{}", fault.column());
    Letter { body: bytes, content_type: "text/plain", place, trace: None }
}

fn read_message(message: Message, stage: &Arc<str>, reporter: &Reporter) -> Result<Record, Failure> {
    let refuse = |message: &Message, reason: String| {
        let place = message.properties().message_id.clone().unwrap_or_default();
        let (body, trace) = (message.body().clone(), message.trace().map(Arc::new));
        let letter = Letter { body, content_type: "text/plain", place, trace };
        Err(reporter.failure(letter, reason, stage))
    };
    if let Some(reason) = message.header(FAULT).and_then(|reason| reason.as_text()) {
        return refuse(&message, reason.to_owned());
    }
    if let Some(encoding) = &message.properties().content_encoding
        && !is_plain(encoding)
    {
        return refuse(
            &message,
            format!("the message's content encoding is `{encoding}`, which is not supported"),
        );
    }
    if let Some(other) = message.content_type().filter(|declared| !is_json(declared)) {
        return refuse(&message, format!("the message's content type is `{other}`, not `application/json`"));
    }
    match value::parse_shared(message.body()) {
        Ok(value) => {
            let size = message.size();
            Ok(Record { value, place: Place::Message(message), output: 0, size })
        }
        Err(error) => refuse(&message, error.to_string()),
    }
}

impl Record {
    /// What is kept of the item when a step fails on it.
    pub(crate) fn letter(&self) -> Letter {
        let mut body = Vec::new();
        value::write_json(&mut body, &self.value);
        let (content_type, place) = ("application/json", self.place.to_string());
        Letter { body: body.into(), content_type, place, trace: self.trace() }
    }

    /// The trace of the message or the request it came in.
    pub(crate) fn trace(&self) -> Option<Arc<TraceContext>> {
        match &self.place {
            Place::Message(message) => message.trace().map(Arc::new),
            Place::Nowhere(trace) => trace.clone(),
            Place::Line { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_message::{TRACEPARENT, Value};

    #[test]
    fn a_message_that_is_too_large_is_stored_short_with_its_name_and_its_trace() {
        let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let large =
            Message::new(vec![b'x'; 2 * SHOWN]).with_message_id("in:7").with_header(TRACEPARENT, trace);
        let short = refused(&large, "too large".to_owned());
        assert_eq!((short.body().len(), short.properties().message_id.as_deref()), (SHOWN, Some("in:7")));
        assert_eq!(short.header(FAULT).and_then(Value::as_text), Some("too large"));
        assert!(short.trace().is_some() && short.trace() == large.trace());
    }
}
