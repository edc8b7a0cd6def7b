//! The YAML text as a tree in which every node knows its place.
//!
//! The subset is deliberate: one document, string keys, no anchors, aliases or tags. They would let one
//! place of the file change another, and no error could then name one place.

use super::place::At;
use super::problem::Findings;
use saphyr_parser::{Event, Parser, ScalarStyle, Span};

/// Nesting beyond this is refused; a pipeline needs about ten.
const DEPTH_MAX: usize = 48;
/// Nodes beyond this are refused.
const NODES_MAX: usize = 100_000;

#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) at: At,
    pub(crate) data: Data,
}

#[derive(Debug, Clone)]
pub(crate) enum Data {
    Scalar { text: String, style: Style },
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

#[derive(Debug, Clone)]
pub(crate) struct Key {
    pub(crate) name: String,
    pub(crate) at: At,
}

/// How a scalar was written: decides its type and where inside it a column lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    Plain,
    Quoted,
    Block,
}

impl Node {
    pub(crate) fn get(&self, name: &str) -> Option<&Node> {
        self.entry(name).map(|(_, node)| node)
    }

    pub(crate) fn entry(&self, name: &str) -> Option<(&Key, &Node)> {
        self.entries().iter().find(|(key, _)| key.name == name).map(|(key, node)| (key, node))
    }

    pub(crate) fn entries(&self) -> &[(Key, Node)] {
        match &self.data {
            Data::Map(entries) => entries,
            _ => &[],
        }
    }

    pub(crate) fn items(&self) -> &[Node] {
        match &self.data {
            Data::List(items) => items,
            _ => &[],
        }
    }

    /// The text of a scalar, whatever its type.
    pub(crate) fn text(&self) -> Option<&str> {
        match &self.data {
            Data::Scalar { text, .. } => Some(text),
            _ => None,
        }
    }

    pub(crate) fn is_null(&self) -> bool {
        matches!(&self.data, Data::Scalar { text, style: Style::Plain } if matches!(text.as_str(), "" | "~" | "null"))
    }

    /// What the node is, in words for messages.
    pub(crate) fn describe(&self) -> String {
        match &self.data {
            Data::List(_) => "a list".to_owned(),
            Data::Map(_) => "a map".to_owned(),
            Data::Scalar { .. } if self.is_null() => "nothing".to_owned(),
            Data::Scalar { text, .. } => {
                let short: String = text.chars().take(40).collect();
                format!("`{short}{}`", if short.len() < text.len() { "…" } else { "" })
            }
        }
    }

    /// Where character `column` of line `line` (both from 1) of this scalar stands in the file.
    pub(crate) fn inside(&self, source: &str, line: usize, column: usize) -> At {
        let (line, column) = (line.max(1) as u32, column.max(1) as u32);
        let Data::Scalar { style, .. } = &self.data else { return self.at };
        match style {
            _ if self.at.origin != 0 => self.at,
            Style::Plain if line == 1 => At { column: self.at.column + column - 1, length: 1, ..self.at },
            Style::Quoted if line == 1 => At { column: self.at.column + column, length: 1, ..self.at },
            Style::Block => {
                // The place of a block scalar is its first line of text, not the `|` before it.
                let row = self.at.line + line - 1;
                let text = source.lines().nth(row as usize - 1).unwrap_or("");
                let indent = text.chars().take_while(|c| *c == ' ').count() as u32;
                At { line: row, column: indent + column, length: 1, ..self.at }
            }
            // A scalar folded over several lines: the line is right, the column of its text unknown.
            _ => At { line: self.at.line + line - 1, column: 1, length: 1, ..self.at },
        }
    }
}

/// Reads `source` into a tree; `None` when nothing can be made of it.
pub(crate) fn read(source: &str, origin: u16, findings: &mut Findings) -> Option<Node> {
    Reader { origin, findings, nodes: 0 }.document(source)
}

struct Reader<'f> {
    origin: u16,
    findings: &'f mut Findings,
    nodes: usize,
}

/// What to do about YAML that the parser does not take, by its words.
fn yaml_remedy(info: &str) -> &'static str {
    if info.contains("anchor") || info.contains("alias") {
        "quote a text that begins with `*` or `&`, as in `'*.csv'`: bare it is an alias, which is not taken here"
    } else if info.contains("tab") {
        "indent by spaces: YAML takes no tabs there"
    } else {
        "check the indentation, and quote text that contains `: `, `#`, `{` or `[`"
    }
}

