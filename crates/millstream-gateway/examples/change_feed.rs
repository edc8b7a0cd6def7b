//! A change feed by HTTP: changes are uploaded as lines of JSON, sorted out by a flow, and told to a mediator, whose handlers keep them in a
//! stream, which is followed over a WebSocket and as server-sent events, and export them to a file. The example is its own client, and
//! ends by itself.
//!
//! ```text
//! POST /changes ─► flow: records ─► filter ─► mediator ─┬─► keep ─► stream `prices` ─► GET /feed (events, WebSocket), from where
//!                                                       └─► export ─► prices.ndjson               the client was
//! ```

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use http::{Request, Response, StatusCode};
use millstream_flow::BoxError;
use millstream_gateway::{Body, Gateway, Route, Serve, Served, Settings, flow};
use millstream_mediator::{Mediator, Notification, Publish, Timeout};
use millstream_message::{Broker, BrokerUrl, Message, StreamSpec};
use serde::{Deserialize, Serialize};
use tokio::fs::OpenOptions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[derive(Clone, Debug, Deserialize, Serialize)]
struct Change {
    item: String,
    price: u32,
}

impl Notification for Change {}

/// Appends a change to the stream that clients follow.
async fn keep(broker: Arc<dyn Broker>, change: Arc<Change>) -> Result<(), BoxError> {
    broker.append("prices", vec![Message::new(serde_json::to_string(&*change)?)]).await?;
    Ok(())
}

/// Appends a change to a file.
async fn export(path: PathBuf, change: Arc<Change>) -> Result<(), BoxError> {
    let mut file = OpenOptions::new().append(true).create(true).open(path).await?;
    file.write_all(format!("{}\n", serde_json::to_string(&*change)?).as_bytes()).await?;
    file.flush().await?;
    Ok(())
}

/// Takes an upload of any length, a line at a time, and answers when all of it was handled.
async fn take(mediator: Mediator, request: Request<Body>) -> Response<Body> {
    let mut handled = 0;
    let changes = flow::records::<Change>(request.into_body(), 10_000)
        .filter(|change| change.as_ref().map_or(true, |change| change.price > 0));
    let mut changes = std::pin::pin!(changes);
    while let Some(change) = changes.next().await {
        let change = match change {
            Ok(change) => change,
            Err(error) => return answer(StatusCode::BAD_REQUEST, format!("after {handled}: {error}\n")),
        };
        // The next line is not read before both handlers have done with this one.
        if let Err(error) = mediator.publish(change).await.into_result() {
            return answer(StatusCode::SERVICE_UNAVAILABLE, format!("after {handled}: {error}\n"));
        }
        handled += 1;
    }
    answer(StatusCode::OK, format!("{handled} changes\n"))
}

fn answer(status: StatusCode, text: String) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let broker = millstream_embedded::open(&BrokerUrl::Memory).await?;
    broker.declare_stream(StreamSpec::new("prices")).await?;
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("prices.ndjson");
    let mediator = Mediator::builder()
        .behaviour(Timeout::new(Duration::from_secs(5)))
        .notification_with(broker.clone(), keep)
        .notification_with(path.clone(), export)
        // What was not kept is not exported either.
        .publish::<Change>(Publish::sequential().stop_on_first())
        .build()?;
    let server = Gateway::new(Settings::default())
        .route(Route::handler("changes", move |request| take(mediator.clone(), request)).path("/changes"))
        .route(
            Route::handler("feed", Serve::new(broker.clone(), Served::Stream("prices".into()))).path("/feed"),
        )
        .listen("127.0.0.1:0".parse()?)
        .await?;
    let address = server.local_addr();

    // Somebody follows the feed over a WebSocket.
    let url = format!("ws://{address}/feed?from=first");
    let (mut socket, _) = tokio_tungstenite::client_async(url, TcpStream::connect(address).await?).await?;

    // Changes are uploaded, as `curl --data-binary @changes.ndjson` would.
    let lines =
        "{\"item\":\"tea\",\"price\":3}\n{\"item\":\"air\",\"price\":0}\n{\"item\":\"cake\",\"price\":5}\n";
    let head = format!(
        "POST /changes HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        lines.len()
    );
    let mut upload = TcpStream::connect(address).await?;
    upload.write_all(format!("{head}{lines}").as_bytes()).await?;
    let mut answer = String::new();
    upload.read_to_string(&mut answer).await?;
    assert!(answer.ends_with("2 changes\n"), "{answer}");

    for expected in [r#"{"item":"tea","price":3}"#, r#"{"item":"cake","price":5}"#] {
        let heard: serde_json::Value =
            serde_json::from_str(socket.next().await.ok_or("the feed ended")??.to_text()?)?;
        assert_eq!(heard["data"], expected);
    }

    // Another one has seen the first event before, and goes on after it.
    let mut events = TcpStream::connect(address).await?;
    events.write_all(b"GET /feed HTTP/1.1\r\nHost: h\r\nLast-Event-ID: 0\r\n\r\n").await?;
    let mut seen = String::new();
    while !seen.contains("\n\n") {
        let mut bytes = [0; 1024];
        let read = events.read(&mut bytes).await?;
        assert!(read > 0, "the events ended");
        seen.push_str(std::str::from_utf8(&bytes[..read])?);
    }
    assert!(seen.ends_with("id: 1\ndata: {\"item\":\"cake\",\"price\":5}\n\n\r\n"), "{seen}");

    let exported = "{\"item\":\"tea\",\"price\":3}\n{\"item\":\"cake\",\"price\":5}\n";
    assert_eq!(std::fs::read_to_string(&path)?, exported);

    drop(events);
    socket.close(None).await?;
    let drained = server.shutdown(Duration::from_secs(10)).await;
    assert_eq!(drained.leases_left, 0);
    Ok(())
}
