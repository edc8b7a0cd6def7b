//! The http source: what it takes, and the room that requests take until their items are safe.

#![cfg(feature = "http")]

mod common;

use common::{BUFFERED, Bench};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A port that was free a moment ago.
async fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("an address").port()
}

/// A request that is sent, and its answer not read yet.
async fn send(port: u16, line: &str, body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("a connection");
    let head = format!(
        "{line} HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.expect("sent");
    let _ = stream.write_all(body.as_bytes()).await;
    stream
}

async fn asked(port: u16, line: &str, body: &str) -> String {
    let mut answer = Vec::new();
    let _ = send(port, line, body).await.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

fn source(port: u16, settings: &str, batch: &str) -> String {
    format!(
        "source: {{ http: {{ listen: \"127.0.0.1:{port}\"{settings} }} }}\nbatch: {{ {batch} }}\noutput: {{ file: {{ path: out.ndjson }} }}"
    )
}

#[tokio::test]
async fn the_path_is_taken_as_it_is_written() {
    for path in ["/in/:id", "/*x", "/v1:take"] {
        let bench = Bench::new().await;
        let port = free_port().await;
        let yaml = source(port, &format!(", path: '{path}'"), "count: 1");
        let run = bench.pipeline(&yaml).start(&bench.brokers()).await.expect("a run");
        for (line, status) in [
            (format!("POST {path}"), "200"),
            ("POST /in/7".to_owned(), "404"),
            ("POST /".to_owned(), "404"),
            (format!("GET {path}"), "405"),
        ] {
            let answer = asked(port, &line, "1").await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{line}: {answer}");
        }
        run.shutdown(Duration::from_secs(5)).await.expect("a clean end");
    }
}

#[tokio::test]
async fn an_item_that_the_buffers_broker_does_not_take_is_the_clients_error() {
    let bench = Bench::new().await;
    let port = free_port().await;
    let yaml = format!("{}\n{BUFFERED}", source(port, ", path: /in, max_body: 16MiB", "count: 1"));
    let run = bench.pipeline(&yaml).start(&bench.brokers()).await.expect("a run");
    let long = format!("[1,\"{}\"]", "x".repeat(9 << 20));
    let answer = asked(port, "POST /in", &long).await;
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("nothing was accepted"), "{answer}");
    assert!(asked(port, "POST /in", "2").await.starts_with("HTTP/1.1 200"), "the run goes on");
    while run.report().ledger.completed < 1 {
        tokio::task::yield_now().await;
    }
    let report = run.shutdown(Duration::from_secs(5)).await.expect("a clean end");
    assert_eq!(report.ledger.received, 1);
}

#[tokio::test]
async fn items_take_room_until_they_are_safe_though_their_client_has_gone() {
    let bench = Bench::new().await;
    let port = free_port().await;
    let yaml = source(port, ", path: /in, max_pending: 2", "count: 2, age: 1h");
    let run = bench.pipeline(&yaml).start(&bench.brokers()).await.expect("a run");
    let gone = send(port, "POST /in", "1").await;
    while run.report().ledger.received < 1 {
        tokio::task::yield_now().await;
    }
    drop(gone);
    // The server sees that in its own time.
    for _ in 0..50 {
        let answer = asked(port, "POST /in", "[2,3]").await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    }
    run.shutdown(Duration::from_secs(5)).await.expect("a clean end");
    assert_eq!(bench.read("out.ndjson"), "1\n");
}

#[tokio::test]
async fn requests_take_room_for_what_they_are_in_memory() {
    let bench = Bench::new().await;
    let port = free_port().await;
    let yaml = source(port, ", path: /in, max_body: 16KiB, max_pending: 100", "count: 50, age: 1h");
    let run = bench.pipeline(&yaml).start(&bench.brokers()).await.expect("a run");
    // Far more as values than as text.
    let nested = format!("[[{}[0]]]", "[0],".repeat(4000));
    let _first = send(port, "POST /in", &nested).await;
    while run.report().ledger.received < 1 {
        tokio::task::yield_now().await;
    }
    let second = tokio::time::timeout(Duration::from_secs(60), asked(port, "POST /in", &nested)).await;
    let answer = second.expect("it is not kept waiting");
    assert!(answer.starts_with("HTTP/1.1 503"), "the second has no room beside the first: {answer}");
    run.shutdown(Duration::from_secs(5)).await.expect("a clean end");
}
