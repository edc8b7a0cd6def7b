//! Positions: stored after their batches, in queues of their own.

use std::sync::Weak;

use bytes::Bytes;
use millstream_message::{
    Address, Batch, BrokerError, Confirm, Message, Outcomes, Overflow, Publish, PublishOutcome, Queue,
};
use tokio::sync::{mpsc, oneshot};

use super::Inner;
use crate::delays::fnv;
use crate::topology;

/// The queue of a position. It keeps the newest message.
pub(super) fn queue(name: &str) -> Queue {
    const PREFIX: &str = "millstream.position.";
    let full = if PREFIX.len() + name.len() <= 255 {
        format!("{PREFIX}{name}")
    } else {
        format!("{PREFIX}{:032x}", fnv(name))
    };
    Queue::durable(full).max_items(1).overflow(Overflow::DropHead)
}

impl Inner {
    /// Publishes a batch, and when all of it is confirmed its position. Positions are stored in the order of their batches.
    pub(super) async fn submit_with_position(
        &self,
        publishes: Vec<Publish>,
        name: String,
        value: Bytes,
    ) -> Result<Confirm, BrokerError> {
        let queue = self.position_queue(&name).await?;
        // Held until the job is in the row, so that no other batch comes between.
        let jobs = self.positions.lock().await;
        let total = publishes.len();
        let batch = Box::pin(self.submit(Batch::from(publishes))).await?;
        let (done, told) = oneshot::channel();
        let job = PositionJob { batch, queue, value, done };
        jobs.send(job).await.map_err(|_| self.main.closed_error())?;
        drop(jobs);
        let error = self.main.closed_error();
        Ok(Confirm::pending(async move {
            told.await.unwrap_or_else(|_| Outcomes::all(total.max(1), &PublishOutcome::Unconfirmed(error)))
        }))
    }

    /// The queue that holds a position: a durable one with room for one message, the newest.
    async fn position_queue(&self, name: &str) -> Result<Address, BrokerError> {
        let queue = queue(name);
        let address = Address::queue(&queue.name);
        if !self.hub.positions.lock().contains(&queue.name) {
            self.asked(|| format!("position `{name}`"), &topology::declare_queue(&queue)).await?;
            self.hub.positions.lock().insert(queue.name);
        }
        Ok(address)
    }
}

/// A position that waits for its batch.
pub(super) struct PositionJob {
    batch: Confirm,
    queue: Address,
    value: Bytes,
    done: oneshot::Sender<Outcomes>,
}

/// Positions that may wait; more wait to be handed over.
pub(super) const POSITIONS: usize = 1024;

/// Stores positions whose batches are stored, one after the other.
pub(super) async fn store(inner: Weak<Inner>, mut row: mpsc::Receiver<PositionJob>) {
    while let Some(PositionJob { batch, queue, value, done }) = row.recv().await {
        let mut outcomes = batch.await;
        if outcomes.all_confirmed() {
            let stored = match inner.upgrade() {
                None => return,
                Some(inner) => inner.submit(Batch::to(&queue, [Message::new(value)])).await,
            };
            let stored = match stored {
                Ok(confirm) => confirm.await.others().first().map(|(_, outcome)| outcome.clone()),
                Err(error) => Some(PublishOutcome::Unconfirmed(error)),
            };
            if let Some(problem) = stored {
                outcomes = Outcomes::with_others(outcomes.len().max(1), vec![(0, problem)]);
            }
        }
        let _ = done.send(outcomes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_name_has_a_queue_too() {
        assert_eq!(queue("a").name, "millstream.position.a");
        let (one, two) = (queue(&"x".repeat(300)).name, queue(&"x".repeat(301)).name);
        assert!(one.len() < 100 && one != two);
    }
}
