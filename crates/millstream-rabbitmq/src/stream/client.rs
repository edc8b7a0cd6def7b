//! The client: what is asked of the broker as a whole, and what makes producers and consumers.

mod inner;

use std::fmt;
use std::sync::Arc;

use millstream_message::{BrokerError, BrokerErrorKind, StreamFrom, StreamStats};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::timeout;

pub(crate) use self::inner::{Inner, backoff, check_name, store};
use super::command::{Body, CREATE_SUPER_STREAM, Request, code};
use super::consumer::{ConsumerOptions, StreamConsumer};
use super::counters::Counters;
use super::link::refused;
use super::producer::{Producer, ProducerOptions};
use super::super_stream::{Partitions, Routing, SuperConsumer, SuperProducer};
use super::url::StreamSettings;
use super::wire::Pairs;
use crate::broker::Statistics;

/// A client of RabbitMQ's streams by the stream protocol: declares streams, and makes producers and consumers.
///
/// Connections are made as they are needed, publishers and consumers apart (a broker that holds back publishers does
/// not hold back consumers), to the nodes where the streams are. A clone is another handle on the same connections.
///
/// ```no_run
/// use millstream_message::{Message, StreamFrom};
/// use millstream_rabbitmq::stream::{ConsumerOptions, ProducerOptions, StreamClient, StreamSettings};
///
/// # async fn run() -> Result<(), millstream_message::BrokerError> {
/// let client = StreamClient::connect(StreamSettings::parse("rabbitmq-stream://guest:guest@localhost")?).await?;
/// client.create_stream("orders", &[("max-age", "7D")]).await?;
///
/// let producer = client.producer("orders", ProducerOptions::default().name("shop")).await?;
/// let confirm = producer.send(&[Message::new("one"), Message::new("two")]).await?;
/// assert!(confirm.await.all_confirmed());
///
/// let mut reader = client.consumer("orders", StreamFrom::First, ConsumerOptions::default()).await?.into_reader();
/// assert_eq!(reader.next_chunk(1).await?[0].message.body(), "one");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct StreamClient {
    pub(crate) inner: Arc<Inner>,
}

