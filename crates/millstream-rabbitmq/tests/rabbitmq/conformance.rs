//! The suite that every backend runs.

use std::sync::Arc;
use std::time::Duration;

use millstream_message::conformance::{self, Backend};
use millstream_message::{BoxFuture, Broker};
use millstream_rabbitmq::RabbitMq;
use millstream_testing::{Node, Setup};

struct Real(Node);

impl Backend for Real {
    /// A broker that starts, while others use the processor too, takes its time.
    fn restart_takes(&self) -> Duration {
        Duration::from_secs(90)
    }

    fn at_once(&self) -> usize {
        10
    }

    fn open(&self) -> BoxFuture<'_, Arc<dyn Broker>> {
        Box::pin(async {
            Arc::new(RabbitMq::connect(&self.0.managed_url()).await.expect("connected")) as Arc<dyn Broker>
        })
    }

    fn restart(&self, broker: Arc<dyn Broker>) -> BoxFuture<'_, Arc<dyn Broker>> {
        Box::pin(async move {
            broker.close().await.expect("closed");
            self.0.stop().await;
            self.0.run().await.expect("it starts again");
            self.open().await
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_does_what_every_broker_does() {
    let setup = Setup::default().plugin("rabbitmq_management");
    let backend = Real(Node::start(setup).await.expect("it starts"));
    // What a full queue does not take is offered again after this long; otherwise after three minutes.
    let soon = "application:set_env(rabbit, dead_letter_worker_publisher_confirm_timeout, 500).";
    backend.0.tell("rabbitmqctl", &["eval", soon]).await;
    let report = conformance::run(&backend).await;
    let mut absent: Vec<_> = report.skipped.iter().map(|(_, feature)| *feature).collect();
    absent.dedup();
    // AMQP has no leases and no batches that are one step, and takes to look; streams have a protocol of their own.
    assert_eq!(absent, ["lease", "uncounted_browse", "atomic_batches", "streams"]);
    assert_eq!(report.passed.len(), 67);
}
