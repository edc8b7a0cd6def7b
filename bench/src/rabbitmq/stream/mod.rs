//! Streams by the stream protocol.

#[cfg(feature = "peers-rabbitmq")]
mod official;
mod ours;
mod raw;

use super::ours::Threads;
#[cfg(not(feature = "peers-rabbitmq"))]
use super::without_peers;
use super::work::{CPU, PEAK, RATE};
use super::{FLOOR, body};
use crate::case::{Absent, Bound, Case, Scale};
use raw::Raw;

/// Says where the server speaks the stream protocol.
const ADDRESS: &str = "MILLSTREAM_BENCH_STREAM";
/// Bytes of a body.
const BODY: usize = 1024;
/// Messages that are published at once.
const BATCH: u64 = 100;
/// Batches that are on their way at once.
const WINDOW: u64 = 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Publish,
    /// Of each batch one entry is made.
    PublishEntries,
    Consume,
}

/// One piece of work.
#[derive(Debug, Clone, Copy)]
struct Work {
    act: Act,
    /// Messages that are measured; as many batches as there are in them.
    count: u64,
}

impl Work {
    fn scaled(self, scale: Scale) -> Work {
        Work { count: (scale.of(self.count) / BATCH).max(1) * BATCH, ..self }
    }

    /// Messages that go the same way before the measurement begins.
    fn warm(self) -> u64 {
        (self.count / BATCH / 5).max(1) * BATCH
    }

    /// Makes the stream, and fills it if it is to be read. One that is read stays for the next who reads as much.
    ///
    /// # Errors
    /// If no server answers.
    fn prepare(self) -> Result<Place, Absent> {
        let url = std::env::var(ADDRESS).map_err(|_| {
            format!("no RabbitMQ with streams is named in {ADDRESS}; `cargo xtask bench rabbitmq` starts one")
        })?;
        let prepare = || {
            let mut raw = Raw::connect(&url)?;
            if self.act == Act::Consume {
                let (stream, total) = (format!("millstream-bench-{}", self.count), self.count + self.warm());
                if raw.create(&stream)? {
                    raw.publish(&stream, false, total)?;
                }
                return Ok(stream);
            }
            let stream = "millstream-bench-stream".to_owned();
            raw.delete(&stream)?;
            raw.create(&stream)?;
            Ok(stream)
        };
        let stream = prepare().map_err(|error: std::io::Error| format!("RabbitMQ at {url}: {error}"))?;
        Ok(Place { url, stream })
    }
}

/// Where the work is.
struct Place {
    url: String,
    stream: String,
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        against_all("stream, publish, batches of 100", Work { act: Act::Publish, count: 500_000 })
            .goal_on(RATE, Bound::RateOf(0.97, FLOOR), "")
            .goal_on(CPU, Bound::AtMost(0.6), ""),
        against_all("stream, publish, entries of 100", Work { act: Act::PublishEntries, count: 1_000_000 })
            .goal_on(RATE, Bound::RateOf(0.97, FLOOR), "")
            .goal_on(CPU, Bound::AtMost(0.6), ""),
        against_all("stream, consume", Work { act: Act::Consume, count: 1_500_000 })
            .goal_on(RATE, Bound::AtLeast(1.5e6), "")
            .goal_on(CPU, Bound::AtMost(0.5), "")
            .goal_on(PEAK, Bound::AtMost(10.0), "peak resident"),
    ]
}

/// A case with every client.
fn against_all(name: &'static str, work: Work) -> Case {
    let case = Case::new(name).floor(FLOOR, move |scale| raw::run(work.scaled(scale)));
    #[cfg(feature = "peers-rabbitmq")]
    let case = case.peer("rabbitmq-stream-client", move |scale| official::run(work.scaled(scale)));
    #[cfg(not(feature = "peers-rabbitmq"))]
    let case = case.peer("rabbitmq-stream-client", without_peers);
    case.ours("ours", move |scale| ours::run(work.scaled(scale), Threads::One))
        .ours("ours, two threads", move |scale| ours::run(work.scaled(scale), Threads::Two))
}
