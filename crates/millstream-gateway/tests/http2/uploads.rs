//! Uploads to servers that read them late, and clients that leave servers of HTTP/2.

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use millstream_gateway::{Body, Gateway, PoolSettings, Route, Server, Settings};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use crate::raw::*;
use crate::support::*;

const SIZE: usize = 32 << 20;

/// A server that reads a body when it is told to, and answers how long it was.
async fn late(begin: Arc<Notify>) -> Server {
    let read = move |request: Request<Body>| {
        let begin = begin.clone();
        async move {
            begin.notified().await;
            let (mut body, mut length) = (request.into_body(), 0);
            while let Some(part) = body.next().await {
                length += part.expect("the body is whole").len();
            }
            Response::new(Body::from(length.to_string()))
        }
    };
    Gateway::new(Settings::default()).route(Route::handler("late", read)).listen(any()).await.expect("a port")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_takes_constant_memory_whoever_is_slow() {
    for scheme in ["http", "h2c"] {
        for version in [1, 2] {
            let begin = Arc::new(Notify::new());
            let upstream = late(begin.clone()).await;
            let pool = PoolSettings { bytes_max: 1 << 20, ..PoolSettings::default() };
            let settings = Settings { pool, ..Settings::default() };
            let gateway = proxy(&[format!("{scheme}://{}", upstream.local_addr())], settings).await;
            let to = gateway.local_addr();
            let body = Bytes::from(vec![7; SIZE]);
            let asking = tokio::spawn(async move {
                if version == 2 {
                    let request = Request::post("http://h/").body(Full::new(body)).expect("a request");
                    let answer = http2(to).await.send_request(request).await.expect("an answer");
                    return String::from_utf8(all(answer).await.to_vec()).expect("text");
                }
                let mut client = TcpStream::connect(to).await.expect("connected");
                let head = format!(
                    "POST / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: {SIZE}\r\n\r\n"
                );
                client.write_all(head.as_bytes()).await.expect("written");
                client.write_all(&body).await.expect("written");
                let mut answer = String::new();
                client.read_to_string(&mut answer).await.expect("an answer");
                answer.rsplit("\r\n").next().expect("a body").to_owned()
            });
            let request = || gateway.snapshot().streams[0].clone();
            let what = format!("HTTP/{version} to {scheme}");
            until("backpressure", || request().backpressure_events > 0).await;
            silence(|| (request().backpressure_events, request().bytes)).await;
            assert!(request().bytes < SIZE as u64, "{what}");
            begin.notify_one();
            assert_eq!(within(asking).await.expect("no panic"), SIZE.to_string(), "{what}");
            let stream = request();
            assert_eq!((stream.bytes, stream.ended["complete"]), (SIZE as u64, 1), "{what}");
            assert!(!stream.backpressure_time.is_zero(), "{what}: {stream:?}");
            let pool = gateway.snapshot().pool;
            assert!(pool.bytes_high_water <= 2 << 20, "{what}: {pool:?}");
            assert_eq!(within(gateway.shutdown(LIMIT)).await.leases_left, 0, "{what}");
        }
    }
}

/// A server of HTTP/2 that the test plays.
async fn accept(listener: &TcpListener) -> Raw {
    let mut up = Raw(within(listener.accept()).await.expect("accepted").0);
    within(up.0.read_exact(&mut [0; PREFACE.len()])).await.expect("a preface");
    up.send(&[frame(SETTINGS, 0, 0, &[]), frame(SETTINGS, ACK, 0, &[])].concat()).await;
    up
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_stream_with_it_at_once() {
    let listener = TcpListener::bind(any()).await.expect("a port");
    let url = format!("h2c://{}", listener.local_addr().expect("an address"));
    let gateway = proxy(&[url], Settings::default()).await;
    let begun = [
        &b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nabc"[..],
        b"GET / HTTP/1.1\r\nHost: h\r\n\r\n",
    ];
    let mut up = None;
    let mut stream = 1;
    for request in begun {
        for answered in [false, true] {
            let mut client = TcpStream::connect(gateway.local_addr()).await.expect("connected");
            client.write_all(request).await.expect("written");
            let up = match &mut up {
                Some(up) => up,
                none => none.insert(accept(&listener).await),
            };
            assert_eq!(up.hears().await, Heard::Answered);
            if answered {
                // `:status 200`, and the beginning of a body.
                up.send(
                    &[frame(HEADERS, END_HEADERS, stream, &[0x88]), frame(DATA, 0, stream, b"abc")].concat(),
                )
                .await;
                within(client.read_exact(&mut [0; 15])).await.expect("an answer");
            }
            drop(client);
            assert!(matches!(up.hears().await, Heard::Reset(_)), "{answered}");
            stream += 2;
        }
    }
    // All over one connection, which goes on.
    assert_eq!(gateway.snapshot().upstreams[0].connected, 1);
    assert_eq!(gateway.snapshot().refused["client_gone"], 4);
}
