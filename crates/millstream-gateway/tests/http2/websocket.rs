//! WebSockets over HTTP/2 (RFC 8441).

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, SinkExt, StreamExt};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use millstream_gateway::websocket::{self, WebSocketMessage};
use millstream_gateway::{Body, Gateway, Limits, Route, Settings, Target, Timeouts, Upstreams};
use millstream_resilience::BreakerSettings;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::support::*;

/// Asks for another protocol over a stream; the answer, and the stream if it is a change.
async fn ask(to: SocketAddr, protocol: &'static str) -> Response<Incoming> {
    let stream = TcpStream::connect(to).await.expect("connected");
    stream.set_nodelay(true).expect("a socket");
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, mut connection) = within(handshake).await.expect("HTTP/2");
    // The server's settings say that it knows how. Nothing wakes whoever waits for that.
    within(poll_fn(|cx| {
        assert!(connection.poll_unpin(cx).is_pending(), "the connection ended");
        if connection.is_extended_connect_protocol_enabled() {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }))
    .await;
    tokio::spawn(connection);
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = "http://h/ws?a=b".parse().expect("a target");
    request.headers_mut().insert("sec-websocket-version", "13".parse().expect("a value"));
    request.extensions_mut().insert(hyper::ext::Protocol::from_static(protocol));
    within(sender.send_request(request)).await.expect("an answer")
}

/// An upstream's connection that has read a request's head.
async fn asked(upstream: &TcpListener) -> (BufReader<TcpStream>, String) {
    let (stream, _) = within(upstream.accept()).await.expect("accepted");
    let (mut stream, mut head) = (BufReader::new(stream), String::new());
    while !head.ends_with("\r\n\r\n") {
        within(stream.read_line(&mut head)).await.expect("a line");
    }
    (stream, head)
}

/// The answer that accepts the WebSocket of this head, with more lines.
fn accepting(head: &str, lines: &str) -> String {
    let key = head.lines().find_map(|line| line.strip_prefix("sec-websocket-key: ")).expect("a key");
    let accept = derive_accept_key(key.as_bytes());
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {accept}\r\n{lines}\r\n"
    )
}

async fn upstream_and_gateway() -> (TcpListener, millstream_gateway::Server) {
    let upstream = TcpListener::bind(any()).await.expect("a port");
    let url = format!("http://{}", upstream.local_addr().expect("an address"));
    let timeouts = Timeouts {
        tunnel: Duration::from_secs(20),
        // Whoever has a tunnel is not idle.
        keep_alive: Duration::from_secs(1),
        idle: Duration::from_secs(1),
        ..Timeouts::default()
    };
    let gateway = proxy(&[url], Settings { timeouts, ..Settings::default() }).await;
    (upstream, gateway)
}

