//! Streams as the [`Broker`] trait has them.

use std::fmt;
use std::num::NonZeroU64;
use std::sync::Arc;

use bytes::Bytes;
use hashbrown::HashMap;
use millstream_message::{
    Batch, Binding, BoxFuture, Broker, BrokerError, BrokerErrorKind, BrokerUrl, Browsed, Confirm,
    ConsumeOptions, Consumer, Exchange, Features, Message, Queue, QueueStats, StreamFrom, StreamReader,
    StreamSpec, StreamStats,
};

use super::append::Appender;
use super::client::StreamClient;
use super::consumer::ConsumerOptions;
use super::super_stream::Partitions;
use super::url::StreamSettings;
use crate::broker::Statistics;

/// What the broker takes as the size of a segment, at most.
const SEGMENT_BYTES_USUAL: u64 = 500_000_000;
const SEGMENT_BYTES_MIN: u64 = 64 << 10;
/// What a message has around it in a frame, and a mark.
const FRAME_EXTRA: u32 = 256;

/// RabbitMQ's streams by the stream protocol, as a [`Broker`]: the stream operations, and no queues.
///
/// [`append`](Broker::append) waits until the broker has stored the messages, and then reads them back to learn the
/// first one's offset, which the protocol does not tell otherwise: the message carries a mark that readers do not see.
/// It is at least once: what was in flight when a connection was lost may be there twice. A
/// [`Producer`](super::Producer), from [`client`](StreamBroker::client), is several times faster, and exact when it is
/// named.
///
/// RabbitMQ writes streams to its disk's cache and replicates them; it does not wait for the disk.
pub struct StreamBroker {
    client: StreamClient,
    url: BrokerUrl,
    appenders: tokio::sync::Mutex<HashMap<String, Arc<Appender>>>,
    frame_bytes_max: u32,
}

impl StreamBroker {
    /// Connects to `rabbitmq-stream://…`; see [`StreamSettings::parse`] for what the URL may say.
    ///
    /// # Errors
    /// As of [`StreamSettings::parse`] and [`StreamClient::connect`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn connect(url: &str) -> Result<StreamBroker, BrokerError> {
        let settings = StreamSettings::parse(url)?;
        let frame_bytes_max = settings.frame_bytes_max;
        let client = StreamClient::connect(settings).await?;
        Ok(StreamBroker {
            client,
            url: BrokerUrl::RabbitmqStream(url.to_owned()),
            appenders: tokio::sync::Mutex::default(),
            frame_bytes_max,
        })
    }

    /// The client, for producers with confirms per message, deduplication, super streams, and what else the trait has
    /// not.
    pub fn client(&self) -> &StreamClient {
        &self.client
    }

    /// Figures of it: see [`StreamClient::statistics`].
    pub fn statistics(&self) -> Statistics {
        self.client.statistics()
    }

    /// Makes a super stream, each of whose partitions keeps what the spec says; its name is the super stream's.
    ///
    /// # Errors
    /// As of [`StreamClient::create_super_stream`].
    pub async fn declare_super_stream(
        &self,
        spec: &StreamSpec,
        partitions: &Partitions,
    ) -> Result<(), BrokerError> {
        let arguments = arguments(spec);
        let arguments: Vec<_> = arguments.iter().map(|(name, value)| (*name, value.as_str())).collect();
        self.client.create_super_stream(&spec.name, partitions, &arguments).await
    }

    async fn appender(&self, stream: &str) -> Result<Arc<Appender>, BrokerError> {
        let mut appenders = self.appenders.lock().await;
        if let Some(appender) = appenders.get(stream) {
            return Ok(appender.clone());
        }
        let appender = Arc::new(Appender::open(self.client.clone(), stream).await?);
        appenders.insert(stream.to_owned(), appender.clone());
        Ok(appender)
    }

    async fn forget(&self, stream: &str) {
        self.appenders.lock().await.remove(stream);
    }
}

impl fmt::Debug for StreamBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamBroker").field("url", &self.url.to_string()).finish_non_exhaustive()
    }
}

fn no_queues<T: Send>() -> BoxFuture<'static, Result<T, BrokerError>> {
    Box::pin(async {
        let text = "`rabbitmq-stream:` has streams and no queues; open the broker by `amqp://` for those";
        Err(BrokerError::new(BrokerErrorKind::Unsupported, text))
    })
}

/// What the broker is told of a stream. It removes whole segments as long as all that is left is more than
/// `max-length-bytes`, and so keeps up to a segment less: told a segment more, it never keeps less than is asked for.
fn arguments(spec: &StreamSpec) -> Vec<(&'static str, String)> {
    let mut arguments = Vec::new();
    if let Some(bytes) = spec.max_bytes.map(NonZeroU64::get) {
        let segment = (bytes / 4).clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_USUAL);
        arguments.push(("max-length-bytes", bytes.saturating_add(segment).min(i64::MAX as u64).to_string()));
        if segment != SEGMENT_BYTES_USUAL {
            arguments.push(("stream-max-segment-size-bytes", segment.to_string()));
        }
    }
    if let Some(age) = spec.max_age {
        let seconds = age.as_secs() + u64::from(age.subsec_nanos() > 0);
        arguments.push(("max-age", format!("{}s", seconds.max(1))));
    }
    arguments
}

