//! What the gateway shows, and where.

use std::time::Duration;

use http::{Request, Response};
use millstream_gateway::{Body, Gateway, Route, Settings, exposition};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

async fn get(to: std::net::SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(to).await.expect("connected");
    let request = format!("GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("written");
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer);
    tokio::time::timeout(Duration::from_secs(30), read).await.expect("in time").expect("read");
    answer
}

async fn hello(_: Request<Body>) -> Response<Body> {
    Response::new("hello".into())
}

#[tokio::test]
async fn the_admin_address_shows_what_was_counted_and_the_public_one_does_not() {
    let any = || "127.0.0.1:0".parse().expect("an address");
    let server = Gateway::new(Settings::default())
        .route(Route::handler("hello", hello).path("/hello"))
        .listen(any())
        .await;
    let server = server.expect("a port");
    let admin = server.admin().listen(any()).await.expect("a port");
    assert!(get(server.local_addr(), "/hello").await.ends_with("\r\n\r\nhello"));

    let metrics = get(admin.local_addr(), "/metrics").await;
    for line in [
        "millstream_gateway_stream_bytes_total{route=\"hello\",direction=\"response\"} 5",
        "millstream_gateway_stream_chunks_total{route=\"hello\",direction=\"response\"} 1",
        "millstream_gateway_stream_first_bytes_total{route=\"hello\",direction=\"response\"} 1",
        "millstream_gateway_stream_seconds_bucket{route=\"hello\",direction=\"response\",le=\"+Inf\"} 1",
        "millstream_gateway_stream_seconds_count{route=\"hello\",direction=\"response\"} 1",
        "millstream_gateway_streams_ended_total{route=\"hello\",direction=\"response\",outcome=\"complete\"} 1",
        "millstream_gateway_answers_total{route=\"hello\",class=\"2xx\"} 1",
        "millstream_gateway_connections_total 1",
        "millstream_gateway_pool_enabled 1",
    ] {
        assert!(metrics.lines().any(|shown| shown == line), "{line} is not in\n{metrics}");
    }
    let pool = get(admin.local_addr(), "/buffer-pool-metrics").await;
    let pool: serde_json::Value =
        serde_json::from_str(pool.split_once("\r\n\r\n").expect("a body").1).expect("JSON");
    assert_eq!(pool["tiers"][0]["size"], 4096);
    assert_eq!(pool["in_use"], 0);
    assert!(pool["timestamp"].as_f64().is_some_and(|seconds| seconds > 1.7e9), "{pool}");
    assert!(get(admin.local_addr(), "/health").await.contains("\"status\": \"ok\""));
    assert!(get(admin.local_addr(), "/status.json").await.contains("\"backpressure_events\""));
    for path in ["/metrics", "/health", "/buffer-pool-metrics", "/status.json", "/streams"] {
        assert!(get(server.local_addr(), path).await.starts_with("HTTP/1.1 404 "), "{path} is public");
    }
}

#[tokio::test]
async fn the_admin_address_lists_what_is_under_way() {
    let any = || "127.0.0.1:0".parse().expect("an address");
    let never = Route::handler("never", |_: Request<Body>| std::future::pending::<Response<Body>>());
    let server = Gateway::new(Settings::default()).route(never).listen(any()).await.expect("a port");
    let admin = server.admin().listen(any()).await.expect("a port");
    let look = async |query: &str| {
        let answer = get(admin.local_addr(), &format!("/streams{query}")).await;
        let (head, body) = answer.split_once("\r\n\r\n").expect("a body");
        assert!(
            head.starts_with("HTTP/1.1 200 ") && head.contains("content-type: application/json"),
            "{answer}"
        );
        serde_json::from_str::<serde_json::Value>(body).expect("JSON")
    };
    let list = look("").await;
    assert!(list["timestamp"].as_f64().is_some_and(|seconds| seconds > 1.7e9), "{list}");
    assert_eq!((&list["total"], &list["streams"]), (&0.into(), &serde_json::json!([])));

    let mut clients = Vec::new();
    for number in 1..=3 {
        let mut client = TcpStream::connect(server.local_addr()).await.expect("connected");
        client
            .write_all(b"PUT /a?b HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\n")
            .await
            .expect("written");
        clients.push(client);
        while server.streams(9).exchanges.iter().filter(|one| one.request.is_some()).count() < number {
            tokio::task::yield_now().await;
        }
    }
    let list = look("?limit=2").await;
    assert_eq!((&list["total"], list["streams"].as_array().map(Vec::len)), (&3.into(), Some(2)));
    let one = &list["streams"][0];
    assert_eq!((&one["id"], &one["method"], &one["path"]), (&"1.1".into(), &"PUT".into(), &"/a".into()));
    assert!(one["age_seconds"].as_f64().is_some_and(|age| age > 0.0) && one["response"].is_null(), "{one}");
    let names: Vec<&String> = one["request"].as_object().expect("a body").keys().collect();
    let expected = [
        "backpressure_events",
        "backpressure_seconds",
        "bytes",
        "chunks",
        "ended",
        "source_wait_seconds",
        "waits_for",
    ];
    assert_eq!(names, expected);
    for query in ["?limit=", "?limit=x", "?limit=10001", "?limt=1"] {
        let answer = get(admin.local_addr(), &format!("/streams{query}")).await;
        assert!(
            answer.starts_with("HTTP/1.1 400 ") && answer.contains("a whole number from 0 to 10000"),
            "{answer}"
        );
    }
    assert_eq!(look("?limit=10000").await["streams"].as_array().map(Vec::len), Some(3));
}

#[test]
fn the_reference_lists_every_metric_and_no_other() {
    let reference = include_str!("../../../docs/gateway.md");
    let listed: Vec<&str> = reference
        .lines()
        .filter_map(|line| line.strip_prefix("| `millstream_gateway_"))
        .filter_map(|rest| rest.split('`').next())
        .collect();
    let known: Vec<&str> =
        exposition::NAMES.iter().map(|name| &name["millstream_gateway_".len()..]).collect();
    assert_eq!(listed, known);
}

#[tokio::test]
async fn routes_that_metrics_could_not_tell_apart_are_refused() {
    let up = |name: &str, urls: &[&str]| {
        Route::proxy(name, urls.iter().map(|url| url.parse().expect("a url")).collect::<Vec<_>>())
    };
    for (routes, expected) in [
        (vec![up("a", &["http://h:1"]), up("a", &["http://h:2"])], "`a` is taken already"),
        (vec![up("(tunnels)", &["http://h:1"])], "`(tunnels)` is taken already"),
        (vec![up("a", &["http://h:1", "http://h:1/"])], "`a` leads to `http://h:1` twice"),
    ] {
        let gateway = routes.into_iter().fold(Gateway::new(Settings::default()), Gateway::route);
        let error = gateway.listen("127.0.0.1:0".parse().expect("an address")).await.expect_err("refused");
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[tokio::test]
async fn warm_buffers_are_there_before_the_first_request_and_go_when_nobody_needs_them() {
    let pool_trim = Duration::from_millis(200);
    let settings = Settings { pool_warm: 1 << 20, pool_trim, ..Settings::default() };
    let server = Gateway::new(settings).route(Route::handler("hello", hello));
    let server = server.listen("127.0.0.1:0".parse().expect("an address")).await.expect("a port");
    assert_eq!((server.snapshot().pool.total, server.snapshot().pool.bytes), (64, 1 << 20));
    let trimmed = async {
        while server.snapshot().pool.bytes > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), trimmed).await.expect("they are freed");
}
