//! Clients that say nothing.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use millstream_gateway::{Settings, Timeouts};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::support::*;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A frame of settings without any, and one that acknowledges the server's.
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
const SETTINGS_TAKEN: &[u8] = &[0, 0, 0, 4, 1, 0, 0, 0, 0];

/// Sends this and nothing else; what comes until the gateway closes, and after how long it does.
async fn says(to: SocketAddr, bytes: &[u8]) -> (Vec<u8>, Duration) {
    let started = Instant::now();
    let mut stream = within(TcpStream::connect(to)).await.expect("connected");
    stream.write_all(bytes).await.expect("written");
    let mut heard = Vec::new();
    // An end or a reset.
    let _ = tokio::time::timeout(2 * LIMIT, stream.read_to_end(&mut heard)).await.expect("it closes");
    (heard, started.elapsed())
}

fn within_seconds(took: Duration, from: u64, to: u64) {
    assert!((Duration::from_secs(from)..Duration::from_secs(to)).contains(&took), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_finish_the_preface_is_let_go() {
    let gateway = echo_server().await;
    let (_, took) = says(gateway.local_addr(), &PREFACE[..20]).await;
    within_seconds(took, 10, 12);
    assert_eq!(gateway.snapshot().refused["timeout"], 1);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_answers_no_ping_is_let_go() {
    let gateway = echo_server().await;
    let (_, took) = says(gateway.local_addr(), &[PREFACE, SETTINGS, SETTINGS_TAKEN].concat()).await;
    within_seconds(took, 50, 52);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_asks_nothing_for_too_long_is_told_to_go_and_then_let_go() {
    let timeouts =
        Timeouts { keep_alive: Duration::from_secs(5), idle: Duration::from_secs(2), ..Timeouts::default() };
    let upstream = echo_server().await;
    let settings = Settings { timeouts, ..Settings::default() };
    let gateway = proxy(&[format!("http://{}", upstream.local_addr())], settings).await;
    let (heard, took) = says(gateway.local_addr(), &[PREFACE, SETTINGS, SETTINGS_TAKEN].concat()).await;
    within_seconds(took, 5, 8);
    // The frame that says so (RFC 9113, 6.8), with the last stream there may be.
    assert!(heard.windows(5).any(|frame| frame == [0, 0, 8, 7, 0]), "{heard:?}");
    assert_eq!(gateway.snapshot().connections_open, 0);
}

#[tokio::test(start_paused = true)]
async fn a_connection_with_a_stream_is_not_idle() {
    let timeouts = Timeouts { keep_alive: Duration::from_secs(5), ..Timeouts::default() };
    let upstream = tokio::net::TcpListener::bind(any()).await.expect("a port");
    let url = format!("http://{}", upstream.local_addr().expect("an address"));
    let gateway = proxy(&[url], Settings { timeouts, ..Settings::default() }).await;
    let mut sender = http2::<Full<Bytes>>(gateway.local_addr()).await;
    let asking = sender.send_request(Request::get("http://h/").body(Full::default()).expect("a request"));
    let asking = tokio::spawn(asking);
    let (mut up, _) = within(upstream.accept()).await.expect("accepted");
    tokio::time::sleep(Duration::from_secs(30)).await;
    up.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n").await.expect("written");
    let answer = within(asking).await.expect("no panic").expect("an answer");
    tokio::time::sleep(Duration::from_secs(30)).await;
    up.write_all(b"hi").await.expect("written");
    assert_eq!(all(answer).await, "hi");
}
