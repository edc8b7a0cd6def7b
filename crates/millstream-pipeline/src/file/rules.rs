//! What one setting means for another: contradictions, and settings that could have no effect.
//!
//! Each rule stands alone and reports at the setting that should change.

use super::apart::files_apart;
use super::model::*;
use super::place::{At, Spanned};
use super::problem::{Findings, nearest, one_of};
use super::units::{show_duration, show_size};
use super::url;
use crate::output::SKIPPED;
use millstream_message::{BrokerUrl, StreamFrom};
use std::collections::HashMap;

pub(crate) fn all(draft: &Draft, findings: &mut Findings) {
    prefetch(draft, findings);
    queue_limits(draft, findings);
    ends_apart(draft, findings);
    reading(draft, findings);
    writing(draft, findings);
    files_apart(draft, findings);
    step_names(&draft.steps, &mut HashMap::new(), findings);
    reserved_names(&draft.steps, findings);
    parallel(&draft.steps, findings);
    constant_filters(&draft.steps, findings);
    routes(draft, findings);
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

/// A queue or a stream that a pipeline uses.
struct Used<'d> {
    broker: &'d BrokerUrl,
    name: &'d Spanned<String>,
    role: &'static str,
    reads: bool,
    /// How the file calls it.
    stream: bool,
}

impl<'d> Used<'d> {
    fn queue(queue: &'d QueueRef, role: &'static str, reads: bool) -> Self {
        Used { broker: &queue.broker, name: &queue.name, role, reads, stream: false }
    }

    fn stream(stream: &'d StreamRef, role: &'static str, reads: bool) -> Self {
        Used { broker: &stream.broker, name: &stream.name, role, reads, stream: true }
    }

    /// Whether it is a stream: a broker of streams takes queues for streams.
    fn is_stream(&self) -> bool {
        self.stream || matches!(self.broker, BrokerUrl::RabbitmqStream(_))
    }

    fn is(&self, other: &Used<'_>) -> bool {
        self.broker == other.broker
            && self.name.value == other.name.value
            && self.is_stream() == other.is_stream()
    }
}

/// A pipeline that writes to a queue or a stream it reads from feeds itself without end.
fn ends_apart(draft: &Draft, findings: &mut Findings) {
    let mut used = Vec::new();
    match draft.source.as_deref() {
        Some(Source::Queue { queue, .. }) => {
            used.push(Used::queue(queue, "the source", true));
            if let Buffer::Queue { queue: buffer, .. } = &draft.buffer.value {
                findings.add(
                    buffer.name.at,
                    "`buffer.queue` behind `source.queue` stores every item twice",
                    "leave `buffer` out: the source's queue already keeps items until they are settled",
                );
            }
        }
        Some(Source::Stream(source)) => used.push(Used::stream(&source.stream, "the source", true)),
        _ => {}
    }
    if let Buffer::Queue { queue, .. } = &draft.buffer.value {
        used.push(Used::queue(queue, "the buffer", true));
        if matches!(queue.broker, BrokerUrl::RabbitmqStream(_)) {
            findings.add(
                queue.name.at,
                "a stream cannot be the buffer: what was done would stay in it, and it keeps no positions",
                "use a queue, of `embedded:PATH` or `amqp://HOST`",
            );
        }
    }
    for output in &draft.outputs {
        match &output.kind {
            OutputKind::Queue(queue) => used.push(Used::queue(queue, "an output", false)),
            OutputKind::Stream(stream) => used.push(Used::stream(stream, "an output", false)),
            _ => {}
        }
    }
    if let Then::DeadLetter { queue: name, broker: Some(broker) } = &draft.on_error.then {
        used.push(Used { broker, name, role: "the dead letters", reads: false, stream: false });
    }
    for (index, one) in used.iter().enumerate() {
        // Many may append to one stream.
        let twin = used[..index].iter().find(|other| other.is(one) && (other.reads || !one.is_stream()));
        if let Some(other) = twin {
            let what = if one.stream { "stream" } else { "queue" };
            let same = if one.stream == other.stream { "" } else { "; a queue is a stream there" };
            findings.add(
                one.name.at,
                format!("{what} `{}` is used for {} and for {}{same}", one.name.value, one.role, other.role),
                format!("write to another {what}; items would come round again"),
            );
        }
    }
}

