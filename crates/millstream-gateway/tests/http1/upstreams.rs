//! Servers behind a route: which one is asked, and over which connection.

use std::sync::Arc;
use std::time::Duration;

use millstream_gateway::{Gateway, HealthCheck, Route, Server, Settings, Target, Timeouts, Upstreams};
use millstream_resilience::BreakerSettings;
use tokio::net::TcpListener;

use crate::support::*;

#[tokio::test]
async fn a_connection_that_the_upstream_has_closed_is_replaced() {
    let scene = scene(Settings::default()).await;
    let (mut client, mut up, _) = scene.asked(GET).await;
    up.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    client.head().await;
    client.send(GET).await;
    // It has read the request and closes without an answer, as a server does whose patience is over.
    up.head().await;
    drop(up);
    let mut up = scene.accept().await;
    up.head().await;
    up.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi").await;
    client.head().await;
    assert_eq!(client.bytes(2).await, b"hi");

    // What changes something is not asked twice.
    client.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx").await;
    up.head().await;
    assert_eq!(up.bytes(1).await, b"x");
    drop(up);
    assert_eq!(status(&client.head().await), 502);
    scene.end().await;
}

#[tokio::test]
async fn a_new_connection_that_closes_without_an_answer_is_not_tried_again() {
    let scene = scene(Settings::default()).await;
    let (mut client, up, _) = scene.asked(GET).await;
    drop(up);
    assert_eq!(status(&client.head().await), 502);
    assert_eq!(scene.refused("upstream"), 1);
    scene.end().await;
}

#[tokio::test]
async fn an_upstream_out_of_reach_is_told_and_the_next_one_tried() {
    let closed = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let gone = format!("http://{}", closed.local_addr().expect("an address"));
    drop(closed);
    let upstream = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let there = format!("http://{}", upstream.local_addr().expect("an address"));
    let server = Gateway::new(Settings::default())
        .route(Route::proxy("none", [gone.parse().expect("a url")]).path("/none"))
        .route(Route::proxy("some", [gone.parse().expect("a url"), there.parse().expect("a url")]))
        .listen("127.0.0.1:0".parse().expect("an address"))
        .await
        .expect("a port");
    let mut client = connect(server.local_addr()).await;
    client.send("GET /none HTTP/1.1\r\nHost: h\r\n\r\n").await;
    assert_eq!(status(&client.head().await), 502);
    client.until("reached\n").await;
    // Whichever is chosen first, each request is answered by the one that is there.
    for _ in 0..4 {
        client
            .send("POST /some HTTP/1.1\r\nHost: h\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\nx")
            .await;
        let mut up = Wire::new(within("a connection", upstream.accept()).await.expect("accepted").0);
        up.head().await;
        up.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
        assert_eq!(status(&client.head().await), 200);
    }
}

