//! Which trace a message belongs to, in the headers of the [W3C Trace Context](https://www.w3.org/TR/trace-context-1/).

use std::fmt;
use std::num::{NonZeroU64, NonZeroU128};

use crate::message::Message;
use crate::value::Value;

/// The header that says to which trace a message belongs: text.
pub const TRACEPARENT: &str = "traceparent";
/// The header with what tracing systems add to that: text, passed on as it is.
pub const TRACESTATE: &str = "tracestate";

/// The most bytes of a `tracestate` that are passed on: what the specification asks for.
const STATE_MAX: usize = 512;

/// A trace, and the place in it from which a message was sent.
///
/// Millstream makes no traces and no places in them: it passes on what a message or a request came with, so that what a tracing
/// system records before and behind it belongs together. A program that records a span of its own
/// between says so by [`with_parent`](TraceContext::with_parent).
///
/// ```
/// use millstream_message::{Message, TraceContext};
///
/// let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
/// let order = Message::new("order").with_header("traceparent", text);
/// let trace: TraceContext = order.trace().expect("it belongs to one");
/// assert_eq!(format!("{:032x}", trace.trace_id()), "4bf92f3577b34da6a3ce929d0e0e4736");
///
/// let bill = Message::new("bill").with_trace_of(&order);
/// assert_eq!(bill.trace(), Some(trace));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    trace_id: NonZeroU128,
    parent_id: NonZeroU64,
    sampled: bool,
    state: Option<Box<str>>,
}

impl TraceContext {
    /// A place in a trace, which is not sampled.
    pub fn new(trace_id: NonZeroU128, parent_id: NonZeroU64) -> TraceContext {
        TraceContext { trace_id, parent_id, sampled: false, state: None }
    }

    /// Reads a `traceparent`. `None` for one that is not as the specification says, which is to be treated like none. Of a later
    /// version than 00 it is what that has.
    pub fn parse(traceparent: &str) -> Option<TraceContext> {
        let bytes = traceparent.as_bytes();
        let (head, rest) = bytes.split_at_checked(55)?;
        if head[2] != b'-' || head[35] != b'-' || head[52] != b'-' {
            return None;
        }
        let (version, flags) = (hex(&head[..2])?, hex(&head[53..])?);
        let goes_on = match version {
            0xff => return None,
            0 => rest.is_empty(),
            _ => rest.first().is_none_or(|next| *next == b'-'),
        };
        if !goes_on {
            return None;
        }
        let trace_id = NonZeroU128::new(hex(&head[3..35])?)?;
        let parent_id = NonZeroU64::new(u64::try_from(hex(&head[36..52])?).ok()?)?;
        Some(TraceContext { sampled: flags & 1 == 1, ..TraceContext::new(trace_id, parent_id) })
    }

    /// The trace.
    pub fn trace_id(&self) -> NonZeroU128 {
        self.trace_id
    }

    /// The span that the message was sent from.
    pub fn parent_id(&self) -> NonZeroU64 {
        self.parent_id
    }

    /// Whether whoever sent it may have recorded it.
    pub fn is_sampled(&self) -> bool {
        self.sampled
    }

    /// What tracing systems added.
    pub fn state(&self) -> Option<&str> {
        self.state.as_deref()
    }

    /// The same trace from another span on.
    #[must_use]
    pub fn with_parent(mut self, span: NonZeroU64) -> TraceContext {
        self.parent_id = span;
        self
    }

    /// Says whether the sender records it.
    #[must_use]
    pub fn with_sampled(mut self, sampled: bool) -> TraceContext {
        self.sampled = sampled;
        self
    }

