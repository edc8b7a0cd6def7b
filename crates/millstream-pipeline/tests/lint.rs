//! What `lint` refuses: each case names the line, the column, what is said and what to do.

use millstream_pipeline::{Pipeline, Problems};
use proptest::prelude::*;

const SOURCE: &str = "source: { stdin: { format: ndjson } }";

fn problems(yaml: &str) -> Problems {
    match Pipeline::parse("p.yaml", yaml) {
        Ok(_) => panic!("no problem was found in\n{yaml}"),
        Err(problems) => problems,
    }
}

/// Checks that `yaml` has exactly these problems: line, column, a part of the message, a part of the remedy.
fn check(yaml: &str, expected: &[(u32, u32, &str, &str)]) {
    let problems = problems(yaml);
    for (line, column, message, remedy) in expected {
        let found = problems.iter().any(|problem| {
            problem.at.line == *line
                && problem.at.column == *column
                && problem.message.contains(message)
                && problem.remedy.contains(remedy)
        });
        assert!(found, "{line}:{column} {message:?} with {remedy:?} is not among\n{problems}");
    }
    assert_eq!(problems.len(), expected.len(), "there are other problems too:\n{problems}");
}

/// A whole pipeline around some lines that begin on line 4.
fn with(lines: &str) -> String {
    format!("name: p\n{SOURCE}\noutput: {{ stdout: }}\n{lines}")
}

fn accepted(yaml: &str) {
    if let Err(problems) = Pipeline::parse("p.yaml", yaml) {
        panic!("{problems}\nin\n{yaml}");
    }
}

#[test]
fn a_good_file_has_no_problem() {
    accepted(&with(""));
    accepted(&with(
        "process:\n  - map: '{a: .b}'\n  - filter: { name: x, keep: 'item.a > 1' }\nbatch: { count: 5 }",
    ));
}

#[test]
fn an_unknown_key_names_the_nearest_known_one() {
    check(&with("proces: [{ map: . }]"), &[(4, 1, "unknown key `proces`", "did you mean `process`?")]);
    check(
        &with("batch: { cuont: 5 }"),
        &[(4, 10, "unknown key `cuont` in `batch`", "did you mean `count`?")],
    );
    check(&with("zzz: 1"), &[(4, 1, "unknown key `zzz`", "known here: `name`")]);
    check(
        "name: p\nsource: { fiel: { path: x.csv } }\noutput: { stdout: }",
        &[(2, 11, "unknown key `fiel`", "did you mean `file`?")],
    );
}

#[test]
fn what_stands_below_a_misspelt_key_is_checked_as_what_was_meant() {
    check(
        &with("bacth: { cuont: 5, age: soon }"),
        &[
            (4, 1, "unknown key `bacth`", "did you mean `batch`?"),
            (4, 10, "unknown key `cuont` in `batch`", "did you mean `count`?"),
            (4, 25, "`age` is `soon`", "such as `500ms`"),
        ],
    );
    // What was meant is plain only if it is not there already.
    check(
        &with("batch: { count: 5 }\nbacth: { zzz: 5 }"),
        &[(5, 1, "unknown key `bacth`", "did you mean `batch`?")],
    );
}

#[test]
fn a_variable_that_is_not_set_is_one_problem() {
    check(
        &with("batch: { count: \"${MILLSTREAM_NOT_SET}\" }"),
        &[(4, 17, "`MILLSTREAM_NOT_SET` is not set", "give a default")],
    );
    check(
        &with("batch: { by: \"${MILLSTREAM_NOT_SET}${MILLSTREAM_NOR_THIS}\" }"),
        &[(4, 14, "`MILLSTREAM_NOT_SET`", "set it"), (4, 14, "`MILLSTREAM_NOR_THIS`", "set it")],
    );
}

#[test]
fn all_problems_are_told_at_once_in_the_order_of_the_file() {
    let problems = problems("nmae: p\nsource: { stdin: {} }\nbatch: { count: 0, age: 5 }\noutput: nowhere");
    let lines: Vec<u32> = problems.iter().map(|problem| problem.at.line).collect();
    assert_eq!(lines, [1, 1, 2, 3, 3, 4], "{problems}");
}

#[test]
fn a_problem_shows_its_line_with_a_caret() {
    let text = problems(&with("batch: { cuont: 5 }")).to_string();
    assert!(text.contains("p.yaml:4:10: unknown key"), "{text}");
    assert!(text.contains("  4 | batch: { cuont: 5 }\n    |          ^^^^^\n  = did you mean"), "{text}");
}

