//! Upstreams: where requests go, over connections that are used again.

mod url;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use millstream_resilience::{BreakerSettings, BreakerState, CircuitBreaker, Permit};
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::gateway::Shared;
use crate::health::HealthCheck;
use crate::http1::io::{Connection, Idles, ReadSide, WriteSide};
use crate::http2::{self, Requests};
use crate::settings::Settings;

pub use url::{UpstreamUrl, UpstreamUrlError};

/// The servers behind a route. A request goes to the healthy one with the fewest requests in flight; one whose requests
/// fail is left alone for a while.
#[derive(Debug)]
pub struct Upstreams {
    pub(crate) servers: Vec<Arc<Upstream>>,
    pub(crate) health: Option<HealthCheck>,
    /// Where the search begins, so that servers with equally few take turns.
    turn: AtomicUsize,
}

/// One server.
pub(crate) struct Upstream {
    pub(crate) url: UpstreamUrl,
    /// The URL as a text.
    pub(crate) name: String,
    pub(crate) in_flight: AtomicUsize,
    /// What the last checks found; true without checks.
    pub(crate) healthy: AtomicBool,
    breaker: Option<CircuitBreaker>,
    idle: Mutex<Vec<Idle>>,
    /// The connections that requests share where HTTP/2 is spoken.
    joint: Mutex<Joint>,
    /// Held by who makes one of those, so that all others wait for it instead of making their own.
    connecting: tokio::sync::Mutex<()>,
    connected: AtomicU64,
    reused: AtomicU64,
    failed: AtomicU64,
}

/// What requests share.
struct Joint {
    /// Whether the server speaks HTTP/2, as far as is known.
    spoken: Option<bool>,
    connections: Vec<Joined>,
    /// How many there have been.
    made: u64,
}

/// A connection with as many streams as the server allows.
struct Joined {
    requests: Requests,
    /// Which of the server's connections this is, from 1.
    number: u64,
    /// Since when nobody was seen to use it.
    unused: Option<Instant>,
}

struct Idle {
    read: ReadSide,
    write: WriteSide,
    since: Instant,
}

impl Idle {
    /// Whether it is open, not too old, and nothing came of it. What came belongs to no answer.
    fn is_well(&mut self, shared: &Shared) -> bool {
        let idles = self.read.idles();
        if idles == Idles::Unasked {
            shared.tally.upstream_excess();
        }
        idles == Idles::Well && self.since.elapsed() < shared.settings.timeouts.keep_alive
    }
}

/// A way to ask an upstream.
pub(crate) enum Way {
    Http1(Connected),
    Http2 {
        requests: Requests,
        /// It was there before this request.
        reused: bool,
        /// How many the server has had that requests share; 0 for one that only this request has.
        number: u64,
    },
    /// Over HTTP/2, for a WebSocket and nothing else.
    WebSocket(Requests),
}

/// A connection to an upstream in somebody's hands.
pub(crate) struct Connected {
    pub(crate) read: ReadSide,
    pub(crate) write: WriteSide,
    /// It has served a request before, so that the server may be about to close it.
    pub(crate) reused: bool,
}

/// A request in flight.
pub(crate) struct InFlight {
    pub(crate) upstream: Arc<Upstream>,
    permit: Option<Permit>,
}

