//! Standard output and standard error, written so that a closed pipe is not a panic.

use std::borrow::Cow;
use std::io::{self, BufWriter, Stdout, Write};

use crate::failure::Failure;

/// Standard output, buffered. Whatever is written is there after [`Out::flush`].
pub(crate) struct Out(BufWriter<Stdout>);

impl Out {
    pub(crate) fn new() -> Out {
        Out(BufWriter::with_capacity(64 * 1024, io::stdout()))
    }

    /// Writes text and the end of the line.
    pub(crate) fn line(&mut self, text: impl AsRef<[u8]>) -> Result<(), Failure> {
        self.0.write_all(text.as_ref()).and_then(|()| self.0.write_all(b"\n")).map_err(Failure::output)
    }

    /// Writes text for people, and the end of the line. What came from outside may be in it: see [`printable`].
    pub(crate) fn text(&mut self, text: impl AsRef<str>) -> Result<(), Failure> {
        self.line(printable(text.as_ref()).as_bytes())
    }

    /// Writes a value as JSON on one line.
    pub(crate) fn json(&mut self, value: &serde_json::Value) -> Result<(), Failure> {
        self.line(value.to_string())
    }

    /// Hands everything to the system.
    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        self.0.flush().map_err(Failure::output)
    }
}

/// Writes lines to standard error, [`printable`]. Where that is closed there is nobody left to tell.
pub(crate) fn complain(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{}", printable(text));
}

/// Text without the control characters that a terminal might obey: they are shown as escapes. Lines and tabs stay. Names,
/// items and what a server answered are in errors as they came.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    let obeyed = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
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

/// Bytes as one readable line of at most `width` characters: control characters, which a terminal might obey,
/// and what is not UTF-8 are shown as escapes.
pub(crate) fn preview(bytes: &[u8], width: usize) -> String {
    // Four bytes a character at most, and the replacement of an invalid byte is one character.
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(width * 4)]);
    let mut out = String::new();
    let mut room = width;
    for character in text.chars() {
        let shown = if character.is_control() {
            character.escape_default().to_string()
        } else {
            character.to_string()
        };
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
    use super::{preview, printable};

    #[test]
    fn no_terminal_obeys_what_is_told() {
        assert_eq!(printable("a\n\tb — ü"), "a\n\tb — ü");
        assert_eq!(printable("a\x1b[2J\r\u{9b}b\x7f"), "a\\u{1b}[2J\\r\\u{9b}b\\u{7f}");
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
