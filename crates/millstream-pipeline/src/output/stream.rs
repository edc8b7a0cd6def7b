//! A stream of a broker as the output.

use super::queue::messages;
use super::sink::Refused;
use crate::batch::Batch;
use millstream_message::Broker;
use std::sync::Arc;

/// Appends items to a stream.
pub(crate) struct StreamOutput {
    broker: Arc<dyn Broker>,
    stream: String,
}

impl StreamOutput {
    pub(crate) fn new(broker: Arc<dyn Broker>, stream: &str) -> Self {
        StreamOutput { broker, stream: stream.to_owned() }
    }

    /// Returns when the batch is stored.
    pub(crate) async fn write(&self, batch: &Batch) -> Result<(), Refused> {
        // Items too large for the broker were refused before they came here.
        let appended = self.broker.append(&self.stream, messages(batch)).await;
        appended.map(drop).map_err(|error| Refused::Broken(error.into()))
    }
}
