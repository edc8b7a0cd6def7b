//! The http source: what it takes, and the room that requests take until their items are safe.

#![cfg(feature = "http")]

mod common;

use common::{BUFFERED, Bench, LONG, asked, send, until};

const JSON: &str = "application/json";

fn source(port: u16, settings: &str, batch: &str) -> String {
    format!(
        "source: {{ http: {{ listen: \"127.0.0.1:{port}\"{settings} }} }}\nbatch: {{ {batch} }}\noutput: {{ file: {{ path: out.ndjson }} }}"
    )
}

#[tokio::test]
async fn the_path_is_taken_as_it_is_written() {
    for path in ["/in/:id", "/*x", "/v1:take"] {
        let bench = Bench::new().await;
        let (port, run) =
            bench.listening(|port| source(port, &format!(", path: '{path}'"), "count: 1")).await;
        for (line, status) in [
            (format!("POST {path}"), "200"),
            ("POST /in/7".to_owned(), "404"),
            ("POST /".to_owned(), "404"),
            (format!("GET {path}"), "405"),
        ] {
            let answer = asked(port, &line, JSON, "1").await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{line}: {answer}");
        }
        run.shutdown(LONG).await.expect("a clean end");
    }
}

#[tokio::test]
async fn an_item_that_the_buffers_broker_does_not_take_is_the_clients_error() {
    let bench = Bench::new().await;
    let (port, run) = bench
        .listening(|port| format!("{}\n{BUFFERED}", source(port, ", path: /in, max_body: 16MiB", "count: 1")))
        .await;
    let long = format!("[1,\"{}\"]", "x".repeat(9 << 20));
    let answer = asked(port, "POST /in", JSON, &long).await;
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("nothing was accepted"), "{answer}");
    assert!(asked(port, "POST /in", JSON, "2").await.starts_with("HTTP/1.1 200"), "the run goes on");
    until(&run, 1).await;
    let report = run.shutdown(LONG).await.expect("a clean end");
    assert_eq!(report.ledger.received, 1);
}

#[tokio::test]
async fn items_take_room_until_they_are_safe_though_their_client_has_gone() {
    let bench = Bench::new().await;
    let (port, run) =
        bench.listening(|port| source(port, ", path: /in, max_pending: 2", "count: 2, age: 1h")).await;
    let gone = send(port, "POST /in", JSON, "1").await;
    while run.report().ledger.received < 1 {
        tokio::task::yield_now().await;
    }
    drop(gone);
    // The server sees that in its own time.
    for _ in 0..50 {
        let answer = asked(port, "POST /in", JSON, "[2,3]").await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    }
    run.shutdown(LONG).await.expect("a clean end");
    assert_eq!(bench.read("out.ndjson"), "1\n");
}

#[tokio::test]
async fn requests_take_room_for_what_they_are_in_memory() {
    let bench = Bench::new().await;
    let (port, run) = bench
        .listening(|port| {
            source(port, ", path: /in, max_body: 16KiB, max_pending: 100", "count: 50, age: 1h")
        })
        .await;
    // Far more as values than as text.
    let nested = format!("[[{}[0]]]", "[0],".repeat(4000));
    let _first = send(port, "POST /in", JSON, &nested).await;
    while run.report().ledger.received < 1 {
        tokio::task::yield_now().await;
    }
    let second = tokio::time::timeout(LONG, asked(port, "POST /in", JSON, &nested)).await;
    let answer = second.expect("it is not kept waiting");
    assert!(answer.starts_with("HTTP/1.1 503"), "the second has no room beside the first: {answer}");
    run.shutdown(LONG).await.expect("a clean end");
}
