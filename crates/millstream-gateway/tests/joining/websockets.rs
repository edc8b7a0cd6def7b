//! WebSockets as answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use http::Request;
use millstream_flow::Pipe;
use millstream_gateway::websocket::{self, WebSocketMessage};
use millstream_gateway::{Body, BodyError, Route, Serve, Served};
use millstream_message::{Address, Message, Queue, StreamSpec};
use tokio::net::TcpStream;

use crate::support::*;

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
    let listed = server.streams(10).exchanges;
    let [one] = &listed[..] else { panic!("{listed:?}") };
    assert!(one.upgraded && one.upstream.is_none() && one.route.as_deref() == Some("s"), "{one:?}");
    assert!(one.response.as_ref().is_some_and(|events| events.bytes > 40 && !events.ended), "{one:?}");
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
async fn a_flow_is_served_over_a_websocket_that_is_closed_with_how_it_ended() {
    let count = |request: Request<Body>| {
        let broken = request.uri().path() == "/broken";
        let numbers = Pipe::from_iter(0..4).map(move |n| match n {
            3 if broken => Err(BodyError::new("gone")),
            n => Ok(WebSocketMessage::text(n.to_string())),
        });
        std::future::ready(websocket::messages(&request, numbers))
    };
    let server = listen([Route::handler("count", count)]).await;
    for (path, expected, end) in [("/", 4, 1000), ("/broken", 3, 1011)] {
        let stream = TcpStream::connect(server.local_addr()).await.expect("connected");
        let url = format!("ws://{}{path}", server.local_addr());
        let (mut socket, _) =
            within(tokio_tungstenite::client_async(url, stream)).await.expect("a WebSocket");
        for n in 0..expected {
            let heard = within(socket.next()).await.expect("a message").expect("no error");
            assert_eq!(heard, WebSocketMessage::text(n.to_string()));
        }
        let WebSocketMessage::Close(Some(frame)) =
            within(socket.next()).await.expect("a close").expect("no error")
        else {
            panic!("it is not closed")
        };
        assert_eq!(u16::from(frame.code), end);
    }
    let mut client = Client::asks(server.local_addr(), &get("/", "")).await;
    assert!(client.until("\r\n").await.contains(" 426 "));
}

#[tokio::test(start_paused = true)]
async fn a_flow_over_a_websocket_is_asked_for_no_more_than_the_client_takes() {
    let given = Arc::new(AtomicU64::new(0));
    let counted = given.clone();
    let flood = move |request: Request<Body>| {
        let counted = counted.clone();
        let messages = Pipe::from_iter(0..1000).map(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
            Ok(WebSocketMessage::binary(vec![0; 1 << 20]))
        });
        std::future::ready(websocket::messages(&request, messages))
    };
    let server = listen([Route::handler("flood", flood)]).await;
    let stream = TcpStream::connect(server.local_addr()).await.expect("connected");
    let url = format!("ws://{}/", server.local_addr());
    let (_socket, _) = tokio_tungstenite::client_async(url, stream).await.expect("a WebSocket");
    while server.snapshot().connections_open > 0 {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let given = given.load(Ordering::Relaxed);
    assert!((1..100).contains(&given), "{given} MiB for a client that reads nothing");
}

#[tokio::test]
async fn a_websocket_goes_on_after_the_event_that_its_address_names() {
    let broker = memory().await;
    broker.declare_stream(StreamSpec::new("s")).await.expect("a stream");
    broker.append("s", ["a", "b"].map(Message::new).to_vec()).await.expect("appended");
    let server = listen([Route::handler("s", Serve::new(broker.clone(), Served::Stream("s".into())))]).await;
    let stream = TcpStream::connect(server.local_addr()).await.expect("connected");
    let url = format!("ws://{}/?last-event-id=0", server.local_addr());
    let (mut socket, _) = within(tokio_tungstenite::client_async(url, stream)).await.expect("a WebSocket");
    let heard = within(socket.next()).await.expect("a message").expect("no error");
    assert_eq!(heard, WebSocketMessage::text(r#"{"data":"b","id":"1"}"#));
}