    /// The trace that a request by HTTP belongs to, by its lines of these two headers. Two `traceparent`s are none, and what tracing
    /// systems add may come in several lines, as the specification says.
    pub fn of_request<'a>(
        traceparent: impl IntoIterator<Item = &'a [u8]>,
        tracestate: impl IntoIterator<Item = &'a [u8]>,
    ) -> Option<TraceContext> {
        let mut parents = traceparent.into_iter();
        let (parent, None) = (parents.next()?, parents.next()) else { return None };
        let trace = TraceContext::parse(str::from_utf8(parent).ok()?)?;
        let states: Result<Vec<&str>, _> = tracestate.into_iter().map(str::from_utf8).collect();
        Some(trace.with_state(&states.unwrap_or_default().join(",")))
    }

    /// With this `tracestate`. One of more than 512 bytes, or with other characters than visible ASCII and blanks, is left out.
    #[must_use]
    pub fn with_state(mut self, state: &str) -> TraceContext {
        let text = (1..=STATE_MAX).contains(&state.len())
            && state.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\t'));
        self.state = text.then(|| state.into());
        self
    }
}

/// As a `traceparent` of version 00.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace_id, self.parent_id, u8::from(self.sampled))
    }
}

/// A number of hexadecimal digits, of which those above 9 are small.
fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |number: u128, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u128::from(digit))
    })
}

impl Message {
    /// The trace it belongs to, if its headers say so.
    pub fn trace(&self) -> Option<TraceContext> {
        let text = |name| self.header(name).and_then(Value::as_text);
        let trace = TraceContext::parse(text(TRACEPARENT)?)?;
        Some(match text(TRACESTATE) {
            Some(state) => trace.with_state(state),
            None => trace,
        })
    }

    /// Says which trace it belongs to.
    #[must_use]
    pub fn with_trace(mut self, trace: &TraceContext) -> Message {
        let headers = &mut self.properties_mut().headers;
        headers.insert(TRACEPARENT.to_owned(), Value::Text(trace.to_string()));
        match trace.state() {
            Some(state) => headers.insert(TRACESTATE.to_owned(), state.into()),
            None => headers.remove(TRACESTATE),
        };
        self
    }

    /// Says that it belongs to the trace of the message that it was made because of. One that says itself where it belongs stays
    /// as it is, and so does one whose cause belongs to none.
    #[must_use]
    pub fn with_trace_of(self, cause: &Message) -> Message {
        match cause.trace() {
            Some(trace) if self.trace().is_none() => self.with_trace(&trace),
            _ => self,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    /// What the specification says of a text, by its parts.
    fn is_valid(text: &str) -> bool {
        let hex = |part: &str, len| {
            part.len() == len && part.chars().all(|c| c.is_ascii_digit() || ('a'..='f').contains(&c))
        };
        let parts: Vec<&str> = text.splitn(5, '-').collect();
        let [version, trace, parent, flags, rest @ ..] = &parts[..] else { return false };
        hex(version, 2)
            && *version != "ff"
            && hex(trace, 32)
            && trace.contains(|c| c != '0')
            && hex(parent, 16)
            && parent.contains(|c| c != '0')
            && hex(flags, 2)
            && (*version != "00" || rest.is_empty())
    }

    #[test]
    fn texts_are_read_as_the_specification_says() {
        let id = "-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-";
        let cases = [
            (format!("00{id}01"), Some(true)),
            (format!("00{id}00"), Some(false)),
            // Other flags are for later versions.
            (format!("00{id}fe"), Some(false)),
            (format!("00{id}01-"), None),
            (format!("cc{id}01"), Some(true)),
            (format!("cc{id}01-what-is-new"), Some(true)),
            (format!("cc{id}01.what"), None),
            (format!("ff{id}01"), None),
            (format!("0{id}01"), None),
            (format!("00{id}1"), None),
            (format!("00{id}0x"), None),
            (format!(" 00{id}01"), None),
            (TEXT.to_uppercase(), None),
            (TEXT.replace('-', "_"), None),
            (TEXT.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)), None),
            (TEXT.replace("00f067aa0ba902b7", &"0".repeat(16)), None),
            (String::new(), None),
        ];
        for (text, sampled) in cases {
            let trace = TraceContext::parse(&text);
            assert_eq!(trace.as_ref().map(TraceContext::is_sampled), sampled, "{text}");
            if let Some(trace) = trace {
                assert_eq!(trace.to_string()[3..52], TEXT[3..52], "as a version that is known here");
            }
        }
    }

