//! What comes into the file from outside: `${ENV}` variables and `--set KEY=VALUE`.

use std::ffi::OsString;

use super::place::At;
use super::problem::{Findings, nearest};
use super::tree::{self, Data, Key, Node, Style};

/// Looks a variable of the environment up.
pub(crate) type Environment<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// Replaces `${NAME}` and `${NAME:-default}` in every scalar of the tree. `$${` stands for `${`.
///
/// This happens in the finished tree: a variable gives one scalar its text and can add no keys.
pub(crate) fn interpolate(node: &mut Node, environment: Environment<'_>, findings: &mut Findings) {
    match &mut node.data {
        Data::List(items) => items.iter_mut().for_each(|item| interpolate(item, environment, findings)),
        Data::Map(entries) => {
            entries.iter_mut().for_each(|(_, value)| interpolate(value, environment, findings));
        }
        Data::Scalar { text, .. } if text.contains("${") => {
            *text = expand(text, node.at, environment, findings);
        }
        Data::Scalar { .. } => {}
    }
}

fn expand(text: &str, at: At, environment: Environment<'_>, findings: &mut Findings) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let (before, reference) = rest.split_at(start);
        if let Some(before) = before.strip_suffix('$') {
            out.push_str(before);
            out.push_str("${");
            rest = &reference[2..];
            continue;
        }
        out.push_str(before);
        let Some(end) = reference.find('}') else {
            findings.add_unknown(
                at,
                "`${` without its `}`",
                "close it, or write `$${` for the two characters",
            );
            return text.to_owned();
        };
        let inner = &reference[2..end];
        let (name, default) = match inner.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (inner, None),
        };
        let valid = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        // An empty variable counts as missing when there is a default, as in the shell.
        let value = environment(name).filter(|value| !(value.is_empty() && default.is_some()));
        match value.map(OsString::into_string) {
            _ if !valid => findings.add_unknown(
                at,
                format!("`${{{inner}}}` does not name a variable"),
                "write `${NAME}` or `${NAME:-default}`, or `$${` for the two characters",
            ),
            Some(Ok(value)) => out.push_str(&value),
            Some(Err(value)) => findings.add_unknown(
                at,
                format!("the environment variable `{name}` is not UTF-8: {value:?}"),
                "set it to text in UTF-8, or read what is not from a file",
            ),
            None => match default {
                Some(default) => out.push_str(default),
                None => findings.add_unknown(
                    at,
                    format!("the environment variable `{name}` is not set"),
                    format!("set it before starting, or give a default: `${{{name}:-…}}`"),
                ),
            },
        }
        rest = &reference[end + 1..];
    }
    out.push_str(rest);
    out
}

/// Applies the `number`-th `--set`, `path.to.key=VALUE`; list entries are named by their number from 0.
pub(crate) fn set(root: &mut Node, argument: &str, number: u16, findings: &mut Findings) {
    let at = At { origin: number, line: 1, column: 1, length: argument.chars().count().max(1) as u32 };
    let Some((path, value)) = argument.split_once('=').filter(|(path, _)| !path.is_empty()) else {
        findings.add(at, "no `=` between key and value", "write --set batch.count=100");
        return;
    };
    if value.starts_with('{') && tree::read(value, number, &mut Findings::default()).is_none() {
        let quoted = format!("quote it, as in --set '{path}=\"{value}\"'");
        findings.add(at, "a value that begins with `{` is a map, and this is none", quoted);
        return;
    }
    let Some(mut value) = tree::read(value, number, findings).or_else(|| {
        value
            .is_empty()
            .then(|| Node { at, data: Data::Scalar { text: String::new(), style: Style::Quoted } })
    }) else {
        return;
    };
    relocate(&mut value, at);
    let mut node = root;
    for name in path.split('.') {
        // A key that holds nothing yet, or does not exist, becomes a map on the way down, or a list at its first entry.
        if node.is_null() {
            node.data = match name {
                "0" => Data::List(vec![nothing(at)]),
                _ => Data::Map(Vec::new()),
            };
        }
        node = match &mut node.data {
            Data::List(items) => {
                let count = items.len();
                match name.parse::<usize>().ok().filter(|index| *index < count) {
                    Some(index) => &mut items[index],
                    None => {
                        let message = format!("`{name}` is not an entry of this list");
                        findings.add(at, message, format!("it has {count} entries, numbered from 0"));
                        return;
                    }
                }
            }
            Data::Map(entries) => {
                let index = match entries.iter().position(|(key, _)| key.name == name) {
                    Some(index) => index,
                    None => {
                        entries.push((Key { name: name.to_owned(), at }, nothing(at)));
                        entries.len() - 1
                    }
                };
                &mut entries[index].1
            }
            Data::Scalar { text, .. } => {
                let near = nearest(name, [text.as_str()]).is_some();
                let message = format!("`{name}` lies below a value that is not a map");
                findings.add(at, message, if near { "leave the last part out" } else { "check the path" });
                return;
            }
        };
    }
    *node = value;
}

fn nothing(at: At) -> Node {
    Node { at, data: Data::Scalar { text: String::new(), style: Style::Plain } }
}

/// Every part of an override is reported at the override.
fn relocate(node: &mut Node, at: At) {
    node.at = at;
    match &mut node.data {
        Data::List(items) => items.iter_mut().for_each(|item| relocate(item, at)),
        Data::Map(entries) => entries.iter_mut().for_each(|(key, value)| {
            key.at = at;
            relocate(value, at);
        }),
        Data::Scalar { .. } => {}
    }
}
