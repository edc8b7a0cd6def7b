//! Replacing the configuration of a gateway that runs.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use millstream_resilience::{Keyed, Rate, RateLimiter};
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::current::Current;
use crate::gateway::{Gateway, Server, Shared};
use crate::health::HealthCheck;
use crate::pool::BufferPool;
use crate::route::{Route, Target};
use crate::settings::{Limits, Settings};
use crate::tally::{TUNNELS, Tally};
use crate::tls::client_tls;
use crate::upstream::{Upstream, prune};

/// What became of a configuration that was put in force.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reloaded {
    /// Fields of [`Settings`] that it has other values for, and that stay as they were: they hold from the beginning to the end.
    pub unchanged: Vec<&'static str>,
}

impl Server {
    /// Puts another configuration in force, with its routes, settings, observer and TLS, without dropping a connection. What it lacks is
    /// gone: it replaces the one before as a whole, or not at all.
    ///
    /// Exchanges under way, and connections that have changed their protocol, end by what they began with. The next request takes the
    /// new configuration, on kept connections, too. A kept connection keeps what was agreed on it: its TLS, over HTTP/2 the number of
    /// streams and `timeouts.keep_alive`; over HTTP/1 a wait for the next request that has begun ends by the time it began with.
    /// New connections are shown the new certificate.
    ///
    /// A server goes by its URL, first in the route of the same name, then in any other: it keeps its connections, what its
    /// health checks have found if it is still checked, and its breaker if that is set alike. Connections to a server that is gone
    /// close when nobody uses them. What is counted of a route or of a server in a route goes by their names, and never falls.
    /// Where there are more connections than the new limit, all go on, and nobody new is accepted until enough have ended. How
    /// often a client address has asked is forgotten where a limit of it changes.
    ///
    /// [`Settings::pool`], [`Settings::pool_warm`] and [`Settings::pool_trim`] stay as they are; [`Reloaded`] says if the new
    /// ones differ.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use millstream_gateway::{Gateway, Route, Settings};
    ///
    /// let to = |url: &str| Ok::<_, Box<dyn std::error::Error>>(Route::proxy("all", [url.parse()?]));
    /// let server = Gateway::new(Settings::default()).route(to("http://127.0.0.1:3000")?).listen("127.0.0.1:0".parse()?).await?;
    /// server.reload(Gateway::new(Settings::default()).route(to("http://127.0.0.1:3001")?))?;
    /// assert_eq!(server.snapshot().upstreams[0].upstream, "http://127.0.0.1:3001");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As those of [`Gateway::listen`], without listening: then all stays as it was. Either way it is counted
    /// ([`GatewaySnapshot::reloads`](crate::GatewaySnapshot::reloads)).
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn reload(&self, gateway: Gateway) -> io::Result<Reloaded> {
        // One after the other.
        let mut watching = self.watching.lock();
        let before = self.current.get();
        let unchanged = unchanged(&before.settings, &gateway.settings);
        let made = gateway.check().and_then(|()| gateway.shared(Some(&before)));
        let shared = Arc::new(made.inspect_err(|_| self.reload_refused())?);
        let connections = shared.settings.limits.connections;
        servers(&shared.routes).for_each(|(_, server)| server.enters());
        self.current.replace(shared.clone());
        self.places.set(connections);
        let kept = |one: &Upstream| {
            servers(&shared.routes).any(|(_, server)| Arc::ptr_eq(&server.lasting, &one.lasting))
        };
        servers(&before.routes).filter(|(_, server)| !kept(server)).for_each(|(_, server)| server.leaves());
        watching.follow(&self.current);
        shared.tally.reloaded.fetch_add(1, Ordering::Relaxed);
        tracing::info!(version = shared.version, "the configuration was replaced");
        Ok(Reloaded { unchanged })
    }

    /// Counts a configuration that was refused before it came to [`reload`](Server::reload), because it could not be read.
    pub fn reload_refused(&self) {
        self.current.get().tally.reloads_refused.fetch_add(1, Ordering::Relaxed);
    }
}

/// The settings that differ, and that nothing changes any more.
fn unchanged(before: &Settings, asked: &Settings) -> Vec<&'static str> {
    let differ = [
        ("pool", before.pool != asked.pool),
        ("pool_warm", before.pool_warm != asked.pool_warm),
        ("pool_trim", before.pool_trim != asked.pool_trim),
    ];
    differ.iter().filter(|(_, differs)| *differs).map(|(name, _)| *name).collect()
}

/// All servers, each with its route.
fn servers(routes: &[Route]) -> impl Iterator<Item = (&Route, &Arc<Upstream>)> {
    routes.iter().flat_map(|route| {
        let servers = route.upstreams().map_or(&[][..], |upstreams| &upstreams.servers);
        servers.iter().map(move |server| (route, server))
    })
}

impl Gateway {
    /// Whether metrics can tell its routes and their servers apart.
    pub(crate) fn check(&self) -> io::Result<()> {
        distinct(&self.routes).map_err(|text| io::Error::new(io::ErrorKind::InvalidInput, text))
    }

