//! What is counted of each stream, where it happens.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use crate::under_way::{Flow, Slot};

/// Which way a body goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// From the client.
    Request,
    /// To the client.
    Response,
}

/// How a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StreamOutcome {
    /// Every byte was handed on.
    Complete,
    /// The side it came from closed, failed or broke its framing in the middle.
    SourceFailed,
    /// The side it went to closed or failed.
    SinkFailed,
    /// It was longer than is allowed.
    TooLarge,
    /// Nothing moved for too long.
    TimedOut,
    /// It was given up because the exchange had ended: the client is gone, or the answer was complete.
    Cancelled,
}

impl StreamOutcome {
    /// All of them, with the word that metrics and logs use.
    pub const WORDS: [(StreamOutcome, &'static str); 6] = [
        (StreamOutcome::Complete, "complete"),
        (StreamOutcome::SourceFailed, "source_failed"),
        (StreamOutcome::SinkFailed, "sink_failed"),
        (StreamOutcome::TooLarge, "too_large"),
        (StreamOutcome::TimedOut, "timed_out"),
        (StreamOutcome::Cancelled, "cancelled"),
    ];

    /// Its word.
    pub fn word(self) -> &'static str {
        Self::WORDS[self as usize].1
    }
}

/// What became of one stream: one body on its way through the gateway.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StreamReport {
    /// Which way it went.
    pub direction: Direction,
    /// How it ended.
    pub outcome: StreamOutcome,
    /// Payload bytes that were read to be handed on, without framing: all were of a stream that is complete; of one that is not, the
    /// last chunk may not have been.
    pub bytes: u64,
    /// Chunks, as many as were read.
    pub chunks: u64,
    /// Bytes of a chunk on average; 0 without chunks.
    pub chunk_bytes_average: f64,
    /// Seconds from the start to the end.
    #[serde(rename = "duration_seconds", serialize_with = "seconds")]
    pub duration: Duration,
    /// Seconds from the start to the first byte, if there was one.
    #[serde(rename = "first_byte_seconds", serialize_with = "maybe_seconds")]
    pub first_byte: Option<Duration>,
    /// Bytes a second over the whole duration; 0 if that is 0.
    pub bytes_per_second: f64,
    /// How often the receiving side was not ready to take more.
    pub backpressure_events: u64,
    /// Seconds that it took until it was, in all.
    #[serde(rename = "backpressure_seconds", serialize_with = "seconds")]
    pub backpressure_time: Duration,
    /// Seconds that the receiving side waited for the other to give something, in all.
    #[serde(rename = "source_wait_seconds", serialize_with = "seconds")]
    pub source_wait: Duration,
}

/// The longest duration of each bucket of [`StreamsSnapshot::durations`](crate::StreamsSnapshot::durations); one more takes what is
/// longer.
pub const DURATION_BOUNDS: [Duration; 10] = [
    Duration::from_millis(1),
    Duration::from_millis(5),
    Duration::from_millis(25),
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_secs(2),
    Duration::from_secs(10),
    Duration::from_secs(60),
    Duration::from_secs(600),
    Duration::from_secs(3600),
];

pub(crate) fn seconds<S: serde::Serializer>(time: &Duration, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_f64(time.as_secs_f64())
}

#[expect(clippy::ref_option, reason = "serde hands a reference to the field")]
fn maybe_seconds<S: serde::Serializer>(time: &Option<Duration>, out: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => out.serialize_some(&time.as_secs_f64()),
        None => out.serialize_none(),
    }
}

/// Sums over the streams of one route and direction, those under way among them.
#[derive(Debug, Default)]
pub(crate) struct Sums {
    pub(crate) started: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) chunks: AtomicU64,
    pub(crate) blocked_events: AtomicU64,
    pub(crate) blocked_nanos: AtomicU64,
    pub(crate) first_byte_nanos: AtomicU64,
    pub(crate) first_bytes: AtomicU64,
    pub(crate) source_wait_nanos: AtomicU64,
    /// Of streams that ended.
    pub(crate) duration_nanos: AtomicU64,
    pub(crate) durations: [AtomicU64; DURATION_BOUNDS.len() + 1],
    pub(crate) ended: [AtomicU64; StreamOutcome::WORDS.len()],
}

/// Counts one stream. A meter that is dropped without a word was cancelled.
#[derive(Debug)]
pub(crate) struct Meter {
    direction: Direction,
    started: Instant,
    first: Option<Duration>,
    bytes: u64,
    chunks: u64,
    blocked_events: u64,
    blocked_nanos: u64,
    source_wait_nanos: u64,
    sums: Arc<Sums>,
    /// Where others see it while it is under way.
    slot: Option<Arc<Slot>>,
    ended: Option<(StreamOutcome, Duration)>,
}