#[test]
fn missing_keys_are_named_with_their_meaning() {
    check("name: p\noutput: { stdout: }", &[(1, 1, "lacks `source`", "where items come from")]);
    check(
        &with("process:\n  - filter: { keep: 'item.a > 1' }"),
        &[(5, 13, "`filter` lacks `name`", "what the report calls")],
    );
}

#[test]
fn wrong_types_and_ranges_say_what_is_expected() {
    check(&with("batch: { count: many }"), &[(4, 17, "`count` is `many`", "from 1 to 1000000")]);
    check(&with("batch: { count: 0 }"), &[(4, 17, "`count` is `0`", "from 1")]);
    check(&with("batch: { bytes: 12 }"), &[(4, 17, "not a size", "64MiB")]);
    check(&with("batch: { age: 10 }"), &[(4, 15, "not a time", "500ms")]);
    check(&with("batch: 5"), &[(4, 8, "`batch` must be a map", "`count`")]);
    check(&with("process: { map: . }"), &[(4, 10, "`process` must be a list", "`- `")]);
    check(&with("process: []"), &[(4, 10, "empty list", "leave the key out")]);
    check(&with("goals: { order: maybe }"), &[(4, 17, "`order` is `maybe`", "`true` or `false`")]);
    check(&with("on_error: ignore"), &[(4, 11, "`on_error` is `ignore`", "`fail`, `skip`")]);
    check(&with("on_error: skipp"), &[(4, 11, "`on_error` is `skipp`", "did you mean `skip`?")]);
    check(
        "name: p\nsource: { stdin: { format: cvs } }\noutput: { stdout: }",
        &[(2, 28, "`format` is `cvs`", "did you mean `csv`?")],
    );
    check(
        "name: p\nsource: { http: { listen: nowhere } }\noutput: { stdout: }",
        &[(2, 27, "not an address", "127.0.0.1:8080")],
    );
    check(&with("goals: { max_error_rate: 200% }\non_error: skip"), &[(4, 26, "not a share", "1%")]);
    check(
        "name: a b\nsource: { generate: }\noutput: { stdout: }",
        &[(1, 7, "not a name", "letters, digits")],
    );
}

#[test]
fn brokers_must_be_durable() {
    let queue = |url: &str| {
        format!("name: p\nsource: {{ queue: {{ broker: \"{url}\", name: q }} }}\noutput: {{ stdout: }}")
    };
    check(&queue("memory:"), &[(2, 28, "`broker` is `memory:`", "gone with the process")]);
    check(&queue("amqp://host?hearbeat=5"), &[(2, 28, "`broker`", "known are name, heartbeat")]);
    check(&queue("rabbitmq-stream://host?hearbeat=5"), &[(2, 28, "`broker`", "`heartbeat` (seconds)")]);
    accepted(&queue("rabbitmq-stream://host"));
    accepted(&format!(
        "{}\non_error: {{ dead_letter: {{ broker: \"amqp://host\", queue: dead }} }}",
        queue("rabbitmq-stream://host")
    ));
    check(
        &with("buffer: { queue: { broker: \"rabbitmq-stream://host\", name: q } }"),
        &[(4, 60, "a stream cannot be the buffer", "use a queue")],
    );
    check(&queue("embedded:"), &[(2, 28, "`broker`", "name a directory")]);
}

#[test]
fn yaml_that_does_not_parse_has_a_place() {
    let problems = problems("name: p\nsource: { stdin: { format: ndjson }\noutput: x");
    let first = problems.iter().next().expect("a problem");
    assert!(first.message.contains("not valid YAML") && first.at.line >= 2, "{problems}");
}

#[test]
fn anchors_duplicates_and_second_documents_are_refused() {
    check(&with("batch: &b { count: 5 }"), &[(4, 8, "anchors", "write the value out")]);
    check(&with("name: q"), &[(4, 1, "`name` appears twice; the first is on line 1", "keep one")]);
    let problems = problems(&with("---\nname: q"));
    assert!(problems.to_string().contains("a second document"), "{problems}");
}