#[tokio::test(start_paused = true)]
async fn a_websocket_over_a_stream_is_one_over_a_connection_to_the_upstream() {
    let (upstream, gateway) = upstream_and_gateway().await;
    let asking = tokio::spawn(ask(gateway.local_addr(), "websocket"));
    let (mut up, head) = asked(&upstream).await;
    assert!(head.starts_with("GET /ws?a=b HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("\r\nhost: h\r\n"), "{head}");
    assert!(head.contains("connection: upgrade\r\nupgrade: websocket\r\n"), "{head}");
    let answer = accepting(&head, "Sec-WebSocket-Protocol: p\r\n") + "first";
    up.write_all(answer.as_bytes()).await.expect("written");
    let answer = within(asking).await.expect("no panic");
    assert_eq!(
        (answer.status(), &answer.headers()["sec-websocket-protocol"]),
        (StatusCode::OK, &"p".parse().unwrap())
    );
    assert!(!answer.headers().contains_key("sec-websocket-accept"));
    let mut client = TokioIo::new(within(hyper::upgrade::on(answer)).await.expect("a stream"));
    let mut word = [0; 5];
    within(client.read_exact(&mut word)).await.expect("a word");
    assert_eq!(&word, b"first");
    client.write_all(b"there").await.expect("written");
    within(up.read_exact(&mut word)).await.expect("a word");
    assert_eq!(&word, b"there");
    let started = tokio::time::Instant::now();
    // It is a tunnel like any other: counted, and not silent for ever.
    let streams = gateway.snapshot().streams;
    assert_eq!((streams[2].route.as_str(), streams[2].bytes), ("(tunnels)", 5));
    let mut rest = Vec::new();
    let _ = within(up.read_to_end(&mut rest)).await;
    assert!(started.elapsed() > Duration::from_secs(10), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_dropped_ends_the_upstreams_connection() {
    let (upstream, gateway) = upstream_and_gateway().await;
    let asking = tokio::spawn(ask(gateway.local_addr(), "websocket"));
    let (mut up, head) = asked(&upstream).await;
    up.write_all(accepting(&head, "").as_bytes()).await.expect("written");
    let answer = within(asking).await.expect("no panic");
    drop(within(hyper::upgrade::on(answer)).await.expect("a stream"));
    let mut rest = Vec::new();
    let _ = within(up.read_to_end(&mut rest)).await;
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_does_not_change_the_protocol_never_looks_as_if_it_had() {
    let unaccepted = "101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket";
    for (answer, code) in [("200 OK", 501), ("426 Upgrade Required", 426), (unaccepted, 502)] {
        let (upstream, gateway) = upstream_and_gateway().await;
        let asking = tokio::spawn(ask(gateway.local_addr(), "websocket"));
        let (mut up, _) = asked(&upstream).await;
        up.write_all(format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n").as_bytes())
            .await
            .expect("written");
        assert_eq!(within(asking).await.expect("no panic").status().as_u16(), code);
    }
}

/// A server that speaks HTTP/2, answers everything, and carries no WebSockets.
async fn http2_without_websockets() -> SocketAddr {
    let listener = TcpListener::bind(any()).await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("accepted");
            stream.set_nodelay(true).expect("a socket");
            let service =
                service_fn(async |_| Ok::<_, std::convert::Infallible>(Response::new(Empty::<Bytes>::new())));
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
        }
    });
    address
}

/// A WebSocket that says everything louder; the headers of the request that began it are its first word.
fn shout(request: Request<Body>) -> std::future::Ready<Response<Body>> {
    let heard = format!("{} {:?}", request.uri(), request.headers().get("sec-websocket-protocol"));
    std::future::ready(websocket::accept(&request, async |mut socket| {
        let _ = socket.send(WebSocketMessage::text(heard)).await;
        while let Some(Ok(WebSocketMessage::Text(text))) = socket.next().await {
            if socket.send(WebSocketMessage::text(text.to_uppercase())).await.is_err() {
                break;
            }
        }
    }))
}

/// Talks over it to the end.
async fn talk<S: AsyncRead + AsyncWrite + Unpin>(mut socket: WebSocketStream<S>, first: &str) {
    let hear = async |expected: &str, socket: &mut WebSocketStream<S>| {
        let heard = within(socket.next()).await.expect("a message").expect("no error");
        assert_eq!(heard, WebSocketMessage::text(expected));
    };
    hear(first, &mut socket).await;
    for _ in 0..3 {
        within(socket.send(WebSocketMessage::text("hello"))).await.expect("sent");
        hear("HELLO", &mut socket).await;
    }
    within(socket.close(None)).await.expect("closed");
}

#[tokio::test]
async fn a_websocket_goes_to_an_upstream_over_http_2_from_clients_of_either_version() {
    let handler = Route::handler("shout", shout);
    // Each has a connection of its own, so that one stream of each is enough.
    let limits = Limits { streams: 1, ..Limits::default() };
    let settings = Settings { limits, ..Settings::default() };
    let upstream = Gateway::new(settings).route(handler).listen(any()).await.expect("a port");
    let gateway = proxy(&[format!("h2c://{}/base", upstream.local_addr())], Settings::default()).await;
    let kept = ask(gateway.local_addr(), "websocket").await;
    assert_eq!(kept.status(), StatusCode::OK);
    let mut sender = http2::<Empty<Bytes>>(gateway.local_addr()).await;
    let request = Request::get("http://h/").body(Empty::new()).expect("a request");
    let plain = within(sender.send_request(request)).await.expect("an answer");
    assert_eq!(plain.status(), StatusCode::UPGRADE_REQUIRED);
    let answer = ask(gateway.local_addr(), "websocket").await;
    assert_eq!(answer.status(), StatusCode::OK);
    let stream = TokioIo::new(within(hyper::upgrade::on(answer)).await.expect("a stream"));
    let socket = WebSocketStream::from_raw_socket(stream, Role::Client, None).await;
    talk(socket, "http://h/base/ws?a=b None").await;

    let stream = TcpStream::connect(gateway.local_addr()).await.expect("connected");
    let mut request = "ws://h/ws".into_client_request().expect("a request");
    request.headers_mut().insert("sec-websocket-protocol", "p".parse().expect("a value"));
    // It checks the answer that accepts its key.
    let asking = tokio_tungstenite::client_async(request, stream);
    let error = within(asking).await.expect_err("the server chose no protocol");
    assert!(error.to_string().contains("protocol"), "{error}");
    let stream = TcpStream::connect(gateway.local_addr()).await.expect("connected");
    let (socket, _) =
        within(tokio_tungstenite::client_async("ws://h/ws", stream)).await.expect("a WebSocket");
    talk(socket, "http://h/base/ws None").await;

    let server = &gateway.snapshot().upstreams[0];
    assert_eq!((server.connected, server.reused, server.failed), (5, 0, 0));
    drop(kept);
    let ended = async {
        while gateway.snapshot().upstreams[0].in_flight > 0 {
            tokio::task::yield_now().await;
        }
    };
    within(ended).await;
    for server in [gateway, upstream] {
        assert_eq!(within(server.shutdown(LIMIT)).await.leases_left, 0);
    }
}

#[tokio::test]
async fn what_an_upstream_answers_over_http_2_instead_is_passed_on() {
    let handler = Route::handler("no", |_: Request<Body>| {
        let answer = Response::builder().status(StatusCode::FORBIDDEN).body(Body::from("no"));
        std::future::ready(answer.expect("an answer"))
    });
    let upstream = Gateway::new(Settings::default()).route(handler).listen(any()).await.expect("a port");
    let gateway = proxy(&[format!("h2c://{}", upstream.local_addr())], Settings::default()).await;
    let answer = ask(gateway.local_addr(), "websocket").await;
    assert_eq!(answer.status(), StatusCode::FORBIDDEN);
    assert_eq!(all(answer).await, "no");
    let stream = TcpStream::connect(gateway.local_addr()).await.expect("connected");
    let error = within(tokio_tungstenite::client_async("ws://h/ws", stream)).await.expect_err("403");
    assert!(error.to_string().contains("403"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_rightly_does_not_change_the_protocol_is_not_left_alone_for_it() {
    let upstream = echo_server().await;
    let unable = http2_without_websockets().await;
    // The gateway that is asked over HTTP/2 carries them, and says itself that its handler does not.
    for (scheme, to) in [("http", upstream.local_addr()), ("h2c", upstream.local_addr()), ("h2c", unable)] {
        let url = format!("{scheme}://{to}").parse().expect("a url");
        let servers = Upstreams::new([url]).breaker(&BreakerSettings::default().calls_min(3));
        let route = Route::to("up", Target::Proxy(Arc::new(servers)));
        let timeouts = Timeouts { connect: Duration::from_secs(5), ..Timeouts::default() };
        let settings = Settings { timeouts, ..Settings::default() };
        let gateway = Gateway::new(settings).route(route).listen(any()).await.expect("a port");
        for _ in 0..6 {
            assert_eq!(ask(gateway.local_addr(), "websocket").await.status(), 501, "{scheme}");
        }
        assert!(gateway.snapshot().upstreams[0].healthy, "{scheme}");
        let mut sender = http2::<Empty<Bytes>>(gateway.local_addr()).await;
        let request = Request::get("http://h/").body(Empty::new()).expect("a request");
        assert_eq!(within(sender.send_request(request)).await.expect("an answer").status(), 200, "{scheme}");
    }
}

#[tokio::test(start_paused = true)]
async fn other_protocols_are_refused() {
    let (_upstream, gateway) = upstream_and_gateway().await;
    assert_eq!(ask(gateway.local_addr(), "connect-udp").await.status(), StatusCode::NOT_IMPLEMENTED);
}

#[tokio::test]
async fn a_handler_talks_over_a_stream_as_over_a_connection() {
    let gateway = Gateway::new(Settings::default()).route(Route::handler("shout", shout));
    let gateway = gateway.listen(any()).await.expect("a port");
    let answer = ask(gateway.local_addr(), "websocket").await;
    assert_eq!(answer.status(), StatusCode::OK);
    let stream = TokioIo::new(within(hyper::upgrade::on(answer)).await.expect("a stream"));
    talk(WebSocketStream::from_raw_socket(stream, Role::Client, None).await, "http://h/ws?a=b None").await;
    let drained = within(gateway.shutdown(Duration::ZERO)).await;
    assert_eq!(drained.leases_left, 0);
}
