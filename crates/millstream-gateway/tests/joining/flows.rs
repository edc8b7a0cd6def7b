//! Bodies as flows, flows as bodies, and what is published.

use std::sync::Arc;

use http::{Request, Response};
use millstream_embedded::EmbeddedBroker;
use millstream_embedded::log::{Fault, SimDisk};
use millstream_flow::Pipe;
use millstream_gateway::{Body, BodyError, Gateway, PoolSettings, PublishTo, Route, Settings, flow};
use millstream_message::{
    Address, Broker, Exchange, ExchangeKind, Message, PublishOutcome, Queue, TRACEPARENT, TRACESTATE,
    TraceContext,
};
use tokio::io::AsyncWriteExt;

use crate::support::*;

#[tokio::test]
async fn an_upload_is_a_flow_of_records_and_a_flow_is_an_answer() {
    async fn sum(request: Request<Body>) -> Response<Body> {
        let records = flow::records::<u64>(request.into_body(), 100);
        Response::new(Body::from_flow(records.map(|n| match n {
            Ok(n) => format!("{}\n", n * 2),
            Err(error) => format!("{error}\n"),
        })))
    }
    let server = listen([Route::handler("sum", sum)]).await;
    let head = "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut client = Client::asks(server.local_addr(), &format!("{head}4\r\n1\n2\n\r\n")).await;
    client.until("\r\n\r\n").await;
    assert_eq!(client.until("2\n\r\n").await, "2\r\n2\n\r\n");
    assert_eq!(client.until("4\n\r\n").await, "2\r\n4\n\r\n");
    // A line that is cut in two, one that is empty, one that is no number, and the last without an end.
    client.0.write_all(b"1\r\n1\r\n8\r\n7\n\n\"x\"\n9\r\n0\r\n\r\n").await.expect("written");
    assert_eq!(client.until("34\n\r\n").await, "3\r\n34\n\r\n");
    assert!(client.until("\n\r\n").await.contains("invalid type: string"));
    assert_eq!(client.until("18\n\r\n").await, "3\r\n18\n\r\n");
    assert_eq!(client.until("0\r\n\r\n").await, "0\r\n\r\n");
}

#[tokio::test]
async fn lines_end_with_an_error_where_one_is_too_long_or_the_body_breaks() {
    let items = |body| async {
        let (lines, _) = flow::lines(body, 5).collect().await.expect("a run");
        lines.into_iter().map(|line| line.map_err(|error| error.to_string())).collect::<Vec<_>>()
    };
    let lines = items(Body::from("a\r\nbc\n\nlast")).await;
    assert_eq!(lines, [Ok("a".into()), Ok("bc".into()), Ok("".into()), Ok("last".into())]);
    let lines = items(Body::from("ok\nmuch too long\nnever\n")).await;
    assert!(
        lines.len() == 2 && lines[1].as_ref().is_err_and(|error| error.contains("longer than 5")),
        "{lines:?}"
    );
    let broken = futures_util::stream::iter([Ok("ab\nc".into()), Err(BodyError::new("gone"))]);
    let lines = items(Body::from_stream(broken)).await;
    assert!(lines.len() == 2 && lines[1].is_err(), "{lines:?}");
}

#[tokio::test]
async fn what_is_posted_is_answered_when_it_is_stored() {
    let broker = memory().await;
    broker.declare_queue(Queue::durable("orders").max_items(1)).await.expect("a queue");
    let to = |queue: &str| PublishTo::new(broker.clone(), Address::queue(queue), 10);
    let server =
        listen([Route::handler("a", to("orders")).path("/a"), Route::handler("b", to("nowhere")).path("/b")])
            .await;
    let post = async |path: &str, body: &str| {
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: h\r\nContent-Type: text/x\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut client = Client::asks(server.local_addr(), &request).await;
        client.until("\r\n").await
    };
    assert_eq!(post("/a", "one").await, "HTTP/1.1 202 Accepted\r\n");
    assert_eq!(broker.stats("orders").await.expect("a queue").ready, 1);
    let seen = broker.browse("orders", 0, 1).await.expect("a message").remove(0).message;
    assert_eq!((&seen.body()[..], seen.properties().content_type.as_deref()), (&b"one"[..], Some("text/x")));
    assert_eq!(post("/a", "two").await, "HTTP/1.1 503 Service Unavailable\r\n");
    assert_eq!(post("/a", "much too long").await, "HTTP/1.1 413 Payload Too Large\r\n");
    assert_eq!(post("/b", "x").await, "HTTP/1.1 404 Not Found\r\n");
    let mut client = Client::asks(server.local_addr(), &get("/a", "")).await;
    assert!(client.until("\r\n\r\n").await.contains("405"));
}