#[test]
fn expressions_are_compiled_and_point_into_themselves() {
    check(
        &with("process:\n  - map: '{a: (.b | tonumbr)}'"),
        &[(5, 21, "not valid jq: unknown filter `tonumbr`", "{name: .field")],
    );
    check(
        &with("process:\n  - map: |\n      {\n        a: .b,\n        c: (.d\n      }"),
        &[(9, 7, "not valid jq", "")],
    );
    check(
        &with("process:\n  - filter: { name: x, keep: 'itm.a > 3' }"),
        &[(5, 31, "unknown name `itm`", "item.FIELD")],
    );
    check(
        &with("process:\n  - filter: { name: x, keep: 'item.a >' }"),
        &[(5, 39, "not valid CEL", "compare")],
    );
    check(
        &with("process:\n  - filter: { name: x, keep: 'item.a + 1' }"),
        &[(5, 31, "cannot give true or false", "compare")],
    );
    check(
        &with("process:\n  - filter: { name: x, keep: 'frobnicate(item.a)' }"),
        &[(5, 31, "unknown name `frobnicate`", "")],
    );
}

#[test]
fn batches_must_fit_the_prefetch_and_the_queue() {
    let buffered = |queue: &str, batch: &str| {
        format!(
            "name: p\n{SOURCE}\noutput: {{ stdout: }}\nbuffer: {{ queue: {{ broker: \"embedded:s\", name: q, {queue} }} }}\nbatch: {{ {batch} }}"
        )
    };
    check(
        &buffered("prefetch: 100", "count: 200"),
        &[(5, 17, "`batch.count` 200 is larger than `prefetch` 100", "raise `prefetch` to at least 200")],
    );
    check(
        &buffered("prefetch_bytes: 1MiB", "bytes: 2MiB"),
        &[(5, 17, "larger than `prefetch_bytes` 1MiB", "raise `prefetch_bytes`")],
    );
    check(
        &buffered("max_items: 100", "count: 200"),
        &[(5, 17, "larger than the queue's `max_items` 100", "raise `max_items`")],
    );
    check(
        &buffered("max_items: 600, prefetch: 1000", "count: 200"),
        &[(4, 77, "`prefetch` 1000 is larger than the queue's `max_items` 600", "lower `prefetch`")],
    );
    check(
        &buffered("max_bytes: 8MiB, prefetch_bytes: 9MiB", "count: 200"),
        &[(4, 84, "`prefetch_bytes` 9MiB is larger than the queue's `max_bytes`", "lower `prefetch_bytes`")],
    );
}

#[test]
fn certificates_are_for_https() {
    let to = |url: &str| {
        with("")
            .replace("output: { stdout: }", &format!("output: {{ http: {{ ca: a.pem, url: \"{url}\" }} }}"))
    };
    check(&to("http://h/in"), &[(3, 23, "`ca` has no effect: http://h/in is not https", "write `https://`")]);
    check(
        &with("").replace("output: { stdout: }", "output: { http: { url: \"ftp://h/in\" } }"),
        &[(3, 24, "not an http URL", "`https://HOST/PATH`")],
    );
}

#[test]
fn retry_belongs_before_dead_letter() {
    check(
        &with("on_error:\n  retry: { attempts: 3 }\n  dead_letter: { queue: q, broker: \"embedded:s\" }"),
        &[
            (5, 3, "`retry` has no effect", "directly"),
            (6, 3, "`dead_letter` beside `retry`", "retry: { attempts: 5, then: { dead_letter"),
        ],
    );
    check(
        &with("on_error: { retry: { then: { retry: { attempts: 3 } } } }"),
        &[
            (4, 13, "`retry` has no effect", "directly"),
            (4, 30, "unknown key `retry` in `then`", "`dead_letter`"),
        ],
    );
    let to_queue = "output: { queue: { broker: \"embedded:s\", name: out } }";
    check(
        &with("on_error: { retry: { attempts: 3 } }").replace("output: { stdout: }", to_queue),
        &[(4, 13, "`retry` has no effect", "directly")],
    );
}

#[test]
fn a_dead_letter_queue_needs_a_broker_and_its_own_name() {
    check(&with("on_error: { dead_letter: { queue: dead } }"), &[(4, 35, "no broker", "add `broker:")]);
    let lines =
        "buffer: { queue: { broker: \"embedded:s\", name: q } }\non_error: { dead_letter: { queue: q } }";
    check(
        &with(lines),
        &[(5, 35, "queue `q` is used for the dead letters and for the buffer", "another queue")],
    );
    let lines = "buffer: { queue: { broker: \"embedded:s\", name: q } }\non_error: { dead_letter: { queue: d, broker: \"embedded:t\" } }";
    check(&with(lines), &[(5, 35, "on another broker", "leave `broker` out")]);
}

