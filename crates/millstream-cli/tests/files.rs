//! `lint`, `graph`, `test`, `schema`, `completions`: what is said of files without running them.

mod support;

use support::Place;

#[test]
fn the_quickstart_has_no_problems_and_a_memory_bound() {
    let place = Place::with_examples();
    let out = place.done(&["lint", "examples/quickstart.yaml"]);
    assert!(out.contains("no problems") && out.contains("MiB"), "{out}");
}

#[test]
fn all_problems_are_told_at_once_with_their_place_and_remedy() {
    let place = Place::new();
    place.write("bad.yaml", "name: bad\nsource:\n  stdin: { formt: ndjson }\noutptu: { stdout: }\n");
    place.write("worse.yaml", "name: [\n");
    let end = place.run(&["lint", "bad.yaml", "worse.yaml"]);
    assert_eq!(end.code, Some(2));
    for part in [
        "bad.yaml:3:12: unknown key `formt`",
        "did you mean `format`?",
        "bad.yaml:4:1: unknown key `outptu`",
        "worse.yaml:",
    ] {
        assert!(end.err.contains(part), "{part}: {}", end.err);
    }
    let run = place.run(&["run", "bad.yaml"]);
    assert_eq!(run.code, Some(2));
    assert!(run.err.contains("bad.yaml:3:12: unknown key `formt`"), "run checks as lint does: {}", run.err);
}

#[test]
fn what_is_set_on_the_command_line_is_checked_like_the_file() {
    let place = Place::with_examples();
    let end = place.run(&["lint", "examples/quickstart.yaml", "--set", "batch.cuont=5"]);
    assert_eq!(end.code, Some(2));
    assert!(end.err.contains("cuont") && end.err.contains("count"), "{}", end.err);
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let end = Place::new().run(&["lint", "nowhere.yaml"]);
    assert_eq!(end.code, Some(2));
    assert!(end.err.contains("nowhere.yaml") && end.err.contains("check the path"), "{}", end.err);
}

#[test]
fn the_graph_is_a_mermaid_diagram_of_the_steps() {
    let place = Place::with_examples();
    let graph = place.done(&["graph", "examples/quickstart.yaml"]);
    assert!(graph.starts_with("flowchart"), "{graph}");
    for part in ["flights-2013-01.csv", "departure", "on time", "flights.dead", "-->"] {
        assert!(graph.contains(part), "{part}: {graph}");
    }
}

#[test]
fn the_cases_of_the_quickstart_hold_and_a_wrong_one_is_shown() {
    let place = Place::with_examples();
    place.done(&["test", "examples/quickstart.yaml"]);
    let otherwise = ["test", "examples/quickstart.yaml", "--set", "process.1.filter.keep=item.miles > 1"];
    assert_eq!(place.run(&otherwise).code, Some(1), "what was on time is kept then");
    let cases = place.read("examples/quickstart.test.yaml");
    assert!(cases.contains("UA"), "the case to spoil is there");
    place.write(
        "examples/quickstart.test.yaml",
        &cases.replace("UA", "ZZ-not-what-goes-in").replacen("ZZ-not-what-goes-in", "UA", 1),
    );
    let end = place.run(&["test", "examples/quickstart.yaml"]);
    assert_eq!(end.code, Some(1), "{}{}", end.out, end.err);
    assert!(format!("{}{}", end.out, end.err).contains("ZZ-not-what-goes-in"), "{}{}", end.out, end.err);
}

#[test]
fn a_pipeline_without_cases_is_told_where_they_would_be() {
    let place = Place::new();
    place.write("lone.yaml", "name: lone\nsource: { stdin: { format: ndjson } }\noutput: { stdout: }\n");
    let end = place.run(&["test", "lone.yaml"]);
    assert_eq!(end.code, Some(2), "{}{}", end.out, end.err);
    assert!(end.err.contains("lone.test.yaml"), "{}", end.err);
}

#[test]
fn the_schema_is_json_that_refuses_unknown_keys() {
    let schema = Place::new().done(&["schema"]);
    let schema: serde_json::Value = serde_json::from_str(&schema).expect("JSON");
    assert_eq!(schema["additionalProperties"], false);
    assert!(schema["properties"]["source"].is_object());
}

#[test]
fn completions_name_every_command() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish"] {
        let text = place.done(&["completions", shell]);
        for command in ["run", "lint", "graph", "queue", "dead-letters", "schema"] {
            assert!(text.contains(command), "{shell} {command}");
        }
    }
}

#[test]
fn help_tells_the_exit_codes() {
    let place = Place::new();
    for words in [&["--help"][..], &["run", "--help"]] {
        let help = place.done(words);
        assert!(help.contains("Exit codes:") && help.contains("130"), "{help}");
    }
    assert!(place.done(&["--version"]).starts_with("millstream "));
}

#[test]
fn help_into_a_closed_pipe_is_no_panic() {
    let place = Place::new();
    let mut child = place.command(&["schema"]).spawn().expect("the binary starts");
    drop(child.stdout.take());
    let end = support::ended(child);
    assert!(!end.err.contains("panicked"), "{}", end.err);
}

#[test]
fn a_variable_that_is_no_text_is_refused_and_not_passed_over() {
    use std::os::unix::ffi::OsStrExt;
    let place = Place::new();
    place.write(
        "p.yaml",
        "name: p\nsource: { stdin: { format: lines } }\noutput: { file: { path: '${OUT:-out.ndjson}' } }\n",
    );
    let not_text = std::ffi::OsStr::from_bytes(b"out-\xff");
    let refused =
        |arguments: &[&str], name| place.command(arguments).env(name, not_text).output().expect("it runs");
    let lint = refused(&["lint", "p.yaml"], "OUT");
    let told = String::from_utf8_lossy(&lint.stderr) + String::from_utf8_lossy(&lint.stdout);
    assert!(told.contains("p.yaml:3:") && told.contains(r#"`OUT` is not UTF-8: "out-\xFF""#), "{told}");
    assert_eq!(lint.status.code(), Some(2));
    let arguments = ["gateway", "--upstream", "http://127.0.0.1:1", "--print-config"];
    let gateway = refused(&arguments, "STREAM_RESPONSE_CHUNK_SIZE");
    let told = String::from_utf8_lossy(&gateway.stderr);
    assert!(told.contains("STREAM_RESPONSE_CHUNK_SIZE") && told.contains("out-"), "{told}");
    assert_eq!(gateway.status.code(), Some(2));
}
