//! From the tree to the model. What the check already reported is passed over in silence here.

use super::model::*;
use super::place::{At, Spanned};
use super::problem::{Findings, nearest};
use super::template::{Template, plain};
use super::tree::{Key, Node};
use super::units;
use crate::expr::{CompileError, Condition, Mapping};
use crate::handlers::{Handler, Handlers};
use millstream_message::{BrokerUrl, StreamFrom};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub(crate) struct Drafter<'a> {
    /// The directory that relative paths start from.
    pub(crate) base: &'a Path,
    /// The file's text, to find places inside block scalars.
    pub(crate) source: &'a str,
    /// What `send` steps may call.
    pub(crate) handlers: &'a Handlers,
    pub(crate) findings: &'a mut Findings,
}

impl Drafter<'_> {
    pub(crate) fn draft(&mut self, root: &Node) -> Draft {
        let source = tagged(root, "source")
            .and_then(|(tag, node)| Some(Spanned::new(self.source_of(&tag.name, node)?, tag.at)));
        let buffer = tagged(root, "buffer")
            .and_then(|(tag, node)| Some(Spanned::new(self.buffer(&tag.name, node)?, tag.at)))
            .unwrap_or(Spanned::new(Buffer::Memory { items: 1024, bytes: 8 << 20 }, At::START));
        let mut steps = root.get("process").map(|node| self.steps(node)).unwrap_or_default();
        let last =
            root.get("process").and_then(|node| node.items().last()).and_then(|node| node.get("route"));
        let route = last.and_then(|node| self.route(node));
        if route.is_some() {
            steps.pop();
        }
        let (outputs, named) = self.outputs(root);
        let mut draft = Draft {
            name: text(root, "name").unwrap_or_default(),
            source,
            buffer,
            steps,
            batch: self.batch(root.get("batch")),
            outputs,
            route,
            named,
            on_error: OnError { retry: None, then: Then::Fail },
            goals: root.get("goals").map(goals).unwrap_or_default(),
        };
        if let Some(node) = root.get("on_error") {
            draft.on_error = self.on_error(node, nearby_broker(&draft));
        }
        draft
    }

    fn source_of(&mut self, tag: &str, node: &Node) -> Option<Source> {
        Some(match tag {
            "file" => {
                let path = spanned(node, "path")?;
                let read = self.reading(node, Some(&path));
                let path = Spanned::new(self.base.join(&path.value), path.at);
                let position = spanned(node, "position")
                    .map(|position| Spanned::new(self.base.join(&position.value), position.at));
                Source::File { path, read, follow: flag(node, "follow", false), position }
            }
            "stdin" => Source::Stdin { read: self.reading(node, None) },
            "http" => Source::Http(HttpSource {
                listen: spanned(node, "listen")?,
                path: spanned(node, "path").unwrap_or(Spanned::new("/".to_owned(), node.at)),
                body_max: size(node, "max_body", 1 << 20).value as usize,
                pending_max: count(node, "max_pending", 1024),
                connections_max: count(node, "max_connections", 512),
            }),
            "queue" => Source::Queue {
                queue: self.queue(node)?,
                prefetch: prefetch(node),
                drained: text(node, "until").as_deref() == Some("drained"),
            },
            "stream" => Source::Stream(StreamSource {
                stream: self.stream(node)?,
                from: setting(node, "from", StreamFrom::First, |node| units::stream_from(node.text()?)),
                reader: spanned(node, "reader"),
                drained: text(node, "until").as_deref() == Some("drained"),
            }),
            "generate" => Source::Generate {
                count: node.get("count").and_then(number),
                rate: node.get("rate").and_then(number),
                template: node.get("template").and_then(|node| self.jq(node)),
            },
            _ => return None,
        })
    }

    fn reading(&mut self, node: &Node, path: Option<&Spanned<String>>) -> Reading {
        let format = match node.get("format") {
            Some(given) => Setting { value: format_named(given.text().unwrap_or("")), at: Some(given.at) },
            None => Setting { value: path.map_or(Format::Unknown, |path| format_of(path)), at: None },
        };
        if let (Format::Unknown, None, Some(path)) = (format.value, format.at, path) {
            let message = format!("the format of {:?} cannot be told from its extension", path.value);
            self.findings.add(path.at, message, "add `format: csv`, `ndjson` or `lines`");
        }
        let delimiter = node.get("delimiter");
        Reading {
            format,
            delimiter: Setting {
                value: delimiter.and_then(Node::text).and_then(|text| text.bytes().next()).unwrap_or(b','),
                at: delimiter.map(|node| node.at),
            },
            columns: self.columns(node),
            line_max: size(node, "max_line", 1 << 20).value as usize,
        }
    }

    fn columns(&mut self, node: &Node) -> Option<Spanned<Vec<String>>> {
        let node = node.get("columns")?;
        let items = node.items();
        for (number, item) in items.iter().enumerate() {
            if let Some(name) = item.text()
                && items[..number].iter().any(|before| before.text() == Some(name))
            {
                let message = format!("column `{name}` appears twice");
                self.findings.add(item.at, message, "name each column once");
            }
        }
        Some(Spanned::new(items.iter().filter_map(|item| Some(item.text()?.to_owned())).collect(), node.at))
    }

    fn buffer(&mut self, tag: &str, node: &Node) -> Option<Buffer> {
        Some(match tag {
            "memory" => Buffer::Memory {
                items: count(node, "items", 1024).value,
                bytes: size(node, "bytes", 8 << 20).value,
            },
            "queue" => Buffer::Queue {
                queue: self.queue(node)?,
                items_max: limit(node, "max_items", number),
                bytes_max: limit(node, "max_bytes", |node| units::size(node.text()?)),
                prefetch: prefetch(node),
            },
            _ => return None,
        })
    }

    fn queue(&mut self, node: &Node) -> Option<QueueRef> {
        Some(QueueRef { broker: self.broker(&text(node, "broker")?)?, name: spanned(node, "name")? })
    }

    fn stream(&self, node: &Node) -> Option<StreamRef> {
        Some(StreamRef { broker: self.broker(&text(node, "broker")?)?, name: spanned(node, "name")? })
    }

    fn broker(&self, url: &str) -> Option<BrokerUrl> {
        match url.parse().ok()? {
            BrokerUrl::Embedded(path) => Some(BrokerUrl::Embedded(plain(&self.base.join(path)))),
            url => Some(url),
        }
    }

    fn steps(&mut self, node: &Node) -> Vec<Step> {
        let steps = node.items().iter().filter_map(|item| item.entries().first());
        steps.filter_map(|(tag, node)| self.step(tag, node)).collect()
    }

    fn step(&mut self, tag: &Key, node: &Node) -> Option<Step> {
        let unnamed = || Spanned::new(tag.name.clone(), tag.at);
        Some(match tag.name.as_str() {
            "filter" => Step::Filter {
                name: spanned(node, "name").unwrap_or_else(unnamed),
                keep: self.cel(node.get("keep")?)?,
            },
            "map" if node.text().is_some() => Step::Map { name: unnamed(), jq: self.jq(node)? },
            "map" => Step::Map {
                name: spanned(node, "name").unwrap_or_else(unnamed),
                jq: self.jq(node.get("jq")?)?,
            },
            "parallel" => Step::Parallel {
                workers: Setting {
                    value: node.get("workers").and_then(number),
                    at: node.get("workers").map(|node| node.at),
                },
                ordered: flag(node, "ordered", true),
                steps: node.get("steps").map(|node| self.steps(node)).unwrap_or_default(),
            },
            "send" => {
                let request = spanned(node, "request")?;
                Step::Send {
                    name: spanned(node, "name").unwrap_or_else(unnamed),
                    handler: self.handler(&request)?,
                    request,
                    at_once: count(node, "at_once", 1).value as usize,
                    into: text(node, "into"),
                    timeout: node.get("timeout").and_then(|node| units::duration(node.text()?)),
                }
            }
            "route" => Step::Misplaced { at: tag.at },
            _ => return None,
        })
    }

    fn handler(&mut self, request: &Spanned<String>) -> Option<Handler> {
        let found = self.handlers.get(request).cloned();
        if found.is_none() {
            let remedy = match (nearest(request, self.handlers.names()), self.handlers.names().next()) {
                (Some(near), _) => format!("did you mean `{near}`?"),
                (None, Some(_)) => {
                    let names: Vec<&str> = self.handlers.names().collect();
                    format!("there are {}", names.join(", "))
                }
                (None, None) => "handlers are a program's own: run the file by one that gives them, with \
                                 `Pipeline::open_with`; the `millstream` binary has none"
                    .to_owned(),
            };
            self.findings.add(request.at, format!("there is no handler for `{}`", request.value), remedy);
        }
        found
    }

    fn route(&mut self, node: &Node) -> Option<Route> {
        let mut cases = Vec::new();
        for case in node.get("cases").map(Node::items).unwrap_or_default() {
            if let (Some(when), Some(to)) = (case.get("when"), spanned(case, "to"))
                && let Some(when) = self.cel(when)
            {
                cases.push((when, to));
            }
        }
        Some(Route { at: node.at, cases, otherwise: spanned(node, "else")? })
    }

    fn batch(&mut self, node: Option<&Node>) -> Batch {
        let empty = Node { at: At::START, data: super::tree::Data::Map(Vec::new()) };
        let node = node.unwrap_or(&empty);
        Batch {
            by: spanned(node, "by"),
            count: count(node, "count", 500),
            bytes: size(node, "bytes", 1 << 20),
            age: time(node, "age", Duration::from_secs(1)),
        }
    }

    fn outputs(&mut self, root: &Node) -> (Vec<Output>, Option<At>) {
        let Some((tag, node)) = tagged(root, "output") else { return (Vec::new(), None) };
        if tag.name != "named" {
            let kind = self.output(&tag.name, node);
            let name = Spanned::new(tag.name.clone(), tag.at);
            return (kind.map(|kind| Output { name, kind }).into_iter().collect(), None);
        }
        let mut outputs = Vec::new();
        for (name, node) in node.entries() {
            if let Some((tag, node)) = node.entries().first()
                && let Some(kind) = self.output(&tag.name, node)
            {
                outputs.push(Output { name: Spanned::new(name.name.clone(), name.at), kind });
            }
        }
        (outputs, Some(tag.at))
    }

    fn output(&mut self, tag: &str, node: &Node) -> Option<OutputKind> {
        Some(match tag {
            "file" => OutputKind::File(self.file_output(node)?),
            "stdout" => OutputKind::Stdout { csv: text(node, "format").as_deref() == Some("csv") },
            "http" => OutputKind::Http(HttpOutput {
                url: node.get("url").and_then(|url| Some(Spanned::new(url.text()?.to_owned(), url.at)))?,
                ca: node.get("ca").and_then(|ca| Some(Spanned::new(self.base.join(ca.text()?), ca.at))),
                ndjson: text(node, "format").as_deref() == Some("ndjson"),
                headers: node
                    .get("headers")
                    .map(Node::entries)
                    .unwrap_or_default()
                    .iter()
                    .filter_map(|(key, value)| {
                        Some((Spanned::new(key.name.clone(), key.at), value.text()?.to_owned()))
                    })
                    .collect(),
                timeout: time(node, "timeout", Duration::from_secs(30)).value,
            }),
            "queue" => OutputKind::Queue(self.queue(node)?),
            "stream" => OutputKind::Stream(self.stream(node)?),
            _ => return None,
        })
    }

    fn file_output(&mut self, node: &Node) -> Option<FileOutput> {
        let path = node.get("path")?;
        let template = match Template::parse(path.text()?, self.base) {
            Ok(template) => template,
            Err((offset, why)) => {
                let column = path.text()?.get(..offset).map_or(0, |before| before.chars().count()) + 1;
                self.findings.add(
                    path.inside(self.source, 1, column),
                    format!("`path`: {why}"),
                    "write a path such as 'out/{carrier}.ndjson', with a field's name between braces",
                );
                return None;
            }
        };
        let rotate = node.get("rotate");
        let format = match node.get("format") {
            Some(given) => Setting { value: format_named(given.text().unwrap_or("")), at: Some(given.at) },
            None => Setting { value: format_of(template.source()), at: None },
        };
        if format.at.is_none() && !matches!(format.value, Format::Csv | Format::Ndjson) {
            let message = format!("the format of {:?} cannot be told from its extension", template.source());
            self.findings.add(path.at, message, "add `format: ndjson` or `csv`");
        }
        Some(FileOutput {
            path: Spanned::new(template, path.at),
            format,
            columns: self.columns(node),
            rotate_bytes: rotate.and_then(|node| units::size(node.get("bytes")?.text()?)),
            rotate_every: rotate.and_then(|node| units::duration(node.get("every")?.text()?)),
            rotate: node.entry("rotate").map(|(key, _)| key.at),
            open_max: count(node, "max_open", 64),
        })
    }

    fn on_error(&mut self, node: &Node, broker: Option<BrokerUrl>) -> OnError {
        match node.entries().first() {
            Some((key, retry)) if key.name == "retry" => OnError {
                retry: Some(Retry {
                    at: key.at,
                    attempts: count(retry, "attempts", 5).value as u32,
                    backoff: time(retry, "backoff", Duration::from_millis(100)).value,
                }),
                then: retry.get("then").map_or(Then::Fail, |then| self.then(then, broker)),
            },
            _ => OnError { retry: None, then: self.then(node, broker) },
        }
    }

    fn then(&mut self, node: &Node, nearby: Option<BrokerUrl>) -> Then {
        if node.text() == Some("skip") {
            return Then::Skip;
        }
        let Some(dead) = node.get("dead_letter") else { return Then::Fail };
        let Some(queue) = spanned(dead, "queue") else { return Then::Fail };
        let broker = match text(dead, "broker") {
            Some(url) => self.broker(&url),
            None => nearby,
        };
        if broker.is_none() && dead.get("broker").is_none() {
            self.findings.add(
                queue.at,
                format!("no broker for the dead-letter queue `{}`", queue.value),
                "add `broker: \"embedded:state\"` beside `queue`; there is none in the buffer, source or output to take",
            );
        }
        Then::DeadLetter { queue, broker }
    }

    fn cel(&mut self, node: &Node) -> Option<Arc<Condition>> {
        let source = node.text()?;
        let compiled = Condition::compile(source).map_err(|error| {
            self.expression(
                node,
                "CEL",
                &error,
                "the item's fields are `item.FIELD`; compare, as in `item.delay >= 15`",
            );
        });
        compiled.ok().map(Arc::new)
    }

    fn jq(&mut self, node: &Node) -> Option<Arc<Mapping>> {
        let source = node.text()?;
        let compiled = Mapping::compile(source).map_err(|error| {
            self.expression(node, "jq", &error, "the item is `.`; an object is written `{name: .field, …}`");
        });
        compiled.ok().map(Arc::new)
    }

    fn expression(&mut self, node: &Node, language: &str, error: &CompileError, remedy: &str) {
        if node.is_null() || node.text().is_some_and(str::is_empty) {
            return; // an empty expression is the check's to report
        }
        let at = node.inside(self.source, error.line, error.column);
        self.findings.add(at, format!("not valid {language}: {}", error.message), remedy);
    }
}