fn reading(draft: &Draft, findings: &mut Findings) {
    match draft.source.as_deref() {
        Some(Source::File { path, read, position, .. }) => {
            if let (Some(position), Buffer::Queue { .. }) = (position, &draft.buffer.value) {
                findings.add(
                    position.at,
                    "`position` has no effect: `buffer.queue` stores the position with the items",
                    "leave `position` out",
                );
            }
            csv_only(read.format.value, read.delimiter.at, "delimiter", findings);
            csv_only(read.format.value, read.columns.as_ref().map(|columns| columns.at), "columns", findings);
            let directory = path.value.parent().is_some_and(|parent| parent.to_string_lossy().contains('*'));
            if directory {
                findings.add(
                    path.at,
                    "`*` stands in a directory's name",
                    "use `*` in the file's name only, as in `data/*.csv`",
                );
            }
        }
        Some(Source::Stdin { read }) => {
            csv_only(read.format.value, read.delimiter.at, "delimiter", findings);
            csv_only(read.format.value, read.columns.as_ref().map(|columns| columns.at), "columns", findings);
        }
        Some(Source::Stream(source)) => {
            if let (Some(reader), Buffer::Queue { .. }) = (&source.reader, &draft.buffer.value) {
                findings.add(
                    reader.at,
                    "`reader` has no effect: `buffer.queue` stores the position with the items",
                    "leave `reader` out",
                );
            }
            if let (StreamFrom::Next, Some(at), true) = (source.from.value, source.from.at, source.drained) {
                findings.add(
                    at,
                    "`from: next` with `until: drained` ends at once: nothing is there yet",
                    "leave `until` out to wait for what comes, or begin with `from: first`",
                );
            }
        }
        Some(Source::Http(http)) => http_path(&http.path, findings),
        _ => {}
    }
}

/// A path that no request can have is never posted to.
fn http_path(path: &Spanned<String>, findings: &mut Findings) {
    if !path.starts_with('/') {
        findings.add(
            path.at,
            format!("`path` is `{}`", path.value),
            format!("begin it with a slash: `/{}`", path.value),
        );
    }
    let never =
        |c: &char| !c.is_ascii_graphic() || matches!(c, '{' | '}' | '?' | '#' | '"' | '<' | '>' | '`');
    if let Some(c) = path.chars().find(never) {
        findings.add(
            path.at,
            format!("`path` has {c:?}, which the path of a request never has"),
            "write one path, as clients send it: it is no pattern, and other characters are sent as `%` and their code",
        );
    }
}

fn csv_only(format: Format, at: Option<At>, key: &str, findings: &mut Findings) {
    if let (Some(at), Format::Ndjson | Format::Lines) = (at, format) {
        findings.add(
            at,
            format!("`{key}` has no effect: the format is not csv"),
            format!("leave `{key}` out, or set `format: csv`"),
        );
    }
}

fn writing(draft: &Draft, findings: &mut Findings) {
    for output in &draft.outputs {
        match &output.kind {
            OutputKind::File(file) => {
                csv_only(
                    file.format.value,
                    file.columns.as_ref().map(|columns| columns.at),
                    "columns",
                    findings,
                );
                if let (Some(at), None, None) = (file.rotate, file.rotate_bytes, file.rotate_every) {
                    findings.add(
                        at,
                        "`rotate` has no effect: it says neither `bytes` nor `every`",
                        "add one of them, or leave `rotate` out",
                    );
                }
                if let Some(at) = file.open_max.at.filter(|_| file.path.is_fixed()) {
                    findings.add(
                        at,
                        "`max_open` has no effect: the path has no `{field}`, so one file is open",
                        "leave `max_open` out",
                    );
                }
            }
            OutputKind::Http(http) => {
                if let Some(ca) = http.ca.as_ref().filter(|_| !http.url.starts_with("https:")) {
                    findings.add(
                        ca.at,
                        format!("`ca` has no effect: {} is not https", url::shown(&http.url.value)),
                        "write `https://` in `url`, or leave `ca` out",
                    );
                }
                for (header, _) in &http.headers {
                    if ["content-type", "content-length", "host"].contains(&header.to_lowercase().as_str()) {
                        findings.add(
                            header.at,
                            format!("header `{}` is set by the output itself", header.value),
                            "leave it out; `format` decides the content type",
                        );
                    }
                }
            }
            _ => {}
        }
    }
}

