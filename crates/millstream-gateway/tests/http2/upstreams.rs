//! Upstreams that speak HTTP/2.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use millstream_gateway::{Body, Gateway, HealthCheck, Route, Settings, Target, Timeouts, Upstreams};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use crate::support::*;

/// A server of which the first `connections` connections answer one request, and close without an answer when they have `asked`;
/// later ones answer everything.
async fn closes(asked: usize, connections: usize) -> String {
    let listener = TcpListener::bind(any()).await.expect("a port");
    let url = format!("h2c://{}", listener.local_addr().expect("an address"));
    tokio::spawn(async move {
        for number in 0.. {
            let (stream, _) = listener.accept().await.expect("accepted");
            let (over, mut is_over) = tokio::sync::mpsc::channel::<()>(1);
            let (seen, dies) = (Arc::new(AtomicUsize::new(0)), number < connections);
            let service = service_fn(move |_| {
                let (before, over) = (seen.fetch_add(1, Ordering::Relaxed), over.clone());
                async move {
                    if dies && before + 1 == asked {
                        over.send(()).await.expect("heard");
                    }
                    if dies && before > 0 {
                        std::future::pending::<()>().await;
                    }
                    Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from("hi"))))
                }
            });
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let serving = server.serve_connection(TokioIo::new(stream), service);
            tokio::spawn(async move {
                tokio::select! {
                    _ = serving => {}
                    _ = is_over.recv() => {}
                }
            });
        }
    });
    url
}

#[tokio::test]
async fn a_connection_that_closes_without_an_answer_is_replaced_where_asking_twice_does_no_harm() {
    let gateway = proxy(&[closes(2, usize::MAX).await], Settings::default()).await;
    let mut sender = http2::<Full<Bytes>>(gateway.local_addr()).await;
    let mut ask = async |method: &str, body: &'static str| {
        let request = Request::builder().method(method).uri("http://h/").body(Full::from(body));
        let answer = within(sender.send_request(request.expect("a request"))).await.expect("an answer");
        answer.status().as_u16()
    };
    assert_eq!(ask("GET", "").await, 200);
    assert_eq!(ask("GET", "").await, 200);
    assert_eq!(gateway.snapshot().upstreams[0].connected, 2);
    assert_eq!(ask("POST", "x").await, 502);
    let refused = gateway.snapshot().refused;
    assert_eq!((refused["upstream"], refused["upstream_head"]), (1, 0));
}

#[tokio::test]
async fn requests_that_come_at_once_wait_for_one_connection_at_the_start_and_when_it_dies() {
    const AT_ONCE: usize = 16;
    // The first connection has one request of the first row, and dies of the second.
    for (first, connections) in [(AT_ONCE, 1), (1, 2)] {
        let gateway = proxy(&[closes(1 + AT_ONCE, connections - 1).await], Settings::default()).await;
        let sender = http2::<Empty<Bytes>>(gateway.local_addr()).await;
        for row in [first, AT_ONCE] {
            let ask = async |mut sender: Sender<_>| {
                let request = Request::get("http://h/").body(Empty::new()).expect("a request");
                sender.send_request(request).await.expect("an answer").status().as_u16()
            };
            let answers = join_all((0..row).map(|_| ask(sender.clone())));
            assert_eq!(within(answers).await, vec![200; row]);
        }
        assert_eq!(gateway.snapshot().upstreams[0].connected, connections as u64);
    }
}

#[tokio::test(start_paused = true)]
async fn requests_that_wait_for_a_connection_are_told_in_time_that_there_is_none() {
    // It accepts and never speaks.
    let silent = TcpListener::bind(any()).await.expect("a port");
    let url = format!("https://{}", silent.local_addr().expect("an address"));
    let timeouts = Timeouts { connect: Duration::from_millis(300), ..Timeouts::default() };
    let gateway = proxy(&[url], Settings { timeouts, ..Settings::default() }).await;
    let sender = http2::<Empty<Bytes>>(gateway.local_addr()).await;
    let started = Instant::now();
    let answers = join_all((0..50).map(|_| {
        let mut sender = sender.clone();
        async move {
            let request = Request::get("http://h/").body(Empty::new()).expect("a request");
            sender.send_request(request).await.expect("an answer").status().as_u16()
        }
    }));
    assert_eq!(within(answers).await, [504; 50]);
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_nobody_needs_is_closed_and_one_in_use_is_not() {
    let upstream = Gateway::new(Settings::default())
        .route(Route::handler("slow", async |_: Request<Body>| {
            tokio::time::sleep(Duration::from_secs(20)).await;
            Response::new(Body::from("hi"))
        }))
        .listen(any())
        .await
        .expect("a port");
    let timeouts = Timeouts { keep_alive: Duration::from_secs(5), ..Timeouts::default() };
    let settings = Settings { timeouts, ..Settings::default() };
    let gateway = proxy(&[format!("h2c://{}", upstream.local_addr())], settings).await;
    let mut sender = http2::<Empty<Bytes>>(gateway.local_addr()).await;
    for _ in 0..2 {
        let request = Request::get("http://h/").body(Empty::new()).expect("a request");
        all(within(sender.send_request(request)).await.expect("an answer")).await;
        tokio::time::sleep(Duration::from_secs(4)).await;
    }
    assert_eq!((upstream.snapshot().connections, upstream.snapshot().connections_open), (1, 1));
    let since = Instant::now();
    while upstream.snapshot().connections_open > 0 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(since.elapsed() < Duration::from_secs(5), "it is still open");
    }
}

