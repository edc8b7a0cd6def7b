//! `millstream run`: reports, signals, faults, and what is served meanwhile.

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Stdio};

use serde_json::Value;
use support::{Ended, Place, announced, ended, got, signal, watched};

/// Lines of JSON from standard input to standard output, through nothing.
const ECHO: &str = "name: echo\nsource: { stdin: { format: ndjson } }\noutput: { stdout: }\n";

fn report(place: &Place, name: &str) -> Value {
    serde_json::from_str(&place.read(name)).expect("a report is JSON")
}

/// The sum that every report must satisfy; what was received.
fn received(report: &Value) -> u64 {
    let ledger = &report["ledger"];
    let number = |name: &str| ledger[name].as_u64().unwrap_or_else(|| panic!("{name}: {report:#}"));
    let dropped =
        ledger["dropped"].as_object().expect("an object").values().filter_map(Value::as_u64).sum::<u64>();
    let settled = number("completed") + dropped + number("dead") + number("in_flight");
    assert_eq!(number("received"), settled, "{report:#}");
    settled
}

#[test]
fn the_quickstart_accounts_for_every_row_and_a_second_run_adds_nothing() {
    let place = Place::with_examples();
    let end = place.run(&["run", "examples/quickstart.yaml", "--report", "report.json"]);
    assert_eq!(end.code, Some(0), "{}", end.err);
    let first = report(&place, "report.json");
    assert_eq!(received(&first), 27_004);
    assert_eq!(first["name"], "flights");
    assert_eq!(first["ledger"]["in_flight"], 0);
    assert!(first["memory_bound_bytes"].as_u64() > Some(0) && first["elapsed_seconds"].as_f64() > Some(0.0));
    assert!(first["stages"].as_array().is_some_and(|stages| !stages.is_empty()));
    assert!(end.err.contains("27,004  received") && end.err.contains("dropped by `on time`"), "{}", end.err);
    let outputs = || {
        let files = std::fs::read_dir(place.path("examples/out")).expect("outputs");
        let mut files: Vec<_> = files.map(|file| file.expect("listed").path()).collect();
        files.sort();
        files
            .into_iter()
            .map(|path| (path.clone(), std::fs::read(path).expect("readable")))
            .collect::<Vec<_>>()
    };
    let written = outputs();

    let end = place.run(&["run", "examples/quickstart.yaml", "--quiet", "--report", "report.json"]);
    assert_eq!((end.code, end.out.as_str(), end.err.as_str()), (Some(0), "", ""));
    assert_eq!(received(&report(&place, "report.json")), 0);
    assert!(outputs() == written, "the second run changed an output");
}

#[test]
fn what_goes_in_comes_out_and_progress_stays_off_standard_output() {
    let place = Place::new();
    place.write("echo.yaml", ECHO);
    let end = place.run_with_input(&["run", "echo.yaml"], b"{\"a\":1}\n{\"a\":2}\n");
    assert_eq!(end.code, Some(0), "{}", end.err);
    assert_eq!(end.out, "{\"a\":1}\n{\"a\":2}\n");
    assert!(end.err.contains("echo: completed"), "{}", end.err);
}

#[test]
fn several_pipelines_run_side_by_side_into_one_report() {
    let place = Place::new();
    place.write(
        "one.yaml",
        "name: one\nsource: { file: { path: in.ndjson } }\noutput: { file: { path: one.ndjson } }\n",
    );
    place.write(
        "two.yaml",
        "name: two\nsource: { file: { path: in.ndjson } }\noutput: { file: { path: two.ndjson } }\n",
    );
    place.write("in.ndjson", "{\"a\":1}\n{\"a\":2}\n");
    place.done(&["run", "one.yaml", "two.yaml", "--quiet", "--report", "report.json"]);
    let report = report(&place, "report.json");
    let runs = report["runs"].as_array().expect("a list");
    assert_eq!(runs.iter().map(|run| &run["name"]).collect::<Vec<_>>(), ["one", "two"]);
    assert!(runs.iter().all(|run| received(run) == 2), "{report:#}");
    assert_eq!(place.read("one.ndjson"), place.read("two.ndjson"));
}

