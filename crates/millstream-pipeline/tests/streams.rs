//! Streams as source and output: what is read, from where, and what a run leaves for the next.

mod common;

use common::{Bench, LONG};
use millstream_message::{Message, StreamFrom, StreamSpec};
use std::time::Duration;

const SOURCE: &str = "source: { stream: { broker: \"embedded:s\", name: events, until: drained } }";
const OUT: &str = "output: { file: { path: out/n.ndjson } }";

fn numbers(from: u64, to: u64) -> String {
    (from..to).map(|n| format!("{{\"n\":{n}}}\n")).collect()
}

async fn append(bench: &Bench, from: u64, to: u64) {
    let messages = (from..to).map(|n| Message::new(format!("{{\"n\":{n}}}")));
    bench.broker.append("events", messages.collect()).await.expect("appended");
}

async fn with_events(count: u64) -> Bench {
    let bench = Bench::new().await;
    bench.broker.declare_stream(StreamSpec::new("events")).await.expect("a stream");
    append(&bench, 0, count).await;
    bench
}

#[tokio::test]
async fn a_run_goes_on_where_the_last_one_stopped_and_the_stream_keeps_its_messages() {
    let bench = with_events(3000).await;
    let yaml = format!("{SOURCE}\n{OUT}");
    assert_eq!(bench.run(&yaml).await.ledger.completed, 3000);
    assert_eq!(bench.run(&yaml).await.ledger.received, 0);
    append(&bench, 3000, 3007).await;
    assert_eq!(bench.run(&yaml).await.ledger.completed, 7);
    assert_eq!(bench.read("out/n.ndjson") + &bench.read("out/n-2.ndjson"), numbers(0, 3007));
    assert_eq!(bench.broker.stream_stats("events").await.expect("stats").first, 0);
    assert_eq!(bench.broker.stored_offset("events", "p").await.expect("an offset"), Some(3007));
}

#[tokio::test]
async fn each_reader_has_a_place_of_its_own() {
    let bench = with_events(10).await;
    let yaml = |reader: &str| {
        format!(
            "source: {{ stream: {{ broker: \"embedded:s\", name: events, until: drained, reader: {reader} }} }}\n{OUT}"
        )
    };
    assert_eq!(bench.run(&yaml("one")).await.ledger.completed, 10);
    assert_eq!(bench.run(&yaml("two")).await.ledger.completed, 10);
    assert_eq!(bench.run(&yaml("one")).await.ledger.received, 0);
}

#[tokio::test]
async fn the_first_run_begins_where_it_is_told() {
    for (from, expected) in
        [("first", 0..5), ("3", 3..5), ("last", 4..5), ("9", 5..5), ("1h", 0..5), ("1ns", 5..5)]
    {
        let bench = with_events(5).await;
        // Until the millisecond of the last append is over.
        let appended = tokio::time::Instant::now();
        while appended.elapsed() < Duration::from_millis(2) {
            tokio::task::yield_now().await;
        }
        let yaml = format!(
            "source: {{ stream: {{ broker: \"embedded:s\", name: events, until: drained, from: {from} }} }}\n{OUT}"
        );
        assert_eq!(bench.run(&yaml).await.ledger.completed, expected.end - expected.start, "from {from}");
        if !expected.is_empty() {
            assert_eq!(bench.read("out/n.ndjson"), numbers(expected.start, expected.end), "from {from}");
        }
    }
}

#[tokio::test]
async fn a_run_that_waits_for_more_gets_what_comes_and_ends_when_it_is_stopped() {
    let bench = with_events(2).await;
    let yaml = format!(
        "source: {{ stream: {{ broker: \"embedded:s\", name: events, from: next }} }}\nbatch: {{ count: 1 }}\n{OUT}"
    );
    let run = bench.pipeline(&yaml).start(&bench.brokers()).await.expect("a run");
    let mut at = 2;
    // What is appended before the run has begun to read is none of what comes next.
    while run.report().ledger.completed < 3 {
        append(&bench, at, at + 1).await;
        at += 1;
        tokio::task::yield_now().await;
    }
    let report = run.shutdown(LONG).await.expect("a clean end");
    assert!(report.ledger.balances() && report.ledger.completed >= 3, "{:?}", report.ledger);
    let stored = bench.broker.stored_offset("events", "p").await.expect("an offset").expect("it was stored");
    let last: serde_json::Value =
        serde_json::from_str(bench.read("out/n.ndjson").lines().last().expect("a line")).expect("JSON");
    assert_eq!(last["n"], stored - 1, "the offset is the one behind what was written");
}

