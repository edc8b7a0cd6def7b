//! Frames that break the protocol (RFC 9113), and floods of frames that do not: each costs its connection at most, and a bounded
//! amount of work.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use http::{Method, Request, Response};
use http_body_util::Full;
use millstream_gateway::{Body, Gateway, Limits, Route, Server, Settings};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::raw::*;
use crate::support::*;

/// The gateway serves others as before, and forgets what it was sent.
async fn is_unharmed(gateway: Server) {
    let mut raw = Raw::greeted(gateway.local_addr()).await;
    raw.send(&frame(HEADERS, END_STREAM | END_HEADERS, 1, GET)).await;
    assert_eq!(raw.hears().await, Heard::Answered);
    drop(raw);
    within(async {
        while gateway.snapshot().connections_open > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(within(gateway.shutdown(LIMIT)).await.leases_left, 0);
}

#[tokio::test]
async fn what_breaks_the_protocol_is_answered_with_its_code() {
    use Heard::{Answered, Goaway, Reset};
    let open = frame(HEADERS, END_HEADERS, 1, POST);
    let asked = frame(HEADERS, END_STREAM | END_HEADERS, 1, GET);
    // The library says PROTOCOL_ERROR in some places where the RFC has a word of its own.
    let after = |first: &[u8], then: Vec<u8>| [first, &then].concat();
    for (what, bytes, heard) in [
        ("a frame larger than was allowed", frame(DATA, 0, 1, &[0; 16_385]), Goaway(FRAME_SIZE_ERROR)),
        ("data of a stream that nobody opened", frame(DATA, 0, 1, b"x"), Goaway(PROTOCOL_ERROR)),
        ("data of no stream", frame(DATA, 0, 0, b"x"), Goaway(PROTOCOL_ERROR)),
        ("data padded beyond its end", after(&open, frame(DATA, 8, 1, &[9, 1])), Goaway(PROTOCOL_ERROR)),
        ("headers of no stream", frame(HEADERS, END_HEADERS, 0, GET), Goaway(PROTOCOL_ERROR)),
        ("a stream with the server's number", frame(HEADERS, END_HEADERS, 2, GET), Goaway(PROTOCOL_ERROR)),
        (
            "a stream with a lower number",
            after(&frame(HEADERS, END_HEADERS, 3, POST), frame(HEADERS, END_HEADERS, 1, POST)),
            Goaway(PROTOCOL_ERROR),
        ),
        ("headers that do not decode", frame(HEADERS, END_HEADERS, 1, &[0xff; 20]), Goaway(PROTOCOL_ERROR)),
        ("an index of no table", frame(HEADERS, END_HEADERS, 1, &[0xbe]), Goaway(PROTOCOL_ERROR)),
        ("a continuation of nothing", frame(CONTINUATION, END_HEADERS, 1, GET), Goaway(PROTOCOL_ERROR)),
        (
            "another frame between headers and their continuation",
            after(&frame(HEADERS, 0, 1, GET), frame(PING, 0, 0, &[0; 8])),
            Goaway(PROTOCOL_ERROR),
        ),
        ("a push by a client", frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2]), Goaway(PROTOCOL_ERROR)),
        ("a reset of a stream that nobody opened", frame(RST_STREAM, 0, 1, &[0; 4]), Goaway(PROTOCOL_ERROR)),
        ("a reset of another length", after(&open, frame(RST_STREAM, 0, 1, &[0; 3])), Goaway(PROTOCOL_ERROR)),
        ("a priority of no stream", frame(PRIORITY, 0, 0, &[0; 5]), Goaway(PROTOCOL_ERROR)),
        ("settings of a stream", frame(SETTINGS, 0, 1, &[]), Goaway(PROTOCOL_ERROR)),
        ("half a setting", frame(SETTINGS, 0, 0, &[0; 5]), Goaway(PROTOCOL_ERROR)),
        ("an acknowledgement that says more", frame(SETTINGS, ACK, 0, &[0; 6]), Goaway(PROTOCOL_ERROR)),
        (
            "a switch that is neither on nor off",
            frame(SETTINGS, 0, 0, &[0, 2, 0, 0, 0, 2]),
            Goaway(PROTOCOL_ERROR),
        ),
        ("a window too large", frame(SETTINGS, 0, 0, &[0, 4, 0xff, 0, 0, 0]), Goaway(PROTOCOL_ERROR)),
        ("frames too small", frame(SETTINGS, 0, 0, &[0, 5, 0, 0, 0x10, 0]), Goaway(PROTOCOL_ERROR)),
        ("a ping of another length", frame(PING, 0, 0, &[0; 7]), Goaway(PROTOCOL_ERROR)),
        ("a ping of a stream", frame(PING, 0, 1, &[0; 8]), Goaway(PROTOCOL_ERROR)),
        ("no credit at all", frame(WINDOW_UPDATE, 0, 0, &[0; 4]), Goaway(PROTOCOL_ERROR)),
        (
            "more credit than there can be",
            frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]),
            Goaway(FLOW_CONTROL_ERROR),
        ),
        (
            "more credit for a stream than there can be",
            after(&open, frame(WINDOW_UPDATE, 0, 1, &[0x7f, 0xff, 0xff, 0xff])),
            Reset(FLOW_CONTROL_ERROR),
        ),
        ("data after the end", after(&asked, frame(DATA, 0, 1, b"x")), Goaway(PROTOCOL_ERROR)),
        (
            "no path and an authority",
            frame(HEADERS, END_STREAM | END_HEADERS, 1, &[0x82, 0x86, 0x41, 1, b'h']),
            Reset(PROTOCOL_ERROR),
        ),
        ("neither path nor host", frame(HEADERS, END_STREAM | END_HEADERS, 1, &GET[..2]), Answered),
        (
            "a header of the connection",
            frame(HEADERS, END_STREAM | END_HEADERS, 1, &[GET, &literal("connection", b"x")].concat()),
            Reset(PROTOCOL_ERROR),
        ),
        (
            "a header in upper case",
            frame(HEADERS, END_STREAM | END_HEADERS, 1, &[GET, &literal("X-A", b"x")].concat()),
            Goaway(PROTOCOL_ERROR),
        ),
        (
            "a pseudo-header after a header",
            frame(
                HEADERS,
                END_STREAM | END_HEADERS,
                1,
                &[&GET[..2], &literal("a", b"b"), &GET[2..]].concat(),
            ),
            Reset(PROTOCOL_ERROR),
        ),
        (
            "another length than was said",
            after(
                &frame(HEADERS, END_HEADERS, 1, &[POST, &literal("content-length", b"5")].concat()),
                frame(DATA, END_STREAM, 1, b"four"),
            ),
            Reset(PROTOCOL_ERROR),
        ),
    ] {
        let gateway = echo_server().await;
        let mut raw = Raw::greeted(gateway.local_addr()).await;
        raw.send(&bytes).await;
        let mut got = raw.hears().await;
        // An answer may be on its way before the fault is seen.
        while got == Answered && heard != Answered {
            got = raw.hears().await;
        }
        assert_eq!(got, heard, "{what}");
        assert_eq!(gateway.snapshot().refused["protocol"], u64::from(heard != Answered), "{what}");
        drop(raw);
        is_unharmed(gateway).await;
    }
}

