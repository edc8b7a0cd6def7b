//! TLS that does not come about.

use std::path::PathBuf;
use std::time::Duration;

use http::{Request, Response};
use millstream_gateway::{Body, Gateway, Route, Settings, client_tls, server_tls};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future).await.expect("in time")
}

/// A certificate and its key.
fn certified(directory: &tempfile::TempDir, name: &str) -> (PathBuf, PathBuf) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let path = |kind: &str| directory.path().join(format!("{name}-{kind}.pem"));
    std::fs::write(path("certificate"), made.cert.pem()).expect("written");
    std::fs::write(path("key"), made.signing_key.serialize_pem()).expect("written");
    (path("certificate"), path("key"))
}

fn hello() -> Route {
    Route::handler("hello", async |_: Request<Body>| Response::new(Body::from("hello")))
}

#[tokio::test]
async fn an_upstream_whose_certificate_is_of_nobody_known_is_not_asked() {
    let any = || "127.0.0.1:0".parse().expect("an address");
    let directory = tempfile::tempdir().expect("a directory");
    let (certificate, key) = certified(&directory, "its");
    let (other, _) = certified(&directory, "other");
    let upstream = Gateway::new(Settings::default())
        .route(hello())
        .tls(server_tls(&certificate, &key).expect("TLS"))
        .listen(any())
        .await
        .expect("a port");
    let url = format!("https://localhost:{}", upstream.local_addr().port());
    for (authorities, status) in [(&other, "502"), (&certificate, "200")] {
        let gateway = Gateway::new(Settings::default())
            .route(Route::proxy("up", [url.parse().expect("a url")]))
            .upstream_tls(client_tls(Some(authorities)).expect("TLS"))
            .listen(any())
            .await
            .expect("a port");
        let mut client = TcpStream::connect(gateway.local_addr()).await.expect("connected");
        let asked = "GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
        client.write_all(asked.as_bytes()).await.expect("written");
        let mut answer = String::new();
        within(client.read_to_string(&mut answer)).await.expect("an answer");
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        let snapshot = gateway.snapshot();
        let failed = u64::from(status == "502");
        assert_eq!((snapshot.upstreams[0].failed, snapshot.refused["upstream"]), (failed, failed));
    }
    assert_eq!(upstream.snapshot().answers[0].by_class["2xx"], 1);
}

#[tokio::test]
async fn a_new_handshake_sees_the_new_certificate_and_the_new_authorities() {
    let any = || "127.0.0.1:0".parse().expect("an address");
    let directory = tempfile::tempdir().expect("a directory");
    let (old, renewed) = (certified(&directory, "old"), certified(&directory, "renewed"));
    let shows = |(certificate, key): &(PathBuf, PathBuf)| {
        let tls = server_tls(certificate, key).expect("TLS");
        Gateway::new(Settings::default()).route(hello()).tls(tls)
    };
    let upstream = shows(&old).listen(any()).await.expect("a port");
    let url = format!("https://localhost:{}", upstream.local_addr().port());
    let trusts = |(certificate, _): &(PathBuf, PathBuf)| {
        let route = Route::proxy("up", [url.parse().expect("a url")]);
        let tls = client_tls(Some(certificate)).expect("TLS");
        Gateway::new(Settings::default()).route(route).upstream_tls(tls)
    };
    let gateway = trusts(&old).listen(any()).await.expect("a port");
    let mut kept = TcpStream::connect(gateway.local_addr()).await.expect("connected");
    let mut asks = async || {
        kept.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await.expect("written");
        let mut seen = Vec::new();
        while !seen.ends_with(b"hello") && !seen.ends_with(b"\n\n") && !seen.ends_with(b"reached\n") {
            assert!(within(kept.read_buf(&mut seen)).await.expect("an answer") > 0);
        }
        String::from_utf8(seen).expect("text").split(' ').nth(1).map(str::to_owned)
    };
    let (well, unreached) = (Some("200".to_owned()), Some("502".to_owned()));
    assert_eq!(asks().await, well);
    // The connection that is there was agreed on before.
    upstream.reload(shows(&renewed)).expect("it is well");
    assert_eq!(asks().await, well);
    assert_eq!(gateway.snapshot().upstreams[0].connected, 1);
    // A new one is shown the certificate that the gateway does not know yet.
    gateway.reload(Gateway::new(Settings::default()).route(hello())).expect("it is well");
    gateway.reload(trusts(&old)).expect("it is well");
    assert_eq!(asks().await, unreached);
    gateway.reload(trusts(&renewed)).expect("it is well");
    assert_eq!(asks().await, well);
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_stands_still_is_given_up() {
    let directory = tempfile::tempdir().expect("a directory");
    let (certificate, key) = certified(&directory, "its");
    let gateway = Gateway::new(Settings::default())
        .route(hello())
        .tls(server_tls(&certificate, &key).expect("TLS"))
        .listen("127.0.0.1:0".parse().expect("an address"))
        .await
        .expect("a port");
    let mut client = TcpStream::connect(gateway.local_addr()).await.expect("connected");
    // The beginning of a handshake, whose rest does not come.
    client.write_all(&[22, 3, 1, 2, 0, 1]).await.expect("written");
    let started = tokio::time::Instant::now();
    let mut rest = Vec::new();
    let _ = within(client.read_to_end(&mut rest)).await;
    assert_eq!(gateway.snapshot().refused["tls"], 1);
    let waited = started.elapsed();
    assert!((9..12).contains(&waited.as_secs()), "`timeouts.header` is 10 s, it was {waited:?}");
}
