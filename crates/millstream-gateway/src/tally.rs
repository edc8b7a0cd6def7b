//! What the gateway counts, as numbers that only grow and as snapshots of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;

use crate::ledger::Ledger;
use crate::meter::{Direction, StreamOutcome, Sums, seconds};
use crate::pool::PoolSnapshot;
use crate::report::Refusal;
use crate::under_way::Registry;

/// The counters of a gateway.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// By the names of routes.
    pub(crate) routes: Mutex<Ledger<RouteTally>>,
    /// By the names of routes and the URLs of servers, with a space between.
    pub(crate) servers: Mutex<Ledger<ServerTally>>,
    /// Connections that changed their protocol.
    pub(crate) tunnels: BothWays,
    refused: [AtomicU64; Refusal::WORDS.len()],
    pub(crate) connections: AtomicU64,
    pub(crate) connections_open: AtomicU64,
    upstream_excess: AtomicU64,
    pub(crate) under_way: Registry,
    /// Configurations that replaced another, and those that were refused.
    pub(crate) reloaded: AtomicU64,
    pub(crate) reloads_refused: AtomicU64,
}

/// What is counted of a server.
#[derive(Debug, Default)]
pub(crate) struct ServerTally {
    pub(crate) connected: AtomicU64,
    pub(crate) reused: AtomicU64,
    pub(crate) failed: AtomicU64,
}

#[derive(Debug, Default)]
pub(crate) struct RouteTally {
    pub(crate) streams: BothWays,
    /// Answers by the first digit of their status, from 1.
    pub(crate) answers: [AtomicU64; 5],
}

/// Streams from clients and to them.
#[derive(Debug, Default)]
pub(crate) struct BothWays {
    pub(crate) request: Arc<Sums>,
    pub(crate) response: Arc<Sums>,
}

