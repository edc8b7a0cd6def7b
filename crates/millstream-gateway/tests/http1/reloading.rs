//! Another configuration while requests come.

mod load;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::{Request, Response};
use millstream_gateway::{
    Body, Gateway, HealthCheck, Limits, PoolSettings, Route, Server, Settings, Target, Timeouts, Upstreams,
};
use millstream_resilience::BreakerSettings;
use tokio::net::TcpListener;

use crate::support::*;

async fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    (listener, url)
}

async fn accepted(upstream: &TcpListener) -> Wire {
    Wire::new(within("a connection to the upstream", upstream.accept()).await.expect("accepted").0)
}

fn to(name: &str, url: &str) -> Route {
    Route::proxy(name, [url.parse().expect("a url")])
}

fn gateway(routes: impl IntoIterator<Item = Route>) -> Gateway {
    routes.into_iter().fold(Gateway::new(Settings::default()), Gateway::route)
}

async fn listen(gateway: Gateway) -> Server {
    gateway.listen("127.0.0.1:0".parse().expect("an address")).await.expect("a port")
}

fn says(text: &'static str) -> Route {
    Route::handler("says", move |request: Request<Body>| async move {
        // What is left of a body would end its connection.
        let taken = request.into_body().collect(1 << 20).await;
        Response::new(Body::from(taken.map_or("no body", |_| text)))
    })
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";

/// Has one request answered, over whatever connection it comes by.
async fn served(client: &mut Wire, up: &mut Wire) {
    client.send(GET).await;
    up.head().await;
    up.send(OK).await;
    assert_eq!(status(&client.head().await), 200);
    client.bytes(2).await;
}

#[tokio::test]
async fn the_next_request_of_a_kept_connection_takes_what_is_new() {
    let server = listen(gateway([says("old")])).await;
    let mut client = connect(server.local_addr()).await;
    client.send(GET).await;
    client.until("\r\n\r\nold").await;
    let limits = Limits { request_body_bytes: 3, ..Limits::default() };
    let new = Gateway::new(Settings { limits, ..Settings::default() }).route(says("new"));
    server.reload(new).expect("it is well");
    client.send(GET).await;
    client.until("\r\n\r\nnew").await;
    client.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nbody").await;
    assert_eq!(status(&client.head().await), 413);
    assert_eq!(server.snapshot().connections, 1);
}

#[tokio::test]
async fn an_exchange_under_way_ends_by_what_it_began_with_and_keeps_no_connection_to_who_is_gone() {
    let ((old, old_url), (new, new_url)) = (listener().await, listener().await);
    let server = listen(gateway([to("up", &old_url)])).await;
    let mut client = connect(server.local_addr()).await;
    client.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nbo").await;
    let mut up = accepted(&old).await;
    up.head().await;
    up.send("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nans").await;
    client.until("ans").await;

    let limits = Limits { request_body_bytes: 1, ..Limits::default() };
    let after = Gateway::new(Settings { limits, ..Settings::default() }).route(to("up", &new_url));
    server.reload(after).expect("it is well");
    assert_eq!(server.snapshot().upstreams[0].upstream, new_url);
    client.send("dy").await;
    assert_eq!(up.bytes(4).await, b"body");
    up.send("wer").await;
    assert_eq!(client.bytes(3).await, b"wer");
    up.ended().await;

    client.send(GET).await;
    let mut up = accepted(&new).await;
    up.head().await;
    up.send(OK).await;
    assert_eq!(status(&client.head().await), 200);
}

#[tokio::test]
async fn a_server_that_stays_keeps_its_connection_and_one_that_goes_loses_it() {
    let (upstream, url) = listener().await;
    let server = listen(gateway([to("up", &url)])).await;
    let mut client = connect(server.local_addr()).await;
    client.send(GET).await;
    let mut up = accepted(&upstream).await;
    up.head().await;
    up.send(OK).await;
    client.until("hi").await;
    // In a route of another name, too.
    for (name, connected, reused) in [("up", 1, 1), ("other", 0, 1), ("up", 1, 2)] {
        server.reload(gateway([to(name, &url)])).expect("it is well");
        served(&mut client, &mut up).await;
        let snapshot = &server.snapshot().upstreams[0];
        assert_eq!((&*snapshot.route, snapshot.connected, snapshot.reused), (name, connected, reused));
    }
    server.reload(gateway([says("nothing")])).expect("it is well");
    up.ended().await;
}

#[tokio::test]
async fn no_counter_falls_though_its_route_goes_and_comes_back() {
    let server = listen(gateway([says("hello")])).await;
    let mut client = connect(server.local_addr()).await;
    let mut hello = async || {
        client.send(GET).await;
        client.until("hello").await;
    };
    let bytes = || {
        let snapshot = server.snapshot();
        let of = |stream: &&millstream_gateway::StreamsSnapshot| stream.route == "says" && stream.bytes > 0;
        snapshot.streams.iter().find(of).map(|stream| stream.bytes)
    };
    hello().await;
    let answer = async |_: Request<Body>| Response::new(Body::from("hello"));
    server.reload(gateway([Route::handler("other", answer)])).expect("it is well");
    hello().await;
    assert_eq!(bytes(), Some(5));
    let snapshot = server.snapshot();
    let answers: Vec<_> = snapshot.answers.iter().map(|one| (&*one.route, one.by_class["2xx"])).collect();
    assert_eq!(answers, [("other", 1), ("says", 1)]);
    server.reload(gateway([says("hello")])).expect("it is well");
    hello().await;
    assert_eq!(bytes(), Some(10));
    assert_eq!((server.snapshot().connections, server.snapshot().reloads["applied"]), (1, 2));
}

#[tokio::test]
async fn one_that_is_wrong_leaves_everything_as_it_is() {
    let server = listen(gateway([says("old")])).await;
    let error = server.reload(gateway([says("a"), says("b")])).expect_err("two of one name");
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
    assert!(error.to_string().contains("`says` is taken already"), "{error}");
    server.reload_refused();
    let mut client = connect(server.local_addr()).await;
    client.send(GET).await;
    client.until("old").await;
    assert_eq!((server.snapshot().reloads["applied"], server.snapshot().reloads["refused"]), (0, 2));
}

#[tokio::test]
async fn the_pool_stays_as_it_is_and_that_is_said() {
    let server = listen(gateway([says("old")])).await;
    let bytes_max = server.snapshot().pool.bytes_max;
    let reloaded = server.reload(gateway([says("new")])).expect("it is well");
    assert!(reloaded.unchanged.is_empty(), "{reloaded:?}");
    let pool = PoolSettings { bytes_max: 1 << 20, enabled: false, ..PoolSettings::default() };
    let settings = Settings { pool, pool_warm: 1, pool_trim: Duration::from_secs(1), ..Settings::default() };
    for _ in 0..2 {
        let reloaded = server.reload(Gateway::new(settings.clone()).route(says("new"))).expect("it is well");
        assert_eq!(reloaded.unchanged, ["pool", "pool_warm", "pool_trim"]);
    }
    let pool = server.snapshot().pool;
    assert!(pool.enabled && pool.bytes_max >= bytes_max, "{pool:?}");
}

#[tokio::test]
async fn the_observer_is_replaced_with_the_rest() {
    let told: [Arc<AtomicU64>; 2] = Default::default();
    let observed = |at: usize| {
        let told = told[at].clone();
        gateway([says("it")]).observe(move |_| {
            told.fetch_add(1, Ordering::Relaxed);
        })
    };
    let server = listen(observed(0)).await;
    let mut client = connect(server.local_addr()).await;
    for at in [0, 1] {
        client.send(GET).await;
        client.until("\r\n\r\nit").await;
        // The next head is read when the one before has been told.
        client.send("HEAD / HTTP/1.1\r\nHost: h\r\n\r\n").await;
        client.head().await;
        assert!(told[at].load(Ordering::Relaxed) >= 1);
        if at == 0 {
            server.reload(observed(1)).expect("it is well");
        }
    }
    assert!(told[0].load(Ordering::Relaxed) <= 2);
}

#[tokio::test(start_paused = true)]
async fn more_and_fewer_connections_may_be_allowed() {
    let limited = |connections| {
        let limits = Limits { connections, ..Limits::default() };
        Gateway::new(Settings { limits, ..Settings::default() }).route(says("it"))
    };
    let waits =
        async |client: &mut Wire| tokio::time::timeout(SHORT, client.until("\r\n\r\nit")).await.is_err();
    let server = listen(limited(1)).await;
    let asking = async || {
        let mut client = connect(server.local_addr()).await;
        client.send(GET).await;
        client
    };
    let mut first = asking().await;
    first.until("\r\n\r\nit").await;
    let mut second = asking().await;
    assert!(waits(&mut second).await);
    server.reload(limited(3)).expect("it is well");
    second.until("\r\n\r\nit").await;
    // Both go on; a third has to wait until one place is left of them.
    server.reload(limited(1)).expect("it is well");
    for client in [&mut first, &mut second] {
        client.send(GET).await;
        client.until("\r\n\r\nit").await;
    }
    let mut third = asking().await;
    assert!(waits(&mut third).await);
    drop(first);
    assert!(waits(&mut third).await);
    drop(second);
    third.until("\r\n\r\nit").await;
}

#[tokio::test]
async fn a_limit_of_requests_holds_from_then_on() {
    let limited = |client_rate| {
        let limits = Limits { client_rate, client_burst: 1, ..Limits::default() };
        Gateway::new(Settings { limits, ..Settings::default() }).route(says("it"))
    };
    let server = listen(limited(None)).await;
    let mut client = connect(server.local_addr()).await;
    let mut answered = async |count: usize| {
        let mut all = Vec::new();
        for _ in 0..count {
            client.send(GET).await;
            let head = client.head().await;
            let length = head.split("content-length: ").nth(1).and_then(|rest| rest.split('\r').next());
            client.bytes(length.expect("a length").parse().expect("a number")).await;
            all.push(status(&head));
        }
        all
    };
    assert_eq!(answered(3).await, [200, 200, 200]);
    server.reload(limited(Some(1))).expect("it is well");
    assert_eq!(answered(2).await, [200, 429]);
    // What is not changed goes on, with what it has counted.
    server.reload(limited(Some(1))).expect("it is well");
    assert_eq!(answered(1).await, [429]);
    server.reload(limited(Some(1_000_000))).expect("it is well");
    assert_eq!(answered(1).await, [200]);
}

#[tokio::test(start_paused = true)]
async fn what_checks_have_found_stays_as_long_as_somebody_checks() {
    let (upstream, url) = listener().await;
    let check = HealthCheck { period: Duration::from_secs(3600), failures: 1, ..HealthCheck::default() };
    let checked = |check: Option<&HealthCheck>| {
        let upstreams = Upstreams::new([url.parse().expect("a url")]);
        let upstreams = match check {
            Some(check) => upstreams.health(check.clone()),
            None => upstreams,
        };
        gateway([Route::to("up", Target::Proxy(Arc::new(upstreams)))])
    };
    let server = listen(checked(Some(&check))).await;
    let healthy = || server.snapshot().upstreams[0].healthy;
    let mut asked = accepted(&upstream).await;
    asked.head().await;
    asked.send("HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n").await;
    asked.ended().await;
    within("the news", async {
        while healthy() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    server.reload(checked(Some(&check))).expect("it is well");
    assert!(!healthy());
    // Nobody has asked it again for that.
    assert!(tokio::time::timeout(SHORT, upstream.accept()).await.is_err());
    server.reload(checked(None)).expect("it is well");
    assert!(healthy());
    // Another check begins at once.
    for path in ["/other", "/third"] {
        let other = HealthCheck { path: path.into(), ..check.clone() };
        server.reload(checked(Some(&other))).expect("it is well");
        let mut asked = accepted(&upstream).await;
        assert!(asked.head().await.starts_with(&format!("GET {path} ")));
    }
}

#[tokio::test]
async fn an_open_breaker_stays_open_unless_it_is_set_otherwise() {
    let (upstream, url) = listener().await;
    let broken = |calls: u32| {
        let upstreams = Upstreams::new([url.parse().expect("a url")]);
        let upstreams = upstreams.breaker(&BreakerSettings::default().calls_min(calls));
        gateway([Route::to("up", Target::Proxy(Arc::new(upstreams)))])
    };
    let server = listen(broken(1)).await;
    let mut client = connect(server.local_addr()).await;
    client.send(GET).await;
    drop(accepted(&upstream).await);
    assert_eq!(status(&client.head().await), 502);
    let healthy = || server.snapshot().upstreams[0].healthy;
    assert!(!healthy());
    server.reload(broken(1)).expect("it is well");
    assert!(!healthy());
    server.reload(broken(2)).expect("it is well");
    assert!(healthy());
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_not_needed_closes_by_the_new_time() {
    let (upstream, url) = listener().await;
    let kept = |keep_alive| {
        let timeouts = Timeouts { keep_alive, ..Timeouts::default() };
        Gateway::new(Settings { timeouts, ..Settings::default() }).route(to("up", &url))
    };
    let server = listen(kept(Duration::from_secs(3600))).await;
    let mut client = connect(server.local_addr()).await;
    client.send(GET).await;
    let mut up = accepted(&upstream).await;
    up.head().await;
    up.send(OK).await;
    client.until("hi").await;
    server.reload(kept(Duration::from_millis(100))).expect("it is well");
    up.ended().await;
}
