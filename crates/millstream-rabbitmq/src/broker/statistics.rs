//! Figures of a handle.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::RabbitMq;
use crate::link::ConnectionState;
use crate::publisher::ConfirmLatency;

/// Figures of a broker handle since it was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Statistics {
    /// Connections that are there now.
    pub connections: u64,
    /// How often a connection was made.
    pub connects: u64,
    /// Tries that failed.
    pub failed_connects: u64,
    /// Bytes read.
    pub bytes_in: u64,
    /// Bytes written.
    pub bytes_out: u64,
    /// System calls that wrote.
    pub writes: u64,
    /// Messages handed over to be published.
    pub published: u64,
    /// Messages whose outcome is known.
    pub settled: u64,
    /// Messages published and not confirmed.
    pub in_flight: u64,
    /// How long confirms took.
    pub confirm_latency: ConfirmLatency,
    /// Consumers.
    pub consumers: u64,
    /// Why the broker reads nothing of what is published, in its words, while that is so: it is short of memory or disk.
    pub blocked: Option<String>,
}

/// Figures of one consumer since it began, over any number of connections.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct ConsumerStatistics {
    /// The queue.
    pub queue: String,
    /// Its [name](millstream_message::ConsumeOptions::name).
    pub name: String,
    /// Messages that came.
    pub delivered: u64,
    /// Those of them that had been delivered before, to whomever.
    pub redelivered: u64,
    /// Deliveries that were acknowledged, or discarded.
    pub acked: u64,
    /// Deliveries that were given back, at once or later, or became dead letters.
    pub nacked: u64,
    /// Deliveries that were handed out and not settled.
    pub in_flight: u64,
    /// Messages that came and were not handed out.
    pub waiting: u64,
    /// Whether it is paused.
    pub paused: bool,
    /// How long ago it began.
    pub age: Duration,
}

impl ConsumerStatistics {
    /// Messages that came in a second, in the mean since it began. For that of a shorter time compare two of these.
    pub fn rate(&self) -> f64 {
        let seconds = self.age.as_secs_f64();
        if seconds > 0.0 { self.delivered as f64 / seconds } else { 0.0 }
    }
}

impl RabbitMq {
    /// Figures of each consumer that has not ended, the oldest first.
    pub fn consumers(&self) -> Vec<ConsumerStatistics> {
        let consumers = self.0.hub.consumers();
        consumers.iter().filter(|one| !one.has_ended()).map(|one| one.statistics()).collect()
    }

    /// Figures since it was opened.
    pub fn statistics(&self) -> Statistics {
        let inner = &self.0;
        let mut figures =
            Statistics { published: inner.published.load(Ordering::Relaxed), ..Statistics::default() };
        for link in inner.links() {
            let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            figures.connections += u64::from(link.state().connection.is_some());
            figures.connects += count(&link.counters.connects);
            figures.failed_connects += count(&link.counters.failed_connects);
            figures.bytes_in += count(&link.counters.bytes_in);
            figures.bytes_out += count(&link.counters.bytes_out);
            figures.writes += count(&link.counters.writes);
            let state = link.state();
            figures.settled += link.window.confirmed.load(Ordering::Relaxed);
            figures.in_flight += state.outbox.in_flight();
            drop(state);
            if let ConnectionState::Blocked { reason } = &*link.status().borrow() {
                figures.blocked = Some(reason.clone());
            }
        }
        if let Some(link) = inner.publishing.get() {
            figures.confirm_latency = link.state().outbox.latency.clone();
        }
        figures.consumers =
            inner.hub.consumers().iter().filter(|consumer| !consumer.has_ended()).count() as u64;
        figures
    }
}
