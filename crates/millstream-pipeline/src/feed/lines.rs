//! Frames as items: what files and standard input share.

use crate::codec::{Decoder, Fault, Frame, Framer};
use crate::file::model::{Format, Reading};
use crate::item::Raw;
use std::sync::Arc;

/// Why a source cannot go on: its header makes no sense.
#[derive(Debug, thiserror::Error)]
#[error("{file}:{line}:{column}: {fault}; without a good header no row can be read", column = fault.column())]
pub(crate) struct HeaderError {
    file: Arc<str>,
    line: u64,
    fault: Fault,
}

/// About how many bytes the items of a chunk take as messages, if it is more than one: they are stored in one step, which
/// brokers bound. Characters that JSON escapes can make it six times as much.
pub(crate) const CHUNK_BYTES: usize = 1 << 20;

/// Turns bytes into items.
#[derive(Debug)]
pub(crate) struct Lines {
    pub(crate) framer: Framer,
    decoder: Arc<Decoder>,
    file: Arc<str>,
}

impl Lines {
    pub(crate) fn new(read: &Reading, file: Arc<str>) -> Self {
        Self::resume(read, file, 0, 1)
    }

    /// Goes on at a byte and its line; of csv, the header is still to be given.
    pub(crate) fn resume(read: &Reading, file: Arc<str>, offset: u64, line: u64) -> Self {
        Lines { framer: framer(read, offset, line), decoder: Arc::new(Decoder::new(read)), file }
    }

    /// Lets go of bytes that make no whole frame yet: they are to be given again.
    pub(crate) fn rewind(&mut self, read: &Reading) {
        let (offset, line) = self.framer.position();
        self.framer = framer(read, offset, line);
    }

    pub(crate) fn wants_header(&self) -> bool {
        self.decoder.wants_header()
    }

    /// Takes items out of the bytes read so far, up to `max` and about [`CHUNK_BYTES`] as messages. `end` says that no more
    /// bytes will come.
    pub(crate) fn take(&mut self, max: usize, end: bool, into: &mut Vec<Raw>) -> Result<(), HeaderError> {
        let mut bytes = 0;
        while into.len() < max && bytes < CHUNK_BYTES {
            let frame = self.framer.next().or_else(|| if end { self.framer.last() } else { None });
            let Some(frame) = frame else { return Ok(()) };
            bytes += self.decoder.json_bytes(&frame);
            if let Some(item) = self.item(frame)? {
                into.push(item);
            }
        }
        Ok(())
    }

    /// Takes all items there are; no more bytes will come.
    pub(crate) fn take_all(&mut self, into: &mut Vec<Raw>) -> Result<(), HeaderError> {
        while let Some(frame) = self.framer.next().or_else(|| self.framer.last()) {
            if let Some(item) = self.item(frame)? {
                into.push(item);
            }
        }
        Ok(())
    }

    fn item(&mut self, frame: Frame) -> Result<Option<Raw>, HeaderError> {
        if self.decoder.is_blank(&frame) {
            return Ok(None);
        }
        if self.decoder.wants_header() {
            self.header(&frame)?;
            return Ok(None);
        }
        Ok(Some(Raw::Frame { frame, decoder: self.decoder.clone(), file: self.file.clone() }))
    }

    /// Takes the csv header, which stands before where reading goes on.
    pub(crate) fn header(&mut self, frame: &Frame) -> Result<(), HeaderError> {
        Arc::make_mut(&mut self.decoder).header(frame).map_err(|fault| HeaderError {
            file: self.file.clone(),
            line: frame.line(),
            fault,
        })
    }
}

fn framer(read: &Reading, offset: u64, line: u64) -> Framer {
    let delimiter = (read.format.value == Format::Csv).then_some(read.delimiter.value);
    Framer::resume(read.line_max, delimiter, offset, line)
}
