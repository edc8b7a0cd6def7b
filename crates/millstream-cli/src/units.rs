//! Sizes and times on the command line, written as in pipeline files.

use std::time::Duration;

pub(crate) fn size(text: &str) -> Result<u64, String> {
    millstream_pipeline::size(text)
        .ok_or_else(|| "write a number with its unit, as in `512KiB`, `64MiB`, `1GB`".into())
}

pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    millstream_pipeline::duration(text)
        .ok_or_else(|| "write a number with its unit, as in `500ms`, `30s`, `1h 30m`".into())
}
