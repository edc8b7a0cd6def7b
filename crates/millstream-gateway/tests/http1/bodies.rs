//! Bodies on their way.

use std::sync::{Arc, Mutex};

use http::{Request, Response};
use millstream_gateway::{
    Body, ExchangeReport, Forwarded, Gateway, PoolSettings, Route, Settings, StreamOutcome, TIERS,
};

use crate::support::*;

#[tokio::test]
async fn a_request_arrives_with_its_own_headers_and_who_asks() {
    let scene = scene(Settings::default()).await;
    let (mut client, mut up, head) = scene
        .asked("GET /a?b=c HTTP/1.1\r\nHost: h:1\r\nX-A: 1\r\nConnection: x-hop\r\nX-Hop: 2\r\n\r\n")
        .await;
    assert_eq!(
        head,
        "GET /a?b=c HTTP/1.1\r\nhost: h:1\r\nx-a: 1\r\nx-forwarded-for: 127.0.0.1\r\nx-forwarded-proto: http\r\n\
         x-forwarded-host: h:1\r\nforwarded: for=127.0.0.1;host=\"h:1\";proto=http\r\n\r\n"
    );
    up.send("HTTP/1.1 201 Made\r\nContent-Length: 5\r\nConnection: x-up\r\nX-Up: 1\r\nX-B: 2\r\n\r\nhello")
        .await;
    assert_eq!(client.head().await, "HTTP/1.1 201 Created\r\ncontent-length: 5\r\nx-b: 2\r\n\r\n");
    assert_eq!(client.bytes(5).await, b"hello");
    scene.end().await;
}

