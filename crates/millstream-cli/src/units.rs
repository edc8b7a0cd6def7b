//! Sizes and times on the command line, written as in pipeline files.

use std::time::Duration;

use millstream_message::StreamFrom;

pub(crate) fn size(text: &str) -> Result<u64, String> {
    millstream_pipeline::size(text)
        .ok_or_else(|| "write a number with its unit, as in `512KiB`, `64MiB`, `1GB`".into())
}

pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    millstream_pipeline::duration(text).ok_or_else(|| {
        "write a number with its unit, as in `500ms`, `30s`, `1h 30m`, at most `213503d`".into()
    })
}

pub(crate) fn stream_from(text: &str) -> Result<StreamFrom, String> {
    millstream_pipeline::stream_from(text).ok_or_else(|| {
        "write `first`, `last`, `next`, an offset such as `0`, or how long ago, as in `1h`".into()
    })
}
