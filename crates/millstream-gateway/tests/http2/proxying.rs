//! HTTP/2 and TLS on either side, and servers that are not well.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper_util::rt::{TokioExecutor, TokioIo};
use millstream_gateway::{
    Body, Gateway, HealthCheck, Limits, Route, Settings, Target, Upstreams, client_tls, server_tls,
};
use millstream_resilience::BreakerSettings;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::*;

#[tokio::test]
async fn http_2_comes_in_and_goes_out() {
    let upstream = echo_server().await;
    for scheme in ["http", "h2c"] {
        let gateway =
            proxy(&[format!("{scheme}://{}/base", upstream.local_addr())], Settings::default()).await;
        let mut sender = http2::<Full<Bytes>>(gateway.local_addr()).await;
        let size = 3 << 20;
        let request = Request::post("http://name.example/a")
            .header("cookie", "a=1")
            .header("cookie", "b=2")
            .body(Full::new(Bytes::from(vec![5; size])))
            .expect("a request");
        let response = within(sender.send_request(request)).await.expect("an answer");
        let seen = response.headers()["x-seen"].to_str().expect("text").to_owned();
        let version = if scheme == "h2c" { "HTTP/2.0" } else { "HTTP/1.1" };
        assert_eq!(seen, format!("{version} /base/a Some(\"name.example\")"));
        assert_eq!(response.headers()["x-cookie"], "a=1; b=2");
        assert_eq!(all(response).await, vec![5; size]);
        let streams = gateway.snapshot().streams;
        assert_eq!((streams[0].bytes, streams[1].bytes), (size as u64, size as u64));
        let drained = within(gateway.shutdown(LIMIT)).await;
        assert_eq!((drained.broken_off, drained.leases_left), (0, 0));
    }
}

