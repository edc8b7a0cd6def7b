//! The gateway: it listens, admits connections within its limits, and drains.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::{Method, StatusCode};
use millstream_resilience::{Keyed, RateLimiter};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::{ClientConfig, ServerConfig};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::accept::{Places, accept};
use crate::current::Current;
use crate::http1::io::SMALL;
use crate::pool::BufferPool;
use crate::reload::Watching;
use crate::report::ExchangeReport;
use crate::route::Route;
use crate::settings::Settings;
use crate::tally::{GatewaySnapshot, RouteTally, Tally, snapshot};

pub(crate) type Observer = Box<dyn Fn(&ExchangeReport) + Send + Sync>;

/// What all exchanges share that begin under one configuration, and what outlives it: the pool, the tally, and the ends.
pub(crate) struct Shared {
    /// Which configuration this is, from 0.
    pub(crate) version: u64,
    pub(crate) settings: Settings,
    pub(crate) pool: BufferPool,
    pub(crate) routes: Vec<Route>,
    /// What is counted of each route.
    pub(crate) sums: Vec<Arc<RouteTally>>,
    pub(crate) tally: Arc<Tally>,
    pub(crate) observer: Option<Observer>,
    /// What each client address may do, for as many of them as connections are allowed.
    pub(crate) rates: Option<Keyed<IpAddr, RateLimiter>>,
    pub(crate) tls: Option<TlsAcceptor>,
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
            self.sums[at].answers[class].fetch_add(1, Ordering::Relaxed);
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
    pub(crate) settings: Settings,
    pub(crate) routes: Vec<Route>,
    pub(crate) observer: Option<Observer>,
    pub(crate) tls: Option<Arc<ServerConfig>>,
    pub(crate) upstream_tls: Option<Arc<ClientConfig>>,
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
        self.check()?;
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let shared = self.shared(None)?;
        shared.pool.warm_up(SMALL, shared.settings.pool_warm as usize / SMALL);
        let places = Places::new(shared.settings.limits.connections);
        let (pool, trim) = (shared.pool.clone(), shared.settings.pool_trim);
        let current = Arc::new(Current::new(shared));
        let mut own = JoinSet::new();
        own.spawn(accept(current.clone(), places.clone(), listener));
        own.spawn(async move { pool.trim_every(trim).await });
        let mut watching = Watching::default();
        watching.follow(&current);
        Ok(Server { current, address, places, own, watching: Mutex::new(watching) })
    }
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
    pub(crate) current: Arc<Current>,
    address: SocketAddr,
    pub(crate) places: Arc<Places>,
    own: JoinSet<()>,
    /// Held by who replaces the configuration.
    pub(crate) watching: Mutex<Watching>,
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
        snapshot(&self.current.get())
    }

    /// What it has counted, from anywhere, for as long as the returned function lives.
    pub fn monitor(&self) -> impl Fn() -> GatewaySnapshot + Send + Sync + use<> {
        let current = self.current.clone();
        move || snapshot(&current.get())
    }

    /// Stops accepting, lets every exchange that has begun end, and breaks off what has not ended at the deadline.
    pub async fn shutdown(mut self, deadline: Duration) -> Drained {
        let shared = self.current.get();
        shared.draining.cancel();
        self.own.shutdown().await;
        self.watching.get_mut().end().await;
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
        let shared = self.current.get();
        shared.draining.cancel();
        shared.stopped.cancel();
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Server").field("address", &self.address).finish_non_exhaustive()
    }
}
