//! Streams where queues are asked for: what takes a broker's URL works with a broker that has streams and no queues.
//!
//! A stream is a queue whose messages stay. A consumer goes on, under its name, at the offset behind which nothing of it
//! is unsettled; the offset is stored in the broker. Other names read everything again.

mod consumer;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use consumer::{Place, Reading};
use millstream_message::{
    Acker, Address, Batch, Binding, BoxFuture, Broker, BrokerError, BrokerErrorKind, BrokerUrl, Browsed,
    Confirm, ConsumeOptions, Consumer, Exchange, Features, Message, Outcomes, Publish, PublishOutcome, Queue,
    QueueKind, QueueStats, Refusal, Returned, StreamFrom, StreamItem, StreamReader, StreamSpec, StreamStats,
};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::task::JoinSet;

/// How long the end of a stream is waited for. Offsets do not tell it: some brokers keep records of their own there.
pub(crate) const QUIET: Duration = Duration::from_secs(1);

/// A broker of streams, whose streams are used as queues.
pub(crate) struct StreamedQueues {
    streams: Arc<dyn Broker>,
    open: Mutex<Open>,
}

/// Consumers that are there: their places are stored from time to time, and when the broker is closed.
#[derive(Default)]
struct Open {
    places: Vec<Arc<Place>>,
    saving: JoinSet<()>,
}

impl StreamedQueues {
    pub(crate) fn new(streams: Arc<dyn Broker>) -> Self {
        StreamedQueues { streams, open: Mutex::default() }
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends what goes to the same stream in one step; the outcome of each message.
    async fn append_all(&self, publishes: Vec<Publish>) -> Outcomes {
        let total = publishes.len();
        let mut others = Vec::new();
        let mut at = 0;
        for part in publishes.chunk_by(|one, next| one.to.same(&next.to)) {
            let to = part[0].to.clone();
            let messages: Vec<Message> = part.iter().map(|publish| publish.message.clone()).collect();
            let appended = match to.exchange() {
                "" => self.streams.append(to.key(), messages).await.map(drop),
                _ => Err(self.only("exchanges")),
            };
            if let Err(error) = appended {
                let outcome = |publish: &Publish| match error.kind() {
                    BrokerErrorKind::NotFound => PublishOutcome::Unroutable(Box::new(Returned {
                        publish: publish.clone(),
                        reason: format!("there is no stream `{}`; declare it first", to.key()),
                    })),
                    BrokerErrorKind::Unsupported | BrokerErrorKind::Invalid => {
                        PublishOutcome::Refused(Refusal::Broker(error.clone()))
                    }
                    _ => PublishOutcome::Unconfirmed(error.clone()),
                };
                others.extend((at..).zip(part.iter().map(outcome)));
            }
            at += part.len();
        }
        Outcomes::with_others(total, others)
    }

    fn only(&self, what: &str) -> BrokerError {
        let text =
            format!("`{}` has streams and no {what}; open the broker by `amqp://` for those", self.url());
        BrokerError::new(BrokerErrorKind::Unsupported, text)
    }

    /// The stream that is asked for as a queue.
    ///
    /// # Errors
    ///
    /// `Unsupported` names what a stream does not have.
    fn spec(&self, queue: &Queue) -> Result<StreamSpec, BrokerError> {
        let plain =
            Queue { max_bytes: None, dead_letter_exchange: None, dead_letter_key: None, ..queue.clone() };
        let mut durable = Queue::durable(&queue.name);
        durable.overflow = queue.overflow;
        durable.kind = queue.kind.filter(|kind| *kind == QueueKind::Stream);
        if plain != durable {
            let text = format!(
                "`{}` can only be a stream here, which is durable and has no limit but bytes; leave out what else is asked for",
                queue.name
            );
            return Err(BrokerError::new(BrokerErrorKind::Unsupported, text));
        }
        let spec = StreamSpec::new(&queue.name);
        Ok(match queue.max_bytes {
            Some(bytes) => spec.max_bytes(bytes.get()),
            None => spec,
        })
    }

    /// The next messages of a reader; none once it is quiet.
    async fn some(reader: &mut StreamReader, max: usize) -> Result<Vec<StreamItem>, BrokerError> {
        tokio::time::timeout(QUIET, reader.next_chunk(max)).await.unwrap_or(Ok(Vec::new()))
    }
}

impl Broker for StreamedQueues {
    fn url(&self) -> &BrokerUrl {
        self.streams.url()
    }