#[test]
fn pipelines_that_run_side_by_side_must_differ_in_name() {
    let place = Place::new();
    for name in ["one", "two"] {
        place.write(
            &format!("{name}.yaml"),
            &ECHO
                .replace("{ stdout: }", "{ file: { path: NAME } }")
                .replace("NAME", &format!("{name}.ndjson")),
        );
    }
    let end = place.run(&["run", "one.yaml", "two.yaml"]);
    assert_eq!(end.code, Some(2), "{}", end.err);
    assert!(end.err.contains("one.yaml and two.yaml both name their pipeline `echo`"), "{}", end.err);
    assert!(!place.path(".one.ndjson.partial").exists(), "nothing was started");
}

#[test]
fn a_report_tells_how_the_run_ended_even_if_it_could_not_start() {
    let place = Place::new();
    place.write("echo.yaml", ECHO);
    place.run_with_input(&["run", "echo.yaml", "-q", "--report", "report.json"], b"1\n");
    let good = report(&place, "report.json");
    assert_eq!((&good["state"], &good["failure"]), (&"completed".into(), &Value::Null));
    place.run_with_input(&["run", "echo.yaml", "-q", "--report", "report.json"], b"no json\n");
    let bad = report(&place, "report.json");
    assert_eq!(bad["state"], "failed");
    assert!(bad["failure"].as_str().is_some_and(|failure| failure.contains("stdin:1")), "{bad:#}");

    // The others of the process are stopped, and accounted for.
    place.write("late.yaml", "name: late\nsource: { file: { path: none.csv } }\noutput: { stdout: }\n");
    let mut child = place.command(&["run", "echo.yaml", "late.yaml", "-q", "--report", "report.json"]);
    let end = ended(child.stdin(Stdio::piped()).spawn().expect("it starts"));
    assert_eq!(end.code, Some(1), "{}", end.err);
    let both = report(&place, "report.json");
    let runs = both["runs"].as_array().expect("a list");
    assert_eq!(runs.iter().map(|run| &run["name"]).collect::<Vec<_>>(), ["echo", "late"], "{both:#}");
    assert!(runs.iter().all(|run| received(run) == 0), "{both:#}");
    assert_eq!((&runs[0]["state"], &runs[1]["state"]), (&"stopped".into(), &"failed".into()), "{both:#}");
    assert!(runs[1]["failure"].as_str().is_some_and(|why| why.contains("none.csv")), "{both:#}");
}

#[test]
fn set_overrides_the_file() {
    let place = Place::new();
    place.write("echo.yaml", ECHO);
    let end = place.run_with_input(&["run", "echo.yaml", "--set", "name=other"], b"");
    assert!(end.err.contains("other: completed"), "{}", end.err);
}

/// A run of `file` that has passed an item on: its output is read from the returned end.
fn started(place: &Place, arguments: &[&str]) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut child = place.command(arguments).stdin(Stdio::piped()).spawn().expect("the binary starts");
    let mut out = BufReader::new(child.stdout.take().expect("it is piped"));
    let input = child.stdin.as_mut().expect("it is piped");
    input.write_all(b"{\"a\":1}\n").and_then(|()| input.flush()).expect("it reads");
    let mut line = String::new();
    out.read_line(&mut line).expect("it writes");
    assert_eq!(line, "{\"a\":1}\n");
    (child, out)
}

#[test]
fn a_signal_drains_and_its_number_is_the_exit_code() {
    for (name, code) in [("INT", 130), ("TERM", 143), ("HUP", 129)] {
        let place = Place::new();
        place.write("echo.yaml", ECHO);
        let (child, _out) = started(&place, &["run", "echo.yaml", "--report", "report.json"]);
        signal(&child, name);
        let end = wait_with_open_input(child);
        assert_eq!(end.code, Some(code), "{}", end.err);
        assert!(end.err.contains("echo: stopped") || end.err.contains("echo: completed"), "{}", end.err);
        let report = report(&place, "report.json");
        assert_eq!((received(&report), &report["ledger"]["in_flight"]), (1, &0.into()));
    }
}

