//! A service in front of a mediator, on the embedded broker: requests, notifications, a stream over SSE and WebSocket, health and
//! metrics.
//!
//!     cargo run -p millstream --features mediator --example mediator_service                  # asks itself, and ends
//!     cargo run -p millstream --features mediator --example mediator_service 127.0.0.1:8080   # until Ctrl-C
//!
//!     curl localhost:8080/                                                     # what is registered
//!     curl localhost:8080/requests/PriceOf -d '{"article": 7}'
//!     curl localhost:8080/requests/PlaceOrder -d '{"article": 7, "count": 2}'
//!     curl -N localhost:8080/streams/Ticks -G --data-urlencode 'request={"count": 5}'   # server-sent events
//!     websocat ws://localhost:8080/sockets/Ticks?request=%7B%22count%22%3A5%7D
//!     curl localhost:8080/health localhost:8080/metrics

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::{Message as Frame, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::StreamExt;
use millstream::codec;
use millstream::flow::{BoxError, Memo, Pipe};
use millstream::mediator::presets::{
    Environment, HealthPreset, Profile, ResourcePreset, Service, StreamPackage,
};
use millstream::mediator::{
    Cache, Check, Context, Error, ErrorKind, HealthBoard, Kind, Mediator, Notification, Request, Resume,
    Severity, StreamRequest, process_memory, to_broker,
};
use millstream::message::{Address, Broker, Queue};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::TcpListener;

mod client;

#[derive(Clone, Deserialize)]
struct PriceOf {
    article: u32,
}
impl Request for PriceOf {
    type Response = u64;
    const KIND: Kind = Kind::Query;
    fn repeat(&self) -> Option<Self> {
        Some(self.clone())
    }
}

async fn price_of(asked: PriceOf) -> Result<u64, BoxError> {
    Ok(u64::from(asked.article) * 125)
}

#[derive(Deserialize)]
struct PlaceOrder {
    article: u32,
    count: u32,
}
impl Request for PlaceOrder {
    type Response = Receipt;
}

#[derive(Serialize)]
struct Receipt {
    cents: u64,
}

#[derive(Serialize, Deserialize)]
struct OrderPlaced {
    article: u32,
    count: u32,
}
impl Notification for OrderPlaced {}

#[derive(Clone, Deserialize)]
struct Ticks {
    #[serde(default)]
    from: u64,
    count: u64,
    /// Milliseconds from one to the next.
    #[serde(default = "ten")]
    each: u64,
}

fn ten() -> u64 {
    10
}

impl StreamRequest for Ticks {
    type Item = u64;
    fn resume(&self, position: u64) -> Option<Self> {
        Some(Ticks { from: self.from + position, count: self.count.checked_sub(position)?, ..*self })
    }
}

/// What the service is made of.
#[derive(Clone)]
struct App {
    mediator: Mediator,
    health: HealthBoard,
}

impl App {
    fn new(broker: Arc<dyn Broker>) -> Result<Self, BoxError> {
        let health = HealthBoard::default();
        let memory = ResourcePreset::Balanced.memory_probed(process_memory);
        let budget = memory.clone();
        health.component(
            "memory",
            move || {
                if budget.is_short() { Severity::Unhealthy } else { Severity::Healthy }
            },
        );
        // The order's handler asks and tells through a mediator of its own: nothing goes round in a circle.
        let prices = Mediator::builder()
            .behaviour_of(Cache::new(Memo::new(10_000).age(Duration::from_secs(60)), |asked: &PriceOf| {
                asked.article
            }))
            .request(price_of)
            .notification_handler(to_broker::<OrderPlaced, _>(broker, Address::queue("orders"), codec::Json))
            .build()?;
        let place_order = async |inner: Mediator, order: PlaceOrder| {
            let PlaceOrder { article, count } = order;
            let price = inner.send(PriceOf { article }).await?;
            inner.publish(OrderPlaced { article, count }).await.into_result()?;
            Ok::<_, BoxError>(Receipt { cents: price * u64::from(count) })
        };
        let mediator = Mediator::builder()
            .profile(&Profile::within(Service::Web, Environment::Production, memory.clone()))
            .behaviour_of(Check::valid(|order: &PlaceOrder| match order.count {
                0 => Err("an order is of at least one piece".into()),
                _ => Ok(()),
            }))
            .stream_package(&StreamPackage::resilience(Resume::Position))
            .stream_behaviour(HealthPreset::Development.behaviour(&memory).board(&health))
            .request_with(prices.clone(), async |inner: Mediator, asked: PriceOf| inner.send(asked).await)
            .request_with(prices.clone(), place_order)
            .notification_with(prices, async |inner: Mediator, told: Arc<OrderPlaced>| {
                let OrderPlaced { article, count } = *told;
                inner.publish(OrderPlaced { article, count }).await.into_result()
            })
            .stream(async |asked: Ticks| {
                let ticks = futures_util::stream::iter(asked.from..asked.from + asked.count).then(
                    move |n| async move {
                        tokio::time::sleep(Duration::from_millis(asked.each)).await;
                        Ok::<_, Error>(n)
                    },
                );
                Ok::<_, Error>(Pipe::from_stream(Box::pin(ticks)))
            })
            .json::<PriceOf>()
            .json::<PlaceOrder>()
            .json_notification::<OrderPlaced>()
            .json_stream::<Ticks>()
            .build()?;
        Ok(App { mediator, health })
    }

    fn router(self) -> Router {
        Router::new()
            .route("/", get(async |State(app): State<App>| app.mediator.describe().to_string()))
            .route("/requests/{name}", post(request))
            .route("/notifications/{name}", post(notification))
            .route("/streams/{name}", get(events))
            .route("/sockets/{name}", get(socket))
            .route("/health", get(health))
            .route(
                "/metrics",
                get(async |State(app): State<App>| app.mediator.metrics().snapshot().to_string()),
            )
            .with_state(self)
    }
}

/// A call that failed, as HTTP says it.
struct Refused(Error);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = match self.0.kind() {
            ErrorKind::NoHandler => StatusCode::NOT_FOUND,
            ErrorKind::Malformed | ErrorKind::Invalid => StatusCode::UNPROCESSABLE_ENTITY,
            ErrorKind::Denied => StatusCode::FORBIDDEN,
            ErrorKind::Throttled { .. } | ErrorKind::Full => StatusCode::TOO_MANY_REQUESTS,
            ErrorKind::CircuitOpen { .. } | ErrorKind::Shed => StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::TimedOut { .. } => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let body = Json(json!({"kind": self.0.kind().word(), "error": millstream::flow::chain(&self.0)}));
        match self.0.kind().retry_after() {
            Some(after) => {
                (status, [(header::RETRY_AFTER, after.as_secs().max(1).to_string())], body).into_response()
            }
            None => (status, body).into_response(),
        }
    }
}