/// A collection that is being filled.
enum Open {
    List(At, Vec<Node>),
    Map(At, Vec<(Key, Node)>, Option<Key>),
}

impl Reader<'_> {
    fn document(&mut self, source: &str) -> Option<Node> {
        let mut open: Vec<Open> = Vec::new();
        let mut root = None;
        let mut documents = 0;
        for event in Parser::new_from_str(source) {
            let (event, span) = match event {
                Ok(event) => event,
                Err(error) => {
                    let mark = error.marker();
                    let at = self.at(Span::new(*mark, *mark));
                    self.findings.add(
                        at,
                        format!("not valid YAML: {}", error.info()),
                        yaml_remedy(error.info()),
                    );
                    return None;
                }
            };
            let at = self.at(span);
            let node = match event {
                Event::DocumentStart(_) => {
                    documents += 1;
                    if documents > 1 {
                        self.findings.add(
                            at,
                            "a second document begins here",
                            "keep one document in one file; `millstream run` takes several files",
                        );
                        return None;
                    }
                    continue;
                }
                Event::Alias(_) => {
                    self.refuse_anchor(at);
                    Some(Node { at, data: Data::Scalar { text: String::new(), style: Style::Plain } })
                }
                Event::Scalar(text, style, anchor, tag) => {
                    if anchor != 0 || tag.is_some() {
                        self.refuse_anchor(at);
                    }
                    let style = match style {
                        ScalarStyle::Plain => Style::Plain,
                        ScalarStyle::Literal | ScalarStyle::Folded => Style::Block,
                        _ => Style::Quoted,
                    };
                    Some(Node { at, data: Data::Scalar { text: text.into_owned(), style } })
                }
                Event::SequenceStart(anchor, tag) => {
                    if anchor != 0 || tag.is_some() {
                        self.refuse_anchor(at);
                    }
                    open.push(Open::List(at, Vec::new()));
                    None
                }
                Event::MappingStart(anchor, tag) => {
                    if anchor != 0 || tag.is_some() {
                        self.refuse_anchor(at);
                    }
                    open.push(Open::Map(at, Vec::new(), None));
                    None
                }
                Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                    Some(Open::List(at, items)) => Some(Node { at, data: Data::List(items) }),
                    Some(Open::Map(at, entries, _)) => Some(Node { at, data: Data::Map(entries) }),
                    None => None,
                },
                _ => None,
            };
            self.nodes += 1;
            if open.len() > DEPTH_MAX || self.nodes > NODES_MAX {
                self.findings.add(
                    at,
                    format!("more than {DEPTH_MAX} levels or {NODES_MAX} values"),
                    "a pipeline file is a page or two; check that this is one",
                );
                return None;
            }
            if let Some(node) = node {
                match open.last_mut() {
                    None => root = Some(node),
                    Some(Open::List(_, items)) => items.push(node),
                    Some(Open::Map(_, entries, key)) => match key.take() {
                        None => *key = Some(self.key(node)),
                        Some(key) => self.insert(entries, key, node),
                    },
                }
            }
        }
        root
    }

    fn key(&mut self, node: Node) -> Key {
        let at = node.at;
        match node.data {
            Data::Scalar { text, .. } => Key { name: text, at },
            _ => {
                self.findings.add(
                    at,
                    "a list or map stands where a key is expected",
                    "write a word as the key",
                );
                Key { name: String::new(), at }
            }
        }
    }

    fn insert(&mut self, entries: &mut Vec<(Key, Node)>, key: Key, node: Node) {
        if let Some((first, _)) = entries.iter().find(|(other, _)| other.name == key.name) {
            let message = format!("key `{}` appears twice; the first is on line {}", key.name, first.at.line);
            self.findings.add(key.at, message, "keep one of the two");
        } else {
            entries.push((key, node));
        }
    }

    fn refuse_anchor(&mut self, at: At) {
        self.findings.add(
            at,
            "anchors, aliases and tags are not part of a pipeline file",
            "write the value out, or put it in an environment variable and use ${NAME}",
        );
    }

    fn at(&self, span: Span) -> At {
        let (start, end) = (span.start, span.end);
        let length = if start.line() == end.line() { end.col().saturating_sub(start.col()) } else { 1 };
        At {
            origin: self.origin,
            line: start.line().max(1) as u32,
            column: start.col() as u32 + 1,
            length: length.max(1) as u32,
        }
    }
}
