//! Cuts a run of bytes into lines or csv rows without ever holding more than one line's limit.

use bytes::{Buf, Bytes, BytesMut};
use memchr::{memchr, memchr2};

/// How much of a line that is too long is kept to show.
const PREVIEW: usize = 256;
/// What some programs put before the text of a file. It is no part of its first line.
pub(crate) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// One line or row, without its line break.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame {
    /// A whole one, within the limit.
    Whole {
        bytes: BytesMut,
        /// The line it begins on, from 1.
        line: u64,
    },
    /// One longer than the limit; its bytes were passed over as they came.
    TooLong { preview: BytesMut, length: u64, line: u64 },
}

impl Frame {
    /// The line it begins on, from 1.
    pub(crate) fn line(&self) -> u64 {
        match self {
            Frame::Whole { line, .. } | Frame::TooLong { line, .. } => *line,
        }
    }

    /// Bytes held of it.
    pub(crate) fn length(&self) -> usize {
        match self {
            Frame::Whole { bytes, .. } | Frame::TooLong { preview: bytes, .. } => bytes.len(),
        }
    }

    /// Its first bytes, to show.
    pub(crate) fn shown(self, max: usize) -> Bytes {
        match self {
            Frame::Whole { mut bytes, .. } | Frame::TooLong { preview: mut bytes, .. } => {
                bytes.truncate(max);
                bytes.freeze()
            }
        }
    }
}

/// Cuts bytes into frames. Feed [`buffer`](Self::buffer), then call [`next`](Self::next) until it gives `None`.
#[derive(Debug)]
pub(crate) struct Framer {
    buffer: BytesMut,
    line_max: usize,
    /// The csv delimiter, when quoted fields may hold line breaks.
    delimiter: Option<u8>,
    /// Bytes of `buffer` already searched.
    searched: usize,
    /// Whether `searched` lies inside a quoted field.
    quoted: bool,
    /// The line the next frame begins on.
    line: u64,
    /// Line breaks inside the frame being searched.
    inner_lines: u64,
    /// Bytes consumed into frames so far: where the next frame begins.
    consumed: u64,
    /// Set while the rest of a line that is too long is passed over.
    skipping: Option<Skipping>,
}

#[derive(Debug)]
struct Skipping {
    preview: BytesMut,
    length: u64,
}

impl Framer {
    /// Frames of at most `line_max` bytes. With a `delimiter`, frames are csv rows.
    pub(crate) fn new(line_max: usize, delimiter: Option<u8>) -> Self {
        Self::resume(line_max, delimiter, 0, 1)
    }

    /// Goes on at byte `consumed`, where line `line` begins.
    pub(crate) fn resume(line_max: usize, delimiter: Option<u8>, consumed: u64, line: u64) -> Self {
        Framer {
            buffer: BytesMut::new(),
            line_max,
            delimiter,
            searched: 0,
            quoted: false,
            line,
            inner_lines: 0,
            consumed,
            skipping: None,
        }
    }

    /// Where bytes are appended.
    pub(crate) fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// The byte at which the next frame begins, and its line: what [`resume`](Self::resume) takes. While a line
    /// that is too long is passed over this is its begin.
    pub(crate) fn position(&self) -> (u64, u64) {
        let skipped = self.skipping.as_ref().map_or(0, |skipping| skipping.length);
        (self.consumed - skipped, self.line)
    }

    /// The next frame, or `None` when more bytes are needed.
    pub(crate) fn next(&mut self) -> Option<Frame> {
        match self.find_end() {
            Some(end) => {
                let (length, lines) = (end, self.inner_lines + 1);
                let mut bytes = self.buffer.split_to(length);
                self.buffer.advance(1);
                Some(self.finish(&mut bytes, 1, lines))
            }
            None => {
                self.shed();
                None
            }
        }
    }