/// The ledger counts by name, so two filters of one name could not be told apart.
fn step_names<'d>(steps: &'d [Step], seen: &mut HashMap<&'d str, At>, findings: &mut Findings) {
    for step in steps {
        match step {
            Step::Filter { name, .. } => {
                if let Some(first) = seen.insert(&name.value, name.at) {
                    findings.add(
                        name.at,
                        format!(
                            "two filters are named `{}`; the first is on line {}",
                            name.value, first.line
                        ),
                        "give each its own name: the report counts what they drop by name",
                    );
                }
            }
            Step::Parallel { steps, .. } => step_names(steps, seen, findings),
            _ => {}
        }
    }
}

/// The ledger has what `on_error: skip` drops under a name of its own.
fn reserved_names(steps: &[Step], findings: &mut Findings) {
    for step in steps {
        match step {
            Step::Filter { name, .. } | Step::Map { name, .. } | Step::Send { name, .. }
                if name.value == SKIPPED =>
            {
                findings.add(
                    name.at,
                    format!("`{SKIPPED}` is what the report calls items that `on_error: skip` drops"),
                    "choose another name: the report counts what is dropped by name",
                );
            }
            Step::Parallel { steps, .. } => reserved_names(steps, findings),
            _ => {}
        }
    }
}

fn parallel(steps: &[Step], findings: &mut Findings) {
    for step in steps {
        if let Step::Parallel { workers: Setting { value: Some(1), at: Some(at) }, .. } = step {
            findings.add(
                *at,
                "`parallel` with one worker has no effect",
                "use `auto` or a larger number, or take the steps out of `parallel`",
            );
        }
    }
}

fn constant_filters(steps: &[Step], findings: &mut Findings) {
    for step in steps {
        match step {
            Step::Filter { name, keep } => {
                if let Some(always) = keep.constant() {
                    let what = if always { "keeps every item" } else { "drops every item" };
                    findings.add(
                        name.at,
                        format!("filter `{}` {what}, whatever the item", name.value),
                        "compare a field, or take the filter out",
                    );
                }
            }
            Step::Parallel { steps, .. } => constant_filters(steps, findings),
            _ => {}
        }
    }
}

fn routes(draft: &Draft, findings: &mut Findings) {
    for step in &draft.steps {
        if let Step::Misplaced { at } = step {
            findings.add(
                *at,
                "`route` is not the last step",
                "move it to the end of `process`: behind it items are already on their way out",
            );
        }
    }
    match (&draft.route, draft.named) {
        (None, Some(at)) => findings.add(
            at,
            "`output.named` without a `route` that chooses among them",
            "end `process` with a `route` step, or keep one output without `named`",
        ),
        (Some(route), None) if !draft.outputs.is_empty() => findings.add(
            route.at,
            "`route` has no outputs to choose from",
            "put the outputs under `output.named`, each with its name",
        ),
        (Some(route), Some(_)) => {
            let names: Vec<&str> = draft.outputs.iter().map(|output| output.name.value.as_str()).collect();
            let targets = route.cases.iter().map(|(_, to)| to).chain([&route.otherwise]);
            for target in targets.clone() {
                let dropping = std::ptr::eq(target, &route.otherwise) && target.value == "drop";
                if !dropping && !names.contains(&target.value.as_str()) {
                    let remedy = match nearest(&target.value, names.iter().copied()) {
                        Some(near) => format!("did you mean `{near}`?"),
                        None => format!("known under `output.named`: {}", one_of(names.iter().copied())),
                    };
                    findings.add(target.at, format!("no output is named `{}`", target.value), remedy);
                }
            }
            for output in &draft.outputs {
                if !targets.clone().any(|target| target.value == output.name.value) {
                    findings.add(
                        output.name.at,
                        format!("output `{}` is never routed to", output.name.value),
                        "add a case for it to `route`, or take it out",
                    );
                }
            }
        }
        _ => {}
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