#[test]
fn a_queue_never_feeds_itself() {
    check(
        "name: p\nsource: { queue: { broker: \"embedded:s\", name: q } }\noutput: { queue: { broker: \"embedded:s\", name: q } }",
        &[(3, 48, "queue `q` is used for an output and for the source", "round again")],
    );
    check(
        "name: p\nsource: { queue: { broker: \"embedded:s\", name: q } }\nbuffer: { queue: { broker: \"embedded:s\", name: r } }\noutput: { stdout: }",
        &[(3, 48, "stores every item twice", "leave `buffer` out")],
    );
}

#[test]
fn a_stream_never_feeds_itself_by_whichever_name_it_is_called() {
    const STREAMS: &str = "rabbitmq-stream://h";
    let yaml = |source: &str, output: &str, rest: &str, broker: &str| {
        let end = |what: &str| match what {
            "stdin" | "stdout" => format!("{what}:"),
            what => format!("{what}: {{ broker: \"{broker}\", name: x }}"),
        };
        format!("name: p\nsource: {{ {} }}\noutput: {{ {} }}\n{rest}", end(source), end(output))
    };
    let at = |what: &str| (STREAMS.len() + what.len() + 33) as u32;
    for (source, output) in
        [("queue", "stream"), ("stream", "queue"), ("stream", "stream"), ("queue", "queue")]
    {
        let expected = format!("{output} `x` is used for an output and for the source");
        check(
            &yaml(source, output, "", STREAMS),
            &[(3, at(output), &expected, &format!("another {output}; items would come round again"))],
        );
    }
    for source in ["queue", "stream"] {
        let letters = format!("on_error: {{ dead_letter: {{ queue: x, broker: \"{STREAMS}\" }} }}");
        let expected = "is used for the dead letters and for the source";
        let problems = problems(&yaml(source, "stdout", &letters, STREAMS));
        assert!(problems.iter().any(|problem| problem.message.contains(expected)), "{problems}");
    }
    // Elsewhere a queue and a stream of one name are two things, and many may append to one stream.
    accepted(&yaml("queue", "stream", "", "embedded:s"));
    accepted(&yaml("stream", "queue", "", "embedded:s"));
    let letters = format!("on_error: {{ dead_letter: {{ queue: x, broker: \"{STREAMS}\" }} }}");
    accepted(&format!(
        "name: p\n{SOURCE}\noutput: {{ stream: {{ broker: \"{STREAMS}\", name: x }} }}\n{letters}"
    ));
}

#[test]
fn the_memory_of_a_streams_reader_is_part_of_the_bound_by_whichever_name_the_stream_is_called() {
    let bound = |broker: &str| {
        let yaml = format!(
            "name: p\nsource: {{ queue: {{ broker: \"{broker}\", name: x }} }}\noutput: {{ stdout: }}"
        );
        let pipeline = Pipeline::parse("p.yaml", yaml.as_str());
        pipeline.unwrap_or_else(|problems| panic!("{problems}")).memory_bound_bytes()
    };
    assert_eq!(bound("rabbitmq-stream://h"), bound("amqp://h") + (8 << 20));
}

#[test]
fn order_cannot_be_promised_behind_what_loses_it() {
    check(
        &with(
            "goals: { order: true }\nprocess:\n  - parallel: { ordered: false, steps: [ map: . ] }\nbatch: { by: a }",
        ),
        &[
            (6, 26, "breaks `goals.order`, promised on line 4", "take `goals.order` back"),
            (7, 14, "`batch.by`", "either way"),
        ],
    );
}

#[test]
fn a_position_file_beside_a_buffer_that_remembers_is_refused() {
    check(
        "name: p\nsource: { file: { path: in.ndjson, position: p } }\noutput: { stdout: }\n\
         buffer: { queue: { broker: \"embedded:s\", name: q } }",
        &[(2, 46, "`position` has no effect", "leave `position` out")],
    );
}

