//! A handle of RabbitMQ: its connections and what they share. Below it what is done with them.

mod asking;
mod consuming;
mod draining;
mod errands;
mod operations;
mod positions;
mod statistics;
mod submit;
mod telling;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize};

use millstream_message::{BrokerError, BrokerErrorKind, BrokerUrl};
use tokio::sync::{Mutex, OnceCell, mpsc, watch};

use self::positions::{POSITIONS, PositionJob};
pub use self::statistics::{ConsumerStatistics, Statistics};
use crate::delays::Delays;
use crate::hub::Hub;
use crate::link::{Channel, ConnectionState, Link};
use crate::options::Options;
use crate::restore::Consuming;

/// A RabbitMQ broker, or a cluster of them, behind an `amqp://` or `amqps://` URL.
///
/// One connection declares and consumes, and another one publishes, so that a broker that blocks publishers does not hold back
/// consumers. Both are made anew when they are lost, with everything that was declared through this handle, its consumers with
/// their prefetch, and what was not confirmed.
///
/// # Delivery
/// At least once. What was published and not confirmed when a connection is lost is published again, so it may be stored
/// twice; a [message id](millstream_message::Message::with_message_id) lets consumers tell. What was delivered and not settled is delivered again.
pub struct RabbitMq(Arc<Inner>);

struct Inner {
    url: BrokerUrl,
    options: Arc<Options>,
    hub: Arc<Hub>,
    /// Declares, and consumes.
    main: Arc<Link>,
    /// Further connections for consumers.
    others: Vec<OnceCell<Arc<Link>>>,
    publishing: OnceCell<Arc<Link>>,
    /// Where replies come.
    replying: Arc<OnceCell<Arc<Link>>>,
    /// The channel on which things are declared, one after the other.
    control: Mutex<Option<Channel>>,
    delays: Delays,
    /// When the management last could not tell how something stands, and why.
    #[cfg(feature = "management")]
    untold: parking_lot::Mutex<Option<(tokio::time::Instant, BrokerError)>>,
    /// Positions to be stored when their batches are.
    positions: Mutex<mpsc::Sender<PositionJob>>,
    consumers_made: AtomicUsize,
    published: AtomicU64,
    max_message_bytes: u64,
}

impl RabbitMq {
    /// Connects, as the URL says: `amqp://user:password@host:5672,other-host/vhost?heartbeat=10`.
    ///
    #[doc = include_str!("options.md")]
    ///
    /// # Errors
    /// `Invalid` if the URL makes no sense, or the broker knows neither user nor vhost; `Unavailable` if no host answers.
    pub async fn connect(url: &str) -> Result<RabbitMq, BrokerError> {
        let options = Arc::new(Options::parse(url)?);
        let url = url
            .parse()
            .map_err(|error| BrokerError::with_source(BrokerErrorKind::Invalid, "no broker URL", error))?;
        let hub = Hub::new();
        let main = Link::new(options.clone(), options.name.clone(), hub.known.clone());
        main.start(Arc::new(Consuming::first(hub.clone()))).await?;
        let version = version(&main);
        let most = max_message_bytes(&options, version);
        let others = (1..options.connections).map(|_| OnceCell::new()).collect();
        let (jobs, row) = mpsc::channel(POSITIONS);
        let delays = Delays::new(version, hub.known.clone());
        let inner = Arc::new(Inner {
            url,
            options,
            hub,
            main,
            others,
            publishing: OnceCell::new(),
            replying: Arc::default(),
            control: Mutex::new(None),
            delays,
            #[cfg(feature = "management")]
            untold: Default::default(),
            positions: Mutex::new(jobs),
            consumers_made: AtomicUsize::new(0),
            published: AtomicU64::new(0),
            max_message_bytes: most,
        });
        tokio::spawn(errands::run(inner.clone()));
        tokio::spawn(positions::store(Arc::downgrade(&inner), row));
        Ok(RabbitMq(inner))
    }

    /// Whether a URL makes sense, without connecting.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(url: &str) -> Result<(), BrokerError> {
        Options::parse(url).map(drop)
    }

    /// How the connection is that declares and consumes; a new value at each change.
    pub fn state(&self) -> watch::Receiver<ConnectionState> {
        self.0.main.status()
    }

    /// How the connection is that publishes, once something was published.
    pub fn publishing_state(&self) -> Option<watch::Receiver<ConnectionState>> {
        self.0.publishing.get().map(|link| link.status())
    }

    /// What the broker says it is, such as `RabbitMQ 3.10.8`.
    pub fn server(&self) -> String {
        let server = self.0.main.server.lock();
        server.as_ref().map_or_else(String::new, |server| format!("{} {}", server.product, server.version))
    }

    /// The largest frame that was agreed with the broker, in bytes.
    pub fn frame_max(&self) -> u32 {
        self.0.main.server.lock().as_ref().map_or(0, |server| server.frame_max)
    }
}

impl Drop for RabbitMq {
    fn drop(&mut self) {
        // Nobody waits: what is written goes out, what is confirmed meanwhile is told.
        self.0.links().for_each(|link| link.close());
        self.0.hub.any_errands.notify_one();
    }
}

impl std::fmt::Debug for RabbitMq {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RabbitMq").field("url", &self.0.url.to_string()).finish_non_exhaustive()
    }
}

/// The first two numbers of the broker's version.
fn version(link: &Link) -> Option<(u32, u32)> {
    let server = link.server.lock();
    let mut numbers = server.as_ref()?.version.split('.').map_while(|number| number.parse().ok());
    Some((numbers.next()?, numbers.next()?))
}

/// RabbitMQ's default limit of a message's size, which it does not tell: 128 MiB, and 16 MiB from version 4 on.
fn max_message_bytes(options: &Options, version: Option<(u32, u32)>) -> u64 {
    let small = version.is_some_and(|(major, _)| major >= 4);
    options.max_message_bytes.unwrap_or(if small { 16 << 20 } else { 128 << 20 })
}
