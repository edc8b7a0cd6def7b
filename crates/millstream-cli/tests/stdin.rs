//! Standard input as a source: its settings, and a line that is longer than memory may be.

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::process::Stdio;

use support::{Place, taken};

#[test]
fn rows_are_read_and_written_as_the_file_says() {
    let place = Place::new();
    let file = "name: rows\nsource: { stdin: { format: csv, delimiter: ';', columns: [a, b], max_line: 1KiB } }\n\
                output: { stdout: { format: csv } }\non_error: skip\n";
    place.write("rows.yaml", file);
    let end = place.run_with_input(
        &["run", "rows.yaml", "--report", "report.json"],
        format!("b;a\n1;\"x,y\"\n{};2\n3;4\n", "long".repeat(300)).as_bytes(),
    );
    assert_eq!(end.code, Some(0), "{}", end.err);
    assert!(["b,a\n1,\"x,y\"\n3,4\n", "a,b\n\"x,y\",1\n4,3\n"].contains(&end.out.as_str()), "{}", end.out);
    assert!(place.read("report.json").contains("stdin:3:1"), "{}", place.read("report.json"));
    let end = place.run_with_input(&["run", "rows.yaml"], b"a;c\n1;2\n");
    assert_eq!(end.code, Some(1));
    assert!(end.err.contains("unknown column `c`"), "{}", end.err);
}

/// It is that item's error, with its line and column, and is passed over as it comes.
#[test]
fn a_line_of_100_mb_is_an_items_error_and_is_never_held_in_memory() {
    let buffered = "buffer: { queue: { broker: 'embedded:state', name: q } }\n";
    for (format, buffer) in [("ndjson", ""), ("csv", ""), ("lines", ""), ("ndjson", buffered)] {
        let place = Place::new();
        place.write(
            "long.yaml",
            &format!(
                "name: long\nsource: {{ stdin: {{ format: {format} }} }}\n{buffer}output: {{ stdout: }}\non_error: skip\n"
            ),
        );
        let command = &["run", "long.yaml", "--quiet", "--report", "report.json"];
        let mut child = place.command(command).stdin(Stdio::piped()).spawn().expect("it starts");
        let mut input = child.stdin.take().expect("it is piped");
        let header = if format == "csv" { "a\n" } else { "" };
        input.write_all(header.as_bytes()).expect("it reads");
        let piece = vec![b'x'; 1 << 20];
        for _ in 0..100 {
            input.write_all(&piece).expect("it reads");
        }
        input.write_all(b"\n17\n").expect("it reads");
        // The item behind it is out: the line has been dealt with.
        let mut out = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut line = String::new();
        out.read_line(&mut line).expect("it is text");
        assert!(line.contains("17"), "{line}");
        let taken = taken(&child).expect("it runs");
        assert!(taken < 64 << 20, "{format}: {} KiB", taken >> 10);
        drop(input);
        assert_eq!(child.wait().expect("it ends").code(), Some(0));
        out.read_to_string(&mut line).expect("it is text");
        let report = place.read("report.json");
        let at = if format == "csv" { "stdin:2:1" } else { "stdin:1:1" };
        assert!(report.contains("the line has 104857600 bytes") && report.contains(at), "{report}");
    }
}

#[test]
fn a_directory_as_standard_input_is_told_with_what_to_do() {
    let place = Place::new();
    place.write("p.yaml", "name: p\nsource: { stdin: { format: ndjson } }\noutput: { stdout: }\n");
    let directory = std::fs::File::open("/").expect("it can be opened");
    let end = place.command(&["run", "p.yaml"]).stdin(directory).output().expect("it ends");
    let err = String::from_utf8_lossy(&end.stderr);
    assert_eq!(end.status.code(), Some(1), "{err}");
    assert!(err.contains("standard input: it is a directory") && err.contains("source.file.path"), "{err}");
}