#[tokio::test]
async fn requests_go_to_the_server_with_the_fewest_in_flight() {
    let a = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let b = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let urls = [&a, &b]
        .map(|server| format!("http://{}", server.local_addr().expect("an address")).parse().expect("a url"));
    let server = Gateway::new(Settings::default())
        .route(Route::proxy("both", urls))
        .listen("127.0.0.1:0".parse().expect("an address"))
        .await
        .expect("a port");
    let mut clients = Vec::new();
    for _ in 0..6 {
        let mut client = connect(server.local_addr()).await;
        client.send(GET).await;
        clients.push(client);
    }
    let mut kept = Vec::new();
    for listener in [&a, &b] {
        for _ in 0..3 {
            kept.push(within("three requests at each server", listener.accept()).await.expect("accepted"));
        }
    }
    let in_flight: Vec<u64> = server.snapshot().upstreams.iter().map(|server| server.in_flight).collect();
    assert_eq!(in_flight, [3, 3]);
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_to_an_upstream_is_closed_though_nobody_needs_another() {
    let timeouts = Timeouts { keep_alive: SHORT, ..Timeouts::default() };
    let scene = scene(Settings { timeouts, ..Settings::default() }).await;
    let (mut client, mut up, _) = scene.asked(GET).await;
    up.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    client.head().await;
    up.ended().await;
    scene.end().await;
}

#[tokio::test]
async fn as_many_idle_connections_are_kept_as_the_limit_says() {
    let scene = scene(Settings { upstream_idle_connections: 1, ..Settings::default() }).await;
    let mut both = vec![scene.asked(GET).await, scene.asked(GET).await];
    for (client, up, _) in &mut both {
        up.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        client.head().await;
    }
    // One too many: the second that came back is closed, the first serves the next request.
    both[1].1.ended().await;
    both[1].0.send(GET).await;
    both[0].1.head().await;
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_does_not_take_a_connection_in_time_is_out_of_reach() {
    // A listener that accepts nothing, and whose row is full: the system leaves further connections unanswered.
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
    let upstream = socket.listen(1).expect("it listens");
    let address = upstream.local_addr().expect("an address");
    let mut row = Vec::new();
    while let Ok(stream) = tokio::time::timeout(SHORT, tokio::net::TcpStream::connect(address)).await {
        row.push(stream.expect("connected"));
    }
    let timeouts = Timeouts { connect: SHORT, ..Timeouts::default() };
    let server = Gateway::new(Settings { timeouts, ..Settings::default() })
        .route(Route::proxy("up", [format!("http://{address}").parse().expect("a url")]))
        .listen("127.0.0.1:0".parse().expect("an address"))
        .await
        .expect("a port");
    let mut client = connect(server.local_addr()).await;
    client.send(GET).await;
    assert_eq!(status(&client.head().await), 504);
    assert_eq!(server.snapshot().upstreams[0].failed, 1);
}

async fn upstream() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    (listener, url)
}

async fn gateway_to(upstreams: Upstreams) -> Server {
    let route = Route::to("up", Target::Proxy(Arc::new(upstreams)));
    let gateway = Gateway::new(Settings::default()).route(route);
    gateway.listen("127.0.0.1:0".parse().expect("an address")).await.expect("a port")
}

#[tokio::test]
async fn an_answer_of_http_1_0_in_chunks_ends_its_connection() {
    let scene = scene(Settings::default()).await;
    let (mut client, mut up, _) = scene.asked(GET).await;
    up.send(
        "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    )
    .await;
    client.head().await;
    assert_eq!(client.until("0\r\n\r\n").await, "2\r\nhi\r\n0\r\n\r\n");
    up.ended().await;
    scene.end().await;
}

/// Waits until a server of these is well, or is not.
async fn is_well(gateway: &Server, server: usize, well: bool) {
    within("the health of a server", async {
        while gateway.snapshot().upstreams[server].healthy != well {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_is_told_from_one_that_is_ill() {
    let (ill, ill_url) = upstream().await;
    let (gone, gone_url) = upstream().await;
    let urls = [&ill_url, &gone_url].map(|url| url.parse().expect("a url"));
    let check = HealthCheck { period: Duration::from_secs(3600), failures: 1, ..HealthCheck::default() };
    let gateway = gateway_to(Upstreams::new(urls).health(check)).await;
    for (listener, answer) in [(&ill, "500 Ill"), (&gone, "200 OK")] {
        let mut up = Wire::new(within("a check", listener.accept()).await.expect("accepted").0);
        up.head().await;
        up.send(format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n")).await;
        up.ended().await;
    }
    is_well(&gateway, 0, false).await;
    drop(gone);
    let mut client = connect(gateway.local_addr()).await;
    client.send(GET).await;
    assert_eq!(status(&client.head().await), 502);
}

#[tokio::test]
async fn an_interim_answer_does_not_say_that_a_server_is_well() {
    let (listener, url) = upstream().await;
    let check = HealthCheck { period: Duration::from_secs(3600), failures: 1, ..HealthCheck::default() };
    let gateway = gateway_to(Upstreams::new([url.parse().expect("a url")]).health(check)).await;
    let mut up = Wire::new(within("a check", listener.accept()).await.expect("accepted").0);
    up.head().await;
    up.send("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 500 Ill\r\nContent-Length: 0\r\n\r\n").await;
    is_well(&gateway, 0, false).await;
}

#[tokio::test]
async fn a_server_that_breaks_off_its_answers_is_left_alone() {
    let (listener, url) = upstream().await;
    let breaker = BreakerSettings::default().calls_min(2).count_window(2);
    let gateway = gateway_to(Upstreams::new([url.parse().expect("a url")]).breaker(&breaker)).await;
    for _ in 0..2 {
        assert!(gateway.snapshot().upstreams[0].healthy);
        let mut client = connect(gateway.local_addr()).await;
        client.send(GET).await;
        let mut up = Wire::new(within("a connection", listener.accept()).await.expect("accepted").0);
        up.head().await;
        up.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc").await;
        client.head().await;
        drop(up);
        client.rest().await;
    }
    is_well(&gateway, 0, false).await;
}

#[tokio::test(start_paused = true)]
async fn a_server_is_not_blamed_for_its_clients() {
    let (listener, url) = upstream().await;
    let breaker = BreakerSettings::default().calls_min(1).count_window(1);
    let gateway = gateway_to(Upstreams::new([url.parse().expect("a url")]).breaker(&breaker)).await;
    let ask = async |request: &str, answer: &str| {
        let mut client = connect(gateway.local_addr()).await;
        client.send(request).await;
        let mut up = Wire::new(within("a connection", listener.accept()).await.expect("accepted").0);
        up.head().await;
        up.send(format!("HTTP/1.1 200 OK\r\n{answer}\r\n\r\nabc")).await;
        client.head().await;
        (client, up)
    };
    let ended = |outcome| gateway.snapshot().streams[1].ended[outcome];
    // It leaves.
    let (client, mut up) = ask(GET, "Content-Length: 9").await;
    drop(client);
    up.ended().await;
    // It does not send what it said.
    let (mut client, up) =
        ask("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nabc", "Content-Length: 9").await;
    drop(up);
    client.rest().await;
    assert_eq!(ended("source_failed"), 1);
    // It takes nothing for long.
    let (mut client, mut up) = ask(GET, "Content-Length: 999999999").await;
    let block = vec![b'x'; 1 << 20];
    while tokio::time::timeout(
        Duration::from_secs(2),
        tokio::io::AsyncWriteExt::write_all(&mut up.stream, &block),
    )
    .await
    .is_ok()
    {}
    up.stream.set_zero_linger().expect("a socket");
    drop(up);
    client.rest().await;
    assert_eq!(ended("source_failed"), 2);
    assert!(gateway.snapshot().upstreams[0].healthy);
}