/// The broker that dead letters go to when they name none.
fn nearby_broker(draft: &Draft) -> Option<BrokerUrl> {
    if let Buffer::Queue { queue, .. } = &draft.buffer.value {
        return Some(queue.broker.clone());
    }
    if let Some(Source::Queue { queue, .. }) = draft.source.as_deref() {
        return Some(queue.broker.clone());
    }
    if let Some(Source::Stream(source)) = draft.source.as_deref() {
        return Some(source.stream.broker.clone());
    }
    draft.outputs.iter().find_map(|output| match &output.kind {
        OutputKind::Queue(queue) => Some(queue.broker.clone()),
        OutputKind::Stream(stream) => Some(stream.broker.clone()),
        _ => None,
    })
}

fn goals(node: &Node) -> Goals {
    Goals {
        latency: limit(node, "latency", |node| units::duration(node.text()?)),
        memory: limit(node, "memory", |node| units::size(node.text()?)),
        order: flag(node, "order", false).value.then(|| node.get("order").map_or(node.at, |order| order.at)),
        error_rate_max: limit(node, "max_error_rate", |node| units::ratio(node.text()?)),
    }
}

/// The first tag of the component under `key`, if it is a known shape at all.
fn tagged<'n>(root: &'n Node, key: &str) -> Option<(&'n Key, &'n Node)> {
    root.get(key)?.entries().first().map(|(tag, node)| (tag, node))
}