#[test]
fn a_hangup_is_never_the_second_signal() {
    let place = Place::new();
    place.write("echo.yaml", ECHO);
    let (mut child, writer, mut out) =
        stuck(&place, &["run", "echo.yaml", "--drain", "1h", "--report", "report.json"]);
    signal(&child, "HUP");
    let mut err = BufReader::new(child.stderr.take().expect("it is piped"));
    until(&mut err, "a second one stops at once");
    // A terminal that goes sends one, the shell in it another.
    signal(&child, "HUP");
    std::io::copy(&mut out, &mut std::io::sink()).expect("it is read");
    assert_eq!(child.wait().expect("it ends").code(), Some(129));
    assert_eq!(report(&place, "report.json")["ledger"]["in_flight"], 0, "it was drained");
    writer.join().expect("the writer ends");
}

#[test]
fn under_nohup_a_hangup_changes_nothing() {
    let place = Place::new();
    place.write("echo.yaml", ECHO);
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "trap '' HUP; exec \"$0\" run echo.yaml", env!("CARGO_BIN_EXE_millstream")]);
    command.current_dir(place.path("")).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    let mut input = child.stdin.take().expect("it is piped");
    let mut out = BufReader::new(child.stdout.take().expect("it is piped"));
    let mut line = String::new();
    writeln!(input, "{{}}").expect("it reads");
    out.read_line(&mut line).expect("it writes");
    signal(&child, "HUP");
    writeln!(input, "{{}}").expect("it reads");
    assert!(out.read_line(&mut line).expect("it writes") > 0, "it goes on");
    drop(input);
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
}

/// Reads until a line has this in it.
fn until(err: &mut impl BufRead, part: &str) {
    let mut line = String::new();
    while !line.contains(part) {
        line.clear();
        assert!(err.read_line(&mut line).expect("it is text") > 0, "it ended without `{part}`");
    }
}

/// Waits for the end without closing standard input, which would end the run by itself.
fn wait_with_open_input(mut child: Child) -> Ended {
    let input = child.stdin.take();
    let end = ended(child);
    drop(input);
    end
}

/// A run whose output nobody reads, so that it can never drain: it has read more than all pipes hold.
fn stuck(
    place: &Place,
    arguments: &[&str],
) -> (Child, std::thread::JoinHandle<()>, std::process::ChildStdout) {
    let mut child = place.command(arguments).stdin(Stdio::piped()).spawn().expect("the binary starts");
    let mut input = child.stdin.take().expect("it is piped");
    let out = child.stdout.take().expect("it is piped");
    let (full, is_full) = std::sync::mpsc::channel();
    let writer = std::thread::spawn(move || {
        let line = format!("{{\"a\":\"{}\"}}\n", "x".repeat(1000));
        for lines in 0.. {
            // The pipes hold 64 KiB each, so after this much the program has taken some itself.
            if lines == 200 {
                let _ = full.send(());
            }
            if input.write_all(line.as_bytes()).is_err() {
                return; // it has ended
            }
        }
    });
    is_full.recv().expect("the writer gets that far");
    (child, writer, out)
}

#[test]
fn a_second_signal_stops_at_once_and_the_report_tells_what_was_left() {
    let place = Place::new();
    place.write("echo.yaml", ECHO);
    let (mut child, writer, out) =
        stuck(&place, &["run", "echo.yaml", "--drain", "1h", "--report", "report.json"]);
    signal(&child, "INT");
    // The drain has begun when it says so.
    let mut err = BufReader::new(child.stderr.take().expect("it is piped"));
    until(&mut err, "a second one stops at once");
    signal(&child, "INT");
    assert_eq!(child.wait().expect("it ends").code(), Some(130));
    let mut rest = String::new();
    err.read_to_string(&mut rest).expect("it is text");
    assert!(rest.contains("echo: stopped"), "{rest}");
    let report = report(&place, "report.json");
    assert!(received(&report) > 0 && report["ledger"]["in_flight"].as_u64() > Some(0), "{report:#}");
    drop(out);
    writer.join().expect("the writer ends");
}