#[tokio::test]
async fn what_is_posted_keeps_the_trace_of_its_request() {
    let broker = memory().await;
    broker.declare_queue(Queue::durable("orders")).await.expect("a queue");
    let to = PublishTo::new(broker.clone(), Address::queue("orders"), 10);
    let server = listen([Route::handler("a", to)]).await;
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let trace = TraceContext::parse(parent).expect("a trace");
    let heads = [
        (format!("Traceparent: {parent}\r\n"), Some(trace.clone())),
        (
            format!("traceparent: {parent}\r\nTracestate: a=1\r\nX-Other: y\r\ntracestate: b=2\r\n"),
            Some(trace.clone().with_state("a=1,b=2")),
        ),
        (format!("traceparent: {parent}\r\ntracestate: a=\u{e9}\r\n"), Some(trace)),
        (format!("traceparent: {parent}\r\ntraceparent: {parent}\r\n"), None),
        ("traceparent: 00-00\r\ntracestate: a=1\r\n".to_owned(), None),
        (String::new(), None),
    ];
    for (head, expected) in heads {
        let request = format!("POST / HTTP/1.1\r\nHost: h\r\n{head}Content-Length: 1\r\n\r\nx");
        let mut client = Client::asks(server.local_addr(), &request).await;
        assert_eq!(client.until("\r\n").await, "HTTP/1.1 202 Accepted\r\n");
        let last = broker.stats("orders").await.expect("a queue").ready - 1;
        let seen = broker.browse("orders", last, 1).await.expect("a message").remove(0).message;
        assert_eq!(seen.trace(), expected, "{head}");
        assert_eq!(seen.header(TRACEPARENT).is_some(), expected.is_some(), "{head}");
        assert_eq!(seen.header(TRACESTATE).is_some(), expected.is_some_and(|trace| trace.state().is_some()));
    }
}

#[tokio::test]
async fn what_a_broker_cannot_store_is_told_apart_from_what_may_be_stored() {
    let disk = SimDisk::new();
    let opened = EmbeddedBroker::open_on("/broker", Default::default(), Arc::new(disk.clone())).await;
    let broker: Arc<dyn Broker> = Arc::new(opened.expect("opens"));
    broker.declare_queue(Queue::durable("orders")).await.expect("a queue");
    broker
        .declare_exchange(Exchange::durable("inside", ExchangeKind::Topic).internal())
        .await
        .expect("an exchange");
    let to = |address| PublishTo::new(broker.clone(), address, 10);
    let server = listen([
        Route::handler("a", to(Address::queue("orders"))).path("/a"),
        Route::handler("b", to(Address::new("inside", "x"))).path("/b"),
        Route::handler("c", to(Address::new("nowhere", "x"))).path("/c"),
    ])
    .await;
    let post = async |path: &str| {
        let request = format!("POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\none");
        let mut client = Client::asks(server.local_addr(), &request).await;
        [client.until("\r\n").await, client.until("\r\n\r\n").await, client.until("\n").await]
    };
    let [status, _, why] = post("/b").await;
    assert_eq!(status, "HTTP/1.1 409 Conflict\r\n");
    assert!(why.contains("could not store"), "{why}");
    assert_eq!(post("/c").await[0], "HTTP/1.1 404 Not Found\r\n");
    // A full disk takes it later, when there is room.
    disk.set_capacity(disk.used_bytes());
    for len in [1 << 20, 1 << 10, 1] {
        let fits = async || broker.publish(&Address::queue("orders"), Message::new(vec![0; len])).await;
        while let PublishOutcome::Confirmed = fits().await.expect("an answer") {}
    }
    let [status, _, why] = post("/a").await;
    assert_eq!(status, "HTTP/1.1 503 Service Unavailable\r\n", "{why}");
    disk.set_capacity(u64::MAX);
    let request = "POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\none";
    let mut client = Client::asks(server.local_addr(), request).await;
    assert_eq!(client.until("\r\n").await, "HTTP/1.1 202 Accepted\r\n");
    // The message is written, and whether it stays nobody knows.
    disk.inject(Fault::Sync, 1000);
    let [status, _, why] = post("/a").await;
    assert_eq!(status, "HTTP/1.1 504 Gateway Timeout\r\n");
    assert!(why.contains("stored or not"), "{why}");
    broker.close().await.ok();
    assert_eq!(post("/a").await[0], "HTTP/1.1 503 Service Unavailable\r\n");
}