impl Broker for StreamBroker {
    fn url(&self) -> &BrokerUrl {
        &self.url
    }

    fn features(&self) -> Features {
        let mut features =
            Features::all((self.frame_bytes_max - FRAME_EXTRA.min(self.frame_bytes_max)).into());
        features.queues = false;
        features.delay = false;
        features.lease = false;
        features.prefetch_bytes = false;
        features.delivery_limit = false;
        features.browse = false;
        features.positions = false;
        features.list = false;
        features.exact_settlement = false;
        features.dense_offsets = false;
        features.queue_bytes = false;
        features.stream_bytes = false;
        features
    }

    fn declare_stream(&self, stream: StreamSpec) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(async move {
            let arguments = arguments(&stream);
            let arguments: Vec<_> = arguments.iter().map(|(name, value)| (*name, value.as_str())).collect();
            self.client.create_stream(&stream.name, &arguments).await
        })
    }

    fn delete_stream<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), BrokerError>> {
        Box::pin(async move {
            self.forget(name).await;
            self.client.delete_stream(name).await
        })
    }

    fn append<'a>(
        &'a self,
        stream: &'a str,
        messages: Vec<Message>,
    ) -> BoxFuture<'a, Result<u64, BrokerError>> {
        Box::pin(async move {
            if messages.is_empty() {
                return Ok(self.client.stats(stream).await?.next);
            }
            let outcome = self.appender(stream).await?.append(&messages).await;
            if outcome.as_ref().is_err_and(|error| error.kind() == BrokerErrorKind::NotFound) {
                self.forget(stream).await;
            }
            outcome
        })
    }

    fn read<'a>(
        &'a self,
        stream: &'a str,
        from: StreamFrom,
    ) -> BoxFuture<'a, Result<StreamReader, BrokerError>> {
        Box::pin(async move {
            Ok(self.client.consumer(stream, from, ConsumerOptions::default()).await?.into_reader())
        })
    }

    fn stream_stats<'a>(&'a self, stream: &'a str) -> BoxFuture<'a, Result<StreamStats, BrokerError>> {
        Box::pin(self.client.stats(stream))
    }

    fn store_offset<'a>(
        &'a self,
        stream: &'a str,
        reader: &'a str,
        offset: u64,
    ) -> BoxFuture<'a, Result<(), BrokerError>> {
        Box::pin(self.client.store_offset(stream, reader, offset))
    }

    fn stored_offset<'a>(
        &'a self,
        stream: &'a str,
        reader: &'a str,
    ) -> BoxFuture<'a, Result<Option<u64>, BrokerError>> {
        Box::pin(self.client.stored_offset(stream, reader))
    }

    fn close(&self) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(async {
            self.appenders.lock().await.clear();
            self.client.close().await;
            Ok(())
        })
    }

    fn declare_exchange(&self, _: Exchange) -> BoxFuture<'_, Result<(), BrokerError>> {
        no_queues()
    }

    fn delete_exchange<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), BrokerError>> {
        no_queues()
    }

    fn declare_queue(&self, _: Queue) -> BoxFuture<'_, Result<(), BrokerError>> {
        no_queues()
    }

    fn delete_queue<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<u64, BrokerError>> {
        no_queues()
    }

    fn bind(&self, _: Binding) -> BoxFuture<'_, Result<(), BrokerError>> {
        no_queues()
    }

    fn unbind(&self, _: Binding) -> BoxFuture<'_, Result<(), BrokerError>> {
        no_queues()
    }

    fn purge<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<u64, BrokerError>> {
        no_queues()
    }

    fn submit(&self, _: Batch) -> BoxFuture<'_, Result<Confirm, BrokerError>> {
        no_queues()
    }

    fn consume<'a>(&'a self, _: &'a str, _: ConsumeOptions) -> BoxFuture<'a, Result<Consumer, BrokerError>> {
        no_queues()
    }

    fn browse<'a>(
        &'a self,
        _: &'a str,
        _: u64,
        _: usize,
    ) -> BoxFuture<'a, Result<Vec<Browsed>, BrokerError>> {
        no_queues()
    }

    fn stats<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<QueueStats, BrokerError>> {
        no_queues()
    }

    fn queue<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Option<Queue>, BrokerError>> {
        no_queues()
    }

    fn queues(&self) -> BoxFuture<'_, Result<Vec<String>, BrokerError>> {
        no_queues()
    }

    fn position<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Option<Bytes>, BrokerError>> {
        no_queues()
    }

    fn store_position<'a>(&'a self, _: &'a str, _: Option<Bytes>) -> BoxFuture<'a, Result<(), BrokerError>> {
        no_queues()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_stream_is_told_a_segment_more_than_it_must_keep() {
        let spec = StreamSpec::new("s").max_bytes(1 << 20).max_age(Duration::from_millis(1500));
        let expected = [
            ("max-length-bytes", ((1 << 20) + (1 << 18)).to_string()),
            ("stream-max-segment-size-bytes", (1 << 18).to_string()),
            ("max-age", "2s".to_owned()),
        ];
        assert_eq!(arguments(&spec), expected);
        let large = arguments(&StreamSpec::new("s").max_bytes(10_000_000_000));
        assert_eq!(large, [("max-length-bytes", "10500000000".to_owned())]);
        assert!(arguments(&StreamSpec::new("s")).is_empty());
    }
}
