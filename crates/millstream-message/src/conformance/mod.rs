//! The suite that every backend runs in its tests.
//!
//! ```ignore
//! let report = conformance::run(&MyBackend::new()).await;
//! assert_eq!(report.skipped, []); // or exactly what the backend declares absent
//! ```
//!
//! Each claim is named for what it promises and panics, with its name, when the backend breaks it. What a backend
//! declares absent in its [`Features`] is skipped and listed in the [`Report`]; nothing else is. The suite asks only for
//! what AMQP 0-9-1 can do, or for a feature.
//!
//! Claims use names of their own on one broker, and several may be under way at once; they wait for events and not for time, and give
//! up after two minutes, or as much later as the backend says.

mod durable;
mod limits;
mod routing;
mod settling;
mod streams;
mod topology;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::{join, join_all};
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::broker::{BoxFuture, Broker, Features};
use crate::consume::{ConsumeOptions, Consumer, Delivery};
use crate::message::Message;
use crate::publish::{Address, Batch};
use crate::topology::Queue;

/// How the suite gets at a backend.
pub trait Backend: Send + Sync {
    /// The broker, running.
    fn open(&self) -> BoxFuture<'_, Arc<dyn Broker>>;

    /// Closes the broker, to which this is the only handle, and starts it again. Called only when the broker declares `durable`.
    fn restart(&self, broker: Arc<dyn Broker>) -> BoxFuture<'_, Arc<dyn Broker>>;

    /// How long a restart may take. A server in another process is not back at once.
    fn restart_takes(&self) -> Duration {
        Duration::ZERO
    }

    /// How many claims may be under way at once, and be served by one restart. More than one saves time with a server that lets them
    /// wait.
    fn at_once(&self) -> usize {
        1
    }
}

/// How long a claim may take: what holds takes a moment, on a machine that does much else at the same time a long one.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long a claim waits for a queue's numbers, so that it can tell what they were instead.
const NUMBERS: Duration = Duration::from_secs(60);

/// What was run.
#[derive(Debug, Default)]
pub struct Report {
    /// Claims that held.
    pub passed: Vec<&'static str>,
    /// Claims that were skipped, with the feature that the backend declares absent.
    pub skipped: Vec<(&'static str, &'static str)>,
}

/// A feature by name, and whether a backend has it.
type Need = (&'static str, fn(&Features) -> bool);

/// One claim.
struct Claim {
    name: &'static str,
    /// The features it needs.
    needs: &'static [Need],
    run: for<'a> fn(&'a mut Bench) -> BoxFuture<'a, ()>,
}

/// Builds the list of a file's claims: `claims![name, name needs durable, …]`.
macro_rules! claims {
    ($($name:ident $(needs $($feature:ident)+)?),+ $(,)?) => {
        pub(super) const CLAIMS: &[super::Claim] = &[$(super::Claim {
            name: stringify!($name),
            needs: &[$($((stringify!($feature), |features| features.$feature)),+)?],
            run: |bench| Box::pin($name(bench)),
        }),+];
    };
}
use claims;

impl Claim {
    /// Whether it restarts the broker, once.
    fn restarts(&self) -> bool {
        self.needs.iter().any(|(feature, _)| *feature == "durable")
    }

    /// # Panics
    /// When it does not hold, or not in time.
    async fn hold(&self, broker: Arc<dyn Broker>, restarts: &mpsc::Sender<Restart>, patience: Duration) {
        let restarts = restarts.clone();
        let mut bench = Bench { broker: Some(broker), restarts, claim: self.name, names: AtomicU64::new(0) };
        within_time(self.name, patience, (self.run)(&mut bench)).await;
    }
}

/// The one who has given up his handle on the broker, and waits for that on the next.
type Restart = oneshot::Sender<Arc<dyn Broker>>;

/// Runs every claim on the backend.
///
/// # Panics
/// When a claim does not hold.
pub async fn run(backend: &dyn Backend) -> Report {
    let mut broker = backend.open().await;
    let features = broker.features();
    let mut report = Report::default();
    let (mut steady, mut restarting) = (Vec::new(), Vec::new());
    let queues: &[Need] = &[("queues", |features| features.queues)];
    let all = [
        (routing::CLAIMS, queues),
        (settling::CLAIMS, queues),
        (limits::CLAIMS, queues),
        (topology::CLAIMS, queues),
        (durable::CLAIMS, queues),
        (streams::CLAIMS, &[]),
    ];
    for (claim, needs) in
        all.iter().flat_map(|(claims, needs)| claims.iter().map(move |claim| (claim, *needs)))
    {
        if let Some((feature, _)) = needs.iter().chain(claim.needs).find(|(_, has)| !has(&features)) {
            report.skipped.push((claim.name, feature));
            continue;
        }
        report.passed.push(claim.name);
        if claim.restarts() { &mut restarting } else { &mut steady }.push(claim);
    }

    let (ask, mut asked) = mpsc::channel(backend.at_once());
    let room = Semaphore::new(backend.at_once());
    join_all(steady.iter().map(async |claim| {
        let _place = room.acquire().await.expect("it is not closed");
        claim.hold(broker.clone(), &ask, PATIENCE).await;
    }))
    .await;
    for group in restarting.chunks(backend.at_once()) {
        let patience = PATIENCE + backend.restart_takes();
        let claims: Vec<_> = group.iter().map(|claim| claim.hold(broker.clone(), &ask, patience)).collect();
        let restart = async {
            let mut waiting: Vec<Restart> = Vec::new();
            while waiting.len() < group.len() {
                waiting.extend(asked.recv().await);
            }
            let broker = backend.restart(broker).await;
            waiting.into_iter().for_each(|claim| drop(claim.send(broker.clone())));
            broker
        };
        (broker, _) = join(restart, join_all(claims)).await;
    }
    broker.close().await.expect("the broker closes");
    report
}