pub(super) fn spanned(node: &Node, key: &str) -> Option<Spanned<String>> {
    let node = node.get(key)?;
    Some(Spanned::new(node.text()?.to_owned(), node.at)).filter(|text| !text.is_empty())
}

pub(super) fn text(node: &Node, key: &str) -> Option<String> {
    spanned(node, key).map(|text| text.value)
}

pub(super) fn number(node: &Node) -> Option<u64> {
    node.text()?.parse().ok()
}

fn limit<T>(node: &Node, key: &str, read: impl Fn(&Node) -> Option<T>) -> Option<Spanned<T>> {
    let node = node.get(key)?;
    Some(Spanned::new(read(node)?, node.at))
}

fn setting<T>(node: &Node, key: &str, default: T, read: impl Fn(&Node) -> Option<T>) -> Setting<T> {
    match limit(node, key, read) {
        Some(given) => Setting { value: given.value, at: Some(given.at) },
        None => Setting { value: default, at: None },
    }
}

fn count(node: &Node, key: &str, default: u64) -> Setting<u64> {
    setting(node, key, default, number)
}

fn size(node: &Node, key: &str, default: u64) -> Setting<u64> {
    setting(node, key, default, |node| units::size(node.text()?))
}

fn time(node: &Node, key: &str, default: Duration) -> Setting<Duration> {
    setting(node, key, default, |node| units::duration(node.text()?))
}

pub(super) fn flag(node: &Node, key: &str, default: bool) -> Setting<bool> {
    setting(node, key, default, |node| node.text()?.parse().ok())
}

fn prefetch(node: &Node) -> Prefetch {
    Prefetch { items: count(node, "prefetch", 8192), bytes: size(node, "prefetch_bytes", 16 << 20) }
}

fn format_named(name: &str) -> Format {
    match name {
        "csv" => Format::Csv,
        "ndjson" => Format::Ndjson,
        "lines" => Format::Lines,
        _ => Format::Unknown,
    }
}

fn format_of(path: &str) -> Format {
    match path.rsplit_once('.').map(|(_, extension)| extension) {
        Some("csv") => Format::Csv,
        Some("ndjson" | "jsonl") => Format::Ndjson,
        Some("txt" | "log") => Format::Lines,
        _ => Format::Unknown,
    }
}