#[tokio::test]
async fn a_client_that_does_not_begin_as_it_should_is_let_go() {
    let gateway = echo_server().await;
    for preface in
        [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\x00"[..], b"PRI * HTTP/2.0\r\n\r\nGET / HTTP/1.1\r\n\r\n"]
    {
        let mut raw = Raw(TcpStream::connect(gateway.local_addr()).await.expect("connected"));
        raw.send(preface).await;
        assert!(matches!(raw.hears().await, Heard::Closed | Heard::Goaway(PROTOCOL_ERROR)), "{preface:?}");
    }
    is_unharmed(gateway).await;
}

#[tokio::test]
async fn headers_without_an_end_are_not_gathered_for_ever() {
    let gateway = echo_server().await;
    let mut raw = Raw::greeted(gateway.local_addr()).await;
    raw.send(&frame(HEADERS, END_STREAM, 1, GET)).await;
    let more = frame(CONTINUATION, 0, 1, &literal("a", &[b'b'; 100]).repeat(100));
    let mut sent = 0;
    while sent < 64 << 20 && raw.send(&more).await {
        sent += more.len();
    }
    assert!(sent < 64 << 20, "all of it was taken");
    is_unharmed(gateway).await;
}

#[tokio::test]
async fn small_headers_that_unfold_to_large_ones_are_refused() {
    let gateway = echo_server().await;
    let mut raw = Raw::greeted(gateway.local_addr()).await;
    // A header of 3,900 bytes for the table, by its length as a prefixed integer (RFC 7541, 5.1), and ten thousand times its index.
    let length = 3_900_u32 - 127;
    let large = [&[0x40, 1, b'a', 0x7f, (length & 127) as u8 | 128, (length >> 7) as u8], &[b'x'; 3_900][..]]
        .concat();
    raw.send(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &[GET, &large, &[0xbe; 10_000]].concat())).await;
    assert_eq!(raw.hears().await, Heard::Goaway(ENHANCE_YOUR_CALM));
    assert_eq!(gateway.snapshot().answers[0].by_class.values().sum::<u64>(), 0);
    is_unharmed(gateway).await;
}

