//! Files as sources: which file a remembered place belongs to, files that are followed, and items that are too long to store.

mod common;

use common::{BUFFERED, Bench};
use millstream_embedded::{EmbeddedBroker, Settings};
use millstream_pipeline::Run;
use std::sync::Arc;
use std::time::Duration;

const OUT: &str = "output: { file: { path: out/all.ndjson } }";

/// Waits until so many items are completed.
async fn until(run: &Run, completed: u64) {
    let reached = async {
        while run.report().ledger.completed < completed {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let reached = tokio::time::timeout(Duration::from_secs(600), reached).await;
    assert!(reached.is_ok(), "only {:?}", run.report().ledger);
}

/// A csv of one header, longer than what is remembered of a file's begin.
fn rows(value: u32) -> String {
    let header: Vec<String> = (0..40).map(|n| format!("column_{n:04}")).collect();
    let row = |n: u32| vec![format!("{}", value + n); 40].join(",");
    let rows: Vec<String> = (0..20).map(row).collect();
    format!("{}\n{}\n", header.join(","), rows.join("\n"))
}

#[tokio::test]
async fn a_file_that_was_replaced_by_one_of_the_same_header_is_read_from_its_begin() {
    let remembering = "source: { file: { path: in.csv, position: state/p.position } }".to_owned();
    let buffered = format!("source: {{ file: {{ path: in.csv }} }}\n{BUFFERED}");
    for source in [remembering, buffered] {
        let bench = Bench::new().await;
        let yaml = format!("{source}\n{OUT}");
        bench.write("in.csv", rows(100));
        assert_eq!(bench.run(&yaml).await.ledger.received, 20);
        bench.write("in.csv", rows(500));
        assert_eq!(bench.run(&yaml).await.ledger.received, 20, "{source}");
        bench.write("in.csv", rows(500) + &rows(700).lines().skip(1).collect::<Vec<_>>().join("\n"));
        assert_eq!(bench.run(&yaml).await.ledger.received, 20, "what was added to the same file: {source}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_followed_file_may_lose_its_name_before_its_begin_is_known() {
    let bench = Bench::new().await;
    bench.write("in.ndjson", "1\n");
    let yaml =
        format!("source: {{ file: {{ path: in.ndjson, follow: true }} }}\n{OUT}\nbatch: {{ count: 1 }}");
    let run = bench.pipeline(&yaml).start(&bench.brokers()).await.expect("a run");
    until(&run, 1).await;
    bench.write("in.ndjson", "1\n2\n");
    std::fs::rename(bench.path("in.ndjson"), bench.path("in.ndjson.1")).expect("renamed");
    until(&run, 2).await;
    bench.write("in.ndjson", "3\n");
    until(&run, 3).await;
    run.shutdown(Duration::from_secs(5)).await.expect("a clean end");
    assert_eq!(bench.read("out/all.ndjson"), "1\n2\n3\n");
}

#[tokio::test(start_paused = true)]
async fn all_followed_files_of_a_pattern_are_read_on_whichever_grows() {
    for buffer in ["", BUFFERED] {
        let bench = Bench::new().await;
        bench.write("in/a.log", "a1\n");
        bench.write("in/b.log", "b1\n");
        let yaml = format!(
            "source: {{ file: {{ path: 'in/*.log', follow: true, format: lines }} }}\n{buffer}\n{OUT}\nbatch: {{ count: 1 }}"
        );
        let run = bench.pipeline(&yaml).start(&bench.brokers()).await.expect("a run");
        until(&run, 2).await;
        bench.write("in/a.log", "a1\na2\n");
        until(&run, 3).await;
        bench.write("in/b.log", "b1\nb2");
        bench.write("in/c.log", "c1\n");
        until(&run, 4).await;
        bench.write("in/b.log", "b1\nb22\n");
        // Rotated while another one is read.
        bench.write("in/a.log", "a1\na2\na3\n");
        std::fs::rename(bench.path("in/a.log"), bench.path("in/a.log.1")).expect("renamed");
        bench.write("in/a.log", "a4\na5\na6\na7\n");
        until(&run, 10).await;
        run.shutdown(Duration::from_secs(5)).await.expect("a clean end");
        let text = bench.read("out/all.ndjson");
        let mut lines: Vec<&str> = text.lines().map(|line| &line[9..line.len() - 2]).collect();
        lines.sort_unstable();
        assert_eq!(lines, ["a1", "a2", "a3", "a4", "a5", "a6", "a7", "b1", "b22", "c1"], "{buffer}");
    }
}

#[tokio::test]
async fn the_places_of_files_that_are_gone_are_forgotten() {
    let bench = Bench::new().await;
    let yaml = format!("source: {{ file: {{ path: 'in/*.ndjson', position: p.position }} }}\n{OUT}");
    for name in ["a", "b", "c"] {
        bench.write(&format!("in/{name}.ndjson"), "1\n");
    }
    bench.run(&yaml).await;
    assert!(bench.read("p.position").contains("a.ndjson"));
    std::fs::remove_file(bench.path("in/a.ndjson")).expect("removed");
    bench.write("in/c.ndjson", "1\n2\n");
    assert_eq!(bench.run(&yaml).await.ledger.received, 1);
    let position = bench.read("p.position");
    assert!(!position.contains("a.ndjson") && position.contains("b.ndjson"), "{position}");
}

/// Rows that are short in their file and long as JSON, which are stored in one step with how far was read.
#[tokio::test]
async fn sparse_rows_of_many_columns_are_stored_in_steps_that_the_broker_takes() {
    let mut bench = Bench::new().await;
    let broker = EmbeddedBroker::open(bench.path("state"), Settings::default()).await.expect("a broker");
    bench.broker = Arc::new(broker);
    let header: Vec<String> = (0..200).map(|n| format!("{n:0100}")).collect();
    let row = ",".repeat(199);
    bench.write("in.csv", format!("{}\n{}", header.join(","), format!("{row}\n").repeat(2000)));
    let yaml =
        format!("source: {{ file: {{ path: in.csv }} }}\n{BUFFERED}\nprocess: [ {{ map: '1' }} ]\n{OUT}");
    assert_eq!(bench.run(&yaml).await.ledger.completed, 2000);
}

#[tokio::test]
async fn an_item_that_the_broker_does_not_take_is_that_items_error() {
    let bench = Bench::new().await;
    bench.write("in.ndjson", format!("1\n\"{}\"\n2\n", "x".repeat(9 << 20)));
    let yaml = format!(
        "source: {{ file: {{ path: in.ndjson, max_line: 20MiB }} }}\n{BUFFERED}\n{OUT}\non_error: {{ dead_letter: {{ queue: dead }} }}"
    );
    let report = bench.run(&yaml).await;
    assert_eq!((report.ledger.completed, report.ledger.dead), (2, 1));
    let error = &report.errors[0];
    assert!(error.reason.contains("8MiB") && error.place == "in.ndjson:2", "{error:?}");
    assert_eq!(bench.bodies("dead").await.len(), 1);
    assert_eq!(bench.read("out/all.ndjson"), "1\n2\n");
}
