//! Settings in a YAML file, for commands whose files are not pipelines: every entry by its dotted key and with its place, so that
//! what is wrong with it can be shown where it stands.

use std::path::Path;

use crate::file::place::{At, Texts};
use crate::file::problem::{self, Findings, Problems};
use crate::file::tree::{self, Data, Node};
use crate::file::weave;

/// A YAML file as a list of entries, and what was found wrong with it so far.
///
/// ```
/// use millstream_pipeline::SettingsFile;
///
/// let mut file = SettingsFile::parse("a.yaml", "listen: here\nroutes:\n  - path: /a\n").unwrap();
/// let keys: Vec<_> = file.entries().iter().map(|entry| entry.key.as_str()).collect();
/// assert_eq!(keys, ["listen", "routes.0.path"]);
/// file.refuse(0, "`here` is no address", "write 127.0.0.1:8080");
/// let problems = file.finish().unwrap_err().to_string();
/// assert!(problems.starts_with("a.yaml:1:9: `here` is no address\n  1 | listen: here"), "{problems}");
/// ```
#[derive(Debug)]
pub struct SettingsFile {
    texts: Texts,
    entries: Vec<SettingsEntry>,
    findings: Findings,
}

/// One scalar of a settings file.
#[derive(Debug, Clone)]
pub struct SettingsEntry {
    /// The dotted key: names of maps, and numbers of lists from 0.
    pub key: String,
    /// The text of the value; empty if nothing was written.
    pub value: String,
    at: At,
    key_at: At,
}

impl SettingsFile {
    /// Reads a file; `${NAME}` takes its value from the process's environment.
    ///
    /// # Errors
    /// If it cannot be read, or is no YAML that is a map of texts, lists and maps.
    pub fn open(path: &Path) -> Result<SettingsFile, Problems> {
        let name = path.display().to_string();
        let source = std::fs::read_to_string(path).map_err(|error| {
            let remedy = "check the path, and that you may read the file".to_owned();
            Problems::of(name.clone(), format!("cannot be read: {error}"), remedy)
        })?;
        SettingsFile::check(name, source, &|name| std::env::var_os(name))
    }

    /// Reads a text, without an environment; `name` stands in messages.
    ///
    /// # Errors
    /// As of [`open`](SettingsFile::open).
    pub fn parse(name: &str, source: &str) -> Result<SettingsFile, Problems> {
        SettingsFile::check(name.to_owned(), source.to_owned(), &|_| None)
    }

    fn check(
        file: String,
        source: String,
        environment: weave::Environment<'_>,
    ) -> Result<SettingsFile, Problems> {
        let mut findings = Findings::default();
        let texts = Texts { file, source, sets: Vec::new() };
        let mut entries = Vec::new();
        if let Some(mut root) = tree::read(&texts.source, 0, &mut findings) {
            weave::interpolate(&mut root, environment, &mut findings);
            match &root.data {
                Data::Map(_) => flatten(&root, "", root.at, &mut entries),
                _ => {
                    findings.add(root.at, "the file is no map of settings", "begin with a line `key: value`")
                }
            }
        }
        let file = SettingsFile { texts, entries, findings };
        if file.findings.is_empty() { Ok(file) } else { Err(file.findings.into_problems(&file.texts)) }
    }

    /// The entries, in the order of the file.
    pub fn entries(&self) -> &[SettingsEntry] {
        &self.entries
    }

    /// Says what is wrong with the entry of this number, and what to do.
    pub fn refuse(&mut self, entry: usize, message: impl Into<String>, remedy: impl Into<String>) {
        self.findings.add(self.entries[entry].at, message, remedy);
    }

    /// As [`refuse`](Self::refuse), if it is the key of the entry that is wrong.
    pub fn refuse_key(&mut self, entry: usize, message: impl Into<String>, remedy: impl Into<String>) {
        self.findings.add(self.entries[entry].key_at, message, remedy);
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// If something was refused: all of it.
    pub fn finish(self) -> Result<(), Problems> {
        if self.findings.is_empty() { Ok(()) } else { Err(self.findings.into_problems(&self.texts)) }
    }
}

fn flatten(node: &Node, key: &str, key_at: At, entries: &mut Vec<SettingsEntry>) {
    let below = |name: &str| if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
    match &node.data {
        Data::Map(children) if !children.is_empty() => {
            children.iter().for_each(|(name, child)| flatten(child, &below(&name.name), name.at, entries));
        }
        Data::List(children) if !children.is_empty() => {
            children
                .iter()
                .enumerate()
                .for_each(|(at, child)| flatten(child, &below(&at.to_string()), key_at, entries));
        }
        Data::Map(_) if key.is_empty() => {}
        _ => {
            let value = node.text().filter(|_| !node.is_null()).unwrap_or_default().to_owned();
            entries.push(SettingsEntry { key: key.to_owned(), value, at: node.at, key_at });
        }
    }
}

/// The one of `known` that `word` was probably meant to be.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    problem::nearest(word, known)
}
