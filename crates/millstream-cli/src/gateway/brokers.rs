//! The brokers behind routes.

use std::collections::BTreeMap;
use std::sync::Arc;

use millstream_message::{Broker, BrokerErrorKind, BrokerUrl, Queue, StreamSpec};

/// The brokers behind routes, each opened once, and open until the end: who follows a stream goes on though no route leads there any more.
#[derive(Default)]
pub(crate) struct Brokers(BTreeMap<String, Arc<dyn Broker>>);

impl Brokers {
    pub(super) async fn open(&mut self, url: &str) -> Result<Arc<dyn Broker>, String> {
        if let Some(broker) = self.0.get(url) {
            return Ok(broker.clone());
        }
        let parsed: BrokerUrl = url.parse().map_err(|error| format!("{error}"))?;
        let memory = millstream_embedded::Settings::default().memory_bytes;
        let broker = millstream_pipeline::open_broker(&parsed, memory).await;
        let broker = broker.map_err(|error| format!("cannot open the broker `{parsed}`: {error}"))?;
        self.0.insert(url.to_owned(), broker.clone());
        Ok(broker)
    }

    /// The URLs of all of them.
    pub(crate) fn urls(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    /// Closes those with other URLs, which nobody has used.
    pub(crate) async fn close_others(&mut self, urls: &[String]) -> Result<(), String> {
        let others: Vec<String> = self.0.keys().filter(|url| !urls.contains(url)).cloned().collect();
        Brokers(others.into_iter().filter_map(|url| self.0.remove_entry(&url)).collect()).close().await
    }

    /// Closes all of them, so that what was accepted is durable.
    pub(crate) async fn close(self) -> Result<(), String> {
        for (url, broker) in self.0 {
            let closed = broker.close().await;
            closed.map_err(|error| format!("cannot close the broker `{}`: {error}", shown(&url)))?;
        }
        Ok(())
    }
}

/// Makes a queue, durable, that is not there, as pipelines do: nobody else could while the broker is this process's.
pub(super) async fn queue_is_there(broker: &dyn Broker, queue: &str) -> Result<(), String> {
    let there = match broker.stats(queue).await {
        Err(error) if error.kind() == BrokerErrorKind::NotFound => {
            broker.declare_queue(Queue::durable(queue)).await
        }
        other => other.map(drop),
    };
    there.map_err(|error| format!("cannot use the queue `{queue}`: {error}"))
}

/// The same for a stream, which keeps everything.
pub(super) async fn stream_is_there(broker: &dyn Broker, stream: &str) -> Result<(), String> {
    let there = match broker.stream_stats(stream).await {
        Err(error) if error.kind() == BrokerErrorKind::NotFound => {
            broker.declare_stream(StreamSpec::new(stream)).await
        }
        other => other.map(drop),
    };
    there.map_err(|error| format!("cannot use the stream `{stream}`: {error}"))
}

/// The URL of a broker without a password.
pub(super) fn shown(url: &str) -> String {
    url.parse::<BrokerUrl>().map_or_else(|_| "?".into(), |url| url.to_string())
}
