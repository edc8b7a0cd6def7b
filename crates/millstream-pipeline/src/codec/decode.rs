//! Makes an item of each frame.

use super::csv::Header;
use super::frame::Frame;
use crate::file::model::{Format, Reading};
use crate::file::units::show_size;
use crate::value::{self, JsonError, Map, Value};
use bytes::Bytes;

/// What is wrong with one line or row, at a column from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Fault {
    column: usize,
    message: String,
}

impl Fault {
    pub(crate) fn new(column: usize, message: String) -> Self {
        Fault { column, message }
    }

    pub(crate) fn column(&self) -> usize {
        self.column
    }
}

/// Makes items of frames; csv reads its header from the first.
#[derive(Debug, Clone)]
pub(crate) struct Decoder {
    format: Format,
    delimiter: u8,
    columns: Option<Vec<String>>,
    header: Option<Header>,
    line_key: Value,
    line_max: usize,
}

impl Decoder {
    pub(crate) fn new(read: &Reading) -> Self {
        Decoder {
            format: read.format.value,
            delimiter: read.delimiter.value,
            columns: read.columns.as_ref().map(|columns| columns.value.clone()),
            header: None,
            line_key: value::text("line"),
            line_max: read.line_max,
        }
    }

    /// Whether the next frame is a csv header rather than an item.
    pub(crate) fn wants_header(&self) -> bool {
        self.format == Format::Csv && self.header.is_none()
    }

    /// Takes the header of a csv file.
    ///
    /// # Errors
    ///
    /// What is wrong with the header. Without a header no row has a meaning, so this ends the source.
    pub(crate) fn header(&mut self, frame: &Frame) -> Result<(), Fault> {
        let header = match frame {
            Frame::Whole { bytes, .. } => {
                Header::parse(bytes, self.delimiter).map_err(|fault| no_text(frame).unwrap_or(fault))?
            }
            Frame::TooLong { length, .. } => {
                if let Some(fault) = no_text(frame) {
                    return Err(fault);
                }
                let max = show_size(self.line_max as u64);
                let message = format!("the header has {length} bytes; raise `max_line`, which allows {max}");
                return Err(Fault::new(1, message));
            }
        };
        if let Some(columns) = &self.columns {
            header.expect(columns)?;
        }
        self.header = Some(header);
        Ok(())
    }

    /// Whether a frame holds nothing at all: such lines are no items in any format but `lines`.
    pub(crate) fn is_blank(&self, frame: &Frame) -> bool {
        matches!(frame, Frame::Whole { bytes, .. } if self.format != Format::Lines && bytes.iter().all(u8::is_ascii_whitespace))
    }

    /// About how many bytes [`write_json`](Self::write_json) writes, but for what it escapes.
    pub(crate) fn json_bytes(&self, frame: &Frame) -> usize {
        frame.length() + self.header.as_ref().map_or(0, Header::json_bytes)
    }

    /// The item as JSON text, for a queue.
    pub(crate) fn write_json(&self, frame: &Frame, out: &mut Vec<u8>) -> Result<(), Fault> {
        self.write(frame, out).map_err(|fault| no_text(frame).unwrap_or(fault))
    }

    fn write(&self, frame: &Frame, out: &mut Vec<u8>) -> Result<(), Fault> {
        let bytes = self.whole(frame)?;
        match (self.format, &self.header) {
            (Format::Csv, Some(header)) => header.write_json(bytes, out),
            (Format::Lines, _) => {
                utf8(bytes)?;
                out.extend_from_slice(b"{\"line\":");
                value::write_text(out, bytes);
                out.push(b'}');
                Ok(())
            }
            _ => {
                // Parsed to know that it is JSON, kept as it was written.
                value::parse_json(bytes).map_err(|error| json(bytes, error))?;
                out.extend_from_slice(bytes);
                Ok(())
            }
        }
    }

    /// The item as a value; on a fault, the bytes come back to be shown.
    pub(crate) fn value(&self, frame: Frame) -> Result<Value, (Fault, Bytes)> {
        let too_long = self.whole(&frame).err();
        let no_text = no_text(&frame);
        let (Frame::Whole { bytes, .. } | Frame::TooLong { preview: bytes, .. }) = frame;
        let bytes: Bytes = bytes.freeze();
        let read = match too_long {
            Some(fault) => Err(fault),
            None => self.read(&bytes),
        };
        read.map_err(|fault| (no_text.unwrap_or(fault), bytes))
    }

    fn read(&self, bytes: &Bytes) -> Result<Value, Fault> {
        match (self.format, &self.header) {
            (Format::Csv, Some(header)) => header.value(bytes),
            (Format::Lines, _) => {
                utf8(bytes)?;
                let mut map = Map::default();
                map.insert(self.line_key.clone(), Value::utf8_str(bytes.clone()));
                Ok(Value::obj(map))
            }
            _ => value::parse_shared(bytes).map_err(|error| json(bytes, error)),
        }
    }

    /// The bytes of a frame that is not too long.
    fn whole<'f>(&self, frame: &'f Frame) -> Result<&'f [u8], Fault> {
        match frame {
            Frame::Whole { bytes, .. } => Ok(bytes),
            Frame::TooLong { length, .. } => {
                let max = show_size(self.line_max as u64);
                Err(Fault::new(1, format!("the line has {length} bytes; `max_line` allows {max}")))
            }
        }
    }
}

/// What a first line is that is no text in UTF-8, by the bytes that such files begin with.
fn no_text(frame: &Frame) -> Option<Fault> {
    let (Frame::Whole { bytes, line: 1, .. } | Frame::TooLong { preview: bytes, line: 1, .. }) = frame else {
        return None;
    };
    let message = match &**bytes {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => {
            "this is UTF-16, and not UTF-8; convert it first, as by `iconv -f UTF-16 -t UTF-8`"
        }
        [0x1f, 0x8b, ..] => {
            "this is compressed by gzip; unpack it first, or hand `zcat FILE` to `source: stdin`"
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            "this is compressed by zstd; unpack it first, or hand `zstdcat FILE` to `source: stdin`"
        }
        _ => return None,
    };
    Some(Fault::new(1, message.to_owned()))
}

/// Why bytes are no JSON; text that is not UTF-8 is told as in every other format.
fn json(bytes: &[u8], error: JsonError) -> Fault {
    match utf8(bytes) {
        Ok(()) => Fault::new(error.column(), error.message().to_owned()),
        Err(fault) => fault,
    }
}

fn utf8(bytes: &[u8]) -> Result<(), Fault> {
    std::str::from_utf8(bytes).map(drop).map_err(|error| {
        let before = String::from_utf8_lossy(&bytes[..error.valid_up_to()]).chars().count();
        Fault::new(before + 1, format!("byte 0x{:02x} is not UTF-8", bytes[error.valid_up_to()]))
    })
}
