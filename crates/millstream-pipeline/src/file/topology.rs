//! The topology file: exchanges, queues and bindings, read and checked as pipeline files are.

use std::path::{Path, PathBuf};
use std::time::Duration;

use millstream_message::{
    Binding, Exchange, ExchangeKind, HeaderMatch, Headers, Overflow, Queue, QueueKind, Topology, Value,
};

use super::draft::{flag, number, spanned, text};
use super::place::{At, Texts};
use super::problem::{Findings, Problems};
use super::shape::{Key, Kind, Shape, key};
use super::tree::{self, Node, Style};
use super::{check, units, weave};

static TOPOLOGY: Shape = Shape {
    keys: &[
        key("exchanges", Kind::Names(&Kind::Object(&EXCHANGE)), "Exchanges by their names."),
        key("queues", Kind::Names(&Kind::Object(&QUEUE)), "Queues by their names."),
        key("bindings", Kind::List(&Kind::Object(&BINDING)), "What leads where."),
    ],
};

static EXCHANGE: Shape = Shape {
    keys: &[
        key("kind", Kind::Choice(&["direct", "fanout", "topic", "headers"]), "How it chooses.").required(),
        DURABLE,
        key("internal", Kind::Bool, "Whether only other exchanges may lead to it.").or("false"),
        key("alternate", Kind::Text, "The exchange that gets what this one leads nowhere."),
    ],
};

const DURABLE: Key = key("durable", Kind::Bool, "Whether it survives a restart.").or("true");

static QUEUE: Shape = Shape {
    keys: &[
        DURABLE,
        key("kind", Kind::Choice(&["classic", "quorum", "stream"]), "How it is kept."),
        key("ttl", Kind::Time, "How long a message may wait."),
        key("max_items", Kind::Count(1, u64::MAX), "How many messages may be ready."),
        key("max_bytes", Kind::Size(1), "How many bytes may be ready."),
        key("overflow", Kind::Choice(&["reject-publish", "drop-head"]), "What happens at a limit.")
            .or("reject-publish"),
        key("dead_letters", Kind::Name, "The queue for what expired, overflowed or was rejected."),
        key("dead_letter_exchange", Kind::Text, "The exchange for it, instead of a queue."),
        key("dead_letter_key", Kind::Text, "The key under which it goes there; its own without this."),
        key("max_priority", Kind::Count(1, 255), "The highest priority that is looked at."),
        key("delivery_limit", Kind::Count(1, u32::MAX as u64), "How often a message may be given back."),
        key("single_active_consumer", Kind::Bool, "Whether one consumer at a time receives.").or("false"),
        key("expires", Kind::Time, "How long it may be unused before it goes by itself."),
    ],
};

static BINDING: Shape = Shape {
    keys: &[
        key("from", Kind::Text, "The exchange that it leads from.").required(),
        key("to", Kind::Name, "The queue that it leads to."),
        key("to_exchange", Kind::Text, "The exchange that it leads to, instead of a queue."),
        key("key", Kind::Text, "The key, or the pattern."),
        key("match", Kind::Choice(&["all", "any"]), "How many of the headers must be there.").or("all"),
        key("headers", Kind::Names(&Kind::Any), "What a headers exchange compares."),
    ],
};

/// A topology file that has been checked.
///
/// ```
/// use millstream_pipeline::TopologyFile;
/// let file = TopologyFile::parse(
///     "orders.yaml",
///     "exchanges:\n  orders: { kind: topic }\nqueues:\n  north: { max_items: 1000 }\n\
///      bindings:\n  - { from: orders, to: north, key: '*.north' }\n",
/// )
/// .expect("nothing is wrong");
/// assert_eq!(file.topology().declarations().len(), 3);
///
/// let problems = TopologyFile::parse("orders.yaml", "queues:\n  north: { max_item: 1 }\n").expect_err("one");
/// assert!(problems.to_string().contains("orders.yaml:2:12: unknown key `max_item`"));
/// ```
#[derive(Debug)]
pub struct TopologyFile {
    file: PathBuf,
    topology: Topology,
}

