//! Standard output.

use super::file::Header;
use crate::batch::Batch;
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
        self.out.write_all(batch.bytes())?;
        Ok(self.out.flush()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ready::Ready;
    use std::sync::{Arc, Mutex, OnceLock};

    /// Keeps what is written, or refuses it.
    #[derive(Clone, Default)]
    struct Screen(Arc<Mutex<Vec<u8>>>, bool);

    impl Write for Screen {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            if self.1 {
                return Err(std::io::ErrorKind::BrokenPipe.into());
            }
            self.0.lock().expect("the screen").extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn batch(lines: &[&str]) -> Batch {
        let mut batch = Batch::new(0);
        for line in lines {
            let (bytes, place) = (line.as_bytes().to_vec(), String::new());
            batch.push(
                &Ready { output: 0, key: Default::default(), path: None, bytes, place, size: 0 },
                9,
                99,
            );
        }
        batch
    }

    #[test]
    fn the_header_comes_once_and_a_closed_pipe_is_an_error() {
        let screen = Screen::default();
        let header = OnceLock::from(b"n\n".to_vec());
        let mut out = StdoutOutput::new(Box::new(screen.clone()), Some(Arc::new(header)));
        out.write(&batch(&["1\n", "2\n"])).expect("written");
        out.write(&batch(&["3\n"])).expect("written");
        assert_eq!(*screen.0.lock().expect("the screen"), b"n\n1\n2\n3\n");
        let mut closed = StdoutOutput::new(Box::new(Screen(Default::default(), true)), None);
        assert!(closed.write(&batch(&["1\n"])).is_err());
    }
}
