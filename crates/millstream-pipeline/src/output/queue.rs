//! A queue of a broker as the output.

use super::sink::Refused;
use crate::batch::Batch;
use bytes::Bytes;
use millstream_message::flow::publish_all;
use millstream_message::{Address, Broker, Message, TraceContext};
use std::sync::Arc;

/// Publishes items to a queue.
pub(crate) struct QueueOutput {
    broker: Arc<dyn Broker>,
    to: Address,
}

impl QueueOutput {
    pub(crate) fn new(broker: Arc<dyn Broker>, queue: &str) -> Self {
        QueueOutput { broker, to: Address::queue(queue) }
    }

    /// Returns when the batch is stored. A full queue is waited for: its consumers' pace is felt upstream.
    pub(crate) async fn write(&self, batch: &Batch) -> Result<(), Refused> {
        let messages = messages(batch);
        let rejected = publish_all(&*self.broker, &self.to, &messages).await;
        // Items too large for the broker were refused before they came here: what is left is the queue's trouble.
        match rejected.map_err(|error| Refused::Broken(error.into()))?.into_iter().next() {
            Some(first) => Err(Refused::Broken(first.reason)),
            None => Ok(()),
        }
    }
}

/// The batch's items as messages, named by where they came from, in the trace of the message they came in.
pub(super) fn messages(batch: &Batch) -> Vec<Message> {
    let messages = batch.lines().enumerate().map(|(item, line)| {
        // A copy of its own: one message that stays must not keep the batch.
        message(Bytes::copy_from_slice(line), batch.place(item), batch.trace(item).map(|trace| &**trace))
    });
    messages.collect()
}

fn message(body: Bytes, place: &str, trace: Option<&TraceContext>) -> Message {
    let message = Message::new(body).with_content_type("application/json");
    let message = match place {
        "" => message,
        place => message.with_message_id(place),
    };
    match trace {
        None => message,
        Some(trace) => message.with_trace(trace),
    }
}

/// More than a message has beside its body and its place.
const BESIDE: usize = 1024;

/// Whether an item is a message of at most `max` bytes.
pub(crate) fn message_fits(bytes: &[u8], place: &str, trace: Option<&TraceContext>, max: usize) -> bool {
    let most = bytes.len().saturating_add(place.len()).saturating_add(BESIDE);
    most <= max || bytes.len().saturating_add(message(Bytes::new(), place, trace).size()) <= max
}