impl TopologyFile {
    /// Reads and checks a file; `${NAME}` takes its value from the process's environment.
    ///
    /// # Errors
    /// Everything that is wrong with the file, each with its place and its remedy.
    pub fn open(file: &Path) -> Result<TopologyFile, Problems> {
        let source = super::read(file)?;
        TopologyFile::check(file.to_owned(), source, &|name| std::env::var_os(name))
    }

    /// Checks a text; `name` stands in messages, and the environment is empty.
    ///
    /// # Errors
    /// Everything that is wrong with the text.
    pub fn parse(name: &str, source: &str) -> Result<TopologyFile, Problems> {
        TopologyFile::check(PathBuf::from(name), source.to_owned(), &|_| None)
    }

    /// What it declares.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Where it was read from.
    pub fn file(&self) -> &Path {
        &self.file
    }

    fn check(
        file: PathBuf,
        source: String,
        environment: weave::Environment<'_>,
    ) -> Result<TopologyFile, Problems> {
        let mut findings = Findings::default();
        let texts = Texts { file: file.display().to_string(), source, sets: Vec::new() };
        let Some(mut root) = tree::read(&texts.source, 0, &mut findings) else {
            if findings.is_empty() {
                findings.add(
                    At::START,
                    "the file is empty",
                    "begin with `exchanges:`, `queues:` or `bindings:`",
                );
            }
            return Err(findings.into_problems(&texts));
        };
        weave::interpolate(&mut root, environment, &mut findings);
        check::object(&root, &TOPOLOGY, "the topology", &mut findings);
        rules(&root, &mut findings);
        if findings.is_empty() {
            Ok(TopologyFile { file, topology: drafted(&root) })
        } else {
            Err(findings.into_problems(&texts))
        }
    }
}

/// What keys mean together.
fn rules(root: &Node, findings: &mut Findings) {
    for (name, queue) in part(root, "queues") {
        if let (Some(_), Some((other, _))) = (queue.get("dead_letters"), queue.entry("dead_letter_exchange"))
        {
            let message =
                format!("queue `{}` sends its dead letters to a queue and to an exchange", name.name);
            findings.add(other.at, message, "keep `dead_letters`, or `dead_letter_exchange` with its key");
        }
        if let (Some((key, _)), None) = (queue.entry("dead_letter_key"), queue.get("dead_letter_exchange")) {
            let message =
                format!("queue `{}` has a `dead_letter_key` and no `dead_letter_exchange`", name.name);
            findings.add(key.at, message, "add the exchange, or name a queue by `dead_letters`");
        }
        let limited = queue.get("max_items").or(queue.get("max_bytes"));
        if let (Some((overflow, _)), None) = (queue.entry("overflow"), limited) {
            let message = format!("queue `{}` says what happens at a limit, and has none", name.name);
            findings.add(overflow.at, message, "add `max_items` or `max_bytes`, or leave `overflow` out");
        }
    }
    for binding in root.get("bindings").map(Node::items).unwrap_or_default() {
        match (binding.entry("to"), binding.entry("to_exchange")) {
            (Some(_), Some((other, _))) => {
                findings.add(other.at, "a binding leads to a queue or to an exchange", "keep one of both");
            }
            (None, None) if matches!(binding.data, tree::Data::Map(_)) => {
                findings.add(
                    binding.at,
                    "the binding leads nowhere",
                    "add `to: QUEUE` or `to_exchange: EXCHANGE`",
                );
            }
            _ => {}
        }
        if let (Some((matching, _)), None) = (binding.entry("match"), binding.get("headers")) {
            findings.add(
                matching.at,
                "`match` without `headers` compares nothing",
                "add `headers`, or leave it out",
            );
        }
        let Some(from) = spanned(binding, "from") else { continue };
        let exchange = part(root, "exchanges").find(|(name, _)| name.name == from.value);
        let by_headers =
            exchange.and_then(|(_, exchange)| text(exchange, "kind")).map(|kind| kind == "headers");
        match by_headers {
            Some(true) if binding.get("headers").is_none() => {
                let message =
                    format!("exchange `{}` compares headers, and the binding gives none", from.value);
                findings.add(from.at, message, "add `headers: { NAME: VALUE }`");
            }
            Some(false) if binding.get("headers").is_some() => {
                let message = format!("exchange `{}` does not compare headers", from.value);
                findings.add(
                    from.at,
                    message,
                    "leave `headers` out, or make the exchange one of kind headers",
                );
            }
            _ => {}
        }
    }
}

