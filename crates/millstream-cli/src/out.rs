//! Standard output and standard error, written so that a closed pipe is not a panic.

use std::borrow::Cow;
use std::io::{self, BufWriter, IsTerminal, Stdout, Write};

use crate::failure::Failure;

/// Standard output, buffered. Whatever is written is there after [`Out::flush`].
pub(crate) struct Out {
    to: BufWriter<Stdout>,
    terminal: bool,
}

impl Out {
    pub(crate) fn new() -> Out {
        let to = io::stdout();
        let terminal = to.is_terminal();
        Out { to: BufWriter::with_capacity(64 * 1024, to), terminal }
    }

    /// Writes text for people, and the end of the line. What came from outside may be in it: see [`printable`].
    pub(crate) fn line(&mut self, text: impl AsRef<str>) -> Result<(), Failure> {
        self.bytes(printable(text.as_ref()).as_bytes())
    }

    /// Writes a message's body, and the end of the line: as it is, but to a terminal only what that does not obey.
    pub(crate) fn body(&mut self, body: &[u8]) -> Result<(), Failure> {
        self.bytes(&body_for(self.terminal, body))
    }

    /// Writes a value as JSON on one line.
    pub(crate) fn json(&mut self, value: &serde_json::Value) -> Result<(), Failure> {
        self.bytes(json_line(value).as_bytes())
    }

    /// Writes bytes as they are, and the end of the line.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.to.write_all(bytes).and_then(|()| self.to.write_all(b"\n")).map_err(Failure::output)
    }

    /// Hands everything to the system.
    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        self.to.flush().map_err(Failure::output)
    }
}

fn body_for(terminal: bool, body: &[u8]) -> Cow<'_, [u8]> {
    if !terminal {
        return body.into();
    }
    match String::from_utf8_lossy(body) {
        Cow::Borrowed(text) => match printable(text) {
            Cow::Borrowed(text) => text.as_bytes().into(),
            Cow::Owned(text) => text.into_bytes().into(),
        },
        Cow::Owned(text) => printable(&text).into_owned().into_bytes().into(),
    }
}

/// Whether a terminal may obey a character instead of showing it: control characters, and those that turn the direction of what
/// follows, by which a line can be made to look like another (CVE-2021-42574).
fn is_obeyed(c: char) -> bool {
    let marks = |c| matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || marks(c)
}

/// JSON escapes the control characters that ASCII begins with; terminals obey more than those.
fn json_line(value: &serde_json::Value) -> String {
    let text = value.to_string();
    if !text.contains(is_obeyed) {
        return text;
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match is_obeyed(c) {
            // They are in texts only, where this is how JSON writes them.
            true => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            false => out.push(c),
        }
    }
    out
}

/// Writes lines to standard error, [`printable`]. Where that is closed there is nobody left to tell.
pub(crate) fn complain(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{}", printable(text));
}

/// Text without the characters that a terminal might obey: they are shown as escapes. Lines and tabs stay. Names,
/// items and what a server answered are in errors as they came.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    escaped(text, |c| is_obeyed(c) && !matches!(c, '\n' | '\t'))
}

/// As [`printable`], on one line: a name, a cell of a table.
pub(crate) fn on_one_line(text: &str) -> Cow<'_, str> {
    escaped(text, is_obeyed)
}

fn escaped(text: &str, obeyed: fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(obeyed) {
        return text.into();
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match obeyed(c) {
            true => out.extend(c.escape_default()),
            false => out.push(c),
        }
    }
    out.into()
}

/// Bytes as one readable line of at most `width` characters: what a terminal might obey and what is not UTF-8 are shown as escapes.
pub(crate) fn preview(bytes: &[u8], width: usize) -> String {
    // Four bytes a character at most, and the replacement of an invalid byte is one character.
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(width * 4)]);
    let mut out = String::new();
    let mut room = width;
    for character in text.chars() {
        let shown =
            if is_obeyed(character) { character.escape_default().to_string() } else { character.to_string() };
        let size = shown.chars().count();
        if size >= room {
            out.push('…');
            return out;
        }
        room -= size;
        out.push_str(&shown);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{body_for, json_line, on_one_line, preview, printable};

    #[test]
    fn no_terminal_obeys_what_is_told() {
        assert_eq!(printable("a\n\tb — ü"), "a\n\tb — ü");
        assert_eq!(printable("a\x1b[2J\r\u{9b}b\x7f"), "a\\u{1b}[2J\\r\\u{9b}b\\u{7f}");
        assert_eq!(printable("a\u{202e}b\u{2066}"), "a\\u{202e}b\\u{2066}");
    }

    #[test]
    fn a_name_stays_on_its_line() {
        assert_eq!(on_one_line("a\n\t\x1bb"), "a\\n\\t\\u{1b}b");
    }

    #[test]
    fn bodies_are_as_they_are_but_on_a_terminal() {
        for body in [&b"a\x1b[2J\n\xff"[..], b"\xc2\x9b"] {
            assert_eq!(&*body_for(false, body), body);
        }
        assert_eq!(&*body_for(true, b"a\x1b[2J\n\xff"), "a\\u{1b}[2J\n\u{fffd}".as_bytes());
        assert_eq!(&*body_for(true, "\u{9b}ü".as_bytes()), "\\u{9b}ü".as_bytes());
        assert_eq!(&*body_for(true, b"plain\ttext"), b"plain\ttext");
    }

    #[test]
    fn json_has_no_control_characters_and_stays_what_it_is() {
        let value = serde_json::json!({ "a\u{9b}": "\u{9b}31m\x7f\x1b ü" });
        let line = json_line(&value);
        assert!(!line.contains(char::is_control), "{line:?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&line).expect("JSON"), value);
    }

    #[test]
    fn a_preview_is_one_line_that_no_terminal_obeys() {
        assert_eq!(preview(b"plain", 10), "plain");
        assert_eq!(preview(b"a\x1b[31m\nb", 40), "a\\u{1b}[31m\\nb");
        assert_eq!(preview(b"\xff\xfe", 10), "\u{fffd}\u{fffd}");
        assert_eq!(preview("ααααα".repeat(100).as_bytes(), 4), "ααα…");
        assert_eq!(preview(b"", 4), "");
    }
}