/// A body is JSON, whatever its type says: `curl -d` says it is a form.
fn body(text: &str) -> Result<Value, (StatusCode, String)> {
    serde_json::from_str(text)
        .map_err(|error| (StatusCode::BAD_REQUEST, format!("the body is not JSON: {error}")))
}

async fn request(
    State(app): State<App>,
    Path(name): Path<String>,
    headers: HeaderMap,
    text: String,
) -> Response {
    let context = match headers
        .get("x-correlation-id")
        .and_then(|id| u64::from_str_radix(id.to_str().ok()?, 16).ok())
    {
        Some(id) => Context::new().correlation(id),
        None => Context::new(),
    };
    match body(&text) {
        Err(refused) => refused.into_response(),
        Ok(value) => match app.mediator.send_json_in(&context, &name, value).await {
            Ok(response) => Json(response).into_response(),
            Err(error) => Refused(error).into_response(),
        },
    }
}

async fn notification(State(app): State<App>, Path(name): Path<String>, text: String) -> Response {
    match body(&text) {
        Err(refused) => refused.into_response(),
        Ok(value) => match app.mediator.publish_json(&name, value).await {
            Err(error) => Refused(error).into_response(),
            Ok(published) => match published.into_result() {
                Ok(()) => StatusCode::ACCEPTED.into_response(),
                Err(error) => {
                    (StatusCode::INTERNAL_SERVER_ERROR, millstream::flow::chain(&error)).into_response()
                }
            },
        },
    }
}

