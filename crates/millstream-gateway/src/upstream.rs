//! Upstreams: where requests go, over connections that are used again.

use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use http::Uri;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::http1::io::{Connection, ReadSide, WriteSide};
use crate::pool::BufferPool;
use crate::settings::Settings;

/// The address of an upstream: `http://host:port/base`, `https://…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamUrl {
    pub(crate) tls: bool,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) authority: String,
    /// What stands before the path of every request, without a slash at its end.
    pub(crate) base: String,
}

/// Why a text is no address of an upstream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no upstream; write `http://host:port` or `https://host:port`, with a path if every request needs one"
)]
pub struct UpstreamUrlError(String);

impl FromStr for UpstreamUrl {
    type Err = UpstreamUrlError;

    fn from_str(text: &str) -> Result<Self, UpstreamUrlError> {
        let error = || UpstreamUrlError(text.to_owned());
        let uri: Uri = text.parse().map_err(|_| error())?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(error()),
        };
        let authority = uri.authority().ok_or_else(error)?;
        if authority.as_str().contains('@') || uri.query().is_some() {
            return Err(error());
        }
        Ok(UpstreamUrl {
            tls,
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port: authority.port_u16().unwrap_or(if tls { 443 } else { 80 }),
            authority: authority.as_str().to_owned(),
            base: uri.path().trim_end_matches('/').to_owned(),
        })
    }
}

impl fmt::Display for UpstreamUrl {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "http{}://{}{}", if self.tls { "s" } else { "" }, self.authority, self.base)
    }
}

/// The servers behind a route. A request goes to the one with the fewest requests in flight.
#[derive(Debug)]
pub struct Upstreams {
    pub(crate) servers: Vec<Arc<Upstream>>,
    /// Where the search begins, so that servers with equally few take turns.
    turn: AtomicUsize,
}

/// One server.
pub(crate) struct Upstream {
    pub(crate) url: UpstreamUrl,
    pub(crate) in_flight: AtomicUsize,
    idle: Mutex<Vec<Idle>>,
    pub(crate) connected: AtomicU64,
    pub(crate) reused: AtomicU64,
    pub(crate) failed: AtomicU64,
}

struct Idle {
    read: ReadSide,
    write: WriteSide,
    since: Instant,
}

/// A connection to an upstream in somebody's hands.
pub(crate) struct Connected {
    pub(crate) read: ReadSide,
    pub(crate) write: WriteSide,
    /// It has served a request before, so that the server may be about to close it.
    pub(crate) reused: bool,
}

/// A request in flight.
pub(crate) struct InFlight(pub(crate) Arc<Upstream>);

impl InFlight {
    fn new(upstream: &Arc<Upstream>) -> InFlight {
        upstream.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(upstream.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Upstreams {
    /// These servers.
    pub fn new(urls: impl IntoIterator<Item = UpstreamUrl>) -> Upstreams {
        let servers = urls
            .into_iter()
            .map(|url| {
                Arc::new(Upstream {
                    url,
                    in_flight: AtomicUsize::new(0),
                    idle: Mutex::default(),
                    connected: AtomicU64::new(0),
                    reused: AtomicU64::new(0),
                    failed: AtomicU64::new(0),
                })
            })
            .collect();
        Upstreams { servers, turn: AtomicUsize::new(0) }
    }

    /// The server with the fewest requests in flight, passing over those in `but`.
    pub(crate) fn choose(&self, but: &[usize]) -> Option<(usize, InFlight)> {
        let count = self.servers.len();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let order = (0..count).map(|offset| (turn + offset) % count).filter(|at| !but.contains(at));
        let best = order.min_by_key(|at| self.servers[*at].in_flight.load(Ordering::Relaxed))?;
        Some((best, InFlight::new(&self.servers[best])))
    }
}

impl Upstream {
    /// A connection: an idle one, or a new one if there is none or `fresh` is asked for.
    pub(crate) async fn connection(
        &self,
        settings: &Settings,
        pool: &BufferPool,
        fresh: bool,
    ) -> io::Result<Connected> {
        while !fresh {
            let Some(mut idle) = self.idle.lock().pop() else { break };
            if idle.since.elapsed() < settings.timeouts.keep_alive && idle.read.is_idle() {
                self.reused.fetch_add(1, Ordering::Relaxed);
                return Ok(Connected { read: idle.read, write: idle.write, reused: true });
            }
        }
        let connection = timeout(settings.timeouts.connect, self.connect())
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let connection = connection.inspect_err(|_| {
            self.failed.fetch_add(1, Ordering::Relaxed);
        })?;
        self.connected.fetch_add(1, Ordering::Relaxed);
        let (read, write) = connection.split(pool);
        Ok(Connected { read, write, reused: false })
    }

    async fn connect(&self) -> io::Result<Connection> {
        let stream = TcpStream::connect((self.url.host.as_str(), self.url.port)).await?;
        stream.set_nodelay(true)?;
        Ok(Connection::Tcp(stream))
    }

    /// Keeps a connection for the next request.
    pub(crate) fn keep(&self, connected: Connected, settings: &Settings) {
        let mut idle = self.idle.lock();
        if idle.len() < settings.upstream_idle_connections {
            idle.push(Idle { read: connected.read, write: connected.write, since: Instant::now() });
        }
    }

    /// Closes all idle connections.
    pub(crate) fn forget_idle(&self) {
        self.idle.lock().clear();
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Upstream({})", self.url)
    }
}

/// The servers of a route, as they are.
pub(crate) fn snapshots(route: &crate::route::Route) -> Vec<crate::UpstreamSnapshot> {
    let crate::route::Target::Proxy(upstreams) = &route.target else { return Vec::new() };
    let snapshot = |server: &Arc<Upstream>| crate::UpstreamSnapshot {
        route: route.name.clone(),
        upstream: server.url.to_string(),
        in_flight: server.in_flight.load(Ordering::Relaxed) as u64,
        connected: server.connected.load(Ordering::Relaxed),
        reused: server.reused.load(Ordering::Relaxed),
        failed: server.failed.load(Ordering::Relaxed),
        healthy: true,
    };
    upstreams.servers.iter().map(snapshot).collect()
}
