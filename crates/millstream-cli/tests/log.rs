//! `millstream log` on the directory of a broker: whole, in use, damaged, with streams, and not there.

mod support;

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

use millstream_embedded::{EmbeddedBroker, Settings};
use millstream_message::{Broker, Message, StreamSpec};
use serde_json::Value;
use support::{Place, signal};

/// A directory with a queue of three messages and a stream of two.
fn with_queue_and_stream() -> Place {
    let place = Place::new();
    place.done(&["queue", "declare", "embedded:state", "orders"]);
    for order in ["one", "two", "three"] {
        place.done(&["queue", "publish", "embedded:state", "orders", order]);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let broker = EmbeddedBroker::open(&place.path("state"), Settings::default()).await.expect("opens");
        broker.declare_stream(StreamSpec::new("events")).await.expect("declared");
        for event in ["first", "second"] {
            broker.append("events", vec![Message::new(event)]).await.expect("appended");
        }
        broker.close().await.expect("closes");
    });
    place
}

fn segments(place: &Place, directory: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(place.path(directory)).expect("a directory");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "log")).collect()
}

/// Flips a bit of `text` where it lies in one of these files.
fn damage(files: &[PathBuf], text: &str) {
    for path in files {
        let mut file = std::fs::OpenOptions::new().read(true).write(true).open(path).expect("opens");
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).expect("reads");
        if let Some(at) = bytes.windows(text.len()).position(|window| window == text.as_bytes()) {
            file.seek(SeekFrom::Start(at as u64)).expect("seeks");
            file.write_all(&[bytes[at] ^ 1]).expect("writes");
            return;
        }
    }
    panic!("{text} is nowhere");
}

fn lines(out: &str) -> Vec<Value> {
    out.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

#[test]
fn verify_reads_the_log_of_the_broker_and_of_each_stream() {
    let place = with_queue_and_stream();
    let out = place.done(&["log", "verify", "state"]);
    assert_eq!(place.done(&["log", "verify", "embedded:state"]), out, "its URL will do");
    assert_eq!(out.matches("closed properly").count(), 2, "{out}");
    assert!(out.contains("streams/00000000"), "{out}");
}

#[test]
fn export_shows_each_message_of_queues_and_streams_as_a_line_of_json() {
    let place = with_queue_and_stream();
    let lines = lines(&place.done(&["log", "export", "state"]));
    let bodies = |of: &str| -> Vec<String> {
        let found = lines.iter().map(|line| &line["body"][of]).filter(|found| !found.is_null());
        let messages =
            found.flat_map(|found| found.as_array().cloned().unwrap_or_else(|| vec![found.clone()]));
        messages.map(|message| message["body"].as_str().expect("text").to_owned()).collect()
    };
    assert_eq!(bodies("published"), ["one", "two", "three"]);
    assert_eq!(bodies("appended"), ["first", "second"]);
    assert!(lines.iter().any(|line| line["log"].as_str().is_some_and(|log| log.starts_with("streams/"))));
}

#[test]
fn damage_of_the_broker_or_of_a_stream_is_a_failure_that_names_the_log_and_the_rest_is_shown() {
    let place = with_queue_and_stream();
    damage(&segments(&place, "state"), "two");
    let end = place.run(&["log", "verify", "state"]);
    assert_eq!(end.code, Some(1), "{}", end.err);
    assert!(end.out.contains("DAMAGED from"), "{}", end.out);
    assert!(end.err.contains("the log in state is damaged in 1 place"), "{}", end.err);
    let end = place.run(&["log", "export", "state"]);
    assert_eq!(end.code, Some(1));
    assert!(end.out.contains(r#"{"damaged":{"from":"#) && end.out.contains("three"), "{}", end.out);

    let place = with_queue_and_stream();
    let stream =
        std::fs::read_dir(place.path("state/streams")).expect("streams").next().expect("one").expect("it");
    let stream = format!("state/streams/{}", stream.file_name().to_string_lossy());
    damage(&segments(&place, &stream), "first");
    let end = place.run(&["log", "verify", "state"]);
    assert_eq!(end.code, Some(1), "{}", end.err);
    assert!(end.err.contains(&format!("the log in {stream} is damaged in 1 place")), "{}", end.err);
}

#[test]
fn a_message_that_is_damaged_on_the_disk_is_told_by_whoever_comes_to_it() {
    let place = with_queue_and_stream();
    damage(&segments(&place, "state"), "two");
    let end = place.run(&["queue", "consume", "embedded:state", "orders"]);
    assert_eq!((end.code, end.out.as_str()), (Some(0), "one\nthree\n"), "{}", end.err);
    let told = "warning: 1 message of `embedded:state` cannot be read, because the log is damaged";
    assert!(end.err.contains(told), "{}", end.err);

    let place = with_queue_and_stream();
    damage(&segments(&place, "state"), "two");
    let source = "source: { queue: { broker: \"embedded:state\", name: orders, until: drained } }";
    place.write("p.yaml", &format!("name: p\n{source}\noutput: {{ stdout: }}\non_error: skip\n"));
    let end = place.run(&["run", "p.yaml", "--quiet"]);
    assert!(end.err.contains(told), "{}", end.err);
}

#[test]
fn a_log_in_use_and_a_directory_without_one_are_told() {
    let place = with_queue_and_stream();
    let mut holder = place.holding("embedded:state", "orders");
    let end = place.run(&["log", "verify", "state"]);
    assert_eq!(end.code, Some(1));
    assert!(end.err.contains(&holder.id().to_string()), "{}", end.err);
    signal(&holder, "TERM");
    holder.wait().expect("it ends");
    let end = place.run(&["log", "export", "nowhere"]);
    assert_eq!(end.code, Some(2));
    assert!(end.err.contains("nowhere is no directory"), "{}", end.err);
    std::fs::create_dir(place.path("empty")).expect("a directory");
    let end = place.run(&["log", "verify", "empty"]);
    assert_eq!(end.code, Some(1));
    assert!(end.err.contains("holds no log"), "{}", end.err);
}
