//! Peers that take nothing, or little: what they hold is bounded, seen, and given up in time.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use millstream_gateway::{
    Body, Gateway, PoolSettings, Route, Server, Settings, StreamOutcome, Timeouts, client_tls, server_tls,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use crate::raw::*;
use crate::support::*;

const SECOND: Duration = Duration::from_secs(1);
/// A setting: so many bytes of each stream may come before more were asked for.
fn window(bytes: u32) -> Vec<u8> {
    frame(SETTINGS, 0, 0, &[&[0, 4], &bytes.to_be_bytes()[..]].concat())
}

fn more(stream: u32, bytes: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes())
}

fn patient(idle: Duration, keep_alive: Duration) -> Settings {
    Settings { timeouts: Timeouts { idle, keep_alive, ..Timeouts::default() }, ..Settings::default() }
}

/// Answers without an end.
async fn endless() -> Server {
    let endless = async |_: Request<Body>| {
        let block = Bytes::from(vec![b'x'; 16 << 10]);
        Response::new(Body::from_stream(futures_util::stream::repeat_with(move || Ok(block.clone()))))
    };
    Gateway::new(Settings::default())
        .route(Route::handler("endless", endless))
        .listen(any())
        .await
        .expect("a port")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_over_tls_is_seen_and_holds_no_buffer() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let directory = tempfile::tempdir().expect("a directory");
    let (certificate, key) = (directory.path().join("certificate.pem"), directory.path().join("key.pem"));
    std::fs::write(&certificate, made.cert.pem()).expect("written");
    std::fs::write(&key, made.signing_key.serialize_pem()).expect("written");
    let upstream = endless().await;
    let url = format!("http://{}", upstream.local_addr());
    // So that TLS takes every chunk as a whole.
    let gateway = Gateway::new(Settings { response_chunk: 16 << 10, ..Settings::default() })
        .route(Route::proxy("up", [url.parse().expect("a url")]))
        .tls(server_tls(&certificate, &key).expect("TLS"))
        .listen(any())
        .await
        .expect("a port");
    let mut config = client_tls(Some(&certificate)).expect("TLS");
    Arc::make_mut(&mut config).alpn_protocols = vec!["http/1.1".into()];
    let stream = TcpStream::connect(gateway.local_addr()).await.expect("connected");
    let name = "localhost".try_into().expect("a name");
    let mut client =
        within(tokio_rustls::TlsConnector::from(config).connect(name, stream)).await.expect("TLS");
    client.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await.expect("written");
    let response = || gateway.snapshot().streams[1].clone();
    until("backpressure", || response().backpressure_events > 0 && gateway.snapshot().pool.in_use == 0).await;
    let mut some = vec![0; 1 << 20];
    while response().backpressure_time.is_zero() {
        within(client.read_exact(&mut some)).await.expect("bytes");
    }
    drop(client);
    assert_eq!(within(gateway.shutdown(LIMIT)).await.leases_left, 0);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_given_up_while_its_client_takes_nothing_is_reset() {
    let upstream = endless().await;
    let gateway = proxy(&[format!("http://{}", upstream.local_addr())], patient(SECOND, 100 * SECOND)).await;
    let mut raw = Raw::greeted(gateway.local_addr()).await;
    raw.send(&[window(0), frame(HEADERS, END_STREAM | END_HEADERS, 1, GET)].concat()).await;
    assert_eq!(raw.hears().await, Heard::Answered);
    assert!(matches!(raw.hears().await, Heard::Reset(_)));
    assert_eq!(gateway.snapshot().pool.in_use, 0);
    // The connection serves on.
    raw.send(&frame(HEADERS, END_STREAM | END_HEADERS, 3, GET)).await;
    assert_eq!(raw.hears().await, Heard::Answered);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_breaks_off_before_anybody_takes_it_is_reset() {
    let upstream = TcpListener::bind(any()).await.expect("a port");
    let url = format!("http://{}", upstream.local_addr().expect("an address"));
    let gateway = proxy(&[url], patient(SECOND, 100 * SECOND)).await;
    let mut raw = Raw::greeted(gateway.local_addr()).await;
    raw.send(&[window(0), frame(HEADERS, END_STREAM | END_HEADERS, 1, GET)].concat()).await;
    let (mut up, _) = within(upstream.accept()).await.expect("accepted");
    within(up.read_exact(&mut [0; 4])).await.expect("a head");
    // All at once: the exchange ends before hyper's task has seen its answer.
    up.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc").await.expect("written");
    up.shutdown().await.expect("closed");
    let mut heard = raw.hears().await;
    // The reset may overtake the head.
    if heard == Heard::Answered {
        heard = raw.hears().await;
    }
    assert!(matches!(heard, Heard::Reset(_)), "{heard:?}");
    until("every buffer is back", || gateway.snapshot().pool.in_use == 0).await;
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_given_up_while_its_upstream_takes_nothing_is_reset() {
    // With no window at all not even the first piece is taken.
    for bytes in [0, 65_535] {
        let listener = TcpListener::bind(any()).await.expect("a port");
        let url = format!("h2c://{}", listener.local_addr().expect("an address"));
        let gateway = proxy(&[url], patient(SECOND, 100 * SECOND)).await;
        let mut client = TcpStream::connect(gateway.local_addr()).await.expect("connected");
        let head = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999\r\n\r\n";
        client.write_all(&[head.as_bytes(), &[b'x'; 1 << 20]].concat()).await.expect("written");
        let mut up = Raw(within(listener.accept()).await.expect("accepted").0);
        within(up.0.read_exact(&mut [0; PREFACE.len()])).await.expect("a preface");
        up.send(&[window(bytes), frame(SETTINGS, ACK, 0, &[])].concat()).await;
        assert_eq!(up.hears().await, Heard::Answered);
        // `:status 200`. After it hyper does not listen for who gives up.
        up.send(&frame(HEADERS, END_HEADERS, 1, &[0x88])).await;
        assert!(matches!(up.hears().await, Heard::Reset(_)), "{bytes}");
        until("every buffer is back", || gateway.snapshot().pool.in_use == 0).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_but_steady_client_gets_all_of_an_answer_however_long_that_takes() {
    const PIECE: usize = 20_000;
    let whole = async |_: Request<Body>| Response::new(Body::from(Bytes::from(vec![b'x'; 4 * PIECE])));
    let parts = async |_: Request<Body>| {
        let pieces = (0..4).map(|_| Ok(Bytes::from(vec![b'x'; PIECE])));
        Response::new(Body::from_stream(futures_util::stream::iter(pieces)))
    };
    for route in [Route::handler("whole", whole), Route::handler("parts", parts)] {
        let gateway = Gateway::new(patient(SECOND, 2 * SECOND)).route(route);
        let gateway = gateway.listen(any()).await.expect("a port");
        let mut raw = Raw::greeted(gateway.local_addr()).await;
        raw.send(&[window(0), frame(HEADERS, END_STREAM | END_HEADERS, 1, GET)].concat()).await;
        assert_eq!(raw.hears().await, Heard::Answered);
        raw.send(&more(0, 1 << 20)).await;
        let mut left = 4 * PIECE;
        while left > 0 {
            raw.send(&more(1, 1_000)).await;
            let mut part = 0;
            while part < 1_000 {
                let (kind, _, _, payload) = raw.next().await.expect("the connection is open");
                assert_ne!(kind, RST_STREAM, "{left}");
                part += if kind == DATA { payload.len() } else { 0 };
            }
            left -= part;
            tokio::time::sleep(SECOND / 2).await;
        }
        assert_eq!(gateway.snapshot().streams[1].ended["complete"], 1);
    }
}

/// Takes `opened` bytes of an answer that is all there, while its connection does other things. Ends when that is reset.
async fn is_reset(opened: u32, answer: &[&[u8]]) {
    let upstream = TcpListener::bind(any()).await.expect("a port");
    let url = format!("http://{}", upstream.local_addr().expect("an address"));
    let (tell, mut told) = tokio::sync::mpsc::channel(100);
    let nothing = async |_: Request<Body>| {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        response
    };
    let gateway = Gateway::new(patient(SECOND, 100 * SECOND))
        .route(Route::handler("nothing", nothing).methods([Method::POST]))
        .route(Route::proxy("up", [url.parse().expect("a url")]))
        .observe(move |report| tell.try_send(report.clone()).expect("room"))
        .listen(any())
        .await
        .expect("a port");
    let mut raw = Raw::greeted(gateway.local_addr()).await;
    raw.send(&[window(opened), frame(HEADERS, END_STREAM | END_HEADERS, 1, GET)].concat()).await;
    let (mut up, _) = within(upstream.accept()).await.expect("accepted");
    within(up.read_exact(&mut [0; 4])).await.expect("a head");
    for part in answer {
        up.write_all(part).await.expect("written");
        tokio::time::sleep(SECOND / 10).await;
    }
    let since = Instant::now();
    let mut reset = None;
    let mut stream = 1;
    while reset.is_none() {
        tokio::time::sleep(SECOND / 4).await;
        assert!(since.elapsed() < 2 * SECOND, "not reset with a window of {opened}");
        // The server has done its part.
        assert_eq!(gateway.snapshot().upstreams[0].in_flight, 0);
        stream += 2;
        raw.send(&frame(HEADERS, END_STREAM | END_HEADERS, stream, POST)).await;
        let mut answered = false;
        while !answered {
            let (kind, _, of, payload) = raw.next().await.expect("the connection is open");
            answered = kind == HEADERS && of == stream;
            if kind == RST_STREAM {
                reset = Some((of, payload));
            }
        }
    }
    assert_eq!(reset, Some((1, 8_u32.to_be_bytes().to_vec())), "{opened}");
    let snapshot = gateway.snapshot();
    assert_eq!((snapshot.pool.in_use, snapshot.refused["client_gone"]), (0, 1));
    let report = loop {
        let report = told.recv().await.expect("a report");
        if report.method == Some(Method::GET) {
            break report;
        }
    };
    assert_eq!(report.failure.as_deref(), Some("the answer broke off: nothing was taken for 1s"));
    let response = report.response.expect("an answer");
    assert_eq!(response.outcome, StreamOutcome::TimedOut);
    assert!((SECOND..2 * SECOND).contains(&response.backpressure_time), "{response:?}");
}

/// Hyper has the last of it then, and h2 what began to go out, so that nobody asks for more.
#[tokio::test(start_paused = true)]
async fn an_answer_whose_last_nobody_takes_is_reset_whatever_else_its_connection_does() {
    let body = vec![b'x'; 30_000];
    let length: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 30000\r\n\r\n";
    for opened in [0, 1, 16_384, 29_998, 29_999] {
        is_reset(opened, &[length, &body]).await;
    }
    is_reset(0, &[b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"]).await;
}

#[tokio::test(start_paused = true)]
async fn so_is_one_whose_end_comes_after_its_data() {
    let begin: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2710\r\n";
    let body = vec![b'x'; 10_000];
    for end in [&b"\r\n0\r\n\r\n"[..], b"\r\n0\r\nx: y\r\n\r\n"] {
        for opened in [0, 1, 9_999] {
            is_reset(opened, &[begin, &body, end]).await;
            is_reset(opened, &[&[begin, &body, end].concat()]).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_nothing_of_an_answer_that_has_ended_is_let_go_though_it_answers_pings() {
    let gateway = Gateway::new(patient(40 * SECOND, 40 * SECOND)).route(Route::handler("echo", echo));
    let gateway = gateway.listen(any()).await.expect("a port");
    let mut raw = Raw::greeted(gateway.local_addr()).await;
    let request = [frame(HEADERS, END_HEADERS, 1, POST), frame(DATA, END_STREAM, 1, b"hello")].concat();
    raw.send(&[window(0), request].concat()).await;
    let since = Instant::now();
    let mut told = false;
    let closed = async {
        while let Some((kind, flags, _, payload)) = raw.next_ever().await {
            told |= kind == GOAWAY;
            if (kind, flags) == (PING, 0) {
                raw.send(&frame(PING, ACK, 0, &payload)).await;
            }
        }
    };
    tokio::time::timeout(1000 * SECOND, closed).await.expect("closed");
    assert!(told && since.elapsed() <= 161 * SECOND, "{:?}", since.elapsed());
}

#[tokio::test]
async fn uploads_that_nobody_reads_hold_up_no_other_of_their_connection() {
    let never = |_: Request<Body>| std::future::pending::<Response<Body>>();
    let gateway = Gateway::new(Settings::default())
        .route(Route::handler("never", never).path("/never"))
        .route(Route::handler("echo", echo))
        .listen(any())
        .await
        .expect("a port");
    let sender = http2::<Full<Bytes>>(gateway.local_addr()).await;
    let ask = |path: &str| {
        let body = Full::new(Bytes::from(vec![b'x'; 1 << 20]));
        let request = Request::post(format!("http://h{path}")).body(body).expect("a request");
        let mut sender = sender.clone();
        async move { sender.send_request(request).await.expect("an answer") }
    };
    let held: Vec<_> = (0..90).map(|_| tokio::spawn(ask("/never"))).collect();
    until("uploads", || gateway.snapshot().streams[0].started == 90).await;
    assert_eq!(all(within(ask("/")).await).await.len(), 1 << 20);
    held.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_over_http_2_holds_few_buffers() {
    const STREAMS: u64 = 50;
    let upstream = endless().await;
    for bytes_max in [1 << 20, 64 << 20] {
        let pool = PoolSettings { bytes_max, ..PoolSettings::default() };
        let settings = Settings { pool, ..Settings::default() };
        let gateway = proxy(&[format!("http://{}", upstream.local_addr())], settings).await;
        let mut raw = Raw::greeted(gateway.local_addr()).await;
        // It asks for a lot, and reads nothing.
        raw.send(&[window(16 << 20), more(0, 1 << 30)].concat()).await;
        for stream in 0..STREAMS as u32 {
            raw.send(&frame(HEADERS, END_STREAM | END_HEADERS, 2 * stream + 1, GET)).await;
        }
        let response = || gateway.snapshot().streams[1].clone();
        until("backpressure", || response().backpressure_events >= STREAMS).await;
        silence(|| response().bytes).await;
        let pool = gateway.snapshot().pool;
        let held: u64 = pool.tiers.iter().map(|tier| tier.size * tier.in_use).sum();
        assert!(held <= STREAMS * 7 * (16 << 10), "{} bytes a stream: {pool:?}", held / STREAMS);
    }
}