impl InFlight {
    /// The server has answered, well or not. A request that is dropped without a word says nothing about its server.
    pub(crate) fn answered(&mut self, well: bool) {
        if let Some(permit) = self.permit.take() {
            if well { permit.succeed() } else { permit.fail() }
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.upstream.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Upstreams {
    /// These servers, without checks and breakers.
    pub fn new(urls: impl IntoIterator<Item = UpstreamUrl>) -> Upstreams {
        let server = |url: UpstreamUrl| {
            let spoken = if url.http2 || !url.tls { Some(url.http2) } else { None };
            Arc::new(Upstream {
                name: url.to_string(),
                url,
                in_flight: AtomicUsize::new(0),
                healthy: AtomicBool::new(true),
                breaker: None,
                idle: Mutex::default(),
                joint: Mutex::new(Joint { spoken, connections: Vec::new(), made: 0 }),
                connecting: tokio::sync::Mutex::default(),
                connected: AtomicU64::new(0),
                reused: AtomicU64::new(0),
                failed: AtomicU64::new(0),
            })
        };
        Upstreams { servers: urls.into_iter().map(server).collect(), health: None, turn: AtomicUsize::new(0) }
    }

    /// Leaves a server alone whose requests fail: it cannot be reached, closes without an answer, takes too long,
    /// answers 502, 503 or 504, or breaks off an answer that its client did not hold up.
    #[must_use]
    pub fn breaker(mut self, settings: &BreakerSettings) -> Upstreams {
        for server in &mut self.servers {
            let server = Arc::get_mut(server).expect("nobody else has it before the gateway listens");
            server.breaker = Some(CircuitBreaker::new(settings.clone().name(server.name.clone())));
        }
        self
    }

    /// Asks each server from time to time whether it is well.
    #[must_use]
    pub fn health(mut self, check: HealthCheck) -> Upstreams {
        self.health = Some(check);
        self
    }

    /// The server with the fewest requests in flight, passing over those in `but` and those that are not well.
    pub(crate) fn choose(&self, but: &[usize]) -> Option<(usize, InFlight)> {
        let count = self.servers.len();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut order: Vec<usize> = (0..count).map(|offset| (turn + offset) % count).collect();
        order.retain(|at| !but.contains(at) && self.servers[*at].healthy.load(Ordering::Relaxed));
        order.sort_by_key(|at| self.servers[*at].in_flight.load(Ordering::Relaxed));
        order.into_iter().find_map(|at| {
            let server = &self.servers[at];
            let permit = match &server.breaker {
                None => None,
                Some(breaker) => Some(breaker.try_acquire_owned().ok()?),
            };
            server.in_flight.fetch_add(1, Ordering::Relaxed);
            Some((at, InFlight { upstream: server.clone(), permit }))
        })
    }
}

/// Closes idle connections of these servers when nobody has needed them for `keep_alive`; for ever.
pub(crate) async fn prune(shared: Arc<Shared>, servers: Vec<Arc<Upstream>>) {
    let keep_alive = shared.settings.timeouts.keep_alive;
    // A connection may stay a quarter longer than it should, one of HTTP/2 two quarters.
    let mut ticks = interval((keep_alive / 4).max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        servers.iter().for_each(|server| server.prune(&shared));
    }
}

impl Upstream {
    /// A way to ask it: a connection that is there, or a new one. `stale` is how many connections there had been when one closed on a
    /// request, or 0: then none that was idle is given, nor one of those.
    pub(crate) async fn way(&self, shared: &Arc<Shared>, stale: Option<u64>) -> io::Result<Way> {
        while let Some(mut idle) = if stale.is_some() { None } else { self.idle.lock().pop() } {
            if idle.is_well(shared) {
                self.reused.fetch_add(1, Ordering::Relaxed);
                return Ok(Way::Http1(Connected { read: idle.read, write: idle.write, reused: true }));
            }
        }
        if let Some(way) = self.join(stale) {
            return Ok(way);
        }
        self.in_time(shared, self.join_or_connect(shared, stale)).await
    }

    /// The same for a WebSocket. Over HTTP/2 it gets a connection of its own, because it stays for long: its stream would take from
    /// what the server allows to all streams of one.
    pub(crate) async fn way_for_websocket(
        &self,
        shared: &Arc<Shared>,
        stale: Option<u64>,
    ) -> io::Result<Way> {
        let patience = shared.settings.timeouts.connect;
        if self.is_http1() {
            return self.way(shared, stale).await;
        }
        let carries = match self.anyone(|_| true) {
            Some(there) => there.carries_websockets(patience).await,
            None => true,
        };
        if !carries {
            return self.way(shared, stale).await;
        }
        match self.in_time(shared, self.make(shared)).await? {
            Way::Http2 { requests, .. } if requests.carries_websockets(patience).await => {
                Ok(Way::WebSocket(requests))
            }
            // What is of no use for this serves all other requests.
            way => Ok(self.share(way)),
        }
    }

    /// Whether it is known that each request needs a connection of its own.
    fn is_http1(&self) -> bool {
        self.joint.lock().spoken == Some(false)
    }

    /// A connection, if it is there soon enough.
    async fn in_time(
        &self,
        shared: &Shared,
        connecting: impl Future<Output = io::Result<Way>>,
    ) -> io::Result<Way> {
        let way = timeout(shared.settings.timeouts.connect, connecting).await;
        let way = way.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        if way.is_err() {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
        way
    }

    async fn make(&self, shared: &Arc<Shared>) -> io::Result<Way> {
        let way = self.connect(shared).await?;
        self.connected.fetch_add(1, Ordering::Relaxed);
        Ok(way)
    }

    /// A connection that requests share and that has room, if one is there that came after so many.
    fn join(&self, stale: Option<u64>) -> Option<Way> {
        let mut joint = self.joint.lock();
        joint.connections.retain(|one| one.requests.is_ready());
        let number = joint.made;
        let fit = |one: &&mut Joined| stale.is_none_or(|stale| one.number > stale) && one.requests.has_room();
        let found = joint.connections.iter_mut().find(fit)?;
        found.unused = None;
        self.reused.fetch_add(1, Ordering::Relaxed);
        Some(Way::Http2 { requests: found.requests.clone(), reused: true, number })
    }

    /// One of the connections that requests share and that fits.
    fn anyone(&self, fits: impl Fn(&Requests) -> bool) -> Option<Requests> {
        let joint = self.joint.lock();
        let mut ready =
            joint.connections.iter().map(|one| &one.requests).filter(|requests| requests.is_ready());
        ready.find(|requests| fits(requests)).cloned()
    }

    async fn join_or_connect(&self, shared: &Arc<Shared>, stale: Option<u64>) -> io::Result<Way> {
        let mut turn = None;
        if !self.is_http1() {
            turn = Some(self.connecting.lock().await);
            if let Some(way) = self.join(stale) {
                return Ok(way);
            }
        }
        // The one before may have found that nothing can be shared.
        let _turn = turn.filter(|_| !self.is_http1());
        Ok(self.share(self.make(shared).await?))
    }

    /// Has other requests use this new connection, too, if they can.
    fn share(&self, mut way: Way) -> Way {
        let mut joint = self.joint.lock();
        joint.spoken = Some(matches!(way, Way::Http2 { .. }));
        if let Way::Http2 { requests, number, .. } = &mut way {
            joint.made += 1;
            *number = joint.made;
            joint.connections.push(Joined { requests: requests.clone(), number: *number, unused: None });
        }
        way
    }

    /// A way to ask whether it is well: a connection that requests share, or one of its own, which is not counted.
    pub(crate) async fn probe(&self, shared: &Arc<Shared>) -> io::Result<Way> {
        match self.anyone(Requests::has_room) {
            Some(requests) => Ok(Way::Http2 { requests, reused: true, number: 0 }),
            None => self.connect(shared).await,
        }
    }

    async fn connect(&self, shared: &Arc<Shared>) -> io::Result<Way> {
        let stream = TcpStream::connect((self.url.host.as_str(), self.url.port)).await?;
        stream.set_nodelay(true)?;
        let mut http2 = self.url.http2;
        let connection = match &shared.upstream_tls {
            Some(tls) if self.url.tls => {
                let name = ServerName::try_from(self.url.host.clone()).map_err(io::Error::other)?;
                let stream = TlsConnector::from(tls.clone()).connect(name, stream).await?;
                http2 |= stream.get_ref().1.alpn_protocol() == Some(b"h2");
                Connection::Other(Box::new(stream))
            }
            _ => Connection::Tcp(stream),
        };
        if http2 {
            let stream = match connection {
                Connection::Tcp(stream) => Box::new(stream),
                Connection::Other(stream) => stream,
            };
            let requests = http2::connect(shared, stream).await.map_err(io::Error::other)?;
            return Ok(Way::Http2 { requests, reused: false, number: 0 });
        }
        let (read, write) = connection.split(&shared.pool);
        Ok(Way::Http1(Connected { read, write, reused: false }))
    }

    /// Keeps a connection for the next request.
    pub(crate) fn keep(&self, connected: Connected, settings: &Settings) {
        let mut idle = self.idle.lock();
        if idle.len() < settings.upstream_idle_connections {
            idle.push(Idle { read: connected.read, write: connected.write, since: Instant::now() });
        }
    }

    /// Closes idle connections that were not needed for so long, or that the server has closed.
    fn prune(&self, shared: &Shared) {
        let keep_alive = shared.settings.timeouts.keep_alive;
        self.idle.lock().retain_mut(|idle| idle.is_well(shared));
        self.joint.lock().connections.retain_mut(|one| {
            let unused = (one.requests.others() == 0).then(|| one.unused.unwrap_or_else(Instant::now));
            one.unused = unused;
            one.requests.is_ready() && unused.is_none_or(|since| since.elapsed() < keep_alive)
        });
    }

    /// Closes all idle connections.
    pub(crate) fn forget_idle(&self) {
        self.idle.lock().clear();
        self.joint.lock().connections.clear();
    }

    fn is_open(&self) -> bool {
        self.breaker.as_ref().is_some_and(|breaker| breaker.state() == BreakerState::Open)
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Upstream({})", self.url)
    }
}

/// The servers of a route, as they are.
pub(crate) fn snapshots(route: &crate::route::Route) -> Vec<crate::UpstreamSnapshot> {
    let servers = route.upstreams().map_or(&[][..], |upstreams| &upstreams.servers);
    let snapshot = |server: &Arc<Upstream>| crate::UpstreamSnapshot {
        route: route.name.clone(),
        upstream: server.name.clone(),
        in_flight: server.in_flight.load(Ordering::Relaxed) as u64,
        connected: server.connected.load(Ordering::Relaxed),
        reused: server.reused.load(Ordering::Relaxed),
        failed: server.failed.load(Ordering::Relaxed),
        healthy: server.healthy.load(Ordering::Relaxed) && !server.is_open(),
    };
    servers.iter().map(snapshot).collect()
}
