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