impl Tally {
    pub(crate) fn refused(&self, why: Refusal) {
        self.refused[why as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// An upstream sent more than its answer.
    pub(crate) fn upstream_excess(&self) {
        self.upstream_excess.fetch_add(1, Ordering::Relaxed);
    }
}

/// A gateway at one moment.
#[derive(Clone, Debug, Serialize)]
pub struct GatewaySnapshot {
    /// Connections from clients since the start.
    pub connections: u64,
    /// Connections from clients that are open.
    pub connections_open: u64,
    /// What was refused or given up, by reason.
    pub refused: BTreeMap<&'static str, u64>,
    /// Answers of upstreams after which they sent something that nobody asked for; their connections were closed.
    pub upstream_excess: u64,
    /// How often the configuration was replaced while it ran (`applied`), and how often one was `refused`.
    pub reloads: BTreeMap<&'static str, u64>,
    /// The streams of each route, both ways. Routes that a configuration had before stand there, too, behind the others.
    pub streams: Vec<StreamsSnapshot>,
    /// The answers of the same routes, by the first digit of their status.
    pub answers: Vec<AnswersSnapshot>,
    /// The servers behind the routes.
    pub upstreams: Vec<UpstreamSnapshot>,
    /// The buffers.
    pub pool: PoolSnapshot,
}

/// The streams of one route in one direction since the start, those under way among them.
#[derive(Clone, Debug, Serialize)]
pub struct StreamsSnapshot {
    /// The route's name.
    pub route: String,
    /// Which way.
    pub direction: Direction,
    /// Streams that began.
    pub started: u64,
    /// Streams that ended, by outcome.
    pub ended: BTreeMap<&'static str, u64>,
    /// Payload bytes read to be handed on.
    pub bytes: u64,
    /// Chunks read to be handed on.
    pub chunks: u64,
    /// How often a receiver was not ready.
    pub backpressure_events: u64,
    /// Seconds that receivers were not.
    #[serde(rename = "backpressure_seconds", serialize_with = "seconds")]
    pub backpressure_time: Duration,
    /// Streams that had a first byte.
    pub first_bytes: u64,
    /// Seconds that these were waited for, in all.
    #[serde(rename = "first_byte_seconds", serialize_with = "seconds")]
    pub first_byte_time: Duration,
    /// Seconds that receivers waited for their senders.
    #[serde(rename = "source_wait_seconds", serialize_with = "seconds")]
    pub source_wait: Duration,
    /// Seconds from start to end of the streams that ended, in all.
    #[serde(rename = "duration_seconds", serialize_with = "seconds")]
    pub duration: Duration,
    /// How many of these were not longer than each of [`DURATION_BOUNDS`](crate::DURATION_BOUNDS) and longer than the one before;
    /// the last are longer than all.
    pub durations: Vec<u64>,
}

/// The answers of one route.
#[derive(Clone, Debug, Serialize)]
pub struct AnswersSnapshot {
    /// The route's name.
    pub route: String,
    /// `1xx` to `5xx` and how many of each.
    pub by_class: BTreeMap<&'static str, u64>,
}

/// One server.
#[derive(Clone, Debug, Serialize)]
pub struct UpstreamSnapshot {
    /// The route's name.
    pub route: String,
    /// The server's address.
    pub upstream: String,
    /// Requests in flight.
    pub in_flight: u64,
    /// Connections that were made.
    pub connected: u64,
    /// Requests that found an idle connection.
    pub reused: u64,
    /// Connections that could not be made.
    pub failed: u64,
    /// Whether requests go there.
    pub healthy: bool,
}

/// What stands for a route where a connection has changed its protocol.
pub(crate) const TUNNELS: &str = "(tunnels)";

const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

pub(crate) fn snapshot(shared: &crate::gateway::Shared) -> GatewaySnapshot {
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let tally = &shared.tally;
    let there = shared.routes.iter().map(|route| &*route.name).zip(&shared.sums);
    let known = tally.routes.lock();
    let is_gone = |name: &str| shared.routes.iter().all(|route| route.name != name);
    let gone = known.entries().iter().filter(|(name, _)| is_gone(name)).map(|(name, sums)| (&**name, sums));
    let routes: Vec<(&str, &Arc<RouteTally>)> = there.chain(gone).collect();
    let streams = routes
        .iter()
        .map(|(route, tally)| (*route, &tally.streams))
        .chain([(TUNNELS, &tally.tunnels)])
        .flat_map(|(route, sums)| {
            [(Direction::Request, &sums.request), (Direction::Response, &sums.response)]
                .map(|(direction, sums)| streams_of(route, direction, sums))
        })
        .collect();
    let answers = routes
        .iter()
        .map(|(route, sums)| AnswersSnapshot {
            route: (*route).to_owned(),
            by_class: CLASSES.into_iter().zip(sums.answers.iter().map(load)).collect(),
        })
        .collect();
    GatewaySnapshot {
        connections: load(&tally.connections),
        connections_open: load(&tally.connections_open),
        refused: Refusal::WORDS
            .iter()
            .map(|(why, word)| (*word, load(&tally.refused[*why as usize])))
            .collect(),
        upstream_excess: load(&tally.upstream_excess),
        reloads: BTreeMap::from([
            ("applied", load(&tally.reloaded)),
            ("refused", load(&tally.reloads_refused)),
        ]),
        streams,
        answers,
        upstreams: shared.routes.iter().flat_map(crate::upstream::snapshots).collect(),
        pool: shared.pool.snapshot(),
    }
}

fn streams_of(route: &str, direction: Direction, sums: &Sums) -> StreamsSnapshot {
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    StreamsSnapshot {
        route: route.to_owned(),
        direction,
        started: load(&sums.started),
        ended: StreamOutcome::WORDS
            .iter()
            .map(|(outcome, word)| (*word, load(&sums.ended[*outcome as usize])))
            .collect(),
        bytes: load(&sums.bytes),
        chunks: load(&sums.chunks),
        backpressure_events: load(&sums.blocked_events),
        backpressure_time: Duration::from_nanos(load(&sums.blocked_nanos)),
        first_bytes: load(&sums.first_bytes),
        first_byte_time: Duration::from_nanos(load(&sums.first_byte_nanos)),
        source_wait: Duration::from_nanos(load(&sums.source_wait_nanos)),
        duration: Duration::from_nanos(load(&sums.duration_nanos)),
        durations: sums.durations.iter().map(load).collect(),
    }
}
