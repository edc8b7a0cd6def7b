//! Streams against a real RabbitMQ, which the tests start for themselves.

mod faults;
mod groups;
mod streams;
mod support;
mod tls;

use std::sync::Arc;
use std::time::Duration;

use millstream_message::conformance::{self, Backend};
use millstream_message::{BoxFuture, Broker};
use millstream_rabbitmq::stream::StreamBroker;
use support::{Down, TURN, url};

struct Rabbit;

impl Backend for Rabbit {
    fn open(&self) -> BoxFuture<'_, Arc<dyn Broker>> {
        Box::pin(async {
            Arc::new(StreamBroker::connect(&url("").await).await.expect("connects")) as Arc<dyn Broker>
        })
    }

    fn restart(&self, broker: Arc<dyn Broker>) -> BoxFuture<'_, Arc<dyn Broker>> {
        Box::pin(async move {
            broker.close().await.expect("closes");
            drop(broker);
            support::restart(Down::Stopped).await;
            self.open().await
        })
    }

    fn restart_takes(&self) -> Duration {
        Duration::from_secs(60)
    }
}

#[tokio::test]
async fn streams_pass_all_that_is_not_about_queues() {
    let _alone = TURN.write().await;
    let report = conformance::run(&Rabbit).await;
    for (claim, feature) in &report.skipped {
        assert_eq!(*feature, "queues", "{claim}");
    }
    assert_eq!(
        report.passed,
        [
            "a_stream_is_read_from_anywhere_and_again",
            "a_reader_waits_at_the_end_for_more",
            "a_stream_forgets_its_oldest_beyond_its_size",
            "readers_remember_their_offset",
            "a_deleted_stream_ends_its_readers",
            "streams_survive_a_restart",
        ]
    );
}
