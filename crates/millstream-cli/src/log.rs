//! `millstream log`: checking and exporting the log of an embedded broker that nobody has open.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use millstream_embedded::Verified;
use millstream_embedded::log::{self, LogError, RealDisk, RecordRef, VerifyReport};
use millstream_message::BrokerUrl;
use serde_json::json;

use crate::args;
use crate::failure::Failure;
use crate::out::{Out, complain};
use crate::table::{count, counted};

pub(crate) fn log(command: args::Log) -> Result<(), Failure> {
    match command {
        args::Log::Verify { directory } => verify(&named(directory)),
        args::Log::Export { directory } => export(&named(directory)),
    }
}

/// The directory that is meant by itself, or by the URL that every other command takes.
fn named(directory: PathBuf) -> PathBuf {
    match directory.to_str().map(str::parse) {
        Some(Ok(BrokerUrl::Embedded(inner))) if !directory.is_dir() => inner,
        _ => directory,
    }
}

fn verify(directory: &Path) -> Result<(), Failure> {
    let mut out = Out::new();
    let mut damaged = Vec::new();
    for (log, name) in logs(directory)? {
        let found = millstream_embedded::verify(&log, &RealDisk);
        let Verified { log: report, missing_messages, .. } =
            found.map_err(|error| failed("verify", &log, &error))?;
        if let Some(name) = name {
            out.line(format!("\n{name}"))?;
        }
        out.line(described(&report))?;
        if missing_messages > 0 {
            let missing = counted(missing_messages, "message");
            out.line(format!("MISSING {missing} of queues, whose segments are not there any more"))?;
        }
        let places = places(&report) + missing_messages;
        if places > 0 {
            damaged.push((log, places));
        }
    }
    out.flush()?;
    sound(&damaged)
}

fn export(directory: &Path) -> Result<(), Failure> {
    let mut out = BufWriter::with_capacity(64 * 1024, io::stdout());
    let mut damaged = Vec::new();
    for (log, name) in logs(directory)? {
        if let Some(name) = name {
            writeln!(out, "{}", json!({ "log": name })).map_err(Failure::output)?;
        }
        let describe = |record: RecordRef<'_>| millstream_embedded::describe(record);
        match log::export(&log, &RealDisk, &describe, &mut out) {
            Ok(report) if report.is_sound() => {}
            Ok(report) => damaged.push((log, places(&report))),
            Err(error) => return Err(closed(&error).unwrap_or_else(|| failed("export", &log, &error))),
        }
    }
    out.flush().map_err(Failure::output)?;
    sound(&damaged)
}

/// The logs of the broker in `directory`: its own, and those of its streams with what to call them.
fn logs(directory: &Path) -> Result<Vec<(PathBuf, Option<String>)>, Failure> {
    exists(directory)?;
    let logs = millstream_embedded::logs(directory)
        .map_err(|error| Failure::of(format_args!("cannot list {}", directory.display()), &error))?;
    let name = |log: &Path| {
        let below = log.strip_prefix(directory).unwrap_or(log);
        (!below.as_os_str().is_empty()).then(|| below.display().to_string())
    };
    Ok(logs.into_iter().map(|log| (log.clone(), name(&log))).collect())
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

/// In how many places a log is damaged.
fn places(report: &VerifyReport) -> u64 {
    (report.damaged.len() + report.damaged_files.len()) as u64
}

/// Damage is a failure, with what becomes of it.
fn sound(damaged: &[(PathBuf, u64)]) -> Result<(), Failure> {
    if damaged.is_empty() {
        return Ok(());
    }
    complain("");
    let places = damaged.iter().map(|(log, places)| {
        let places = counted(*places, "place");
        format!("the log in {} is damaged in {places}", log.display())
    });
    Err(Failure::Failed(format!(
        "{}; whoever opens it passes over what cannot be read, says so, and goes on with the rest; \
         `millstream log export` shows what is left",
        places.collect::<Vec<_>>().join(", "),
    )))
}
