//! How exchanges end when somebody leaves, stalls or lies.

use std::time::Duration;

use http::{Request, Response};
use millstream_gateway::{Body, Gateway, HalfClose, Limits, Route, Settings, Timeouts};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::*;

#[tokio::test]
async fn a_client_that_leaves_takes_its_request_with_it_at_once() {
    let scene = scene(Settings::default()).await;
    // While the answer is awaited.
    let (client, mut up, _) = scene.asked(GET).await;
    drop(client);
    up.ended().await;
    // In the middle of its body.
    let (client, mut up, _) = scene.asked("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nabc").await;
    assert_eq!(up.bytes(3).await, b"abc");
    drop(client);
    up.ended().await;
    // In the middle of the answer.
    let (mut client, mut up, _) = scene.asked(GET).await;
    up.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc").await;
    client.head().await;
    assert_eq!(client.bytes(3).await, b"abc");
    drop(client);
    up.ended().await;
    assert_eq!(scene.refused("client_gone"), 3);
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_request_that_fails_after_its_answer_began_is_counted_as_what_it_is() {
    let timeouts = Timeouts { idle: SHORT, ..Timeouts::default() };
    let limits = Limits { request_body_bytes: 10, ..Limits::default() };
    let scene = scene(Settings { timeouts, limits, ..Settings::default() }).await;
    let head = "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n";
    for (rest, why) in [("8\r\nmuchmore\r\n", "body_size"), ("x\r\n", "framing"), ("", "timeout")] {
        let (mut client, mut up, _) = scene.asked(head).await;
        // The answer goes on for longer than the request may be silent.
        up.send("HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\nabc").await;
        client.head().await;
        client.send(rest).await;
        within(why, async {
            while scene.refused(why) == 0 {
                up.stream.writable().await.expect("a socket");
                let _ = up.stream.try_write(b".");
                tokio::time::sleep(SHORT / 20).await;
            }
        })
        .await;
        client.rest().await;
        assert_eq!((scene.refused(why), scene.refused("client_gone")), (1, 0), "{why}");
    }
    scene.end().await;
}

#[tokio::test]
async fn an_exchange_that_a_stop_breaks_off_is_told() {
    let upstream = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", upstream.local_addr().expect("an address"));
    let (tell, mut told) = tokio::sync::mpsc::channel(1);
    let server = Gateway::new(Settings::default())
        .route(Route::proxy("up", [url.parse().expect("a url")]))
        .observe(move |report| tell.try_send(report.clone()).expect("one exchange"))
        .listen("127.0.0.1:0".parse().expect("an address"))
        .await
        .expect("a port");
    let mut client = connect(server.local_addr()).await;
    client.send(GET).await;
    let _up = within("a connection", upstream.accept()).await.expect("accepted");
    within("the end", server.shutdown(Duration::ZERO)).await;
    let report = within("a report", told.recv()).await.expect("a report");
    assert_eq!(report.failure.as_deref(), Some("the gateway has stopped"));
}

#[tokio::test]
async fn a_half_closed_client_is_answered_where_that_is_allowed() {
    let scene = scene(Settings { half_close: HalfClose::Allow, ..Settings::default() }).await;
    let (mut client, mut up, _) = scene.asked(GET).await;
    client.close_sending().await;
    up.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi").await;
    client.head().await;
    assert_eq!(client.bytes(2).await, b"hi");
    client.ended().await;
    scene.end().await;
}

#[tokio::test]
async fn an_upstream_that_dies_in_mid_body_leaves_a_body_that_shows_it() {
    let scene = scene(Settings::default()).await;
    let (mut client, mut up, _) = scene.asked(GET).await;
    up.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc").await;
    drop(up);
    client.head().await;
    assert_ne!(client.rest().await.0, b"abcdefghi");

    let (mut client, mut up, _) = scene.asked(GET).await;
    up.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n").await;
    drop(up);
    client.head().await;
    let (rest, _) = client.rest().await;
    assert!(!String::from_utf8_lossy(&rest).contains("0\r\n\r\n"));

    // Where only the end of the connection could end the body, it is a reset.
    let (mut client, mut up, _) = scene.asked("GET / HTTP/1.0\r\nHost: h\r\n\r\n").await;
    up.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc").await;
    drop(up);
    let (_, orderly) = client.rest().await;
    assert!(!orderly);
    assert_eq!(scene.refused("broken_answer"), 3);
    scene.end().await;
}

#[tokio::test]
async fn an_upstream_that_sends_more_than_it_said_harms_no_other_exchange() {
    let scene = scene(Settings::default()).await;
    let (mut client, mut up, _) = scene.asked(GET).await;
    up.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhiHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
        .await;
    client.head().await;
    assert_eq!(client.bytes(2).await, b"hi");
    client.send(GET).await;
    let mut second = scene.accept().await;
    second.head().await;
    second.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    client.head().await;
    assert_eq!(client.bytes(2).await, b"ok");
    assert_eq!(scene.server.snapshot().upstream_excess, 1);
    // Later, when the connection waits for the next request.
    second.send("HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n").await;
    client.send(GET).await;
    let mut third = scene.accept().await;
    third.head().await;
    assert_eq!(scene.server.snapshot().upstream_excess, 2);
    // Its end is none.
    third.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    client.head().await;
    assert_eq!(client.bytes(2).await, b"ok");
    drop(third);
    client.send(GET).await;
    scene.accept().await.head().await;
    assert_eq!(scene.server.snapshot().upstream_excess, 2);
    scene.end().await;
}

#[tokio::test]
async fn answers_that_two_readers_could_understand_differently_are_not_passed_on() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        "HTTP/1.1 200 OK\nContent-Length: 2\n\n",
        "HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: evil\r\nConnection: upgrade\r\n\r\n",
        "nonsense\r\n\r\n",
    ] {
        let scene = scene(Settings::default()).await;
        let (mut client, mut up, _) = scene.asked(GET).await;
        up.send(answer).await;
        assert_eq!(status(&client.head().await), 502, "{answer:?}");
        assert_eq!(scene.refused("upstream_head"), 1);
        scene.end().await;
    }
}