#[tokio::test]
async fn what_is_broken_off_at_the_deadline_are_connections_and_not_their_streams() {
    let never = Route::handler("never", |_: Request<Body>| std::future::pending::<Response<Body>>());
    let gateway = Gateway::new(Settings::default()).route(never).listen(any()).await.expect("a port");
    let senders = [http2(gateway.local_addr()).await, http2(gateway.local_addr()).await];
    let mut asking = tokio::task::JoinSet::new();
    for mut sender in senders.iter().cycle().take(6).cloned() {
        let request = Request::get("http://h/").body(Full::<Bytes>::default()).expect("a request");
        asking.spawn(async move { sender.send_request(request).await.is_err() });
    }
    within(async {
        while gateway.snapshot().streams[0].started < 6 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(within(gateway.shutdown(Duration::ZERO)).await.broken_off, 2);
    assert_eq!(within(asking.join_all()).await, [true; 6]);
}

#[tokio::test]
async fn http_2_streams_both_ways_at_once_with_trailers() {
    let upstream = echo_server().await;
    let gateway = proxy(&[format!("h2c://{}", upstream.local_addr())], Settings::default()).await;
    let mut sender = http2(gateway.local_addr()).await;
    let (send, receive) = tokio::sync::mpsc::channel::<Result<Frame<Bytes>, std::io::Error>>(1);
    let body = StreamBody::new(futures_util::stream::unfold(receive, async |mut receive| {
        receive.recv().await.map(|frame| (frame, receive))
    }));
    let body = Box::pin(body);
    let response =
        within(sender.send_request(Request::post("http://h/").body(body).expect("a request"))).await;
    let mut answer = response.expect("an answer").into_body();
    for word in ["one", "two"] {
        send.send(Ok(Frame::data(Bytes::from(word)))).await.expect("taken");
        let frame = within(answer.frame()).await.expect("a frame").expect("no error");
        assert_eq!(frame.into_data().expect("data"), word);
    }
    let mut trailers = http::HeaderMap::new();
    trailers.insert("x-sum", "6".parse().expect("a value"));
    send.send(Ok(Frame::trailers(trailers))).await.expect("taken");
    drop(send);
    let frame = within(answer.frame()).await.expect("a frame").expect("no error");
    assert_eq!(frame.into_trailers().expect("trailers")["x-sum"], "6");
}

#[tokio::test]
async fn a_stream_that_its_client_resets_is_cancelled_at_the_upstream() {
    let upstream = tokio::net::TcpListener::bind(any()).await.expect("a port");
    let url = format!("http://{}", upstream.local_addr().expect("an address"));
    let (tell, mut told) = tokio::sync::mpsc::channel(1);
    let gateway = Gateway::new(Settings::default())
        .route(Route::proxy("up", [url.parse().expect("a url")]))
        .observe(move |report| tell.try_send(report.clone()).expect("one exchange"))
        .listen(any())
        .await
        .expect("a port");
    let mut sender = http2::<Full<Bytes>>(gateway.local_addr()).await;
    let asking = sender.send_request(Request::get("http://h/").body(Full::default()).expect("a request"));
    let asking = tokio::spawn(asking);
    let (mut up, _) = within(upstream.accept()).await.expect("accepted");
    let mut head = [0; 5];
    within(up.read_exact(&mut head)).await.expect("a head");
    asking.abort();
    let mut rest = Vec::new();
    // An end or a reset, but at once.
    let _ = within(up.read_to_end(&mut rest)).await;
    // It is told and counted like an exchange that ended by itself.
    let report = within(told.recv()).await.expect("a report");
    assert_eq!((report.failure.as_deref(), report.status), (Some("the client is gone"), None));
    assert_eq!(gateway.snapshot().refused["client_gone"], 1);
}

#[tokio::test]
async fn an_answer_that_breaks_off_resets_its_stream_and_no_other() {
    let upstream = tokio::net::TcpListener::bind(any()).await.expect("a port");
    let url = format!("http://{}", upstream.local_addr().expect("an address"));
    let gateway = proxy(&[url], Settings::default()).await;
    let mut sender = http2::<Full<Bytes>>(gateway.local_addr()).await;
    let get = || Request::get("http://h/").body(Full::default()).expect("a request");
    for (answer, whole) in [("Content-Length: 9\r\n\r\nabc", false), ("Content-Length: 3\r\n\r\nabc", true)] {
        let asking = tokio::spawn(sender.send_request(get()));
        let (mut up, _) = within(upstream.accept()).await.expect("accepted");
        let mut head = [0; 4];
        within(up.read_exact(&mut head)).await.expect("a head");
        up.write_all(format!("HTTP/1.1 200 OK\r\n{answer}").as_bytes()).await.expect("written");
        up.shutdown().await.expect("closed");
        // The reset may overtake the head.
        let got = match within(asking).await.expect("no panic") {
            Ok(response) => within(response.into_body().collect()).await.is_ok(),
            Err(_) => false,
        };
        assert_eq!(got, whole);
    }
}

#[tokio::test]
async fn tls_is_spoken_on_both_sides_with_the_protocol_that_both_know() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let directory = tempfile::tempdir().expect("a directory");
    let (certificate, key) = (directory.path().join("c.pem"), directory.path().join("k.pem"));
    std::fs::write(&certificate, made.cert.pem()).expect("written");
    std::fs::write(&key, made.signing_key.serialize_pem()).expect("written");
    let upstream = Gateway::new(Settings::default())
        .route(Route::handler("echo", echo))
        .tls(server_tls(&certificate, &key).expect("TLS"))
        .listen(any())
        .await
        .expect("a port");
    let url = format!("https://localhost:{}", upstream.local_addr().port());
    let gateway = Gateway::new(Settings::default())
        .route(Route::proxy("up", [url.parse().expect("a url")]))
        .tls(server_tls(&certificate, &key).expect("TLS"))
        .upstream_tls(client_tls(Some(&certificate)).expect("TLS"))
        .listen(any())
        .await
        .expect("a port");
    for protocol in ["h2", "http/1.1"] {
        let mut config = client_tls(Some(&certificate)).expect("TLS");
        Arc::make_mut(&mut config).alpn_protocols = vec![protocol.into()];
        let stream = TcpStream::connect(gateway.local_addr()).await.expect("connected");
        let name = "localhost".try_into().expect("a name");
        let tls = within(tokio_rustls::TlsConnector::from(config).connect(name, stream)).await.expect("TLS");
        let text = if protocol == "h2" {
            let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tls));
            let (mut sender, connection) = within(handshake).await.expect("HTTP/2");
            tokio::spawn(connection);
            let request = Request::post("https://localhost/x")
                .body(Full::new(Bytes::from("hello")))
                .expect("a request");
            let response = within(sender.send_request(request)).await.expect("an answer");
            assert!(response.headers()["x-seen"].to_str().expect("text").starts_with("HTTP/2.0 /x"));
            all(response).await
        } else {
            let mut tls = tls;
            let request =
                "POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";
            tls.write_all(request.as_bytes()).await.expect("written");
            let mut answer = Vec::new();
            within(tls.read_to_end(&mut answer)).await.expect("read");
            answer.split_off(answer.len().saturating_sub(5)).into()
        };
        assert_eq!(text, "hello", "{protocol}");
    }
    let streams = gateway.snapshot().streams;
    assert_eq!((streams[0].bytes, streams[1].bytes), (10, 10));

    // What is no TLS is refused, and counted.
    let mut plain = TcpStream::connect(gateway.local_addr()).await.expect("connected");
    plain.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await.expect("written");
    let mut answer = Vec::new();
    let _ = within(plain.read_to_end(&mut answer)).await;
    assert!(!answer.starts_with(b"HTTP"));
    assert_eq!(gateway.snapshot().refused["tls"], 1);
}

