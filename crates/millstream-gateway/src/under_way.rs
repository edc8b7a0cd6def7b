//! The exchanges that are under way, one by one.

use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use http::{Method, Uri, Version};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::time::Instant;

use crate::gateway::Server;
use crate::headers::Peer;
use crate::meter::{Direction, seconds};
use crate::tally::Tally;

/// Connections that come and go at once should seldom wait for one another.
const SHARDS: usize = 16;

/// The exchanges of a gateway that are under way, the oldest first.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct UnderWay {
    /// How many there are, those that are not listed among them.
    pub total: usize,
    /// As many of them as were asked for.
    #[serde(rename = "streams")]
    pub exchanges: Vec<ExchangeUnderWay>,
}

/// An exchange that has not ended: a request with its answer, or what a connection goes on as that changed its protocol.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ExchangeUnderWay {
    /// The number of the client's connection and, after a full stop, of the exchange on it; both from 1.
    pub id: String,
    /// Who asked.
    pub client: SocketAddr,
    /// What the client speaks: `HTTP/1.0`, `HTTP/1.1` or `HTTP/2.0`.
    pub protocol: String,
    /// The connection, or the stream, goes on in another protocol, such as that of WebSockets.
    pub upgraded: bool,
    /// By which method; `GET` of a WebSocket over HTTP/2, too.
    pub method: String,
    /// The path, without the query, which may hold secrets.
    pub path: String,
    /// The route; none of a request that is being refused.
    pub route: Option<String>,
    /// The server that was asked last, if one was.
    pub upstream: Option<String>,
    /// Seconds since the request's head was there.
    #[serde(rename = "age_seconds", serialize_with = "seconds")]
    pub age: Duration,
    /// The request's body, once somebody was asked; of a changed protocol, what comes from the client.
    pub request: Option<StreamUnderWay>,
    /// The answer's body, once its head is there; of a changed protocol, what goes to the client.
    pub response: Option<StreamUnderWay>,
}

/// A body on its way. Its times are those of a [`StreamReport`](crate::StreamReport), and the wait of this moment is in them.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct StreamUnderWay {
    /// Payload bytes read to be handed on.
    pub bytes: u64,
    /// Chunks read to be handed on.
    pub chunks: u64,
    /// How often the receiver was not ready.
    pub backpressure_events: u64,
    /// Seconds that it was not, in all.
    #[serde(rename = "backpressure_seconds", serialize_with = "seconds")]
    pub backpressure_time: Duration,
    /// Seconds that the receiver waited for the sender, in all.
    #[serde(rename = "source_wait_seconds", serialize_with = "seconds")]
    pub source_wait: Duration,
    /// Who is waited for at this moment.
    pub waits_for: Option<Side>,
    /// This body has ended, and the exchange has not.
    pub ended: bool,
}

/// An end of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// Where it comes from.
    Sender,
    /// Where it goes.
    Receiver,
}

impl Server {
    /// The exchanges under way, the oldest first and at most so many of them: who moves, who is stuck, and for whom he waits. Each number is
    /// that of a moment, and they need not be of the same one. Looking takes time and memory by the number of connections, and holds up none of them.
    pub fn streams(&self, limit: usize) -> UnderWay {
        self.current.get().tally.under_way.list(limit)
    }
}

/// Where exchanges are found while they are under way.
#[derive(Debug)]
pub(crate) struct Registry {
    /// From when times are counted.
    epoch: Instant,
    shards: [Mutex<Shard>; SHARDS],
}

#[derive(Debug, Default)]
struct Shard {
    slots: Vec<Option<Arc<Slot>>>,
    free: Vec<usize>,
}

impl Default for Registry {
    fn default() -> Self {
        Registry { epoch: Instant::now(), shards: Default::default() }
    }
}

/// A connection of HTTP/1, or a stream of HTTP/2, with one exchange at a time. All but looking is done by who serves it.
#[derive(Debug)]
pub(crate) struct Slot {
    connection: u64,
    client: SocketAddr,
    epoch: Instant,
    head: Mutex<Head>,
    request: Flow,
    response: Flow,
}

