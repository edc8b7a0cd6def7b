//! A queue as the place where a buffer's items go that memory has no room for.

use std::fmt;
use std::sync::Arc;

use millstream_flow::{BoxError, Spill};

use crate::codec::Codec;
use crate::{Address, Batch, Broker, BrokerError, ConsumeOptions, Consumer, Queue, Tag};

/// A queue that a flow's buffer goes on in when memory is full: [`Pipe::buffer_spilling`](millstream_flow::Pipe::buffer_spilling).
///
/// The queue is this flow's alone. It is durable where the broker has a disk, because that is where its messages are to be; what
/// another run left there is thrown away when it is opened, since that run's source delivers it again.
pub struct QueueSpill<C> {
    broker: Arc<dyn Broker>,
    address: Address,
    consumer: Consumer,
    codec: C,
}

impl<C> QueueSpill<C> {
    /// Declares the queue `name`, empties it, and opens it for this flow alone.
    ///
    /// # Errors
    /// If the broker refuses; if somebody else consumes the queue.
    pub async fn open(broker: Arc<dyn Broker>, name: &str, codec: C) -> Result<Self, BrokerError> {
        broker.declare_queue(Queue::durable(name)).await?;
        let consumer = broker.consume(name, ConsumeOptions::default().exclusive().prefetch(CHUNK)).await?;
        // After that, so that what another flow is using is not thrown away.
        broker.purge(name).await?;
        Ok(QueueSpill { broker, address: Address::queue(name), consumer, codec })
    }
}

/// The most messages that are taken back at once.
const CHUNK: usize = 256;

impl<T, C> Spill<T> for QueueSpill<C>
where
    T: Send + 'static,
    C: Codec<T> + Send + Sync + 'static,
{
    async fn push(&mut self, items: Vec<T>) -> Result<(), BoxError> {
        let messages: Result<Vec<_>, _> = items.iter().map(|item| self.codec.encode(item)).collect();
        let outcomes = self.broker.publish_batch(Batch::to(&self.address, messages?)).await?;
        match outcomes.others().first() {
            None => Ok(()),
            Some((_, outcome)) => {
                Err(format!("{}: an item was not stored: {outcome:?}", self.address).into())
            }
        }
    }

    async fn pop(&mut self, max: usize) -> Result<Vec<T>, BoxError> {
        let deliveries = self.consumer.next_chunk(max.min(CHUNK)).await?;
        let items: Result<Vec<T>, _> =
            deliveries.iter().map(|delivery| self.codec.decode(&delivery.message)).collect();
        let items = items?;
        let tags: Vec<Tag> = deliveries.iter().map(|delivery| delivery.tag).collect();
        self.consumer.acker().ack_many(tags);
        Ok(items)
    }
}

impl<C> fmt::Debug for QueueSpill<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueSpill").field("queue", &self.address).finish_non_exhaustive()
    }
}
