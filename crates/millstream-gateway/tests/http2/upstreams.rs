//! Upstreams that speak HTTP/2.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use millstream_gateway::{Body, Gateway, HealthCheck, Route, Settings, Target, Upstreams};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::*;

/// A server that answers its first request, and closes each connection at the second without an answer.
async fn closes_at_the_second() -> String {
    let listener = TcpListener::bind(any()).await.expect("a port");
    let url = format!("h2c://{}", listener.local_addr().expect("an address"));
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("accepted");
            let (over, mut is_over) = tokio::sync::mpsc::channel::<()>(1);
            let asked = Arc::new(AtomicUsize::new(0));
            let service = service_fn(move |_| {
                let (first, over) = (asked.fetch_add(1, Ordering::Relaxed) == 0, over.clone());
                async move {
                    if !first {
                        over.send(()).await.expect("heard");
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
    let gateway = proxy(&[closes_at_the_second().await], Settings::default()).await;
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
