//! The HTTP server: one read-only view for each path.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::history::{History, PERIOD};
use crate::listener::Limited;
use crate::{Health, Snapshot, metrics, page};

/// A running server.
///
/// Dropping it stops it at once; [`Server::shutdown`] finishes the answers that are being given.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    serving: JoinHandle<()>,
    looking: JoinHandle<()>,
}

/// Why the server could not listen.
#[derive(Debug)]
pub struct BindError {
    address: SocketAddr,
    source: std::io::Error,
}

impl BindError {
    /// What `source` means for listening on `address`.
    pub fn new(address: SocketAddr, source: std::io::Error) -> BindError {
        BindError { address, source }
    }
}

impl std::fmt::Display for BindError {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let address = self.address;
        match self.source.kind() {
            std::io::ErrorKind::AddrInUse => write!(
                out,
                "another process listens on {address}; stop it, or listen on another port (port 0 takes a free one)"
            ),
            std::io::ErrorKind::AddrNotAvailable => {
                write!(out, "{address} is no address of this machine; 0.0.0.0 listens on all that it has")
            }
            std::io::ErrorKind::PermissionDenied => {
                write!(out, "listening on {address} is not permitted; ports below 1024 need a privilege")
            }
            _ => write!(out, "cannot listen on {address}"),
        }
    }
}

impl std::error::Error for BindError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// What the handlers share.
struct Shared {
    look: Box<dyn Fn() -> Snapshot + Send + Sync>,
    history: Mutex<History>,
}

impl Server {
    /// Listens on `address` (port 0 takes a free one) and answers from `look`, which gives the runs, or them and the brokers. It is
    /// called for every request and once a second; it should be quick and must not block.
    ///
    /// # Errors
    /// When the address cannot be listened on; the error says what to do.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn bind<S: Into<Snapshot>>(
        address: SocketAddr,
        look: impl Fn() -> S + Send + Sync + 'static,
    ) -> Result<Server, BindError> {
        let failed = |source| BindError { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let shared = Arc::new(Shared { look: Box::new(move || look().into()), history: Mutex::default() });
        let looking = tokio::spawn(keep_looking(shared.clone()));
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = tokio::spawn(async move {
            let serving = axum::serve(Limited::new(listener), router(shared));
            // Serving ends only when it is told to, so there is no error to hand on.
            let _ = serving
                .with_graceful_shutdown(async {
                    let _ = stopped.await;
                })
                .await;
        });
        Ok(Server { address, stop: Some(stop), serving, looking })
    }

    /// The address it listens on, with the port that port 0 became.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Stops accepting, finishes the answers that are being given, and ends at the latest after `deadline`.
    pub async fn shutdown(mut self, deadline: Duration) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        let _ = tokio::time::timeout(deadline, &mut self.serving).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.serving.abort();
        self.looking.abort();
    }
}

/// Looks at the runs once a second, for the rates.
async fn keep_looking(shared: Arc<Shared>) {
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let now = ticks.tick().await;
        let runs = (shared.look)().runs;
        shared.history.lock().unwrap_or_else(PoisonError::into_inner).look(now, runs);
    }
}

fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/", get(status_page))
        .route("/metrics", get(exposition))
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        .route("/status.json", get(status))
        .fallback(elsewhere)
        .with_state(shared)
}

async fn status_page(State(shared): State<Arc<Shared>>) -> Response {
    let Snapshot { runs, brokers } = (shared.look)();
    let now = Instant::now();
    let rates: Vec<_> = {
        let history = shared.history.lock().unwrap_or_else(PoisonError::into_inner);
        runs.iter().map(|run| history.rates(now, run)).collect()
    };
    answer(StatusCode::OK, "text/html; charset=utf-8", page::page(&runs, &brokers, &rates))
}

async fn exposition(State(shared): State<Arc<Shared>>) -> Response {
    let text = metrics::exposition(&(shared.look)());
    answer(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text)
}

async fn live() -> Response {
    answer(StatusCode::OK, "application/json", "{\"live\":true}\n".into())
}

async fn ready(State(shared): State<Arc<Shared>>) -> Response {
    let now = (shared.look)();
    let health = Health::of(&now.runs, &now.brokers);
    let status = if health.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json(status, &health)
}

async fn status(State(shared): State<Arc<Shared>>) -> Response {
    json(StatusCode::OK, &(shared.look)().runs)
}

async fn elsewhere() -> Response {
    let text = "There is /, /metrics, /health/live, /health/ready and /status.json.\n";
    answer(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", text.into())
}

fn json(status: StatusCode, value: &impl serde::Serialize) -> Response {
    match serde_json::to_string_pretty(value) {
        Ok(text) => answer(status, "application/json", text + "\n"),
        Err(error) => {
            answer(StatusCode::INTERNAL_SERVER_ERROR, "text/plain; charset=utf-8", error.to_string())
        }
    }
}

/// An answer with the headers that all have: it is not kept by anyone, closes its connection (see
/// [`crate::CONNECTION_LIFETIME`]), and a page may load nothing and run no script, whatever an item's error
/// contains.
fn answer(status: StatusCode, content_type: &'static str, body: String) -> Response {
    const HEADERS: [(HeaderName, HeaderValue); 4] = [
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (header::CONNECTION, HeaderValue::from_static("close")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (
            header::CONTENT_SECURITY_POLICY,
            HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
        ),
    ];
    let content_type = [(header::CONTENT_TYPE, HeaderValue::from_static(content_type))];
    (status, HEADERS, content_type, body).into_response()
}