#[test]
fn settings_without_effect_are_refused() {
    check(
        "name: p\nsource: { stdin: { format: ndjson, delimiter: ';', columns: [a] } }\noutput: { stdout: }",
        &[(2, 47, "`delimiter` has no effect", "leave"), (2, 61, "`columns` has no effect", "leave")],
    );
    check(
        "name: p\nsource: { generate: }\noutput: { file: { path: out.ndjson, rotate: {}, max_open: 5, columns: [a] } }",
        &[
            (3, 37, "`rotate` has no effect", "add one"),
            (3, 59, "`max_open` has no effect", ""),
            (3, 71, "`columns` has no effect", ""),
        ],
    );
    check(
        &with("output2: 1\nprocess:\n  - parallel: { workers: 1, steps: [ map: . ] }"),
        &[(4, 1, "unknown key", "did you mean `output`?"), (6, 26, "one worker", "`auto`")],
    );
    check(
        &with("process:\n  - filter: { name: x, keep: '1 < 2' }"),
        &[(5, 21, "keeps every item", "compare a field")],
    );
    check(&with("goals: { max_error_rate: 1% }"), &[(4, 26, "no effect", "set `on_error`")]);
    check(
        &with("output: { stdout: { rotate: { bytes: 1MiB } } }").replace("output: { stdout: }\n", ""),
        &[(3, 21, "unknown key `rotate` in `stdout`", "`format`")],
    );
    check(
        "name: p\nsource: { generate: }\noutput: { http: { url: \"http://h/\", headers: { Content-Type: x } } }",
        &[(3, 48, "set by the output itself", "`format`")],
    );
}

#[test]
fn goals_are_held_against_the_settings() {
    check(
        &with("goals: { latency: 100ms }"),
        &[(4, 19, "`batch.age` 1s is longer than `goals.latency` 100ms", "age: 100ms")],
    );
    check(&with("goals: { memory: 1MiB }"), &[(4, 18, "more than `goals.memory` 1MiB", "raise the goal")]);
}

#[test]
fn names_of_steps_and_outputs_are_told_apart() {
    check(
        &with("process:\n  - filter: { name: x, keep: 'item.a' }\n  - filter: { name: x, keep: 'item.b' }"),
        &[(6, 21, "two filters are named `x`; the first is on line 5", "own name")],
    );
    let named = |route: &str| {
        format!(
            "name: p\n{SOURCE}\nprocess:\n  - route: {route}\noutput:\n  named:\n    late: {{ stdout: }}\n    rest: {{ file: {{ path: r.ndjson }} }}"
        )
    };
    accepted(&named("{ cases: [ { when: 'item.a', to: late } ], else: rest }"));
    check(
        &named("{ cases: [ { when: 'item.a', to: lat } ], else: rest }"),
        &[
            (4, 45, "no output is named `lat`", "did you mean `late`?"),
            (7, 5, "`late` is never routed to", "add a case"),
        ],
    );
    check(
        &with("process:\n  - route: { cases: [ { when: 'item.a', to: x } ], else: drop }"),
        &[(5, 12, "`route` has no outputs to choose from", "output.named")],
    );
    check(
        &with("process:\n  - route: { cases: [ { when: 'item.a', to: x } ], else: drop }\n  - map: ."),
        &[(5, 5, "`route` is not the last step", "move it to the end")],
    );
    check(
        &format!("name: p\n{SOURCE}\noutput: {{ named: {{ a: {{ stdout: }} }} }}"),
        &[(3, 11, "without a `route`", "end `process` with")],
    );
}

#[test]
fn outputs_do_not_share_a_file() {
    let route = "process: [ { route: { cases: [ { when: 'item.a', to: a } ], else: b } } ]";
    check(
        &format!(
            "name: p\n{SOURCE}\n{route}\noutput: {{ named: {{ a: {{ file: {{ path: x.ndjson }} }}, b: {{ file: {{ path: x.ndjson }} }} }} }}"
        ),
        &[(4, 72, "another output already writes x.ndjson", "its own path")],
    );
    check(
        "name: p\nsource: { file: { path: d/x.csv } }\noutput: { file: { path: d/x.csv } }",
        &[(3, 25, "the file that the source reads", "another file")],
    );
    check(
        "name: p\nsource: { file: { path: 'd*/x.csv' } }\noutput: { stdout: }",
        &[(2, 25, "`*` stands in a directory's name", "file's name only")],
    );
    check(
        "name: p\nsource: { file: { path: x.dat } }\noutput: { file: { path: 'o/{a.dat' } }",
        &[
            (2, 25, "cannot be told from its extension", "format: csv"),
            (3, 28, "a brace without its partner", "braces"),
        ],
    );
}

