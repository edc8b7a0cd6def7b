//! Flows, queues and streams behind routes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use http::{Request, Response};
use millstream_flow::Pipe;
use millstream_gateway::websocket::{self, WebSocketMessage};
use millstream_gateway::{
    Body, BodyError, Gateway, PoolSettings, PublishTo, Route, Serve, Served, Server, Settings, flow,
};
use millstream_message::{Address, Broker, BrokerUrl, Message, Queue, StreamSpec};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const LIMIT: Duration = Duration::from_secs(30);

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future).await.expect("in time")
}

/// Waits until this holds; the clock stands meanwhile.
async fn until(holds: impl Fn() -> bool) {
    let turns = async {
        for _ in 0..1_000_000 {
            if holds() {
                return true;
            }
            tokio::task::yield_now().await;
        }
        false
    };
    assert!(turns.await, "it never came to hold");
}

async fn listen(routes: impl IntoIterator<Item = Route>) -> Server {
    let gateway = routes.into_iter().fold(Gateway::new(Settings::default()), Gateway::route);
    gateway.listen("127.0.0.1:0".parse().expect("an address")).await.expect("a port")
}

async fn memory() -> Arc<dyn Broker> {
    millstream_embedded::open(&BrokerUrl::Memory).await.expect("a broker")
}

struct Client(TcpStream, String);

impl Client {
    async fn asks(to: SocketAddr, request: &str) -> Client {
        let mut stream = TcpStream::connect(to).await.expect("connected");
        stream.write_all(request.as_bytes()).await.expect("written");
        Client(stream, String::new())
    }

    async fn until(&mut self, end: &str) -> String {
        loop {
            if let Some(at) = self.1.find(end) {
                let rest = self.1.split_off(at + end.len());
                return std::mem::replace(&mut self.1, rest);
            }
            let mut bytes = vec![0; 4096];
            let read = within(self.0.read(&mut bytes)).await.expect("read");
            assert!(read > 0, "closed before {end:?}: {:?}", self.1);
            self.1.push_str(std::str::from_utf8(&bytes[..read]).expect("text"));
        }
    }
}

fn get(path: &str, more: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: h\r\n{more}\r\n")
}

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

#[tokio::test]
async fn a_stream_is_served_as_events_and_goes_on_after_the_last_one_seen() {
    let broker = memory().await;
    broker.declare_stream(StreamSpec::new("s")).await.expect("a stream");
    let messages = ["a", "b\nb"].map(Message::new).to_vec();
    broker.append("s", messages).await.expect("appended");
    let server = listen([Route::handler("s", Serve::new(broker.clone(), Served::Stream("s".into())))]).await;
    let to = server.local_addr();
    let mut first = Client::asks(to, &get("/?from=first", "")).await;
    assert!(first.until("\r\n\r\n").await.contains("content-type: text/event-stream"));
    assert!(first.until("\n\n").await.ends_with("id: 0\ndata: a\n\n"));
    assert!(first.until("\n\n").await.ends_with("id: 1\ndata: b\ndata: b\n\n"));
    let mut again = Client::asks(to, &get("/", "Last-Event-ID: 0\r\n")).await;
    assert!(again.until("\n\n").await.ends_with("id: 1\ndata: b\ndata: b\n\n"));
    let mut next = Client::asks(to, &get("/", "")).await;
    next.until("\r\n\r\n").await;
    broker.append("s", vec![Message::new("c")]).await.expect("appended");
    for client in [&mut first, &mut again, &mut next] {
        assert!(client.until("\n\n").await.ends_with("id: 2\ndata: c\n\n"));
    }
    let mut wrong = Client::asks(to, &get("/", "Last-Event-ID: x\r\n")).await;
    assert!(wrong.until("\r\n").await.contains(" 400 "));
}

