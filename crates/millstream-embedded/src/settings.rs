//! The numbers of a broker.

use std::time::Duration;

use millstream_message::{BrokerError, BrokerErrorKind};

use crate::log::LogSettings;

/// The numbers of an embedded broker. The defaults are right for one pipeline on one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Bytes of messages kept in memory ([`Message::footprint`](millstream_message::Message::footprint)), over all
    /// queues. A durable queue beyond it keeps only where its messages are (about 10 bytes each) and reads them back from the log when a consumer comes to them. Messages
    /// that are only in memory (`memory:`, transient ones, and all in a transient queue) cannot be put out: when they fill
    /// it, publishing to where they are waits, and what is persistent and for durable queues goes on.
    /// Default 64 MiB for `embedded:`, 256 MiB for `memory:`.
    pub memory_bytes: u64,
    /// The largest message in bytes, properties included. Default 8 MiB.
    pub message_bytes_max: usize,
    /// How long an ack may wait for company before it is written. A crash within that time delivers the message
    /// again. Default 3 ms.
    pub ack_delay: Duration,
    /// Size of a segment file of the log in bytes, a multiple of 4096. Disk comes back in these units. Default 64 MiB.
    pub segment_bytes: u64,
    /// Bytes accepted and not yet durable, at most; publishing waits beyond. Default 8 MiB.
    pub pending_bytes_max: usize,
}

impl Settings {
    /// The defaults of `memory:`.
    pub fn memory() -> Settings {
        Settings { memory_bytes: 256 << 20, ..Settings::default() }
    }

    pub(crate) fn validate(&self) -> Result<(), BrokerError> {
        let fail = |text: String| Err(BrokerError::new(BrokerErrorKind::Invalid, text));
        if self.message_bytes_max == 0 {
            return fail("message_bytes_max is 0; choose at least 1".to_owned());
        }
        if self.memory_bytes < self.message_bytes_max as u64 {
            let Settings { memory_bytes, message_bytes_max, .. } = self;
            return fail(format!(
                "memory_bytes is {memory_bytes}, less than one message of message_bytes_max {message_bytes_max}"
            ));
        }
        if self.record_bytes_max() < self.message_bytes_max + ENVELOPE {
            let Settings { segment_bytes, message_bytes_max, .. } = self;
            return fail(format!(
                "message_bytes_max is {message_bytes_max}: too large for segments of {segment_bytes} bytes; choose \
                 larger segments or smaller messages"
            ));
        }
        Ok(())
    }
}

/// What a message's record takes beside its body, at most: names, targets and the record's own header.
const ENVELOPE: usize = 64 << 10;

impl Settings {
    /// The numbers of the log below.
    pub(crate) fn log(&self) -> LogSettings {
        LogSettings {
            segment_bytes: self.segment_bytes,
            record_bytes_max: self.record_bytes_max(),
            pending_bytes_max: self.pending_bytes_max,
            ..LogSettings::default()
        }
    }

    /// Records may be twice a message, so that a batch stored with a position has room too.
    fn record_bytes_max(&self) -> usize {
        let segment = usize::try_from(self.segment_bytes).unwrap_or(usize::MAX).saturating_sub(16 << 10);
        (2 * self.message_bytes_max + ENVELOPE).min(segment)
    }
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            memory_bytes: 64 << 20,
            message_bytes_max: 8 << 20,
            ack_delay: Duration::from_millis(3),
            segment_bytes: 64 << 20,
            pending_bytes_max: 8 << 20,
        }
    }
}
