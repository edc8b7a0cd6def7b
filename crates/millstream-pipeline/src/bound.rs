//! How much memory the items of a run can hold, computed from the file alone.

use crate::file::model::{Buffer, Draft, Source};

/// Bytes that a source reads from its file or socket at once.
pub(crate) const READ_BYTES: u64 = 256 << 10;

/// The sum of everything that holds items.
pub(crate) fn memory(draft: &Draft) -> u64 {
    let reading = match draft.source.as_deref() {
        Some(Source::File { read, .. } | Source::Stdin { read }) => READ_BYTES + read.line_max as u64,
        Some(Source::Http(http)) => (http.pending_max as u64).saturating_mul(http.body_max as u64 / 16).max(http.body_max as u64),
        _ => 0,
    };
    let buffered = match (&draft.buffer.value, draft.source.as_deref()) {
        (_, Some(Source::Queue { prefetch, .. })) | (Buffer::Queue { prefetch, .. }, _) => prefetch.bytes.value,
        (Buffer::Memory { bytes, .. }, _) => *bytes,
    };
    let batches = draft.batch.bytes.value.saturating_mul(draft.outputs.len().max(1) as u64);
    reading.saturating_add(buffered).saturating_add(batches)
}
