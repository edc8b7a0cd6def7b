//! The exchanges under way, one by one.

use std::time::Duration;

use millstream_gateway::{ExchangeUnderWay, Server, Settings, Side, StreamUnderWay};
use tokio::time::{Instant, advance};

use crate::support::*;

/// Waits until the list is such; the clock stands meanwhile.
async fn until(
    server: &Server,
    what: &str,
    is: impl Fn(&[ExchangeUnderWay]) -> bool,
) -> Vec<ExchangeUnderWay> {
    for _ in 0..1_000_000 {
        let list = server.streams(1_000);
        if is(&list.exchanges) {
            assert_eq!(list.total, list.exchanges.len());
            return list.exchanges;
        }
        tokio::task::yield_now().await;
    }
    panic!("not {what}: {:?}", server.streams(1_000));
}

async fn alone(server: &Server, what: &str, is: impl Fn(&ExchangeUnderWay) -> bool) -> ExchangeUnderWay {
    until(server, what, |list| list.len() == 1 && is(&list[0])).await.remove(0)
}

async fn nothing(server: &Server) {
    until(server, "nothing", |list| list.is_empty()).await;
}

fn waits(stream: &Option<StreamUnderWay>, side: Side, bytes: u64) -> bool {
    stream.as_ref().is_some_and(|stream| stream.waits_for == Some(side) && stream.bytes == bytes)
}

#[tokio::test(start_paused = true)]
async fn who_is_stuck_is_listed_with_how_long_and_for_whom() {
    let scene = scene(Settings::default()).await;
    nothing(&scene.server).await;
    let started = Instant::now();
    let (mut client, mut up, _) =
        scene.asked("POST /a?secret=1 HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nfive!").await;
    up.until("five!").await;
    let stuck =
        alone(&scene.server, "waiting for its client", |one| waits(&one.request, Side::Sender, 5)).await;
    let upstream = format!("http://{}", scene.upstream.local_addr().expect("an address"));
    assert_eq!(
        (&*stuck.id, &*stuck.method, &*stuck.path, &*stuck.protocol),
        ("1.1", "POST", "/a", "HTTP/1.1")
    );
    assert_eq!((stuck.route.as_deref(), stuck.upstream), (Some("up"), Some(upstream)));
    assert_eq!(Some(stuck.client), client.stream.local_addr().ok());
    assert!(stuck.response.is_none() && !stuck.upgraded);
    let before = stuck.request.expect("a body").source_wait;
    let six = Duration::from_secs(6);
    advance(six).await;
    let stuck = alone(&scene.server, "the same", |one| waits(&one.request, Side::Sender, 5)).await;
    let request = stuck.request.expect("a body");
    assert!(request.source_wait >= before + six && stuck.age >= six, "{request:?}");
    assert!(stuck.age <= started.elapsed() && request.source_wait <= started.elapsed(), "{request:?}");
    assert_eq!((request.chunks, request.backpressure_time, request.ended), (1, Duration::ZERO, false));

    // What follows is there, and then the client takes nothing of the answer.
    client.send("four").await;
    up.until("four").await;
    up.send("HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n").await;
    let block = vec![b'x'; 1 << 20];
    // Until nothing has room any more, in sockets and buffers.
    let more = async |up: &mut Wire| {
        let written = tokio::io::AsyncWriteExt::write_all(&mut up.stream, &block);
        tokio::time::timeout(Duration::from_secs(1), written).await.is_ok()
    };
    while more(&mut up).await {}
    let held = |one: &ExchangeUnderWay| {
        one.response.as_ref().is_some_and(|response| response.waits_for == Some(Side::Receiver))
    };
    let stuck = alone(&scene.server, "waiting for its client to read", held).await;
    let (request, before) = (stuck.request.expect("a body"), stuck.response.expect("an answer"));
    assert_eq!((request.bytes, request.ended, request.waits_for), (9, true, None));
    advance(six).await;
    let stuck = alone(&scene.server, "the same", held).await;
    let response = stuck.response.expect("an answer");
    assert!(response.backpressure_time >= before.backpressure_time + six, "{response:?}");
    assert_eq!((response.bytes, response.source_wait), (before.bytes, before.source_wait));
    assert!(response.backpressure_events >= 1 && !response.ended && stuck.age >= 2 * six, "{response:?}");

    // It takes what there is, and the upstream has no more.
    while tokio::time::timeout(Duration::from_secs(1), client.bytes(4096)).await.is_ok() {}
    let starved = |one: &ExchangeUnderWay| {
        one.response.as_ref().is_some_and(|response| response.waits_for == Some(Side::Sender))
    };
    let before = alone(&scene.server, "waiting for its upstream", starved).await;
    advance(six).await;
    let after = alone(&scene.server, "the same", starved).await;
    let (before, after) = (before.response.expect("an answer"), after.response.expect("an answer"));
    assert_eq!(before.backpressure_time, after.backpressure_time);
    assert!(after.source_wait >= before.source_wait + six, "{after:?}");

    // Whoever leaves leaves nothing behind.
    drop(client);
    nothing(&scene.server).await;
    scene.end().await;
}

