//! A change feed by HTTP: changes are uploaded as lines of JSON, sorted out by a flow, kept in a stream, followed over a WebSocket and as
//! server-sent events, and exported to a file. The example is its own client, and ends by itself.
//!
//! ```text
//! POST /changes ─► flow: records ─► filter ─► stream `prices` ─┬─► GET /feed (events, WebSocket), from where the client was
//!                                                              └─► flow ─► prices.ndjson
//! ```

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use http::{Request, Response, StatusCode};
use millstream_flow::{BoxError, Pipe};
use millstream_gateway::{Body, Gateway, Route, Serve, Served, Settings, flow};
use millstream_message::{Broker, BrokerUrl, Message, StreamFrom, StreamSpec};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[derive(Clone, Debug, Deserialize, Serialize)]
struct Change {
    item: String,
    price: u32,
}

/// Takes an upload of any length, a line at a time, and answers when all of it is stored.
async fn take(broker: Arc<dyn Broker>, request: Request<Body>) -> Response<Body> {
    let mut stored = 0;
    let changes = flow::records::<Change>(request.into_body(), 10_000)
        .filter(|change| change.as_ref().map_or(true, |change| change.price > 0));
    let mut changes = std::pin::pin!(changes);
    while let Some(change) = changes.next().await {
        let text = match change {
            Ok(change) => serde_json::to_string(&change).expect("a change is JSON"),
            Err(error) => return answer(StatusCode::BAD_REQUEST, format!("after {stored}: {error}\n")),
        };
        if let Err(error) = broker.append("prices", vec![Message::new(text)]).await {
            return answer(StatusCode::SERVICE_UNAVAILABLE, format!("after {stored}: {error}\n"));
        }
        stored += 1;
    }
    answer(StatusCode::OK, format!("{stored} changes\n"))
}

fn answer(status: StatusCode, text: String) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response
}

/// The messages of a stream, from the first.
async fn messages(broker: &Arc<dyn Broker>) -> Result<impl Stream<Item = Message> + use<>, BoxError> {
    let reader = broker.read("prices", StreamFrom::First).await?;
    Ok(stream::unfold(reader, async |mut reader| {
        let item = reader.next_chunk(1).await.ok()?.pop()?;
        Some((item.message, reader))
    }))
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let broker = millstream_embedded::open(&BrokerUrl::Memory).await?;
    broker.declare_stream(StreamSpec::new("prices")).await?;
    let taking = broker.clone();
    let server = Gateway::new(Settings::default())
        .route(Route::handler("changes", move |request| take(taking.clone(), request)).path("/changes"))
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

    // The export is a flow of the same stream.
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("prices.ndjson");
    let mut file = std::fs::File::create(&path)?;
    let (written, _) = Pipe::from_stream(messages(&broker).await?.boxed())
        .take(2)
        .fold(0, move |written, message: Message| {
            let line = [&message.body()[..], b"\n"].concat();
            *written += file.write(&line).expect("the file takes it");
        })
        .await?;
    assert_eq!(std::fs::read_to_string(&path)?.len(), written);

    drop(events);
    socket.close(None).await?;
    let drained = server.shutdown(Duration::from_secs(10)).await;
    assert_eq!(drained.leases_left, 0);
    Ok(())
}