    /// What is left at the end of the bytes: a last line without a line break.
    pub(crate) fn last(&mut self) -> Option<Frame> {
        if self.buffer.is_empty() && self.skipping.is_none() {
            return None;
        }
        let mut bytes = self.buffer.split();
        let lines = self.inner_lines + 1;
        Some(self.finish(&mut bytes, 0, lines))
    }

    fn finish(&mut self, bytes: &mut BytesMut, line_break: u64, lines: u64) -> Frame {
        let line = self.line;
        self.consumed += bytes.len() as u64 + line_break;
        self.line += lines;
        (self.searched, self.inner_lines, self.quoted) = (0, 0, false);
        if let Some(mut skipping) = self.skipping.take() {
            skipping.length += bytes.len() as u64;
            return Frame::TooLong { preview: skipping.preview, length: skipping.length, line };
        }
        if bytes.ends_with(b"\r") {
            bytes.truncate(bytes.len() - 1);
        }
        if line == 1 && bytes.starts_with(BYTE_ORDER_MARK) {
            bytes.advance(BYTE_ORDER_MARK.len());
        }
        if bytes.len() > self.line_max {
            let length = bytes.len() as u64;
            bytes.truncate(PREVIEW);
            return Frame::TooLong { preview: bytes.split(), length, line };
        }
        Frame::Whole { bytes: bytes.split(), line }
    }

    /// Drops what can no longer become a whole frame, so that the buffer stays within the limit.
    fn shed(&mut self) {
        // Two bytes of grace: a carriage return before the break, and a quote whose partner is still to come.
        if self.skipping.is_none() && self.buffer.len() <= self.line_max.saturating_add(2) {
            return;
        }
        let passed = self.searched.min(self.buffer.len());
        let skipping = self.skipping.get_or_insert_with(|| Skipping {
            preview: BytesMut::from(&self.buffer[..self.buffer.len().min(PREVIEW)]),
            length: 0,
        });
        skipping.length += passed as u64;
        self.consumed += passed as u64;
        self.buffer.advance(passed);
        self.searched = 0;
    }

    /// The index of the line break that ends the frame.
    fn find_end(&mut self) -> Option<usize> {
        let Some(delimiter) = self.delimiter else {
            let found = memchr(b'\n', &self.buffer[self.searched..]).map(|at| self.searched + at);
            self.searched = found.unwrap_or(self.buffer.len());
            return found;
        };
        loop {
            let rest = &self.buffer[self.searched..];
            if self.quoted {
                let Some(at) = memchr(b'"', rest) else {
                    self.inner_lines += count_lines(rest);
                    self.searched = self.buffer.len();
                    return None;
                };
                // Whether this quote ends the field shows in the next byte.
                let Some(next) = rest.get(at + 1) else {
                    self.inner_lines += count_lines(&rest[..at]);
                    self.searched += at;
                    return None;
                };
                self.inner_lines += count_lines(&rest[..at]);
                self.quoted = *next == b'"';
                self.searched += if self.quoted { at + 2 } else { at + 1 };
            } else {
                let Some(at) = memchr2(b'\n', b'"', rest) else {
                    self.searched = self.buffer.len();
                    // A quote that comes next is judged by the byte before it, so that byte must stay.
                    self.searched = self.searched.saturating_sub(usize::from(self.skipping.is_some()));
                    return None;
                };
                let index = self.searched + at;
                if rest[at] == b'\n' {
                    self.searched = index;
                    return Some(index);
                }
                // A quote opens a field only where the field begins; elsewhere it is a character like others.
                self.quoted = match index.checked_sub(1) {
                    None => self.skipping.is_none(),
                    Some(_) if self.consumed == 0 && self.buffer[..index] == *BYTE_ORDER_MARK => true,
                    Some(before) => self.buffer[before] == delimiter,
                };
                self.searched = index + 1;
            }
        }
    }
}