#[test]
fn overrides_are_checked_like_the_file() {
    let file = tempfile::tempdir().expect("a directory");
    let path = file.path().join("p.yaml");
    std::fs::write(&path, with("process:\n  - map: .")).expect("a file");
    let open = |sets: &[&str]| {
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        Pipeline::open(&path, &sets)
    };
    let pipeline = open(&["name=other", "batch.count=7", "process.0.map='{a: 1}'"]).expect("good overrides");
    assert_eq!(pipeline.name(), "other");
    for (set, message) in [
        ("output.file.path={k}.ndjson", "quote it, as in --set 'output.file.path=\"{k}.ndjson\"'"),
        ("batch.count=0", "--set batch.count=0: `count` is `0`"),
        ("bacth.count=5", "unknown key `bacth`"),
        ("batch", "no `=`"),
        ("process.3.map=.", "not an entry of this list"),
        ("name.x=1", "below a value"),
    ] {
        let problems = open(&[set]).expect_err(set).to_string();
        assert!(problems.contains(message), "{set}: {problems}");
    }
}

#[test]
fn variables_of_the_environment_are_filled_in() {
    let problems =
        problems(&with("batch: { count: \"${MILLSTREAM_NOT_SET}\", age: \"${A B}\", bytes: \"${X\" }"))
            .to_string();
    assert!(
        problems.contains("p.yaml:4:17: the environment variable `MILLSTREAM_NOT_SET` is not set"),
        "{problems}"
    );
    assert!(problems.contains("${MILLSTREAM_NOT_SET:-…}"), "{problems}");
    assert!(problems.contains("does not name a variable"), "{problems}");
    assert!(problems.contains("without its `}`"), "{problems}");
    accepted(&with("batch:\n  count: ${MILLSTREAM_NOT_SET:-5}"));
}

#[test]
fn files_that_cannot_be_read_say_why() {
    let missing = Pipeline::open("/does/not/exist.yaml".as_ref(), &[]).expect_err("no file").to_string();
    assert!(missing.contains("/does/not/exist.yaml: cannot be read"), "{missing}");
    assert!(problems("").to_string().contains("the file is empty"));
}

const WORDS: &str = "name source buffer process batch output on_error goals file stdin queue http generate \
    memory named filter map parallel route steps keep cases else when to dead_letter retry then path rotate by \
    count x 5 1MiB 500ms true auto csv 'item.a>1' '.a|b' '{a}/{' embedded:s ${X} [ ] { } - : ,";

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_text_makes_lint_panic(text in "\\PC{0,200}") {
        let _ = Pipeline::parse("p.yaml", &text);
    }

    /// Real keys in wrong places, with wrong values: what a person mistypes.
    #[test]
    fn no_rearranged_pipeline_makes_lint_panic(
        words in proptest::collection::vec(proptest::sample::select(WORDS.split(' ').collect::<Vec<_>>()), 0..60),
        breaks in proptest::collection::vec(prop_oneof![Just(": "), Just(" "), Just("\n"), Just("\n  "), Just("\n  - "), Just(", ")], 60),
    ) {
        let text: String = words.iter().zip(&breaks).flat_map(|(word, gap)| [*word, *gap]).collect();
        if let Err(problems) = Pipeline::parse("p.yaml", &text) {
            prop_assert!(problems.len() > 0);
            prop_assert!(!problems.to_string().is_empty());
        }
    }
}

#[test]
fn streams_are_held_against_their_brokers_and_their_settings() {
    let source =
        |rest: &str| format!("name: p\nsource: {{ stream: {{ name: s, {rest} }} }}\noutput: {{ stdout: }}");
    accepted(&source("broker: \"embedded:d\", from: 1h, reader: r, until: drained"));
    accepted(&source("broker: \"rabbitmq-stream://h/v\", from: 17"));
    check(&source("broker: \"amqp://h\""), &[(2, 38, "not a broker's URL", "use `rabbitmq-stream://HOST`")]);
    check(
        &source("broker: \"rabbitmq-stream://h?heartbeats=1\""),
        &[(2, 38, "not a broker's URL", "known are")],
    );
    check(
        &source("broker: \"embedded:d\", from: newest"),
        &[(2, 58, "`from` is", "`first`, `last`, `next`")],
    );
    check(
        &source("broker: \"embedded:d\", from: next, until: drained"),
        &[(2, 58, "ends at once", "leave `until` out")],
    );
    check(
        "name: p\nsource: { stream: { name: s, broker: \"embedded:d\", reader: r } }\n\
         buffer: { queue: { broker: \"embedded:d\", name: q } }\noutput: { stdout: }",
        &[(2, 60, "`reader` has no effect", "leave `reader` out")],
    );
    check(
        "name: p\nsource: { stream: { name: s, broker: \"embedded:d\" } }\n\
         output: { stream: { name: s, broker: \"embedded:d\" } }",
        &[(3, 27, "for an output and for the source", "another stream")],
    );
}

