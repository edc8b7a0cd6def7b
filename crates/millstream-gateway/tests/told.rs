//! What the observer is told of what is no exchange like others: heads that are refused, and connections that change their protocol.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use http::Request;
use millstream_gateway::websocket::{self, WebSocketMessage};
use millstream_gateway::{
    Body, ExchangeReport, Gateway, Limits, Route, Server, Settings, StreamOutcome, Timeouts,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{Receiver, channel};

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future).await.expect("in time")
}

async fn observed(settings: Settings, route: Route) -> (Server, Receiver<ExchangeReport>) {
    let (tell, told) = channel(10);
    let gateway = Gateway::new(settings).route(route);
    let gateway = gateway.observe(move |report| tell.try_send(report.clone()).expect("few exchanges"));
    let server = gateway.listen("127.0.0.1:0".parse().expect("an address")).await.expect("a port");
    (server, told)
}

async fn connect(to: SocketAddr) -> TcpStream {
    within(TcpStream::connect(to)).await.expect("connected")
}

async fn next(told: &mut Receiver<ExchangeReport>) -> ExchangeReport {
    within(told.recv()).await.expect("a report")
}

fn shout() -> Route {
    Route::handler("shout", |request: Request<Body>| {
        std::future::ready(websocket::accept(&request, async |mut socket| {
            while let Some(Ok(WebSocketMessage::Text(text))) = socket.next().await {
                socket.send(WebSocketMessage::text(text.to_uppercase())).await.expect("sent");
            }
        }))
    })
}

