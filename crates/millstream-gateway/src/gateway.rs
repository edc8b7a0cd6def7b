//! The gateway: it listens, admits connections within its limits, and drains.

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::{Method, StatusCode};
use millstream_resilience::{Keyed, Rate, RateLimiter};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::{ClientConfig, ServerConfig};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::connection;
use crate::duplex::Duplex;
use crate::headers::Peer;
use crate::http1::io::{Connection, SMALL};
use crate::http2;
use crate::pool::BufferPool;
use crate::report::{ExchangeReport, Refusal};
use crate::route::Route;
use crate::settings::Settings;
use crate::tally::{GatewaySnapshot, TUNNELS, Tally, snapshot};
use crate::tls::client_tls;
use crate::upstream;

type Observer = Box<dyn Fn(&ExchangeReport) + Send + Sync>;

/// What all connections share.
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) pool: BufferPool,
    pub(crate) routes: Vec<Route>,
    pub(crate) tally: Tally,
    observer: Option<Observer>,
    /// What each client address may do, for as many of them as connections are allowed.
    pub(crate) rates: Option<Keyed<IpAddr, RateLimiter>>,
    tls: Option<TlsAcceptor>,
    pub(crate) upstream_tls: Option<Arc<ClientConfig>>,
    /// Stop accepting and finish what was accepted.
    pub(crate) draining: CancellationToken,
    /// Stop at once.
    pub(crate) stopped: CancellationToken,
    pub(crate) tasks: TaskTracker,
    /// Connections to upstreams that speak HTTP/2, which live until nobody uses them.
    pub(crate) upstream_tasks: TaskTracker,
}

impl Shared {
    /// The route with this index has answered; a request that no route took has none.
    pub(crate) fn answered(&self, route: Option<usize>, status: Option<StatusCode>) {
        if let (Some(at), Some(status)) = (route, status) {
            let class = usize::from(status.as_u16() / 100).clamp(1, 5) - 1;
            self.tally.routes[at].answers[class].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Tells what became of an exchange.
    pub(crate) fn tell(&self, report: &ExchangeReport) {
        tracing::debug!(
            client = %report.client,
            method = report.method.as_ref().map(Method::as_str),
            path = report.path,
            route = report.route,
            status = report.status.map(|status| status.as_u16()),
            failure = report.failure,
            duration = ?report.duration,
            "exchange"
        );
        if let Some(observer) = &self.observer {
            observer(report);
        }
    }
}

/// What a gateway is made of, before it listens.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use http::{Request, Response};
/// use millstream_gateway::{Body, Gateway, Route, Settings};
///
/// async fn hello(_: Request<Body>) -> Response<Body> {
///     Response::new("hello\n".into())
/// }
///
/// let gateway = Gateway::new(Settings::default())
///     .route(Route::handler("hello", hello).path("/hello"))
///     .route(Route::proxy("all", ["http://127.0.0.1:3000".parse()?]));
/// let server = gateway.listen("127.0.0.1:0".parse()?).await?;
/// println!("http://{}", server.local_addr());
/// server.shutdown(Duration::from_secs(10)).await;
/// # Ok(()) }
/// ```
pub struct Gateway {
    settings: Settings,
    routes: Vec<Route>,
    observer: Option<Observer>,
    tls: Option<Arc<ServerConfig>>,
    upstream_tls: Option<Arc<ClientConfig>>,
}

impl Gateway {
    /// A gateway without routes.
    pub fn new(settings: Settings) -> Gateway {
        Gateway { settings, routes: Vec::new(), observer: None, tls: None, upstream_tls: None }
    }

    /// Adds a route, after those that are there: the first that matches is taken.
    #[must_use]
    pub fn route(mut self, route: Route) -> Gateway {
        self.routes.push(route);
        self
    }

    /// Calls `observer` with what became of each exchange when it has ended, and of each head over HTTP/1 that was refused. It should be
    /// quick and must not block.
    #[must_use]
    pub fn observe(mut self, observer: impl Fn(&ExchangeReport) + Send + Sync + 'static) -> Gateway {
        self.observer = Some(Box::new(observer));
        self
    }

    /// Speaks TLS with clients; see [`server_tls`](crate::server_tls).
    #[must_use]
    pub fn tls(mut self, config: Arc<ServerConfig>) -> Gateway {
        self.tls = Some(config);
        self
    }

    /// How TLS is spoken with upstreams; without it they must have a certificate that the system trusts. See
    /// [`client_tls`](crate::client_tls).
    #[must_use]
    pub fn upstream_tls(mut self, config: Arc<ClientConfig>) -> Gateway {
        self.upstream_tls = Some(config);
        self
    }

    /// Listens on `address` (port 0 takes a free one) and serves.
    ///
    /// # Errors
    /// `InvalidInput` when two routes have the same name or a route names an upstream twice, which metrics would count as one;
    /// otherwise when the address cannot be listened on.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn listen(self, address: SocketAddr) -> io::Result<Server> {
        distinct(&self.routes).map_err(|text| io::Error::new(io::ErrorKind::InvalidInput, text))?;
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let mut upstreams = self.routes.iter().filter_map(Route::upstreams);
        let needs_tls = upstreams.any(|upstreams| upstreams.servers.iter().any(|server| server.url.tls));
        let upstream_tls = match self.upstream_tls {
            None if needs_tls => Some(client_tls(None)?),
            given => given,
        };
        let limits = &self.settings.limits;
        let rates = limits.client_rate.map(|rate| {
            let rate = Rate::new(rate.into(), Duration::from_secs(1)).burst(limits.client_burst.into());
            Keyed::new(limits.connections, move |_: &IpAddr| RateLimiter::new(rate).wait_max(Duration::ZERO))
        });
        let shared = Arc::new(Shared {
            rates,
            tls: self.tls.map(TlsAcceptor::from),
            upstream_tls,
            pool: BufferPool::new(self.settings.pool.clone()),
            tally: Tally::new(self.routes.len()),
            settings: self.settings,
            routes: self.routes,
            observer: self.observer,
            draining: CancellationToken::new(),
            stopped: CancellationToken::new(),
            tasks: TaskTracker::new(),
            upstream_tasks: TaskTracker::new(),
        });
        shared.pool.warm_up(SMALL, shared.settings.pool_warm as usize / SMALL);
        let mut own = JoinSet::new();
        own.spawn(accept(shared.clone(), listener));
        own.spawn({
            let (pool, period) = (shared.pool.clone(), shared.settings.pool_trim);
            async move { pool.trim_every(period).await }
        });
        let mut servers = Vec::new();
        for upstreams in shared.routes.iter().filter_map(Route::upstreams) {
            servers.extend(upstreams.servers.iter().cloned());
            if let Some(check) = &upstreams.health {
                for server in &upstreams.servers {
                    own.spawn(check.clone().watch(shared.clone(), server.clone()));
                }
            }
        }
        own.spawn(upstream::prune(shared.clone(), servers));
        Ok(Server { shared, address, own })
    }
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

impl fmt::Debug for Gateway {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Gateway").field("routes", &self.routes).finish_non_exhaustive()
    }
}

/// A gateway that serves.
///
/// Dropping it breaks off what is under way; [`shutdown`](Server::shutdown) finishes it.
pub struct Server {
    shared: Arc<Shared>,
    address: SocketAddr,
    own: JoinSet<()>,
}

/// How a gateway ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Connections that were broken off because the deadline had come.
    pub broken_off: u64,
    /// Buffers that nobody returned; anything but 0 is a defect.
    pub leases_left: u64,
}

