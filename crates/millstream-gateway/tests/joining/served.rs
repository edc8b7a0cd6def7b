//! Queues and streams as server-sent events.

use std::time::Duration;

use futures_util::StreamExt;
use http::Request;
use millstream_gateway::websocket::WebSocketMessage;
use millstream_gateway::{Body, Gateway, Route, Serve, Served, Settings, Side, Timeouts};
use millstream_message::{Address, Message, Queue, StreamSpec};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::support::*;

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
    let listed = server.streams(10).exchanges;
    let of = |one: &millstream_gateway::ExchangeUnderWay| {
        let events = one.response.clone().expect("an answer");
        (one.route.clone(), one.upgraded, events.bytes > 10 && events.waits_for == Some(Side::Sender))
    };
    assert_eq!(listed.iter().map(of).collect::<Vec<_>>(), vec![(Some("s".into()), false, true); 3]);
    drop((first, again, next));
    until(|| server.streams(10).total == 0).await;
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
async fn a_message_that_is_no_text_is_served_in_base64() {
    let broker = memory().await;
    broker.declare_stream(StreamSpec::new("s")).await.expect("a stream");
    broker.append("s", vec![Message::new(vec![0xff, 0xfe, 0x00])]).await.expect("appended");
    let server = listen([Route::handler("s", Serve::new(broker.clone(), Served::Stream("s".into())))]).await;
    let mut client = Client::asks(server.local_addr(), &get("/?from=first", "")).await;
    assert!(client.until("\n\n").await.ends_with("id: 0\nevent: base64\ndata: //4A\n\n"));
    let stream = TcpStream::connect(server.local_addr()).await.expect("connected");
    let url = format!("ws://{}/?from=first", server.local_addr());
    let (mut socket, _) = within(tokio_tungstenite::client_async(url, stream)).await.expect("a WebSocket");
    let heard = within(socket.next()).await.expect("a message").expect("no error");
    assert_eq!(heard, WebSocketMessage::text(r#"{"base64":"//4A","id":"0"}"#));
}

#[tokio::test]
async fn events_are_followed_by_get_where_there_are_any() {
    let broker = memory().await;
    broker.declare_queue(Queue::durable("q")).await.expect("a queue");
    let serve = |what| Serve::new(broker.clone(), what);
    let server = listen([
        Route::handler("q", serve(Served::Queue("q".into()))).path("/q"),
        Route::handler("no-q", serve(Served::Queue("nowhere".into()))).path("/no-q"),
        Route::handler("no-s", serve(Served::Stream("nowhere".into()))).path("/no-s"),
    ])
    .await;
    let ask = async |request: &str| {
        let request = format!("{request} HTTP/1.1\r\nHost: h\r\n\r\n");
        Client::asks(server.local_addr(), &request).await.until("\r\n\r\n").await
    };
    let refused = ask("POST /q").await;
    assert!(refused.starts_with("HTTP/1.1 405 ") && refused.contains("allow: GET, HEAD"), "{refused}");
    let head = ask("HEAD /q").await;
    assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("content-type: text/event-stream"), "{head}");
    assert_eq!(broker.stats("q").await.expect("a queue").consumers, 0);
    for path in ["/no-q", "/no-s"] {
        let answer = ask(&format!("GET {path}")).await;
        assert!(answer.starts_with("HTTP/1.1 404 "), "{path}: {answer}");
    }
}

#[tokio::test]
async fn an_empty_name_of_the_last_event_is_none() {
    let broker = memory().await;
    broker.declare_stream(StreamSpec::new("s")).await.expect("a stream");
    broker.append("s", vec![Message::new("a")]).await.expect("appended");
    let server = listen([Route::handler("s", Serve::new(broker.clone(), Served::Stream("s".into())))]).await;
    let mut client = Client::asks(server.local_addr(), &get("/?last-event-id=&from=first", "")).await;
    client.until("data: a\n\n").await;
}

#[tokio::test(start_paused = true)]
async fn silent_events_outlast_the_patience_with_bodies() {
    let broker = memory().await;
    broker.declare_stream(StreamSpec::new("s")).await.expect("a stream");
    let timeouts = Timeouts { idle: Duration::from_secs(3), ..Timeouts::default() };
    let server = Gateway::new(Settings { timeouts, ..Settings::default() })
        .route(Route::handler("s", Serve::new(broker.clone(), Served::Stream("s".into()))))
        .listen("127.0.0.1:0".parse().expect("an address"))
        .await
        .expect("a port");
    let mut client = Client::asks(server.local_addr(), &get("/", "")).await;
    client.until("\r\n\r\n").await;
    let begun = Instant::now();
    for _ in 0..10 {
        client.until(":\n\n").await;
    }
    assert_eq!(begun.elapsed().as_secs(), 10, "a comment a second");
    broker.append("s", vec![Message::new("a")]).await.expect("appended");
    client.until("data: a\n\n").await;
}
