//! Streams where queues are asked for: what takes a broker's URL works with a broker that has streams and no queues.
//!
//! A stream is a queue whose messages stay. A consumer goes on, under its name, at the offset behind which nothing of it
//! is unsettled; the offset is stored in the broker. Other names read everything again, and consumers share nothing: there
//! is one of each name.

mod consumer;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;
use tokio::task::JoinSet;

use self::consumer::{Kept, Place, Reading};
use crate::broker::{BoxFuture, Broker, Browsed, Features, QueueStats};
use crate::consume::{Acker, ConsumeOptions, Consumer};
use crate::error::{BrokerError, BrokerErrorKind};
use crate::message::Message;
use crate::offset::StreamOffset;
use crate::publish::{Address, Batch, Confirm, Outcomes, Publish, PublishOutcome, Refusal, Returned};
use crate::stream::{StreamFrom, StreamReader, StreamSpec, StreamStats, stream_extent};
use crate::topology::{Binding, Exchange, Queue, QueueKind};
use crate::url::BrokerUrl;

/// A broker of streams, whose streams can be asked for as queues.
///
/// A queue is a stream, whose messages stay. A consumer goes on, under its [name](ConsumeOptions::name), at the offset behind
/// which all is settled, which the broker keeps; the first time it begins with the oldest message, or where
/// [`from`](ConsumeOptions::from) says. Consumers share nothing: each name gets every message, and a second consumer of one name
/// of one stream is refused with `InUse` as long as somebody has the first, or a delivery of it. What is given back comes
/// again; what is dead-lettered or discarded is settled. There are no exchanges, limits but bytes, priorities and leases:
/// they are refused.
///
/// # Backpressure
/// What is handed out never exceeds either prefetch, counted from the first message that is not settled.
///
/// # Cancel safety
/// What was settled is stored every 200 ms at most, and when the broker is closed: a process that is killed gets again what
/// it settled since.
pub struct StreamedQueues {
    streams: Arc<dyn Broker>,
    open: Mutex<Open>,
}

impl fmt::Debug for StreamedQueues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamedQueues").field("url", &self.streams.url().to_string()).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Open {
    claims: Vec<Weak<Claim>>,
    saving: Vec<Saving>,
}

/// A consumer that is there: somebody has it, or something that it handed out.
struct Claim {
    stream: String,
    name: String,
    exclusive: bool,
}

/// Stores how far a consumer came, from time to time.
struct Saving {
    claim: Weak<Claim>,
    kept: Arc<Kept>,
    _task: JoinSet<()>,
}

impl StreamedQueues {
    /// Queues over the streams of this broker.
    pub fn new(streams: Arc<dyn Broker>) -> Self {
        StreamedQueues { streams, open: Mutex::default() }
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A consumer that is about to be there.
    ///
    /// # Errors
    ///
    /// `InUse` beside one of the same name, which would be handed the same messages, and beside an exclusive one.
    fn claim(&self, stream: &str, name: &str, exclusive: bool) -> Result<Arc<Claim>, BrokerError> {
        let mut open = self.open();
        open.claims.retain(|claim| claim.strong_count() > 0);
        for other in open.claims.iter().filter_map(Weak::upgrade).filter(|other| other.stream == stream) {
            let text = if other.name == name {
                format!(
                    "stream `{stream}` has a consumer `{name}` already, which gets every message: give this one another \
                     name to get them all too, or share the messages of a queue, by `amqp://`"
                )
            } else if exclusive || other.exclusive {
                format!("stream `{stream}` has a consumer `{}`, and one of the two is exclusive", other.name)
            } else {
                continue;
            };
            return Err(BrokerError::new(BrokerErrorKind::InUse, text));
        }
        let claim = Arc::new(Claim { stream: stream.to_owned(), name: name.to_owned(), exclusive });
        open.claims.push(Arc::downgrade(&claim));
        Ok(claim)
    }

    /// Stores what is not stored yet of consumers that have gone; those of this name first, whose place is to be known.
    async fn save_those_of(&self, stream: &str, name: &str) -> Result<(), BrokerError> {
        let earlier: Vec<_> = {
            let open = self.open();
            let of = open.saving.iter().filter(|saving| saving.kept.is_of(stream, name));
            of.map(|saving| saving.kept.clone()).collect()
        };
        for kept in earlier {
            kept.save().await?;
        }
        self.open().saving.retain(|saving| saving.claim.strong_count() > 0 || !saving.kept.is_saved());
        Ok(())
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
}

impl Broker for StreamedQueues {
    fn url(&self) -> &BrokerUrl {
        self.streams.url()
    }

    /// What is said of queues is switched off, but for what a stream has: it takes part in no exchange, and what is
    /// settled stays.
    fn features(&self) -> Features {
        let mut features = self.streams.features();
        features.queues = false;
        features.queue_bytes = features.stream_bytes;
        features.delay = false;
        features.delayed_stats = false;
        features.lease = false;
        features.delivery_limit = false;
        features.consumer_priority = false;
        features.queue_expiry = false;
        features.stream_queues = false;
        features.uncounted_browse = false;
        features.positions = false;
        features.atomic_batches = false;
        features.list = false;
        features.browse = true;
        features.prefetch_bytes = true;
        features.exact_settlement = true;
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
            if options.priority != 0 {
                return Err(self.only("consumers with a priority"));
            }
            if options.lease.is_some() {
                return Err(self.only("leases"));
            }
            let name = if options.name.is_empty() { "millstream" } else { &options.name };
            let claim = self.claim(queue, name, options.exclusive)?;
            self.save_those_of(queue, name).await?;
            let (offset, stored) = StreamOffset::open(self.streams.clone(), queue, name).await?;
            let from = stored.map_or(options.from.unwrap_or(StreamFrom::First), StreamFrom::Offset);
            let reader = if options.stop_when_empty {
                let held = stream_extent(&*self.streams, queue, from).await?;
                self.streams.read(queue, from).await?.until(held)
            } else {
                self.streams.read(queue, from).await?
            };
            let kept = Kept::new(offset);
            let mut task = JoinSet::new();
            task.spawn(kept.clone().keep());
            let saving = Saving { claim: Arc::downgrade(&claim), kept: kept.clone(), _task: task };
            self.open().saving.push(saving);
            let place = Place::new(claim, kept, &options);
            let acker = Acker::new(place.clone());
            let reading = Reading::new(reader, options.stop_when_empty, place, acker.clone());
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
            let reader = self.streams.read(queue, StreamFrom::Offset(from)).await?;
            let mut reader = reader.until(from..held.next);
            while seen.len() < max {
                let items = reader.next_chunk(max).await?;
                if items.is_empty() {
                    break;
                }
                let passed = skip.min(items.len() as u64);
                skip -= passed;
                let room = max - seen.len();
                seen.extend(items.into_iter().skip(passed as usize).take(room).map(|item| Browsed {
                    message: item.message,
                    address: Address::queue(queue),
                    deliveries: 0,
                }));
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
            let saving = std::mem::take(&mut self.open().saving);
            let mut stored = Ok(());
            for saving in &saving {
                stored = stored.and(saving.kept.save().await);
            }
            stored.and(self.streams.close().await)
        })
    }
}