    fn features(&self) -> Features {
        let mut features = self.streams.features();
        features.queues = true;
        features.browse = true;
        features.prefetch_bytes = true;
        features
    }

    fn declare_exchange(&self, _: Exchange) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(async { Err(self.only("exchanges")) })
    }

    fn delete_exchange<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), BrokerError>> {
        Box::pin(async { Err(self.only("exchanges")) })
    }

    /// A stream that is there is taken as it is, unless a limit is asked for.
    fn declare_queue(&self, queue: Queue) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(async move {
            let spec = self.spec(&queue)?;
            let there = spec.max_bytes.is_none() && self.queue(&spec.name).await?.is_some();
            if there { Ok(()) } else { self.streams.declare_stream(spec).await }
        })
    }

    fn delete_queue<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<u64, BrokerError>> {
        Box::pin(async move {
            let held = match self.stats(name).await {
                Ok(stats) => stats.ready,
                Err(error) if error.kind() == BrokerErrorKind::NotFound => 0,
                Err(error) => return Err(error),
            };
            self.streams.delete_stream(name).await?;
            Ok(held)
        })
    }

    fn bind(&self, _: Binding) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(async { Err(self.only("exchanges")) })
    }

    fn unbind(&self, _: Binding) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(async { Err(self.only("exchanges")) })
    }

    fn purge<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, Result<u64, BrokerError>> {
        Box::pin(async move {
            let text = format!(
                "messages of the stream `{queue}` stay until its limits remove them; delete it and declare it again"
            );
            Err(BrokerError::new(BrokerErrorKind::Unsupported, text))
        })
    }

    /// Resolved when it is appended: the order of batches is that of calls that are awaited.
    fn submit(&self, batch: Batch) -> BoxFuture<'_, Result<Confirm, BrokerError>> {
        Box::pin(async move {
            if batch.position.is_some() {
                return Err(self.only("positions"));
            }
            Ok(Confirm::known(self.append_all(batch.publishes).await))
        })
    }

    fn consume<'a>(
        &'a self,
        queue: &'a str,
        options: ConsumeOptions,
    ) -> BoxFuture<'a, Result<Consumer, BrokerError>> {
        Box::pin(async move {
            let name = if options.name.is_empty() { "millstream" } else { &options.name };
            let stored = self.streams.stored_offset(queue, name).await?;
            let from = match stored {
                Some(offset) => StreamFrom::Offset(offset),
                None => options.from.unwrap_or(StreamFrom::First),
            };
            let end = self.streams.stream_stats(queue).await?.next;
            let reader = self.streams.read(queue, from).await?;
            let place = Place::new(self.streams.clone(), queue, name, stored, &options);
            {
                let mut open = self.open();
                // What has ended, and has told the broker where.
                open.places.retain(|place| Arc::strong_count(place) > 1 || !place.is_stored());
                open.places.push(place.clone());
                open.saving.spawn(consumer::keep(Arc::downgrade(&place)));
                while open.saving.try_join_next().is_some() {}
            }
            let acker = Acker::new(place.clone());
            let reading =
                Reading::new(reader, place, acker.clone(), options.stop_when_empty.then_some(end), stored);
            Ok(Consumer::new(Box::new(reading), acker))
        })
    }

    fn browse<'a>(
        &'a self,
        queue: &'a str,
        mut skip: u64,
        max: usize,
    ) -> BoxFuture<'a, Result<Vec<Browsed>, BrokerError>> {
        Box::pin(async move {
            let held = self.streams.stream_stats(queue).await?;
            let mut from = held.first;
            if self.features().dense_offsets {
                from += std::mem::take(&mut skip);
            }
            let mut seen = Vec::new();
            if from >= held.next {
                return Ok(seen);
            }
            let mut reader = self.streams.read(queue, StreamFrom::Offset(from)).await?;
            while seen.len() < max {
                let items = Self::some(&mut reader, max).await?;
                let Some(last) = items.last().map(|item| item.offset) else { break };
                let passed = skip.min(items.len() as u64);
                skip -= passed;
                let room = max - seen.len();
                seen.extend(items.into_iter().skip(passed as usize).take(room).map(|item| Browsed {
                    message: item.message,
                    address: Address::queue(queue),
                    deliveries: 0,
                }));
                if last + 1 >= held.next {
                    break;
                }
            }
            Ok(seen)
        })
    }

    /// What is ready is all that the stream keeps: whoever comes by a new name reads it from there.
    fn stats<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, Result<QueueStats, BrokerError>> {
        Box::pin(async move {
            let held = self.streams.stream_stats(queue).await?;
            Ok(QueueStats {
                name: queue.to_owned(),
                ready: held.next.saturating_sub(held.first),
                ready_bytes: held.bytes,
                ..QueueStats::default()
            })
        })
    }

    fn queue<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Queue>, BrokerError>> {
        Box::pin(async move {
            match self.streams.stream_stats(name).await {
                Ok(_) => Ok(Some(Queue::durable(name).kind(QueueKind::Stream))),
                Err(error) if error.kind() == BrokerErrorKind::NotFound => Ok(None),
                Err(error) => Err(error),
            }
        })
    }

    fn queues(&self) -> BoxFuture<'_, Result<Vec<String>, BrokerError>> {
        Box::pin(async {
            let text =
                format!("`{}` does not list its streams; open the broker by `amqp://` for that", self.url());
            Err(BrokerError::new(BrokerErrorKind::Unsupported, text))
        })
    }

    fn position<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Option<Bytes>, BrokerError>> {
        Box::pin(async { Err(self.only("positions")) })
    }

    fn store_position<'a>(&'a self, _: &'a str, _: Option<Bytes>) -> BoxFuture<'a, Result<(), BrokerError>> {
        Box::pin(async { Err(self.only("positions")) })
    }

    fn declare_stream(&self, stream: StreamSpec) -> BoxFuture<'_, Result<(), BrokerError>> {
        self.streams.declare_stream(stream)
    }

    fn delete_stream<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), BrokerError>> {
        self.streams.delete_stream(name)
    }

    fn append<'a>(
        &'a self,
        stream: &'a str,
        messages: Vec<Message>,
    ) -> BoxFuture<'a, Result<u64, BrokerError>> {
        self.streams.append(stream, messages)
    }

    fn read<'a>(
        &'a self,
        stream: &'a str,
        from: StreamFrom,
    ) -> BoxFuture<'a, Result<StreamReader, BrokerError>> {
        self.streams.read(stream, from)
    }

    fn stream_stats<'a>(&'a self, stream: &'a str) -> BoxFuture<'a, Result<StreamStats, BrokerError>> {
        self.streams.stream_stats(stream)
    }

    fn store_offset<'a>(
        &'a self,
        stream: &'a str,
        reader: &'a str,
        offset: u64,
    ) -> BoxFuture<'a, Result<(), BrokerError>> {
        self.streams.store_offset(stream, reader, offset)
    }

    fn stored_offset<'a>(
        &'a self,
        stream: &'a str,
        reader: &'a str,
    ) -> BoxFuture<'a, Result<Option<u64>, BrokerError>> {
        self.streams.stored_offset(stream, reader)
    }

    /// Stores what consumers have settled, too.
    fn close(&self) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(async {
            let places = std::mem::take(&mut *self.open()).places;
            let mut stored = Ok(());
            for place in places {
                stored = stored.and(place.store().await);
            }
            stored.and(self.streams.close().await)
        })
    }
}
