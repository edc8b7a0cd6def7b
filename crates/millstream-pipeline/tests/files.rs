//! Files in and files out: formats, names, rotation, and what a killed run leaves behind.

mod common;

use common::{BUFFERED, Bench, LONG, until};

const OUT: &str = "output: { file: { path: out/all.ndjson } }";

#[tokio::test]
async fn csv_becomes_ndjson_and_back() {
    let bench = Bench::new().await;
    bench.write("in.csv", "a,b\n1,\"x, \"\"y\"\"\n\"\n2,\n");
    bench.run(&format!("source: {{ file: {{ path: in.csv }} }}\n{OUT}")).await;
    assert_eq!(
        bench.read("out/all.ndjson"),
        "{\"a\":\"1\",\"b\":\"x, \\\"y\\\"\\n\"}\n{\"a\":\"2\",\"b\":\"\"}\n"
    );
    bench.run("source: { file: { path: out/all.ndjson } }\noutput: { file: { path: out/back.csv } }").await;
    assert_eq!(bench.read("out/back.csv"), "a,b\n1,\"x, \"\"y\"\"\n\"\n2,\n");
}

#[tokio::test]
async fn lines_and_other_delimiters_are_read() {
    let bench = Bench::new().await;
    bench.write("in.log", "one\n\ntwo");
    let report = bench.run(&format!("source: {{ file: {{ path: in.log }} }}\n{OUT}")).await;
    assert_eq!(bench.read("out/all.ndjson"), "{\"line\":\"one\"}\n{\"line\":\"\"}\n{\"line\":\"two\"}\n");
    assert_eq!(report.ledger.received, 3);
    bench.write("semi.txt", "a;b\n1;2\n");
    bench.run("source: { file: { path: semi.txt, format: csv, delimiter: ';' } }\noutput: { file: { path: out/semi.ndjson } }").await;
    assert_eq!(bench.read("out/semi.ndjson"), "{\"a\":\"1\",\"b\":\"2\"}\n");
}

#[tokio::test]
async fn a_byte_order_mark_is_no_part_of_the_text_in_any_format() {
    let bench = Bench::new().await;
    for (name, text, out) in [
        ("in.ndjson", "{\"a\":1}\n{\"a\":2}\n", "{\"a\":1}\n{\"a\":2}\n"),
        ("in.csv", "\"a\nb\",c\n1,2\n", "{\"a\\nb\":\"1\",\"c\":\"2\"}\n"),
        ("in.txt", "one\n", "{\"line\":\"one\"}\n"),
    ] {
        bench.write(name, format!("\u{feff}{text}"));
        for buffer in ["", BUFFERED] {
            let path = format!("{name}-{}.ndjson", buffer.len());
            bench
                .run(&format!(
                    "source: {{ file: {{ path: {name} }} }}\n{buffer}\noutput: {{ file: {{ path: {path} }} }}"
                ))
                .await;
            assert_eq!(bench.read(&path), out);
        }
    }
}

#[tokio::test]
async fn what_is_not_utf8_is_told_alike_in_every_format() {
    let bench = Bench::new().await;
    for (name, text, place) in [
        ("in.ndjson", &b"1\n\"x\xff\"\n"[..], "in.ndjson:2:3"),
        ("in.csv", b"a,b\n1,x\xff\n", "in.csv:2:"),
        ("in.txt", b"x\xff\n", "in.txt:1:2"),
    ] {
        bench.write(name, text);
        let report =
            bench.run(&format!("source: {{ file: {{ path: {name} }} }}\n{OUT}\non_error: skip")).await;
        assert_eq!(report.dropped()["errors"], 1);
        let error = &report.errors[0];
        assert!(error.reason.contains("byte 0xff is not UTF-8"), "{error:?}");
        assert!(error.place.starts_with(place), "{error:?}");
    }
}