#[test]
fn a_signal_ends_a_start_that_takes_its_time() {
    let place = Place::new();
    // It takes connections and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = silent.local_addr().expect("it is bound").port();
    place.write(
        "late.yaml",
        &format!(
            "name: late\nsource: {{ queue: {{ broker: 'amqp://127.0.0.1:{port}?connection_timeout=300000', name: q }} }}\noutput: {{ stdout: }}\n"
        ),
    );
    let child = place.command(&["run", "late.yaml", "--report", "report.json"]).spawn().expect("it starts");
    let _connection = silent.accept().expect("it connects");
    signal(&child, "INT");
    let end = ended(child);
    assert_eq!(end.code, Some(130), "{}", end.err);
    assert!(!end.err.contains("cannot be opened"), "it was waited for: {}", end.err);
    let report = report(&place, "report.json");
    assert_eq!(
        (received(&report), &report["name"], &report["state"]),
        (0, &"late".into(), &"stopped".into())
    );
}

#[test]
fn a_drain_ends_at_its_deadline() {
    let place = Place::new();
    place.write("echo.yaml", ECHO);
    let (child, writer, out) =
        stuck(&place, &["run", "echo.yaml", "--drain", "50ms", "--report", "report.json"]);
    signal(&child, "TERM");
    let end = ended(child);
    assert_eq!(end.code, Some(143), "{}", end.err);
    assert!(report(&place, "report.json")["ledger"]["in_flight"].as_u64() > Some(0));
    drop(out);
    writer.join().expect("the writer ends");
}

#[test]
fn what_is_stopped_with_a_durable_buffer_goes_on_where_it_was() {
    let place = Place::new();
    let file = "name: slow\nsource: { file: { path: in.ndjson } }\n\
                buffer: { queue: { broker: 'embedded:state', name: slow } }\noutput: { stdout: }\n";
    place.write("slow.yaml", file);
    let input: String =
        (0..20_000).map(|n| format!("{{\"n\":{n},\"pad\":\"{}\"}}\n", "x".repeat(100))).collect();
    place.write("in.ndjson", &input);
    let mut child =
        place.command(&["run", "slow.yaml", "--drain", "0", "--quiet"]).spawn().expect("it starts");
    let mut out = BufReader::new(child.stdout.take().expect("it is piped"));
    let mut first = String::new();
    out.read_line(&mut first).expect("it writes");
    signal(&child, "INT");
    assert_eq!(child.wait().expect("it ends").code(), Some(130));
    out.read_to_string(&mut first).expect("it is text");
    let rest = place.done(&["run", "slow.yaml", "--quiet"]);
    let lines: std::collections::BTreeSet<&str> =
        first.split_inclusive('\n').chain(rest.lines()).map(str::trim_end).collect();
    let lost = input.lines().find(|line| !lines.contains(line));
    assert_eq!(lost, None);
}

#[test]
fn the_status_page_metrics_and_health_are_served_while_it_runs() {
    let place = Place::new();
    place.write("echo.yaml", ECHO);
    let (mut child, _out) = started(&place, &["run", "echo.yaml", "--listen", "127.0.0.1:0"]);
    let mut err = BufReader::new(child.stderr.take().expect("it is piped"));
    let address = announced(&mut err);
    let get = |path: &str| got(&address, path);
    // The item is out a moment before it counts as completed.
    let completed = "millstream_items_completed_total{pipeline=\"echo\"} 1";
    let (done, _watch) = watched(&child);
    let metrics = std::iter::repeat_with(|| get("/metrics")).find(|metrics| metrics.contains(completed));
    let metrics = metrics.expect("it goes on until then");
    drop(done);
    assert!(metrics.contains("millstream_items_received_total{pipeline=\"echo\"} 1"), "{metrics}");
    assert!(metrics.contains("millstream_stage_items_out_total{pipeline=\"echo\",stage="), "{metrics}");
    assert!(get("/health/ready").starts_with("HTTP/1.1 200"));
    assert!(get("/").contains("<h1>echo</h1>"));
    drop(child.stdin.take());
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
}

