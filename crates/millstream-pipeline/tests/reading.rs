//! Files as sources: which file a remembered place belongs to, files that are followed, and items that are too long to store.

mod common;

use common::{BUFFERED, Bench, LONG, until};
use millstream_embedded::{EmbeddedBroker, Settings};
use std::io::Write;
use std::sync::Arc;
use std::sync::mpsc::TryRecvError;
use std::time::Duration;

const OUT: &str = "output: { file: { path: out/all.ndjson } }";

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
    run.shutdown(LONG).await.expect("a clean end");
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
        run.shutdown(LONG).await.expect("a clean end");
        let text = bench.read("out/all.ndjson");
        let mut lines: Vec<&str> = text.lines().map(|line| &line[9..line.len() - 2]).collect();
        lines.sort_unstable();
        assert_eq!(lines, ["a1", "a2", "a3", "a4", "a5", "a6", "a7", "b1", "b22", "c1"], "{buffer}");
    }
}

/// One of two files that are written all the time has always changed, and one that is read no faster never ends.
#[tokio::test]
async fn a_new_file_is_read_though_others_are_written_all_the_time() {
    for busy in [1, 2] {
        let bench = Bench::new().await;
        let yaml = format!(
            "source: {{ file: {{ path: 'in/*.log', follow: true, format: lines }} }}\n\
             process: [ {{ filter: {{ name: new, keep: 'item.line == \"new\"' }} }} ]\n{OUT}\nbatch: {{ count: 1 }}"
        );
        let names: Vec<String> = (0..busy).map(|n| format!("in/{n}.log")).collect();
        for name in &names {
            bench.write(name, "old\n");
        }
        let append = |path| std::fs::OpenOptions::new().append(true).open(path).expect("a file");
        let mut files: Vec<_> = names.iter().map(|name| append(bench.path(name))).collect();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let writing = std::thread::spawn(move || {
            while stopped.try_recv() == Err(TryRecvError::Empty) {
                for file in &mut files {
                    file.write_all(b"more\n").expect("written");
                }
            }
        });
        let run = bench.pipeline(&yaml).start(&bench.brokers()).await.expect("a run");
        while run.report().ledger.received < 1000 {
            tokio::task::yield_now().await;
        }
        bench.write("in/new.log", "new\n");
        until(&run, 1).await;
        drop(stop);
        writing.join().expect("no panic");
        run.shutdown(LONG).await.expect("a clean end");
    }
}

#[cfg(unix)]
#[tokio::test]
async fn the_place_of_a_file_is_kept_whose_name_is_not_utf_8() {
    use std::os::unix::ffi::OsStrExt;
    let bench = Bench::new().await;
    let yaml = format!("source: {{ file: {{ path: 'in/*.ndjson', position: p.position }} }}\n{OUT}");
    bench.write("in/a.ndjson", "1\n");
    let name = std::ffi::OsStr::from_bytes(b"\xff.ndjson");
    std::fs::write(bench.path("in").join(name), "1\n2\n").expect("a file");
    assert_eq!(bench.run(&yaml).await.ledger.received, 3);
    assert_eq!(bench.run(&yaml).await.ledger.received, 0);
}