/// What is known of an exchange when it begins. Texts stay allocated for the next one.
#[derive(Debug, Default)]
struct Head {
    /// When it began; none is under way without.
    started: Option<Instant>,
    number: u64,
    version: Version,
    method: Method,
    target: Uri,
    route: String,
    upstream: String,
    upgraded: bool,
}

/// A slot as long as it can be found.
pub(crate) struct Entered {
    slot: Arc<Slot>,
    tally: Arc<Tally>,
    shard: usize,
    at: usize,
}

impl Entered {
    /// A place for the exchanges of this client from this number on.
    pub(crate) fn new(tally: &Arc<Tally>, peer: &Peer, number: u64) -> Entered {
        let registry = &tally.under_way;
        let slot = Arc::new(Slot {
            connection: peer.connection,
            client: peer.address,
            epoch: registry.epoch,
            head: Mutex::new(Head { number: number - 1, ..Head::default() }),
            request: Flow::default(),
            response: Flow::default(),
        });
        let shard = (peer.connection.wrapping_add(number) % SHARDS as u64) as usize;
        let mut there = registry.shards[shard].lock();
        let at = there.free.pop().unwrap_or_else(|| {
            there.slots.push(None);
            there.slots.len() - 1
        });
        there.slots[at] = Some(slot.clone());
        drop(there);
        Entered { slot, tally: tally.clone(), shard, at }
    }
}

impl Deref for Entered {
    type Target = Arc<Slot>;

    fn deref(&self) -> &Arc<Slot> {
        &self.slot
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut there = self.tally.under_way.shards[self.shard].lock();
        there.slots[self.at] = None;
        there.free.push(self.at);
    }
}

impl Slot {
    /// An exchange begins.
    pub(crate) fn begin(
        &self,
        started: Instant,
        (version, method, target): (Version, &Method, &Uri),
        route: Option<&str>,
    ) {
        self.request.phase.store(NOT_YET, Ordering::Relaxed);
        self.response.phase.store(NOT_YET, Ordering::Relaxed);
        let head = &mut *self.head.lock();
        head.started = Some(started);
        head.number += 1;
        (head.version, head.method, head.target) = (version, method.clone(), target.clone());
        head.route.push_str(route.unwrap_or_default());
    }

    /// It asks this server.
    pub(crate) fn asks(&self, upstream: &str) {
        let head = &mut *self.head.lock();
        head.upstream.clear();
        head.upstream.push_str(upstream);
    }

    /// It goes on in another protocol.
    pub(crate) fn upgrades(&self) {
        self.head.lock().upgraded = true;
    }

    /// It has ended.
    pub(crate) fn end(&self) {
        let head = &mut *self.head.lock();
        (head.started, head.upgraded) = (None, false);
        // They may be parts of something large.
        (head.method, head.target) = (Method::GET, Uri::default());
        head.route.clear();
        head.upstream.clear();
    }

    pub(crate) fn flow(&self, direction: Direction) -> &Flow {
        match direction {
            Direction::Request => &self.request,
            Direction::Response => &self.response,
        }
    }

    /// A moment as a number, which is not 0.
    pub(crate) fn moment(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.epoch).as_nanos() as u64 + 1
    }

    fn shown(&self, started: Instant, now: Instant) -> Option<ExchangeUnderWay> {
        let head = self.head.lock();
        // Another one may have begun meanwhile.
        head.started.filter(|since| *since == started)?;
        let text = |text: &String| (!text.is_empty()).then(|| text.clone());
        Some(ExchangeUnderWay {
            id: format!("{}.{}", self.connection, head.number),
            client: self.client,
            protocol: format!("{:?}", head.version),
            upgraded: head.upgraded,
            method: head.method.to_string(),
            path: head.target.path().to_owned(),
            route: text(&head.route),
            upstream: text(&head.upstream),
            age: now.saturating_duration_since(started),
            request: self.request.shown(self.moment(now)),
            response: self.response.shown(self.moment(now)),
        })
    }
}

/// No body goes that way yet.
const NOT_YET: u8 = 0;
const MOVING: u8 = 1;
const ENDED: u8 = 2;