    /// What it is while it is in force; `before` is what was until then. Changes nothing yet of what the two have in common.
    pub(crate) fn shared(self, before: Option<&Shared>) -> io::Result<Shared> {
        let Gateway { mut settings, mut routes, observer, tls, upstream_tls } = self;
        let needs_tls = servers(&routes).any(|(_, server)| server.url.tls);
        let upstream_tls = match upstream_tls {
            None if needs_tls => Some(client_tls(None)?),
            given => given,
        };
        if let Some(Shared { settings: before, .. }) = before {
            settings.pool = before.pool.clone();
            (settings.pool_warm, settings.pool_trim) = (before.pool_warm, before.pool_trim);
        }
        let tally: Arc<Tally> = before.map_or_else(Arc::default, |before| before.tally.clone());
        succeed(before.map_or(&[], |before| &before.routes), &mut routes, &tally);
        let sums = {
            let mut known = tally.routes.lock();
            let sums = routes.iter().map(|route| known.of(&route.name)).collect();
            known.tidy();
            sums
        };
        let limits = &settings.limits;
        let limiters = |limits: &Limits| (limits.client_rate, limits.client_burst, limits.connections);
        let rates = match before {
            Some(before) if limiters(&before.settings.limits) == limiters(limits) => before.rates.clone(),
            _ => limits.client_rate.map(|rate| rates(rate, limits)),
        };
        Ok(Shared {
            version: before.map_or(0, |before| before.version + 1),
            rates,
            tls: tls.map(TlsAcceptor::from),
            upstream_tls,
            pool: before.map_or_else(|| BufferPool::new(settings.pool.clone()), |before| before.pool.clone()),
            sums,
            tally,
            settings,
            routes,
            observer,
            draining: before.map_or_else(CancellationToken::new, |before| before.draining.clone()),
            stopped: before.map_or_else(CancellationToken::new, |before| before.stopped.clone()),
            tasks: before.map_or_else(TaskTracker::new, |before| before.tasks.clone()),
            upstream_tasks: before.map_or_else(TaskTracker::new, |before| before.upstream_tasks.clone()),
        })
    }
}

fn rates(rate: u32, limits: &Limits) -> Keyed<IpAddr, RateLimiter> {
    let rate = Rate::new(rate.into(), Duration::from_secs(1)).burst(limits.client_burst.into());
    Keyed::new(limits.connections, move |_: &IpAddr| RateLimiter::new(rate).wait_max(Duration::ZERO))
}

/// What is wrong with routes that metrics could not tell apart.
fn distinct(routes: &[Route]) -> Result<(), String> {
    let mut names = HashSet::from([TUNNELS]);
    for route in routes {
        let name = &route.name;
        if !names.insert(name) {
            return Err(format!("the name `{name}` is taken already; give each route a name of its own"));
        }
        let mut urls = HashSet::new();
        for server in route.upstreams().map_or(&[][..], |upstreams| &upstreams.servers) {
            if !urls.insert(&server.name) {
                return Err(format!("route `{name}` leads to `{}` twice; name it once", server.name));
            }
        }
    }
    Ok(())
}

/// Has the servers of these routes go on as those that were there before.
fn succeed(before: &[Route], routes: &mut [Route], tally: &Tally) {
    let mut old: Vec<(&Route, Option<&Arc<Upstream>>)> =
        servers(before).map(|(route, server)| (route, Some(server))).collect();
    let mut take = |fits: &dyn Fn(&Route, &Upstream) -> bool| {
        let found = old.iter_mut().find(|(route, server)| server.is_some_and(|server| fits(route, server)));
        found.and_then(|(_, server)| server.take()).cloned()
    };
    // Where a name stays it goes before whoever else has the same URL.
    let mut heirs: Vec<Option<Arc<Upstream>>> = servers(routes)
        .map(|(route, server)| take(&|old, other| old.name == route.name && other.name == server.name))
        .collect();
    for ((_, server), heir) in servers(routes).zip(&mut heirs) {
        if heir.is_none() {
            *heir = take(&|_, other| other.name == server.name);
        }
    }
    let mut heirs = heirs.into_iter();
    let mut known = tally.servers.lock();
    for Route { name, target, .. } in routes {
        if let Target::Proxy(upstreams) = target {
            let heirs = heirs.by_ref().take(upstreams.servers.len());
            *upstreams = Arc::new(upstreams.after(heirs, |server| known.of(&format!("{name} {server}"))));
        }
    }
    known.tidy();
}

/// The tasks that look after the servers of a configuration.
#[derive(Default)]
pub(crate) struct Watching {
    tasks: JoinSet<()>,
    checks: Vec<Checking>,
    pruning: Option<AbortHandle>,
}

/// A server that is asked whether it is well.
struct Checking {
    check: HealthCheck,
    server: Arc<Upstream>,
    task: AbortHandle,
}

impl Watching {
    /// Looks after the servers of what is in force now. Checks that are as they were before go on, with what they have seen.
    pub(crate) fn follow(&mut self, current: &Arc<Current>) {
        let shared = current.get();
        let mut before = std::mem::take(&mut self.checks);
        for (route, server) in servers(&shared.routes) {
            let Some(check) = route.upstreams().and_then(|upstreams| upstreams.health.clone()) else {
                continue;
            };
            let same =
                |old: &Checking| old.check == check && Arc::ptr_eq(&old.server.lasting, &server.lasting);
            let going_on = before.iter().position(same).map(|at| before.swap_remove(at));
            self.checks.push(going_on.unwrap_or_else(|| {
                let task = self.tasks.spawn(check.clone().watch(current.clone(), server.clone()));
                Checking { check, server: server.clone(), task }
            }));
        }
        before.iter().for_each(|old| old.task.abort());
        if let Some(pruning) = self.pruning.replace(self.tasks.spawn(prune(shared))) {
            pruning.abort();
        }
        // Of those that have ended nobody needs to know.
        while self.tasks.try_join_next().is_some() {}
    }

    pub(crate) async fn end(&mut self) {
        self.tasks.shutdown().await;
    }
}
