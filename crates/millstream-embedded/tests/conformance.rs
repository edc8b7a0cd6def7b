//! The suite of `millstream-message` on both addresses.

mod support;

use std::sync::Arc;

use millstream_embedded::log::SimDisk;
use millstream_embedded::{EmbeddedBroker, Settings};
use millstream_message::conformance::{Backend, Report, run};
use millstream_message::{BoxFuture, Broker};
use parking_lot::Mutex;
use support::ProcessDisk;

/// Small, so that the claim about messages that are too large costs little.
fn settings() -> Settings {
    Settings { message_bytes_max: 1 << 20, segment_bytes: 4 << 20, ..Settings::memory() }
}

struct Memory;

impl Backend for Memory {
    fn open(&self) -> BoxFuture<'_, Arc<dyn Broker>> {
        Box::pin(async { Arc::new(EmbeddedBroker::memory(settings()).expect("opens")) as Arc<dyn Broker> })
    }

    fn restart(&self, _: Arc<dyn Broker>) -> BoxFuture<'_, Arc<dyn Broker>> {
        unreachable!("`memory:` declares that it is not durable")
    }
}

/// A directory of a real disk.
struct Directory(tempfile::TempDir);

impl Backend for Directory {
    fn open(&self) -> BoxFuture<'_, Arc<dyn Broker>> {
        Box::pin(async {
            Arc::new(EmbeddedBroker::open(self.0.path(), settings()).await.expect("opens")) as Arc<dyn Broker>
        })
    }

    fn restart(&self, broker: Arc<dyn Broker>) -> BoxFuture<'_, Arc<dyn Broker>> {
        Box::pin(async move {
            broker.close().await.expect("closes");
            self.open().await
        })
    }
}

/// A simulated disk that loses power instead of closing: the same promises must hold.
struct Crashing {
    disk: SimDisk,
    process: Mutex<ProcessDisk>,
    memory_bytes: u64,
}

impl Crashing {
    fn new(memory_bytes: u64) -> Crashing {
        let disk = SimDisk::new();
        Crashing { process: Mutex::new(ProcessDisk::new(&disk)), disk, memory_bytes }
    }
}

impl Backend for Crashing {
    fn open(&self) -> BoxFuture<'_, Arc<dyn Broker>> {
        Box::pin(async {
            let settings = Settings { memory_bytes: self.memory_bytes, ..settings() };
            let disk = ProcessDisk::new(&self.disk);
            *self.process.lock() = disk.clone();
            let disk = Arc::new(disk);
            Arc::new(EmbeddedBroker::open_on("/sim", settings, disk).await.expect("opens")) as Arc<dyn Broker>
        })
    }

    fn restart(&self, broker: Arc<dyn Broker>) -> BoxFuture<'_, Arc<dyn Broker>> {
        Box::pin(async move {
            // What was settled is written within some milliseconds; a crash before that would deliver it again.
            tokio::time::sleep(settings().ack_delay * 3).await;
            self.process.lock().die();
            drop(broker);
            self.disk.crash(7);
            self.open().await
        })
    }
}

/// What the embedded broker does otherwise: it refuses them with a remedy.
const ABSENT: [&str; 3] = ["consumer_priority", "queue_expiry", "stream_queues"];

fn absent(report: &Report) -> Vec<&'static str> {
    report.skipped.iter().map(|(_, feature)| *feature).collect()
}

#[tokio::test(start_paused = true)]
async fn memory_passes_all_but_what_only_a_disk_can_do() {
    let report = run(&Memory).await;
    assert!(absent(&report).iter().all(|feature| *feature == "durable" || ABSENT.contains(feature)));
    assert!(report.passed.len() > 45, "{}", report.passed.len());
}

#[tokio::test]
async fn a_directory_passes_everything() {
    let report = run(&Directory(tempfile::tempdir().expect("a directory"))).await;
    assert_eq!(absent(&report), ABSENT);
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_loses_power_at_every_restart_passes_everything() {
    let report = run(&Crashing::new(64 << 20)).await;
    assert_eq!(absent(&report), ABSENT);
}

#[tokio::test(start_paused = true)]
async fn a_broker_with_hardly_any_memory_passes_everything() {
    // As little as one largest message: almost every body is read back from the log.
    let report = run(&Crashing::new(1 << 20)).await;
    assert_eq!(absent(&report), ABSENT);
}