    #[test]
    fn a_state_goes_along_with_its_trace_alone() {
        let trace = |state: &str| {
            Message::new("").with_header(TRACEPARENT, TEXT).with_header(TRACESTATE, state).trace()
        };
        let state = |state: &str| trace(state).expect("a trace").state().map(str::to_owned);
        assert_eq!(state("a=1,b=2").as_deref(), Some("a=1,b=2"));
        for unusable in ["", "é", "a\n", &"x".repeat(513)] {
            assert_eq!(state(unusable), None, "{unusable:?}");
        }
        let bad = Message::new("").with_header(TRACEPARENT, "00-").with_header(TRACESTATE, "a=1");
        assert_eq!(bad.trace(), None);
        // What is left of another trace does not go on.
        let other = bad.with_trace(&TraceContext::parse(TEXT).expect("a trace"));
        assert_eq!(other.header(TRACESTATE), None);
    }

    #[test]
    fn a_message_follows_its_cause_unless_it_says_itself_where_it_belongs() {
        let cause = Message::new("a").with_header(TRACEPARENT, TEXT).with_header(TRACESTATE, "a=1");
        let other = TraceContext::parse(&TEXT.replace("4bf", "5bf")).expect("a trace");
        assert_eq!(Message::new("b").with_trace_of(&cause).trace(), cause.trace());
        let bad = Message::new("b").with_header(TRACEPARENT, "no trace");
        assert_eq!(bad.clone().with_trace_of(&cause).trace(), cause.trace());
        let own = Message::new("b").with_trace(&other);
        assert_eq!(own.clone().with_trace_of(&cause), own);
        assert!(Message::new("b").with_trace_of(&Message::new("a")).is_plain());
        assert!(Message::new("b").with_trace_of(&bad).is_plain(), "what is no trace ends here");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            ids in (1..=u128::MAX, 1..=u64::MAX),
            sampled: bool,
            state in "([!-~]{0,40}|[ -~é]{500,520})",
        ) {
            let [trace, parent] = [ids.0, ids.1.into()].map(|id| NonZeroU128::new(id).expect("not 0"));
            let parent = NonZeroU64::try_from(parent).expect("it fits");
            let trace = TraceContext::new(trace, parent).with_sampled(sampled).with_state(&state);
            prop_assert_eq!(trace.state().is_some(), !state.is_empty() && state.is_ascii() && state.len() <= 512);
            prop_assert_eq!(Message::new("x").with_trace(&trace).trace(), Some(trace));
        }

        #[test]
        fn what_is_no_traceparent_is_no_trace(
            text in "(00|01|ff|[0-9a-f]{2})-(0{32}|[0-9a-f]{32})-(0{16}|[0-9a-f]{16})-[0-9a-f]{2}(-[ -~é]{0,9})?",
            change in prop::option::of((any::<prop::sample::Index>(), any::<char>())),
            cut in prop::option::of(any::<prop::sample::Index>()),
        ) {
            let mut chars: Vec<char> = text.chars().collect();
            if let Some((at, other)) = change {
                chars[at.index(text.chars().count())] = other;
            }
            if let Some(cut) = cut {
                chars.truncate(cut.index(text.chars().count()));
            }
            let text = String::from_iter(chars);
            prop_assert_eq!(TraceContext::parse(&text).is_some(), is_valid(&text), "{}", text);
        }

        #[test]
        fn no_text_is_too_odd(text: String) {
            prop_assert_eq!(TraceContext::parse(&text).is_some(), is_valid(&text));
        }
    }
}
