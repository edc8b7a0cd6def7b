//! The numbers of a log.

use super::error::LogError;

/// The page at the head of every segment, and the unit in which the log writes.
pub(crate) const PAGE: u64 = 4096;

/// The first segment of a new log is this small, so that opening one costs milliseconds; every further
/// segment is twice as large until `segment_bytes` is reached.
const FIRST_SEGMENT_BYTES: u64 = 4 << 20;

/// The numbers of a log. Plain data: `LogSettings::default()` is right for a queue broker.
///
/// # Examples
///
/// ```
/// use millstream_embedded::log::LogSettings;
/// let small = LogSettings { segment_bytes: 1 << 20, record_bytes_max: 64 << 10, ..LogSettings::default() };
/// assert!(small.validate().is_ok());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSettings {
    /// Size of a full-grown segment file in bytes; a multiple of 4096. Default 64 MiB. Disk space comes
    /// back in these units, and up to two finished segments are kept for reuse.
    pub segment_bytes: u64,
    /// Largest record body in bytes; at most `segment_bytes` − 8 KiB. Also the limit of an atomic batch,
    /// headers included. Default 16 MiB.
    pub record_bytes_max: usize,
    /// Bytes that may be accepted and not yet be durable. Appending waits when they are used up. Worst
    /// case memory of the log is twice this: one buffer being filled, one being written. Default 8 MiB.
    pub pending_bytes_max: usize,
    /// Whether segments are prepared and recycled on a thread of their own, and groups asked for by
    /// futures are written on another. Off, all of that happens in the call that needs it: slower and
    /// repeatable, which is what simulations want. Default on.
    pub background: bool,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            record_bytes_max: 16 << 20,
            pending_bytes_max: 8 << 20,
            background: true,
        }
    }
}

impl LogSettings {
    /// Refuses numbers that cannot work together.
    ///
    /// # Errors
    /// Of kind [`Settings`](super::LogErrorKind::Settings), naming the number, its value and its limit.
    pub fn validate(&self) -> Result<(), LogError> {
        let Self { segment_bytes, record_bytes_max, pending_bytes_max, .. } = *self;
        if segment_bytes < 4 * PAGE || segment_bytes % PAGE != 0 || segment_bytes > 1 << 40 {
            return Err(LogError::settings(format!(
                "segment_bytes is {segment_bytes}; choose a multiple of {PAGE} from {} to {}",
                4 * PAGE,
                1_u64 << 40
            )));
        }
        let record_limit = (segment_bytes - 2 * PAGE).min(1 << 30);
        if record_bytes_max == 0 || record_bytes_max as u64 > record_limit {
            return Err(LogError::settings(format!(
                "record_bytes_max is {record_bytes_max}; choose from 1 to {record_limit}, or larger segments"
            )));
        }
        if !(4096..=1 << 30).contains(&pending_bytes_max) {
            return Err(LogError::settings(format!(
                "pending_bytes_max is {pending_bytes_max}; choose from 4096 to {}",
                1 << 30
            )));
        }
        Ok(())
    }

    /// File size of the segment that follows one of `previous` bytes (0: there is none yet).
    pub(crate) fn next_segment_bytes(&self, previous: u64) -> u64 {
        let grown = if previous == 0 { FIRST_SEGMENT_BYTES } else { previous.saturating_mul(2) };
        grown.min(self.segment_bytes)
    }
}
