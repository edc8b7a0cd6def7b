//! What every client is asked to do, and how that is measured.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::raw::Raw;
use crate::case::{Absent, Sample, Scale};
use crate::clock;

pub(super) const RATE: &str = "messages/s";
pub(super) const CPU: &str = "µs CPU";
pub(super) const PEAK: &str = "MiB";

/// Says where the server is.
const ADDRESS: &str = "MILLSTREAM_BENCH_AMQP";
pub(super) const QUEUE: &str = "millstream-bench";

/// What may be published and not confirmed, and delivered and not acked.
pub(super) const WINDOW: u64 = 1000;
/// How many deliveries one ack settles, where it settles many.
pub(super) const ACK_EVERY: u64 = 100;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A classic queue that a restart forgets.
    Transient,
    /// A classic queue on disk. Messages are always persistent, so that only the queue makes the difference.
    Durable,
    Quorum,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    /// Publishes with so many unconfirmed at most.
    Publish { window: u64 },
    /// Takes what is there, with a prefetch of [`WINDOW`], and settles each delivery by itself.
    SettleEach,
    /// The same, and acks every [`ACK_EVERY`] with one word.
    SettleMany,
    /// Publishes with [`WINDOW`] unconfirmed and takes it again meanwhile, settling each.
    Both,
}

/// One piece of work.
#[derive(Debug, Clone, Copy)]
pub(super) struct Work {
    pub(super) act: Act,
    pub(super) kind: Kind,
    pub(super) body: usize,
    /// Messages that are measured.
    pub(super) count: u64,
}

impl Work {
    pub(super) fn new(act: Act, count: u64) -> Work {
        Work { act, kind: Kind::Transient, body: 1024, count }
    }

    pub(super) fn into(self, kind: Kind) -> Work {
        Work { kind, ..self }
    }

    pub(super) fn body(self, body: usize) -> Work {
        Work { body, ..self }
    }

    pub(super) fn scaled(self, scale: Scale) -> Work {
        Work { count: scale.of(self.count), ..self }
    }

    /// Messages that go the same way before the measurement begins.
    pub(super) fn warm(self) -> u64 {
        (self.count / 5).max(1)
    }

    /// Makes the queue anew, and fills it if it is to be emptied.
    ///
    /// # Errors
    /// If no server answers.
    pub(super) fn prepare(self) -> Result<String, Absent> {
        let address = std::env::var(ADDRESS).map_err(|_| {
            format!("no RabbitMQ is named in {ADDRESS}; `cargo xtask bench rabbitmq` starts one")
        })?;
        let prepare = || {
            let mut raw = Raw::connect(&address)?;
            raw.delete_queue(QUEUE)?;
            raw.declare_queue(QUEUE, self.kind)?;
            if matches!(self.act, Act::SettleEach | Act::SettleMany) {
                raw.confirm_select()?;
                raw.publish(QUEUE, self.body, WINDOW, self.count + self.warm())?;
            }
            raw.close()
        };
        prepare().map_err(|error: std::io::Error| format!("RabbitMQ at {address}: {error}"))?;
        Ok(address)
    }
}

/// A body of any size that does not compress.
pub(super) fn body(size: usize) -> Bytes {
    crate::log::noise(size).into()
}

/// Time and processor time since some moment.
pub(super) struct Meter {
    wall: Instant,
    cpu: Duration,
}

impl Meter {
    pub(super) fn start() -> Meter {
        Meter { wall: clock::now(), cpu: clock::cpu() }
    }

    /// The server and whatever else runs are other processes: the processor time of this one is the client's.
    pub(super) fn stop(self, count: u64) -> Sample {
        let (wall, cpu) = (clock::now() - self.wall, clock::cpu().saturating_sub(self.cpu));
        sample(count, wall.as_secs_f64(), cpu.as_secs_f64(), peak_mib())
    }
}

pub(super) fn sample(count: u64, seconds: f64, cpu_seconds: f64, peak_mib: f64) -> Sample {
    Sample::new()
        .with(RATE, count as f64 / seconds)
        .with(CPU, cpu_seconds * 1e6 / count as f64)
        .with(PEAK, peak_mib)
}

/// The most memory that this process had resident.
fn peak_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok());
    kib.unwrap_or(f64::NAN) / 1024.0
}