#[tokio::test]
async fn a_link_that_leads_nowhere_is_a_file_that_exists() {
    let bench = Bench::new().await;
    bench.write("in.ndjson", "1\n");
    std::os::unix::fs::symlink("/nonexistent/x", bench.path("out.ndjson")).expect("a link");
    bench.run("source: { file: { path: in.ndjson } }\noutput: { file: { path: out.ndjson } }").await;
    assert!(bench.path("out.ndjson").is_symlink(), "the link is as it was");
    assert_eq!(bench.read("out-2.ndjson"), "1\n");
}

#[tokio::test]
async fn a_pattern_reads_all_its_files_in_order() {
    let bench = Bench::new().await;
    for (name, text) in
        [("in/b.csv", "n\n3\n"), ("in/a.csv", "n\n1\n2"), ("in/c.txt", "n\n9\n"), ("in/.d.csv", "n\n9\n")]
    {
        bench.write(name, text);
    }
    for buffer in ["", BUFFERED] {
        bench.run(&format!("source: {{ file: {{ path: 'in/*.csv' }} }}\n{buffer}\n{OUT}")).await;
    }
    assert_eq!(bench.read("out/all.ndjson"), "{\"n\":\"1\"}\n{\"n\":\"2\"}\n{\"n\":\"3\"}\n");
    assert_eq!(
        bench.read("out/all-2.ndjson"),
        bench.read("out/all.ndjson"),
        "a finished file is never touched"
    );
}

#[tokio::test]
async fn a_path_takes_fields_and_refuses_to_leave_its_directory() {
    let bench = Bench::new().await;
    bench.write("in.ndjson", "{\"c\":\"x\"}\n{\"c\":\"../y\"}\n{\"c\":\"x\",\"n\":1}\n{\"d\":1}\n");
    let report = bench
        .run("source: { file: { path: in.ndjson } }\noutput: { file: { path: 'out/d-{c}/f.ndjson' } }\non_error: skip")
        .await;
    assert_eq!(bench.read("out/d-x/f.ndjson"), "{\"c\":\"x\"}\n{\"c\":\"x\",\"n\":1}\n");
    assert_eq!(report.dropped()["errors"], 2);
    assert!(report.errors[0].reason.contains("another directory"), "{:?}", report.errors);
    assert!(report.errors[1].reason.contains("no field `c`"), "{:?}", report.errors);
    assert_eq!(bench.list("").iter().filter(|name| name.starts_with('y')).count(), 0);
}

#[tokio::test]
async fn more_paths_than_open_files_lose_nothing() {
    let bench = Bench::new().await;
    let rows: String = (0..300).map(|n| format!("{{\"n\":{n},\"f\":{}}}\n", n % 30)).collect();
    bench.write("in.ndjson", rows);
    bench.run("source: { file: { path: in.ndjson } }\nbatch: { count: 7 }\noutput: { file: { path: 'out/{f}.ndjson', max_open: 3 } }").await;
    assert_eq!(bench.list("out").len(), 30);
    for file in 0..30 {
        let expected: String =
            (0..10).map(|n| format!("{{\"n\":{},\"f\":{file}}}\n", n * 30 + file)).collect();
        assert_eq!(bench.read(&format!("out/{file}.ndjson")), expected);
    }
}