#[test]
fn a_run_whose_standard_output_is_closed_ends_quietly() {
    let place = Place::new();
    place.write("endless.yaml", "name: endless\nsource: { generate: {} }\noutput: { stdout: }\n");
    let mut child = place
        .command(&["run", "endless.yaml", "--quiet", "--report", "report.json"])
        .spawn()
        .expect("the binary starts");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("it is piped")).read_line(&mut line).expect("text");
    let end = ended(child);
    assert_eq!((end.code, end.err.as_str()), (Some(0), ""));
    let report = report(&place, "report.json");
    assert!(received(&report) > 0 && report["state"] == "stopped", "{report:#}");
}

#[test]
fn a_taken_port_is_told_before_anything_is_read() {
    let place = Place::with_examples();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("it is bound").to_string();
    let end = place.run(&["run", "examples/quickstart.yaml", "--listen", &address]);
    assert_eq!(end.code, Some(1));
    assert!(end.err.contains(&address) && end.err.contains("port 0"), "{}", end.err);
    assert!(!place.path("examples/state").exists() && !place.path("examples/out").exists());
}

#[test]
fn a_report_that_cannot_be_written_is_told_before_anything_is_read() {
    let place = Place::with_examples();
    let end = place.run(&["run", "examples/quickstart.yaml", "--report", "no/such/directory/report.json"]);
    assert_eq!(end.code, Some(2));
    assert!(end.err.contains("no/such/directory/report.json"), "{}", end.err);
    assert!(!place.path("examples/out").exists());
    let end = place.run(&["run", "examples/quickstart.yaml", "--quiet", "--report", "/dev/full"]);
    assert_eq!(end.code, Some(1));
    assert!(end.err.contains("cannot write /dev/full"), "{}", end.err);
}

#[test]
fn a_directory_in_use_is_told_with_its_owner() {
    let place = Place::with_examples();
    let state = "embedded:examples/state";
    place.done(&["queue", "declare", state, "other"]);
    place.done(&["queue", "publish", state, "other", "held"]);
    let mut holder = place.holding(state, "other");
    let end = place.run(&["run", "examples/quickstart.yaml"]);
    assert_eq!(end.code, Some(1));
    assert!(end.err.contains(&holder.id().to_string()), "{}", end.err);
    signal(&holder, "TERM");
    assert_eq!(holder.wait().expect("it ends").code(), Some(143));
}

#[test]
fn an_output_that_cannot_be_written_is_told_and_nothing_is_lost() {
    let place = Place::with_examples();
    // A file where the directory should be: refused to root too.
    place.write("examples/out", "in the way");
    let end = place.run(&["run", "examples/quickstart.yaml"]);
    assert_eq!(end.code, Some(1), "{}", end.err);
    assert!(end.err.contains("error: ") && end.err.contains("examples/out"), "{}", end.err);
    std::fs::remove_file(place.path("examples/out")).expect("it is there");
    place.done(&["run", "examples/quickstart.yaml", "--quiet", "--report", "report.json"]);
    let written: usize = std::fs::read_dir(place.path("examples/out"))
        .expect("outputs")
        .map(|file| std::fs::read_to_string(file.expect("listed").path()).expect("text").lines().count())
        .sum();
    let report = report(&place, "report.json");
    assert_eq!(written as u64, report["ledger"]["completed"].as_u64().expect("a number"));
}

#[test]
fn an_input_that_cannot_be_read_is_told() {
    let place = Place::with_examples();
    std::fs::remove_file(place.path("examples/data/flights-2013-01.csv")).expect("it is there");
    let end = place.run(&["run", "examples/quickstart.yaml"]);
    assert_eq!(end.code, Some(1), "{}", end.err);
    assert!(end.err.contains("flights-2013-01.csv"), "{}", end.err);
}

