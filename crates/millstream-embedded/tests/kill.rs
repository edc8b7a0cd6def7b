//! kill -9 of a child process at random moments, with the ledger in this process.
//!
//! The child publishes numbers and consumes them from the same durable queue; it tells through its output what was
//! confirmed (`A`) and what arrived (`C`), and acks after telling. What was told survives its death, because the parent
//! reads it. At the end: everything accepted arrived, and the dead were delivered again at most the prefetch each.
//!
//! `MILLSTREAM_SOAK=1` kills hundreds of times.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use millstream_embedded::{EmbeddedBroker, Settings};
use millstream_message::{Address, Batch, Broker, ConsumeOptions, Message, Queue};

const DIRECTORY: &str = "MILLSTREAM_KILL_DIRECTORY";
const FIRST: &str = "MILLSTREAM_KILL_FIRST";
const PREFETCH: usize = 64;
const BATCH: u64 = 7;

fn settings() -> Settings {
    Settings {
        message_bytes_max: 64 << 10,
        segment_bytes: 1 << 20,
        memory_bytes: 128 << 10,
        ..Settings::default()
    }
}

async fn open(path: &Path) -> EmbeddedBroker {
    let broker = EmbeddedBroker::open(path, settings()).await.expect("opens");
    broker.declare_queue(Queue::durable("q")).await.expect("declared");
    broker
}

/// The child: does nothing when it is run as an ordinary test.
#[test]
fn child() {
    let (Some(path), Ok(first)) = (std::env::var_os(DIRECTORY), std::env::var(FIRST)) else { return };
    let first: u64 = first.parse().expect("a number");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(async move {
        let broker = open(Path::new(&path)).await;
        let publish = async {
            for batch in 0.. {
                let from = first + batch * BATCH;
                let numbers = (from..from + BATCH).map(|number| {
                    let mut body = number.to_le_bytes().to_vec();
                    body.resize(8 + (number as usize * 61) % 1500, 7);
                    Message::new(body)
                });
                let outcomes =
                    broker.publish_batch(Batch::to(&Address::queue("q"), numbers)).await.expect("taken");
                assert!(outcomes.all_confirmed(), "{:?}", outcomes.others());
                tell('A', from..from + BATCH);
            }
        };
        let consume = async {
            let mut consumer =
                broker.consume("q", ConsumeOptions::default().prefetch(PREFETCH)).await.expect("consumes");
            loop {
                let chunk = consumer.next_chunk(10).await.expect("reads");
                tell('C', chunk.iter().map(|delivery| number(&delivery.message)));
                consumer.acker().ack_many(chunk.iter().map(|delivery| delivery.tag));
            }
        };
        tokio::join!(publish, consume);
    });
}

fn number(message: &Message) -> u64 {
    u64::from_le_bytes(*message.body().first_chunk().expect("eight bytes"))
}

/// One write a call, so that a kill leaves whole lines and at most one torn one.
fn tell(what: char, numbers: impl Iterator<Item = u64>) {
    let line: String = numbers.map(|number| format!("{what}{number}\n")).collect();
    std::io::stdout().write_all(line.as_bytes()).expect("the parent reads");
}

/// What the parent has been told.
#[derive(Default)]
struct Ledger {
    accepted: Vec<u64>,
    arrived: HashMap<u64, u32>,
}

impl Ledger {
    fn read(&mut self, line: &str) {
        // The test harness of the child writes its own words before the first line.
        let line = line.rsplit(' ').next().unwrap_or_default();
        let Some(number) = line.get(1..).and_then(|text| text.parse().ok()) else { return };
        match line.as_bytes()[0] {
            b'A' => self.accepted.push(number),
            b'C' => *self.arrived.entry(number).or_default() += 1,
            _ => {}
        }
    }
}

#[test]
fn killed_at_any_moment_nothing_accepted_is_lost_and_little_comes_twice() {
    let kills: u64 = if std::env::var_os("MILLSTREAM_SOAK").is_some() { 500 } else { 30 };
    let directory = tempfile::tempdir().expect("a directory");
    let mut ledger = Ledger::default();
    for kill in 0..kills {
        // Numbers of different children do not overlap; a child stops long before.
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["child", "--exact", "--nocapture", "--test-threads=1"])
            .env(DIRECTORY, directory.path())
            .env(FIRST, (kill * 10_000_000 + 1).to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the child starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped"));
        // A random moment: after some lines, each at another place of the child's work. Some die while opening.
        let moment = (kill.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) % 3000;
        let mut line = String::new();
        for _ in 0..moment {
            line.clear();
            assert!(
                lines.read_line(&mut line).expect("reads") > 0,
                "the child ended by itself in round {kill}"
            );
            ledger.read(line.trim_end());
        }
        child.kill().expect("kill -9");
        child.wait().expect("it is dead");
        // What it had told when it died. A torn last line is a number it did not finish telling.
        loop {
            line.clear();
            if lines.read_line(&mut line).expect("reads") == 0 || !line.ends_with('\n') {
                break;
            }
            ledger.read(line.trim_end());
        }
    }

    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(async {
        let broker = open(directory.path()).await;
        let mut consumer =
            broker.consume("q", ConsumeOptions::default().stop_when_empty()).await.expect("consumes");
        while let Some(delivery) = consumer.next().await {
            let delivery = delivery.expect("reads");
            *ledger.arrived.entry(number(&delivery.message)).or_default() += 1;
            assert!(delivery.ack());
        }
        assert_eq!(broker.damaged_messages(), 0);
        broker.close().await.expect("closes");
    });
    let lost: Vec<_> = ledger.accepted.iter().filter(|number| !ledger.arrived.contains_key(number)).collect();
    let twice: u64 = ledger.arrived.values().map(|times| u64::from(times - 1)).sum();
    assert!(
        lost.is_empty(),
        "{} of {} accepted are lost: {:?}",
        lost.len(),
        ledger.accepted.len(),
        &lost[..10.min(lost.len())]
    );
    assert!(
        twice <= kills * PREFETCH as u64,
        "{twice} duplicates after {kills} kills with a prefetch of {PREFETCH}"
    );
    assert!(
        ledger.accepted.len() as u64 > 20 * kills,
        "the children did some work: {}",
        ledger.accepted.len()
    );
}
