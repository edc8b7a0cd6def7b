//! Connections that change their protocol.

use std::sync::Arc;

use http::{Request, Response, StatusCode};
use millstream_gateway::{Body, Gateway, Limits, Route, Settings, Timeouts, Upgrade};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::*;

const ASKED: &str = "GET /ws HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
                     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

#[tokio::test]
async fn a_websocket_goes_through_and_each_side_closes_by_itself() {
    let scene = scene(Settings::default()).await;
    let (mut client, mut up, head) = scene.asked(ASKED).await;
    assert!(head.ends_with("connection: upgrade\r\nupgrade: websocket\r\n\r\n"), "{head}");
    assert!(head.contains("sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ=="));
    // The first frame comes with the answer.
    up.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nfirst")
        .await;
    let head = client.head().await;
    assert!(
        status(&head) == 101 && head.contains("upgrade: websocket") && head.contains("connection: upgrade"),
        "{head}"
    );
    assert_eq!(client.bytes(5).await, b"first");
    client.send("there").await;
    assert_eq!(up.bytes(5).await, b"there");
    client.close_sending().await;
    up.ended().await;
    up.send("late").await;
    assert_eq!(client.bytes(4).await, b"late");
    drop(up);
    client.ended().await;
    scene.end().await;
}

#[tokio::test]
async fn an_upstream_may_decline_to_change() {
    let scene = scene(Settings::default()).await;
    let (mut client, mut up, _) = scene.asked(ASKED).await;
    up.send("HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(status(&client.head().await), 426);
    client.send(GET).await;
    up.head().await;
    scene.end().await;
}

#[tokio::test]
async fn a_change_to_http_2_is_not_passed_on_since_requests_would_pass_unseen() {
    let scene = scene(Settings::default()).await;
    let asked = ASKED.replace("websocket", "h2c");
    let (_client, _up, head) = scene.asked(&asked).await;
    assert!(!head.contains("upgrade"), "{head}");
    scene.end().await;
}

#[tokio::test]
async fn a_handler_may_take_the_connection() {
    async fn shout(request: Request<Body>) -> Response<Body> {
        let upgrade = request.extensions().get::<Upgrade>().expect("an upgrade").clone();
        upgrade.on_upgrade(async move |mut connection| {
            let mut word = [0; 5];
            connection.read_exact(&mut word).await.expect("a word");
            connection.write_all(&word.to_ascii_uppercase()).await.expect("written");
        });
        let mut response = Response::default();
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        response.headers_mut().insert("upgrade", "shout".parse().expect("a value"));
        response.headers_mut().insert("connection", "upgrade".parse().expect("a value"));
        response
    }
    let server = Gateway::new(Settings::default())
        .route(Route::handler("shout", shout))
        .listen("127.0.0.1:0".parse().expect("an address"))
        .await
        .expect("a port");
    let mut client = connect(server.local_addr()).await;
    client.send("GET / HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: shout\r\n\r\nhello").await;
    assert_eq!(status(&client.head().await), 101);
    assert_eq!(client.bytes(5).await, b"HELLO");
    client.ended().await;
}

#[tokio::test]
async fn who_waits_for_a_connection_that_never_changes_is_let_go() {
    let counted = Arc::new(());
    let held = counted.clone();
    let decline = move |request: Request<Body>| {
        let held = held.clone();
        let upgrade = request.extensions().get::<Upgrade>().expect("an upgrade").clone();
        // Whoever talks may well want to know what was asked.
        upgrade.on_upgrade(async move |_| drop((request, held)));
        std::future::ready(Response::default())
    };
    let server = Gateway::new(Settings::default())
        .route(Route::handler("decline", decline))
        .listen("127.0.0.1:0".parse().expect("an address"))
        .await
        .expect("a port");
    let mut client = connect(server.local_addr()).await;
    client.send(ASKED).await;
    assert_eq!(status(&client.head().await), 200);
    within("the end of who waits", async {
        // This one and the handler's are left.
        while Arc::strong_count(&counted) > 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_in_a_handlers_hands_counts_against_the_limits() {
    let hold = |request: Request<Body>| {
        let upgrade = request.extensions().get::<Upgrade>().expect("an upgrade").clone();
        upgrade.on_upgrade(async move |mut connection| {
            let mut word = [0; 5];
            // A client that sends nothing for as long as a tunnel may be silent is an error here.
            let read = connection.read_exact(&mut word).await;
            let _ = connection.write_all(if read.is_ok() { b"spoke" } else { b"quiet" }).await;
        });
        let mut response = Response::default();
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        std::future::ready(response)
    };
    let limits = Limits { connections: 1, ..Limits::default() };
    let timeouts = Timeouts { tunnel: SHORT, ..Timeouts::default() };
    let server = Gateway::new(Settings { limits, timeouts, ..Settings::default() })
        .route(Route::handler("hold", hold))
        .listen("127.0.0.1:0".parse().expect("an address"))
        .await
        .expect("a port");
    let switch = "GET / HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n";
    let mut first = connect(server.local_addr()).await;
    first.send(switch).await;
    assert_eq!(status(&first.head().await), 101);
    let mut second = connect(server.local_addr()).await;
    second.send(switch).await;
    let snapshot = server.snapshot();
    assert_eq!((snapshot.connections, snapshot.connections_open), (1, 1));
    // The second is served when the first was silent for too long, and not before.
    assert_eq!(first.bytes(5).await, b"quiet");
    first.ended().await;
    assert_eq!(status(&second.head().await), 101);
    second.send("hello").await;
    assert_eq!(second.bytes(5).await, b"spoke");
    second.ended().await;
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_that_is_silent_for_too_long_ends() {
    let timeouts = Timeouts { tunnel: SHORT, ..Timeouts::default() };
    let scene = scene(Settings { timeouts, ..Settings::default() }).await;
    let (mut client, mut up, _) = scene.asked(ASKED).await;
    up.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").await;
    client.head().await;
    client.send("there").await;
    assert_eq!(up.bytes(5).await, b"there");
    up.ended().await;
    client.ended().await;
    scene.end().await;
}

#[tokio::test]
async fn what_an_upstream_requires_instead_is_told() {
    let scene = scene(Settings::default()).await;
    let (mut client, mut up, _) = scene.asked(GET).await;
    let answer = "426 Upgrade Required\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 0";
    up.send(format!("HTTP/1.1 {answer}\r\n\r\n")).await;
    let head = client.head().await;
    assert!(head.contains("upgrade: websocket\r\n") && head.contains("connection: upgrade\r\n"), "{head}");
    // Of any other answer it is nothing that concerns the client.
    client.send(GET).await;
    up.head().await;
    up.send("HTTP/1.1 200 OK\r\nUpgrade: h2c\r\nConnection: Upgrade\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(client.head().await, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
    scene.end().await;
}
