//! Offline tests and the picture: what a pipeline file says without running.

use millstream_pipeline::Pipeline;
use std::path::Path;

fn quickstart() -> Pipeline {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/quickstart.yaml");
    Pipeline::open(&file, &[]).unwrap_or_else(|problems| panic!("{problems}"))
}

#[test]
fn the_quickstart_lints_and_its_cases_pass() {
    let pipeline = quickstart();
    let tested = pipeline.test(&pipeline.cases_file()).expect("good cases");
    assert!(tested.failed.is_empty(), "{:#?}", tested.failed);
    assert_eq!(tested.passed.len(), 3);
}

#[test]
fn a_case_that_differs_says_how() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("p.yaml");
    let yaml = "name: p\nsource: { stdin: { format: csv } }\nprocess:\n  - filter: { name: small, keep: 'item.a != \"1\"' }\n  - map: 'if .a == \"x\" then error(\"no x\") else . end'\noutput: { stdout: }";
    std::fs::write(&path, yaml).expect("a file");
    let pipeline = Pipeline::open(&path, &[]).unwrap_or_else(|problems| panic!("{problems}"));
    let cases = pipeline.cases_file();
    assert_eq!(cases.file_name().and_then(|name| name.to_str()), Some("p.test.yaml"));
    std::fs::write(
        &cases,
        "cases:\n  - name: good\n    text: \"a\\n1\\n2\\nx\\n\"\n    output: [{ a: \"2\" }]\n    dropped: { small: 1 }\n    dead: [no x]\n  - name: bad\n    items: [{ a: \"1\" }, { a: x }, { a: \"3\" }]\n    output: [{ a: 3 }, { a: \"4\" }]\n    dropped: { small: 2 }\n    dead: [{ stage: elsewhere }]\n",
    )
    .expect("a file");
    let tested = pipeline.test(&cases).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(tested.passed, ["good"]);
    let failed = &tested.failed[0];
    assert!(failed.place.ends_with("p.test.yaml:7"), "{}", failed.place);
    assert_eq!(
        failed.differences,
        [
            "item 1 of the output is {\"a\":\"3\"}, expected {\"a\":3}",
            "item 2 of the output is missing: {\"a\":\"4\"}",
            "`small` dropped 1, expected 2",
            "an item should fail at `elsewhere` with \"any reason\"; it failed at `map` with \"no x\"",
        ]
    );
    std::fs::write(&cases, "cases:\n  - nmae: x\n").expect("a file");
    let problems = pipeline.test(&cases).expect_err("a wrong key").to_string();
    assert!(problems.contains("p.test.yaml:2:5: unknown key `nmae`"), "{problems}");
    assert!(pipeline.test(Path::new("/none")).expect_err("no file").to_string().contains("cannot be read"));
}

#[test]
fn the_picture_shows_every_part_and_where_errors_go() {
    let graph = quickstart().graph();
    for part in [
        "flowchart LR",
        "file data/flights-2013-01.csv",
        "queue flights",
        "map departure",
        "filter on time",
        "batch by carrier",
        "file out/{carrier}.ndjson",
        "dead letters flights.dead",
        "-.->|\"error\"|",
    ] {
        assert!(graph.contains(part), "{part:?} is not in\n{graph}");
    }
    let pipeline = Pipeline::parse(
        "p.yaml",
        "name: p\nsource: { generate: }\nprocess: [ { route: { cases: [ { when: 'item.a', to: x } ], else: drop } } ]\noutput: { named: { x: { stdout: } } }",
    )
    .unwrap_or_else(|problems| panic!("{problems}"));
    let graph = pipeline.graph();
    assert!(
        graph.contains("{\"route\"}") && graph.contains("dropped") && graph.contains("|\"x\"|"),
        "{graph}"
    );
}
