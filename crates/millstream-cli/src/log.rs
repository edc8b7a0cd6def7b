//! `millstream log`: checking and exporting the log of an embedded broker that nobody has open.

use std::io::{self, BufWriter, Write};
use std::path::Path;

use millstream_embedded::log::{self, LogError, RealDisk, VerifyReport};

use crate::args;
use crate::failure::Failure;
use crate::out::{Out, complain};
use crate::table::{count, counted};

pub(crate) fn log(command: args::Log) -> Result<(), Failure> {
    match command {
        args::Log::Verify { directory } => verify(&directory),
        args::Log::Export { directory } => export(&directory),
    }
}

fn verify(directory: &Path) -> Result<(), Failure> {
    exists(directory)?;
    let report = log::verify(directory, &RealDisk).map_err(|error| failed("verify", directory, &error))?;
    let mut out = Out::new();
    out.line(described(&report))?;
    out.flush()?;
    sound(directory, &report)
}

fn export(directory: &Path) -> Result<(), Failure> {
    exists(directory)?;
    let mut out = BufWriter::with_capacity(64 * 1024, io::stdout());
    let report = log::export(directory, &RealDisk, &|record| millstream_embedded::describe(record), &mut out);
    match report {
        Ok(report) => out.flush().map_err(Failure::output).and_then(|()| sound(directory, &report)),
        Err(error) => Err(closed(&error).unwrap_or_else(|| failed("export", directory, &error))),
    }
}

/// The quiet end, if the error is that nobody reads standard output any more.
fn closed(error: &LogError) -> Option<Failure> {
    let source = std::error::Error::source(error)?.downcast_ref::<io::Error>()?;
    (source.kind() == io::ErrorKind::BrokenPipe).then_some(Failure::NobodyReads)
}

fn exists(directory: &Path) -> Result<(), Failure> {
    if directory.is_dir() {
        return Ok(());
    }
    let text = format!(
        "{} is no directory; name the one of an embedded broker: `DIR` of `embedded:DIR`",
        directory.display()
    );
    Err(Failure::Refused(text))
}

fn failed(tried: &str, directory: &Path, error: &LogError) -> Failure {
    Failure::of(format_args!("cannot {tried} the log in {}", directory.display()), error)
}

fn described(report: &VerifyReport) -> String {
    let mut lines = vec![
        format!(
            "{} with {} bytes of bodies, in {} and {}",
            counted(report.records, "record"),
            count(report.body_bytes),
            counted(report.segments, "segment"),
            counted(report.spare_segments, "spare"),
        ),
        format!("positions {} to {}", report.start, report.end),
        format!("closed {}", if report.clean { "properly" } else { "by a crash; the next open recovers it" }),
    ];
    if let Some(covers) = report.checkpoint {
        lines.push(format!("checkpoint up to {covers}"));
    }
    if report.torn_bytes > 0 {
        lines.push(format!("{} torn bytes at the end, never confirmed", count(report.torn_bytes)));
    }
    lines.extend(report.damaged.iter().map(|range| format!("DAMAGED from {} to {}", range.start, range.end)));
    lines.extend(report.damaged_files.iter().map(|file| format!("DAMAGED file {}", file.display())));
    lines.join("\n")
}

/// Damage is a failure, with what becomes of it.
fn sound(directory: &Path, report: &VerifyReport) -> Result<(), Failure> {
    if report.is_sound() {
        return Ok(());
    }
    complain("");
    Err(Failure::Failed(format!(
        "the log in {} is damaged in {}; opening it sets what cannot be read aside and goes on with the rest, \
         `millstream log export` shows what is left",
        directory.display(),
        counted((report.damaged.len() + report.damaged_files.len()) as u64, "place"),
    )))
}
