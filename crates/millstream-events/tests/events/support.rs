//! Brokers for the tests.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use millstream_events::{Event, EventStore, RecordedEvent};
use millstream_message::{Broker, BrokerUrl, Message};
use millstream_rabbitmq::stream::StreamBroker;
use millstream_testing::{Node, Setup, unique};
use tempfile::TempDir;
use tokio::sync::OnceCell;
use tokio::time::timeout;

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(300);

/// A broker with streams, and a name that nothing else has there.
pub(crate) struct Place {
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) log: String,
    pub(crate) kind: Kind,
    directory: Option<TempDir>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    Memory,
    Embedded,
    RabbitMq,
}

/// The RabbitMQ of all tests.
pub(crate) async fn node() -> &'static Node {
    static SHARED: OnceCell<Node> = OnceCell::const_new();
    let start = async || Node::start(Setup::default().plugin("rabbitmq_stream")).await.expect("it starts");
    SHARED.get_or_init(start).await
}

pub(crate) async fn embedded(url: &str) -> Arc<dyn Broker> {
    let url: BrokerUrl = url.parse().expect("a URL");
    millstream_embedded::open(&url).await.expect("opened")
}

async fn streams() -> Arc<dyn Broker> {
    let BrokerUrl::RabbitmqStream(url) = node().await.stream_url("").parse().expect("a URL") else {
        panic!("a URL of another kind")
    };
    Arc::new(StreamBroker::connect(&url).await.expect("connected"))
}

impl Place {
    pub(crate) async fn of(kind: Kind) -> Place {
        let directory = (kind == Kind::Embedded).then(|| tempfile::tempdir().expect("a directory"));
        let broker = match kind {
            Kind::Memory => embedded("memory:").await,
            Kind::Embedded => embedded(&url(&directory)).await,
            Kind::RabbitMq => streams().await,
        };
        Place { broker, log: unique("events"), kind, directory }
    }

    /// The store of this place; each time as another process would open it.
    pub(crate) async fn store(&self) -> EventStore {
        EventStore::open(self.broker.clone(), &self.log).await.expect("opened")
    }

    /// The same place after the program has ended and begun again.
    pub(crate) async fn restarted(self) -> Place {
        self.restarted_after(|_| {}).await
    }

    /// The same, and something has happened meanwhile to the directory of an embedded broker.
    pub(crate) async fn restarted_after(self, happen: impl FnOnce(&Path)) -> Place {
        self.broker.close().await.expect("closed");
        if let Some(directory) = &self.directory {
            happen(directory.path());
        }
        let broker = match self.kind {
            Kind::Memory => panic!("it forgets"),
            Kind::Embedded => embedded(&url(&self.directory)).await,
            Kind::RabbitMq => streams().await,
        };
        Place { broker, ..self }
    }
}

fn url(directory: &Option<TempDir>) -> String {
    format!("embedded:{}", directory.as_ref().expect("a directory").path().display())
}

/// Does the same on every broker with streams.
pub(crate) async fn everywhere(claim: impl AsyncFn(Place)) {
    for kind in [Kind::Memory, Kind::Embedded, Kind::RabbitMq] {
        let place = Place::of(kind).await;
        timeout(LONG, claim(place)).await.unwrap_or_else(|_| panic!("it does not end on {kind:?}"));
    }
}

/// An event with this text.
pub(crate) fn event(text: impl Into<String>) -> Event {
    Event::new("said", Message::new(text.into()))
}

/// The texts of events.
pub(crate) fn texts<'a>(events: impl IntoIterator<Item = &'a RecordedEvent>) -> Vec<String> {
    events.into_iter().map(|event| text(&event.event)).collect()
}

pub(crate) fn text(event: &Event) -> String {
    String::from_utf8(event.data.body().to_vec()).expect("a text")
}