#[tokio::test]
async fn the_next_exchange_of_a_connection_begins_anew() {
    let scene = scene(Settings::default()).await;
    let (mut client, mut up, _) =
        scene.asked("POST /one HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nfive!").await;
    up.until("five!").await;
    up.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi").await;
    client.until("hi").await;
    nothing(&scene.server).await;
    client.send(GET).await;
    up.head().await;
    let next = alone(&scene.server, "the next", |one| one.request.is_some()).await;
    assert_eq!((&*next.id, &*next.method, &*next.path), ("1.2", "GET", "/a"));
    assert!(next.request.is_some_and(|request| request.bytes == 0) && next.response.is_none());
    let mut other = scene.client().await;
    other.send("GET /lost?x HTTP/1.0\r\n\r\n").await;
    let mut other_up = scene.accept().await;
    other_up.head().await;
    let both = until(&scene.server, "two", |list| list.len() == 2).await;
    assert_eq!(both.iter().map(|one| &*one.id).collect::<Vec<_>>(), ["1.2", "2.1"]);
    assert_eq!((&*both[1].path, &*both[1].protocol), ("/lost", "HTTP/1.0"));
    // As many as are asked for, the oldest first.
    let (one, none) = (scene.server.streams(1), scene.server.streams(0));
    assert_eq!((one.total, one.exchanges.len(), &*one.exchanges[0].id), (2, 1, "1.2"));
    assert_eq!((none.total, none.exchanges.len()), (2, 0));
    up.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi").await;
    client.until("hi").await;
    client.send(GET).await;
    up.head().await;
    until(&scene.server, "in the order of their begin", |list| {
        list.iter().map(|one| &*one.id).eq(["2.1", "1.3"])
    })
    .await;
    drop((client, other));
    nothing(&scene.server).await;
    scene.end().await;
}

#[tokio::test]
async fn a_tunnel_is_listed_until_it_closes() {
    let scene = scene(Settings::default()).await;
    let asked = "GET /chat?secret=1 HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    let (mut client, mut up, _) = scene.asked(asked).await;
    up.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nfirst")
        .await;
    client.until("first").await;
    client.send("hello there").await;
    up.until("hello there").await;
    let tunnel = alone(&scene.server, "a tunnel", |one| {
        one.upgraded && waits(&one.request, Side::Sender, 11) && waits(&one.response, Side::Sender, 5)
    })
    .await;
    assert_eq!((&*tunnel.id, &*tunnel.path, tunnel.route.as_deref()), ("1.1", "/chat", Some("up")));
    assert!(tunnel.upstream.is_some());
    drop((client, up));
    nothing(&scene.server).await;
    scene.end().await;
}

#[tokio::test]
async fn one_that_is_given_up_for_its_duration_is_listed_no_more() {
    let timeouts = millstream_gateway::Timeouts { total: Some(SHORT), ..Default::default() };
    let scene = scene(Settings { timeouts, ..Settings::default() }).await;
    let (mut client, _up, _) = scene.asked(GET).await;
    assert_eq!(scene.server.streams(1).total, 1);
    assert_eq!(status(&client.head().await), 504);
    client.until("it was not done").await;
    nothing(&scene.server).await;
    scene.end().await;
}
