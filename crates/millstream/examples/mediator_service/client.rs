//! What a client would do, without one.

use std::net::SocketAddr;
use std::time::Duration;

use millstream::flow::BoxError;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Asks for everything once, and looks at the answers.
pub(crate) async fn ask(server: SocketAddr) -> Result<(), BoxError> {
    let price = http(server, "POST", "/requests/PriceOf", r#"{"article": 7}"#).await?;
    expect(&price, &["200 OK", "875"])?;
    let order = r#"{"article": 7, "count": 2}"#;
    expect(&http(server, "POST", "/requests/PlaceOrder", order).await?, &["200 OK", r#"{"cents":1750}"#])?;
    expect(&http(server, "POST", "/notifications/OrderPlaced", order).await?, &["202 Accepted"])?;
    let invalid = http(server, "POST", "/requests/PlaceOrder", r#"{"article": 7, "count": 0}"#).await?;
    expect(&invalid, &["422 Unprocessable", "an order is of at least one piece"])?;
    expect(&http(server, "POST", "/requests/Nothing", "{}").await?, &["404 Not Found", "nobody handles it"])?;
    let query = "request=%7B%22count%22%3A3%7D";
    let events = http(server, "GET", &format!("/streams/Ticks?{query}"), "").await?;
    expect(&events, &["text/event-stream", "data: 0", "data: 1", "data: 2"])?;
    let frames = websocket(server, &format!("/sockets/Ticks?{query}")).await?;
    if frames != ["0", "1", "2"] {
        return Err(format!("the socket said {frames:?}").into());
    }
    expect(
        &http(server, "GET", "/health", "").await?,
        &["200 OK", r#""ready":true"#, r#""memory":"healthy""#, r#""items":3"#],
    )?;
    expect(
        &http(server, "GET", "/metrics", "").await?,
        &[
            "mediator_requests_total{type=\"PlaceOrder\",status=\"ok\",kind=\"command\"} 1",
            "mediator_requests_total{type=\"PlaceOrder\",status=\"invalid\",kind=\"command\"} 1",
            "mediator_stream_items_total{type=\"Ticks\"} 6",
        ],
    )?;
    gone(server).await?;
    let table = http(server, "GET", "/", "").await?;
    expect(&table, &["PlaceOrder", "command"])?;
    eprintln!("{}", table.split_once("\r\n\r\n").map_or(&*table, |(_, body)| body));
    Ok(())
}

/// A client that leaves while its stream has nothing to say for an hour: the stream ends with it.
async fn gone(server: SocketAddr) -> Result<(), BoxError> {
    let query = "request=%7B%22count%22%3A1%2C%22each%22%3A3600000%7D";
    drop(upgraded(server, &format!("/sockets/Ticks?{query}")).await?);
    for _ in 0..3000 {
        let metrics = http(server, "GET", "/metrics", "").await?;
        if metrics.contains("mediator_streams_total{type=\"Ticks\",status=\"cancelled\"} 1") {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Err("the stream of a client that left is still open".into())
}

fn expect(answer: &str, parts: &[&str]) -> Result<(), BoxError> {
    match parts.iter().find(|part| !answer.contains(**part)) {
        Some(missing) => Err(format!("there is no {missing} in {answer}").into()),
        None => Ok(()),
    }
}

async fn http(server: SocketAddr, method: &str, path: &str, body: &str) -> Result<String, BoxError> {
    let mut socket = TcpStream::connect(server).await?;
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: {server}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
    );
    socket.write_all((head + body).as_bytes()).await?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// A socket after its handshake.
async fn upgraded(server: SocketAddr, path: &str) -> Result<TcpStream, BoxError> {
    let mut socket = TcpStream::connect(server).await?;
    let head = format!(
        "GET {path} HTTP/1.1\r\nhost: {server}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    socket.write_all(head.as_bytes()).await?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(socket.read_u8().await?);
    }
    expect(&String::from_utf8_lossy(&answer), &["101 Switching Protocols"])?;
    Ok(socket)
}

/// The text frames of a socket until it closes; short ones, as a server sends them.
async fn websocket(server: SocketAddr, path: &str) -> Result<Vec<String>, BoxError> {
    let mut socket = upgraded(server, path).await?;
    let mut texts = Vec::new();
    loop {
        let (kind, length) = (socket.read_u8().await?, socket.read_u8().await?);
        let mut text = vec![0; usize::from(length)];
        socket.read_exact(&mut text).await?;
        match kind {
            0x81 => texts.push(String::from_utf8(text)?),
            _ => return Ok(texts),
        }
    }
}