#[test]
fn a_name_that_the_report_uses_itself_is_refused() {
    check(
        &with(
            "process: [ { filter: { name: errors, keep: 'item.a' } }, { parallel: { steps: [ { map: { name: errors, jq: . } } ] } } ]",
        ),
        &[
            (4, 30, "`on_error: skip` drops", "choose another name"),
            (4, 96, "`on_error: skip` drops", "choose another name"),
        ],
    );
    let filtered = |rest: &str| {
        let filter = "- filter: { name: route, keep: 'item.a' }";
        format!("name: p\n{SOURCE}\nprocess:\n  {filter}\n{rest}")
    };
    accepted(&filtered("output: { stdout: }"));
    check(
        &filtered(
            "  - route: { cases: [ { when: 'item.b', to: x } ], else: drop }\noutput: { named: { x: { stdout: } } }",
        ),
        &[(4, 21, "`route` is what the report calls items that the `route` drops", "choose another name")],
    );
}

#[test]
fn yaml_that_is_none_is_told_with_what_to_do_about_it() {
    check(
        "name: p\nsource: *x\noutput: { stdout: }",
        &[(2, 9, "unknown anchor", "quote a text that begins with `*`")],
    );
    check("name: p\nsource:\n\tstdin: {}\n", &[(3, 2, "tabs", "indent by spaces")]);
    check("name: p\nsource: { stdin: }}\n", &[(2, 19, "not valid YAML", "check the indentation")]);
}

#[test]
fn a_word_with_settings_is_answered_by_the_word() {
    check(
        &with("on_error: { skip: {} }"),
        &[(4, 13, "`skip` in `on_error` takes no settings", "write `on_error: skip`")],
    );
    check(&with("on_error: { fail: }"), &[(4, 13, "takes no settings", "write `on_error: fail`")]);
}

#[test]
fn a_list_that_is_not_there_begins_with_the_first_entry_that_is_set() {
    let file = tempfile::tempdir().expect("a directory");
    let path = file.path().join("p.yaml");
    std::fs::write(&path, with("")).expect("a file");
    let open = |set: &str| Pipeline::open(&path, &[set.to_owned()]);
    let pipeline = open("process.0.filter={ name: x, keep: 'item.a' }").expect("a good override");
    assert!(pipeline.graph().contains('x'), "{}", pipeline.graph());
    let problems = open("process.0.filter.keep=item.a").expect_err("no name").to_string();
    assert!(problems.contains("`filter` lacks `name`") && !problems.contains("must be a list"), "{problems}");
}

#[test]
fn a_time_that_is_too_long_is_told_the_longest() {
    check(&with("batch: { age: 99999999d }"), &[(4, 15, "not a time", "at most `213503d`")]);
    accepted(&with("batch: { age: 213503d }"));
}

#[test]
fn of_a_long_line_the_part_around_the_place_is_shown() {
    let long = "x".repeat(100_000);
    let problems = problems(&with(&format!("process: [ {{ map: '\"{long}\"' }}, {{ mapp: '{long}' }} ]")));
    let text = problems.to_string();
    assert!(text.len() < 2000, "{} bytes", text.len());
    let lines: Vec<&str> = text.lines().collect();
    let (line, carets) = (lines[1], lines[2]);
    let caret = carets.chars().position(|c| c == '^').expect("a caret");
    assert_eq!(line.chars().skip(caret).take(4).collect::<String>(), "mapp", "{text}");
}

/// The parser's own words for this are a dump of its insides.
#[test]
fn an_expression_that_nests_too_deeply_is_told_so() {
    let deep = format!("{}item.a{}", "(".repeat(150), ")".repeat(150));
    let text =
        problems(&with(&format!("process: [ {{ filter: {{ name: x, keep: '{deep}' }} }} ]"))).to_string();
    assert!(text.contains("nests more deeply") && !text.contains("ParseError"), "{text}");
}
