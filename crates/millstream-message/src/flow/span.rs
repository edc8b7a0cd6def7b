//! Spans of handlers' calls, by which what they log belongs together and to the trace of their message. While nobody listens to
//! their target a call costs a look at a flag.

use tracing::{Span, info_span};

use super::Job;
use crate::Message;

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

fn trace_id(message: &Message) -> Option<String> {
    message.trace().map(|trace| format!("{:032x}", trace.trace_id()))
}