#[tokio::test]
async fn a_message_of_a_queue_goes_to_one_client_and_is_acknowledged_when_it_is_written() {
    let broker = memory().await;
    broker.declare_queue(Queue::durable("q")).await.expect("a queue");
    for body in ["1", "2"] {
        let outcome = broker.publish(&Address::queue("q"), Message::new(body)).await.expect("published");
        assert!(outcome.is_confirmed());
    }
    let server = listen([Route::handler("q", Serve::new(broker.clone(), Served::Queue("q".into())))]).await;
    let mut client = Client::asks(server.local_addr(), &get("/", "")).await;
    assert!(client.until("data: 1\n\n").await.contains("text/event-stream"));
    client.until("data: 2\n\n").await;
    within(async {
        while broker.stats("q").await.expect("a queue").total() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // A client that leaves takes its consumer with it.
    drop(client);
    within(async {
        while broker.stats("q").await.expect("a queue").consumers > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_queue_is_not_served_where_nobody_learns_what_was_written() {
    let broker = memory().await;
    broker.declare_queue(Queue::durable("q")).await.expect("a queue");
    let outcome = broker.publish(&Address::queue("q"), Message::new("1")).await.expect("published");
    assert!(outcome.is_confirmed());
    let server = listen([Route::handler("q", Serve::new(broker.clone(), Served::Queue("q".into())))]).await;
    let stream = TcpStream::connect(server.local_addr()).await.expect("connected");
    let io = hyper_util::rt::TokioIo::new(stream);
    let handshake = hyper::client::conn::http2::handshake(hyper_util::rt::TokioExecutor::new(), io);
    let (mut sender, connection) = within(handshake).await.expect("HTTP/2");
    tokio::spawn(connection);
    let request = Request::get("http://h/").body(Body::empty()).expect("a request");
    let answer = within(sender.send_request(request)).await.expect("an answer");
    assert_eq!(answer.status(), 505);
    let stats = broker.stats("q").await.expect("a queue");
    assert_eq!((stats.ready, stats.consumers), (1, 0));
}

#[tokio::test]
async fn a_stream_is_served_over_a_websocket() {
    let broker = memory().await;
    broker.declare_stream(StreamSpec::new("s")).await.expect("a stream");
    broker.append("s", vec![Message::new("a")]).await.expect("appended");
    let server = listen([Route::handler("s", Serve::new(broker.clone(), Served::Stream("s".into())))]).await;
    let stream = TcpStream::connect(server.local_addr()).await.expect("connected");
    let url = format!("ws://{}/?from=first", server.local_addr());
    let (mut socket, _) = within(tokio_tungstenite::client_async(url, stream)).await.expect("a WebSocket");
    let heard = within(socket.next()).await.expect("a message").expect("no error");
    assert_eq!(heard, WebSocketMessage::text(r#"{"data":"a","id":"0"}"#));
    broker.append("s", vec![Message::new("b")]).await.expect("appended");
    let heard = within(socket.next()).await.expect("a message").expect("no error");
    assert_eq!(heard, WebSocketMessage::text(r#"{"data":"b","id":"1"}"#));
    // What the client does not take back ends with the gateway.
    let drained = within(server.shutdown(Duration::ZERO)).await;
    assert_eq!((drained.broken_off, drained.leases_left), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_websocket_whose_client_answers_no_ping_is_closed_and_others_live() {
    let broker = memory().await;
    broker.declare_stream(StreamSpec::new("s")).await.expect("a stream");
    let server = listen([Route::handler("s", Serve::new(broker.clone(), Served::Stream("s".into())))]).await;
    let url = format!("ws://{}/", server.local_addr());
    let stream = TcpStream::connect(server.local_addr()).await.expect("connected");
    let (mut alive, _) = tokio_tungstenite::client_async(&url, stream).await.expect("a WebSocket");
    let stream = TcpStream::connect(server.local_addr()).await.expect("connected");
    let (dead, _) = tokio_tungstenite::client_async(&url, stream).await.expect("a WebSocket");
    let started = tokio::time::Instant::now();
    // One of them reads, which answers pings; the other does not.
    while server.snapshot().connections_open == 2 {
        let heard = within(alive.next()).await.expect("a message").expect("no error");
        assert!(heard.is_ping(), "{heard:?}");
    }
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
    for _ in 0..20 {
        within(alive.next()).await.expect("a ping").expect("no error");
    }
    assert_eq!(server.snapshot().connections_open, 1);
    drop(dead);
}

#[tokio::test(start_paused = true)]
async fn a_websocket_that_takes_nothing_is_closed_and_what_it_did_not_take_goes_to_another() {
    let broker = memory().await;
    broker.declare_queue(Queue::durable("q")).await.expect("a queue");
    for _ in 0..20 {
        let message = Message::new(vec![b'x'; 1 << 20]);
        assert!(broker.publish(&Address::queue("q"), message).await.expect("published").is_confirmed());
    }
    let server = listen([Route::handler("q", Serve::new(broker.clone(), Served::Queue("q".into())))]).await;
    let stream = TcpStream::connect(server.local_addr()).await.expect("connected");
    let url = format!("ws://{}/", server.local_addr());
    let (_socket, _) = tokio_tungstenite::client_async(url, stream).await.expect("a WebSocket");
    let started = tokio::time::Instant::now();
    while server.snapshot().connections_open == 1 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(started.elapsed() < Duration::from_secs(120), "it is still open");
    }
    let stats = broker.stats("q").await.expect("a queue");
    assert!(stats.consumers == 0 && stats.ready > 0, "{stats:?}");
}

#[tokio::test]
async fn a_handler_talks_over_a_websocket_and_others_are_told_to_ask_for_one() {
    let shout = |request: Request<Body>| {
        std::future::ready(websocket::accept(&request, async |mut socket| {
            while let Some(Ok(message)) = socket.next().await {
                let Ok(text) = message.into_text() else { break };
                if socket.send(WebSocketMessage::text(text.to_uppercase())).await.is_err() {
                    break;
                }
            }
        }))
    };
    let server = listen([Route::handler("shout", shout)]).await;
    let stream = TcpStream::connect(server.local_addr()).await.expect("connected");
    let url = format!("ws://{}/", server.local_addr());
    let (mut socket, _) = within(tokio_tungstenite::client_async(url, stream)).await.expect("a WebSocket");
    within(socket.send(WebSocketMessage::text("hello"))).await.expect("sent");
    let heard = within(socket.next()).await.expect("a message").expect("no error");
    assert_eq!(heard, WebSocketMessage::text("HELLO"));
    let mut client = Client::asks(server.local_addr(), &get("/", "")).await;
    assert!(client.until("\r\n").await.contains(" 426 "));
    let asked =
        "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: a\r\n";
    let with_a_body = get("/", &format!("{asked}Content-Length: 1\r\n")) + "x";
    let mut client = Client::asks(server.local_addr(), &with_a_body).await;
    assert!(client.until("\r\n").await.contains(" 501 "));
    client.until("without a body").await;
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
