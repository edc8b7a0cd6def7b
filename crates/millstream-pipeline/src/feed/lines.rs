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
        let delimiter = (read.format.value == Format::Csv).then_some(read.delimiter.value);
        let framer = Framer::resume(read.line_max, delimiter, offset, line);
        Lines { framer, decoder: Arc::new(Decoder::new(read)), file }
    }

    pub(crate) fn wants_header(&self) -> bool {
        self.decoder.wants_header()
    }

    /// Takes items out of the bytes read so far, up to `max`. `end` says that no more bytes will come.
    pub(crate) fn take(&mut self, max: usize, end: bool, into: &mut Vec<Raw>) -> Result<(), HeaderError> {
        while into.len() < max {
            let frame = self.framer.next().or_else(|| if end { self.framer.last() } else { None });
            let Some(frame) = frame else { return Ok(()) };
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
