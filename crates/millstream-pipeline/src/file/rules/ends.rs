//! Rules of sources, buffers and outputs.

use super::super::model::*;
use super::super::place::{At, Spanned};
use super::super::problem::Findings;
use super::super::url;
use millstream_message::{BrokerUrl, StreamFrom};

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
pub(super) fn ends_apart(draft: &Draft, findings: &mut Findings) {
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

pub(super) fn reading(draft: &Draft, findings: &mut Findings) {
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

pub(super) fn writing(draft: &Draft, findings: &mut Findings) {
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
