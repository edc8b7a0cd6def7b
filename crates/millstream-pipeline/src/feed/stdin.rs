//! Standard input.

use super::lines::Lines;
use super::{Chunk, Feed};
use crate::bound::READ_BYTES;
use crate::file::model::Reading;
use millstream_flow::BoxError;
use std::future::Future;
use std::pin::Pin;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Reads items from standard input, or whatever stands in for it, to its end.
pub(crate) struct StdinFeed<R> {
    input: R,
    lines: Lines,
    end: bool,
    /// The most items handed out at once.
    chunk: usize,
}

impl<R: AsyncRead + Unpin + Send> StdinFeed<R> {
    pub(crate) fn new(input: R, read: &Reading, chunk: usize) -> Self {
        StdinFeed { input, lines: Lines::new(read, "stdin".into()), end: false, chunk }
    }
}

impl<R: AsyncRead + Unpin + Send> Feed for StdinFeed<R> {
    fn next(&mut self) -> Pin<Box<dyn Future<Output = Result<Option<Chunk>, BoxError>> + Send + '_>> {
        Box::pin(async {
            let mut items = Vec::new();
            loop {
                self.lines.take(self.chunk, self.end, &mut items)?;
                if !items.is_empty() {
                    return Ok(Some(Chunk { items, ..Chunk::default() }));
                }
                if self.end {
                    return Ok(None);
                }
                let buffer = self.lines.framer.buffer();
                buffer.reserve(READ_BYTES as usize);
                self.end = self.input.read_buf(buffer).await.map_err(StdinError)? == 0;
            }
        })
    }
}

/// Standard input cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read standard input{}", remedy(.0))]
struct StdinError(#[source] std::io::Error);

fn remedy(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::IsADirectory => {
            ": it is a directory; redirect a file, or name its files in `source.file.path`, as in `data/*.csv`"
        }
        _ => "",
    }
}
