//! Standard output.

use super::file::Header;
use crate::batch::Batch;
use crate::exhausted;
use millstream_flow::BoxError;
use std::error::Error;
use std::io::{self, Write};

/// Whoever read standard output has ended.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads standard output any more")]
struct Closed(#[source] io::Error);

/// Standard output took no more, with what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output: {remedy}")]
struct Unwritten {
    remedy: &'static str,
    source: io::Error,
}

/// Whether this error, or what caused it, is that nobody reads standard output any more.
pub(crate) fn is_closed(error: &(dyn Error + 'static)) -> bool {
    error.is::<Closed>() || error.source().is_some_and(is_closed)
}

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
        self.put(batch).map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => Closed(error).into(),
            _ if exhausted::is_out_of_room(&error) => Unwritten {
                remedy: "the disk or file that it leads to is full; free some space and start again",
                source: error,
            }
            .into(),
            _ => Unwritten { remedy: "see where it leads to, and start again", source: error }.into(),
        })
    }

    fn put(&mut self, batch: &Batch) -> io::Result<()> {
        if !self.begun
            && let Some(header) = self.header.as_ref().and_then(|header| header.get())
        {
            self.out.write_all(header)?;
        }
        self.begun = true;
        self.out.write_all(batch.bytes())?;
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ready::Ready;
    use std::sync::{Arc, Mutex, OnceLock};

    /// Keeps what is written, or refuses it.
    #[derive(Clone, Default)]
    struct Screen(Arc<Mutex<Vec<u8>>>, Option<io::ErrorKind>);

    impl Write for Screen {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if let Some(kind) = self.1 {
                return Err(kind.into());
            }
            self.0.lock().expect("the screen").extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn batch(lines: &[&str]) -> Batch {
        let mut batch = Batch::new(0);
        for line in lines {
            let (bytes, place) = (line.as_bytes().to_vec(), String::new());
            batch.push(
                &Ready { output: 0, key: Default::default(), path: None, bytes, place, trace: None, size: 0 },
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
        let mut closed =
            StdoutOutput::new(Box::new(Screen(Default::default(), Some(io::ErrorKind::BrokenPipe))), None);
        let error = closed.write(&batch(&["1\n"])).expect_err("it is closed");
        assert!(is_closed(&*error), "{error}");
        let other: BoxError = io::Error::from(io::ErrorKind::BrokenPipe).into();
        assert!(!is_closed(&*other), "another pipe is not standard output");
    }

    #[test]
    fn a_full_disk_behind_standard_output_is_told_with_what_to_do() {
        let full = Screen(Default::default(), Some(io::ErrorKind::StorageFull));
        let error = StdoutOutput::new(Box::new(full), None).write(&batch(&["1\n"])).expect_err("it is full");
        let text = error.to_string();
        assert!(text.contains("standard output") && text.contains("free some space"), "{text}");
        assert!(!is_closed(&*error), "{text}");
    }
}
