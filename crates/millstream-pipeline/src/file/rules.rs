//! What one setting means for another: contradictions, and settings that could have no effect.
//!
//! Each rule stands alone and reports at the setting that should change. Here are those of the whole; [`ends`] has those of sources
//! and outputs, [`steps`] those of what is between them.

mod ends;
mod steps;

use super::apart::files_apart;
use super::model::*;
use super::place::At;
use super::problem::Findings;
use super::units::{show_duration, show_size};
use millstream_message::BrokerUrl;

pub(crate) fn all(draft: &Draft, findings: &mut Findings) {
    prefetch(draft, findings);
    queue_limits(draft, findings);
    ends::ends_apart(draft, findings);
    ends::reading(draft, findings);
    ends::writing(draft, findings);
    files_apart(draft, findings);
    steps::all(draft, findings);
    errors(draft, findings);
    letters_at_home(draft, findings);
    goals(draft, findings);
}

/// The prefetch in force, if items come by a queue.
fn prefetch_of(draft: &Draft) -> Option<Prefetch> {
    match (&draft.buffer.value, draft.source.as_deref()) {
        (Buffer::Queue { prefetch, .. }, _) | (_, Some(Source::Queue { prefetch, .. })) => Some(*prefetch),
        _ => None,
    }
}

/// A batch larger than what may be under way at once never fills: it always waits for its age.
fn prefetch(draft: &Draft, findings: &mut Findings) {
    let Batch { count, bytes, .. } = &draft.batch;
    if let (Some(Source::Http(http)), Buffer::Memory { .. }) = (draft.source.as_deref(), &draft.buffer.value)
        && count.value > http.pending_max.value
    {
        findings.add(
            count.at.or(http.pending_max.at).unwrap_or(At::START),
            format!(
                "`batch.count` {} is larger than `max_pending` {}: no batch can ever fill, and clients wait for its age",
                count.value, http.pending_max.value
            ),
            format!("raise `max_pending` to at least {}, or lower `batch.count`", count.value),
        );
    }
    let Some(prefetch) = prefetch_of(draft) else { return };
    if count.value > prefetch.items.value {
        let at = count.at.or(prefetch.items.at).unwrap_or(At::START);
        findings.add(
            at,
            format!(
                "`batch.count` {} is larger than `prefetch` {}: no batch can ever fill",
                count.value, prefetch.items.value
            ),
            format!("raise `prefetch` to at least {}, or lower `batch.count`", count.value),
        );
    }
    if bytes.value > prefetch.bytes.value {
        let at = bytes.at.or(prefetch.bytes.at).unwrap_or(At::START);
        let (bytes, prefetched) = (show_size(bytes.value), show_size(prefetch.bytes.value));
        findings.add(
            at,
            format!("`batch.bytes` {bytes} is larger than `prefetch_bytes` {prefetched}: no batch can fill by its size"),
            format!("raise `prefetch_bytes` to at least {bytes}, or lower `batch.bytes`"),
        );
    }
}

/// What is taken from a queue at once cannot be more than the queue holds.
fn queue_limits(draft: &Draft, findings: &mut Findings) {
    let Buffer::Queue { items_max, bytes_max, prefetch, .. } = &draft.buffer.value else { return };
    if let Some(max) = items_max {
        if draft.batch.count.value > max.value {
            findings.add(
                draft.batch.count.at.unwrap_or(max.at),
                format!(
                    "`batch.count` {} is larger than the queue's `max_items` {}",
                    draft.batch.count.value, max.value
                ),
                "raise `max_items`, or lower `batch.count`",
            );
        }
        if let Some(at) = prefetch.items.at.filter(|_| prefetch.items.value > max.value) {
            findings.add(
                at,
                format!(
                    "`prefetch` {} is larger than the queue's `max_items` {}",
                    prefetch.items.value, max.value
                ),
                "lower `prefetch`: the queue never holds that much",
            );
        }
    }
    if let (Some(max), Some(at)) = (bytes_max, prefetch.bytes.at)
        && prefetch.bytes.value > max.value
    {
        findings.add(
            at,
            format!(
                "`prefetch_bytes` {} is larger than the queue's `max_bytes` {}",
                show_size(prefetch.bytes.value),
                show_size(max.value)
            ),
            "lower `prefetch_bytes`: the queue never holds that much",
        );
    }
}

fn errors(draft: &Draft, findings: &mut Findings) {
    let Some(retry) = draft.on_error.retry else { return };
    let once = |output: &Output| {
        matches!(output.kind, OutputKind::Stdout { .. } | OutputKind::Queue(_) | OutputKind::Stream(_))
    };
    if !draft.outputs.is_empty() && draft.outputs.iter().all(once) {
        findings.add(
            retry.at,
            "`retry` has no effect: standard output is not written again, a queue that is full is waited for, and a stream takes what it is given",
            "use `fail`, `skip` or `dead_letter` directly",
        );
    }
}

/// Dead letters of a queue are moved by its own broker, in one step.
fn letters_at_home(draft: &Draft, findings: &mut Findings) {
    let home = match (&draft.buffer.value, draft.source.as_deref()) {
        (Buffer::Queue { queue, .. }, _) | (_, Some(Source::Queue { queue, .. })) => &queue.broker,
        _ => return,
    };
    // A stream has no dead letters of its own: they are published, wherever that is.
    if let Then::DeadLetter { queue, broker: Some(broker) } = &draft.on_error.then
        && broker != home
        && !matches!(home, BrokerUrl::RabbitmqStream(_))
    {
        findings.add(
            queue.at,
            format!("the dead letters would be on another broker than the queue they come from, {home}"),
            "leave `broker` out of `dead_letter`: the queue's own broker moves them, and none is lost on the way",
        );
    }
}

fn goals(draft: &Draft, findings: &mut Findings) {
    if let Some(latency) = &draft.goals.latency
        && draft.batch.age.value > latency.value
    {
        let age = show_duration(draft.batch.age.value);
        findings.add(
            draft.batch.age.at.unwrap_or(latency.at),
            format!("`batch.age` {age} is longer than `goals.latency` {}", show_duration(latency.value)),
            format!("set `batch: {{ age: {} }}` or less", show_duration(latency.value)),
        );
    }
    if let Some(promise) = draft.goals.order {
        for step in &draft.steps {
            if let Step::Parallel { ordered: Setting { value: false, at: Some(at) }, .. } = step {
                findings.add(
                    *at,
                    format!("`ordered: false` breaks `goals.order`, promised on line {}", promise.line),
                    "leave `ordered` out, or take `goals.order` back",
                );
            }
        }
        if let Some(by) = &draft.batch.by {
            findings.add(
                by.at,
                format!("`batch.by` gathers items by `{}` and so breaks `goals.order`, promised on line {}", by.value, promise.line),
                "leave `by` out, or take `goals.order` back; order within one value of the field is kept either way",
            );
        }
    }
    if let (Some(rate), Then::Fail) = (&draft.goals.error_rate_max, &draft.on_error.then) {
        findings.add(
            rate.at,
            "`max_error_rate` has no effect: the first error already ends the run",
            "set `on_error` to `skip` or `dead_letter`, or leave `max_error_rate` out",
        );
    }
}
