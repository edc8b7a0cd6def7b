//! The event bus, in memory, in files, and on a RabbitMQ.

mod faults;
mod handling;
mod publishing;
mod stopping;
mod subscribing;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::node;
use millstream_events::{EventBus, EventData, Subscription};
use millstream_message::flow::Failure;
use millstream_message::{Broker, ConsumeOptions, Message};
use millstream_testing::unique;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// Longer than any of these tests takes.
pub(crate) const LONG: Duration = Duration::from_secs(120);

/// Runs each of these claims on every kind of broker.
macro_rules! everywhere {
    ($($claim:ident),* $(,)?) => {
        mod in_memory {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $claim() {
                super::$claim(crate::bus::World::in_memory().await).await;
            })*
        }
        mod in_files {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $claim() {
                super::$claim(crate::bus::World::in_files().await).await;
            })*
        }
        mod on_rabbitmq {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $claim() {
                super::$claim(crate::bus::World::on_rabbitmq().await).await;
            })*
        }
    };
}
pub(crate) use everywhere;

/// Somebody has placed an order.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Placed {
    pub order: u32,
    pub n: u32,
}

impl EventData for Placed {
    const TYPES: &'static [&'static str] = &["orders.placed"];
}

/// What else can happen to an order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Later {
    Paid(u32),
    Sent(u32),
}

impl EventData for Later {
    const TYPES: &'static [&'static str] = &["orders.paid", "orders.sent"];

    fn event_type(&self) -> &'static str {
        Self::TYPES[usize::from(matches!(self, Later::Sent(_)))]
    }
}

/// A broker, and an exchange on it that no other test uses.
pub(crate) struct World {
    pub broker: Arc<dyn Broker>,
    pub exchange: String,
    /// Where others connect, if they do not share the broker.
    url: Option<String>,
    _files: Option<tempfile::TempDir>,
}

impl World {
    pub(crate) async fn in_memory() -> World {
        let broker = millstream_embedded::open(&"memory:".parse().expect("a URL")).await.expect("opened");
        World { broker, exchange: unique("events"), url: None, _files: None }
    }

    async fn in_files() -> World {
        let files = tempfile::tempdir().expect("a directory");
        let url = format!("embedded:{}", files.path().display()).parse().expect("a URL");
        let broker = millstream_embedded::open(&url).await.expect("opened");
        World { broker, exchange: unique("events"), url: None, _files: Some(files) }
    }

    async fn on_rabbitmq() -> World {
        let url = node().await.url();
        World { broker: connect(&url).await, exchange: unique("events"), url: Some(url), _files: None }
    }

    /// A process of this service.
    pub(crate) async fn process(&self, service: &str) -> EventBus {
        let broker = match &self.url {
            Some(url) => connect(url).await,
            None => self.broker.clone(),
        };
        EventBus::new(broker, service).exchange(&self.exchange)
    }

    pub(crate) fn queue(&self, service: &str, name: &str) -> String {
        format!("{service}.{}.{name}", self.exchange)
    }

    /// So many dead letters of a queue, by their body.
    pub(crate) async fn letters(&self, queue: &str, count: usize) -> BTreeMap<String, Message> {
        let dead = format!("{queue}.dead");
        let mut consumer = self.broker.consume(&dead, ConsumeOptions::default()).await.expect("consumed");
        let mut letters = BTreeMap::new();
        while letters.len() < count {
            let next = timeout(LONG, consumer.next()).await.expect("a letter").expect("no end");
            let letter = next.expect("no error");
            letter.ack();
            letters.insert(String::from_utf8_lossy(letter.message.body()).into_owned(), letter.message);
        }
        letters
    }
}

async fn connect(url: &str) -> Arc<dyn Broker> {
    Arc::new(millstream_rabbitmq::RabbitMq::connect(url).await.expect("connected"))
}

/// What handlers have seen.
pub(crate) struct Seen<T>(Arc<Mutex<Vec<T>>>);

impl<T> Clone for Seen<T> {
    fn clone(&self) -> Self {
        Seen(self.0.clone())
    }
}

impl<T: Clone> Seen<T> {
    pub(crate) fn new() -> Seen<T> {
        Seen(Arc::default())
    }

    pub(crate) fn add(&self, one: T) {
        self.0.lock().unwrap().push(one);
    }

    /// What a handler does that has nothing else to do.
    pub(crate) fn note(&self, one: T) -> Result<(), Failure> {
        self.add(one);
        Ok(())
    }

    pub(crate) fn all(&self) -> Vec<T> {
        self.0.lock().unwrap().clone()
    }

    /// All, once there are so many.
    pub(crate) async fn wait_for(&self, count: usize) -> Vec<T> {
        until(async || self.all().len() >= count).await;
        self.all()
    }
}

/// Looks again and again.
pub(crate) async fn until(holds: impl AsyncFn() -> bool) {
    let looking = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(LONG, looking).await.expect("in time");
}

/// Until so many events were handled or have ended otherwise.
pub(crate) async fn settled(subscription: &Subscription, count: u64) {
    until(async || {
        let now = subscription.statistics();
        now.received - now.in_flight >= count
    })
    .await;
}
