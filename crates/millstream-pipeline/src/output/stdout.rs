//! Standard output.

use super::file::Header;
use crate::batcher::Batch;
use millstream_flow::BoxError;
use std::io::Write;

/// Writes items to standard output, or whatever stands in for it.
pub(crate) struct StdoutOutput {
    out: Box<dyn Write + Send + Sync>,
    header: Header,
    begun: bool,
}

impl StdoutOutput {
    pub(crate) fn new(out: Box<dyn Write + Send + Sync>, header: Header) -> Self {
        StdoutOutput { out, header, begun: false }
    }

    /// Writes a batch and flushes it. Blocks where the reader is slow: that is its backpressure.
    pub(crate) fn write(&mut self, batch: &Batch) -> Result<(), BoxError> {
        if !self.begun
            && let Some(header) = self.header.as_ref().and_then(|header| header.get())
        {
            self.out.write_all(header)?;
        }
        self.begun = true;
        let all: Vec<u8> = batch.items.iter().flat_map(|item| item.bytes.iter().copied()).collect();
        self.out.write_all(&all)?;
        Ok(self.out.flush()?)
    }
}