impl StreamClient {
    /// Connects to the first host that answers.
    ///
    /// # Errors
    /// `Unavailable` when none answers, `Invalid` when the broker refuses user, password or virtual host. Later
    /// operations wait for lost connections; this one does not.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn connect(settings: StreamSettings) -> Result<StreamClient, BrokerError> {
        let inner = Arc::new(Inner {
            settings,
            control: tokio::sync::Mutex::default(),
            pools: Mutex::default(),
            tasks: Mutex::default(),
            closed: watch::Sender::new(false),
            counters: Arc::new(Counters::default()),
        });
        inner.control().await?;
        Ok(StreamClient { inner })
    }

    /// How it connects.
    pub fn settings(&self) -> &StreamSettings {
        &self.inner.settings
    }

    /// Figures of all of its connections, producers and consumers since it connected, over all its clones. Among the consumers are
    /// those by which [`append`](millstream_message::Broker::append) learns offsets. A confirm's time is of a call of
    /// [`send`](Producer::send), from when it had its place in the window, what was given up left out.
    pub fn statistics(&self) -> Statistics {
        self.inner.counters.statistics()
    }

    /// The broker's version, as `3.10.8`.
    ///
    /// # Errors
    /// When the broker is out of reach.
    pub async fn server_version(&self) -> Result<String, BrokerError> {
        Ok(self.inner.server().await?.version)
    }

    /// Makes a stream with the broker's own arguments: `max-length-bytes`, `max-age` (as `12h`, `7D`),
    /// `stream-max-segment-size-bytes`, `initial-cluster-size`, `queue-leader-locator`. Fine when it exists with the same.
    ///
    /// # Errors
    /// `Mismatch` when it exists with others. The broker does not say which: all are named. `Invalid` when the broker
    /// does not take them.
    pub async fn create_stream(&self, name: &str, arguments: &[(&str, &str)]) -> Result<(), BrokerError> {
        check_name("stream", name)?;
        let create = Request::Create { stream: name.to_owned(), arguments: owned(arguments) };
        match self.inner.ask(name, create).await? {
            (_, code::OK | code::STREAM_EXISTS) => Ok(()),
            (_, code::PRECONDITION_FAILED) => {
                let wanted = in_words(arguments);
                Err(match self.inner.place(name).await {
                    Ok(_) => BrokerError::new(
                        BrokerErrorKind::Mismatch,
                        format!(
                            "stream `{name}` exists, declared otherwise than with {wanted} (the broker does not tell how: `rabbitmqctl \
                             list_queues name arguments` does); declare it as it is, or delete it, and what is in it, first"
                        ),
                    ),
                    Err(_) => BrokerError::new(
                        BrokerErrorKind::Invalid,
                        format!(
                            "the broker does not make a stream `{name}` with {wanted}; a queue may have the name"
                        ),
                    ),
                })
            }
            (_, other) => Err(refused(other, name)),
        }
    }

    /// Deletes a stream. Deleting what is not there is fine.
    ///
    /// # Errors
    /// When the broker refuses, or is out of reach.
    pub async fn delete_stream(&self, name: &str) -> Result<(), BrokerError> {
        match self.inner.ask(name, Request::Delete { stream: name.to_owned() }).await? {
            (_, code::OK | code::NO_STREAM) => Ok(()),
            (_, other) => Err(refused(other, name)),
        }
    }

    /// Makes a super stream: a stream for each of its partitions, with the broker's own arguments as of
    /// [`create_stream`](StreamClient::create_stream). Fine when it exists with the same partitions.
    ///
    /// # Errors
    /// `Unsupported` before RabbitMQ 3.13, which can do it by `rabbitmq-streams add_super_stream` only. `Mismatch` when
    /// it exists with other partitions. `Invalid` when the broker does not take the arguments.
    pub async fn create_super_stream(
        &self,
        name: &str,
        partitions: &Partitions,
        arguments: &[(&str, &str)],
    ) -> Result<(), BrokerError> {
        check_name("super stream", name)?;
        let (streams, keys) = partitions.of(name);
        for stream in &streams {
            check_name("partition", stream)?;
        }
        if streams.is_empty() {
            let text = format!("super stream `{name}`: at least one partition is needed");
            return Err(BrokerError::new(BrokerErrorKind::Invalid, text));
        }
        self.can_make_super_streams(name, partitions).await?;
        let create = Request::CreateSuperStream {
            super_stream: name.to_owned(),
            partitions: streams.clone(),
            keys,
            arguments: owned(arguments),
        };
        match self.inner.ask(name, create).await?.1 {
            code::OK => Ok(()),
            code::STREAM_EXISTS => {
                let has = self.partitions(name).await?;
                if has == streams {
                    return Ok(());
                }
                let text =
                    format!("super stream `{name}` exists with the partitions {has:?}, not {streams:?}");
                Err(BrokerError::new(BrokerErrorKind::Mismatch, text))
            }
            code::PRECONDITION_FAILED => {
                let wanted = in_words(arguments);
                let text = format!("the broker does not make a super stream `{name}` with {wanted}");
                Err(BrokerError::new(BrokerErrorKind::Invalid, text))
            }
            other => Err(refused(other, name)),
        }
    }

    /// Deletes a super stream with its partitions. Deleting what is not there is fine.
    ///
    /// # Errors
    /// `Unsupported` before RabbitMQ 3.13, which can do it by `rabbitmq-streams delete_super_stream` only.
    pub async fn delete_super_stream(&self, name: &str) -> Result<(), BrokerError> {
        self.can_make_super_streams(name, &Partitions::Count(1)).await?;
        let delete = Request::DeleteSuperStream { super_stream: name.to_owned() };
        match self.inner.ask(name, delete).await?.1 {
            code::OK | code::NO_STREAM => Ok(()),
            other => Err(refused(other, name)),
        }
    }

    async fn can_make_super_streams(&self, name: &str, partitions: &Partitions) -> Result<(), BrokerError> {
        let server = self.inner.server().await?;
        if server.knows(CREATE_SUPER_STREAM) {
            return Ok(());
        }
        let option = match partitions {
            Partitions::Count(count) => format!("--partitions {count}"),
            Partitions::Keys(keys) => format!("--routing-keys {}", keys.join(",")),
        };
        let text = format!(
            "RabbitMQ {} makes no super streams by its protocol: that came with 3.13; use \
             `rabbitmq-streams add_super_stream {name} {option}`, and `delete_super_stream`",
            server.version
        );
        Err(BrokerError::new(BrokerErrorKind::Unsupported, text))
    }

    /// A producer of a stream.
    ///
    /// # Errors
    /// `NotFound` when there is no such stream.
    pub async fn producer(&self, stream: &str, options: ProducerOptions) -> Result<Producer, BrokerError> {
        Producer::open(self.inner.clone(), stream, options).await
    }

    /// A consumer of a stream. Is it named and has it stored an offset, begin at
    /// [`stored_offset`](StreamClient::stored_offset).
    ///
    /// # Errors
    /// `NotFound` when there is no such stream; `Unsupported` for a single active consumer before RabbitMQ 3.11.
    pub async fn consumer(
        &self,
        stream: &str,
        from: StreamFrom,
        options: ConsumerOptions,
    ) -> Result<StreamConsumer, BrokerError> {
        StreamConsumer::open(self.inner.clone(), (stream, None), from, options).await
    }

    /// A producer of a super stream, which puts each message into one of its partitions.
    ///
    /// # Errors
    /// `NotFound` when there is no such super stream.
    pub async fn super_producer(
        &self,
        super_stream: &str,
        routing: Routing,
        options: ProducerOptions,
    ) -> Result<SuperProducer, BrokerError> {
        SuperProducer::open(self.clone(), super_stream, routing, options).await
    }

    /// A consumer of all partitions of a super stream.
    ///
    /// # Errors
    /// `NotFound` when there is no such super stream.
    pub async fn super_consumer(
        &self,
        super_stream: &str,
        from: StreamFrom,
        options: ConsumerOptions,
    ) -> Result<SuperConsumer, BrokerError> {
        SuperConsumer::open(self, super_stream, from, options).await
    }

    /// The streams that a super stream is made of, in order.
    ///
    /// # Errors
    /// `NotFound` when there is no such super stream.
    pub async fn partitions(&self, super_stream: &str) -> Result<Vec<String>, BrokerError> {
        let (body, answer) = self
            .inner
            .ask(super_stream, Request::Partitions { super_stream: super_stream.to_owned() })
            .await?;
        match (answer, body) {
            (code::OK, Body::Names(names)) if !names.is_empty() => Ok(names),
            (code::OK | code::NO_STREAM, _) => Err(no_super_stream(super_stream)),
            (other, _) => Err(refused(other, super_stream)),
        }
    }

    /// The partitions that are bound with exactly this key.
    ///
    /// # Errors
    /// `NotFound` when there is no such super stream.
    pub async fn route(&self, super_stream: &str, key: &str) -> Result<Vec<String>, BrokerError> {
        if key.len() > i16::MAX as usize {
            let text = format!("a routing key of {} bytes is too long", key.len());
            return Err(BrokerError::new(BrokerErrorKind::Invalid, text));
        }
        let request = Request::Route { key: key.to_owned(), super_stream: super_stream.to_owned() };
        match self.inner.ask(super_stream, request).await? {
            (Body::Names(names), code::OK) => Ok(names),
            (_, code::OK | code::NO_STREAM) => Err(no_super_stream(super_stream)),
            (_, other) => Err(refused(other, super_stream)),
        }
    }

    /// Where a stream begins and where it ends: by its oldest and its newest chunk, which are fetched for that. The
    /// broker's own records also take offsets, so the next message may get a later one than `next`. Bytes are not
    /// known: zero.
    ///
    /// # Errors
    /// `NotFound` when there is no such stream.
    pub async fn stats(&self, stream: &str) -> Result<StreamStats, BrokerError> {
        let (first, last) = self.inner.ends(stream).await?;
        let next = last.map_or(0, |(first, messages)| first + u64::from(messages));
        Ok(StreamStats { first: first.map_or(next, |(first, _)| first), next, bytes: 0 })
    }

    /// Durably remembers, at the broker, how far a reader has come: the offset it wants next. As other clients do it
    /// the broker is told the one before, the last that was read.
    ///
    /// # Errors
    /// `NotFound` when there is no such stream.
    pub async fn store_offset(&self, stream: &str, reader: &str, offset: u64) -> Result<(), BrokerError> {
        self.inner.store_offset(None, stream, reader, offset).await
    }

    /// The offset that a reader wants next, as it was stored last.
    ///
    /// # Errors
    /// `NotFound` when there is no such stream.
    pub async fn stored_offset(&self, stream: &str, reader: &str) -> Result<Option<u64>, BrokerError> {
        self.inner.stored_offset(stream, reader).await
    }

    /// Ends: producers take nothing more and finish what is in flight, consumers end, and connections are closed. What
    /// is not done after [`timeout`](StreamSettings::timeout) is given up. Closing twice is fine.
    pub async fn close(&self) {
        self.inner.closed.send_replace(true);
        *self.inner.control.lock().await = None;
        let mut tasks = std::mem::take(&mut *self.inner.tasks.lock());
        let all = async { while tasks.join_next().await.is_some() {} };
        if timeout(self.inner.settings.timeout, all).await.is_err() {
            tracing::warn!("the broker does not let go of all connections in time");
        }
    }
}

impl fmt::Debug for StreamClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamClient").field("settings", &self.inner.settings).finish_non_exhaustive()
    }
}

fn owned(arguments: &[(&str, &str)]) -> Pairs {
    arguments.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn in_words(arguments: &[(&str, &str)]) -> String {
    let words: Vec<_> = arguments.iter().map(|(name, value)| format!("{name}={value}")).collect();
    if words.is_empty() { "no arguments".to_owned() } else { words.join(", ") }
}

fn no_super_stream(name: &str) -> BrokerError {
    let text = format!(
        "there is no super stream `{name}`; `create_super_stream` makes one, or the broker's `rabbitmq-streams add_super_stream`"
    );
    BrokerError::new(BrokerErrorKind::NotFound, text)
}