impl Meter {
    pub(crate) fn start(direction: Direction, sums: &Arc<Sums>, slot: Option<&Arc<Slot>>) -> Meter {
        if let Some(slot) = slot {
            slot.flow(direction).begin();
        }
        sums.started.fetch_add(1, Ordering::Relaxed);
        Meter {
            direction,
            started: Instant::now(),
            first: None,
            bytes: 0,
            chunks: 0,
            blocked_events: 0,
            blocked_nanos: 0,
            source_wait_nanos: 0,
            sums: sums.clone(),
            slot: slot.cloned(),
            ended: None,
        }
    }

    fn flow(&self) -> Option<&Flow> {
        self.slot.as_ref().map(|slot| slot.flow(self.direction))
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    /// A chunk was read and is being handed on.
    pub(crate) fn chunk(&mut self, bytes: usize) {
        if self.first.is_none() {
            let first = self.started.elapsed();
            self.first = Some(first);
            self.sums.first_byte_nanos.fetch_add(first.as_nanos() as u64, Ordering::Relaxed);
            // After it: who sees that there was one knows when.
            self.sums.first_bytes.fetch_add(1, Ordering::Release);
        }
        self.bytes += bytes as u64;
        self.chunks += 1;
        self.sums.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.sums.chunks.fetch_add(1, Ordering::Relaxed);
        if let Some(flow) = self.flow() {
            flow.bytes.store(self.bytes, Ordering::Relaxed);
            flow.chunks.store(self.chunks, Ordering::Relaxed);
        }
    }

    /// The receiving side is not ready, since then.
    pub(crate) fn blocks(&mut self, since: Instant) {
        self.blocked_events += 1;
        self.sums.blocked_events.fetch_add(1, Ordering::Relaxed);
        if let Some(slot) = &self.slot {
            let flow = slot.flow(self.direction);
            flow.blocked_events.store(self.blocked_events, Ordering::Relaxed);
            flow.blocked_since.store(slot.moment(since), Ordering::Relaxed);
        }
    }

    /// It was not for so long.
    pub(crate) fn blocked(&mut self, time: Duration) {
        let nanos = time.as_nanos() as u64;
        self.blocked_nanos += nanos;
        self.sums.blocked_nanos.fetch_add(nanos, Ordering::Relaxed);
        if let Some(flow) = self.flow() {
            flow.blocked_since.store(0, Ordering::Relaxed);
            flow.blocked_nanos.store(self.blocked_nanos, Ordering::Relaxed);
        }
    }

    /// The other side gives nothing, since then.
    pub(crate) fn waits(&mut self, since: Instant) {
        if let Some(slot) = &self.slot {
            slot.flow(self.direction).waits_since.store(slot.moment(since), Ordering::Relaxed);
        }
    }

    /// It gave nothing for so long.
    pub(crate) fn waited(&mut self, time: Duration) {
        let nanos = time.as_nanos() as u64;
        self.source_wait_nanos += nanos;
        self.sums.source_wait_nanos.fetch_add(nanos, Ordering::Relaxed);
        if let Some(flow) = self.flow() {
            flow.waits_since.store(0, Ordering::Relaxed);
            flow.source_wait_nanos.store(self.source_wait_nanos, Ordering::Relaxed);
        }
    }

    /// It has ended so; if it had before, that stands.
    pub(crate) fn end(&mut self, outcome: StreamOutcome) -> StreamReport {
        let (outcome, duration) = *self.ended.get_or_insert_with(|| {
            let duration = self.started.elapsed();
            let bucket = DURATION_BOUNDS.iter().position(|bound| duration <= *bound);
            self.sums.durations[bucket.unwrap_or(DURATION_BOUNDS.len())].fetch_add(1, Ordering::Relaxed);
            self.sums.duration_nanos.fetch_add(duration.as_nanos() as u64, Ordering::Relaxed);
            self.sums.ended[outcome as usize].fetch_add(1, Ordering::Release);
            if let Some(slot) = &self.slot {
                slot.flow(self.direction).end();
            }
            (outcome, duration)
        });
        let rate = |amount: u64, of: f64| if of > 0.0 { amount as f64 / of } else { 0.0 };
        StreamReport {
            direction: self.direction,
            outcome,
            bytes: self.bytes,
            chunks: self.chunks,
            chunk_bytes_average: rate(self.bytes, self.chunks as f64),
            duration,
            first_byte: self.first,
            bytes_per_second: rate(self.bytes, duration.as_secs_f64()),
            backpressure_events: self.blocked_events,
            backpressure_time: Duration::from_nanos(self.blocked_nanos),
            source_wait: Duration::from_nanos(self.source_wait_nanos),
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if self.ended.is_none() {
            self.end(StreamOutcome::Cancelled);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_ended_is_counted_by_how_long_it_took() {
        let sums = Arc::new(Sums::default());
        for millis in [1, 2, 5, 3_600_001] {
            let mut meter = Meter::start(Direction::Request, &sums, None);
            tokio::time::advance(Duration::from_millis(millis)).await;
            meter.end(StreamOutcome::Complete);
            // A second end is none.
            meter.end(StreamOutcome::SinkFailed);
        }
        let counts: Vec<u64> = sums.durations.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        assert_eq!(counts, [1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(sums.duration_nanos.load(Ordering::Relaxed), 3_600_009_000_000);
    }
}
