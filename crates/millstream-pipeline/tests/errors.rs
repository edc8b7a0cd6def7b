//! What becomes of items that cannot be read or processed, by each policy.

mod common;

use common::{BUFFERED, Bench};
use millstream_message::{Address, Message, Queue, dead};

/// A good row, one with a field too many, one with a field too few, bad UTF-8, one far too long, a good row.
fn rows() -> Vec<u8> {
    let mut rows = b"a,b\n1,2\n1,2,3\n1\nx\xff,2\n".to_vec();
    rows.extend(std::iter::repeat_n(b'y', 3000));
    rows.extend_from_slice(b",2\n\"5\"6,7\n8,9\n");
    rows
}

const SOURCE: &str =
    "source: { file: { path: in.csv, max_line: 100B } }\noutput: { file: { path: out.ndjson } }";

#[tokio::test]
async fn each_bad_row_is_an_error_with_its_file_line_and_column() {
    let bench = Bench::new().await;
    bench.write("in.csv", rows());
    for buffer in ["", BUFFERED] {
        let report = bench.run(&format!("{SOURCE}\n{buffer}\non_error: skip")).await;
        let errors: Vec<(String, String)> =
            report.errors.iter().map(|error| (error.place.clone(), error.reason.clone())).collect();
        let places: Vec<&str> = errors.iter().map(|(place, _)| place.as_str()).collect();
        assert_eq!(
            places,
            ["in.csv:3:5", "in.csv:4:2", "in.csv:5:2", "in.csv:6:1", "in.csv:7:4"],
            "{errors:?}"
        );
        for (error, part) in errors.iter().zip([
            "3 fields, but the header 2",
            "`b` is missing",
            "0xff",
            "3002 bytes; `max_line` allows 100B",
            "closing quote",
        ]) {
            assert!(error.1.contains(part), "{error:?}");
        }
        assert_eq!((report.ledger.received, report.ledger.completed, report.dropped()["errors"]), (7, 2, 5));
    }
}

#[tokio::test]
async fn fail_ends_the_run_with_the_place_of_the_row() {
    let bench = Bench::new().await;
    bench.write("in.csv", rows());
    let error = bench.try_run(SOURCE).await.expect_err("a bad row").to_string();
    assert!(
        error.contains("read: the row has 3 fields, but the header 2") && error.contains("(in.csv:3:5)"),
        "{error}"
    );
}

#[tokio::test]
async fn who_runs_into_an_item_again_is_told_where_it_is_and_how_to_go_on() {
    let failing = "process: [ { map: '.a | tonumber' } ]";
    let again = "each run will end at it again: mend the step";
    for (buffer, position, told) in [
        ("", "", ["mend the step, or the item where it comes from", "`dead_letter` keeps it in a queue"]),
        (
            "",
            ", position: at.json",
            ["the next run begins before it and will end at it again", "`on_error: skip`"],
        ),
        (BUFFERED, "", ["it stays in queue `", again]),
    ] {
        let bench = Bench::new().await;
        bench.write("in.csv", "a\nNA\n");
        let source = SOURCE.replace("in.csv", &format!("in.csv{position}"));
        for _run in 0..2 {
            let error =
                bench.try_run(&format!("{source}\n{failing}\n{buffer}")).await.expect_err("a bad row");
            let error = error.to_string();
            assert!(error.contains("an item failed: map: "), "{error}");
            assert!(told.iter().all(|part| error.contains(part)), "{error}");
        }
    }
    let bench = Bench::new().await;
    bench.broker.declare_queue(Queue::durable("q")).await.expect("a queue");
    let published = bench.broker.publish(&Address::queue("q"), Message::new("NA")).await;
    assert!(published.expect("a broker").is_confirmed());
    let source =
        "source: { queue: { broker: \"embedded:s\", name: q, until: drained } }\noutput: { stdout: }";
    let error = bench.try_run(source).await.expect_err("no JSON").to_string();
    assert!(error.contains("it stays in queue `q`") && error.contains(again), "{error}");
}

#[tokio::test]
async fn a_header_that_does_not_fit_ends_the_run() {
    let bench = Bench::new().await;
    bench.write("in.csv", "a,c\n1,2\n");
    let yaml = "source: { file: { path: in.csv, columns: [a, b] } }\noutput: { stdout: }\non_error: skip";
    let error = bench.try_run(yaml).await.expect_err("a bad header").to_string();
    assert!(error.contains("in.csv:1:1: unknown column `c`; `columns` lists a, b"), "{error}");
}

