//! Lines to standard error by a thread of their own: whoever reads them slowly, or not at all, holds up no exchange.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

/// How many lines wait at most to be written; what comes then is lost, and counted. A line has a few hundred bytes, and a path may
/// have as many as `limits.target` allows: 8 MiB of them in the worst case by default.
const LINES_MAX: usize = 1024;

/// How long the end waits until what was said is written. Whoever reads at all has read it long before.
const FINISH_MAX: Duration = Duration::from_secs(10);

/// What writes the lines.
#[derive(Clone)]
pub(crate) struct LogWriter {
    lines: SyncSender<Line>,
    lost: Arc<AtomicU64>,
}

enum Line {
    Text(String),
    /// Tells when all before it is written.
    End(SyncSender<()>),
}

impl LogWriter {
    pub(crate) fn start(to: impl Write + Send + 'static) -> io::Result<LogWriter> {
        let (lines, waiting) = sync_channel(LINES_MAX);
        let lost = Arc::new(AtomicU64::new(0));
        let writer = LogWriter { lines, lost: lost.clone() };
        // It ends with the process or the last writer; one that hangs in a write could not be joined.
        thread::Builder::new().name("log".into()).spawn(move || write(to, &waiting, &lost))?;
        Ok(writer)
    }

    /// Writes a line soon, or loses it where too many wait. Never waits itself.
    pub(crate) fn line(&self, text: String) {
        if self.lines.try_send(Line::Text(text)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Says this last line, if any, and waits until all that was said is written, but not for a reader that reads no more.
    pub(crate) fn finish(&self, last: Option<String>) {
        self.finish_within(FINISH_MAX, last);
    }

    fn finish_within(&self, limit: Duration, last: Option<String>) {
        let (done, written) = sync_channel(1);
        let lines = self.lines.clone();
        // A slow reader leaves no room for the end, and there is no sending that waits for a time only: a thread waits.
        let _ = thread::Builder::new().name("log-end".into()).spawn(move || {
            for line in last.map(Line::Text).into_iter().chain([Line::End(done)]) {
                let _ = lines.send(line);
            }
        });
        // After that time nobody reads it.
        let _ = written.recv_timeout(limit);
    }
}

fn write(mut to: impl Write, waiting: &Receiver<Line>, lost: &AtomicU64) {
    for line in waiting {
        // Where standard error is closed there is nobody left to tell.
        let end = match line {
            Line::Text(mut text) => {
                text.push('\n');
                let _ = to.write_all(text.as_bytes());
                None
            }
            Line::End(done) => Some(done),
        };
        let lost = lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let _ = writeln!(to, "{lost} lines were lost, since nobody read those before them");
        }
        if let Some(done) = end {
            let _ = done.try_send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read};

    use super::*;

    #[test]
    fn a_reader_that_does_not_read_holds_up_nobody_and_learns_how_much_it_missed() {
        let (reader, pipe) = io::pipe().expect("a pipe");
        let writer = LogWriter::start(pipe).expect("a thread");
        // More than pipe and channel hold together.
        let line = "x".repeat(1 << 10);
        for _ in 0..4 * LINES_MAX {
            writer.line(line.clone());
        }
        // Nor the end.
        writer.finish_within(Duration::from_millis(1), None);
        drop(writer);
        let mut told = BufReader::new(reader).lines().map_while(Result::ok);
        let (mut written, mut missed) = (0, 0);
        for line in told.by_ref() {
            match line.split_once(" lines were lost") {
                Some((count, _)) => missed += count.parse::<usize>().expect("a number"),
                None => written += 1,
            }
        }
        assert_eq!(written + missed, 4 * LINES_MAX);
        assert!(missed >= 2 * LINES_MAX, "{missed}");
    }

    #[test]
    fn what_was_said_is_written_when_it_is_finished() {
        let (mut reader, pipe) = io::pipe().expect("a pipe");
        let writer = LogWriter::start(pipe).expect("a thread");
        writer.line("one".into());
        writer.line("two".into());
        writer.finish_within(10 * FINISH_MAX, None);
        let mut said = [0; 8];
        reader.read_exact(&mut said).expect("it is there");
        assert_eq!(&said, b"one\ntwo\n");
    }

    #[test]
    fn a_reader_that_is_slow_gets_what_was_said_to_the_end() {
        let (reader, pipe) = io::pipe().expect("a pipe");
        let writer = LogWriter::start(pipe).expect("a thread");
        let line = "x".repeat(1 << 10);
        for _ in 0..4 * LINES_MAX {
            writer.line(line.clone());
        }
        // Nobody has read a line by now: the channel is full.
        let reading = thread::spawn(move || BufReader::new(reader).lines().map_while(Result::ok).collect());
        writer.finish_within(10 * FINISH_MAX, Some("the end".into()));
        drop(writer);
        let said: Vec<String> = reading.join().expect("no panic");
        assert!(said.iter().any(|line| line.contains(" lines were lost")), "{}", said.len());
        assert!(said.iter().any(|line| line == "the end"), "{}", said.len());
    }
}
