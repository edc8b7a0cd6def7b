//! A broker whose disk is full, at the end of a flow and under a worker: nothing is given up.

use std::sync::Arc;

use millstream::embedded::log::SimDisk;
use millstream::embedded::{EmbeddedBroker, Settings};
use millstream::message::Broker;
use millstream::prelude::*;
use millstream::queue::{self, Job, Work};

/// A broker on a disk of its own, with queue `to` and `count` messages in it.
async fn on_disk(count: usize) -> (SimDisk, Arc<dyn Broker>) {
    let disk = SimDisk::new();
    let settings = Settings { segment_bytes: 256 << 10, message_bytes_max: 64 << 10, ..Settings::default() };
    let broker = EmbeddedBroker::open_on("/sim", settings, Arc::new(disk.clone())).await.expect("opened");
    let broker: Arc<dyn Broker> = Arc::new(broker);
    broker.declare_queue(Queue::durable("to")).await.expect("declared");
    fill(&broker, "to", count).await;
    (disk, broker)
}

async fn fill(broker: &Arc<dyn Broker>, queue: &str, count: usize) {
    for n in 0..count {
        let body = format!("\"{n:060000}\"");
        let message = Message::new(body).with_content_type("application/json");
        assert!(broker.publish(&Address::queue(queue), message).await.expect("published").is_confirmed());
    }
}

async fn consumer(broker: &Arc<dyn Broker>, queue: &str) -> millstream::message::Consumer {
    broker.consume(queue, ConsumeOptions::default().stop_when_empty()).await.expect("consumed")
}

#[tokio::test]
async fn what_a_full_disk_does_not_take_fails_the_run_and_stays_at_its_source() {
    let (disk, broker) = on_disk(4).await;
    let source = millstream::open("memory:").await.expect("opened");
    source.declare_queue(Queue::durable("from")).await.expect("declared");
    fill(&source, "from", 3).await;
    disk.set_capacity(disk.used_bytes() + 100);
    let publisher = queue::Publisher::new(broker, Address::queue("to"));
    let run = queue::messages(consumer(&source, "from").await).into_sink(publisher).await;
    let error = run.err().expect("the disk is full").to_string();
    assert!(error.contains("make room"), "{error}");
    assert_eq!(source.stats("from").await.expect("stats").total(), 3, "messages are gone that nobody stored");
}

#[tokio::test]
async fn a_job_that_a_full_disk_does_not_take_back_is_no_dead_letter() {
    let (disk, broker) = on_disk(3).await;
    disk.set_capacity(disk.used_bytes() + 100);
    let work = Work::new(Json).retry(Retry::attempts(3).expect("some"));
    let handle = async |_: &Job<String>| Err::<(), _>(BoxError::from("not today").into());
    // The first may still find room in the segment that is open.
    let run = work.start(broker.clone(), consumer(&broker, "to").await, handle).for_each(drop).await;
    let error = run.expect_err("the disk is full").to_string();
    assert!(error.contains("make room"), "{error}");
    assert_eq!(broker.stats("to").await.expect("stats").total(), 3, "a job is gone");
}