fn part<'a>(root: &'a Node, name: &str) -> impl Iterator<Item = (&'a tree::Key, &'a Node)> {
    root.get(name).map(Node::entries).unwrap_or_default().iter().map(|(key, node)| (key, node))
}

/// The topology of a tree in which nothing is wrong.
fn drafted(root: &Node) -> Topology {
    let mut topology = Topology::default();
    for (name, node) in part(root, "exchanges") {
        let kind = match text(node, "kind").as_deref() {
            Some("fanout") => ExchangeKind::Fanout,
            Some("topic") => ExchangeKind::Topic,
            Some("headers") => ExchangeKind::Headers,
            _ => ExchangeKind::Direct,
        };
        topology = topology.exchange(Exchange {
            durable: flag(node, "durable", true).value,
            internal: flag(node, "internal", false).value,
            alternate: text(node, "alternate"),
            ..Exchange::durable(&name.name, kind)
        });
    }
    for (name, node) in part(root, "queues") {
        topology = topology.queue(queue(&name.name, node));
    }
    for node in root.get("bindings").map(Node::items).unwrap_or_default() {
        topology = topology.binding(binding(node));
    }
    topology
}

fn queue(name: &str, node: &Node) -> Queue {
    let whole = |key: &str| node.get(key).and_then(number);
    let time = |key: &str| -> Option<Duration> { units::duration(node.get(key)?.text()?) };
    let bytes = node.get("max_bytes").and_then(|node| units::size(node.text()?));
    let mut queue = Queue {
        durable: flag(node, "durable", true).value,
        single_active_consumer: flag(node, "single_active_consumer", false).value,
        ttl: time("ttl"),
        expires: time("expires"),
        max_items: whole("max_items").and_then(std::num::NonZeroU64::new),
        max_bytes: bytes.and_then(std::num::NonZeroU64::new),
        dead_letter_exchange: text(node, "dead_letter_exchange"),
        dead_letter_key: text(node, "dead_letter_key"),
        max_priority: whole("max_priority").and_then(|priority| u8::try_from(priority).ok()),
        delivery_limit: whole("delivery_limit")
            .and_then(|limit| u32::try_from(limit).ok())
            .and_then(std::num::NonZeroU32::new),
        ..Queue::durable(name)
    };
    if text(node, "overflow").as_deref() == Some("drop-head") {
        queue.overflow = Overflow::DropHead;
    }
    queue.kind = text(node, "kind").map(|kind| match kind.as_str() {
        "quorum" => QueueKind::Quorum,
        "stream" => QueueKind::Stream,
        _ => QueueKind::Classic,
    });
    match text(node, "dead_letters") {
        Some(letters) => queue.dead_letter("", letters),
        None => queue,
    }
}

fn binding(node: &Node) -> Binding {
    let named = |key: &str| text(node, key).unwrap_or_default();
    let binding = match text(node, "to_exchange") {
        Some(exchange) => Binding::new(named("from"), named("key"), exchange).to_exchange(),
        None => Binding::new(named("from"), named("key"), named("to")),
    };
    let Some(headers) = node.get("headers") else { return binding };
    let matching = if named("match") == "any" { HeaderMatch::Any } else { HeaderMatch::All };
    let headers = headers.entries().iter().map(|(name, node)| (name.name.clone(), value(node)));
    Binding { headers: Some((matching, headers.collect::<Headers>())), ..binding }
}