#[tokio::test]
async fn forwarded_off_tells_nothing() {
    let scene = scene(Settings { forwarded: Forwarded::Off, ..Settings::default() }).await;
    let (_client, _up, head) = scene.asked("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
    assert_eq!(head, "GET / HTTP/1.1\r\nhost: h\r\n\r\n");
    scene.end().await;
}

#[tokio::test]
async fn both_bodies_stream_at_the_same_time() {
    let scene = scene(Settings::default()).await;
    let (mut client, mut up, _) =
        scene.asked("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n").await;
    assert_eq!(up.until("one\r\n").await, "3\r\none\r\n");
    up.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n1!\r\n").await;
    assert!(client.head().await.contains("transfer-encoding: chunked"));
    assert_eq!(client.until("1!\r\n").await, "2\r\n1!\r\n");
    // Each side goes on after it has heard of the other.
    client.send("3;ext=1\r\ntwo\r\n").await;
    assert_eq!(up.until("two\r\n").await, "3\r\ntwo\r\n");
    up.send("2\r\n2!\r\n").await;
    assert_eq!(client.until("2!\r\n").await, "2\r\n2!\r\n");
    client.send("0\r\nX-Sum: 6\r\n\r\n").await;
    assert_eq!(up.until("\r\n\r\n").await, "0\r\nx-sum: 6\r\n\r\n");
    up.send("0\r\nX-Total: 4\r\n\r\n").await;
    assert_eq!(client.until("\r\n\r\n").await, "0\r\nx-total: 4\r\n\r\n");
    scene.end().await;
}

#[tokio::test]
async fn an_event_goes_on_before_the_next_one_comes() {
    let scene = scene(Settings::default()).await;
    let (mut client, mut up, _) = scene.asked(GET).await;
    up.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n").await;
    assert!(client.head().await.contains("content-type: text/event-stream"));
    for number in 0..20 {
        let event = format!("data: {number}\n\n");
        up.send(&event).await;
        assert_eq!(client.until("\n\n\r\n").await, format!("{:x}\r\n{event}\r\n", event.len()));
    }
    drop(up);
    assert_eq!(client.until("\r\n\r\n").await, "0\r\n\r\n");
    scene.end().await;
}

#[tokio::test]
async fn answers_without_a_body_have_none_whatever_their_head_says() {
    let scene = scene(Settings::default()).await;
    let mut client = scene.client().await;
    client.send("HEAD / HTTP/1.1\r\nHost: h\r\n\r\n").await;
    let mut up = scene.accept().await;
    for (answer, next, expected) in [
        ("200 OK\r\nContent-Length: 5\r\n", "GET", "200 OK\r\ncontent-length: 5\r\n"),
        ("204 No Content\r\n", "GET", "204 No Content\r\n"),
        ("304 Not Modified\r\nContent-Length: 5\r\n", "GET", "304 Not Modified\r\ncontent-length: 5\r\n"),
        ("200 OK\r\nContent-Length: 0\r\n", "GET", "200 OK\r\ncontent-length: 0\r\n"),
    ] {
        up.head().await;
        up.send(format!("HTTP/1.1 {answer}\r\n")).await;
        assert_eq!(client.head().await, format!("HTTP/1.1 {expected}\r\n"));
        // The connection goes on at once: nothing of a body is waited for.
        client.send(format!("{next} / HTTP/1.1\r\nHost: h\r\n\r\n")).await;
    }
    scene.end().await;
}

#[tokio::test]
async fn a_body_that_is_expected_is_sent_when_the_upstream_says_continue() {
    let scene = scene(Settings::default()).await;
    let (mut client, mut up, head) =
        scene.asked("PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n").await;
    assert!(head.contains("expect: 100-continue"));
    up.send("HTTP/1.1 100 Continue\r\n\r\n").await;
    assert_eq!(client.head().await, "HTTP/1.1 100 Continue\r\n\r\n");
    client.send("body").await;
    assert_eq!(up.bytes(4).await, b"body");
    up.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(status(&client.head().await), 200);

    // A final answer instead, and the connection ends: nobody can know whether a body follows.
    client.send("PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n").await;
    up.head().await;
    up.send("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n").await;
    let head = client.head().await;
    assert!(status(&head) == 403 && head.contains("connection: close"), "{head}");
    client.ended().await;
    let mut client = scene.client().await;
    client.send("PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nExpect: a-miracle\r\n\r\n").await;
    assert_eq!(status(&client.head().await), 417);
    scene.end().await;
}

#[tokio::test]
async fn an_early_answer_reaches_a_client_that_still_sends() {
    let scene = scene(Settings::default()).await;
    let (mut client, mut up, _) =
        scene.asked("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\nbegin").await;
    up.send("HTTP/1.1 413 Payload Too Large\r\nContent-Length: 3\r\n\r\nbig").await;
    assert_eq!(status(&client.head().await), 413);
    assert_eq!(client.bytes(3).await, b"big");
    client.ended().await;
    scene.end().await;
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_their_order() {
    let scene = scene(Settings::default()).await;
    let requests = "POST /1 HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\naaPOST /2 HTTP/1.1\r\nHost: h\r\n\
                    Transfer-Encoding: chunked\r\n\r\n1\r\nb\r\n0\r\n\r\nGET /3 HTTP/1.1\r\nHost: h\r\n\r\n";
    let (mut client, mut up, head) = scene.asked(requests).await;
    assert!(head.starts_with("POST /1 "));
    assert_eq!(up.bytes(2).await, b"aa");
    up.send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1").await;
    assert!(up.head().await.starts_with("POST /2 "));
    assert_eq!(up.until("0\r\n\r\n").await, "1\r\nb\r\n0\r\n\r\n");
    up.send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n2").await;
    assert!(up.head().await.starts_with("GET /3 "));
    up.send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n3").await;
    for number in ["1", "2", "3"] {
        client.head().await;
        assert_eq!(client.bytes(1).await, number.as_bytes());
    }
    let upstreams = scene.server.snapshot().upstreams;
    assert_eq!((upstreams[0].connected, upstreams[0].reused), (1, 2));
    scene.end().await;
}

#[tokio::test]
async fn a_client_of_http_1_0_gets_the_end_of_the_connection_as_the_end_of_the_body() {
    let scene = scene(Settings::default()).await;
    let (mut client, mut up, head) = scene.asked("GET / HTTP/1.0\r\n\r\n").await;
    assert!(head.contains("\r\nhost: \r\n"), "{head}");
    up.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n").await;
    let (answer, orderly) = client.rest().await;
    assert_eq!(String::from_utf8_lossy(&answer), "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nhi");
    assert!(orderly);
    scene.end().await;
}

/// Sends a body of `size` to a client that begins to read only when the gateway could not get rid of more.
async fn slow_download(
    settings: Settings,
    size: usize,
) -> (Vec<ExchangeReport>, millstream_gateway::PoolSnapshot) {
    let reports = Arc::new(Mutex::new(Vec::new()));
    let seen = reports.clone();
    let upstream = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", upstream.local_addr().expect("an address"));
    let (tell, mut told) = tokio::sync::mpsc::channel(1);
    let server = Gateway::new(settings)
        .route(Route::proxy("up", [url.parse().expect("an upstream")]))
        .observe(move |report| {
            seen.lock().expect("not poisoned").push(report.clone());
            let _ = tell.try_send(());
        })
        .listen("127.0.0.1:0".parse().expect("an address"))
        .await
        .expect("a port");
    let mut client = connect(server.local_addr()).await;
    client.send(GET).await;
    let mut up = Wire::new(within("a connection", upstream.accept()).await.expect("accepted").0);
    up.head().await;
    let writing = tokio::spawn(async move {
        up.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n")).await;
        let block = [7_u8; 64 << 10];
        for _ in 0..size / block.len() {
            up.send(block).await;
        }
        up
    });
    let monitor = server.monitor();
    within("backpressure", async {
        while monitor().streams[1].backpressure_events == 0 && !writing.is_finished() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    client.head().await;
    let mut left = size;
    while left > 0 {
        let part = client.bytes(left.min(64 << 10)).await;
        assert!(part.iter().all(|byte| *byte == 7));
        left -= part.len();
    }
    let _up = within("the upstream", writing).await.expect("written");
    within("the report", told.recv()).await;
    let pool = server.snapshot().pool;
    let drained = within("the end", server.shutdown(std::time::Duration::ZERO)).await;
    assert_eq!(drained.leases_left, 0);
    let reports = reports.lock().expect("not poisoned").clone();
    (reports, pool)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_takes_constant_memory_whatever_the_slower_side_does() {
    let size = 64 << 20;
    let pool = PoolSettings { bytes_max: 1 << 20, ..PoolSettings::default() };
    let (reports, pool) = slow_download(Settings { pool, ..Settings::default() }, size).await;
    assert!(pool.bytes_high_water <= 2 << 20, "{pool:?}");
    let [report] = &reports[..] else { panic!("one exchange: {reports:?}") };
    let response = report.response.as_ref().expect("an answer");
    assert_eq!((response.outcome, response.bytes), (StreamOutcome::Complete, size as u64));
    assert!(
        response.backpressure_events > 0 && response.backpressure_time > std::time::Duration::ZERO,
        "{response:?}"
    );
    assert!(response.first_byte.is_some_and(|first| first <= response.duration), "{response:?}");
    let average = response.bytes as f64 / response.chunks as f64;
    assert!((response.chunk_bytes_average - average).abs() < 1.0, "{response:?}");
    let rate = response.bytes as f64 / response.duration.as_secs_f64();
    assert!((response.bytes_per_second / rate - 1.0).abs() < 0.01, "{response:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_chunk_size_bounds_every_read() {
    let size = 8 << 20;
    for chunk in [1000, 8 << 10] {
        let (reports, _) =
            slow_download(Settings { response_chunk: chunk, ..Settings::default() }, size).await;
        let response = reports[0].response.as_ref().expect("an answer");
        assert!(response.chunks >= (size / chunk) as u64, "{chunk}: {response:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_pool_the_gateway_does_the_same() {
    let pool = PoolSettings { enabled: false, ..PoolSettings::default() };
    let (reports, pool) = slow_download(Settings { pool, ..Settings::default() }, 8 << 20).await;
    assert_eq!(reports[0].response.as_ref().expect("an answer").bytes, 8 << 20);
    assert_eq!((pool.total, pool.bytes, pool.tiers.len()), (0, 0, TIERS.len()));
    assert_eq!(pool.tiers.iter().map(|tier| tier.hits).sum::<u64>(), 0);
}

#[tokio::test]
async fn a_handler_sees_the_body_as_it_comes_and_answers_as_it_likes() {
    async fn echo(request: Request<Body>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let mut response = Response::new(body);
        let path = parts.uri.path().parse().expect("a header value");
        response.headers_mut().insert("x-path", path);
        response
    }
    let server = Gateway::new(Settings::default())
        .route(Route::handler("echo", echo).path("/echo").methods([http::Method::POST]))
        .listen("127.0.0.1:0".parse().expect("an address"))
        .await
        .expect("a port");
    let mut client = connect(server.local_addr()).await;
    client.send("POST /echo/a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n").await;
    assert!(client.head().await.contains("x-path: /echo/a"));
    assert_eq!(client.until("ab\r\n").await, "2\r\nab\r\n");
    client.send("0\r\n\r\n").await;
    assert_eq!(client.until("\r\n\r\n").await, "0\r\n\r\n");
    client.send("GET /echo HTTP/1.1\r\nHost: h\r\n\r\n").await;
    let head = client.head().await;
    assert!(status(&head) == 405 && head.contains("allow: POST"), "{head}");
    client.until("what leads there takes POST only\n").await;
    client.send("GET /other HTTP/1.1\r\nHost: h\r\n\r\n").await;
    assert_eq!(status(&client.head().await), 404);
    let answers = server.snapshot().answers;
    assert_eq!(answers[0].by_class["2xx"], 1);
    drop(client);
    assert_eq!(within("the end", server.shutdown(std::time::Duration::from_secs(5))).await.broken_off, 0);
}

#[tokio::test]
async fn a_uri_without_a_path_asks_for_the_root() {
    let scene = scene(Settings::default()).await;
    let (_client, _up, head) = scene.asked("GET http://h?q=1 HTTP/1.1\r\nHost: h\r\n\r\n").await;
    assert!(head.starts_with("GET /?q=1 HTTP/1.1\r\n"), "{head}");
    scene.end().await;
}