/// What a claim works with.
struct Bench {
    /// `None` only while it restarts.
    broker: Option<Arc<dyn Broker>>,
    restarts: mpsc::Sender<Restart>,
    claim: &'static str,
    names: AtomicU64,
}

impl Bench {
    fn broker(&self) -> &Arc<dyn Broker> {
        self.broker.as_ref().expect("it is only away while it restarts")
    }

    /// A name that nobody else uses.
    fn name(&self, role: &str) -> String {
        format!("{}-{role}-{}", self.claim, self.names.fetch_add(1, Ordering::Relaxed))
    }

    /// Declares a queue under a name of its own.
    async fn queue(&self, make: impl FnOnce(String) -> Queue) -> String {
        let queue = make(self.name("queue"));
        let name = queue.name.clone();
        self.broker().declare_queue(queue).await.expect("the queue is declared");
        name
    }

    /// Publishes bodies to a queue and waits until they are stored.
    async fn publish(&self, queue: &str, bodies: &[&'static str]) {
        self.send(queue, bodies.iter().map(|body| Message::new(*body))).await;
    }

    async fn send(&self, queue: &str, messages: impl IntoIterator<Item = Message>) {
        let batch = Batch::to(&Address::queue(queue), messages);
        let outcomes = self.broker().publish_batch(batch).await.expect("the broker takes it");
        assert!(outcomes.all_confirmed(), "{}: {:?}", self.claim, outcomes.others());
    }

    async fn consumer(&self, queue: &str) -> Consumer {
        self.consume(queue, ConsumeOptions::default()).await
    }

    async fn consume(&self, queue: &str, options: ConsumeOptions) -> Consumer {
        self.broker().consume(queue, options).await.expect("the queue can be consumed")
    }

    /// Takes exactly `count` deliveries.
    async fn take(&self, consumer: &mut Consumer, count: usize) -> Vec<Delivery> {
        let mut out = Vec::new();
        while out.len() < count {
            let next = within(self.claim, consumer.next()).await;
            out.push(next.expect("the consumer goes on").expect("the queue can be read"));
        }
        out
    }

    /// Takes and acks everything that is in a queue now, as text.
    async fn drain(&self, queue: &str) -> Vec<String> {
        let mut consumer = self.consume(queue, ConsumeOptions::default().stop_when_empty()).await;
        let mut out = Vec::new();
        while let Some(delivery) = within(self.claim, consumer.next()).await {
            let delivery = delivery.expect("the queue can be read");
            assert!(delivery.ack());
            out.push(text(&delivery));
        }
        out
    }

    /// Waits until the queue's numbers are so: ready, unacked, delayed.
    async fn until(&self, queue: &str, ready: u64, unacked: u64, delayed: u64) {
        let begin = tokio::time::Instant::now();
        loop {
            let stats = self.broker().stats(queue).await.expect("the queue is there");
            if (stats.ready, stats.unacked, stats.delayed) == (ready, unacked, delayed) {
                return;
            }
            let (claim, waited) = (self.claim, begin.elapsed());
            assert!(
                waited < NUMBERS,
                "{claim}: expected {ready} ready, {unacked} unacked, {delayed} delayed, not {stats:?}"
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Whether the consumer has nothing to give right now.
    async fn is_idle(&self, consumer: &mut Consumer) -> bool {
        tokio::time::timeout(Duration::from_millis(20), consumer.next()).await.is_err()
    }

    async fn restart(&mut self) {
        drop(self.broker.take());
        let (ask, answer) = oneshot::channel();
        self.restarts.send(ask).await.expect("somebody restarts it");
        self.broker = Some(answer.await.expect("it is there again"));
    }
}

/// Fails a claim that waits for too long.
async fn within<T>(claim: &str, future: impl Future<Output = T>) -> T {
    within_time(claim, PATIENCE, future).await
}

async fn within_time<T>(claim: &str, patience: Duration, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(patience, future).await {
        Ok(done) => done,
        Err(_) => panic!("{claim}: nothing happened for {} seconds", patience.as_secs()),
    }
}

fn text(delivery: &Delivery) -> String {
    String::from_utf8_lossy(delivery.message.body()).into_owned()
}

fn texts(deliveries: &[Delivery]) -> Vec<String> {
    deliveries.iter().map(text).collect()
}
