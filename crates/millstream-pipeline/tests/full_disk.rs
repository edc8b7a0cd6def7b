//! A broker whose disk is full, under a run: the error says what to do, and nothing accepted is lost.

mod common;

use common::{BUFFERED, Bench, Failed};
use millstream_embedded::log::SimDisk;
use millstream_embedded::{EmbeddedBroker, Settings};
use millstream_message::Broker;
use millstream_pipeline::Report;
use std::sync::Arc;

async fn open(disk: &SimDisk) -> Arc<dyn Broker> {
    let settings = Settings { segment_bytes: 4 << 20, message_bytes_max: 1 << 20, ..Settings::default() };
    Arc::new(EmbeddedBroker::open_on("/sim", settings, Arc::new(disk.clone())).await.expect("a broker"))
}

/// A bench on a disk with room for little.
async fn full() -> (SimDisk, Bench) {
    let disk = SimDisk::new();
    let bench = Bench { broker: open(&disk).await, ..Bench::new().await };
    disk.set_capacity(disk.used_bytes() + 100);
    (disk, bench)
}

fn lines(count: u32) -> String {
    (0..count).map(|n| format!("\"{n:0999}\"\n")).collect()
}

fn refused(result: Result<Report, Failed>) {
    let error = result.expect_err("the disk is full").to_string();
    assert!(error.contains("make room"), "{error}");
}

#[tokio::test]
async fn a_buffer_that_is_full_by_its_disk_ends_the_run_and_the_next_one_goes_on() {
    let (disk, bench) = full().await;
    bench.write("in.ndjson", lines(5000));
    let yaml = format!(
        "source: {{ file: {{ path: in.ndjson }} }}\n{BUFFERED}\noutput: {{ file: {{ path: 'out/all.ndjson' }} }}"
    );
    refused(bench.try_run(&yaml).await);
    disk.set_capacity(0);
    bench.run(&yaml).await;
    let mut all: Vec<String> = Vec::new();
    for name in bench.list("out") {
        all.extend(bench.read(&format!("out/{name}")).lines().map(str::to_owned));
    }
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 5000, "an item is lost");
}

#[tokio::test]
async fn a_dead_letter_that_finds_no_room_ends_the_run_and_says_why() {
    let (_disk, bench) = full().await;
    bench.write("in.ndjson", format!("{{bad {}\n", "x".repeat(900)).repeat(6000));
    refused(
        bench
            .try_run(
                "source: { file: { path: in.ndjson } }\noutput: { file: { path: out.ndjson } }\n\
                 on_error: { dead_letter: { broker: \"embedded:s\", queue: dead } }",
            )
            .await,
    );
}

#[tokio::test]
async fn a_queue_that_finds_no_room_ends_the_run_and_says_why() {
    let (_disk, bench) = full().await;
    bench.write("in.ndjson", lines(5000));
    refused(
        bench
            .try_run(
                "source: { file: { path: in.ndjson } }\noutput: { queue: { broker: \"embedded:s\", name: out } }",
            )
            .await,
    );
}

#[cfg(feature = "http")]
#[tokio::test]
async fn a_source_that_fails_ends_the_run_though_its_output_waits_for_long() {
    let (_disk, bench) = full().await;
    bench.write("in.ndjson", lines(20_000));
    let (nobody, _silent) = common::silent_port();
    let yaml = format!(
        "source: {{ file: {{ path: in.ndjson }} }}\n{BUFFERED}\noutput: {{ http: {{ url: \"http://127.0.0.1:{nobody}/\" }} }}\n\
         on_error: {{ retry: {{ attempts: 1000, backoff: 30s }} }}"
    );
    let run = tokio::time::timeout(std::time::Duration::from_secs(60), bench.try_run(&yaml));
    refused(run.await.expect("it ends"));
}

#[cfg(feature = "http")]
#[tokio::test]
async fn an_http_source_refuses_while_the_disk_is_full_and_goes_on_when_there_is_room() {
    let (disk, bench) = full().await;
    let yaml = |port| {
        format!(
            "source: {{ http: {{ listen: \"127.0.0.1:{port}\", path: /in }} }}\n{BUFFERED}\nbatch: {{ count: 1 }}\n\
             output: {{ file: {{ path: out.ndjson }} }}"
        )
    };
    let (port, run) = bench.listening(yaml).await;
    let body: String = lines(200);
    let post = async || common::asked(port, "POST /in", "application/x-ndjson", &body).await;
    let mut accepted = 0;
    let refused = loop {
        let answer = post().await;
        if !answer.starts_with("HTTP/1.1 200") {
            break answer;
        }
        accepted += 200;
        assert!(accepted < 100_000, "the disk is never full");
    };
    assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("make room"), "{refused}");
    let why = run.monitor().refusing().expect("it says so");
    assert!(why.contains("make room"), "{why}");
    assert!(post().await.starts_with("HTTP/1.1 503"), "it still listens");
    disk.set_capacity(0);
    let answer = post().await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(run.monitor().refusing(), None);
    common::until(&run, accepted + 200).await;
    run.shutdown(common::LONG).await.expect("a clean end");
}
