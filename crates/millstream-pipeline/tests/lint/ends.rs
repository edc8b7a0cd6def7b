//! What is refused of sources and outputs because it would fail, or wait for ever, once it runs.

use millstream_pipeline::Pipeline;

/// The problems of a file, as they are told.
fn problems(yaml: &str) -> String {
    Pipeline::parse("p.yaml", yaml).err().map_or(String::new(), |problems| problems.to_string())
}

#[test]
fn outputs_whose_files_could_be_the_same_are_refused() {
    let named = |one: &str, other: &str| {
        problems(&format!(
            "name: p\nsource: {{ stdin: {{ format: ndjson }} }}\nprocess: [ {{ route: {{ cases: [ {{ when: 'item.a', to: a }} ], else: b }} }} ]\noutput:\n  named:\n    a: {{ file: {{ path: '{one}' }} }}\n    b: {{ file: {{ path: '{other}' }} }}"
        ))
    };
    for (one, other) in [
        ("out/{carrier}.ndjson", "out/{carrier}-rest.ndjson"),
        ("out/rest.ndjson", "out/{carrier}.ndjson"),
        ("out/{a}/x.csv", "out/y/{b}.csv"),
    ] {
        let text = named(one, other);
        assert!(text.contains("can be the same file") && text.contains("a directory of its own"), "{text}");
    }
    assert_eq!(named("out/{carrier}.ndjson", "out/rest/{carrier}.ndjson"), "");
    assert_eq!(named("out/{carrier}.ndjson", "out/rest.csv"), "");
}

#[test]
fn a_path_that_no_request_can_have_is_refused() {
    let with = |path: &str| {
        problems(&format!(
            "name: p\nsource: {{ http: {{ listen: 'localhost:0', path: '{path}' }} }}\noutput: {{ stdout: }}"
        ))
    };
    for path in ["/in/{", "/in/{id}", "/in?x", "/in#x", "/with space", "/ü"] {
        let text = with(path);
        assert!(text.contains("which the path of a request never has"), "{path}: {text}");
    }
    for path in ["/", "/in/:id", "/*x", "/a%20b", "/v1:take"] {
        assert_eq!(with(path), "", "{path}");
    }
}

#[test]
fn a_batch_that_pending_requests_can_never_fill_is_refused() {
    let with = |more: &str| {
        problems(&format!(
            "name: p\nsource: {{ http: {{ listen: 'localhost:0', path: /in, max_pending: 2 }} }}\noutput: {{ stdout: }}\n{more}"
        ))
    };
    let text = with("batch: { count: 3 }");
    assert!(text.contains("larger than `max_pending` 2") && text.contains("raise `max_pending`"), "{text}");
    assert_eq!(with("batch: { count: 2 }"), "");
    assert_eq!(with("batch: { count: 3 }\nbuffer: { queue: { broker: 'embedded:s', name: q } }"), "");
}

#[test]
fn a_file_for_two_purposes_is_refused_however_it_is_written() {
    let with = |source: &str, output: &str| {
        problems(&format!(
            "name: p\nsource: {{ file: {{ format: csv, {source} }} }}\noutput: {{ file: {{ path: '{output}' }} }}"
        ))
    };
    for (source, output, told) in [
        ("path: a/x.csv", "./a/./x.csv", "the output is the file that the source reads"),
        ("path: ./x.csv", "x.csv", "the output is the file that the source reads"),
        ("path: 'o/*.csv'", "o/all.csv", "o/all.csv can be a file that the source reads"),
        ("path: 'o/*.csv'", "o/{day}.csv", "o/{day}.csv can be a file that the source reads"),
        ("path: x.csv, position: ./x.csv", "o.csv", "`position` is a file that the source reads"),
        ("path: 'in/*', position: in/position", "o.csv", "`position` is a file that the source reads"),
        ("path: x.csv, position: o.csv", "o.csv", "o.csv can be the file of the source's `position`"),
        (
            "path: x.csv, position: out/at.csv",
            "out/{day}.csv",
            "out/{day}.csv can be the file of the source's `position`",
        ),
    ] {
        let text = with(source, output);
        assert!(text.contains(told) && text.ends_with("1 problem"), "{source} {output}: {text}");
    }
    for (source, output) in [
        ("path: 'in/*.csv', position: in/position", "out/all.csv"),
        ("path: 'o/*.csv', position: state/at", "o/all.ndjson"),
        ("path: x.csv, position: x.at", "o/{day}.csv"),
    ] {
        assert_eq!(with(source, output), "", "{source} {output}");
    }
}

#[test]
fn a_directory_of_a_broker_is_one_however_it_is_written() {
    let text = problems(
        "name: p\nsource: { queue: { broker: 'embedded:s', name: q } }\n\
         output: { queue: { broker: 'embedded:./s', name: q } }",
    );
    assert!(text.contains("items would come round again"), "{text}");
    assert_eq!(
        problems("name: p\nsource: { queue: { broker: 'embedded:.', name: q } }\noutput: { stdout: }"),
        ""
    );
}

#[test]
fn a_column_that_is_named_twice_is_refused() {
    let with = |source: &str, output: &str| {
        problems(&format!(
            "name: p\nsource: {{ stdin: {{ format: csv{source} }} }}\noutput: {{ file: {{ path: o.csv{output} }} }}"
        ))
    };
    for (source, output) in [(", columns: [a, b, a]", ""), ("", ", columns: [b, a, a]")] {
        let text = with(source, output);
        assert!(text.contains("column `a` appears twice"), "{text}");
    }
    assert_eq!(with(", columns: [a, b]", ", columns: [b, a]"), "");
}