#[tokio::test]
async fn a_client_that_waits_to_hear_that_its_body_is_wanted_hears_it() {
    let upstream = echo_server().await;
    let gateway = proxy(&[format!("h2c://{}", upstream.local_addr())], Settings::default()).await;
    let mut client = TcpStream::connect(gateway.local_addr()).await.expect("connected");
    let head = "POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 5\r\nConnection: close\r\n\r\n";
    client.write_all(head.as_bytes()).await.expect("written");
    let mut interim = [0; 25];
    within(client.read_exact(&mut interim)).await.expect("an answer");
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    client.write_all(b"hello").await.expect("written");
    let mut answer = String::new();
    within(client.read_to_string(&mut answer)).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("hello"), "{answer}");
}

#[tokio::test]
async fn asking_whether_a_server_is_well_leaves_its_connection_and_its_counts_alone() {
    let checks = Arc::new(AtomicUsize::new(0));
    let count = checks.clone();
    let upstream = Gateway::new(Settings::default())
        .route(Route::handler("health", move |request: Request<Body>| {
            count.fetch_add((request.uri().path() == "/health").into(), Ordering::Relaxed);
            std::future::ready(Response::new(Body::from("ok")))
        }))
        .listen(any())
        .await
        .expect("a port");
    for scheme in ["h2c", "http"] {
        let url = format!("{scheme}://{}", upstream.local_addr()).parse().expect("a url");
        let period = Duration::from_millis(5);
        let check = HealthCheck { path: "/health".into(), period, ..HealthCheck::default() };
        let target = Target::Proxy(Arc::new(Upstreams::new([url]).health(check)));
        let gateway = Gateway::new(Settings::default()).route(Route::to("up", target)).listen(any()).await;
        let gateway = gateway.expect("a port");
        let mut sender = http2::<Full<Bytes>>(gateway.local_addr()).await;
        for round in 0..3 {
            let request = Request::get("http://h/").body(Full::default()).expect("a request");
            all(within(sender.send_request(request)).await.expect("an answer")).await;
            let server = &gateway.snapshot().upstreams[0];
            assert_eq!((server.connected, server.reused), (1, round), "{scheme}");
            let before = (checks.load(Ordering::Relaxed), upstream.snapshot().connections);
            within(async {
                while checks.load(Ordering::Relaxed) < before.0 + 5 {
                    tokio::task::yield_now().await;
                }
            })
            .await;
            // One may have been on its way over a connection of its own.
            let made = upstream.snapshot().connections - before.1;
            assert!(scheme == "http" || made <= 1, "{made} connections");
        }
    }
}

#[tokio::test]
async fn readers_that_are_slow_hold_up_no_other_answer_of_their_upstream() {
    let big = async |_: Request<Body>| Response::new(Body::from(Bytes::from(vec![b'x'; 16 << 20])));
    let upstream = Gateway::new(Settings::default()).route(Route::handler("big", big));
    let upstream = upstream.listen(any()).await.expect("a port");
    let gateway = proxy(&[format!("h2c://{}", upstream.local_addr())], Settings::default()).await;
    let ask = async || {
        let mut client = TcpStream::connect(gateway.local_addr()).await.expect("connected");
        client.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await.expect("written");
        let mut first = vec![0; 100_000];
        within(client.read_exact(&mut first)).await.expect("its answer begins");
        client
    };
    // These read the beginning, and nothing after that.
    let mut slow = Vec::new();
    for _ in 0..20 {
        slow.push(ask().await);
    }
    let mut rest = vec![0; 15 << 20];
    within(ask().await.read_exact(&mut rest)).await.expect("its answer goes on");
    assert_eq!(upstream.snapshot().connections, 1);
}