#[tokio::test]
async fn an_answer_with_broken_chunks_breaks_off() {
    let scene = scene(Settings::default()).await;
    let (mut client, mut up, _) = scene.asked(GET).await;
    up.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcX").await;
    client.head().await;
    let (rest, _) = client.rest().await;
    assert!(!String::from_utf8_lossy(&rest).contains("0\r\n\r\n"));
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn who_takes_too_long_is_given_up() {
    let timeouts = Timeouts { header: SHORT, response: SHORT, idle: SHORT, ..Timeouts::default() };
    let scene = scene(Settings { timeouts, ..Settings::default() }).await;
    // A head that comes a byte at a time, and then no more.
    let mut client = scene.client().await;
    client.send("GET / HT").await;
    assert_eq!(status(&client.head().await), 408);
    client.rest().await;
    // A body that stops.
    let (mut client, up, _) = scene.asked("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nabc").await;
    assert_eq!(status(&client.head().await), 408);
    drop(up);
    // An upstream that says nothing.
    let (mut client, mut up, _) = scene.asked(GET).await;
    assert_eq!(status(&client.head().await), 504);
    up.ended().await;
    // An upstream that stops in the middle of its answer.
    let (mut client, mut up, _) = scene.asked(GET).await;
    up.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc").await;
    client.head().await;
    assert_ne!(client.rest().await.0, b"abcdefghi");
    assert_eq!(scene.refused("timeout"), 3);
    scene.end().await;
}

#[tokio::test]
async fn a_client_that_asks_nothing_is_let_go() {
    let timeouts = Timeouts { keep_alive: SHORT, ..Timeouts::default() };
    let scene = scene(Settings { timeouts, ..Settings::default() }).await;
    let mut client = scene.client().await;
    client.ended().await;
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_exchange_may_be_limited_as_a_whole() {
    let timeouts = Timeouts { total: Some(SHORT), ..Timeouts::default() };
    let scene = scene(Settings { timeouts, ..Settings::default() }).await;
    let (mut client, _up, _) = scene.asked(GET).await;
    assert_eq!(status(&client.head().await), 504);
    let (mut client, mut up, _) = scene.asked(GET).await;
    up.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc").await;
    client.head().await;
    assert_ne!(client.rest().await.0, b"abcdefghi");
    scene.end().await;
}

#[tokio::test]
async fn a_drain_finishes_what_has_begun_and_lets_idle_connections_go() {
    let scene = scene(Settings::default()).await;
    let (mut client, mut up, _) = scene.asked(GET).await;
    let mut idle = scene.client().await;
    let address = scene.server.local_addr();
    let (server, _listener) = (scene.server, scene.upstream);
    let draining = tokio::spawn(server.shutdown(Duration::from_secs(20)));
    idle.ended().await;
    // Nobody is accepted any more; the port may also be refused at once.
    if let Ok(stream) = tokio::net::TcpStream::connect(address).await {
        Wire::new(stream).rest().await;
    }
    up.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi").await;
    // Or its client would send the next request, and never know whether it was seen.
    let head = client.head().await;
    assert!(head.contains("connection: close\r\n"), "{head}");
    assert_eq!(client.bytes(2).await, b"hi");
    client.ended().await;
    let drained = within("the end", draining).await.expect("no panic");
    assert_eq!((drained.broken_off, drained.leases_left), (0, 0));
}

#[tokio::test]
async fn what_has_not_ended_at_the_deadline_is_broken_off() {
    let scene = scene(Settings::default()).await;
    let (mut client, _up, _) = scene.asked(GET).await;
    let drained = within("the end", scene.server.shutdown(Duration::ZERO)).await;
    assert_eq!((drained.broken_off, drained.leases_left), (1, 0));
    client.ended().await;
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_for_their_turn() {
    let limits = Limits { connections: 1, ..Limits::default() };
    let scene = scene(Settings { limits, ..Settings::default() }).await;
    let (mut first, mut up, _) = scene.asked(GET).await;
    let mut second = scene.client().await;
    second.send("GET /second HTTP/1.1\r\nHost: h\r\n\r\n").await;
    up.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    first.head().await;
    assert_eq!(scene.server.snapshot().connections, 1);
    drop(first);
    assert!(up.head().await.starts_with("GET /second "));
    scene.end().await;
}

#[tokio::test]
async fn a_handler_never_takes_a_broken_body_for_a_whole_one() {
    let (tell, mut told) = tokio::sync::mpsc::channel(1);
    let keep = move |request: Request<Body>| {
        // The body outlives its request in somebody else's hands, who has not read it yet.
        let tell = tell.clone();
        tokio::spawn(async move { tell.send(request.into_body()).await });
        std::future::pending::<Response<Body>>()
    };
    let server = Gateway::new(Settings::default())
        .route(Route::handler("keep", keep))
        .listen("127.0.0.1:0".parse().expect("an address"))
        .await
        .expect("a port");
    for head in ["Content-Length: 6", "Transfer-Encoding: chunked"] {
        let mut client = connect(server.local_addr()).await;
        client.send(format!("POST / HTTP/1.1\r\nHost: h\r\n{head}\r\n\r\n3\r\na")).await;
        let body = within("a body", told.recv()).await.expect("a body");
        drop(client);
        assert!(within("its end", body.collect(100)).await.is_err(), "{head}");
    }
}

#[tokio::test]
async fn an_upstream_that_takes_no_more_of_a_body_is_given_up_with_it() {
    let timeouts = Timeouts { idle: SHORT, response: Duration::from_secs(300), ..Timeouts::default() };
    let scene = scene(Settings { timeouts, ..Settings::default() }).await;
    let length = 64 << 20;
    let (mut client, mut up, _) =
        scene.asked(&format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n")).await;
    let (mut read, mut write) = client.stream.split();
    let sending = async {
        // Until the gateway closes.
        while write.write_all(&[b'x'; 1 << 16]).await.is_ok() {}
        std::future::pending::<()>().await
    };
    let mut head = [0; 200];
    let answered = async { within("an answer", read.read(&mut head)).await.expect("one") };
    let count = tokio::select! {
        () = sending => unreachable!(),
        count = answered => count,
    };
    let answer = String::from_utf8_lossy(&head[..count]).into_owned();
    assert_eq!(status(&answer), 504, "{answer}");
    assert!(answer.contains("the upstream took nothing of the request body for"), "{answer}");
    // It is let go, too.
    up.rest().await;
    assert_eq!(scene.refused("timeout"), 1);
}

#[tokio::test]
async fn an_upstream_that_does_not_say_whether_it_wants_a_body_is_what_does_not_answer() {
    let timeouts = Timeouts { idle: SHORT, ..Timeouts::default() };
    let scene = scene(Settings { timeouts, ..Settings::default() }).await;
    let asked = "PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n";
    let (mut client, _up, _) = scene.asked(asked).await;
    assert_eq!(status(&client.head().await), 504);
    let (text, _) = client.rest().await;
    assert_eq!(text, b"the upstream does not say whether it wants the request body\n");
    scene.end().await;
}
