//! A log as lines of JSON.

use std::{fmt::Write as _, io::Write, path::Path};

use super::{
    disk::Disk,
    error::{LogError, LogErrorKind},
    record::RecordRef,
    verify::{Met, VerifyReport, visit},
};

/// Turns a record's body into JSON on one line, or declines. Whoever knows what the kinds mean provides it.
pub type BodyDecoder<'a> = &'a dyn Fn(RecordRef<'_>) -> Option<String>;

/// Writes every record of the log in `dir` as a line of JSON, in order:
///
/// ```json
/// {"position":4096,"time":1763683200000,"kind":1,"body":{"what":"the decoder made of it"}}
/// {"position":4160,"time":1763683200000,"kind":2,"body_base64":"AAEC"}
/// {"damaged":{"from":4224,"to":4288}}
/// ```
///
/// A body the decoder declines becomes Base64. Damage is passed over, with a line that says so. Changes
/// nothing; takes the lock as a reader, as [`verify`](super::verify) does. `out` should be buffered.
///
/// # Errors
/// [`Locked`](LogErrorKind::Locked) when a log has the directory open; [`Io`](LogErrorKind::Io) or
/// [`Full`](LogErrorKind::Full) when `out` refuses.
pub fn export(
    dir: &Path,
    disk: &dyn Disk,
    decode: BodyDecoder<'_>,
    out: &mut dyn Write,
) -> Result<VerifyReport, LogError> {
    let mut line = String::new();
    let report = visit(dir, disk, &mut |met| {
        line.clear();
        match met {
            Met::Record(record) => write_record(&mut line, &record, decode),
            Met::Damage(range) => {
                let _ = write!(line, r#"{{"damaged":{{"from":{},"to":{}}}}}"#, range.start, range.end);
            }
        }
        line.push('\n');
        out.write_all(line.as_bytes()).map_err(refused)
    })?;
    out.flush().map_err(refused)?;
    Ok(report)
}

fn write_record(line: &mut String, record: &RecordRef<'_>, decode: BodyDecoder<'_>) {
    let RecordRef { position, time, kind, body } = record;
    let _ = write!(line, r#"{{"position":{position},"time":{time},"kind":{kind},"#);
    match decode(*record) {
        Some(json) => {
            let _ = write!(line, r#""body":{json}}}"#);
        }
        None => {
            line.push_str(r#""body_base64":""#);
            push_base64(line, body);
            line.push_str("\"}");
        }
    }
}

fn refused(error: std::io::Error) -> LogError {
    let kind = if super::error::is_full(&error) { LogErrorKind::Full } else { LogErrorKind::Io };
    LogError::with_source(kind, "cannot write the exported records", error)
}

/// RFC 4648, section 4, with padding.
fn push_base64(line: &mut String, bytes: &[u8]) {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for group in bytes.chunks(3) {
        let mut bits = 0_u32;
        for index in 0..3 {
            bits = bits << 8 | u32::from(group.get(index).copied().unwrap_or(0));
        }
        for index in 0..4 {
            let digit = ALPHABET[(bits >> (18 - 6 * index)) as usize & 63];
            line.push(if index <= group.len() { digit as char } else { '=' });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::push_base64;

    #[test]
    fn base64_has_the_vectors_of_the_rfc() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")]
        {
            let mut line = String::new();
            push_base64(&mut line, bytes.as_bytes());
            assert_eq!(line, text);
        }
    }
}