#[tokio::test]
async fn a_run_that_is_dropped_in_the_middle_repeats_and_loses_nothing() {
    let bench = with_events(20_000).await;
    // A directory for each: what a dropped run still holds on other threads is not waited for.
    let yaml = |out: usize| {
        format!("{SOURCE}\nbatch: {{ count: 100 }}\noutput: {{ file: {{ path: out{out}/n.ndjson }} }}")
    };
    for (out, stop_after) in [1, 3000].into_iter().enumerate() {
        let run = bench.pipeline(&yaml(out)).start(&bench.brokers()).await.expect("a run");
        while run.report().ledger.completed < stop_after {
            tokio::task::yield_now().await;
        }
    }
    bench.run(&yaml(2)).await;
    let mut seen = std::collections::BTreeSet::new();
    for out in 0..3 {
        for name in bench.list(&format!("out{out}")) {
            seen.extend(bench.read(&format!("out{out}/{name}")).lines().map(str::to_owned));
        }
    }
    assert_eq!(seen.len(), 20_000);
}

#[tokio::test]
async fn an_item_that_fails_is_a_dead_letter_named_by_its_offset() {
    let bench = with_events(1).await;
    let odd = vec![Message::new("{oops"), Message::new("{\"n\":9}").with_message_id("nine")];
    bench.broker.append("events", odd).await.expect("appended");
    let yaml = format!(
        "{SOURCE}\nprocess:\n  - map: 'if .n == 9 then error(\"nine\") else . end'\n{OUT}\non_error: {{ dead_letter: {{ queue: dead }} }}"
    );
    let report = bench.run(&yaml).await;
    assert_eq!((report.ledger.completed, report.ledger.dead), (1, 2));
    let dead = bench.browse("dead").await;
    let names: Vec<_> = dead.iter().map(|letter| letter.message.properties().message_id.as_deref()).collect();
    assert_eq!(names, [Some("events:1"), Some("nine")]);
    assert_eq!(bench.run(&yaml).await.ledger.received, 0, "dead is settled");
}

#[tokio::test]
async fn a_stream_behind_a_buffer_is_stored_once_with_its_place() {
    let bench = with_events(3000).await;
    let yaml = format!("{SOURCE}\n{}\n{OUT}", common::BUFFERED);
    assert_eq!(bench.run(&yaml).await.ledger.completed, 3000);
    append(&bench, 3000, 3001).await;
    assert_eq!(bench.run(&yaml).await.ledger.completed, 1);
    assert_eq!(
        bench.broker.stored_offset("events", "p").await.expect("no error"),
        None,
        "the queue remembers"
    );
}

#[tokio::test]
async fn items_are_appended_to_a_stream_that_is_made_if_it_is_not_there() {
    let bench = Bench::new().await;
    bench.write("in.ndjson", numbers(0, 2500));
    let yaml =
        "source: { file: { path: in.ndjson } }\noutput: { stream: { broker: \"embedded:s\", name: made } }";
    assert_eq!(bench.run(yaml).await.ledger.completed, 2500);
    let mut reader = bench.broker.read("made", StreamFrom::First).await.expect("a reader");
    let mut bodies = String::new();
    let mut count = 0;
    while count < 2500 {
        for item in reader.next_chunk(1000).await.expect("a chunk") {
            assert_eq!(item.offset, count);
            count += 1;
            bodies += std::str::from_utf8(item.message.body()).expect("text");
            bodies += "\n";
            assert_eq!(item.message.properties().message_id, Some(format!("in.ndjson:{count}")));
        }
    }
    assert_eq!(bodies, numbers(0, 2500));
}

#[tokio::test]
async fn a_run_that_is_stopped_at_any_moment_repeats_nothing() {
    let bench = with_events(20_000).await;
    let yaml = format!("{SOURCE}\nbuffer: {{ memory: {{ items: 64 }} }}\nbatch: {{ count: 7 }}\n{OUT}");
    let mut completed = 0;
    for stop_at in (1..20).map(|run| 37 * run) {
        let run = bench.pipeline(&yaml).start(&bench.brokers()).await.expect("a run");
        common::until(&run, stop_at).await;
        let report = run.shutdown(LONG).await.expect("a clean end");
        assert_eq!((report.ledger.in_flight, report.ledger.received), (0, report.ledger.completed));
        completed += report.ledger.completed;
    }
    assert!(completed < 20_000, "it was stopped in its middle: {completed}");
    completed += bench.run(&yaml).await.ledger.completed;
    assert_eq!(completed, 20_000, "each once");
}