/// Long answers, such as events, take streams for long.
#[tokio::test]
async fn requests_beyond_the_streams_of_a_connection_get_another_one() {
    let wait = async |request: Request<Body>| match request.uri().path() {
        "/long" => Response::new(Body::from_stream(futures_util::stream::pending())),
        _ => Response::new(Body::from("short")),
    };
    let mut settings = Settings::default();
    settings.limits.streams = 2;
    let upstream =
        Gateway::new(settings).route(Route::handler("wait", wait)).listen(any()).await.expect("a port");
    let gateway = proxy(&[format!("h2c://{}", upstream.local_addr())], Settings::default()).await;
    let ask = async |path: &str| {
        let mut client = TcpStream::connect(gateway.local_addr()).await.expect("connected");
        let request = format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n");
        client.write_all(request.as_bytes()).await.expect("written");
        let mut first = [0; 15];
        within(client.read_exact(&mut first)).await.expect("an answer");
        assert_eq!(&first, b"HTTP/1.1 200 OK");
        client
    };
    let long = join_all((0..5).map(|_| ask("/long"))).await;
    assert_eq!(upstream.snapshot().connections, 3);
    // Those that are there are used as long as they have room.
    for _ in 0..5 {
        drop(ask("/x").await);
    }
    assert_eq!(upstream.snapshot().connections, 3);
    drop(long);
}

#[tokio::test]
async fn a_connection_that_has_died_is_not_asked_again() {
    let gateway = proxy(&[closes(1, usize::MAX).await], Settings::default()).await;
    let sender = http2::<Empty<Bytes>>(gateway.local_addr()).await;
    for _ in 0..5 {
        let request = Request::get("http://h/").body(Empty::new()).expect("a request");
        let answer = within(sender.clone().send_request(request)).await.expect("an answer");
        assert!([200, 502].contains(&answer.status().as_u16()));
    }
}

#[tokio::test]
async fn a_server_whose_streams_are_taken_is_still_well() {
    let checks = Arc::new(AtomicUsize::new(0));
    let seen = checks.clone();
    let wait = move |request: Request<Body>| {
        let response = match request.uri().path() {
            "/long" => Response::new(Body::from_stream(futures_util::stream::pending())),
            _ => {
                seen.fetch_add(1, Ordering::Relaxed);
                Response::new(Body::from("well"))
            }
        };
        std::future::ready(response)
    };
    let mut settings = Settings::default();
    settings.limits.streams = 1;
    let upstream =
        Gateway::new(settings).route(Route::handler("wait", wait)).listen(any()).await.expect("a port");
    let url = format!("h2c://{}", upstream.local_addr()).parse().expect("a url");
    let check =
        HealthCheck { path: "/check".into(), period: Duration::from_millis(5), ..HealthCheck::default() };
    let target = Target::Proxy(Arc::new(Upstreams::new([url]).health(check)));
    let gateway = Gateway::new(Settings::default()).route(Route::to("up", target)).listen(any()).await;
    let gateway = gateway.expect("a port");
    let mut client = TcpStream::connect(gateway.local_addr()).await.expect("connected");
    client.write_all(b"GET /long HTTP/1.1\r\nHost: h\r\n\r\n").await.expect("written");
    within(client.read_exact(&mut [0; 15])).await.expect("an answer");
    let before = checks.load(Ordering::Relaxed);
    within(async {
        while checks.load(Ordering::Relaxed) < before + 5 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(gateway.snapshot().upstreams[0].healthy);
}

/// It says that it takes no more requests, and ends those that it has.
#[tokio::test]
async fn requests_that_a_leaving_server_has_not_taken_go_over_another_connection() {
    let listener = TcpListener::bind(any()).await.expect("a port");
    let url = format!("h2c://{}", listener.local_addr().expect("an address"));
    let leave = Arc::new(tokio::sync::Notify::new());
    let told = leave.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("accepted");
            let service = service_fn(async |request: Request<hyper::body::Incoming>| {
                let body = match request.uri().path() {
                    "/long" => Body::from_stream(futures_util::stream::pending()),
                    _ => Body::from(request.into_body().collect().await?.to_bytes()),
                };
                Ok::<_, hyper::Error>(Response::new(body))
            });
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let serving = server.serve_connection(TokioIo::new(stream), service);
            let leave = told.clone();
            tokio::spawn(async move {
                tokio::pin!(serving);
                tokio::select! {
                    _ = &mut serving => return,
                    () = leave.notified() => serving.as_mut().graceful_shutdown(),
                }
                let _ = serving.await;
            });
        }
    });
    let gateway = proxy(&[url], Settings::default()).await;
    let sender = http2::<Full<Bytes>>(gateway.local_addr()).await;
    let ask = async |method: &str, path: &str, body: &'static str| {
        let request = Request::builder().method(method).uri(format!("http://h{path}")).body(Full::from(body));
        within(sender.clone().send_request(request.expect("a request"))).await.expect("an answer")
    };
    let mut long = Vec::new();
    // Those with a body, too: nothing of it was sent.
    for (turn, body) in ["", "tea"].repeat(9).into_iter().enumerate() {
        long.push(ask("GET", "/long", "").await);
        leave.notify_waiters();
        // It has been heard by then, or is heard on the way.
        tokio::time::sleep(Duration::from_millis(5) * (turn as u32 / 2 % 3)).await;
        for _ in 0..5 {
            let answer = ask("POST", "/x", body).await;
            assert_eq!(answer.status(), 200);
            assert_eq!(answer.into_body().collect().await.expect("whole").to_bytes(), body);
        }
    }
}
