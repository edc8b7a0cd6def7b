//! What routes and limits do to exchanges over HTTP/2.

use std::io::Read;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{Empty, Full, StreamBody};
use millstream_gateway::{Body, Gateway, Limits, Route, Settings};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::raw::*;
use crate::support::*;

#[tokio::test]
async fn a_body_may_be_as_long_as_the_limit_says() {
    let upstream = echo_server().await;
    for scheme in ["http", "h2c"] {
        let limits = Limits { request_body_bytes: 10, ..Limits::default() };
        let settings = Settings { limits, ..Settings::default() };
        let gateway = proxy(&[format!("{scheme}://{}", upstream.local_addr())], settings).await;
        let mut sender = http2(gateway.local_addr()).await;
        for (length, code) in [(10, 200), (11, 413)] {
            let request = Request::post("http://h/").body(Full::new(Bytes::from(vec![b'x'; length])));
            let answer = within(sender.send_request(request.expect("a request"))).await.expect("an answer");
            assert_eq!(answer.status(), code, "{length} bytes");
        }
        // One that does not say how long it is; its answer may have begun.
        let parts =
            [&b"1234567"[..], b"8901"].map(|part| Ok::<_, std::io::Error>(Frame::data(Bytes::from(part))));
        let body = Box::pin(StreamBody::new(futures_util::stream::iter(parts)));
        let request = Request::post("http://h/").body(body).expect("a request");
        let mut sender = http2(gateway.local_addr()).await;
        if let Ok(answer) = within(sender.send_request(request)).await {
            let status = answer.status().as_u16();
            let whole = within(http_body_util::BodyExt::collect(answer.into_body())).await.is_ok();
            assert!(status == 413 || !whole, "{status}");
        }
        assert_eq!(gateway.snapshot().refused["body_size"], 2);
    }
}

#[tokio::test]
async fn an_answer_is_compressed_for_who_accepts_it() {
    let text = "a line of text\n".repeat(1_000);
    let page = text.clone();
    let handler = move |_: Request<Body>| {
        let mut response = Response::new(Body::from(page.clone()));
        response.headers_mut().insert("content-type", "text/plain".parse().expect("a value"));
        std::future::ready(response)
    };
    let route = Route::handler("page", handler).compress();
    let gateway = Gateway::new(Settings::default()).route(route).listen(any()).await.expect("a port");
    let mut sender = http2::<Empty<Bytes>>(gateway.local_addr()).await;
    for coding in ["gzip", "zstd", "identity"] {
        let request = Request::get("http://h/").header("accept-encoding", coding).body(Empty::new());
        let answer = within(sender.send_request(request.expect("a request"))).await.expect("an answer");
        assert_eq!(answer.headers()["vary"], "accept-encoding");
        let said =
            answer.headers().get("content-encoding").map(|value| value.to_str().expect("text").to_owned());
        assert_eq!(said.as_deref().unwrap_or("identity"), coding);
        let bytes = all(answer).await;
        let mut read = String::new();
        match coding {
            "gzip" => flate2::read::GzDecoder::new(&bytes[..]).read_to_string(&mut read),
            "zstd" => zstd::stream::read::Decoder::new(&bytes[..]).expect("zstd").read_to_string(&mut read),
            _ => Read::read_to_string(&mut &bytes[..], &mut read),
        }
        .expect("text");
        assert!(read == text && (coding == "identity") == (bytes.len() == text.len()), "{coding}");
    }
}

#[tokio::test]
async fn a_server_that_is_asked_about_itself_is_asked_for_no_path() {
    let upstream = echo_server().await;
    for scheme in ["http", "h2c"] {
        let gateway =
            proxy(&[format!("{scheme}://{}/base", upstream.local_addr())], Settings::default()).await;
        let mut client = TcpStream::connect(gateway.local_addr()).await.expect("connected");
        client
            .write_all(b"OPTIONS * HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
            .await
            .expect("written");
        let mut answer = String::new();
        within(client.read_to_string(&mut answer)).await.expect("an answer");
        assert!(answer.contains(" * Some(\"h\")"), "{scheme}: {answer}");
    }
}

#[tokio::test]
async fn a_refusal_has_no_body_where_only_a_head_was_asked_for() {
    let limits = Limits { target_bytes: 10, ..Limits::default() };
    let gateway = Gateway::new(Settings { limits, ..Settings::default() })
        .route(Route::handler("echo", echo).path("/echo"))
        .listen(any())
        .await
        .expect("a port");
    let mut raw = Raw::greeted(gateway.local_addr()).await;
    for (stream, path) in [(1, "/nowhere"), (3, "/further-than-that")] {
        let path_length = path.len() as u8;
        let head =
            [&[2, 4][..], b"HEAD", &[0x86, 4, path_length], path.as_bytes(), &[0x41, 1, b'h']].concat();
        raw.send(&frame(HEADERS, END_STREAM | END_HEADERS, stream, &head)).await;
        let answer = loop {
            let (kind, flags, of, _) = raw.next().await.expect("the connection is open");
            if of == stream {
                break (kind, flags & END_STREAM);
            }
        };
        assert_eq!(answer, (HEADERS, END_STREAM), "{path}");
    }
    let refused = gateway.snapshot().refused;
    assert_eq!((refused["route"], refused["head_size"]), (1, 1), "{refused:?}");
}
