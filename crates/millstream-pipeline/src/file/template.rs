//! Paths with places for fields: `out/{carrier}.ndjson`.

use crate::value::{self, Value};
use std::path::{Component, Path, PathBuf};

/// A path in which `{field}` stands for an item's field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template {
    /// The directory above the first part that has a place.
    pub(crate) root: PathBuf,
    /// What follows the root.
    parts: Vec<Part>,
    source: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Field(Vec<Value>, String),
}

/// A piece of a path that two templates are held against each other by. A field is one character and the rest of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece {
    Char(char),
    /// Any but a slash.
    One,
    /// Any number of them.
    Rest,
}

impl Piece {
    fn shares_a_character_with(&self, other: &Piece) -> bool {
        match (self, other) {
            (Piece::Char(one), Piece::Char(other)) => one == other,
            (Piece::Char(c), _) | (_, Piece::Char(c)) => *c != '/',
            _ => true,
        }
    }
}

/// A file name may have this many bytes on every file system in use; the partial's name is longer by 9.
const NAME_MAX: usize = 240;

impl Template {
    /// Reads a template; the error is what is wrong, with the byte it begins at.
    pub(crate) fn parse(source: &str, base: &Path) -> Result<Self, (usize, String)> {
        let fixed = source.find('{').unwrap_or(source.len());
        let (root, start) = match source[..fixed].rfind('/') {
            Some(0) => (PathBuf::from("/"), 1),
            Some(slash) => (base.join(&source[..slash]), slash + 1),
            None => (base.to_owned(), 0),
        };
        let mut parts = Vec::new();
        let mut rest = &source[start..];
        while let Some(open) = rest.find(['{', '}']) {
            let offset = source.len() - rest.len() + open;
            let close = rest[open..].find('}').map(|close| open + close);
            let (true, Some(close)) = (rest[open..].starts_with('{'), close) else {
                return Err((offset, "a brace without its partner".to_owned()));
            };
            let field = rest[open + 1..close].trim();
            if field.is_empty() || field.contains('{') || field.split('.').any(str::is_empty) {
                return Err((offset, format!("`{}` names no field", &rest[open..=close])));
            }
            if open > 0 {
                parts.push(Part::Text(rest[..open].to_owned()));
            }
            parts.push(Part::Field(field.split('.').map(value::text).collect(), field.to_owned()));
            rest = &rest[close + 1..];
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        if source.ends_with('/') || parts.is_empty() {
            return Err((0, "names a directory, not a file".to_owned()));
        }
        Ok(Template { root, parts, source: source.to_owned() })
    }

    /// Whether every item goes to the same file.
    pub(crate) fn is_fixed(&self) -> bool {
        self.parts.iter().all(|part| matches!(part, Part::Text(_)))
    }

    /// How many directories below the root its files lie.
    pub(crate) fn levels(&self) -> usize {
        let slashes = |part: &Part| match part {
            Part::Text(text) => text.matches('/').count(),
            Part::Field(..) => 0,
        };
        self.parts.iter().map(slashes).sum()
    }

    /// Whether `path`, relative to the root, could be one of this template's.
    pub(crate) fn matches(&self, path: &str) -> bool {
        fn rest(parts: &[Part], path: &str) -> bool {
            match parts.split_first() {
                None => path.is_empty(),
                Some((Part::Text(text), parts)) => {
                    path.strip_prefix(text.as_str()).is_some_and(|path| rest(parts, path))
                }
                // A field fills at least one character and no slash.
                Some((Part::Field(..), parts)) => path
                    .char_indices()
                    .take_while(|(_, c)| *c != '/')
                    .any(|(at, c)| rest(parts, &path[at + c.len_utf8()..])),
            }
        }
        rest(&self.parts, path)
    }

    /// The same template with its root as it is from everywhere, links resolved as far as the directories are there: pipeline
    /// files of different directories can name one file.
    pub(crate) fn of_absolute_root(&self) -> Template {
        let root = std::path::absolute(&self.root).unwrap_or_else(|_| self.root.clone());
        let there = root.ancestors().find_map(|above| Some((above, above.canonicalize().ok()?)));
        let root = match there {
            Some((above, found)) => found.join(root.strip_prefix(above).unwrap_or(Path::new(""))),
            None => root,
        };
        Template { root, ..self.clone() }
    }

    /// Whether some path could be of both templates.
    pub(crate) fn overlaps(&self, other: &Template) -> bool {
        meet(&self.pieces(), &other.pieces())
    }

    /// Whether this path, whose name may have `*` for any characters, could be of the template.
    pub(crate) fn may_be(&self, path: &Path) -> bool {
        meet(&self.pieces(), &pieces_of(path))
    }

    /// The whole path, character by character.
    fn pieces(&self) -> Vec<Piece> {
        let mut pieces = root_pieces(&self.root);
        for part in &self.parts {
            match part {
                Part::Text(text) => pieces.extend(text.chars().map(Piece::Char)),
                Part::Field(..) => pieces.extend([Piece::One, Piece::Rest]),
            }
        }
        pieces
    }

    /// The template as it was written.
    pub(crate) fn source(&self) -> &str {
        &self.source
    }

    /// Writes the path of `item`, relative to [`root`](Self::root), into `out`.
    ///
    /// A field's value fills one part of the path and can never leave its directory.
    ///
    /// # Errors
    ///
    /// Says which field is missing or what in its value cannot be part of a file name.
    pub(crate) fn fill(&self, item: &Value, out: &mut String) -> Result<(), String> {
        out.clear();
        let mut text = Vec::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Field(path, name) => {
                    let value = path.iter().try_fold(item, |value, key| value::field(value, key));
                    let value =
                        value.ok_or_else(|| format!("the item has no field `{name}` for its file's path"))?;
                    text.clear();
                    value::write_plain(&mut text, value);
                    out.push_str(name_part(&text).map_err(|why| {
                        let shown: String = String::from_utf8_lossy(&text).chars().take(60).collect();
                        format!("field `{name}` is {shown:?}, which {why}")
                    })?);
                }
            }
        }
        for part in out.split('/') {
            if part == "." || part == ".." || part.is_empty() {
                return Err(format!("the path would be {out:?}, which leaves its directory"));
            }
            if part.len() > NAME_MAX {
                return Err(format!("a part of the path has {} bytes; {NAME_MAX} is the most", part.len()));
            }
        }
        Ok(())
    }
}