#[test]
fn a_failed_item_fails_the_run_unless_the_pipeline_says_otherwise() {
    let place = Place::new();
    let file = |policy: &str| {
        format!("name: strict\nsource: {{ stdin: {{ format: ndjson }} }}\noutput: {{ stdout: }}\n{policy}")
    };
    place.write("strict.yaml", &file("on_error: fail\n"));
    let end =
        place.run_with_input(&["run", "strict.yaml", "--report", "report.json"], b"{\"a\":1}\nnot json\n");
    assert_eq!(end.code, Some(1), "{}", end.err);
    assert!(end.err.contains("error: ") && end.err.contains(":2"), "it names the line: {}", end.err);
    assert!(end.err.contains("strict: failed"), "{}", end.err);
    received(&report(&place, "report.json"));
    place.write("lax.yaml", &file("on_error: skip\n"));
    let end = place.run_with_input(&["run", "lax.yaml", "--report", "report.json"], b"{\"a\":1}\nnot json\n");
    assert_eq!(end.code, Some(0), "{}", end.err);
    assert_eq!(received(&report(&place, "report.json")), 2);
}

#[test]
fn a_file_that_may_not_be_read_is_told() {
    let place = Place::new();
    let path = place.write("echo.yaml", ECHO);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o000)).expect("it is ours");
    // Root may read everything, and then there is nothing to tell.
    if std::fs::read(&path).is_err() {
        let end = place.run(&["run", "echo.yaml"]);
        assert_eq!(end.code, Some(2));
        assert!(end.err.contains("echo.yaml"), "{}", end.err);
    }
}

#[test]
fn what_came_from_outside_is_told_in_no_words_that_a_terminal_obeys() {
    let place = Place::new();
    place.write("p.yaml", "name: p\nsource: { stdin: { format: ndjson } }\nprocess: [ { filter: { name: \"x\\e[2J\", keep: 'item.a > 1' } } ]\noutput: { stdout: }\n");
    let end = place.run_with_input(&["run", "p.yaml"], b"{\"a\":1}\n{\"a\":\x1b[31m}\n");
    assert_eq!(end.code, Some(1), "{}", end.err);
    assert!(end.err.contains("dropped by `x\\u{1b}[2J`"), "{}", end.err);
    assert!(!end.err.contains('\x1b'), "{:?}", end.err);
    assert!(!place.done(&["graph", "p.yaml"]).contains('\x1b'));
}

#[test]
fn a_report_that_would_be_written_over_a_pipeline_file_is_refused() {
    let place = Place::new();
    let file = place.write("echo.yaml", ECHO);
    std::fs::hard_link(&file, place.path("hard.json")).expect("a link");
    std::os::unix::fs::symlink(&file, place.path("soft.json")).expect("a link");
    for report in ["echo.yaml", "./echo.yaml", "hard.json", "soft.json"] {
        let end = place.run(&["run", "echo.yaml", "--report", report]);
        assert_eq!(end.code, Some(2), "{report}: {}", end.err);
        assert!(end.err.contains("over the pipeline file echo.yaml; name another"), "{}", end.err);
    }
    assert_eq!(place.read("echo.yaml"), ECHO);
}

