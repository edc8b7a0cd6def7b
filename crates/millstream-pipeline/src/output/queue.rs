//! A queue of a broker as the output.

use super::sink::Refused;
use crate::batch::Batch;
use bytes::Bytes;
use millstream_message::Batch as Publishes;
use millstream_message::{Address, Broker, Message, PublishOutcome, Refusal};
use std::sync::Arc;
use std::time::Duration;

/// The first and the longest wait for room in a full queue.
const FULL_WAIT: Duration = Duration::from_millis(2);
const FULL_WAIT_MAX: Duration = Duration::from_millis(500);

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
        let mut messages: Vec<Message> = batch
            .lines()
            .enumerate()
            .map(|(item, line)| {
                // A copy of its own: one message that stays must not keep the batch.
                let message =
                    Message::new(Bytes::copy_from_slice(line)).with_content_type("application/json");
                match batch.place(item) {
                    "" => message,
                    place => message.with_message_id(place),
                }
            })
            .collect();
        let mut wait = FULL_WAIT;
        loop {
            let publishes = Publishes::to(&self.to, messages.iter().cloned());
            let outcomes =
                self.broker.publish_batch(publishes).await.map_err(|error| Refused::Broken(error.into()))?;
            let mut again = Vec::new();
            for (index, outcome) in outcomes.into_others() {
                match outcome {
                    PublishOutcome::Refused(Refusal::Full { .. }) => again.push(messages[index].clone()),
                    PublishOutcome::Refused(refusal) => return Err(Refused::Broken(refusal.into())),
                    PublishOutcome::Unroutable(returned) => {
                        return Err(Refused::Broken(returned.reason.into()));
                    }
                    PublishOutcome::Unconfirmed(error) => return Err(Refused::Broken(error.into())),
                    PublishOutcome::Confirmed => {}
                }
            }
            if again.is_empty() {
                return Ok(());
            }
            messages = again;
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(FULL_WAIT_MAX);
        }
    }
}
