//! Heads and trailers over HTTP/2 that are meant to harm.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use millstream_gateway::{Limits, Settings};

use crate::support::*;

type Lines<'a> = &'a [(&'a str, &'a [u8])];

fn asked(method: &str, target: &str, lines: Lines) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::new(Bytes::from("abcd")));
    *request.method_mut() = Method::from_bytes(method.as_bytes()).expect("a method");
    *request.uri_mut() = target.parse().expect("a target");
    for (name, value) in lines {
        let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
        request.headers_mut().append(name, HeaderValue::from_bytes(value).expect("a value"));
    }
    request
}

#[tokio::test]
async fn heads_that_two_readers_could_understand_differently_are_refused_over_http_2_as_well() {
    let upstream = echo_server().await;
    let limits = Limits { target_bytes: 100, ..Limits::default() };
    let settings = Settings { limits, ..Settings::default() };
    let gateway = proxy(&[format!("http://{}", upstream.local_addr())], settings).await;
    let long = format!("http://h/{}", "x".repeat(100));
    let many: Vec<(&str, &[u8])> = vec![("x-many", b"1"); 130];
    let large: Vec<(&str, &[u8])> = vec![("x-large", &[b'x'; 1_000]); 66];
    let cases: [(&str, &str, Lines, u16); 14] = [
        ("POST", "http://h/", &[("host", b"other")], 400),
        ("POST", "http://h/", &[("host", b"h"), ("host", b"h")], 400),
        ("POST", "http://h/", &[("host", b"h\";by=evil")], 400),
        ("POST", "http://u@h/", &[], 400),
        ("POST", "http://h:x/", &[], 400),
        ("POST", "http://h/", &[("content-length", b"4"), ("content-length", b"5")], 0),
        ("POST", "http://h/", &[("content-length", b"4"), ("content-length", b"4")], 400),
        ("POST", "http://h/", &[("x-a", b"\xff\xfe")], 400),
        ("POST", "ftp://h/", &[], 400),
        ("POST", &long, &[], 414),
        ("POST", "http://h/", &many, 431),
        ("POST", "http://h/", &large, 431),
        ("POST", "http://h/", &[("expect", b"miracles")], 417),
        ("POST", "http://h/", &[("host", b"H")], 200),
    ];
    for (method, target, lines, code) in cases {
        // A connection each, since a fault may cost it.
        let mut sender = http2::<Full<Bytes>>(gateway.local_addr()).await;
        // What breaks the protocol's own rules resets its stream.
        let answer = within(sender.send_request(asked(method, target, lines))).await;
        let status = answer.map_or(0, |answer| answer.status().as_u16());
        assert_eq!(status, code, "{method} {target} {lines:?}");
    }
    let snapshot = gateway.snapshot();
    assert_eq!((snapshot.refused["head"], snapshot.refused["head_size"]), (9, 3));
    // None of them has reached the upstream but the last.
    assert_eq!(snapshot.upstreams[0].connected, 1);
}

#[tokio::test]
async fn a_tunnel_to_anywhere_is_refused() {
    let upstream = echo_server().await;
    let gateway = proxy(&[format!("http://{}", upstream.local_addr())], Settings::default()).await;
    let mut sender = http2::<Full<Bytes>>(gateway.local_addr()).await;
    let mut request = asked("CONNECT", "example.org:22", &[]);
    *request.body_mut() = Full::default();
    let answer = within(sender.send_request(request)).await.expect("an answer");
    assert_eq!((answer.status().as_u16(), gateway.snapshot().refused["head"]), (501, 1));
}

#[tokio::test]
async fn trailers_over_http_2_never_say_what_belongs_into_a_head() {
    let upstream = echo_server().await;
    let gateway = proxy(&[format!("http://{}", upstream.local_addr())], Settings::default()).await;
    let mut sender = http2(gateway.local_addr()).await;
    let mut trailers = HeaderMap::new();
    for name in ["authorization", "host", "content-encoding", "x-sum"] {
        trailers.insert(name, "1".parse().expect("a value"));
    }
    let frames = [Frame::data(Bytes::from("a")), Frame::trailers(trailers)].map(Ok::<_, std::io::Error>);
    let body = Box::pin(StreamBody::new(futures_util::stream::iter(frames)));
    let request = Request::post("http://h/").body(body).expect("a request");
    let answer = within(sender.send_request(request)).await.expect("an answer");
    let collected = within(answer.into_body().collect()).await.expect("a body");
    let names: Vec<_> = collected.trailers().expect("trailers").keys().cloned().collect();
    assert_eq!(names, ["x-sum"]);
}