#[test]
fn pipelines_that_would_take_each_others_input_or_output_are_refused_before_they_start() {
    let place = Place::new();
    place.write("echo.yaml", ECHO);
    place.write("other.yaml", &ECHO.replace("echo", "other"));
    let end = place.run_with_input(&["run", "echo.yaml", "other.yaml"], b"1\n");
    assert_eq!((end.code, end.out.as_str()), (Some(2), ""), "{}", end.err);
    assert!(end.err.contains("echo.yaml and other.yaml both read standard input"), "{}", end.err);

    let buffered = |name: &str| {
        let buffer = "buffer: { queue: { broker: \"embedded:state\", name: shared } }";
        format!(
            "name: {name}\nsource: {{ generate: {{ count: 1 }} }}\n{buffer}\noutput: {{ file: {{ path: {name}.ndjson }} }}\n"
        )
    };
    place.write("one.yaml", &buffered("one"));
    place.write("two.yaml", &buffered("two"));
    let end = place.run(&["run", "one.yaml", "two.yaml"]);
    assert_eq!(end.code, Some(2), "{}", end.err);
    assert!(
        end.err.contains("one.yaml and two.yaml both have queue `shared` as their buffer"),
        "{}",
        end.err
    );

    let writing = |name: &str, path: &str| {
        format!(
            "name: {name}\nsource: {{ generate: {{ count: 1 }} }}\noutput: {{ file: {{ path: '{path}' }} }}\n"
        )
    };
    std::fs::create_dir(place.path("out")).expect("a directory");
    std::os::unix::fs::symlink(place.path("out"), place.path("link")).expect("a link");
    place.write("one.yaml", &writing("one", "out/a.ndjson"));
    for (file, path) in [
        ("two.yaml", "out/a.ndjson"),
        ("two.yaml", "./out/{n}.ndjson"),
        ("two.yaml", "link/a.ndjson"),
        ("below/two.yaml", "../out/a.ndjson"),
    ] {
        place.write(file, &writing("two", path));
        let end = place.run(&["run", "one.yaml", file]);
        assert_eq!(end.code, Some(2), "{path}: {}", end.err);
        assert!(end.err.contains(&format!("one.yaml and {file} both can write {path}")), "{}", end.err);
        assert!(
            std::fs::read_dir(place.path("out")).expect("listed").next().is_none(),
            "nothing was started"
        );
    }
    place.write("two.yaml", &writing("two", "out/b.ndjson"));
    place.done(&["run", "one.yaml", "two.yaml", "--quiet"]);
}

#[test]
fn what_a_disk_that_fails_costs_depends_on_the_source() {
    let place = Place::new();
    let lines = "{\"a\":1}\n".repeat(10_000);
    place.write("in.ndjson", &lines);
    for (source, words) in [
        ("{ stdin: { format: ndjson } }", "what was under way is lost"),
        ("{ file: { path: in.ndjson } }", "nothing accepted is lost"),
    ] {
        place.write(
            "p.yaml",
            &format!("name: p\nsource: {source}\noutput: {{ file: {{ path: o/out.ndjson }} }}\n"),
        );
        // Files may have a few blocks, and no more.
        let limited = format!(
            "trap '' XFSZ; ulimit -f 8; exec {} run p.yaml --quiet < in.ndjson",
            env!("CARGO_BIN_EXE_millstream")
        );
        let mut command = std::process::Command::new("sh");
        command
            .args(["-c", &limited])
            .current_dir(place.path(""))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let end = ended(command.spawn().expect("a shell"));
        assert_eq!(end.code, Some(1), "{}", end.err);
        assert!(end.err.contains("start again") && end.err.contains(words), "{}", end.err);
        std::fs::remove_dir_all(place.path("o")).expect("removed");
    }
}

#[test]
fn a_pipeline_that_fails_beside_others_is_told_at_once_and_by_the_exit_code() {
    let place = Place::new();
    place.write(
        "fails.yaml",
        "name: fails\nsource: { file: { path: in.ndjson } }\noutput: { file: { path: fails.ndjson } }\n",
    );
    place.write("in.ndjson", "{bad}\n");
    place.write(
        "goes-on.yaml",
        "name: on\nsource: { file: { path: on.in.ndjson, follow: true } }\noutput: { file: { path: on.ndjson } }\n",
    );
    place.write("on.in.ndjson", "1\n");
    let mut child = place
        .command(&["run", "--quiet", "fails.yaml", "goes-on.yaml"])
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("it starts");
    let mut err = BufReader::new(child.stderr.take().expect("piped"));
    let mut told = String::new();
    while !told.contains("1 other pipeline of this run still at work") {
        assert!(err.read_line(&mut told).expect("read") > 0, "it ended: {told}");
    }
    assert!(told.contains("error: pipeline `fails`") && told.contains("in.ndjson:1"), "{told}");
    signal(&child, "TERM");
    assert_eq!(child.wait().expect("it ends").code(), Some(1), "a failure is no clean stop");
}