#[tokio::test(start_paused = true)]
async fn bodies_that_are_published_wait_for_room_in_the_pool_and_are_refused_if_none_comes() {
    let broker = memory().await;
    broker.declare_queue(Queue::durable("q")).await.expect("a queue");
    let to = PublishTo::new(broker.clone(), Address::queue("q"), 512 << 10);
    // With what the one thread keeps, there is room for one body of unknown length, not for two.
    let pool = PoolSettings { bytes_max: 512 << 10, ..PoolSettings::default() };
    let server = Gateway::new(Settings { pool, ..Settings::default() })
        .route(Route::handler("q", to))
        .listen("127.0.0.1:0".parse().expect("an address"))
        .await
        .expect("a port");
    let post = "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n";
    let waits = || server.snapshot().pool.tiers[7].waits;
    let mut first = Client::asks(server.local_addr(), post).await;
    until(|| server.snapshot().pool.tiers[7].in_use > 0).await;
    let mut refused = Client::asks(server.local_addr(), post).await;
    assert!(refused.until("\r\n\r\n").await.starts_with("HTTP/1.1 503 "));
    let mut second = Client::asks(server.local_addr(), &format!("{post}0\r\n\r\n")).await;
    until(|| waits() == 2).await;
    first.0.write_all(b"0\r\n\r\n").await.expect("written");
    assert!(first.until("\r\n").await.contains(" 202 "));
    assert!(second.until("\r\n").await.contains(" 202 "));
    assert_eq!((waits(), broker.stats("q").await.expect("a queue").ready), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn bodies_that_wait_for_room_in_the_pool_take_none_from_one_another() {
    const CLIENTS: u64 = 80;
    let broker = memory().await;
    broker.declare_queue(Queue::durable("q")).await.expect("a queue");
    let to = PublishTo::new(broker.clone(), Address::queue("q"), 512 << 10);
    let pool = PoolSettings { bytes_max: 256 << 10, ..PoolSettings::default() };
    let server = Gateway::new(Settings { pool, ..Settings::default() })
        .route(Route::handler("q", to))
        .listen("127.0.0.1:0".parse().expect("an address"))
        .await
        .expect("a port");
    let (begun, rest) = ("x".repeat(60 << 10), "x".repeat(40 << 10));
    let post = format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{begun}", 100 << 10);
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(Client::asks(server.local_addr(), &post).await);
    }
    until(|| server.snapshot().streams[0].started == CLIENTS).await;
    for client in &mut clients {
        client.0.write_all(rest.as_bytes()).await.expect("written");
    }
    for client in &mut clients {
        let answer = client.until("\r\n").await;
        assert!(answer.contains(" 202 "), "{answer}");
    }
    assert_eq!(broker.stats("q").await.expect("a queue").ready, CLIENTS);
    assert_eq!(server.snapshot().pool.in_use, 0);
}

#[tokio::test]
async fn a_flow_is_served_as_events() {
    let ticks = |_: Request<Body>| {
        let ticks = Pipe::from_iter(0..3).map(|n| Ok(millstream_gateway::sse::Event::new(n.to_string())));
        std::future::ready(millstream_gateway::sse::events(ticks))
    };
    let server = listen([Route::handler("ticks", ticks)]).await;
    let mut client = Client::asks(server.local_addr(), &get("/", "")).await;
    for n in 0..3 {
        assert!(client.until("\n\n").await.ends_with(&format!("data: {n}\n\n")));
    }
    client.until("0\r\n\r\n").await;
}

#[tokio::test]
async fn the_chunks_of_a_body_are_a_flow_that_ends_with_its_error() {
    let items = |body| async {
        let (chunks, _) = flow::chunks(body).collect().await.expect("a run");
        chunks.into_iter().map(|chunk| chunk.map_err(|error| error.to_string())).collect::<Vec<_>>()
    };
    let pieces = |end: Option<&str>| {
        let end = end.map(|end| Err(BodyError::new(end.to_owned())));
        let pieces = ["a\nb", "", "c"].map(|piece| Ok(piece.into()));
        Body::from_stream(futures_util::stream::iter(pieces.into_iter().chain(end)))
    };
    // As they came, but for those without bytes.
    assert_eq!(items(pieces(None)).await, [Ok("a\nb".into()), Ok("c".into())]);
    let broken = items(pieces(Some("gone"))).await;
    assert_eq!(broken[..2], [Ok("a\nb".into()), Ok("c".into())]);
    assert!(
        broken.len() == 3 && broken[2].as_ref().is_err_and(|error| error.ends_with("gone")),
        "{broken:?}"
    );
    assert_eq!(items(Body::empty()).await, []);
}

#[tokio::test]
async fn what_is_published_compressed_says_so_and_too_much_is_not_asked_for() {
    let broker = memory().await;
    broker.declare_queue(Queue::durable("orders")).await.expect("a queue");
    let to = PublishTo::new(broker.clone(), Address::queue("orders"), 10);
    let server = listen([Route::handler("a", to)]).await;
    let head = "POST / HTTP/1.1\r\nHost: h\r\nContent-Encoding: gzip\r\nContent-Encoding: br\r\n";
    let request = format!("{head}Content-Length: 1\r\n\r\nx");
    let mut client = Client::asks(server.local_addr(), &request).await;
    assert_eq!(client.until("\r\n").await, "HTTP/1.1 202 Accepted\r\n");
    let seen = broker.browse("orders", 0, 1).await.expect("a message").remove(0).message;
    assert_eq!(seen.properties().content_encoding.as_deref(), Some("gzip, br"));

    let ask = |length: usize| {
        format!("POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n")
    };
    let mut client = Client::asks(server.local_addr(), &ask(10)).await;
    assert_eq!(client.until("\r\n").await, "HTTP/1.1 100 Continue\r\n");
    let mut client = Client::asks(server.local_addr(), &ask(11)).await;
    assert_eq!(client.until("\r\n").await, "HTTP/1.1 413 Payload Too Large\r\n");
}