#[tokio::test]
async fn streams_that_are_opened_and_reset_at_once_end_their_connection() {
    let gateway = echo_server().await;
    let mut raw = Raw::greeted(gateway.local_addr()).await;
    let mut flood = Vec::new();
    for stream in (1..20_000).step_by(2) {
        flood.extend(frame(HEADERS, END_STREAM | END_HEADERS, stream, GET));
        flood.extend(frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]));
    }
    raw.send(&flood).await;
    let mut heard = raw.hears().await;
    // Some may be answered before it is seen for what it is.
    while matches!(heard, Heard::Answered | Heard::Reset(_)) {
        heard = raw.hears().await;
    }
    assert_eq!(heard, Heard::Goaway(ENHANCE_YOUR_CALM));
    assert!(gateway.snapshot().refused["protocol"] > 0);
    is_unharmed(gateway).await;
}

#[tokio::test]
async fn whoever_floods_and_does_not_listen_is_not_listened_to() {
    for flood in [frame(SETTINGS, 0, 0, &[]), frame(PING, 0, 0, &[0; 8])] {
        let gateway = echo_server().await;
        let mut raw = Raw::greeted(gateway.local_addr()).await;
        let flood = flood.repeat(4_096);
        // Each frame has an answer. When those have no room on their way, the gateway stops reading.
        let mut sent = 0;
        while tokio::time::timeout(Duration::from_secs(1), raw.0.write_all(&flood)).await.is_ok() {
            sent += flood.len();
            assert!(sent < 64 << 20, "all of it was taken");
        }
        drop(raw);
        is_unharmed(gateway).await;
    }
}

#[tokio::test]
async fn a_client_that_sends_more_than_it_was_allowed_is_stopped() {
    let never = |_: Request<Body>| std::future::pending::<Response<Body>>();
    let gateway = Gateway::new(Settings::default())
        .route(Route::handler("never", never).methods([Method::POST]))
        .route(Route::handler("echo", echo))
        .listen(any())
        .await
        .expect("a port");
    let mut raw = Raw::greeted(gateway.local_addr()).await;
    raw.send(&frame(HEADERS, END_HEADERS, 1, POST)).await;
    // The window of a stream is 128 KiB, and few frames are read ahead.
    raw.send(&frame(DATA, 0, 1, &[0; 16_384]).repeat(32)).await;
    assert!(matches!(
        raw.hears().await,
        Heard::Goaway(FLOW_CONTROL_ERROR) | Heard::Reset(FLOW_CONTROL_ERROR)
    ));
    is_unharmed(gateway).await;
}

#[tokio::test]
async fn a_connection_has_as_many_streams_as_the_limit_says() {
    let never = |_: Request<Body>| std::future::pending::<Response<Body>>();
    let limits = Limits { streams: 2, ..Limits::default() };
    let gateway =
        Gateway::new(Settings { limits, ..Settings::default() }).route(Route::handler("never", never));
    let gateway = gateway.listen(any()).await.expect("a port");
    let mut raw = Raw::greeted(gateway.local_addr()).await;
    let (kind, _, _, settings) = raw.next().await.expect("settings");
    assert!(
        kind == SETTINGS && settings.chunks(6).any(|setting| setting == [0, 3, 0, 0, 0, 2]),
        "{settings:?}"
    );
    for stream in [1, 3, 5] {
        raw.send(&frame(HEADERS, END_STREAM | END_HEADERS, stream, GET)).await;
    }
    assert_eq!(raw.hears().await, Heard::Reset(REFUSED_STREAM));
}

#[tokio::test]
async fn thousands_of_streams_share_a_connection() {
    let upstream = echo_server().await;
    for scheme in ["http", "h2c"] {
        let gateway = proxy(&[format!("{scheme}://{}", upstream.local_addr())], Settings::default()).await;
        let sender = http2::<Full<Bytes>>(gateway.local_addr()).await;
        let asked = futures_util::stream::iter(0..2_000).map(|number| {
            let (mut sender, body) = (sender.clone(), Bytes::from(vec![number as u8; 4_096]));
            async move {
                let request = Request::post("http://h/").body(Full::new(body.clone())).expect("a request");
                sender.ready().await.expect("a connection");
                assert_eq!(all(sender.send_request(request).await.expect("an answer")).await, body);
            }
        });
        within(asked.buffer_unordered(100).for_each(async |()| {})).await;
        // An exchange is told when it is over, which its client may see first.
        until(scheme, || gateway.snapshot().answers[0].by_class["2xx"] == 2_000).await;
        drop(sender);
        assert_eq!(within(gateway.shutdown(LIMIT)).await.leases_left, 0);
    }
}