#[tokio::test]
async fn dead_letters_keep_the_item_its_reason_and_its_place() {
    for buffer in ["", BUFFERED] {
        let bench = Bench::new().await;
        bench.write("in.csv", "a\n1\nNA\n1,2\n3\n");
        let dead_letter =
            if buffer.is_empty() { "queue: dead, broker: \"embedded:s\"" } else { "queue: dead" };
        let report = bench
            .run(&format!(
                "source: {{ file: {{ path: in.csv }} }}\n{buffer}\noutput: {{ file: {{ path: out.ndjson }} }}\n\
                 process:\n  - map: {{ name: typed, jq: 'if .a == \"NA\" then error(\"cancelled\") else {{a: (.a|tonumber)}} end' }}\n\
                 on_error: {{ dead_letter: {{ {dead_letter} }} }}"
            ))
            .await;
        assert_eq!((report.ledger.completed, report.ledger.dead), (2, 2));
        assert_eq!(bench.read("out.ndjson"), "{\"a\":1}\n{\"a\":3}\n");
        let letters = bench.browse("dead").await;
        let header = |index: usize, name: &str| {
            letters[index].message.header(name).and_then(|value| value.as_text()).map(str::to_owned)
        };
        assert_eq!(letters.len(), 2);
        assert_eq!(header(0, dead::DETAIL).as_deref(), Some("cancelled"));
        assert_eq!(header(0, dead::STAGE).as_deref(), Some("typed"));
        assert_eq!(&letters[0].message.body()[..], b"{\"a\":\"NA\"}");
        assert_eq!(letters[0].message.properties().message_id.as_deref(), Some("in.csv:3"));
        assert!(header(1, dead::DETAIL).expect("a reason").contains("has 2 fields, but the header 1"));
        assert_eq!(header(1, dead::STAGE).as_deref(), Some("read"));
        assert_eq!(&letters[1].message.body()[..], b"1,2");
        assert_eq!(letters[1].message.properties().message_id.as_deref(), Some("in.csv:4:3"));
    }
}

#[tokio::test]
async fn filters_and_routes_fail_items_that_they_cannot_judge() {
    let bench = Bench::new().await;
    bench.write("in.ndjson", "{\"a\":1}\n{\"b\":2}\n{\"a\":\"x\"}\n{\"a\":5}\n");
    let report = bench
        .run(
            "source: { file: { path: in.ndjson } }\nprocess:\n  - filter: { name: small, keep: 'item.a < 3' }\n\
             output: { file: { path: out.ndjson } }\non_error: skip",
        )
        .await;
    assert_eq!((report.dropped()["errors"], report.dropped()["small"], report.ledger.completed), (2, 1, 1));
    assert!(report.errors.iter().all(|error| error.stage == "small"), "{:?}", report.errors);
}

#[tokio::test]
async fn too_large_a_share_of_errors_ends_the_run() {
    let bench = Bench::new().await;
    let yaml = |rate: &str| {
        format!(
            "source: {{ generate: {{ count: 5000, template: 'if . % 10 == 0 then error(\"tenth\") else . end' }} }}\n\
             output: {{ file: {{ path: 'out-{rate}.ndjson' }} }}\non_error: skip\ngoals: {{ max_error_rate: {rate} }}"
        )
    };
    let error = bench.try_run(&yaml("5%")).await.expect_err("every tenth fails").to_string();
    assert!(error.contains("more than `goals.max_error_rate` 5% allows; the last: read: tenth"), "{error}");
    assert!(!error.contains("the source failed"), "it is not the source that failed: {error}");
    assert_eq!(bench.run(&yaml("20%")).await.dropped()["errors"], 500);
}

#[tokio::test]
async fn too_large_a_share_of_errors_fails_a_run_however_short_it_is() {
    let bench = Bench::new().await;
    let yaml = |count: u32, at: u32| {
        format!(
            "source: {{ generate: {{ count: {count}, template: 'if . % 10 == 0 then error(\"tenth\") else . end' }} }}\n\
             output: {{ file: {{ path: '{count}-{at}.ndjson' }} }}\non_error: skip\ngoals: {{ max_error_rate: 1% }}"
        )
    };
    for at in 0..20 {
        let error = bench.try_run(&yaml(150, at)).await.expect_err("every tenth fails").to_string();
        assert!(error.contains("more than `goals.max_error_rate` 1% allows"), "{error}");
        assert!(!error.contains("the sink failed"), "it is not the sink that failed: {error}");
    }
    assert_eq!(bench.run(&yaml(90, 0)).await.dropped()["errors"], 9, "a share of fewer says little");
}