#[tokio::test(start_paused = true)]
async fn a_client_may_not_ask_more_often_than_its_rate() {
    let upstream = echo_server().await;
    let limits = Limits { client_rate: Some(1), client_burst: 3, ..Limits::default() };
    let settings = Settings { limits, ..Settings::default() };
    let gateway = proxy(&[format!("http://{}", upstream.local_addr())], settings).await;
    let mut sender = http2::<Full<Bytes>>(gateway.local_addr()).await;
    let mut statuses = Vec::new();
    for _ in 0..5 {
        let request = Request::get("http://h/").body(Full::default()).expect("a request");
        let response = within(sender.send_request(request)).await.expect("an answer");
        if response.status() == StatusCode::TOO_MANY_REQUESTS {
            assert_eq!(response.headers()["retry-after"], "1");
        }
        statuses.push(response.status().as_u16());
    }
    assert_eq!(statuses[..4], [200, 200, 200, 429]);
    assert!(gateway.snapshot().refused["rate"] >= 1);
}

#[tokio::test]
async fn a_server_that_fails_is_left_alone() {
    let upstream = Gateway::new(Settings::default())
        .route(Route::handler("ill", async |_: Request<Body>| {
            let mut response = Response::<Body>::default();
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            response
        }))
        .listen(any())
        .await
        .expect("a port");
    let url = format!("http://{}", upstream.local_addr()).parse().expect("a url");
    let breaker = BreakerSettings::default().calls_min(4).count_window(4);
    let target = Target::Proxy(Arc::new(Upstreams::new([url]).breaker(&breaker)));
    let gateway =
        Gateway::new(Settings::default()).route(Route::to("up", target)).listen(any()).await.expect("a port");
    let mut sender = http2::<Full<Bytes>>(gateway.local_addr()).await;
    for _ in 0..10 {
        let request = Request::get("http://h/").body(Full::default()).expect("a request");
        within(sender.send_request(request)).await.expect("an answer");
    }
    let seen: u64 = upstream.snapshot().answers[0].by_class.values().sum();
    assert_eq!(seen, 4);
    assert!(!gateway.snapshot().upstreams[0].healthy);
}

#[tokio::test]
async fn a_server_that_says_it_is_ill_gets_no_requests_until_it_is_well() {
    let well = Arc::new(AtomicBool::new(false));
    let state = well.clone();
    let upstream = Gateway::new(Settings::default())
        .route(Route::handler("health", move |request: Request<Body>| {
            let well = state.load(Ordering::Relaxed) || request.uri().path() != "/health";
            let status = if well { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR };
            std::future::ready(Response::builder().status(status).body(Body::empty()).expect("a response"))
        }))
        .listen(any())
        .await
        .expect("a port");
    for scheme in ["http", "h2c"] {
        well.store(false, Ordering::Relaxed);
        let url = format!("{scheme}://{}", upstream.local_addr()).parse().expect("a url");
        let check = HealthCheck {
            path: "/health".into(),
            period: Duration::from_millis(5),
            ..HealthCheck::default()
        };
        let target = Target::Proxy(Arc::new(Upstreams::new([url]).health(check)));
        let gateway = Gateway::new(Settings::default()).route(Route::to("up", target)).listen(any()).await;
        let gateway = gateway.expect("a port");
        let is = async |wanted: bool| {
            within(async {
                while gateway.snapshot().upstreams[0].healthy != wanted {
                    tokio::task::yield_now().await;
                }
            })
            .await;
        };
        is(false).await;
        let mut sender = http2::<Full<Bytes>>(gateway.local_addr()).await;
        let get = || Request::get("http://h/").body(Full::default()).expect("a request");
        let answer = within(sender.send_request(get())).await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        well.store(true, Ordering::Relaxed);
        is(true).await;
        assert_eq!(within(sender.send_request(get())).await.expect("an answer").status(), StatusCode::OK);
    }
}