#[tokio::test(start_paused = true)]
async fn a_head_that_is_refused_is_told_with_its_client_and_the_reason() {
    let limits = Limits { header_bytes: 1024, ..Limits::default() };
    let settings = Settings { limits, ..Settings::default() };
    let (server, mut told) = observed(settings, shout()).await;
    let large = format!("GET / HTTP/1.1\r\nHost: h\r\nA: {}\r\n\r\n", "a".repeat(2000));
    for (head, status) in [
        ("GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (&large, 431),
        // Its end does not come in time.
        ("GET / HTTP/1.1\r\n", 408),
    ] {
        let mut client = connect(server.local_addr()).await;
        client.write_all(head.as_bytes()).await.expect("written");
        let report = next(&mut told).await;
        assert_eq!(report.client, client.local_addr().expect("an address"));
        assert_eq!(report.status.map(|status| status.as_u16()), Some(status));
        assert!(report.failure.is_some_and(|failure| !failure.is_empty()));
        assert_eq!((report.method, report.path, report.route), (None, None, None));
    }
}

#[tokio::test]
async fn a_websocket_of_a_handler_is_counted_and_told_when_it_ends() {
    let (server, mut told) = observed(Settings::default(), shout()).await;
    let url = format!("ws://{}/ws?secret=1", server.local_addr());
    let stream = connect(server.local_addr()).await;
    let (mut socket, _) = within(tokio_tungstenite::client_async(url, stream)).await.expect("a WebSocket");
    within(socket.send(WebSocketMessage::text("hello"))).await.expect("sent");
    within(socket.next()).await.expect("a message").expect("no error");
    // While it lives: two bytes of a frame's head from the server, and four more of a mask from the client.
    let streams = server.snapshot().streams;
    let tunnels: Vec<_> = streams.iter().filter(|stream| stream.route == "(tunnels)").collect();
    assert_eq!((tunnels[0].bytes, tunnels[1].bytes), (11, 7));
    assert_eq!(server.snapshot().answers[0].by_class["1xx"], 1);
    assert!(told.try_recv().is_err(), "it has not ended");
    within(socket.close(None)).await.expect("closed");
    let report = next(&mut told).await;
    assert_eq!((report.path.as_deref(), report.route.as_deref()), (Some("/ws"), Some("shout")));
    assert_eq!(report.status.map(|status| status.as_u16()), Some(101));
    let (request, response) = (report.request.expect("a stream"), report.response.expect("a stream"));
    assert_eq!((request.outcome, response.outcome), (StreamOutcome::Complete, StreamOutcome::Complete));
    assert!(request.bytes > 11 && response.bytes >= 7, "with the closing: {request:?} {response:?}");
    assert!(request.chunks >= 2 && response.chunks >= 1 && report.duration >= request.duration);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_silent_on_a_websocket_or_takes_nothing_is_told_as_such() {
    let timeouts = Timeouts { tunnel: Duration::from_secs(5), ..Timeouts::default() };
    let settings = Settings { timeouts, ..Settings::default() };
    let (server, mut told) = observed(settings.clone(), shout()).await;
    let url = format!("ws://{}/", server.local_addr());
    let stream = connect(server.local_addr()).await;
    let (_silent, _) = within(tokio_tungstenite::client_async(&url, stream)).await.expect("a WebSocket");
    let report = next(&mut told).await;
    assert_eq!(report.request.expect("a stream").outcome, StreamOutcome::TimedOut);

    let flood = Route::handler("flood", |request: Request<Body>| {
        std::future::ready(websocket::accept(&request, async |mut socket| {
            while socket.send(WebSocketMessage::binary(vec![0; 1 << 20])).await.is_ok() {}
        }))
    });
    let (server, mut told) = observed(settings, flood).await;
    let url = format!("ws://{}/", server.local_addr());
    let stream = connect(server.local_addr()).await;
    let (_slow, _) = within(tokio_tungstenite::client_async(&url, stream)).await.expect("a WebSocket");
    let response = next(&mut told).await.response.expect("a stream");
    assert_eq!(response.outcome, StreamOutcome::TimedOut);
    // An acknowledgement that comes late makes room once more.
    assert!(response.backpressure_events >= 1, "{response:?}");
}

#[tokio::test]
async fn a_websocket_that_goes_through_is_told_when_it_ends() {
    let upstream = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", upstream.local_addr().expect("an address"));
    let (server, mut told) =
        observed(Settings::default(), Route::proxy("up", [url.parse().expect("a url")])).await;
    let mut client = connect(server.local_addr()).await;
    let asked = "GET /ws HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: a\r\n\r\n";
    client.write_all(asked.as_bytes()).await.expect("written");
    let (mut up, _) = within(upstream.accept()).await.expect("accepted");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(within(up.read_u8()).await.expect("a head"));
    }
    let answer =
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nback!!";
    up.write_all(answer.as_bytes()).await.expect("written");
    client.write_all(b"there").await.expect("written");
    let mut word = [0; 5];
    within(up.read_exact(&mut word)).await.expect("a word");
    assert!(told.try_recv().is_err(), "it has not ended");
    drop(up);
    drop(client);
    let report = next(&mut told).await;
    assert_eq!((report.path.as_deref(), report.upstream.as_deref()), (Some("/ws"), Some(&*url)));
    let (request, response) = (report.request.expect("a stream"), report.response.expect("a stream"));
    assert_eq!((request.bytes, response.bytes), (5, 6));
    assert!(told.try_recv().is_err(), "it is told once");
}

#[tokio::test]
async fn a_websocket_that_ends_with_the_gateway_is_told_as_cancelled() {
    let (server, mut told) = observed(Settings::default(), shout()).await;
    let url = format!("ws://{}/", server.local_addr());
    let stream = connect(server.local_addr()).await;
    let (_socket, _) = within(tokio_tungstenite::client_async(url, stream)).await.expect("a WebSocket");
    let monitor = server.monitor();
    within(server.shutdown(Duration::ZERO)).await;
    assert_eq!(next(&mut told).await.status.map(|status| status.as_u16()), Some(101));
    let streams = monitor().streams;
    let ended: Vec<_> = streams.iter().filter(|stream| stream.route == "(tunnels)").collect();
    assert_eq!((ended[0].ended["cancelled"], ended[1].ended["cancelled"]), (1, 1));
}

#[tokio::test]
async fn why_a_server_cannot_be_reached_is_told_to_those_who_run_the_gateway_alone() {
    // Where nobody listens: a port that was just given back.
    let free = TcpListener::bind("127.0.0.1:0").await.and_then(|socket| socket.local_addr()).expect("a port");
    let url = format!("http://{free}");
    let (server, mut told) =
        observed(Settings::default(), Route::proxy("up", [url.parse().expect("a url")])).await;
    let mut client = connect(server.local_addr()).await;
    client.write_all(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await.expect("written");
    let failure = next(&mut told).await.failure.expect("one");
    assert!(
        failure.starts_with(&format!("the upstream cannot be reached: {url}: Connection refused")),
        "{failure}"
    );
    let mut answer = String::new();
    within(client.read_to_string(&mut answer)).await.expect("text");
    assert!(answer.ends_with("\r\n\r\nthe upstream cannot be reached\n"), "{answer}");
}
