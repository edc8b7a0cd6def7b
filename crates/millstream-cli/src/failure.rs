//! How a command fails: one block on standard error, and an exit code.

use std::error::Error;
use std::fmt::{self, Write};
use std::io;

/// Why a command ends with another code than 0.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Exit code 1, with a message that names the place, the value and the remedy.
    Failed(String),
    /// Exit code 2: nothing was started.
    Refused(String),
    /// A signal ended it; the code is 128 and the signal's number.
    Signal(u8),
    /// Exit code 1; all that is to say is said already.
    Said,
    /// Nobody reads standard output any more, as in `millstream ... | head`: not worth a word, exit code 0.
    NobodyReads,
}

impl Failure {
    /// The failure of an operation: what was tried, then the error and all its causes.
    pub(crate) fn of(tried: impl fmt::Display, error: &(dyn Error + 'static)) -> Failure {
        let mut text = tried.to_string();
        let mut next = Some(error);
        let mut last = String::new();
        while let Some(cause) = next {
            let cause_text = cause.to_string();
            // Some errors already show their cause; twice would only be noise.
            if !last.contains(&cause_text) {
                let _ = write!(text, "\n  because: {cause_text}");
            }
            last = cause_text;
            next = cause.source();
        }
        Failure::Failed(text)
    }

    /// Standard output could not be written.
    pub(crate) fn output(error: io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::NobodyReads,
            _ => Failure::of("cannot write to standard output", &error),
        }
    }

    /// The block; empty if nothing is to be said.
    pub(crate) fn text(&self) -> &str {
        match self {
            Failure::Failed(text) | Failure::Refused(text) => text,
            Failure::Signal(_) | Failure::Said | Failure::NobodyReads => "",
        }
    }

    /// Prints the block, if there is one, and tells the exit code.
    pub(crate) fn report(&self) -> u8 {
        if !self.text().is_empty() {
            crate::out::complain(&format!("error: {}", self.text()));
        }
        match self {
            Failure::Failed(_) | Failure::Said => 1,
            Failure::Refused(_) => 2,
            Failure::Signal(number) => 128 + number,
            Failure::NobodyReads => 0,
        }
    }
}