/// What a meter counts, for others to see. Only the meter writes it.
#[derive(Debug, Default)]
pub(crate) struct Flow {
    phase: AtomicU8,
    pub(crate) bytes: AtomicU64,
    pub(crate) chunks: AtomicU64,
    pub(crate) blocked_events: AtomicU64,
    pub(crate) blocked_nanos: AtomicU64,
    pub(crate) source_wait_nanos: AtomicU64,
    /// Since which moment the receiver is not ready; 0 if it is.
    pub(crate) blocked_since: AtomicU64,
    /// Since which moment the sender gives nothing; 0 if nobody waits for it.
    pub(crate) waits_since: AtomicU64,
}

impl Flow {
    pub(crate) fn begin(&self) {
        for number in [
            &self.bytes,
            &self.chunks,
            &self.blocked_events,
            &self.blocked_nanos,
            &self.source_wait_nanos,
            &self.blocked_since,
            &self.waits_since,
        ] {
            number.store(0, Ordering::Relaxed);
        }
        self.phase.store(MOVING, Ordering::Release);
    }

    pub(crate) fn end(&self) {
        self.blocked_since.store(0, Ordering::Relaxed);
        self.waits_since.store(0, Ordering::Relaxed);
        self.phase.store(ENDED, Ordering::Relaxed);
    }

    fn shown(&self, now: u64) -> Option<StreamUnderWay> {
        let phase = self.phase.load(Ordering::Acquire);
        if phase == NOT_YET {
            return None;
        }
        let load = |number: &AtomicU64| number.load(Ordering::Relaxed);
        let (blocked, waits) = (load(&self.blocked_since), load(&self.waits_since));
        let lasting = |since: u64| if since == 0 { 0 } else { now.saturating_sub(since) };
        Some(StreamUnderWay {
            bytes: load(&self.bytes),
            chunks: load(&self.chunks),
            backpressure_events: load(&self.blocked_events),
            backpressure_time: Duration::from_nanos(load(&self.blocked_nanos) + lasting(blocked)),
            source_wait: Duration::from_nanos(load(&self.source_wait_nanos) + lasting(waits)),
            waits_for: match (blocked, waits) {
                (0, 0) => None,
                (0, _) => Some(Side::Sender),
                _ => Some(Side::Receiver),
            },
            ended: phase == ENDED,
        })
    }
}

impl Registry {
    pub(crate) fn list(&self, limit: usize) -> UnderWay {
        let mut all: Vec<(Instant, Arc<Slot>)> = Vec::new();
        for shard in &self.shards {
            // Nobody who comes or goes waits for more than this.
            let slots = shard.lock();
            let under_way = slots.slots.iter().flatten().filter_map(|slot| {
                let started = slot.head.lock().started?;
                Some((started, slot.clone()))
            });
            all.extend(under_way);
        }
        let now = Instant::now();
        all.sort_unstable_by_key(|(started, slot)| (*started, slot.connection));
        let exchanges =
            all.iter().take(limit).filter_map(|(started, slot)| slot.shown(*started, now)).collect();
        UnderWay { total: all.len(), exchanges }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_used_again_and_what_has_ended_is_forgotten() {
        let tally = Arc::new(Tally::default());
        let slots = || tally.under_way.shards.iter().map(|shard| shard.lock().slots.len()).sum::<usize>();
        for connection in 1..=10_000 {
            let peer = Peer::new(SocketAddr::from(([127, 0, 0, 1], 1)), connection, "http");
            let slot = Entered::new(&tally, &peer, 1);
            let target = Uri::from_static("/a");
            slot.begin(Instant::now(), (Version::HTTP_11, &Method::PUT, &target), Some("route"));
            assert_eq!(tally.under_way.list(9).exchanges[0].id, format!("{connection}.1"));
            slot.end();
            assert_eq!(tally.under_way.list(9).total, 0);
            slot.begin(Instant::now(), (Version::HTTP_11, &Method::PUT, &target), None);
            let list = tally.under_way.list(9);
            assert_eq!(
                (&*list.exchanges[0].id, &list.exchanges[0].route),
                (&*format!("{connection}.2"), &None)
            );
        }
        assert_eq!((tally.under_way.list(9).total, slots()), (0, SHARDS));
    }
}