fn name_part(text: &[u8]) -> Result<&str, &'static str> {
    let text = std::str::from_utf8(text).map_err(|_| "is not UTF-8")?;
    if text.is_empty() {
        Err("cannot be part of a file's name")
    } else if text.contains(['/', '\\']) {
        Err("would lead to another directory")
    } else if text.chars().any(char::is_control) {
        Err("has control characters")
    } else if text.starts_with('.') {
        Err("begins with a point")
    } else {
        Ok(text)
    }
}

/// Whether some path could be of both.
fn meet(one: &[Piece], two: &[Piece]) -> bool {
    let mut reached = vec![false; (one.len() + 1) * (two.len() + 1)];
    let mut open = vec![(0, 0)];
    while let Some((i, j)) = open.pop() {
        if i > one.len() || j > two.len() || std::mem::replace(&mut reached[i * (two.len() + 1) + j], true) {
            continue;
        }
        let (a, b) = (one.get(i), two.get(j));
        if (a, b) == (None, None) {
            return true;
        }
        if a == Some(&Piece::Rest) {
            open.push((i + 1, j));
        }
        if b == Some(&Piece::Rest) {
            open.push((i, j + 1));
        }
        // One character of both.
        if let (Some(a), Some(b)) = (a, b)
            && a.shares_a_character_with(b)
        {
            open.push((i + usize::from(*a != Piece::Rest), j + usize::from(*b != Piece::Rest)));
        }
    }
    false
}

/// Whether some path could be of both of these, whose names may have `*` for any characters.
pub(crate) fn may_be_one(one: &Path, other: &Path) -> bool {
    meet(&pieces_of(one), &pieces_of(other))
}

/// A path whose name may have `*`, character by character.
fn pieces_of(path: &Path) -> Vec<Piece> {
    let mut pieces = root_pieces(path.parent().unwrap_or(Path::new("")));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    pieces.extend(name.chars().map(|c| if c == '*' { Piece::Rest } else { Piece::Char(c) }));
    pieces
}

