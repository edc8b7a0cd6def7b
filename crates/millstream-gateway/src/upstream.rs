//! Upstreams: where requests go, over connections that are used again.

mod url;
mod ways;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use millstream_resilience::{BreakerSettings, BreakerState, CircuitBreaker, Permit};
use parking_lot::Mutex;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::gateway::Shared;
use crate::health::HealthCheck;
use crate::route::Route;
use crate::tally::ServerTally;

pub use url::{UpstreamUrl, UpstreamUrlError};
pub(crate) use ways::{Connected, Way};
use ways::{Idle, Joint};

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
    /// Somebody asks whether it is well.
    checked: bool,
    breaker: Option<CircuitBreaker>,
    tally: Arc<ServerTally>,
    pub(crate) lasting: Arc<Lasting>,
}

/// What a server keeps when the configuration is replaced by another that has it, too.
pub(crate) struct Lasting {
    in_flight: AtomicUsize,
    /// What the last checks found; true without.
    pub(crate) healthy: AtomicBool,
    /// The configuration does not have it any more: no connection to it is kept.
    gone: AtomicBool,
    idle: Mutex<Vec<Idle>>,
    /// The connections that requests share where HTTP/2 is spoken.
    joint: Mutex<Joint>,
    /// Held by who makes one of those, so that all others wait for it instead of making their own.
    connecting: tokio::sync::Mutex<()>,
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
        self.upstream.lasting.in_flight.fetch_sub(1, Ordering::Relaxed);
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
                checked: false,
                breaker: None,
                tally: Arc::default(),
                lasting: Arc::new(Lasting {
                    in_flight: AtomicUsize::new(0),
                    healthy: AtomicBool::new(true),
                    gone: AtomicBool::new(false),
                    idle: Mutex::default(),
                    joint: Mutex::new(Joint { spoken, connections: Vec::new(), made: 0 }),
                    connecting: tokio::sync::Mutex::default(),
                }),
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

    /// The same as another configuration's that is to be in force: each server counts by what `tally` gives for its name, and one for
    /// which there is a predecessor goes on as that.
    pub(crate) fn after(
        &self,
        mut predecessors: impl Iterator<Item = Option<Arc<Upstream>>>,
        mut tally: impl FnMut(&str) -> Arc<ServerTally>,
    ) -> Upstreams {
        let server = |server: &Arc<Upstream>| {
            let before = predecessors.next().flatten();
            let opened = before.as_ref().and_then(|before| before.breaker.clone());
            let breaker = match (&server.breaker, opened) {
                (Some(breaker), Some(before)) if breaker.settings() == before.settings() => Some(before),
                (breaker, _) => breaker.clone(),
            };
            Arc::new(Upstream {
                url: server.url.clone(),
                name: server.name.clone(),
                checked: self.health.is_some(),
                breaker,
                tally: tally(&server.name),
                lasting: before.map_or_else(|| server.lasting.clone(), |before| before.lasting.clone()),
            })
        };
        Upstreams {
            servers: self.servers.iter().map(server).collect(),
            health: self.health.clone(),
            turn: AtomicUsize::new(0),
        }
    }

    /// The server with the fewest requests in flight, passing over those in `but` and those that are not well.
    pub(crate) fn choose(&self, but: &[usize]) -> Option<(usize, InFlight)> {
        let count = self.servers.len();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut order: Vec<usize> = (0..count).map(|offset| (turn + offset) % count).collect();
        order.retain(|at| !but.contains(at) && self.servers[*at].is_well());
        order.sort_by_key(|at| self.servers[*at].lasting.in_flight.load(Ordering::Relaxed));
        order.into_iter().find_map(|at| {
            let server = &self.servers[at];
            let permit = match &server.breaker {
                None => None,
                Some(breaker) => Some(breaker.try_acquire_owned().ok()?),
            };
            server.lasting.in_flight.fetch_add(1, Ordering::Relaxed);
            Some((at, InFlight { upstream: server.clone(), permit }))
        })
    }
}

/// Closes idle connections to the servers of this configuration when nobody has needed them for `keep_alive`; for ever.
pub(crate) async fn prune(shared: Arc<Shared>) {
    let keep_alive = shared.settings.timeouts.keep_alive;
    // A connection may stay a quarter longer than it should, one of HTTP/2 two quarters.
    let mut ticks = interval((keep_alive / 4).max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let upstreams = shared.routes.iter().filter_map(Route::upstreams);
        upstreams.flat_map(|upstreams| &upstreams.servers).for_each(|server| server.prune(&shared));
    }
}

impl Upstream {
    /// Closes idle connections that were not needed for so long, or that the server has closed.
    fn prune(&self, shared: &Shared) {
        let keep_alive = shared.settings.timeouts.keep_alive;
        self.lasting.idle.lock().retain_mut(|idle| idle.is_well(shared));
        self.lasting.joint.lock().connections.retain_mut(|one| {
            let unused = (one.requests.others() == 0).then(|| one.unused.unwrap_or_else(Instant::now));
            one.unused = unused;
            one.requests.is_ready() && unused.is_none_or(|since| since.elapsed() < keep_alive)
        });
    }

    /// Closes all idle connections.
    pub(crate) fn forget_idle(&self) {
        self.lasting.idle.lock().clear();
        self.lasting.joint.lock().connections.clear();
    }

    /// It is one of the configuration's servers; what checks have found that nobody makes any more is forgotten.
    pub(crate) fn enters(&self) {
        self.lasting.gone.store(false, Ordering::Relaxed);
        if !self.checked {
            self.lasting.healthy.store(true, Ordering::Relaxed);
        }
    }

    /// It is none of them any more: connections to it close as soon as nobody uses them.
    pub(crate) fn leaves(&self) {
        self.lasting.gone.store(true, Ordering::Relaxed);
        // After that nothing is put there.
        self.forget_idle();
    }

    fn is_well(&self) -> bool {
        // A check that was under way when it was given up may still have its say.
        !self.checked || self.lasting.healthy.load(Ordering::Relaxed)
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
pub(crate) fn snapshots(route: &Route) -> Vec<crate::UpstreamSnapshot> {
    let servers = route.upstreams().map_or(&[][..], |upstreams| &upstreams.servers);
    let snapshot = |server: &Arc<Upstream>| crate::UpstreamSnapshot {
        route: route.name.clone(),
        upstream: server.name.clone(),
        in_flight: server.lasting.in_flight.load(Ordering::Relaxed) as u64,
        connected: server.tally.connected.load(Ordering::Relaxed),
        reused: server.tally.reused.load(Ordering::Relaxed),
        failed: server.tally.failed.load(Ordering::Relaxed),
        healthy: server.is_well() && !server.is_open(),
    };
    servers.iter().map(snapshot).collect()
}