/// As when a share is not mounted for a moment.
#[tokio::test(start_paused = true)]
async fn the_places_of_files_are_kept_while_their_directory_is_empty() {
    let bench = Bench::new().await;
    let yaml = |follow| {
        format!(
            "source: {{ file: {{ path: 'in/*.ndjson', position: p.position, follow: {follow} }} }}\n{OUT}\nbatch: {{ count: 1 }}"
        )
    };
    bench.write("in/a.ndjson", "1\n2\n");
    assert_eq!(bench.run(&yaml(false)).await.ledger.received, 2);
    std::fs::rename(bench.path("in/a.ndjson"), bench.path("a.ndjson")).expect("renamed");
    let run = bench.pipeline(&yaml(true)).start(&bench.brokers()).await.expect("a run");
    tokio::time::sleep(Duration::from_secs(1)).await;
    std::fs::rename(bench.path("a.ndjson"), bench.path("in/a.ndjson")).expect("renamed");
    bench.write("in/b.ndjson", "3\n");
    until(&run, 1).await;
    let report = run.shutdown(LONG).await.expect("a clean end");
    assert_eq!(report.ledger.received, 1);
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

/// As `copytruncate` does, and a program that begins its log anew: the name stays, and what is there has grown beyond the
/// place that was reached before anybody looks.
#[tokio::test(start_paused = true)]
async fn a_followed_file_that_is_written_anew_is_read_from_its_begin_though_it_is_longer_than_before() {
    for (pattern, begin) in
        [("in/a.log", "aaa\nbbb\n"), ("in/*.log", "aaa\nbbb\n"), ("in/a.log", "aaa\nbbb\nrest")]
    {
        let bench = Bench::new().await;
        bench.write("in/a.log", begin);
        bench.write("in/b.log", "");
        let yaml = format!(
            "source: {{ file: {{ path: '{pattern}', follow: true, format: lines }} }}\n{OUT}\nbatch: {{ count: 1 }}"
        );
        let run = bench.pipeline(&yaml).start(&bench.brokers()).await.expect("a run");
        until(&run, 2).await;
        if pattern.contains('*') {
            // The other one rests meanwhile.
            bench.write("in/b.log", "other\n");
            until(&run, 3).await;
        }
        // In one step, so that nobody sees the file while it is short.
        let file = std::fs::OpenOptions::new().write(true).open(bench.path("in/a.log")).expect("a file");
        std::os::unix::fs::FileExt::write_all_at(&file, b"ccccc\nddddd\neeeee\n", 0).expect("written");
        let completed = run.report().ledger.completed;
        until(&run, completed + 3).await;
        run.shutdown(LONG).await.expect("a clean end");
        let text = bench.read("out/all.ndjson");
        let lines: Vec<&str> = text.lines().map(|line| &line[9..line.len() - 2]).collect();
        assert!(lines.ends_with(&["ccccc", "ddddd", "eeeee"]), "{pattern} {begin:?}: {lines:?}");
    }
}

#[tokio::test]
async fn what_is_no_text_is_told_by_what_it_is() {
    let utf16: Vec<u8> = [0xff, 0xfe].into_iter().chain("a\n1\n".bytes().flat_map(|b| [b, 0])).collect();
    let gzip = [0x1f, 0x8b, 8, 0, b'\n', 0xff, 0xfe, b'\n'];
    let zstd = [0x28, 0xb5, 0x2f, 0xfd, 4, 0x80];
    for (bytes, what, remedy) in
        [(&utf16[..], "UTF-16", "iconv"), (&gzip, "gzip", "zcat"), (&zstd, "zstd", "zstdcat")]
    {
        for name in ["in.csv", "in.ndjson", "in.txt"] {
            for buffer in ["", BUFFERED] {
                let bench = Bench::new().await;
                bench.write(name, bytes);
                let yaml = format!("source: {{ file: {{ path: {name}, max_line: 1KiB }} }}\n{buffer}\n{OUT}");
                let error = bench.try_run(&yaml).await.expect_err("it is no text").to_string();
                let said = error.contains(what) && error.contains(remedy) && error.contains(":1:1");
                assert!(said, "{name} {buffer}: {error}");
            }
        }
    }
    let bench = Bench::new().await;
    // A line behind the first may begin with such bytes by chance, and is told by the byte.
    bench.write("later.ndjson", b"1\n\xff\xfe\n");
    let report =
        bench.run(&format!("source: {{ file: {{ path: later.ndjson }} }}\n{OUT}\non_error: skip")).await;
    assert!(report.errors[0].reason.contains("byte 0xff is not UTF-8"), "{:?}", report.errors);
}

#[tokio::test]
async fn a_pipe_is_no_file_and_is_told_as_that() {
    let bench = Bench::new().await;
    let made = std::process::Command::new("mkfifo").arg(bench.path("in.ndjson")).status();
    assert!(made.expect("mkfifo runs").success());
    // Somebody may write: else to open it would wait for that, and this test with it, if it were opened.
    let _writer = std::fs::OpenOptions::new().read(true).write(true).open(bench.path("in.ndjson"));
    let error = bench.try_run(&format!("source: {{ file: {{ path: in.ndjson }} }}\n{OUT}")).await;
    let error = error.expect_err("it is a pipe").to_string();
    assert!(error.contains("it is a pipe") && error.contains("source: stdin"), "{error}");
    // Nor is it an error of the disk.
    assert!(!error.contains("disk"), "{error}");
}