#[derive(Deserialize)]
struct Asked {
    request: String,
}

async fn events(State(app): State<App>, Path(name): Path<String>, Query(asked): Query<Asked>) -> Response {
    let value = match body(&asked.request) {
        Ok(value) => value,
        Err(refused) => return refused.into_response(),
    };
    match app.mediator.stream_json(&name, value).await {
        Err(error) => Refused(error).into_response(),
        // The client's reading is the demand; when it goes away the stream is dropped, and its handler with it.
        Ok(stream) => Sse::new(StreamExt::map(stream, |item| {
            Ok::<_, Infallible>(match item {
                Ok(item) => Event::default().data(item.to_string()),
                Err(error) => Event::default().event("error").data(millstream::flow::chain(&error)),
            })
        }))
        .into_response(),
    }
}

async fn socket(
    State(app): State<App>,
    Path(name): Path<String>,
    Query(asked): Query<Asked>,
    upgrade: WebSocketUpgrade,
) -> Response {
    let value = match body(&asked.request) {
        Ok(value) => value,
        Err(refused) => return refused.into_response(),
    };
    match app.mediator.stream_json(&name, value).await {
        Err(error) => Refused(error).into_response(),
        Ok(mut stream) => upgrade.on_upgrade(async move |mut socket: WebSocket| {
            loop {
                let item = tokio::select! {
                    item = stream.next() => item,
                    // Pings are answered while it is read. A client that leaves is noticed at once, however long the next item takes.
                    said = socket.recv() => match said {
                        Some(Ok(Frame::Close(_)) | Err(_)) | None => return, // and the stream is dropped
                        Some(Ok(_)) => continue,
                    },
                };
                let text = match item {
                    None => break,
                    Some(Ok(item)) => item.to_string(),
                    Some(Err(error)) => json!({"error": millstream::flow::chain(&error)}).to_string(),
                };
                if socket.send(Frame::Text(text.into())).await.is_err() {
                    return;
                }
            }
            let _ = socket.send(Frame::Close(None)).await;
        }),
    }
}

async fn health(State(app): State<App>) -> Response {
    let (open, ended) = (app.health.open(), app.health.ended());
    let status = if app.health.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let components: BTreeMap<_, _> = app.health.components().into_iter().collect();
    let ready = status == StatusCode::OK;
    (status, Json(json!({"ready": ready, "components": components, "open": open, "ended": ended})))
        .into_response()
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let broker = millstream::open("memory:").await?; // or "embedded:some/directory": durable
    broker.declare_queue(Queue::durable("orders")).await?;
    let router = App::new(broker.clone())?.router();
    let address = std::env::args().nth(1);
    let listener = TcpListener::bind(address.as_deref().unwrap_or("127.0.0.1:0")).await?;
    let local = listener.local_addr()?;
    eprintln!("http://{local}");
    let server = axum::serve(listener, router);
    if address.is_some() {
        server.with_graceful_shutdown(async { _ = tokio::signal::ctrl_c().await }).await?;
    } else {
        tokio::select! {
            ended = server.into_future() => ended?,
            asked = client::ask(local) => asked?,
        }
        let orders = broker.stats("orders").await?.ready;
        if orders != 2 {
            return Err(format!("{orders} orders went to the broker instead of 2").into());
        }
    }
    broker.close().await?;
    Ok(())
}
