//! Bytes that are meant to harm.

use std::future::ready;

use http::{Request, Response};
use millstream_gateway::{Body, Gateway, Limits, Route, Settings};

use crate::support::*;

#[tokio::test]
async fn smuggled_requests_are_refused_and_never_reach_the_upstream() {
    let scene = scene(Settings::default()).await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n";
    for (head, code) in [
        (
            "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        ("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcd", 400),
        ("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4, 4\r\n\r\nabcd", 400),
        ("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0x4\r\n\r\nabcd", 400),
        (
            "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            501,
        ),
        ("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n", 501),
        ("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: h\r\nA: b\r\n folded\r\n\r\n", 400),
        ("GET / HTTP/1.1\nHost: h\n\n", 400),
        ("GET / HTTP/1.1\r\nHost: h\r\nA: b\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: h\r\nHost: other\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nA: b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: h\r\nA\x01: b\r\n\r\n", 400),
        ("GET / HTTP/3.7\r\nHost: h\r\n\r\n", 505),
        ("CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n", 501),
        ("GET http://u@h/ HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        ("GET http://h:x/ HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        ("GET gopher://h/ HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: h\";by=evil\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: h%41\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a:99999\r\n\r\n", 400),
        ("GET http://a:99999/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: [1:2:3:4:5:6:7:8:9:a]\r\n\r\n", 400),
    ] {
        let mut client = scene.client().await;
        client.send(format!("{head}{smuggled}")).await;
        let (answers, _) = client.rest().await;
        let answers = String::from_utf8_lossy(&answers).into_owned();
        assert_eq!(status(&answers), code, "{head:?}: {answers}");
        assert_eq!(answers.matches("HTTP/1.1").count(), 1 + usize::from(code == 505), "{head:?}: {answers}");
    }
    let upstreams = scene.server.snapshot().upstreams;
    assert_eq!((upstreams[0].connected, scene.refused("head")), (0, 24));
    scene.end().await;
}

#[tokio::test]
async fn bytes_that_are_no_utf_8_are_refused_in_a_header() {
    let scene = scene(Settings::default()).await;
    let mut client = scene.client().await;
    client.send(b"GET / HTTP/1.1\r\nHost: h\r\nA: \xff\xfe\r\n\r\n").await;
    assert_eq!(status(&client.head().await), 400);
    scene.end().await;
}

#[tokio::test]
async fn broken_chunks_are_refused_and_the_upstream_sees_no_whole_body() {
    for chunks in
        ["5\nhello\r\n", "5\r\nhelloX", "zz\r\n", "5;a=\x01\r\n", "0\r\nA: b\n\r\n", "11111111111111111\r\n"]
    {
        let scene = scene(Settings::default()).await;
        let head = "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
        let mut client = scene.client().await;
        client.send(format!("{head}{chunks}")).await;
        let mut up = scene.accept().await;
        assert_eq!(status(&client.head().await), 400, "{chunks:?}");
        let (body, _) = up.rest().await;
        assert!(!String::from_utf8_lossy(&body).contains("0\r\n\r\n"), "{chunks:?}");
        assert_eq!(scene.refused("framing"), 1);
        scene.end().await;
    }
}

#[tokio::test]
async fn what_is_too_large_is_refused() {
    let limits =
        Limits { header_bytes: 2000, target_bytes: 100, request_body_bytes: 1000, ..Limits::default() };
    let scene = scene(Settings { limits, ..Settings::default() }).await;
    for (request, code) in [
        (format!("GET / HTTP/1.1\r\nHost: h\r\nA: {}\r\n\r\n", "a".repeat(2000)), 431),
        (format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", "A: b\r\n".repeat(200)), 431),
        (format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", "a".repeat(100)), 414),
        ("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1001\r\n\r\n".into(), 413),
    ] {
        let mut client = scene.client().await;
        client.send(&request).await;
        assert_eq!(status(&client.head().await), code, "{request}");
    }
    // A head without an end is not gathered for ever.
    let mut client = scene.client().await;
    client.send("GET / HTTP/1.1\r\n").await;
    client.send("a".repeat(3000)).await;
    assert_eq!(status(&client.head().await), 431);
    // A body that says nothing of its length is stopped where the limit is.
    let head = "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
    let (mut client, mut up, _) = scene.asked(&format!("{head}3e8\r\n{}\r\n", "a".repeat(1000))).await;
    up.bytes(1000).await;
    client.send("1\r\na\r\n").await;
    assert_eq!(status(&client.head().await), 413);
    let (body, _) = up.rest().await;
    assert!(!String::from_utf8_lossy(&body).contains("0\r\n\r\n"));
    assert_eq!((scene.refused("head_size"), scene.refused("body_size")), (4, 2));
    scene.end().await;
}

#[tokio::test]
async fn no_way_to_write_a_path_passes_its_route_by() {
    let says =
        |name: &'static str| Route::handler(name, move |_: Request<Body>| ready(Response::new(name.into())));
    let gateway = Gateway::new(Settings::default()).route(says("guarded").path("/v1")).route(says("rest"));
    let server = gateway.listen("127.0.0.1:0".parse().expect("an address")).await.expect("a port");
    let mut client = connect(server.local_addr()).await;
    for (path, expected) in [
        ("/v1/x", "200 guarded"),
        ("/v1//x%20y;z", "200 guarded"),
        ("/v2/%76%31//x;y", "200 rest"),
        ("/%76%31/x", "400 "),
        ("/%761", "400 "),
        ("//v1/x", "400 "),
        ("/v1%2fx", "400 "),
        ("/v1;a/x", "400 "),
        ("http://h//v1?x", "400 "),
    ] {
        client.send(format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n")).await;
        let head = client.head().await;
        let length = head.to_lowercase().split_once("content-length: ").map(|(_, rest)| rest.to_owned());
        let length = length.and_then(|rest| rest.lines().next()?.parse().ok()).expect("a length");
        let body = String::from_utf8(client.bytes(length).await).expect("text");
        let answer = format!("{} {body}", status(&head));
        assert!(answer.starts_with(expected), "{path}: {answer}");
        assert_eq!(answer.contains("write it plainly"), expected == "400 ", "{path}: {answer}");
    }
    assert_eq!(server.snapshot().refused["head"], 6);
}