/// A directory, however it is written, with the slash behind it.
fn root_pieces(root: &Path) -> Vec<Piece> {
    let root: PathBuf = named_parts(root).collect();
    let mut pieces: Vec<Piece> =
        root.to_string_lossy().trim_end_matches('/').chars().map(Piece::Char).collect();
    pieces.push(Piece::Char('/'));
    pieces
}

/// A path without the parts that mean nothing (`./`), so that one place has one path. Links are not looked at.
pub(crate) fn plain(path: &Path) -> PathBuf {
    let plain: PathBuf = named_parts(path).collect();
    // The current directory itself has no other name.
    if plain.as_os_str().is_empty() { path.to_owned() } else { plain }
}

fn named_parts(path: &Path) -> impl Iterator<Item = Component<'_>> {
    path.components().filter(|part| !matches!(part, Component::CurDir))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(template: &str, item: &str) -> Result<String, String> {
        let template = Template::parse(template, Path::new("/base")).expect("a good template");
        let mut out = String::new();
        template.fill(&value::parse_json(item.as_bytes()).expect("JSON"), &mut out)?;
        Ok(template.root.join(out).display().to_string())
    }

    #[test]
    fn fields_fill_their_places() {
        assert_eq!(
            filled("out/{carrier}.ndjson", r#"{"carrier":"UA"}"#).as_deref(),
            Ok("/base/out/UA.ndjson")
        );
        assert_eq!(filled("{a.b}-{n}.csv", r#"{"a":{"b":"x"},"n":7}"#).as_deref(), Ok("/base/x-7.csv"));
        assert_eq!(filled("out/all.ndjson", "{}").as_deref(), Ok("/base/out/all.ndjson"));
        assert_eq!(filled("out/x-{n}/f.csv", r#"{"n":1}"#).as_deref(), Ok("/base/out/x-1/f.csv"));
        assert_eq!(filled("/abs/{n}", r#"{"n":1}"#).as_deref(), Ok("/abs/1"));
    }

    #[test]
    fn a_value_cannot_leave_the_directory() {
        for value in ["../../etc/passwd", "a/b", "..", ".", "", ".hidden", "a\\b", "a\u{0}b", "a\nb"] {
            let item = serde_json::json!({ "c": value }).to_string();
            assert!(filled("out/{c}", &item).is_err(), "{value:?} was taken");
        }
        assert!(filled("out/{c}", r#"{"d":1}"#).expect_err("no field").contains("`c`"));
        assert!(filled("out/{c}", &format!("{{\"c\":\"{}\"}}", "x".repeat(300))).is_err());
    }

    #[test]
    fn a_template_knows_its_own_paths() {
        let template = Template::parse("out/{a}-{b}.csv", Path::new("/base")).expect("a good template");
        for (path, own) in [
            ("x-y.csv", true),
            ("x-y-z.csv", true),
            ("x.csv", false),
            ("-y.csv", false),
            ("a/x-y.csv", false),
        ] {
            assert_eq!(template.matches(path), own, "{path}");
        }
    }

    #[test]
    fn templates_that_can_name_one_file_are_told_apart_from_others() {
        let template = |text: &str| Template::parse(text, Path::new("/base")).expect("a good template");
        for (one, other, overlap) in [
            ("out/{a}.ndjson", "out/{a}-rest.ndjson", true),
            ("out/{a}.ndjson", "out/rest.ndjson", true),
            ("out/{a}.ndjson", "out/./rest.ndjson", true),
            ("out/{a}/f.csv", "out/x/{b}", true),
            ("out/{a}{b}", "out/{c}", true),
            ("out/a", "out/a", true),
            ("out/{a}.ndjson", "out/rest.csv", false),
            ("out/{a}.ndjson", "out/rest/{a}.ndjson", false),
            ("out/{a}{b}", "out/x", false),
            ("out/x-{a}", "out/y-{a}", false),
            ("/{a}", "/base/{a}", false),
        ] {
            assert_eq!(template(one).overlaps(&template(other)), overlap, "{one} {other}");
            assert_eq!(template(other).overlaps(&template(one)), overlap, "{other} {one}");
        }
    }

    #[test]
    fn broken_templates_are_refused() {
        for template in ["out/{", "out/}", "out/{}", "out/{a{b}", "out/", "out/{a..b}"] {
            assert!(Template::parse(template, Path::new("/base")).is_err(), "{template:?} was taken");
        }
    }
}