fn count_lines(bytes: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', bytes).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Feeds `input` in pieces of `step` bytes and gives what comes out.
    fn frames(
        input: &[u8],
        step: usize,
        line_max: usize,
        delimiter: Option<u8>,
    ) -> Vec<(u64, Result<String, u64>)> {
        let mut framer = Framer::new(line_max, delimiter);
        let mut out = Vec::new();
        let mut take = |frame| {
            out.push(match frame {
                Frame::Whole { bytes, line } => (line, Ok(String::from_utf8_lossy(&bytes).into_owned())),
                Frame::TooLong { length, line, .. } => (line, Err(length)),
            });
        };
        for piece in input.chunks(step.max(1)) {
            framer.buffer().extend_from_slice(piece);
            while let Some(frame) = framer.next() {
                take(frame);
            }
            assert!(framer.buffer().len() <= line_max + 2 + step, "the buffer grew beyond its limit");
        }
        if let Some(frame) = framer.last() {
            take(frame);
        }
        assert_eq!(framer.position().0, input.len() as u64, "every byte is accounted for");
        out
    }

    fn ok(line: u64, text: &str) -> (u64, Result<String, u64>) {
        (line, Ok(text.to_owned()))
    }

    #[test]
    fn lines_end_at_either_line_break_and_at_the_end() {
        for step in 1..8 {
            assert_eq!(
                frames(b"a\nb\r\n\nc", step, 9, None),
                [ok(1, "a"), ok(2, "b"), ok(3, ""), ok(4, "c")]
            );
        }
        assert_eq!(frames(b"", 1, 9, None), []);
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_first_line() {
        for step in 1..8 {
            for delimiter in [None, Some(b',')] {
                assert_eq!(
                    frames(b"\xef\xbb\xbfa\n\xef\xbb\xbfb", step, 9, delimiter),
                    [ok(1, "a"), ok(2, "\u{feff}b")]
                );
            }
        }
    }

    #[test]
    fn a_quoted_field_may_hold_line_breaks_and_counts_them() {
        let input = b"a,\"x\n\"\"y\"\"\nz\",b\nnext,row\n\"q\"\n";
        for step in 1..12 {
            assert_eq!(
                frames(input, step, 99, Some(b',')),
                [ok(1, "a,\"x\n\"\"y\"\"\nz\",b"), ok(4, "next,row"), ok(5, "\"q\"")],
                "in pieces of {step}"
            );
        }
    }

    #[test]
    fn a_quote_inside_a_field_swallows_nothing() {
        assert_eq!(frames(b"5\" pipe,b\nc,d\n", 3, 99, Some(b',')), [ok(1, "5\" pipe,b"), ok(2, "c,d")]);
    }

    #[test]
    fn a_line_beyond_the_limit_is_passed_over_in_bounded_memory() {
        let mut input = vec![b'x'; 1 << 20];
        input.extend_from_slice(b"\nnext\n");
        for step in [1 << 10, 4096, 65536] {
            assert_eq!(frames(&input, step, 100, None), [(1, Err(1 << 20)), ok(2, "next")]);
            assert_eq!(frames(&input, step, 100, Some(b',')), [(1, Err(1 << 20)), ok(2, "next")]);
        }
        assert_eq!(frames(&input[..1 << 20], 4096, 100, None), [(1, Err(1 << 20))]);
    }

    #[test]
    fn a_frame_of_exactly_the_limit_is_whole() {
        for step in 1..6 {
            assert_eq!(frames(b"12345\r\n123456\n", step, 5, None), [ok(1, "12345"), (2, Err(6))]);
        }
    }

    proptest! {
        #[test]
        fn pieces_of_any_size_give_the_same_frames(
            input in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'"'), Just(b','), Just(b'\r'), any::<u8>()], 0..200),
            step in 1usize..40,
        ) {
            for delimiter in [None, Some(b',')] {
                prop_assert_eq!(frames(&input, step, 1000, delimiter), frames(&input, input.len().max(1), 1000, delimiter));
                frames(&input, step, 10, delimiter);
            }
        }
    }
}
