//! Spans of publishes and of handlers' calls, by which what is logged meanwhile belongs together and to the trace of the message.
//! While nobody listens to their target a call costs a look at a flag.

use tracing::{Span, info_span};

use super::Job;
use crate::{Address, Message};

/// One attempt at a job.
pub(super) fn attempt<T>(job: &Job<T>) -> Span {
    info_span!(
        target: "millstream_message::work",
        "attempt",
        queue = job.queue(),
        attempt = job.attempt,
        trace_id = trace_id(&job.message),
    )
}

/// One request.
pub(super) fn request(request: &Message) -> Span {
    info_span!(
        target: "millstream_message::respond",
        "request",
        correlation = request.properties().correlation_id.as_deref(),
        trace_id = trace_id(request),
    )
}

/// Messages that are published together, until it is known what became of them. One of several has no trace of its own.
pub(super) fn publish<'a>(to: &Address, mut messages: impl ExactSizeIterator<Item = &'a Message>) -> Span {
    let count = messages.len();
    info_span!(
        target: "millstream_message::publish",
        "publish",
        exchange = to.exchange(),
        key = to.key(),
        messages = count,
        trace_id = messages.next().filter(|_| count == 1).and_then(trace_id),
    )
}

fn trace_id(message: &Message) -> Option<String> {
    message.trace().map(|trace| format!("{:032x}", trace.trace_id()))
}
