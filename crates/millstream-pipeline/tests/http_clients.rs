//! Clients of the `http` source that take their time: none keeps the others out for long.

#![cfg(feature = "http")]

mod common;

use common::{Bench, LONG, asked};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

fn source(port: u16, more: &str) -> String {
    format!(
        "source: {{ http: {{ listen: \"127.0.0.1:{port}\", path: /in{more} }} }}\nbatch: {{ count: 1 }}\noutput: {{ file: {{ path: out.ndjson }} }}"
    )
}

/// Sends `text` and nothing more; what comes until the connection is closed, and when that is.
async fn silent_after(port: u16, text: &str) -> (String, Duration) {
    let begun = Instant::now();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("a connection");
    stream.write_all(text.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("it is closed");
    (answer, begun.elapsed())
}

#[tokio::test(start_paused = true)]
async fn who_sends_half_a_request_or_none_is_not_waited_for() {
    let bench = Bench::new().await;
    let (port, run) = bench.listening(|port| source(port, "")).await;
    let minute = Duration::from_secs(60)..Duration::from_secs(70);
    for head in ["", "POST /in HTTP/1.1\r\nhost: x\r\n"] {
        let (_, after) = silent_after(port, head).await;
        assert!(minute.contains(&after), "{head:?}: {after:?}");
    }
    let half = "POST /in HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\nconnection: close\r\n\r\n[1,";
    let (answer, after) = silent_after(port, half).await;
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("nothing of it was accepted"), "{answer}");
    assert!(minute.contains(&after), "{after:?}");
    let report = run.shutdown(LONG).await.expect("a clean end");
    assert_eq!(report.ledger.received, 0);
}

#[tokio::test(start_paused = true)]
async fn there_are_no_more_connections_than_the_file_allows() {
    for (connections, waits) in [(2, true), (3, false)] {
        let bench = Bench::new().await;
        let more = format!(", max_connections: {connections}");
        let (port, run) = bench.listening(|port| source(port, &more)).await;
        let mut idle = Vec::new();
        for _ in 0..2 {
            idle.push(TcpStream::connect(("127.0.0.1", port)).await.expect("a connection"));
            // The server takes them in their order.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let begun = Instant::now();
        let answer = asked(port, "POST /in", "application/json", "1").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let waited = begun.elapsed() > Duration::from_secs(30);
        assert_eq!(waited, waits, "{connections} connections: after {:?}", begun.elapsed());
        run.shutdown(LONG).await.expect("a clean end");
    }
}