impl Server {
    /// The address it listens on, with the port that port 0 became.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// What it has counted.
    pub fn snapshot(&self) -> GatewaySnapshot {
        snapshot(&self.shared)
    }

    /// What it has counted, from anywhere, for as long as the returned function lives.
    pub fn monitor(&self) -> impl Fn() -> GatewaySnapshot + Send + Sync + use<> {
        let shared = self.shared.clone();
        move || snapshot(&shared)
    }

    /// Stops accepting, lets every exchange that has begun end, and breaks off what has not ended at the deadline.
    pub async fn shutdown(mut self, deadline: Duration) -> Drained {
        let shared = self.shared.clone();
        shared.draining.cancel();
        self.own.shutdown().await;
        shared.tasks.close();
        let broken_off = match timeout(deadline, shared.tasks.wait()).await {
            Ok(()) => 0,
            Err(_) => {
                let left = shared.tally.connections_open.load(Ordering::Relaxed);
                shared.stopped.cancel();
                shared.tasks.wait().await;
                left
            }
        };
        for upstreams in shared.routes.iter().filter_map(Route::upstreams) {
            upstreams.servers.iter().for_each(|server| server.forget_idle());
        }
        shared.stopped.cancel();
        shared.upstream_tasks.close();
        shared.upstream_tasks.wait().await;
        Drained { broken_off, leases_left: shared.pool.snapshot().in_use }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.draining.cancel();
        self.shared.stopped.cancel();
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Server").field("address", &self.address).finish_non_exhaustive()
    }
}

async fn accept(shared: Arc<Shared>, listener: TcpListener) {
    let permits = Arc::new(Semaphore::new(shared.settings.limits.connections));
    loop {
        let permit = permits.clone().acquire_owned().await.expect("the semaphore is never closed");
        let (stream, client) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // A connection that is gone already is nobody's loss; without descriptors it helps to wait.
                if !matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset)
                {
                    tracing::warn!(%error, "cannot accept connections; trying again in a moment");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                continue;
            }
        };
        shared.tally.connections.fetch_add(1, Ordering::Relaxed);
        let (serving, open) = (shared.clone(), Open::new(shared.clone()));
        shared.tasks.spawn(async move {
            let _admitted = (permit, open);
            tokio::select! {
                biased;
                () = serving.stopped.cancelled() => {}
                () = serve(&serving, stream, client) => {}
            }
        });
    }
}

async fn serve(shared: &Arc<Shared>, stream: TcpStream, client: SocketAddr) {
    // Without it a small chunk would wait for the acknowledgement of the one before.
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let Some(tls) = &shared.tls else {
        return connection::serve(shared, Connection::Tcp(stream), Peer::new(client, "http")).await;
    };
    let Ok(Ok((stream, http2))) = timeout(shared.settings.timeouts.header, secured(tls, stream)).await else {
        return shared.tally.refused(Refusal::Tls);
    };
    if http2 {
        http2::serve(shared, stream, Peer::new(client, "https")).await;
    } else {
        connection::serve(shared, Connection::Other(stream), Peer::new(client, "https")).await;
    }
}

/// The stream inside of TLS, and whether its client wants HTTP/2.
async fn secured(tls: &TlsAcceptor, stream: TcpStream) -> io::Result<(Box<dyn Duplex>, bool)> {
    let stream = tls.accept(stream).await?;
    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    Ok((Box::new(stream), http2))
}

/// Counts a connection while it is open.
struct Open(Arc<Shared>);

impl Open {
    fn new(shared: Arc<Shared>) -> Open {
        shared.tally.connections_open.fetch_add(1, Ordering::Relaxed);
        Open(shared)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.tally.connections_open.fetch_sub(1, Ordering::Relaxed);
    }
}