/// A header's value, of the type that it is written as.
fn value(node: &Node) -> Value {
    let tree::Data::Scalar { text, style } = &node.data else {
        return Value::List(node.items().iter().map(value).collect());
    };
    match text.as_str() {
        _ if *style != Style::Plain => Value::Text(text.clone()),
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        number => number.parse().map(Value::Int).unwrap_or_else(|_| Value::Text(text.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_message::Declaration;

    #[test]
    fn a_file_says_everything_that_can_be_declared() {
        let text = "
exchanges:
  events: { kind: topic, alternate: rest }
  rest: { kind: fanout, durable: false, internal: true }
  by: { kind: headers }
queues:
  plain:
  all:
    kind: quorum
    ttl: 1m
    max_items: 5
    max_bytes: 1KiB
    overflow: drop-head
    dead_letters: dead
    delivery_limit: 3
    single_active_consumer: true
    expires: 1h
  other: { durable: false, dead_letter_exchange: rest, dead_letter_key: k, max_priority: 4 }
bindings:
  - { from: events, to: plain, key: 'a.#' }
  - { from: events, to_exchange: rest }
  - { from: by, to: all, match: any, headers: { n: 1, t: '1', b: true } }
";
        let file = TopologyFile::parse("t.yaml", text).unwrap_or_else(|problems| panic!("{problems}"));
        let all = Queue::durable("all")
            .kind(QueueKind::Quorum)
            .ttl(Duration::from_secs(60))
            .max_items(5)
            .max_bytes(1024)
            .overflow(Overflow::DropHead)
            .dead_letter("", "dead")
            .delivery_limit(3)
            .single_active_consumer()
            .expires(Duration::from_secs(3600));
        let headers = Headers::from([
            ("n".to_owned(), Value::Int(1)),
            ("t".to_owned(), "1".into()),
            ("b".to_owned(), Value::Bool(true)),
        ]);
        assert_eq!(
            file.topology().declarations(),
            [
                Declaration::Exchange(Exchange::durable("events", ExchangeKind::Topic).alternate("rest")),
                Declaration::Exchange(Exchange::transient("rest", ExchangeKind::Fanout).internal()),
                Declaration::Exchange(Exchange::durable("by", ExchangeKind::Headers)),
                Declaration::Queue(Queue::durable("plain")),
                Declaration::Queue(all),
                Declaration::Queue(Queue::transient("other").dead_letter("rest", "k").max_priority(4)),
                Declaration::Binding(Binding::new("events", "a.#", "plain")),
                Declaration::Binding(Binding::new("events", "", "rest").to_exchange()),
                Declaration::Binding(Binding::headers("by", HeaderMatch::Any, headers, "all")),
            ]
        );
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place_and_remedy() {
        let text = "
exchanges:
  events: { kind: topics }
  by: { kind: headers }
  on: {}
queues:
  q: { max_item: 1, overflow: drop-head }
  r: { ttl: 5, dead_letters: a, dead_letter_exchange: b }
  s: { dead_letter_key: k }
bindings:
  - { from: events }
  - { from: by, to: q, to_exchange: by }
  - { from: events, to: q, match: any }
queue: {}
";
        let problems = TopologyFile::parse("t.yaml", text).expect_err("much is wrong").to_string();
        for part in [
            "t.yaml:3:19: `kind` is `topics`",
            "did you mean `topic`?",
            "t.yaml:5:7: `on` lacks `kind`",
            "t.yaml:7:8: unknown key `max_item`",
            "t.yaml:7:21: queue `q` says what happens at a limit",
            "such as `500ms`",
            "t.yaml:8:33: queue `r` sends its dead letters to a queue and to an exchange",
            "t.yaml:9:8: queue `s` has a `dead_letter_key`",
            "t.yaml:11:5: the binding leads nowhere",
            "t.yaml:12:24: a binding leads to a queue or to an exchange",
            "compares headers, and the binding gives none",
            "`match` without `headers`",
            "t.yaml:14:1: unknown key `queue`",
        ] {
            assert!(problems.contains(part), "{part} is not in\n{problems}");
        }
        assert!(TopologyFile::parse("t.yaml", "").expect_err("empty").to_string().contains("is empty"));
    }
}