#[tokio::test]
async fn files_are_finished_by_their_size() {
    let bench = Bench::new().await;
    let yaml = "source: { generate: { count: 2000 } }\nbatch: { count: 10 }\noutput: { file: { path: out/n.csv, rotate: { bytes: 60B } } }";
    bench.run(yaml).await;
    let names = bench.list("out");
    assert!(
        names.len() >= 5 && names.iter().all(|name| name.starts_with("n") && name.ends_with(".csv")),
        "{names:?}"
    );
    let mut numbers: Vec<u32> = Vec::new();
    for name in &names {
        let text = bench.read(&format!("out/{name}"));
        assert!(text.starts_with("n\n"), "every csv file has its header: {text:?}");
        // It is looked at when what was written at once is on the disk: up to 32 batches of 50 bytes.
        assert!(text.len() <= 60 + 32 * 50, "a file is finished when it is full: {} bytes", text.len());
        numbers.extend(text.lines().skip(1).map(|line| line.parse::<u32>().expect("a number")));
    }
    numbers.sort_unstable();
    assert_eq!(numbers, (0..2000).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn files_are_finished_by_their_age() {
    let bench = Bench::new().await;
    let yaml = "source: { generate: { count: 30, rate: 10 } }\nbatch: { count: 1 }\noutput: { file: { path: out/n.ndjson, rotate: { every: 1s } } }";
    bench.run(yaml).await;
    let names = bench.list("out");
    assert!((3..=5).contains(&names.len()), "three seconds make about three files: {names:?}");
}

#[tokio::test]
async fn a_file_appears_only_when_it_is_whole() {
    let bench = Bench::new().await;
    let yaml =
        "source: { generate: { rate: 1000 } }\nbatch: { count: 1 }\noutput: { file: { path: out/n.ndjson } }";
    let run = bench.pipeline(yaml).start(&bench.brokers()).await.expect("a run");
    while run.report().ledger.completed < 3 {
        tokio::task::yield_now().await;
    }
    assert_eq!(bench.list("out"), [".n.ndjson.partial"]);
    let report = run.shutdown(LONG).await.expect("a clean end");
    assert_eq!(bench.list("out"), ["n.ndjson"]);
    assert_eq!(bench.read("out/n.ndjson").lines().count() as u64, report.ledger.completed);
}

#[tokio::test]
async fn what_a_killed_run_left_is_continued_without_its_torn_end() {
    let bench = Bench::new().await;
    bench.write("out/.x.ndjson.partial", "{\"k\":\"x\",\"n\":0}\n{\"k\":\"x\",\"n");
    bench.write("out/.old.ndjson.partial", "{\"k\":\"old\"}\n\0\0\0\0\n");
    bench.write("out/.empty.ndjson.partial", "{\"torn");
    bench.write("in.ndjson", "{\"k\":\"x\",\"n\":1}\n");
    bench.run("source: { file: { path: in.ndjson } }\noutput: { file: { path: 'out/{k}.ndjson' } }").await;
    assert_eq!(bench.list("out"), ["old.ndjson", "x.ndjson"]);
    assert_eq!(bench.read("out/x.ndjson"), "{\"k\":\"x\",\"n\":0}\n{\"k\":\"x\",\"n\":1}\n");
    assert_eq!(bench.read("out/old.ndjson"), "{\"k\":\"old\"}\n");
}

#[tokio::test]
async fn a_csv_left_over_with_other_columns_is_finished_as_it_is() {
    let bench = Bench::new().await;
    bench.write("out/.n.csv.partial", "a,b\n1,\"two\nlines\"\n2,\"torn\nin a quoted");
    bench.run("source: { generate: { count: 1 } }\noutput: { file: { path: out/n.csv } }").await;
    assert_eq!(bench.read("out/n.csv"), "a,b\n1,\"two\nlines\"\n");
    assert_eq!(bench.read("out/n-2.csv"), "n\n0\n");
}

#[tokio::test]
async fn csv_columns_are_kept_in_their_order_and_unknown_fields_refused() {
    let bench = Bench::new().await;
    bench.write("in.ndjson", "{\"b\":1,\"a\":2}\n{\"c\":3}\n7\n{\"a\":4}\n");
    let report = bench
        .run("source: { file: { path: in.ndjson } }\noutput: { file: { path: o.csv, columns: [a, b] } }\non_error: skip")
        .await;
    assert_eq!(bench.read("o.csv"), "a,b\n2,1\n4,\n");
    assert_eq!(report.dropped()["errors"], 2);
}

#[tokio::test(start_paused = true)]
async fn a_followed_file_gives_what_is_added_and_what_replaces_it() {
    let bench = Bench::new().await;
    bench.write("in.ndjson", "1\n2\n3");
    let yaml = format!(
        "source: {{ file: {{ path: in.ndjson, follow: true }} }}\n{BUFFERED}\n{OUT}\nbatch: {{ count: 1 }}"
    );
    let run = bench.pipeline(&yaml).start(&bench.brokers()).await.expect("a run");
    until(&run, 2).await;
    assert_eq!(run.report().ledger.completed, 2, "a line without its end is not read yet");
    bench.write("in.ndjson", "1\n2\n33\n4\n");
    until(&run, 4).await;
    bench.write("in.ndjson", "5\n");
    until(&run, 5).await;
    run.shutdown(LONG).await.expect("a clean end");
    assert_eq!(bench.read("out/all.ndjson"), "1\n2\n33\n4\n5\n");
}

/// Logs are rotated by giving their name to another file, which may have grown beyond the old one before anybody looks.
#[tokio::test(start_paused = true)]
async fn a_followed_file_that_loses_its_name_is_read_to_its_end_and_its_successor_from_its_begin() {
    let bench = Bench::new().await;
    bench.write("in.ndjson", "1\n2\n");
    let yaml =
        format!("source: {{ file: {{ path: in.ndjson, follow: true }} }}\n{OUT}\nbatch: {{ count: 1 }}");
    let run = bench.pipeline(&yaml).start(&bench.brokers()).await.expect("a run");
    until(&run, 2).await;
    bench.write("in.ndjson", "1\n2\n3\n4");
    std::fs::rename(bench.path("in.ndjson"), bench.path("in.ndjson.1")).expect("renamed");
    bench.write("in.ndjson", "5\n6\n7\n8\n9\n");
    until(&run, 9).await;
    run.shutdown(LONG).await.expect("a clean end");
    assert_eq!(bench.read("out/all.ndjson"), "1\n2\n3\n4\n5\n6\n7\n8\n9\n");
}

#[tokio::test]
async fn an_output_that_cannot_be_written_says_what_to_do() {
    let bench = Bench::new().await;
    bench.write("out", "a file where the directory should be");
    bench.write("in.ndjson", "1\n");
    let error = bench
        .try_run(&format!("source: {{ file: {{ path: in.ndjson }} }}\n{OUT}"))
        .await
        .expect_err("no directory");
    let text = error.to_string();
    assert!(
        text.contains("cannot start pipeline `p`") && text.contains("/out") && text.contains("move it"),
        "{text}"
    );
    let error = bench
        .try_run(&format!("source: {{ file: {{ path: none.csv }} }}\n{}", OUT.replace("out/", "o/")))
        .await;
    let text = error.expect_err("no source").to_string();
    assert!(text.contains("none.csv") && text.contains("source.file.path"), "{text}");
}

#[tokio::test]
async fn two_runs_never_write_one_file_together() {
    let bench = Bench::new().await;
    let yaml =
        "source: { generate: { rate: 100 } }\nbatch: { count: 1 }\noutput: { file: { path: out/n.ndjson } }";
    let run = bench.pipeline(yaml).start(&bench.brokers()).await.expect("a run");
    while run.report().ledger.completed < 1 {
        tokio::task::yield_now().await;
    }
    let error = bench.try_run(yaml).await.expect_err("the file is locked").to_string();
    assert!(error.contains("another process is writing it"), "{error}");
    run.shutdown(LONG).await.expect("a clean end");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_full_disk_ends_the_run_and_names_the_remedy() {
    let bench = Bench::new().await;
    std::fs::create_dir_all(bench.path("out")).expect("a directory");
    // Every write to /dev/full fails as on a full disk.
    std::os::unix::fs::symlink("/dev/full", bench.path("out/.n.ndjson.partial")).expect("a link");
    let yaml = "source: { generate: { count: 10 } }\noutput: { file: { path: out/n.ndjson } }";
    let error = bench.try_run(yaml).await.expect_err("the disk is full").to_string();
    assert!(error.contains("the disk is full; free some space"), "{error}");
}

/// A file to a file, remembering in `state/p.position`.
const REMEMBERING: &str = "source: { file: { path: in.ndjson, position: state/p.position } }";

#[tokio::test]
async fn a_file_is_read_on_from_where_the_last_run_had_settled_it() {
    let bench = Bench::new().await;
    let yaml = format!("{REMEMBERING}\nprocess: [ {{ filter: {{ name: two, keep: 'item != 2' }} }} ]\n{OUT}");
    bench.write("in.ndjson", "1\n2\n3\n");
    assert_eq!(bench.run(&yaml).await.ledger.received, 3);
    assert_eq!(bench.run(&yaml).await.ledger.received, 0, "all of it is settled");
    bench.write("in.ndjson", "1\n2\n3\n4\n5\n");
    assert_eq!(bench.run(&yaml).await.ledger.received, 2);
    assert_eq!(bench.read("out/all.ndjson"), "1\n3\n");
    assert_eq!(bench.read("out/all-2.ndjson"), "4\n5\n");
    // Another file of this name is read from its begin.
    bench.write("in.ndjson", "7\n");
    assert_eq!(bench.run(&yaml).await.ledger.received, 1);
    assert_eq!(bench.list("state"), ["p.position", "p.position.lock"]);
}

#[tokio::test]
async fn a_run_that_fails_leaves_what_it_did_not_settle_to_the_next() {
    let bench = Bench::new().await;
    let lines = |bad: usize| {
        (0..5_000).map(move |n| {
            if n == bad { "{bad}\n".to_owned() } else { format!("{n:06}1\n").replacen('0', "1", 1) }
        })
    };
    bench.write("in.ndjson", lines(4_000).collect::<String>());
    let error = bench.try_run(&format!("{REMEMBERING}\n{OUT}")).await.expect_err("a bad line").to_string();
    assert!(error.contains("in.ndjson:4001"), "{error}");
    let report = bench.run(&format!("{REMEMBERING}\n{OUT}\non_error: skip")).await;
    assert_eq!(report.dropped()["errors"], 1, "the bad line comes again");
    let mut written = std::collections::BTreeSet::new();
    for name in bench.list("out") {
        written.extend(bench.read(&format!("out/{name}")).lines().map(str::to_owned));
    }
    let expected = lines(4_000).filter(|line| !line.starts_with('{')).map(|line| line.trim_end().to_owned());
    assert!(written.is_superset(&expected.collect()), "nothing is lost");
}

#[tokio::test]
async fn a_run_that_has_failed_has_let_go_of_its_files() {
    let bench = Bench::new().await;
    // Lines long enough that a write is often under way, on its own thread, when the bad line ends the run.
    let line = format!("\"{}\"\n", "x".repeat(256 << 10));
    bench.write("in.ndjson", line.repeat(40) + "{bad}\n");
    for _ in 0..20 {
        let error =
            bench.try_run(&format!("{REMEMBERING}\n{OUT}")).await.expect_err("a bad line").to_string();
        assert!(error.contains("in.ndjson:41"), "not refused by a run that has ended: {error}");
    }
}

/// Names that are not UTF-8 look alike as text, and once shared one place: each run read one of the files anew.
#[tokio::test]
async fn files_whose_names_are_not_utf8_and_look_alike_each_have_their_place() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let bench = Bench::new().await;
    let yaml = format!("source: {{ file: {{ path: 'in-*.ndjson', position: state/p.position }} }}\n{OUT}");
    let write = |name: &[u8], text: &str| {
        std::fs::write(bench.dir.path().join(OsStr::from_bytes(name)), text).expect("written");
    };
    write(b"in-\xfe.ndjson", "1\n2\n");
    write(b"in-\xff.ndjson", "30\n");
    bench.write("in-plain.ndjson", "400\n");
    assert_eq!(bench.run(&yaml).await.ledger.received, 4);
    assert_eq!(bench.run(&yaml).await.ledger.received, 0, "all of them are settled");
    write(b"in-\xfe.ndjson", "1\n2\n5\n");
    assert_eq!(bench.run(&yaml).await.ledger.received, 1);
    // The place of one that is gone is forgotten, and what earlier versions knew of the other is still known.
    std::fs::remove_file(bench.dir.path().join(OsStr::from_bytes(b"in-\xfe.ndjson"))).expect("removed");
    write(b"in-\xff.ndjson", "30\n31\n");
    assert_eq!(bench.run(&yaml).await.ledger.received, 1);
    let position = bench.read("state/p.position");
    assert!(position.contains("in-\\u0000ff.ndjson") && !position.contains("in-\\u0000fe"), "{position}");
    bench.write("state/p.position", position.replace("in-\\u0000ff", "in-\u{fffd}"));
    write(b"in-\xff.ndjson", "30\n31\n32\n");
    assert_eq!(bench.run(&yaml).await.ledger.received, 1);
}

#[tokio::test]
async fn a_position_file_belongs_to_one_run_and_a_damaged_one_is_told() {
    let bench = Bench::new().await;
    bench.write("in.ndjson", "1\n");
    let followed = REMEMBERING.replace("in.ndjson,", "in.ndjson, follow: true,");
    let run = bench.pipeline(&format!("{followed}\n{OUT}")).start(&bench.brokers()).await.expect("a run");
    let other = OUT.replace("out/", "other/");
    let error = bench.try_run(&format!("{REMEMBERING}\n{other}")).await.expect_err("in use").to_string();
    assert!(error.contains("p.position") && error.contains("another process is using it"), "{error}");
    run.shutdown(LONG).await.expect("a clean end");
    bench.write("state/p.position", "{ torn");
    let error = bench.try_run(&format!("{REMEMBERING}\n{other}")).await.expect_err("damaged").to_string();
    assert!(error.contains("p.position") && error.contains("move it away"), "{error}");
}

#[tokio::test]
async fn a_position_that_cannot_be_saved_ends_the_run_and_says_so() {
    let bench = Bench::new().await;
    bench.write("in.ndjson", "1\n2\n");
    // A directory where the new position would be written: refused to root too.
    bench.write("state/p.position.new/x", "in the way");
    let error = bench.try_run(&format!("{REMEMBERING}\n{OUT}")).await.expect_err("no position").to_string();
    assert!(error.contains("p.position: cannot be written"), "{error}");
    assert_eq!(bench.read("out/all.ndjson"), "1\n2\n", "what was written stays");
}

/// All lines of all files in `out`, in order.
fn written(bench: &Bench) -> Vec<String> {
    let files = bench.list("out");
    let files = files.iter().filter(|name| !name.starts_with('.'));
    let mut lines: Vec<String> = files
        .flat_map(|name| bench.read(&format!("out/{name}")).lines().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    lines.sort();
    lines
}

#[tokio::test]
async fn a_run_that_is_stopped_at_any_moment_repeats_nothing() {
    let bench = Bench::new().await;
    let lines: Vec<String> = (0..30_000).map(|n| format!("1{n:06}")).collect();
    bench.write("in.ndjson", lines.join("\n") + "\n");
    let yaml = format!("{REMEMBERING}\nbuffer: {{ memory: {{ items: 64 }} }}\nbatch: {{ count: 7 }}\n{OUT}");
    let mut completed = 0;
    for stop_at in (1..20).map(|run| 37 * run) {
        let run = bench.pipeline(&yaml).start(&bench.brokers()).await.expect("a run");
        until(&run, stop_at).await;
        let report = run.shutdown(LONG).await.expect("a clean end");
        assert_eq!((report.ledger.in_flight, report.ledger.received), (0, report.ledger.completed));
        completed += report.ledger.completed;
    }
    assert!(completed < 30_000, "it was stopped in its middle: {completed}");
    bench.run(&yaml).await;
    assert_eq!(written(&bench), lines, "each once");
}

#[tokio::test]
async fn a_run_that_fails_keeps_how_far_it_came() {
    let bench = Bench::new().await;
    let good: Vec<String> = (0..20_000).map(|n| format!("1{n:06}")).collect();
    bench.write("in.ndjson", good.join("\n") + "\n{bad}\n");
    let error = bench.try_run(&format!("{REMEMBERING}\n{OUT}")).await.expect_err("a bad line").to_string();
    assert!(error.contains("in.ndjson:20001"), "{error}");
    bench.run(&format!("{REMEMBERING}\n{OUT}\non_error: skip")).await;
    let mut all = written(&bench);
    let again = all.len() - good.len();
    assert!(again < 2_000, "only what was being written is repeated, not {again}");
    all.dedup();
    assert_eq!(all, good);
}
