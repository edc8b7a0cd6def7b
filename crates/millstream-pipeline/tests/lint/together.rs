//! Settings that are each right and contradict each other, or have no effect beside each other.

use millstream_pipeline::Pipeline;

use super::{SOURCE, accepted, check, problems, with};

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
